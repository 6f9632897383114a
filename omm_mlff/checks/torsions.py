"""Are the shapes that a molecule can take as high in energy as the reference method says?

Energies of tens of meV decide which conformers are populated and how often they change, and in
the error per atom over thermal frames they hardly show.

*Scans* (single points at the reference's own relaxed geometries, so both methods are asked at
identical positions): a line for each rotatable bond, or a map of the two backbone torsions of a
peptide.

- `torsions.map_rmse`: rms of E - E_ref over the points of all scans within 0.5 eV of the lowest,
  less one constant.
- `torsions.barrier`: error of a barrier, the worst scan's. On a line a barrier is the highest
  point less the lowest. On a map it is the lowest pass between the two deepest basins of the
  reference, less the deeper one: the least over paths of the highest point on the path (from
  point to point of the grid, not across corners).

*Conformers* (the reference's minima, each relaxed anew on the model from the reference's geometry;
a conformer that the model does not have falls into another, and counts with the energy it ends
with):

- `conformers.energy_rmse`: of the relative energies, less one constant.
- `conformers.order`: Kendall's tau, (concordant - discordant) / (concordant + discordant), over the
  pairs that the reference tells apart by 5 meV or more; a pair that the model has closer than that
  counts in proportion.

The bounds on all four are bounds of accuracy: a model that fails them runs as stably as another,
and samples other shapes. Measured: the shipped students fail all four on alanine (conformers by 49
to 73 meV, the barrier of the acid's O-H by half its height); students that never saw an acid whose
O-H points away from its C=O had it 0.4 to 0.6 eV too high, where the reference has a conformer of
that kind 17 meV above the lowest.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import SPOILS_SURFACE, Check, Evidence, absent, bounds, exact
from omm_mlff.geometry.relaxation import Surface, moved_most, relaxed
from omm_mlff.schema import (
    Declaration,
    Measurement,
    MolecularSystem,
    ReferenceLandmarks,
    Symptom,
    TorsionScan,
    Where,
)
from omm_mlff.units import KJMOL_NM_PER_EV_ANGSTROM, MEV_PER_KJMOL

Float = NDArray[np.float64]

WINDOW_EV = 0.5
"""Points of a scan higher than this above the lowest are not visited: 19 kT at 300 K."""

TIE_MEV = 5.0
"""Conformers closer than this are not in an order: the teacher's own error is ten times that."""

TOLERANCE = 5.0e-3 * KJMOL_NM_PER_EV_ANGSTROM
"""Largest force component of a relaxed conformer: 0.02 meV above the softest minimum."""

MAP_RMSE = Declaration(
    "torsions.map_rmse",
    "deterministic",
    "meV",
    "energies of relaxed torsional scans, a constant removed",
    "torsions",
    failure="energies along torsions are off",
)
BARRIER = Declaration(
    "torsions.barrier",
    "deterministic",
    "meV",
    "error of a torsional barrier, the worst",
    "torsions",
    failure="torsional barriers are off",
)
CONFORMER_RMSE = Declaration(
    "conformers.energy_rmse",
    "deterministic",
    "meV",
    "relative energies of the reference's conformers, relaxed on the model",
    "torsions",
    failure="conformers have other energies",
)
CONFORMER_ORDER = Declaration(
    "conformers.order",
    "deterministic",
    "1",
    "Kendall's tau of the conformers' energies against the reference's",
    "torsions",
    failure="conformers come in another order",
)


def take(evidence: Evidence) -> list[Measurement]:
    """Errors of torsional scans and of conformers' energies."""
    system = evidence.system
    where = Where(system=system.name)
    landmarks = system.landmarks
    if landmarks is None:
        reason = (
            f"no reference method's conformers and scans are known for {system.name!r}; a method "
            "is named with --teacher"
        )
        return [absent(row, where, reason) for row in CHECK.declares]
    surface = evidence.live.evaluate
    return [
        *_scans(surface, system, landmarks.scans, where),
        *_conformers(surface, system, landmarks, where),
    ]


def barrier(energies: Float, reference: Float) -> tuple[float, int]:
    """The barrier of a scan, and the point that it is at.

    Parameters
    ----------
    energies : on the grid of a scan, of the method whose barrier is wanted
    reference : shape of `energies`; on a map its two deepest basins are the ends of the path

    Returns
    -------
    height above the lower end (a line: above its lowest point), and the index of the highest point
    in the flattened grid
    """
    if energies.ndim == 1:
        return float(energies.max() - energies.min()), int(energies.argmax())
    ends = deepest_basins(reference)
    if len(ends) < 2:
        return float(energies.max() - energies.min()), int(energies.argmax())
    top = lowest_pass(energies, *ends)
    return float(energies.flat[top] - energies.flat[ends[0]]), top


def deepest_basins(energies: Float) -> list[int]:
    """The two deepest local minima of a periodic grid, the deeper first; flat indices.

    A point is a minimum where no neighbour, across corners as well, is lower.
    """
    lowest = np.ones(energies.shape, dtype=bool)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            if i or j:
                lowest &= energies < np.roll(energies, (i, j), axis=(0, 1))
    found = np.flatnonzero(lowest)
    return [int(k) for k in found[np.argsort(energies.flat[found], kind="stable")][:2]]


def lowest_pass(energies: Float, start: int, end: int) -> int:
    """The highest point of the path between two points whose highest point is lowest.

    Parameters
    ----------
    energies : on a periodic grid of two dimensions
    start, end : flat indices

    References
    ----------
    Pollack, Oper. Res. 8, 733 (1960), for the path of maximum capacity.
    """
    flat = energies.ravel()
    waiting = [(float(flat[start]), start, start)]  # the highest so far, where, at
    seen: set[int] = set()
    while waiting:
        height, top, point = heapq.heappop(waiting)
        if point == end:
            return top
        if point in seen:
            continue
        seen.add(point)
        i, j = np.unravel_index(point, energies.shape)
        for step in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            next_to = int(np.ravel_multi_index((i + step[0], j + step[1]), energies.shape, "wrap"))
            if next_to not in seen:
                higher = float(flat[next_to]) > height
                entry = (float(flat[next_to]), next_to) if higher else (height, top)
                heapq.heappush(waiting, (*entry, next_to))
    raise ValueError(f"no path from {start} to {end}")


def kendall_tau(energies: Float, reference: Float, tie: float) -> tuple[float, int]:
    """Rank correlation over the pairs that the reference tells apart, and how many those are.

    Parameters
    ----------
    energies, reference : shape (n,)
    tie : pairs closer than this in the reference do not count; pairs closer than this in
        `energies` count in proportion, so that a tie is neither right nor wrong

    References
    ----------
    Kendall, Biometrika 30, 81 (1938).
    """
    i, j = np.triu_indices(len(reference), k=1)
    apart = reference[j] - reference[i]
    counted = np.abs(apart) >= tie
    # Two conformers that fall into one differ by rounding, whose sign must not decide.
    agreement = np.sign(apart) * np.clip((energies[j] - energies[i]) / tie, -1.0, 1.0)
    n_pairs = int(counted.sum())
    return (float(agreement[counted].mean()) if n_pairs else float("nan")), n_pairs


def _scans(
    surface: Surface, system: MolecularSystem, scans: tuple[TorsionScan, ...], where: Where
) -> list[Measurement]:
    if not scans:
        reason = f"{system.name} has no rotatable bond"
        return [absent(row, where, reason) for row in (MAP_RMSE, BARRIER)]
    target = np.concatenate([scan.energies for scan in scans]) * MEV_PER_KJMOL
    energies, _ = surface(np.concatenate([scan.positions for scan in scans]))
    energies = energies * MEV_PER_KJMOL
    places = [
        (scan, point) for scan in scans for point in range(len(scan.energies))
    ]  # as energies are
    broken = np.flatnonzero(~np.isfinite(energies))
    if len(broken):
        cause = f"no finite energy at {_place(system, *places[broken[0]])}"
        n = len(energies)
        return [exact(MAP_RMSE, np.inf, where, n, cause), exact(BARRIER, np.inf, where, n, cause)]
    near = np.flatnonzero(target - target.min() <= WINDOW_EV * 1000.0)
    error = (energies - target)[near]
    error -= error.mean()
    worst = int(np.abs(error).argmax())
    height = target[near[worst]] - target.min()
    cause = (
        f"{error[worst]:+.0f} meV at {_place(system, *places[near[worst]])}, where the reference "
        f"has {height:.0f}"
    )
    rmse = exact(MAP_RMSE, float(np.sqrt((error**2).mean())), where, len(near), cause)
    barriers = []
    for scan in scans:
        here = [k for k, (owner, _) in enumerate(places) if owner is scan]
        reference = target[here].reshape(scan.shape)
        own, top = barrier(energies[here].reshape(scan.shape), reference)
        wanted, _ = barrier(reference, reference)
        text = (
            f"{own:.0f} meV at {_place(system, scan, top)}, where the reference's barrier is "
            f"{wanted:.0f}"
        )
        barriers.append((abs(own - wanted), text))
    off, text = max(barriers)
    return [rmse, exact(BARRIER, off, where, len(scans), text)]


def _conformers(
    surface: Surface, system: MolecularSystem, landmarks: ReferenceLandmarks, where: Where
) -> list[Measurement]:
    n = len(landmarks.energies)
    if n < 2:
        reason = f"the reference has only one conformer of {system.name}"
        return [absent(row, where, reason) for row in (CONFORMER_RMSE, CONFORMER_ORDER)]
    rest = relaxed(surface, system, landmarks.minima, tolerance=TOLERANCE)
    lost = [k for k, obstacle in enumerate(rest.obstacles) if obstacle]
    target = (landmarks.energies - landmarks.energies[0]) * MEV_PER_KJMOL
    if lost:
        cause = f"conformer {lost[0] + 1} of {n}: {rest.obstacles[lost[0]]}"
        return [
            exact(CONFORMER_RMSE, np.inf, where, n, cause),
            exact(CONFORMER_ORDER, -1.0, where, n, cause),
        ]
    energies = (rest.energies - rest.energies[0]) * MEV_PER_KJMOL
    error = energies - target
    worst = int(np.abs(error).argmax())
    error -= error.mean()
    moved = moved_most(system, landmarks.minima[worst], rest.positions[worst])
    cause = (
        f"conformer {worst + 1} of {n} is {energies[worst]:.0f} meV above the first, the "
        f"reference's {target[worst]:.0f}; relaxed, {moved}"
    )
    tau, n_pairs = kendall_tau(energies, target, TIE_MEV)
    rows = [exact(CONFORMER_RMSE, float(np.sqrt((error**2).mean())), where, n, cause)]
    if not n_pairs:
        reason = f"the reference's conformers of {system.name} are within {TIE_MEV:g} meV"
        return [*rows, absent(CONFORMER_ORDER, where, reason)]
    order = " < ".join(str(k + 1) for k in np.argsort(energies, kind="stable"))
    return [*rows, exact(CONFORMER_ORDER, tau, where, n_pairs, f"the model's order is {order}")]


def _axes(system: MolecularSystem, scan: TorsionScan) -> str:
    symbols = [atom.element.symbol for atom in system.topology.atoms()]
    return " and ".join("-".join(f"{symbols[k]}{k}" for k in torsion) for torsion in scan.torsions)


def _place(system: MolecularSystem, scan: TorsionScan, point: int) -> str:
    """A point of a scan, in words."""
    index = np.unravel_index(point, scan.shape)
    angles = [360.0 * k / n - 180.0 for k, n in zip(index, scan.shape, strict=True)]
    degrees = ", ".join(f"{angle:.0f}" for angle in angles)
    return f"{_axes(system, scan)} = {degrees} degrees"


_CHEMICAL = (
    "chemical accuracy, 1 kcal/mol (Pople, Rev. Mod. Phys. 71, 1267 (1999)); reject at ten times "
    "that, more than the whole range of the conformers. A bound of accuracy"
)
_RATE = (
    "chemical accuracy, 1 kcal/mol, which is a factor of five in a rate at 300 K; reject at ten "
    "times that. A bound of accuracy"
)
_ORDER = (
    "more pairs of conformers in the wrong order than in the right one would be worse than no "
    "model; two of three right is a tau of 1/3. A bound of accuracy"
)

CHECK = Check(
    name="torsions",
    question="Are the shapes that a molecule can take as high in energy as the reference says?",
    formula="rms of E - E_ref on relaxed scans and minima; heights of passes; Kendall's tau",
    source="Kendall, Biometrika 30, 81 (1938); Pollack, Oper. Res. 8, 733 (1960)",
    declares=(MAP_RMSE, BARRIER, CONFORMER_RMSE, CONFORMER_ORDER),
    criteria=(
        *bounds(MAP_RMSE, _CHEMICAL, high=(43.4, 434.0)),
        *bounds(BARRIER, _RATE, high=(43.4, 434.0)),
        *bounds(CONFORMER_RMSE, _CHEMICAL, high=(43.4, 434.0)),
        *bounds(CONFORMER_ORDER, _ORDER, low=(1.0 / 3.0, None)),
    ),
    needs=frozenset({"evaluator"}),
    take=take,
    use="the reference method's rotamers and conformers",
    explained_by=SPOILS_SURFACE,
    symptom=Symptom.ACCURACY,
)
