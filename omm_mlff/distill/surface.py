"""A student as an energy function of many copies of one molecule (angstrom, eV)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from omm_mlff.distill.dynamics import EnergyFunction
from omm_mlff.students.pairs import complete_pairs
from omm_mlff.students.student import Student

Float = NDArray[np.float64]


def student_function(
    student: Student, species: NDArray[np.int64], *, references: bool = False
) -> EnergyFunction:
    """Energies and forces of a student, for sampling and for checks after training.

    Parameters
    ----------
    student : its network may be float32; displacements are formed in float64
    species : shape (n_atoms,), atomic numbers
    references : whether the atomic reference energies are part of the energy
    """
    numbers = torch.tensor(np.asarray(species), dtype=torch.int64)
    n_atoms = len(numbers)
    shift = float(student.reference_energy(numbers).sum()) if references else 0.0

    def evaluate(positions: Float) -> tuple[Float, Float]:
        n_copies = len(positions)
        idx_i, idx_j = complete_pairs(n_atoms, n_copies)
        x = torch.tensor(positions.reshape(-1, 3), dtype=torch.float64, requires_grad=True)
        atomic = student.interaction(
            numbers.repeat(n_copies), idx_i, idx_j, x[idx_j] - x[idx_i], n_atoms - 1
        )
        (gradient,) = torch.autograd.grad(atomic.sum(), x)
        energies = atomic.detach().view(n_copies, n_atoms).sum(1) + shift
        return energies.numpy(), -gradient.view(n_copies, n_atoms, 3).numpy()

    return evaluate
