"""Is this machine-learned force field safe to run in OpenMM? A verdict, with evidence."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omm_mlff.adapters.ase_calculator import StudentCalculator as StudentCalculator
    from omm_mlff.adapters.reporters import StabilityReporter as StabilityReporter
    from omm_mlff.adapters.reporters import TrajectoryReporter as TrajectoryReporter
    from omm_mlff.dynamics.evaluator import Evaluator as Evaluator
    from omm_mlff.potentials.registry import load_potential as load_potential
    from omm_mlff.potentials.student import add_student as add_student
    from omm_mlff.record.reading import read_record as read_record
    from omm_mlff.record.rundir import RunRecord as RunRecord
    from omm_mlff.schema import Criterion as Criterion
    from omm_mlff.schema import Measurement as Measurement
    from omm_mlff.schema import MolecularSystem as MolecularSystem
    from omm_mlff.schema import PotentialCard as PotentialCard
    from omm_mlff.schema import RunSpec as RunSpec
    from omm_mlff.schema import Verdict as Verdict
    from omm_mlff.students.checkpoint import load_student as load_student
    from omm_mlff.systems import load_system as load_system
    from omm_mlff.systems.labels import LabelOptions as LabelOptions
    from omm_mlff.validation import validate as validate

__version__ = "0.1.0"

__all__ = [
    "Criterion",
    "Evaluator",
    "LabelOptions",
    "Measurement",
    "MolecularSystem",
    "PotentialCard",
    "RunRecord",
    "RunSpec",
    "StabilityReporter",
    "StudentCalculator",
    "TrajectoryReporter",
    "Verdict",
    "__version__",
    "add_student",
    "load_potential",
    "load_student",
    "load_system",
    "read_record",
    "validate",
]

# A public name is never also the name of a module: `omm_mlff.validation` is the module, whichever
# was imported first, and its function is `omm_mlff.validate`.
_HOME = {
    "Criterion": "schema",
    "Evaluator": "dynamics.evaluator",
    "LabelOptions": "systems.labels",
    "Measurement": "schema",
    "MolecularSystem": "schema",
    "PotentialCard": "schema",
    "RunRecord": "record.rundir",
    "RunSpec": "schema",
    "StudentCalculator": "adapters.ase_calculator",
    "StabilityReporter": "adapters.reporters",
    "TrajectoryReporter": "adapters.reporters",
    "Verdict": "schema",
    "add_student": "potentials.student",
    "load_potential": "potentials.registry",
    "load_student": "students.checkpoint",
    "load_system": "systems",
    "read_record": "record.reading",
    "validate": "validation",
}
"""Where each public name lives; it is imported when it is first used."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
