"""Finished validations side by side.

    folders -> read_finished -> compare -> Comparison -> write_comparison

Neither torch nor OpenMM is needed: everything is read from what the validations left.
"""

from omm_mlff.comparison.compare import Comparison, compare
from omm_mlff.comparison.finished import Finished, FinishedRun, read_finished
from omm_mlff.comparison.forecast import Forecast, read_forecast
from omm_mlff.comparison.rows import Row
from omm_mlff.comparison.write import write_comparison

__all__ = [
    "Comparison",
    "Finished",
    "FinishedRun",
    "Forecast",
    "Row",
    "compare",
    "read_finished",
    "read_forecast",
    "write_comparison",
]
