"""The sound potential of the proving ground: a force field in closed form.

Terms are read off a molecular system's bonds and elements, so that two copies of a molecule are
served as well as one:

- bonds: Morse, with the frequencies of real molecules;
- atoms two bonds apart: a spring that holds the angle;
- atoms three bonds apart: a repulsion, from which a torsion's barrier follows;
- all others: Lennard-Jones, brought to zero between 5/6 of the cutoff and the cutoff;
- every pair: a wall, so that no two atoms come together.

With `harmonic`, bonds are springs as well and atoms three bonds apart are held by a soft one: every
vibration of a small molecule is then a harmonic one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from omm_mlff.proving.terms import Float, LennardJones, Morse, Spring, Wall
from omm_mlff.schema import MolecularSystem

SWITCH_FRACTION = 5.0 / 6.0

LENNARD_JONES = {
    1: (0.10, 0.12),
    6: (0.40, 0.34),
    8: (0.60, 0.30),
    10: (0.996, 0.19),
    18: (0.996, 0.34),
}
"""Epsilon (kJ/mol) and sigma (nm) by element; argon's after Rahman, Phys. Rev. 136, A405 (1964).
Neon is small on purpose: atoms with a soft wall well inside their van der Waals radii."""

_BONDS = {
    (1, 1): (432.0, 3.45e5, 0.0741),
    (1, 6): (430.0, 1.70e5, 0.1090),
    (1, 8): (460.0, 3.90e5, 0.0960),
    (6, 6): (370.0, 2.20e5, 0.1529),
    (6, 8): (380.0, 2.00e5, 0.1410),
    (8, 8): (200.0, 2.30e5, 0.1475),
}
"""Depth (kJ/mol), stiffness (kJ/mol/nm^2) and length (nm): bond energies and lengths as tabulated;
stiffnesses so that bonds vibrate as they do, with the springs of the angles, which stiffen them."""

_ANGLE_STIFFNESS = 300.0  # kJ/mol/rad^2
_ANGLES = {6: math.radians(109.47), 8: math.radians(104.5)}
_DIHEDRAL = math.radians(111.5)  # of HOOH, for the harmonic chain
_DIHEDRAL_STIFFNESS = 3.0e4  # kJ/mol/nm^2
_WALL_BONDED = 0.05  # nm
_WALL_1_4 = 0.27  # nm: (w/d)^12 between hydrogens gives methanol's torsion some 5 kJ/mol


@dataclass(frozen=True, eq=False)
class Pairs:
    """All pairs of atoms, and how many bonds apart they are.

    Attributes
    ----------
    i, j : shape (n_pairs,)
    apart : shape (n_pairs,): 1, 2 or 3 bonds; 4 stands for more, or for no way at all
    """

    i: NDArray[np.int64]
    j: NDArray[np.int64]
    apart: NDArray[np.int64]


def pairs_of(system: MolecularSystem) -> Pairs:
    """The pairs of a molecular system."""
    n = system.n_atoms
    bonded = np.zeros((n, n), dtype=bool)
    bonded[system.bonds[:, 0], system.bonds[:, 1]] = True
    bonded |= bonded.T
    apart = np.full((n, n), 4)
    reached = np.eye(n, dtype=bool)
    for steps in (1, 2, 3):
        further = reached @ bonded & ~reached
        apart[further & (apart == 4)] = steps
        reached = reached | further
    i, j = np.triu_indices(n, k=1)
    return Pairs(i, j, apart[i, j])


def unknown_elements(system: MolecularSystem) -> list[int]:
    """Elements that the field has no parameters for; those of a bond included."""
    missing = {int(z) for z in system.species} - set(LENNARD_JONES)
    for i, j in system.bonds:
        kind = _kind(system, int(i), int(j))
        if kind not in _BONDS:
            missing |= set(kind)
    return sorted(missing)


def sound_terms(system: MolecularSystem, cutoff_nm: float, harmonic: bool) -> list[nn.Module]:
    """The terms of the sound field on a system; see the module."""
    pairs = pairs_of(system)
    n = len(pairs.i)
    depth, steepness, bond_rest = np.zeros(n), np.zeros(n), np.ones(n)
    stiffness, rest = np.zeros(n), np.ones(n)
    wall = np.where(pairs.apart < 4, _WALL_BONDED, 0.0)
    epsilon, sigma = np.zeros(n), np.ones(n)
    for p, (i, j, apart) in enumerate(zip(pairs.i, pairs.j, pairs.apart, strict=True)):
        if apart == 1:
            energy, k, length = _BONDS[_kind(system, i, j)]
            if harmonic:
                stiffness[p], rest[p] = k, length
            else:
                depth[p], steepness[p], bond_rest[p] = energy, math.sqrt(0.5 * k / energy), length
        elif apart == 2:
            stiffness[p], rest[p] = _angle_spring(system, int(i), int(j))
        elif apart == 3 and harmonic:
            stiffness[p], rest[p] = _DIHEDRAL_STIFFNESS, _length_1_4(system, int(i), int(j))
        elif apart == 3:
            wall[p] = _WALL_1_4
        else:
            first, second = (LENNARD_JONES[int(system.species[atom])] for atom in (i, j))
            epsilon[p] = math.sqrt(first[0] * second[0])
            sigma[p] = 0.5 * (first[1] + second[1])
    terms: list[nn.Module] = []
    if depth.any():
        terms.append(Morse(depth, steepness, bond_rest))
    if stiffness.any():
        terms.append(Spring(stiffness, rest))
    if wall.any():
        terms.append(Wall(wall))
    if epsilon.any():
        terms.append(LennardJones(epsilon, sigma, SWITCH_FRACTION * cutoff_nm, cutoff_nm))
    return terms


class NearestImage(nn.Module):
    """Displacements to the nearest image, where there is a box."""

    def forward(self, r: Tensor, box: Tensor | None) -> Tensor:
        if box is not None:
            for axis in (2, 1, 0):
                shift = torch.round(r[..., axis] / box[axis, axis])
                r = r - shift.unsqueeze(-1) * box[axis]
        return r


class PairEngine(nn.Module):
    """Terms over all pairs of every copy: positions to energies and forces.

    Parameters
    ----------
    system : one copy
    terms : each maps distances (n_copies, n_pairs) to energies and slopes of that shape
    image : brings displacements to the image that is meant
    """

    if TYPE_CHECKING:
        i: Tensor
        j: Tensor

    def __init__(
        self,
        system: MolecularSystem,
        n_copies: int,
        terms: list[nn.Module],
        image: nn.Module | None = None,
    ) -> None:
        super().__init__()
        pairs = pairs_of(system)
        self.n_copies = n_copies
        self.terms = nn.ModuleList(terms)
        self.image = image or NearestImage()
        self.register_buffer("i", torch.from_numpy(pairs.i))
        self.register_buffer("j", torch.from_numpy(pairs.j))

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Energy of every copy and the forces on every atom.

        Parameters
        ----------
        positions : shape (n_copies * n_atoms, 3), nm
        box : shape (3, 3), nm, or None

        Returns
        -------
        energies : shape (n_copies,), kJ/mol
        forces : shape of `positions`, kJ/mol/nm
        """
        x = positions.detach().to(torch.float64).view(self.n_copies, -1, 3)
        r = self.image(x[:, self.j] - x[:, self.i], box)
        d = (r * r).sum(-1).sqrt()
        energy = torch.zeros_like(d)
        slope = torch.zeros_like(d)
        for term in self.terms:
            e, s = term(d)
            energy = energy + e
            slope = slope + s
        pull = (slope / d).unsqueeze(-1) * r
        forces = torch.zeros_like(x).index_add(1, self.i, pull).index_add(1, self.j, -pull)
        return energy.sum(1), forces.view(positions.shape).to(positions.dtype)


def bond_lengths(system: MolecularSystem) -> Float:
    """Rest length of the bond of every pair, nm; 0 for pairs without one."""
    pairs = pairs_of(system)
    return np.array(
        [
            _BONDS[_kind(system, i, j)][2] if apart == 1 else 0.0
            for i, j, apart in zip(pairs.i, pairs.j, pairs.apart, strict=True)
        ]
    )


def angles_of(system: MolecularSystem) -> list[tuple[int, int, int]]:
    """Every two bonds that share an atom: (end, centre, end), first end < second end."""
    neighbours: dict[int, list[int]] = {}
    for i, j in system.bonds.tolist():
        neighbours.setdefault(i, []).append(j)
        neighbours.setdefault(j, []).append(i)
    return [
        (a, centre, b)
        for centre, ends in sorted(neighbours.items())
        for a in sorted(ends)
        for b in sorted(ends)
        if a < b
    ]


def _kind(system: MolecularSystem, i: Any, j: Any) -> tuple[int, int]:
    first, second = int(system.species[i]), int(system.species[j])
    return (min(first, second), max(first, second))


def _angle_spring(system: MolecularSystem, i: int, j: int) -> tuple[float, float]:
    """Stiffness and length of the spring that holds an angle; its bonds are taken at rest."""
    centre = next(c for a, c, b in angles_of(system) if {a, b} == {i, j})
    first = _BONDS[_kind(system, i, centre)][2]
    second = _BONDS[_kind(system, centre, j)][2]
    angle = _ANGLES.get(int(system.species[centre]), _ANGLES[6])
    length = math.sqrt(first**2 + second**2 - 2.0 * first * second * math.cos(angle))
    per_radian = first * second * math.sin(angle) / length
    return _ANGLE_STIFFNESS / per_radian**2, length


def _length_1_4(system: MolecularSystem, i: int, j: int) -> float:
    """Distance of the ends of a chain of four atoms at `_DIHEDRAL`."""
    bonds = {frozenset(bond) for bond in system.bonds.tolist()}
    b, c = next(
        (b, c)
        for b in range(system.n_atoms)
        for c in range(system.n_atoms)
        if {frozenset((i, b)), frozenset((b, c)), frozenset((c, j))} <= bonds and b != j and c != i
    )
    first, middle, last = (_BONDS[_kind(system, *pair)][2] for pair in ((i, b), (b, c), (c, j)))
    at_b, at_c = (_ANGLES.get(int(system.species[atom]), _ANGLES[6]) for atom in (b, c))
    along = middle - first * math.cos(at_b) - last * math.cos(at_c)
    up, down = first * math.sin(at_b), last * math.sin(at_c)
    across = up**2 + down**2 - 2.0 * up * down * math.cos(_DIHEDRAL)
    return math.sqrt(along**2 + across)
