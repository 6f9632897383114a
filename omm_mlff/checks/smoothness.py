"""Is the energy surface smooth where the molecule goes?

The bond smoothness test of arXiv:2602.04861 is the idea: draw and press bonds, and look whether
energy and force along the way are those of a smooth curve. The measures below are this package's
own, for the paper's would not tell a sharp feature from a step.

Every type of bond is scanned from 0.8 to 1.6 lengths, its two fragments rigid, to see where the
accessible energy, 30 kT at 300 K, is reached; there, on an even and finer grid, it is measured.
Every type of bond that can be turned is turned by 360 degrees. The step of a curve f between the
points k and k + 1 of an even grid is its seventh difference

    [35 (f_(k+1) - f_k) - 21 (f_(k+2) - f_(k-1)) + 7 (f_(k+3) - f_(k-2)) - (f_(k+4) - f_(k-3))] / 20

which is exactly the step where f is a polynomial of sixth degree plus a step, and h^7 f''''''' / 20
where it is smooth. Networks have sharp features, some hundredths of an angstrom wide, that a grid
takes for steps. So an interval with more than half of a limit is divided by eight and looked at
again (twice along the long arcs of torsions): a sharp feature is gone, a step stays whole.
*Scan_force* and *scan_energy* are the largest steps along bonds of the force along the scan and
of the energy, *torsion_force* and
*torsion_energy* the same along the arc of a torsion. *Extrema* is how many extrema of the energy
more (or fewer) than one minimum the worst bond has in the accessible range; a dip of less than
1 meV is none. *Curvature*, for information, is the largest slope of the force along a bond: what
limits the timestep.

Bounds: shipped float32 students keep below 2.5e-3 eV/angstrom, from where on nothing is looked at
again (what was, had 1.3e-4 or less), and 0.05 meV, which is rounding. A norm with the tip of a
cone, or a neighbour that drops out, steps by 0.02 eV/angstrom or 1 meV. The limits lie at 5e-3 and
0.1, the reject bounds ten times beyond: every crossing of a step of 1 meV changes the total energy
by that much.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import (
    MINIMISATION,
    SPOILS_EVALUATION,
    Check,
    Evidence,
    absent,
    bounds,
    exact,
)
from omm_mlff.geometry.scans import (
    BondScan,
    Scan,
    TorsionScan,
    bond_scans,
    in_vacuum,
    torsion_scans,
)
from omm_mlff.schema import Declaration, Fault, Measurement, MolecularSystem, Reason, Symptom, Where
from omm_mlff.units import (
    ANGSTROM_PER_NM,
    BOLTZMANN,
    EV_ANGSTROM_PER_KJMOL_NM,
    EV_PER_KJMOL,
    MEV_PER_KJMOL,
    NM_PER_ANGSTROM,
)

if TYPE_CHECKING:
    from omm_mlff.dynamics.evaluator import Evaluator

ACCESSIBLE = 30.0 * BOLTZMANN * 300.0
"""What dynamics at 300 K climb, kJ/mol: 0.776 eV."""

COARSE = np.linspace(0.8, 1.6, 17)  # of the length at rest
FINE = 1.0 / 150.0  # the same; 0.006 to 0.01 angstrom
N_ANGLES = 90
DIVISIONS = 8
FINEST_NM = 2.0e-3 * NM_PER_ANGSTROM  # finer, and the tip of a cone would be a smooth curve
N_ROUNDS = 3
N_PER_ROUND = 12

FORCE_LIMIT, FORCE_REJECT = 5.0e-3, 5.0e-2  # eV/angstrom
ENERGY_LIMIT, ENERGY_REJECT = 0.1, 1.0  # meV
DIP = 1.0 / MEV_PER_KJMOL

_REACH = 3  # points on each side of an interval's own
_WEIGHTS = np.array([1.0, -7.0, 21.0, -35.0, 35.0, -21.0, 7.0, -1.0]) / 20.0


def _declared(name: str, unit: str, meaning: str, failure: str) -> Declaration:
    return Declaration(
        f"smoothness.{name}", "deterministic", unit, meaning, "smoothness", failure=failure
    )


SCAN_FORCE = _declared(
    "scan_force",
    "eV/angstrom",
    "largest step of the force along a bond",
    failure="the force steps along a bond",
)
SCAN_ENERGY = _declared(
    "scan_energy",
    "meV",
    "largest step of the energy along a bond",
    failure="the energy steps along a bond",
)
TORSION_FORCE = _declared(
    "torsion_force",
    "eV/angstrom",
    "largest step of the force in a torsion",
    failure="the force steps in a torsion",
)
TORSION_ENERGY = _declared(
    "torsion_energy",
    "meV",
    "largest step of the energy in a torsion",
    failure="the energy steps in a torsion",
)
EXTREMA = _declared(
    "extrema",
    "1",
    "extrema of the energy along a bond, but for one minimum",
    failure="the energy along a bond has more than one minimum",
)
CURVATURE = Declaration(
    "smoothness.curvature",
    "info",
    "eV/angstrom^2",
    "largest slope of the force along a bond",
    "smoothness",
)


@dataclass(eq=False)
class Curve:
    """Energy and force along one scan, on an even grid.

    Attributes
    ----------
    rest : coordinate of the molecule at rest
    coordinates : shape (n_points,), nm or radians
    energies, forces : shape (n_points,), kJ/mol and kJ/mol/nm
    looked_at : shape (n_points - 7,), whether an interval counts
    """

    scan: Scan
    rest: float
    coordinates: NDArray[np.float64]
    energies: NDArray[np.float64]
    forces: NDArray[np.float64]
    looked_at: NDArray[np.bool_]

    def interval(self, k: int) -> tuple[float, float]:
        """Edges of the k-th interval that `steps` tells of."""
        return float(self.coordinates[k + _REACH]), float(self.coordinates[k + _REACH + 1])


@dataclass(frozen=True)
class Step:
    """The largest step: its size, where it is, and the atoms of the scan."""

    size: float
    label: str = ""
    at: float = math.nan
    atoms: tuple[int, ...] = ()


def steps(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Size of the step in each inner interval of an even grid; inf where a value is not finite.

    Parameters
    ----------
    values : shape (n_points,), at least 8

    Returns
    -------
    shape (n_points - 7,); the k-th is between the points k + 3 and k + 4
    """
    windows = np.lib.stride_tricks.sliding_window_view(values, len(_WEIGHTS))
    with np.errstate(invalid="ignore", over="ignore"):
        # The weights sum to zero, but only exact arithmetic would forget a large constant.
        sizes = np.abs((windows - windows[:, :1]) @ _WEIGHTS)
    return np.where(np.isfinite(sizes), sizes, np.inf)


def extra_extrema(energies: NDArray[np.float64], dip: float) -> int:
    """How many extrema a curve has more, or fewer, than one minimum.

    Parameters
    ----------
    energies : shape (n_points,)
    dip : the energy turns where it has come back by more than this
    """
    n_minima = n_maxima = direction = 0
    low = high = float(energies[0])
    for energy in energies.tolist():
        low, high = min(low, energy), max(high, energy)
        if direction >= 0 and energy < high - dip:
            n_maxima += direction > 0
            direction, low = -1, energy
        elif direction <= 0 and energy > low + dip:
            n_minima += direction < 0
            direction, high = 1, energy
    return abs(n_minima - 1) + n_maxima


def bond_curves(evaluator: Evaluator, system: MolecularSystem) -> list[Curve]:
    """Every type of bond on a fine grid, as far as the accessible energy."""
    scans = bond_scans(system)
    if not scans:
        return []
    coarse = evaluator.energies(np.concatenate([scan.at(COARSE * scan.rest_nm) for scan in scans]))
    grids = [
        _grid(scan, energies)
        for scan, energies in zip(scans, coarse.reshape(len(scans), -1), strict=True)
    ]
    return _curves(evaluator, scans, grids)


def _grid(scan: BondScan, energies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where a bond is looked at closely: around its length at rest, up to the accessible energy."""
    rest = int(np.abs(COARSE - 1.0).argmin())
    # A NaN is not above anything: the range goes on to where it can be seen.
    above = energies - energies[rest] > ACCESSIBLE
    left = np.flatnonzero(above[:rest])
    right = np.flatnonzero(above[rest:])
    low = left[-1] if len(left) else 0
    high = rest + right[0] if len(right) else len(COARSE) - 1
    n_points = round((COARSE[high] - COARSE[low]) / FINE) + 1
    return np.linspace(float(COARSE[low]), float(COARSE[high]), n_points) * scan.rest_nm


def torsion_curves(evaluator: Evaluator, system: MolecularSystem) -> list[Curve]:
    """Every torsion, all the way round and a little on."""
    scans = torsion_scans(system)
    if not scans:
        return []
    angles = np.arange(N_ANGLES + 2.0 * _REACH + 1.0) * (2.0 * math.pi / N_ANGLES)
    return _curves(evaluator, scans, [angles] * len(scans))


def _curves(
    evaluator: Evaluator, scans: Sequence[Scan], grids: list[NDArray[np.float64]]
) -> list[Curve]:
    frames = [scan.at(grid) for scan, grid in zip(scans, grids, strict=True)]
    energies, forces = evaluator.evaluate(np.concatenate(frames))
    curves, start = [], 0
    for scan, grid in zip(scans, grids, strict=True):
        piece = slice(start, start + len(grid))
        start += len(grid)
        energy, force = energies[piece], scan.along(grid, forces[piece])
        finite = np.isfinite(energy)
        lowest = float(energy[finite].min()) if finite.any() else 0.0
        out_of_reach = energy - lowest > ACCESSIBLE
        ends = out_of_reach[_REACH:-_REACH]
        rest = scan.rest_nm if isinstance(scan, BondScan) else 0.0
        curves.append(Curve(scan, rest, grid, energy, force, ~(ends[:-1] | ends[1:])))
    return curves


def largest_steps(evaluator: Evaluator, curves: list[Curve]) -> tuple[Step, Step, int]:
    """The largest step of the force and of the energy, and how many frames were added for them.

    Returns
    -------
    steps in eV/angstrom and meV
    """
    owner = np.concatenate([np.full(len(c.looked_at), n) for n, c in enumerate(curves)])
    place = np.concatenate([np.arange(len(c.looked_at)) for c in curves])
    sizes = np.stack(
        [
            np.concatenate([steps(c.forces) for c in curves]) * EV_ANGSTROM_PER_KJMOL_NM,
            np.concatenate([steps(c.energies) for c in curves]) * MEV_PER_KJMOL,
        ]
    )
    sizes[:, ~np.concatenate([c.looked_at for c in curves])] = 0.0
    limits = np.array([[FORCE_LIMIT], [ENERGY_LIMIT]])
    coarse = np.ones(len(owner), dtype=np.bool_)
    n_added = 0
    for _ in range(N_ROUNDS):
        urgency = np.where(
            coarse & np.isfinite(sizes).all(axis=0), (sizes / limits).max(axis=0), 0.0
        )
        chosen = [int(k) for k in np.argsort(-urgency)[:N_PER_ROUND] if urgency[k] > 0.5]
        if not chosen:
            break
        finer = [_divided(curves[owner[k]], int(place[k])) for k in chosen]
        scans = [curves[owner[k]].scan for k in chosen]
        for k, curve in zip(chosen, _curves(evaluator, scans, finer), strict=True):
            sizes[:, k], n_frames = _converged(evaluator, curve, limits[:, 0])
            n_added += n_frames
        coarse[chosen] = False
    # Those never looked at again were less suspicious than what was; they are no evidence.
    suspects = coarse & np.isfinite(sizes).all(axis=0) & ((sizes / limits).max(axis=0) > 0.5)
    sizes[:, suspects] = 0.0
    found = []
    for row in sizes:
        k = int(row.argmax())
        scan = curves[owner[k]].scan
        middle = sum(curves[owner[k]].interval(int(place[k]))) / 2.0
        found.append(Step(float(row[k]), scan.label, middle, scan.atoms))
    return found[0], found[1], n_added


def _converged(
    evaluator: Evaluator, curve: Curve, limits: NDArray[np.float64]
) -> tuple[NDArray[np.float64], int]:
    """Largest steps of force and energy on a fine piece, divided once more where they are large.

    Returns
    -------
    sizes : shape (2,), eV/angstrom and meV
    n_frames : evaluated for the piece
    """
    n_frames = len(curve.coordinates)
    sizes = np.empty(2)
    arm = curve.scan.arm_nm if isinstance(curve.scan, TorsionScan) else 1.0
    spacing = arm * float(curve.coordinates[1] - curve.coordinates[0])
    curves = [curve, curve]
    for row, limit in enumerate(limits):
        for _ in range(2):
            values, factor = (
                (curves[row].energies, MEV_PER_KJMOL)
                if row
                else (curves[row].forces, EV_ANGSTROM_PER_KJMOL_NM)
            )
            found = steps(values) * factor
            k = int(found.argmax())
            sizes[row] = found[k]
            suspect = spacing > FINEST_NM and 0.5 * limit < sizes[row] < np.inf
            if curves[row] is not curve or not suspect:
                break
            finer = _divided(curve, k)
            curves[row] = _curves(evaluator, [curve.scan], [finer])[0]
            n_frames += len(finer)
    return sizes, n_frames


def _divided(curve: Curve, k: int) -> NDArray[np.float64]:
    """Grid over one interval and as far beyond as its steps need."""
    low, high = curve.interval(k)
    points = np.arange(-_REACH, DIVISIONS + _REACH + 1, dtype=np.float64)
    return low + (high - low) / DIVISIONS * points


def take(evidence: Evidence) -> list[Measurement]:
    """Steps and extrema along bonds, steps along torsions."""
    where = Where(system=evidence.system.name)
    system = in_vacuum(evidence.system)
    alone = system is not evidence.system
    obstacle = evidence.live.potential.unsupported(system) if alone else None
    if obstacle:
        reason = f"it cannot serve one molecule out of the box: {obstacle}"
        return [absent(row, where, reason) for row in CHECK.declares]
    evaluator = evidence.live.for_system(system) if alone else evidence.live
    try:
        return [*_bonds(evaluator, system, where), *_torsions(evaluator, system, where)]
    finally:
        if alone:
            evaluator.close()


def _bonds(evaluator: Evaluator, system: MolecularSystem, where: Where) -> list[Measurement]:
    curves = bond_curves(evaluator, system)
    if not curves:
        reason = f"system {system.name!r} has no bonds"
        rows = (SCAN_FORCE, SCAN_ENERGY, EXTREMA, CURVATURE)
        return [absent(row, where, reason) for row in rows]
    force, energy, n_added = largest_steps(evaluator, curves)
    n_frames = sum(len(curve.coordinates) for curve in curves) + n_added
    extra, extra_curve = max(
        ((_extrema(curve), curve) for curve in curves), key=lambda pair: pair[0]
    )
    stiffest, stiffest_curve = max(
        ((_stiffness(curve), curve) for curve in curves), key=lambda pair: pair[0]
    )
    label = extra_curve.scan.label
    cause = f"{label}: {extra:g} extrema beside one minimum" if extra else "one minimum each"
    at_extra = dataclasses.replace(where, atoms=extra_curve.scan.atoms if extra else ())
    at_stiffest = dataclasses.replace(where, atoms=stiffest_curve.scan.atoms)
    stiff = f"{stiffest_curve.scan.label} is the stiffest"
    return [
        _of_step(SCAN_FORCE, force, where, n_frames, ANGSTROM_PER_NM, "angstrom"),
        _of_step(SCAN_ENERGY, energy, where, n_frames, ANGSTROM_PER_NM, "angstrom"),
        exact(EXTREMA, extra, at_extra, n_frames, cause, _reasons(extra)),
        dataclasses.replace(exact(CURVATURE, stiffest, at_stiffest, n_frames, stiff), kind="info"),
    ]


def _torsions(evaluator: Evaluator, system: MolecularSystem, where: Where) -> list[Measurement]:
    curves = torsion_curves(evaluator, system)
    if not curves:
        reason = f"system {system.name!r} has no bond to turn about"
        return [absent(row, where, reason) for row in (TORSION_FORCE, TORSION_ENERGY)]
    force, energy, n_added = largest_steps(evaluator, curves)
    n_frames = sum(len(curve.coordinates) for curve in curves) + n_added
    degrees = 180.0 / math.pi
    return [
        _of_step(TORSION_FORCE, force, where, n_frames, degrees, "degrees from rest"),
        _of_step(TORSION_ENERGY, energy, where, n_frames, degrees, "degrees from rest"),
    ]


def _reached(curve: Curve) -> slice:
    """The points around the length at rest, up to the first on either side that is too high."""
    rest = int(np.abs(curve.coordinates - curve.rest).argmin())
    above = curve.energies - curve.energies[rest] > ACCESSIBLE
    left, right = np.flatnonzero(above[:rest]), np.flatnonzero(above[rest:])
    low = int(left[-1]) if len(left) else 0
    return slice(low, rest + int(right[0]) + 1 if len(right) else len(above))


def _extrema(curve: Curve) -> float:
    """Extra extrema; inf where an energy is not finite."""
    energies = curve.energies[_reached(curve)]
    if not np.isfinite(energies).all():
        return math.inf
    return float(extra_extrema(energies, DIP))


def _stiffness(curve: Curve) -> float:
    """Largest slope of the force, eV/angstrom^2; inf where a force is not finite."""
    part = _reached(curve)
    forces = curve.forces[part]
    if not np.isfinite(forces).all():
        return math.inf
    slope = np.abs(np.gradient(forces, curve.coordinates[part])).max()
    return float(slope) * EV_PER_KJMOL / ANGSTROM_PER_NM**2


def _of_step(
    row: Declaration, step: Step, where: Where, n_frames: int, factor: float, unit: str
) -> Measurement:
    kind = "a step" if math.isfinite(step.size) else "not a number"
    cause = f"{step.label}: {kind} at {step.at * factor:.4g} {unit}"
    spot = dataclasses.replace(where, atoms=step.atoms)
    return exact(row, step.size, spot, n_frames, cause, _reasons(step.size))


def _reasons(value: float) -> tuple[Reason, ...]:
    """Of a size that is infinite where something was not finite."""
    return () if math.isfinite(value) else (Reason.NOT_FINITE,)


_SCALE = (
    "rounding of a float32 network below; a cone-shaped norm (0.02 eV/angstrom, 1 meV) above "
    "(derived in omm_mlff/checks/smoothness.py)"
)

CHECK = Check(
    name="smoothness",
    question="Is the energy surface smooth where the molecule goes?",
    formula="seventh difference over 20 along bonds and torsions, refined until it converges",
    source="arXiv:2602.04861, for the idea of scanning bonds; the measures are our own",
    declares=(SCAN_FORCE, SCAN_ENERGY, EXTREMA, CURVATURE, TORSION_FORCE, TORSION_ENERGY),
    criteria=(
        *bounds(SCAN_FORCE, _SCALE, high=(FORCE_LIMIT, FORCE_REJECT)),
        *bounds(SCAN_ENERGY, _SCALE, high=(ENERGY_LIMIT, ENERGY_REJECT)),
        *bounds(TORSION_FORCE, _SCALE, high=(FORCE_LIMIT, FORCE_REJECT)),
        *bounds(TORSION_ENERGY, _SCALE, high=(ENERGY_LIMIT, ENERGY_REJECT)),
        *bounds(EXTREMA, "a bond has one length at rest", high=(0.0, None)),
    ),
    needs=frozenset({"evaluator"}),
    take=take,
    use=MINIMISATION,
    explained_by=(
        *SPOILS_EVALUATION,
        Fault.UNITS,
        Fault.ATOM_ORDER,
        Fault.CUTOFF,
        Fault.JUMP,
        Fault.KINK,
        Fault.RAISES_IN_REACH,
        Fault.NAN_IN_REACH,
        Fault.WALL,
    ),
    symptom=Symptom.ROUGH,
)
