"""Does anything jump when a pair crosses the cutoff?

Two copies of the molecule, one turned at random, are drawn apart along a straight line, so that
pair after pair of their atoms crosses the cutoff that the card names. A model whose interaction
is smooth at the cutoff has smooth energy and forces along the line; one that cuts off has a step.

The step across one interval of the scan is the difference of two extrapolations to its middle, one
from the three points on its left and one from the three on its right:

    L = (15 f_k - 10 f_(k-1) + 3 f_(k-2)) / 8        R = (15 f_(k+1) - 10 f_(k+2) + 3 f_(k+3)) / 8

R - L is the step exactly where f is a parabola plus a step, and of the order h^3 f''' without a
step: 1e-9 of anything smooth on the scale of an angstrom, at h = 1e-3 angstrom. Rounding is
magnified 3.3 times.

Scanned are (1) fine windows of 1e-3 angstrom around the separations at which a pair crosses,
computed from the geometry, (2) the whole range coarsely, and fine windows where the coarse scan
is roughest: that finds a cutoff that the card does not name. In vacuum, also for a system that is
a box: then two copies of its first molecule are taken.

Bounds: a sound float32 network shows its rounding, some 1e-2 meV and 2e-5 eV/angstrom (tiny, on
water and alanine); its limits lie five to ten times above, its reject bounds ten and a hundred
times above those. Argon with a plain cutoff at 2.5 sigma, which must not pass, steps by 0.17 meV
and 1e-4 eV/angstrom.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import SPOILS_EVALUATION, Check, Evidence, absent, bounds, exact
from omm_mlff.geometry.pulled_apart import Line, two_copies
from omm_mlff.schema import Declaration, Fault, Measurement, Where
from omm_mlff.units import (
    ANGSTROM_PER_NM,
    EV_ANGSTROM_PER_KJMOL_NM,
    MEV_PER_KJMOL,
    NM_PER_ANGSTROM,
)

if TYPE_CHECKING:
    from omm_mlff.dynamics.evaluator import Evaluator

FINE_NM = 1.0e-3 * NM_PER_ANGSTROM
COARSE_NM = 0.02 * NM_PER_ANGSTROM
MARGIN_NM = 0.2 * NM_PER_ANGSTROM
CLOSEST = 0.7
"""Of the van der Waals contact. Nearer, the wall is so steep that the error of the extrapolation
passes for a step: argon at 1.5 angstrom shows 0.02 meV of it."""
N_CROSSINGS = 24
N_COARSE = 300
N_ROUGH = 4
_HALF_WINDOW = 6  # points on each side of a crossing

ENERGY_JUMP = Declaration(
    "cutoff.energy_jump",
    "deterministic",
    "meV",
    "largest step of the energy",
    "cutoff",
    failure="the energy jumps where a pair crosses the cutoff",
)
FORCE_JUMP = Declaration(
    "cutoff.force_jump",
    "deterministic",
    "eV/angstrom",
    "largest step of a force",
    "cutoff",
    failure="forces jump where a pair crosses the cutoff",
)


def steps(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Estimated step across each inner interval of an even scan.

    Parameters
    ----------
    values : shape (n_points, ...), n_points at least 6

    Returns
    -------
    shape (n_points - 5, ...); the k-th is between the points k + 2 and k + 3
    """
    left = (15.0 * values[2:-3] - 10.0 * values[1:-4] + 3.0 * values[:-5]) / 8.0
    right = (15.0 * values[3:-2] - 10.0 * values[4:-1] + 3.0 * values[5:]) / 8.0
    return np.asarray(right - left)


@dataclass(frozen=True)
class _Jump:
    energy: float  # kJ/mol
    force: float  # kJ/mol/nm
    at_energy: float  # separation, nm
    at_force: float
    n_points: int


def largest_jump(evaluator: Evaluator, line: Line, windows: list[NDArray[np.float64]]) -> _Jump:
    """The largest steps of energy and force in evenly spaced windows of separations (nm)."""
    energies, forces = evaluator.evaluate(line.at(np.concatenate(windows)))
    found = _Jump(0.0, 0.0, math.nan, math.nan, len(energies))
    start = 0
    for window in windows:
        stop = start + len(window)
        middle = 0.5 * (window[2:-3] + window[3:-2])
        energy = np.abs(steps(energies[start:stop]))
        force = np.linalg.norm(steps(forces[start:stop]), axis=2).max(axis=1)
        energy, force = (np.where(np.isfinite(x), x, np.inf) for x in (energy, force))
        e, f = int(energy.argmax()), int(force.argmax())
        if energy[e] > found.energy:
            found = dataclasses.replace(found, energy=float(energy[e]), at_energy=float(middle[e]))
        if force[f] > found.force:
            found = dataclasses.replace(found, force=float(force[f]), at_force=float(middle[f]))
        start = stop
    return found


def scan(evaluator: Evaluator, line: Line, cutoff_nm: float) -> _Jump | None:
    """The largest steps while the fragments are drawn apart; None where no pair crosses."""
    separations, _ = line.crossings(cutoff_nm)
    floor = _closest_separation(line, cutoff_nm)
    separations = separations[separations > floor + 2 * _HALF_WINDOW * FINE_NM]
    if not len(separations):
        return None
    chosen = np.unique(
        np.linspace(0, len(separations) - 1, min(N_CROSSINGS, len(separations))).round()
    ).astype(np.int64)
    around = (np.arange(-_HALF_WINDOW, _HALF_WINDOW) + 0.5) * FINE_NM
    windows = [separations[k] + around for k in chosen]

    low, high = max(floor, separations[0] - MARGIN_NM), separations[-1] + MARGIN_NM
    n_coarse = max(7, min(N_COARSE, math.ceil((high - low) / COARSE_NM)))
    coarse = np.linspace(low, high, n_coarse)
    energies, forces = evaluator.evaluate(line.at(coarse))
    rough = np.abs(steps(energies))
    rough_force = np.linalg.norm(steps(forces), axis=2).max(axis=1)
    for roughness in (rough, rough_force):
        for k in np.argsort(roughness)[-N_ROUGH // 2 :]:
            edges = coarse[k + 2] - 3.0 * FINE_NM, coarse[k + 3] + 3.0 * FINE_NM
            windows.append(np.arange(edges[0], edges[1], FINE_NM))
    found = largest_jump(evaluator, line, windows)
    return dataclasses.replace(found, n_points=found.n_points + n_coarse)


def _closest_separation(line: Line, cutoff_nm: float) -> float:
    """The least separation from which on the fragments stay apart by `CLOSEST`."""
    grid = np.arange(0.0, _extent(line) + cutoff_nm, COARSE_NM)
    near = np.flatnonzero(line.closeness(grid) < CLOSEST)
    last = int(near[-1]) if len(near) else -1
    return float(grid[min(last + 1, len(grid) - 1)])


def _extent(line: Line) -> float:
    """No atom of one copy is farther from one of the other, were both in one place, nm."""
    return float(np.abs(line.system.positions).max()) * 2.0 * math.sqrt(3.0)


def take(evidence: Evidence) -> list[Measurement]:
    """Steps of energy and force while two copies are drawn apart."""
    where = Where(system=evidence.system.name)
    cutoff = evidence.card.cutoff_nm
    if cutoff is None:
        reason = f"{evidence.card.name} names no cutoff"
        return [absent(row, where, reason) for row in CHECK.declares]
    line = two_copies(evidence.system, evidence.random(CHECK.name))
    # It is asked about the copies side by side, not on top of each other.
    beside = line.at(np.array([_extent(line) + cutoff]))[0]
    pair = dataclasses.replace(line.system, positions=beside)
    obstacle = evidence.live.potential.unsupported(pair)
    if obstacle:
        reason = f"it cannot serve two copies of the molecule: {obstacle}"
        return [absent(row, where, reason) for row in CHECK.declares]
    evaluator = evidence.live.for_system(pair)
    try:
        found = scan(evaluator, line, cutoff)
    finally:
        evaluator.close()
    if found is None:
        reason = f"no pair crosses {cutoff:g} nm while the copies are apart"
        return [absent(row, where, reason) for row in CHECK.declares]
    return [
        exact(
            ENERGY_JUMP,
            found.energy * MEV_PER_KJMOL,
            where,
            found.n_points,
            _cause(line, cutoff, found.at_energy),
        ),
        exact(
            FORCE_JUMP,
            found.force * EV_ANGSTROM_PER_KJMOL_NM,
            where,
            found.n_points,
            _cause(line, cutoff, found.at_force),
        ),
    ]


def _cause(line: Line, cutoff_nm: float, separation: float) -> str:
    """The pair that is nearest to the cutoff at a separation, in words."""
    if math.isnan(separation):
        return ""
    separations, pairs = line.crossings(cutoff_nm)
    i, j = pairs[int(np.abs(separations - separation).argmin())]
    symbols = [atom.element.symbol for atom in line.system.topology.atoms()]
    position = line.at(np.array([separation]))[0]
    length = float(np.linalg.norm(position[j] - position[i])) * ANGSTROM_PER_NM
    return (
        f"step where {symbols[i]}{i} and {symbols[j]}{j - line.n_first} of two copies are "
        f"{length:.4f} angstrom apart (cutoff {cutoff_nm * ANGSTROM_PER_NM:g})"
    )


_SCALE = (
    "rounding of the dtype below, argon's plain cutoff at 2.5 sigma (0.17 meV, 1e-4 eV/angstrom) "
    "above (derived in omm_mlff/checks/cutoff.py)"
)

CHECK = Check(
    name="cutoff",
    question="Does anything jump when a pair crosses the cutoff?",
    formula="difference of two quadratic extrapolations to the middle of each step of the scan",
    source="Allen & Tildesley, Computer Simulation of Liquids, 2nd ed. (2017), section 5.2",
    declares=(ENERGY_JUMP, FORCE_JUMP),
    criteria=(
        *bounds(ENERGY_JUMP, _SCALE, dtypes=("float64",), high=(1.0e-3, 1.0)),
        *bounds(ENERGY_JUMP, _SCALE, dtypes=("float32",), high=(0.1, 1.0)),
        *bounds(FORCE_JUMP, _SCALE, dtypes=("float64",), high=(1.0e-6, 1.0e-2)),
        *bounds(FORCE_JUMP, _SCALE, dtypes=("float32",), high=(1.0e-4, 1.0e-2)),
    ),
    needs=frozenset({"evaluator"}),
    take=take,
    use="atoms that come and go across the cutoff",
    explained_by=(
        *SPOILS_EVALUATION,
        Fault.UNITS,
        Fault.ORIENTATION,
        Fault.BOX,
    ),
)
