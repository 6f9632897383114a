"""Landmarks of a molecule on a surface: minima, normal modes, torsional scans.

Conformers are embedded by RDKit (ETKDGv3), relaxed on the surface, and kept once each: mirror
images and permutations of like atoms are one conformer. Scans hold torsions by stiff restraints and
relax the rest, from a conformer turned to the angle; what is kept is the surface's own energy at
the relaxed geometry, without the restraint.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.geometry.normal_modes import AMPLITUDE_NM, hessian, normal_modes
from omm_mlff.geometry.relaxation import Restraint, Surface, relaxed
from omm_mlff.schema import MolecularSystem, ReferenceLandmarks, TorsionScan
from omm_mlff.units import (
    ANGSTROM_PER_NM,
    KJMOL_NM_PER_EV_ANGSTROM,
    KJMOL_PER_EV,
    NM_PER_ANGSTROM,
)

if TYPE_CHECKING:
    from rdkit.Chem import Mol

Float = NDArray[np.float64]
Torsions = NDArray[np.int64]

BACKBONE = "[#6]C(=O)[NX3][#6X4]C(=O)[NX3]"
"""A residue between two amides: its phi and psi make a map."""

ROTATABLE = "[!$(*#*)&!D1]-!@[!$(*#*)&!D1]"
"""Single bonds outside rings between atoms with other neighbours (Daylight's SMARTS examples)."""

MAX_STEPS = 400
"""The teacher's kinked forces slow a relaxation down."""

SAME_ENERGY = 1.0e-3 * KJMOL_PER_EV
SAME_DISTANCE_NM = 0.05 * NM_PER_ANGSTROM
"""Minima closer than both are one."""


@dataclass(frozen=True)
class LandmarkPlan:
    """How many conformers are looked for, and how fine the scans are.

    Attributes
    ----------
    n_starts : embedded structures that are relaxed
    turns : degrees, of every conformer found about each of its rotatable bonds
    max_minima, window_eV : how many of the minima found are kept, and how high above the lowest
    n_angles : points along each torsion, over the whole circle
    n_map_starts : lowest conformers that each point of a map is relaxed from; a line starts from
        the lowest one alone, so that no other torsion differs along it
    steep_eV : a point of a scan that is this much above a neighbour is tried again from there
    stiffness_eV : of the restraint on a torsion, per radian squared
    tolerance_eV_angstrom : largest force component left
    """

    n_starts: int = 40
    turns: tuple[float, ...] = (120.0, 180.0, 240.0)
    max_minima: int = 8
    window_eV: float = 0.4
    n_angles: int = 12
    n_map_starts: int = 2
    steep_eV: float = 0.2
    stiffness_eV: float = 30.0
    tolerance_eV_angstrom: float = 2.0e-4
    scan_tolerance_eV_angstrom: float = 1.0e-2
    seed: int = 20261123


def find_landmarks(
    system: MolecularSystem,
    surface: Surface,
    plan: LandmarkPlan,
    method: str,
    molecule: Mol | None = None,
) -> ReferenceLandmarks:
    """Minima, normal modes of the lowest one, and torsional scans of a molecule.

    Parameters
    ----------
    surface : of the reference method
    method : its name
    molecule : the system in RDKit, atoms in the system's order; by default made from its bonds

    Raises
    ------
    RuntimeError : a structure did not come to rest, or the bonds have no bond orders
    """
    molecule = molecule if molecule is not None else molecule_of(system)
    minima, energies = _minima(system, surface, molecule, plan)
    second = hessian(surface, minima[0], AMPLITUDE_NM)
    modes = normal_modes(second, minima[0], system.masses)
    scans = []
    for torsions in _scanned(molecule):
        n_starts = 1 if len(torsions) == 1 else plan.n_map_starts
        scans.append(_scan(system, surface, torsions, minima[:n_starts], plan))
    return ReferenceLandmarks(minima, energies, modes.frequencies, tuple(scans), method)


def molecule_of(system: MolecularSystem) -> Mol:
    """A system in RDKit, atoms in its order, bond orders found from its bonds and charge.

    Raises
    ------
    RuntimeError : no bond orders go with these bonds and this charge
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDetermineBonds

    molecule = Chem.RWMol()
    for number in system.species.tolist():
        atom = Chem.Atom(number)
        atom.SetNoImplicit(True)
        molecule.AddAtom(atom)
    for i, j in system.bonds.tolist():
        molecule.AddBond(i, j, Chem.BondType.SINGLE)
    conformer = Chem.Conformer(system.n_atoms)
    conformer.SetPositions(np.ascontiguousarray(system.positions * ANGSTROM_PER_NM))
    molecule.AddConformer(conformer)
    try:
        with rdBase.BlockLogs():
            rdDetermineBonds.DetermineBondOrders(molecule, charge=system.charge)
            Chem.SanitizeMol(molecule)
    except ValueError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RuntimeError(f"RDKit finds no bond orders for {system.name} ({reason})") from error
    Chem.AssignStereochemistryFrom3D(molecule)
    return molecule.GetMol()


def torsion_angles(positions: Float, torsions: Torsions) -> tuple[Float, Float]:
    """Torsion angles with their gradients.

    Parameters
    ----------
    positions : shape (n_frames, n_atoms, 3)
    torsions : shape (n_torsions, 4), atom indices

    Returns
    -------
    angles : shape (n_frames, n_torsions), radian, 180 degrees for trans (IUPAC's sign)
    gradients : shape (n_frames, n_torsions, 4, 3), of the four atoms, radian per length

    References
    ----------
    Blondel & Karplus, J. Comput. Chem. 17, 1132 (1996).
    """
    a, b, c, d = (positions[:, torsions[:, k]] for k in range(4))
    f, g, h = a - b, b - c, d - c
    m, n = np.cross(f, g), np.cross(h, g)
    length = np.linalg.norm(g, axis=-1, keepdims=True)
    angles = np.arctan2((np.cross(n, m) * g).sum(-1), (m * n).sum(-1) * length[..., 0])
    mm, nn = (m * m).sum(-1, keepdims=True), (n * n).sum(-1, keepdims=True)
    first = -length * m / mm
    last = length * n / nn
    fg, hg = (f * g).sum(-1, keepdims=True), (h * g).sum(-1, keepdims=True)
    shared = fg * m / (mm * length) - hg * n / (nn * length)
    gradients = np.stack((first, shared - first, -shared - last, last), axis=2)
    return angles, gradients


def turned(positions: Float, torsion: NDArray[np.int64], angle: float, bonds: Torsions) -> Float:
    """One structure with a torsion turned to an angle (radian), everything else rigid.

    Parameters
    ----------
    positions : shape (n_atoms, 3)
    bonds : the atoms beyond the torsion's middle bond turn
    """
    now, _ = torsion_angles(positions[None], torsion[None])
    by = angle - float(now[0, 0])
    _, b, c, _ = torsion
    beyond = _beyond(int(b), int(c), bonds)
    axis = positions[c] - positions[b]
    axis = axis / np.linalg.norm(axis)
    r = positions[beyond] - positions[c]
    along = (r @ axis)[:, None] * axis
    moved = positions.copy()
    moved[beyond] = positions[c] + along + np.cos(by) * (r - along) + np.sin(by) * np.cross(axis, r)
    return moved


def _beyond(b: int, c: int, bonds: Torsions) -> list[int]:
    """The atoms on c's side of the bond b-c, c among them."""
    found, waiting = {c}, [c]
    while waiting:
        atom = waiting.pop()
        near = [int(j if i == atom else i) for i, j in bonds if atom in (i, j)]
        new = [other for other in near if other not in found and (atom, other) != (c, b)]
        found.update(new)
        waiting.extend(new)
    return sorted(found)


def _minima(
    system: MolecularSystem, surface: Surface, molecule: Mol, plan: LandmarkPlan
) -> tuple[Float, Float]:
    """Minima and their energies, the lowest first.

    Embedding prefers some torsions (of an acid it never turns the O-H away from the C=O), so every
    conformer found is turned about each rotatable bond, and what comes of that is relaxed too.
    """
    from rdkit.Chem import rdDistGeom

    # crc32, because Python's own hash of a string differs from run to run
    seed = zlib.crc32(system.name.encode()) ^ plan.seed
    rdDistGeom.EmbedMultipleConfs(molecule, plan.n_starts, randomSeed=seed % (2**31))
    embedded = [
        np.array(conformer.GetPositions()) * NM_PER_ANGSTROM
        for conformer in molecule.GetConformers()
    ]
    starts = np.stack([system.positions, *embedded])
    found, energies = _rested(system, surface, starts, plan)
    bonds = _bonds_to_turn(molecule)
    if len(bonds):
        angles, _ = torsion_angles(found, bonds)
        turns = [
            turned(found[k], torsion, angles[k, n] + turn, system.bonds)
            for n, torsion in enumerate(bonds)
            for k in range(len(found))
            for turn in np.radians(plan.turns)
        ]
        more, higher = _rested(system, surface, np.stack(turns), plan)
        found, energies = np.concatenate((found, more)), np.concatenate((energies, higher))
    return _distinct(system, surface, found, energies, plan)


def _rested(
    system: MolecularSystem, surface: Surface, starts: Float, plan: LandmarkPlan
) -> tuple[Float, Float]:
    """Where structures come to rest, without those that do not, each place once."""
    tolerance = plan.tolerance_eV_angstrom * KJMOL_NM_PER_EV_ANGSTROM
    rest = relaxed(surface, system, starts, tolerance=tolerance, max_steps=MAX_STEPS)
    at_rest = rest.forces_left <= tolerance
    sound = np.flatnonzero(at_rest & np.array([not text for text in rest.obstacles]))
    if not len(sound):
        raise RuntimeError(f"no structure of {system.name} comes to rest in {rest.n_steps} steps")
    return _distinct(system, surface, rest.positions[sound], rest.energies[sound], plan)


def _distinct(
    system: MolecularSystem, surface: Surface, positions: Float, energies: Float, plan: LandmarkPlan
) -> tuple[Float, Float]:
    """Each true minimum once, the lowest first, as many and as high as the plan wants."""
    kept: list[int] = []
    prints = [_fingerprint(frame, system.species) for frame in positions]
    highest = energies.min() + plan.window_eV * KJMOL_PER_EV
    for k in np.argsort(energies, kind="stable").tolist():
        if len(kept) == plan.max_minima or energies[k] > highest:
            break
        known = any(
            abs(energies[k] - energies[j]) < SAME_ENERGY
            and np.abs(prints[k] - prints[j]).max() < SAME_DISTANCE_NM
            for j in kept
        )
        if known:
            continue
        modes = normal_modes(hessian(surface, positions[k]), positions[k], system.masses)
        if not modes.n_imaginary:
            kept.append(k)
    return positions[kept], energies[kept]


def _fingerprint(positions: Float, species: NDArray[np.int64]) -> Float:
    """Sorted distances, elements apart: the same for mirror images and permutations."""
    i, j = np.triu_indices(len(species), k=1)
    low, high = np.minimum(species[i], species[j]), np.maximum(species[i], species[j])
    distance = np.linalg.norm(positions[j] - positions[i], axis=1)
    return np.asarray(distance[np.lexsort((distance, high, low))])


def _scan(
    system: MolecularSystem,
    surface: Surface,
    torsions: Torsions,
    conformers: Float,
    plan: LandmarkPlan,
) -> TorsionScan:
    shape = (plan.n_angles,) * len(torsions)
    circle = np.radians(np.arange(plan.n_angles) * (360.0 / plan.n_angles) - 180.0)
    grid = np.stack(np.meshgrid(*[circle] * len(torsions), indexing="ij"), axis=-1)
    targets = grid.reshape(-1, len(torsions))
    energies = np.full(len(targets), np.inf)
    frames = np.empty((len(targets), system.n_atoms, 3))
    pairs = [(conformer, k) for k in range(len(targets)) for conformer in conformers]
    while pairs:
        points = np.array([k for _, k in pairs])
        starts = [_turned(frame, torsions, targets[k], system.bonds) for frame, k in pairs]
        rest = relaxed(
            surface,
            system,
            np.stack(starts),
            tolerance=plan.scan_tolerance_eV_angstrom * KJMOL_NM_PER_EV_ANGSTROM,
            restraint=_held(torsions, targets[points], plan.stiffness_eV * KJMOL_PER_EV),
        )
        lower = set()
        for copy, k in enumerate(points.tolist()):
            if not rest.obstacles[copy] and rest.energies[copy] < energies[k] - SAME_ENERGY:
                energies[k], frames[k] = rest.energies[copy], rest.positions[copy]
                lower.add(k)
        # Atoms clash where a conformer is turned rigidly, and may stay caught: what stands far
        # above the points around it is tried again from there.
        pairs = [
            (frames[j], k)
            for k in range(len(targets))
            for j in _neighbours(k, shape)
            if j in lower and energies[k] > energies[j] + plan.steep_eV * KJMOL_PER_EV
        ]
    if not np.isfinite(energies).all():
        text = next((text for text in rest.obstacles if text), "no point is next to it")
        raise RuntimeError(f"a point of a scan of {system.name} did not come to rest: {text}")
    # Scans are stored in float32, and the labels are those of the positions as stored.
    positions = frames.astype(np.float32).astype(np.float64)
    own_energies, own_forces = surface(positions)
    return TorsionScan(torsions, shape, positions, own_energies, own_forces)


def _turned(positions: Float, torsions: Torsions, angles: Float, bonds: Torsions) -> Float:
    for torsion, angle in zip(torsions, angles, strict=True):
        positions = turned(positions, torsion, float(angle), bonds)
    return positions


def _neighbours(point: int, shape: tuple[int, ...]) -> list[int]:
    """The points next to one on a periodic grid."""
    place = np.array(np.unravel_index(point, shape))
    steps = np.concatenate((np.eye(len(shape), dtype=int), -np.eye(len(shape), dtype=int)))
    return [int(np.ravel_multi_index(tuple(place + step), shape, mode="wrap")) for step in steps]


def _held(torsions: Torsions, targets: Float, stiffness: float) -> Restraint:
    """Harmonic restraints of torsions to the targets (n_copies, n_torsions) of each copy."""

    def restraint(positions: Float, copies: NDArray[np.int64]) -> tuple[Float, Float]:
        angles, gradients = torsion_angles(positions, torsions)
        off = angles - targets[copies]
        off -= 2.0 * np.pi * np.round(off / (2.0 * np.pi))
        forces = np.zeros_like(positions)
        for k, torsion in enumerate(torsions):
            for corner, atom in enumerate(torsion):
                forces[:, atom] -= stiffness * off[:, k, None] * gradients[:, k, corner]
        return 0.5 * stiffness * (off**2).sum(axis=1), forces

    return restraint


def _scanned(molecule: Mol) -> list[Torsions]:
    """The torsions of each scan: phi with psi of a residue, else one for each rotatable bond."""
    from rdkit import Chem

    residue = molecule.GetSubstructMatch(Chem.MolFromSmarts(BACKBONE))
    if residue:
        _, carbonyl, _, nitrogen, alpha, other, _, following = residue
        return [np.array([[carbonyl, nitrogen, alpha, other], [nitrogen, alpha, other, following]])]
    return list(_bonds_to_turn(molecule)[:, None])


def _bonds_to_turn(molecule: Mol) -> Torsions:
    """One torsion for each rotatable bond, shape (n_bonds, 4)."""
    from rdkit import Chem

    middles = molecule.GetSubstructMatches(Chem.MolFromSmarts(ROTATABLE))
    found = [
        (_end(molecule, b, c), b, c, _end(molecule, c, b)) for b, c in sorted(map(sorted, middles))
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 4)


def _end(molecule: Mol, atom: int, but: int) -> int:
    """The heaviest other neighbour of an atom, of equal ones the first."""
    near = molecule.GetAtomWithIdx(atom).GetNeighbors()
    others = [other for other in near if other.GetIdx() != but]
    chosen = min(others, key=lambda other: (-other.GetAtomicNum(), other.GetIdx()))
    return int(chosen.GetIdx())
