"""How time and memory grow with the system: water boxes, and the exponents through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Exponent:
    """Of y = c N^p.

    Attributes
    ----------
    low, high : 95%, Student's t over the points' residuals; infinite for two points
    """

    value: float
    low: float
    high: float


def exponent(sizes: Sequence[float], values: Sequence[float]) -> Exponent:
    """The exponent through points, by least squares of the logarithms.

    Parameters
    ----------
    sizes, values : positive, two or more
    """
    x, y = np.log(np.asarray(sizes)), np.log(np.asarray(values))
    fit = stats.linregress(x, y)
    n = len(x)
    if n < 3:
        return Exponent(float(fit.slope), -np.inf, np.inf)
    half = float(stats.t.ppf(0.975, n - 2) * fit.stderr)
    return Exponent(float(fit.slope), float(fit.slope) - half, float(fit.slope) + half)


def box_of(n_atoms: int) -> str:
    """The water box of about so many atoms, as `load_system` takes it."""
    return f"water-box:{max(1, round(n_atoms / 3))}"
