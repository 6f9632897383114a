"""A student in a periodic cell, with the virial that the engines of OpenMM do not give.

In the units of students: angstrom and eV. Every pair contributes r_ij (x) dE/dr_ij, images
included, so that the virial is right in any cell, smaller than the cutoff as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from omm_mlff.students.student import Student


@dataclass(frozen=True, eq=False)
class CellEvaluation:
    """What a student says of a periodic cell.

    Attributes
    ----------
    energy : eV, atomic reference energies included
    forces : shape (n_atoms, 3), float64, eV/angstrom
    virial : shape (3, 3), float64, eV: dE/d(strain), the stress times the volume
    """

    energy: float
    forces: Tensor
    virial: Tensor


def evaluate_cell(
    student: Student, species: Tensor, positions: Tensor, cell: Tensor
) -> CellEvaluation:
    """Energy, forces and virial of a periodic cell.

    Parameters
    ----------
    student : in evaluation mode
    species : shape (n_atoms,), atomic numbers
    positions : shape (n_atoms, 3), float64, angstrom
    cell : shape (3, 3), float64, angstrom; rows are the cell vectors, in any orientation
    """
    from vesin_torch import NeighborList

    cutoff = student.config.cutoff_angstrom
    neighbors = NeighborList(cutoff=cutoff, full_list=True, sorted=True)
    idx_i, idx_j, r_ij = neighbors.compute(
        points=positions, box=cell, periodic=True, quantities="ijD", copy=True
    )
    r_ij = r_ij.detach().requires_grad_(True)
    atomic = student.interaction(species, idx_i, idx_j, r_ij)
    (gradient,) = torch.autograd.grad([atomic.sum()], [r_ij])
    forces = torch.zeros_like(positions).index_add(0, idx_i, gradient)
    forces = forces.index_add(0, idx_j, -gradient)
    energy = atomic.detach().sum() + student.reference_energy(species).sum()
    return CellEvaluation(float(energy), forces, r_ij.detach().T @ gradient)
