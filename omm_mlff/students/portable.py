"""A student as TorchScript that needs nothing but torch, by openmm-torch's own convention.

The engines serve this package: they are made for the tap, for replicas, and for a neighbour list
from another package. What is built here is for people who have none of that: positions in nm in,
kJ/mol out, pairs found in plain torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from omm_mlff.errors import UnsupportedSystemError
from omm_mlff.students.engine import MAX_COMPLETE_ATOMS
from omm_mlff.students.pairs import complete_pairs, minimum_image, pairs_within
from omm_mlff.students.student import Student
from omm_mlff.units import (
    ANGSTROM_PER_NM,
    KJMOL_PER_EV,
    NM_PER_ANGSTROM,
)

MAX_SEARCHED_ATOMS = 10_000
"""Looking at all pairs of more atoms takes seconds a step."""


class _Total(nn.Module):
    """Total energy of one structure, differentiable.

    Parameters
    ----------
    student : in evaluation mode
    species : shape (n_atoms,), atomic numbers
    complete : take all pairs as they are; else look for those within the cutoff
    """

    if TYPE_CHECKING:
        species: Tensor
        idx_i: Tensor
        idx_j: Tensor
        reference_energy: Tensor

    def __init__(self, student: Student, species: Tensor, complete: bool) -> None:
        super().__init__()
        n_atoms = len(species)
        idx_i, idx_j = complete_pairs(n_atoms if complete else 0)
        self.student = student
        self.complete = complete
        self.n_atoms = n_atoms
        self.n_neighbors = n_atoms - 1 if complete else 0
        self.cutoff = student.config.cutoff_angstrom
        self.angstrom_per_nm = ANGSTROM_PER_NM
        self.nm_per_angstrom = NM_PER_ANGSTROM
        self.kjmol_per_ev = KJMOL_PER_EV
        self.register_buffer("species", species.clone())
        self.register_buffer("idx_i", idx_i)
        self.register_buffer("idx_j", idx_j)
        self.register_buffer("reference_energy", student.reference_energy(species).sum())

    def forward(self, x: Tensor, cell: Tensor | None) -> Tensor:
        """Energy of positions (n_atoms, 3) and cell (3, 3) in angstrom; float64, kJ/mol."""
        if x.shape[0] != self.n_atoms or x.shape[1] != 3:
            raise ValueError(f"wanted positions of {self.n_atoms} atoms, got shape {x.shape}")
        if cell is not None:
            self.check(cell)
        idx_i, idx_j = self.idx_i, self.idx_j
        if not self.complete:
            idx_i, idx_j = pairs_within(x.detach(), cell, self.cutoff)
        r_ij = x[idx_j] - x[idx_i]
        if cell is not None:
            r_ij = minimum_image(r_ij, cell)
        atomic = self.student.interaction(self.species, idx_i, idx_j, r_ij, self.n_neighbors)
        return (atomic.sum() + self.reference_energy) * self.kjmol_per_ev

    def check(self, cell: Tensor) -> None:
        """Refuse a box in which the nearest image within the cutoff is not the only one."""
        upper = cell[0, 1].abs() + cell[0, 2].abs() + cell[1, 2].abs()
        if bool(upper > 0.0):
            raise ValueError("wanted box vectors in OpenMM's reduced form (lower triangular)")
        smallest = float(torch.diagonal(cell).min())
        if smallest < 2.0 * self.cutoff:
            nm = self.nm_per_angstrom
            raise ValueError(
                f"the box is {smallest * nm} nm across, twice the cutoff is "
                f"{2.0 * self.cutoff * nm} nm; take a larger box"
            )


class _Energy(nn.Module):
    def __init__(self, total: _Total) -> None:
        super().__init__()
        self.total = total
        self.angstrom_per_nm = ANGSTROM_PER_NM

    def forward(self, positions: Tensor) -> Tensor:
        return self.total(positions * self.angstrom_per_nm, None)  # type: ignore[no-any-return]


class _BoxEnergy(_Energy):
    def forward(self, positions: Tensor, box: Tensor) -> Tensor:  # type: ignore[override]
        cell = box.to(positions.dtype) * self.angstrom_per_nm
        return self.total(positions * self.angstrom_per_nm, cell)  # type: ignore[no-any-return]


class _EnergyAndForces(nn.Module):
    def __init__(self, total: _Total) -> None:
        super().__init__()
        self.total = total
        self.angstrom_per_nm = ANGSTROM_PER_NM

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.differentiate(positions, None)

    def differentiate(self, positions: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor]:
        x = (positions.detach() * self.angstrom_per_nm).requires_grad_(True)
        energy = self.total(x, cell)
        gradient = torch.autograd.grad([energy], [x])[0]
        assert gradient is not None
        return energy.detach(), (gradient * -self.angstrom_per_nm).contiguous()


class _BoxEnergyAndForces(_EnergyAndForces):
    def forward(self, positions: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.differentiate(positions, box.to(positions.dtype) * self.angstrom_per_nm)


def portable(student: Student, species: Tensor, *, periodic: bool, forces: bool) -> nn.Module:
    """A student as openmm-torch wants a module; scriptable, and nothing but torch in it.

    Parameters
    ----------
    species : shape (n_atoms,), atomic numbers, in the order of the positions
    periodic : `forward(positions, box)`, else `forward(positions)`; both in nm
    forces : it returns energy and forces, kJ/mol and kJ/mol/nm; else the energy alone, which
        whoever calls it differentiates

    Raises
    ------
    UnsupportedSystemError : an element that the student never saw, no pair, or too many atoms
    """
    n_atoms = len(species)
    unknown = sorted(set(species.tolist()) - set(student.config.species))
    if unknown:
        raise UnsupportedSystemError(
            f"the student was never trained on atomic numbers {', '.join(map(str, unknown))}"
        )
    if n_atoms < 2:
        raise UnsupportedSystemError("a single atom has no pairs; a student needs two or more")
    if n_atoms > MAX_SEARCHED_ATOMS:
        raise UnsupportedSystemError(
            f"{n_atoms} atoms have {n_atoms * (n_atoms - 1):.2g} pairs, and a file that needs "
            f"nothing but torch looks at all of them at every step; wanted {MAX_SEARCHED_ATOMS} "
            "atoms or fewer: use the student itself, which has a neighbour list"
        )
    complete = not periodic and n_atoms <= MAX_COMPLETE_ATOMS
    total = _Total(student, species, complete)
    if forces:
        return _BoxEnergyAndForces(total) if periodic else _EnergyAndForces(total)
    return _BoxEnergy(total) if periodic else _Energy(total)
