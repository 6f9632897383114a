"""Accuracy against cost: the force error of a potential on a system's reference labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omm_mlff.checks.accuracy import HOTTEST_K
from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.potentials.base import Potential
from omm_mlff.schema import MolecularSystem
from omm_mlff.units import EV_ANGSTROM_PER_KJMOL_NM, NS_PER_DAY_PER_FS_PER_MS


@dataclass(frozen=True)
class Point:
    """One potential on one system.

    Attributes
    ----------
    force_rmse : eV/angstrom, over components of the reference frames up to 500 K
    step_ms : one replica, unrecorded
    """

    potential: str
    source: str
    system: str
    force_rmse: float
    step_ms: float

    def dominated_by(self, other: Point) -> bool:
        """Whether another is at least as good in both and better in one."""
        as_good = other.force_rmse <= self.force_rmse and other.step_ms <= self.step_ms
        return as_good and (other.force_rmse, other.step_ms) != (self.force_rmse, self.step_ms)


def force_rmse(potential: Potential, system: MolecularSystem, platform: str) -> float | None:
    """Root mean square error of the forces, eV/angstrom; None where the system has no labels."""
    if system.reference is None:
        return None
    cool = system.reference.temperature_K <= HOTTEST_K
    with Evaluator(potential, system, platform) as evaluator:
        _, forces = evaluator.evaluate(system.reference.positions[cool])
    error = (forces - system.reference.forces[cool]) * EV_ANGSTROM_PER_KJMOL_NM
    return float(np.sqrt((error**2).mean()))


def ns_per_day(timestep_fs: float, step_s: float) -> float:
    """Simulated time a day of one replica."""
    return NS_PER_DAY_PER_FS_PER_MS * timestep_fs / (1000.0 * step_s)
