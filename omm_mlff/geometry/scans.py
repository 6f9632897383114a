"""Builds the geometries of scans: bonds drawn and pressed, torsions turned, molecules collided."""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from omm_mlff.geometry.distances import covalent_radii
from omm_mlff.geometry.pulled_apart import two_copies
from omm_mlff.schema import MolecularSystem
from omm_mlff.units import ANGSTROM_PER_NM

if TYPE_CHECKING:
    from scipy.spatial.transform import Rotation

N_CANDIDATES = 64
"""Random orientations from which the least obstructed approach is taken."""

_ON_THE_WAY = np.array([1.0, 1.25, 1.5, 2.0])  # where other atoms are looked at, in covalent radii
_APART_NM = 1.0  # of the two copies while their Context is built


class Scan(Protocol):
    """A line of geometries, with one coordinate along it."""

    @property
    def label(self) -> str:
        """For a person, such as "bond C0-H6"."""

    @property
    def atoms(self) -> tuple[int, ...]:
        """Those that the coordinate is about, indices within the molecule."""

    def at(self, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions at each coordinate, shape (n_points, n_atoms, 3), nm."""

    def along(
        self, coordinates: NDArray[np.float64], forces: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The force along the scan, shape (n_points,), kJ/mol/nm."""


@dataclass(frozen=True, eq=False)
class BondScan:
    """One bond drawn out or pressed; the two fragments that it joins keep their shape.

    Attributes
    ----------
    positions : shape (n_atoms, 3), nm, at rest
    atoms : the bond's
    moved : indices of the fragment that moves, the smaller one
    direction : shape (3,), unit length, out
    rest_nm : length at rest
    """

    positions: NDArray[np.float64]
    label: str
    atoms: tuple[int, ...]
    moved: NDArray[np.int64]
    direction: NDArray[np.float64]
    rest_nm: float

    def at(self, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions at each length of the bond (nm)."""
        frames = np.repeat(self.positions[None], len(coordinates), axis=0)
        frames[:, self.moved] += (coordinates - self.rest_nm)[:, None, None] * self.direction
        return frames

    def along(
        self, coordinates: NDArray[np.float64], forces: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """-dE/dd, d the bond's length."""
        return np.asarray(forces[:, self.moved].sum(axis=1) @ self.direction)


@dataclass(frozen=True, eq=False)
class TorsionScan:
    """One side of a molecule turned about a bond.

    The coordinate is the angle (radians) from rest; forces are along the arc that the moved atoms
    describe in the space of all coordinates, so that they are per length and not per angle.

    Attributes
    ----------
    positions : shape (n_atoms, 3), nm, at rest
    atoms : of one dihedral angle about the bond
    moved : indices of the side that turns, the smaller one
    origin, axis : shape (3,), nm; the axis of unit length
    """

    positions: NDArray[np.float64]
    label: str
    atoms: tuple[int, ...]
    moved: NDArray[np.int64]
    origin: NDArray[np.float64]
    axis: NDArray[np.float64]

    def at(self, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions at each angle."""
        r = self.positions[self.moved] - self.origin
        parallel = (r @ self.axis)[:, None] * self.axis
        across, aside = r - parallel, np.cross(self.axis, r)
        cos, sin = (f(coordinates)[:, None, None] for f in (np.cos, np.sin))
        frames = np.repeat(self.positions[None], len(coordinates), axis=0)
        frames[:, self.moved] = self.origin + parallel + cos * across + sin * aside
        return frames

    def along(
        self, coordinates: NDArray[np.float64], forces: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """-dE/ds, s the arc length."""
        arms = np.cross(self.axis, self.at(coordinates)[:, self.moved] - self.origin)
        return np.asarray((forces[:, self.moved] * arms).sum(axis=(1, 2)) / self.arm_nm)

    @property
    def arm_nm(self) -> float:
        """Arc length for each radian, nm."""
        arms = np.cross(self.axis, self.positions[self.moved] - self.origin)
        return float(np.linalg.norm(arms))


@dataclass(frozen=True, eq=False)
class Approach:
    """Two copies of a molecule driven at each other, one pair of atoms head-on.

    Attributes
    ----------
    positions : shape (2 * n_atoms_of_one, 3), nm, both atoms of the pair at the origin
    pair : the atom of the first copy, and of the second (index in both copies together)
    n_first : atoms of the first copy
    clearance : least distance of any other two atoms of the two copies on the way in, in sums of
        their covalent radii
    """

    positions: NDArray[np.float64]
    label: str
    pair: tuple[int, int]
    n_first: int
    clearance: float

    @property
    def atoms(self) -> tuple[int, ...]:
        """The pair, each as an index within its molecule."""
        return (self.pair[0], self.pair[1] - self.n_first)

    def touching(self, contact: NDArray[np.float64]) -> float:
        """Distance of the pair at which, on the way in, the first two atoms touch.

        Parameters
        ----------
        contact : shape (n_first, n_atoms - n_first), nm; where two atoms of the copies touch
        """
        apart = self.positions[None, self.n_first :] - self.positions[: self.n_first, None]
        inside = contact**2 - (apart[..., :2] ** 2).sum(axis=-1)
        meet = np.where(inside >= 0.0, np.sqrt(np.abs(inside)) - apart[..., 2], -np.inf)
        return float(meet.max())

    def at(self, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions at each distance of the pair (nm)."""
        frames = np.repeat(self.positions[None], len(coordinates), axis=0)
        frames[:, self.n_first :, 2] += coordinates[:, None]
        return frames

    def along(
        self, coordinates: NDArray[np.float64], forces: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """-dE/dd, d the distance of the pair."""
        return np.asarray(forces[:, self.n_first :, 2].sum(axis=1))


def in_vacuum(system: MolecularSystem) -> MolecularSystem:
    """The system itself; of a box its first molecule, whole and alone."""
    if not system.periodic:
        return system
    from openmm import app

    pair = two_copies(system, np.random.default_rng(0))
    n, both = pair.n_first, pair.system
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    for atom in list(both.topology.atoms())[:n]:
        topology.addAtom(atom.name, atom.element, residue)
    bonds = both.bonds[(both.bonds < n).all(axis=1)]
    listed = list(topology.atoms())
    for i, j in bonds:
        topology.addBond(listed[i], listed[j])
    return MolecularSystem(
        name=f"one of {system.name}",
        source=system.source,
        topology=topology,
        positions=both.positions[:n],
        species=both.species[:n],
        masses=both.masses[:n],
        bonds=bonds,
    )


def atom_names(system: MolecularSystem) -> list[str]:
    """Such as "O0", "H1": symbol and index."""
    return [f"{atom.element.symbol}{i}" for i, atom in enumerate(system.topology.atoms())]


def bond_scans(system: MolecularSystem) -> list[BondScan]:
    """One scan for each type of bond.

    Two bonds are alike when their atoms are: by element, number of bonds, and whether the bond is
    part of a ring. A ring is cut in two for the scan: each atom goes with that atom of the bond
    that fewer bonds lead to, so that the two halves move against each other.
    """
    names = atom_names(system)
    scans = []
    for i, j in _types(system):
        moved = smaller_side(system, i, j)
        # From the fragment that stays to the one that moves: out.
        near, far = (i, j) if j in moved else (j, i)
        r = system.positions[far] - system.positions[near]
        rest = float(np.linalg.norm(r))
        label = f"bond {names[i]}-{names[j]}"
        scans.append(BondScan(system.positions, label, (i, j), moved, r / rest, rest))
    return scans


def torsion_scans(system: MolecularSystem) -> list[TorsionScan]:
    """One scan for each type of bond that one side of the molecule can be turned about.

    Such a bond is in no ring and each of its atoms has another bond that does not lie along it.
    """
    names = atom_names(system)
    scans = []
    for i, j in _types(system):
        if _in_ring(system, i, j):
            continue
        r = system.positions[j] - system.positions[i]
        axis = r / np.linalg.norm(r)
        ends = [_off_axis(system, atom, other, axis) for atom, other in ((i, j), (j, i))]
        if ends[0] is None or ends[1] is None:
            continue
        moved = smaller_side(system, i, j)
        atoms = (ends[0], i, j, ends[1])
        label = "torsion " + "-".join(names[atom] for atom in atoms)
        scans.append(TorsionScan(system.positions, label, atoms, moved, system.positions[i], axis))
    return scans


def collision(
    system: MolecularSystem, random: np.random.Generator, n_orientations: int
) -> tuple[MolecularSystem, list[Approach]]:
    """Two copies of a molecule, and the ways in which each pair of species meets head-on.

    Of every pair of species some way in is taken that is as free as can be: out of `N_CANDIDATES`
    random choices of the two atoms and of both orientations, the one whose other atoms stay
    farthest apart. So it is done anew for each of the `n_orientations`.

    Parameters
    ----------
    system : in vacuum

    Returns
    -------
    the two copies as one system, apart, and the approaches
    """
    from scipy.spatial.transform import Rotation

    pair = two_copies(system, random)
    both, n = pair.system, pair.n_first
    apart = both.positions.copy()
    apart[n:] += pair.direction * (_APART_NM + 2.0 * np.abs(apart).max())
    both = dataclasses.replace(both, positions=apart)
    names = atom_names(system)
    radii = covalent_radii(system.species)
    contact = radii[:, None] + radii[None, :]
    elements = np.unique(system.species)
    approaches = []
    for number, first_element in enumerate(elements):
        for second_element in elements[number:]:
            for _ in range(n_orientations):
                i, j = (
                    random.choice(np.flatnonzero(system.species == element), N_CANDIDATES)
                    for element in (first_element, second_element)
                )
                first, second = (
                    _turned(system.positions, atoms, Rotation.random(N_CANDIDATES, rng=random))
                    for atoms in (i, j)
                )
                clearance = _clearance(first, second, i, j, contact)
                k = int(clearance.argmax())
                a, b = int(i[k]), int(j[k])
                label = f"{names[a]} and {names[b]} of two copies"
                positions = np.concatenate((first[k], second[k]))
                approaches.append(Approach(positions, label, (a, b + n), n, float(clearance[k])))
    return both, approaches


def smaller_side(system: MolecularSystem, i: int, j: int) -> NDArray[np.int64]:
    """Atoms of the smaller fragment that the bond i-j joins, sorted; of equal ones that of j."""
    from_i, from_j = (_bonds_away(system, start, (i, j)) for start in (i, j))
    # In a ring an atom goes with the nearer end; what no bond leads to stays where it is.
    side_i = np.flatnonzero(np.isfinite(from_i) & (from_i <= from_j))
    side_j = np.flatnonzero(from_j < from_i)
    return side_i if len(side_i) < len(side_j) else side_j


def _types(system: MolecularSystem) -> list[tuple[int, int]]:
    """The first bond of every type, as pairs of atoms."""
    degree = np.bincount(system.bonds.ravel(), minlength=system.n_atoms)
    found: dict[object, tuple[int, int]] = {}
    for i, j in system.bonds.tolist():
        ends = sorted((int(system.species[atom]), int(degree[atom])) for atom in (i, j))
        found.setdefault((*ends, _in_ring(system, i, j)), (i, j))
    return list(found.values())


def _in_ring(system: MolecularSystem, i: int, j: int) -> bool:
    return bool(np.isfinite(_bonds_away(system, i, (i, j))[j]))


def _bonds_away(
    system: MolecularSystem, start: int, without: tuple[int, int]
) -> NDArray[np.float64]:
    """Bonds between an atom and every other, shape (n_atoms,); inf where none lead there.

    Parameters
    ----------
    without : a bond that is taken out
    """
    neighbors: list[list[int]] = [[] for _ in range(system.n_atoms)]
    for i, j in system.bonds.tolist():
        if (i, j) not in (without, without[::-1]):
            neighbors[i].append(j)
            neighbors[j].append(i)
    away = np.full(system.n_atoms, np.inf)
    away[start] = 0.0
    waiting = deque([start])
    while waiting:
        atom = waiting.popleft()
        for neighbor in neighbors[atom]:
            if away[neighbor] == np.inf:
                away[neighbor] = away[atom] + 1.0
                waiting.append(neighbor)
    return away


def _off_axis(
    system: MolecularSystem, atom: int, other: int, axis: NDArray[np.float64]
) -> int | None:
    """A neighbour of an atom that does not lie on the axis, other than `other`."""
    for bond in system.bonds.tolist():
        if atom in bond and other not in bond:
            neighbor = sum(bond) - atom
            r = system.positions[neighbor] - system.positions[atom]
            if np.linalg.norm(np.cross(axis, r)) * ANGSTROM_PER_NM > 0.1:
                return int(neighbor)
    return None


def _turned(
    positions: NDArray[np.float64], atoms: NDArray[np.int64], rotations: Rotation
) -> NDArray[np.float64]:
    """The molecule in many orientations, one atom of each at the origin.

    Returns
    -------
    shape (n_orientations, n_atoms, 3), nm
    """
    centred = positions[None] - positions[atoms][:, None]
    return np.asarray(np.einsum("kax,kyx->kay", centred, rotations.as_matrix()), dtype=np.float64)


def _clearance(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    i: NDArray[np.int64],
    j: NDArray[np.int64],
    contact: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Least distance of other atoms on the way in, in sums of covalent radii, shape (k,)."""
    apart = second[:, None] - first[:, :, None]  # (k, n, n, 3)
    flat = (apart[..., :2] ** 2).sum(axis=-1)
    least = np.full(len(first), np.inf)
    k = np.arange(len(first))
    for ratio_of_pair in _ON_THE_WAY:
        separation = ratio_of_pair * contact[i, j][:, None, None]
        ratio = np.sqrt(flat + (apart[..., 2] + separation) ** 2) / contact
        ratio[k, i, j] = np.inf
        least = np.minimum(least, ratio.min(axis=(1, 2)))
    return least
