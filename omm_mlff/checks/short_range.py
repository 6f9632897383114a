"""Do atoms keep each other at arm's length?

*Walls.* Along every bond type, pressed and drawn, and every approach of two species the energy has
to rise up to the accessible energy, 30 kT: at that height a collision in a run of some 1e13
attempts is expected once (exp(-30) = 1e-13). A line begins with a few points around its minimum
(for a bond within 5% of its length at rest; for an approach beyond `CONTACT` of the sum of the van
der Waals radii, where hydrogen bonds and van der Waals minima lie) and then goes on, out of the
minimum, until the energy has risen by the ceiling, 30 kT at 1000 K, or turns over: falls by more
than kT at 300 K from the highest point passed. Walls of real potentials flatten, turn over or end
in NaN far above the ceiling: that is nobody's fault and is not looked at. *Barrier* is the least
height, over all lines, that is reached before the energy turns over, above the line's minimum,
at most the ceiling; *temperature* is the barrier over 30 k. *Binding* is how deep the deepest
minimum of an approach lies below the molecules far apart: no wall is missing there, but molecules
that fall on each other by more than 1 eV never part again.

Bonds join two fragments that keep their shape, down to 0.3 and up to 2 lengths. In an approach two
copies of the molecule meet head-on with a pair of atoms, from afar down to 0.5 angstrom, in the
least obstructed of many random orientations, some times for every pair of species. A force field
that knows its molecule by its bonds, or cannot serve two copies, is asked for its bonds alone.

*Holes.* From the molecule shrunk to 0.5 to 0.9 of its size and from atoms displaced at random by
0.2 to 0.6 angstrom, steepest descent with an adapted step goes downhill, many starts at a time.
Of all geometries visited, those are holes in which two atoms are nearer than 0.6 of the sum of
their covalent radii (where a running simulation is stopped) and whose energy is nevertheless less
than 30 kT at 300 K above the energy at rest. Dynamics fall into a hole only where a way leads in: a
straight path from the hole to the rest structure, relaxed sideways, is climbed, and a hole behind
more than the ceiling is none. *Hole* is how far below the accessible energy the deepest one lies.

Bounds: 30 kT at 300 K, the temperature of every production run. Below 20 kT the wall is passed
once in 5e8 attempts, of which a bond makes 1e14 a second: within microseconds for one bond,
within nanoseconds for a box of a thousand. The shipped students come within 0.03 eV of the ceiling
on every line of water, methane, alanine, ethanol and benzene, have 1.5 eV and more on those of
alanine dipeptide and aspirin, and no hole; without their repulsive prior they have no wall and
fall by electronvolts. Two molecules of water, methane, alanine or benzene bind by up to 0.42 eV
along these lines. Students that had never seen a benzene bound two by 1.2 to 2.4 eV at 2.1
angstrom, where ANI-1ccx and GFN2-xTB have a wall of 3 to 5 eV.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import MEETING, SPOILS_EVALUATION, Check, Evidence, absent, bounds, exact
from omm_mlff.dynamics.stability_watch import OVERLAP_FRACTION
from omm_mlff.geometry.distances import covalent_radii, pair_lengths
from omm_mlff.geometry.scans import Scan, atom_names, bond_scans, collision, in_vacuum
from omm_mlff.schema import (
    Criterion,
    Declaration,
    Fault,
    Measurement,
    MolecularSystem,
    Reason,
    Symptom,
    Where,
)
from omm_mlff.units import (
    ANGSTROM_PER_NM,
    BOLTZMANN,
    EV_PER_KJMOL,
    NM_PER_ANGSTROM,
)

if TYPE_CHECKING:
    from omm_mlff.dynamics.evaluator import Evaluator

N_KT = 30.0

CEILING = N_KT * BOLTZMANN * 1000.0
"""Lines are followed up to this rise, kJ/mol."""

ACCESSIBLE = N_KT * BOLTZMANN * 300.0
"""What dynamics at 300 K climb, kJ/mol: 0.776 eV."""

REJECT = 20.0 * BOLTZMANN * 300.0
NOISE = BOLTZMANN * 300.0  # a dip shallower than kT holds nothing
BINDING_LIMIT = 1.0  # eV; the two hydrogen bonds of a pair of carboxylic acids: 0.7 eV

CONTACT = 0.55  # of the van der Waals radii: 1.5 angstrom for O..H, shorter than a hydrogen bond
BOND_START = np.array([1.0, 1.05, 0.95])
PRESSED = np.arange(0.9, 0.299, -0.05)
DRAWN = np.arange(1.15, 2.01, 0.1)
APPROACH_START_NM = np.array([3.0, 1.0, 0.4, 0.0]) * NM_PER_ANGSTROM
APPROACH_STEP_NM = 0.15 * NM_PER_ANGSTROM
CLOSEST_NM = 0.5 * NM_PER_ANGSTROM
N_APPROACHES = 18  # shared by the pairs of species, at least two for each
_N_FINE = 17
_N_REFINED = 20

MIN_STARTS = 18
MAX_STARTS = 48
N_STEPS = 20
SCALES = (0.5, 0.9)
DISPLACEMENTS_NM = (0.2 * NM_PER_ANGSTROM, 0.6 * NM_PER_ANGSTROM)
FIRST_STEP_NM = 0.1 * NM_PER_ANGSTROM
N_CANDIDATES = 4
N_IMAGES = 11
N_SWEEPS = 10
_GENTLE = 100.0  # kJ/mol/nm; smaller forces move an image of a path by less than a step

BARRIER = Declaration(
    "short_range.barrier",
    "deterministic",
    "eV",
    "least rise of the energy before it turns over, over all bonds and approaches",
    "short_range",
    failure="atoms can pass through each other",
)
BINDING = Declaration(
    "short_range.binding",
    "deterministic",
    "eV",
    "depth of the deepest minimum of two copies of the molecule",
    "short_range",
    failure="two molecules bind far too strongly",
    symptom=Symptom.ACCURACY,
)
TEMPERATURE = Declaration(
    "short_range.temperature", "info", "K", "at which the barrier is 30 kT", "short_range"
)
HOLE = Declaration(
    "short_range.hole",
    "deterministic",
    "eV",
    "how far below the accessible energy atoms on top of each other were found",
    "short_range",
    failure="there is a hole in the energy surface",
)


@dataclass(frozen=True, eq=False)
class Line:
    """A scan and the points on it, from its minimum outwards.

    Attributes
    ----------
    coordinates : nm
    n_start : the minimum is among these first points
    """

    scan: Scan
    coordinates: NDArray[np.float64]
    n_start: int


@dataclass(frozen=True)
class Climb:
    """How far a line rises.

    Attributes
    ----------
    height : above the line's minimum, kJ/mol, at most `CEILING`
    at : index of the highest point
    end : "scanned" where there were no more points
    depth : of the lowest point of all below the first one, kJ/mol
    """

    height: float
    at: int
    end: Literal["ceiling", "turns over", "not a number", "scanned"]
    depth: float = 0.0


def climbed(energies: NDArray[np.float64], n_start: int) -> Climb:
    """Highest rise above the minimum before the energy turns over.

    Parameters
    ----------
    energies : shape (n_known,), kJ/mol, from the minimum outwards
    n_start : the minimum is looked for among these first points
    """
    start = energies[:n_start]
    if not np.isfinite(start).all():
        return Climb(0.0, 0, "not a number")
    depth = float(start[0] - energies[np.isfinite(energies)].min())
    highest, at = -math.inf, n_start - 1
    for k, rise in enumerate((energies[n_start:] - start.min()).tolist()):
        if not math.isfinite(rise):
            return Climb(max(0.0, highest), at, "not a number", depth)
        if rise < highest - NOISE:
            return Climb(max(0.0, highest), at, "turns over", depth)
        if rise > highest:
            highest, at = rise, n_start + k
        if highest >= CEILING:
            return Climb(CEILING, at, "ceiling", depth)
    return Climb(max(0.0, highest), at, "scanned", depth)


def bond_lines(system: MolecularSystem) -> list[Line]:
    """Every type of bond, pressed and drawn."""
    return [
        Line(scan, scan.rest_nm * np.concatenate((BOND_START, ratios)), len(BOND_START))
        for scan in bond_scans(system)
        for ratios in (PRESSED, DRAWN)
    ]


def approach_lines(
    system: MolecularSystem, random: np.random.Generator
) -> tuple[MolecularSystem, list[Line]]:
    """Two copies of the molecule, and the ways in which they meet."""
    n_elements = len(np.unique(system.species))
    n_pairs = n_elements * (n_elements + 1) // 2
    both, approaches = collision(system, random, max(2, N_APPROACHES // n_pairs))
    radii = _van_der_waals_radii(system)
    contact = CONTACT * (radii[:, None] + radii[None, :])
    lines = []
    for scan in approaches:
        touch = scan.touching(contact)
        inwards = np.arange(touch - APPROACH_STEP_NM, CLOSEST_NM, -APPROACH_STEP_NM)
        points = np.concatenate((touch + APPROACH_START_NM, inwards, [CLOSEST_NM]))
        lines.append(Line(scan, points, len(APPROACH_START_NM)))
    return both, lines


def climb_all(evaluator: Evaluator, lines: list[Line], *, block: int) -> list[Climb]:
    """Follow every line until it reaches the ceiling, turns over or ends.

    Parameters
    ----------
    block : points of each line that are evaluated before it is looked at again
    """
    known = [np.empty(0) for _ in lines]
    climbs = [Climb(0.0, 0, "scanned") for _ in lines]
    active = list(range(len(lines)))
    coarse = set(active)
    while active:
        wanted = []
        for k in active:
            n = len(known[k])
            upto = (n or lines[k].n_start) + block
            wanted.append(lines[k].scan.at(lines[k].coordinates[n:upto]))
        energies = evaluator.energies(np.concatenate(wanted))
        pieces = np.split(energies, np.cumsum([len(frames) for frames in wanted])[:-1])
        for k, piece in zip(active, pieces, strict=True):
            known[k] = np.concatenate((known[k], piece))
            climbs[k] = climbed(known[k], lines[k].n_start)
        active = [
            k
            for k in active
            if climbs[k].end == "scanned" and len(known[k]) < len(lines[k].coordinates)
        ]
    for _ in range(_N_REFINED):
        k = min(range(len(lines)), key=lambda k: climbs[k].height)
        if k not in coarse or climbs[k].end not in ("turns over", "not a number"):
            break
        coarse.remove(k)
        lowest = float(known[k][: lines[k].n_start].min())
        if climbs[k].at:
            climbs[k] = _refined(evaluator, lines[k], climbs[k], lowest)
    return climbs


def _refined(evaluator: Evaluator, line: Line, climb: Climb, lowest: float) -> Climb:
    """A climb with points added between the highest one and its neighbours."""
    edges = line.coordinates[climb.at - 1], line.coordinates[climb.at + 1]
    energies = evaluator.energies(line.scan.at(np.linspace(*edges, _N_FINE)))
    finite = energies[: int(np.isfinite(energies).argmin()) or None]
    if np.isfinite(energies[0]) and len(finite):
        height = float(finite.max()) - lowest
        if height >= CEILING:
            return dataclasses.replace(climb, height=CEILING, end="ceiling")
        return dataclasses.replace(climb, height=max(climb.height, height))
    return climb


@dataclass(frozen=True, eq=False)
class Hole:
    """Atoms on top of each other at an energy that dynamics reach.

    Attributes
    ----------
    positions : shape (n_atoms, 3), nm
    energy : above that at rest, kJ/mol
    barrier : an upper bound of what has to be climbed to get there, kJ/mol
    """

    positions: NDArray[np.float64]
    energy: float
    barrier: float


def n_starts(system: MolecularSystem) -> int:
    """How many: whole batches, which cost little more than one start alone."""
    from omm_mlff.dynamics.evaluator import BATCH_ATOMS

    batch = max(1, BATCH_ATOMS // system.n_atoms)
    return MIN_STARTS if batch > MAX_STARTS else -(-MIN_STARTS // batch) * batch


def starts(system: MolecularSystem, random: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Where the search begins: at rest, then shrunken and displaced at random.

    Returns
    -------
    shape (n, n_atoms, 3), nm
    """
    n_shrunk = (n - 1) // 3
    centre = system.positions.mean(axis=0)
    scales = np.linspace(*SCALES, n_shrunk)[:, None, None]
    shrunk = centre + scales * (system.positions - centre)
    n_displaced = n - 1 - n_shrunk
    size = np.linspace(*DISPLACEMENTS_NM, n_displaced)[:, None, None] / math.sqrt(3.0)
    noise = random.normal(size=(n_displaced, system.n_atoms, 3))
    displaced = system.positions + size * noise
    return np.concatenate((system.positions[None], shrunk, displaced))


def descend(
    evaluator: Evaluator, positions: NDArray[np.float64], n_steps: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steepest descent with an adapted step, from many starts at a time.

    The atom with the largest force moves by the step, which grows by a fifth where the energy has
    fallen and is halved where it has not (and the move taken back).

    Parameters
    ----------
    positions : shape (n_starts, n_atoms, 3), nm

    Returns
    -------
    visited : shape (n_steps, n_starts, n_atoms, 3), nm
    energies : shape (n_steps, n_starts), kJ/mol
    """
    trial = positions
    step = np.full(len(positions), FIRST_STEP_NM)
    best, energy = trial, np.full(len(positions), np.inf)
    force = np.zeros_like(positions)
    visited, energies = [], []
    for _ in range(n_steps):
        found, pull = evaluator.evaluate(trial)
        visited.append(trial)
        energies.append(found)
        better = (found < energy) & np.isfinite(pull).all(axis=(1, 2))
        chosen = better[:, None, None]
        best, energy = np.where(chosen, trial, best), np.where(better, found, energy)
        force = np.where(chosen, pull, force)
        step *= np.where(better, 1.2, 0.5)
        largest = np.linalg.norm(force, axis=2).max(axis=1)
        scale = np.divide(step, largest, out=np.zeros_like(step), where=largest > 0.0)
        trial = best + scale[:, None, None] * force
    return np.array(visited), np.array(energies)


def way_in(
    evaluator: Evaluator, rest: NDArray[np.float64], hole: NDArray[np.float64], enough: float
) -> float:
    """The highest energy on a path, from a straight one relaxed sideways.

    Parameters
    ----------
    rest, hole : shape (n_atoms, 3), nm; its ends
    enough : stop below this energy, kJ/mol

    Returns
    -------
    kJ/mol, an upper bound of the least that has to be climbed; inf where a path crosses no number
    """
    share = np.linspace(0.0, 1.0, N_IMAGES)
    images = rest + share[:, None, None] * (hole - rest)
    lowest = math.inf
    for _ in range(N_SWEEPS):
        energies, forces = evaluator.evaluate(images)
        top = float(np.where(np.isfinite(energies), energies, np.inf).max())
        lowest = min(lowest, top)
        if lowest < enough:
            break
        along = images[2:] - images[:-2]
        along /= np.sqrt((along**2).sum(axis=(1, 2), keepdims=True))
        inner = np.where(np.isfinite(forces[1:-1]), forces[1:-1], 0.0)
        aside = inner - (inner * along).sum(axis=(1, 2), keepdims=True) * along
        largest = np.linalg.norm(aside, axis=2).max(axis=1)[:, None, None]
        images = images.copy()
        images[1:-1] += FIRST_STEP_NM * aside / np.maximum(largest, _GENTLE)
        images = _evenly(images)
    return lowest


def _evenly(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """A path with its images at equal distances along it."""
    lengths = np.sqrt((np.diff(images, axis=0) ** 2).sum(axis=(1, 2)))
    travelled = np.concatenate(([0.0], np.cumsum(lengths)))
    wanted = np.linspace(0.0, travelled[-1], len(images))
    k = np.clip(np.searchsorted(travelled, wanted, side="right") - 1, 0, len(images) - 2)
    part = (wanted - travelled[k]) / np.maximum(lengths[k], np.finfo(float).tiny)
    return np.asarray(images[k] + part[:, None, None] * (images[k + 1] - images[k]))


def deepest_hole(
    evaluator: Evaluator, system: MolecularSystem, random: np.random.Generator
) -> tuple[Hole | None, float]:
    """The deepest hole that dynamics can fall into, if any.

    Returns
    -------
    the hole, and the energy at rest in kJ/mol, not finite where there is none
    """
    visited, energies = descend(evaluator, starts(system, random, n_starts(system)), N_STEPS)
    at_rest = energies[:, 0]
    if not np.isfinite(at_rest[0]):
        return None, float(at_rest[0])
    lowest = int(np.where(np.isfinite(at_rest), at_rest, np.inf).argmin())
    rest, rest_energy = visited[lowest, 0], float(at_rest[lowest])
    closest = np.array([_closest(system, frames) for frames in visited.swapaxes(0, 1)]).T
    overlap = closest < OVERLAP_FRACTION
    height = np.where(np.isnan(energies), np.inf, energies) - rest_energy
    height = np.where(overlap & (height < ACCESSIBLE), height, np.inf)
    deepest = height.argmin(axis=0)  # of each start
    depths = height[deepest, np.arange(len(deepest))]
    found = None
    for k in np.argsort(depths)[:N_CANDIDATES]:
        if not depths[k] < ACCESSIBLE:
            break
        positions = visited[deepest[k], k]
        top = way_in(evaluator, rest, positions, rest_energy + ACCESSIBLE) - rest_energy
        if top < CEILING:
            found = Hole(positions, float(depths[k]), top)
            break
    return found, rest_energy


def _closest(system: MolecularSystem, frames: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least distance of two atoms in sums of their covalent radii, shape (n_frames,)."""
    i, j = np.triu_indices(system.n_atoms, k=1)
    if not len(i):
        return np.full(len(frames), np.inf)
    radii = covalent_radii(system.species)
    ratios = pair_lengths(frames, np.column_stack((i, j)), None) / (radii[i] + radii[j])
    closest: NDArray[np.float64] = ratios.min(axis=1)
    return closest


def _van_der_waals_radii(system: MolecularSystem) -> NDArray[np.float64]:
    """Shape (n_atoms,), nm, as tabulated by RDKit."""
    from rdkit.Chem import GetPeriodicTable

    table = GetPeriodicTable()
    return np.array([table.GetRvdw(int(z)) for z in system.species]) * NM_PER_ANGSTROM


def take(evidence: Evidence) -> list[Measurement]:
    """The lowest barrier, its temperature, and the deepest hole."""
    where = Where(system=evidence.system.name)
    system = in_vacuum(evidence.system)
    potential = evidence.live.potential
    obstacle = potential.unsupported(system) if system is not evidence.system else None
    if obstacle:
        reason = f"it cannot serve one molecule out of the box: {obstacle}"
        return [absent(row, where, reason) for row in CHECK.declares]
    evaluator = evidence.live if system is evidence.system else evidence.live.for_system(system)
    try:
        return [
            *_walls(evidence, evaluator, system, where),
            _hole(evidence, evaluator, system, where),
        ]
    finally:
        if evaluator is not evidence.live:
            evaluator.close()


def _walls(
    evidence: Evidence, evaluator: Evaluator, system: MolecularSystem, where: Where
) -> list[Measurement]:
    lines = bond_lines(system)
    climbs = climb_all(evaluator, lines, block=2) if lines else []
    binding = None
    skipped = f"{evidence.card.name} knows its atoms by {evidence.card.knows_atoms_by}"
    if evidence.card.knows_atoms_by == "element":
        both, meeting = approach_lines(system, evidence.random(CHECK.name))
        skipped = evaluator.potential.unsupported(both) or ""
        if not skipped:
            pair = evaluator.for_system(both)
            try:
                met = climb_all(pair, meeting, block=1)
            finally:
                pair.close()
            binding = _binding(meeting, met, where)
            lines, climbs = lines + meeting, climbs + met
    if binding is None:
        binding = absent(BINDING, where, f"no two copies of the molecule: {skipped}")
    if not lines:
        reason = f"no bonds, and no two copies of the molecule: {skipped}"
        return [binding, *(absent(row, where, reason) for row in (BARRIER, TEMPERATURE))]
    lowest = min(range(len(lines)), key=lambda k: climbs[k].height)
    line, climb = lines[lowest], climbs[lowest]
    cause = _in_words(line, climb) + (f"; approaches left out: {skipped}" if skipped else "")
    reasons = (Reason.NOT_FINITE,) if climb.end == "not a number" else ()
    kelvin = climb.height / (N_KT * BOLTZMANN)
    if climb.end != "ceiling":
        where = dataclasses.replace(where, atoms=line.scan.atoms)
    return [
        exact(BARRIER, climb.height * EV_PER_KJMOL, where, len(lines), cause, reasons),
        dataclasses.replace(
            exact(TEMPERATURE, kelvin, where, len(lines), cause, reasons), kind="info"
        ),
        binding,
    ]


def _binding(lines: list[Line], climbs: list[Climb], where: Where) -> Measurement:
    deepest = max(range(len(lines)), key=lambda k: climbs[k].depth)
    scan, depth = lines[deepest].scan, climbs[deepest].depth * EV_PER_KJMOL
    cause = f"{scan.label}, head-on: {depth:.2f} eV below the molecules far apart"
    return exact(BINDING, depth, dataclasses.replace(where, atoms=scan.atoms), len(lines), cause)


def _in_words(line: Line, climb: Climb) -> str:
    if climb.end == "ceiling":
        return f"every line rises by {CEILING * EV_PER_KJMOL:.2f} eV"
    last = climb.at if climb.end != "scanned" else -1
    at = line.coordinates[last] * ANGSTROM_PER_NM
    kelvin = climb.height / (N_KT * BOLTZMANN)
    height = f"{climb.height * EV_PER_KJMOL:.2f} eV"
    verb = {
        "turns over": f"turns over at {at:.2f} angstrom after a rise of {height}",
        "not a number": f"has no energy beyond {at:.2f} angstrom, after a rise of {height}",
        "scanned": f"rises by no more than {height} by {at:.2f} angstrom",
    }[climb.end]
    return f"{line.scan.label} {verb}: good up to {kelvin:.0f} K"


def _hole(
    evidence: Evidence, evaluator: Evaluator, system: MolecularSystem, where: Where
) -> Measurement:
    found, rest_energy = deepest_hole(evaluator, system, evidence.random(CHECK.name))
    n_samples = n_starts(system) * N_STEPS
    if not math.isfinite(rest_energy):
        cause = "the energy at rest is not finite"
        return exact(HOLE, math.inf, where, n_samples, cause, (Reason.NOT_FINITE,))
    if found is None:
        return exact(HOLE, 0.0, where, n_samples, "none found")
    i, j = np.triu_indices(system.n_atoms, k=1)
    radii = covalent_radii(system.species)
    lengths = pair_lengths(found.positions, np.column_stack((i, j)), None)
    pair = int((lengths / (radii[i] + radii[j])).argmin())
    a, b = int(i[pair]), int(j[pair])
    names = atom_names(system)
    cause = (
        f"{names[a]} and {names[b]} at {lengths[pair] * ANGSTROM_PER_NM:.2f} angstrom, "
        f"{found.energy * EV_PER_KJMOL:+.2f} eV from rest, behind no more than "
        f"{found.barrier * EV_PER_KJMOL:.2f} eV"
    )
    depth = (ACCESSIBLE - found.energy) * EV_PER_KJMOL
    return exact(HOLE, depth, dataclasses.replace(where, atoms=(a, b)), n_samples, cause)


_BARRIER_SOURCE = (
    "30 kT at 300 K: exp(-30) of 1e13 attempts; 20 kT: passed within nanoseconds (derived in "
    "omm_mlff/checks/short_range.py)"
)

CHECK = Check(
    name="short_range",
    question="Do atoms keep each other at arm's length?",
    formula="least max E - min E before E turns over along bonds and approaches; descent from "
    "compressed and random starts",
    source="Ziegler, Biersack & Littmark, The Stopping and Range of Ions in Matter (1985), for "
    "walls; GROMACS reference manual, for the steepest descent",
    declares=(BARRIER, TEMPERATURE, BINDING, HOLE),
    criteria=(
        *bounds(
            BARRIER,
            _BARRIER_SOURCE,
            low=(round(ACCESSIBLE * EV_PER_KJMOL, 3), round(REJECT * EV_PER_KJMOL, 3)),
        ),
        *bounds(
            HOLE,
            "a geometry with overlapping atoms, under 30 kT at 300 K, is visited (derived in "
            "omm_mlff/checks/short_range.py)",
            high=(None, 0.0),
        ),
        *bounds(
            BINDING,
            "two hydrogen bonds of a pair of carboxylic acids: 0.7 eV (derived in "
            "omm_mlff/checks/short_range.py)",
            high=(BINDING_LIMIT, None),
        ),
        Criterion(
            "short_range.temperature-info",
            TEMPERATURE.name,
            300.0,
            None,
            TEMPERATURE.unit,
            "info",
            "the temperature of every production run",
        ),
    ),
    needs=frozenset({"evaluator"}),
    take=take,
    use=MEETING,
    explained_by=(
        *SPOILS_EVALUATION,
        Fault.UNITS,
        Fault.ATOM_ORDER,
        Fault.RAISES_IN_REACH,
        Fault.NAN_IN_REACH,
    ),
)
