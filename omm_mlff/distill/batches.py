"""Labelled frames of many molecules as flat tensors, from which batches are cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omm_mlff.distill.frames import LabelledFrames
from omm_mlff.students.pairs import complete_pairs
from omm_mlff.students.student import Student

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Batch:
    """Some frames, laid one after another.

    Attributes
    ----------
    species_index : shape (n_atoms,), row of the student's embedding
    positions : shape (n_atoms, 3), angstrom, float32
    idx_i, idx_j : shape (n_pairs,), directed, inside the cutoff
    frame : shape (n_atoms,), which frame of the batch an atom belongs to
    n_atoms_of : shape (n_frames,), float32
    forces : shape (n_atoms, 3), label minus prior, eV/angstrom
    energies : shape (n_frames,), label minus prior minus references, eV
    weights : shape (n_frames,), of the frames in the loss
    """

    species_index: Tensor
    positions: Tensor
    idx_i: Tensor
    idx_j: Tensor
    frame: Tensor
    n_atoms_of: Tensor
    forces: Tensor
    energies: Tensor
    weights: Tensor


class FrameStore:
    """All frames of a training in flat tensors; the prior is taken off once, in float64.

    Parameters
    ----------
    student : gives the prior, the cutoff and the order of species; its reference energies are set
    labelled : frames of any molecules
    force_scale : a frame whose largest force is F weighs 1 / (1 + F / force_scale): walls are
        learnt, and do not drown the thermal region
    """

    def __init__(
        self, student: Student, labelled: list[LabelledFrames], force_scale: float = 10.0
    ) -> None:
        index, positions, forces, energies, weights = [], [], [], [], []
        pairs_i, pairs_j, n_atoms, n_pairs = [], [], [], []
        self.molecule: list[str] = []
        cutoff = student.config.cutoff_angstrom
        rows = student.get_buffer("species_index")
        for item in labelled:
            frames = item.frames
            if frames.n_frames == 0:
                continue
            species = torch.tensor(frames.species)
            prior_energy, prior_forces = prior_labels(student, frames.species, frames.positions)
            reference = float(student.reference_energy(species).sum())
            residual = item.forces - prior_forces
            index.append(rows.index_select(0, species).repeat(frames.n_frames))
            positions.append(torch.tensor(frames.positions.reshape(-1, 3), dtype=torch.float32))
            forces.append(torch.tensor(residual.reshape(-1, 3), dtype=torch.float32))
            energies.append(torch.tensor(item.energies - prior_energy - reference))
            strongest = np.linalg.norm(item.forces, axis=-1).max(1)
            weights.append(torch.tensor(1.0 / (1.0 + strongest / force_scale)))
            i, j = complete_pairs(frames.n_atoms)
            d = np.linalg.norm(frames.positions[:, j] - frames.positions[:, i], axis=-1)
            frame, column = np.nonzero(d < cutoff)
            pairs_i.append(i[column].to(torch.int32))
            pairs_j.append(j[column].to(torch.int32))
            n_pairs.append(torch.tensor(np.bincount(frame, minlength=frames.n_frames)))
            n_atoms.append(torch.full((frames.n_frames,), frames.n_atoms))
            self.molecule += [frames.molecule] * frames.n_frames
        self.species_index = torch.cat(index)
        self.positions = torch.cat(positions)
        self.forces = torch.cat(forces)
        self.energies = torch.cat(energies).to(torch.float32)
        self.weights = torch.cat(weights).to(torch.float32)
        self.pairs_i = torch.cat(pairs_i)
        self.pairs_j = torch.cat(pairs_j)
        self.n_atoms = torch.cat(n_atoms)
        self.n_pairs = torch.cat(n_pairs)
        self.first_atom = torch.cumsum(self.n_atoms, 0) - self.n_atoms
        self.first_pair = torch.cumsum(self.n_pairs, 0) - self.n_pairs

    @property
    def n_frames(self) -> int:
        return len(self.n_atoms)

    def batch(self, rows: Tensor) -> Batch:
        """The frames of the given rows, shape (n,), int64."""
        n_atoms, n_pairs = self.n_atoms[rows], self.n_pairs[rows]
        atoms, frame = _ragged(self.first_atom[rows], n_atoms)
        pairs, pair_frame = _ragged(self.first_pair[rows], n_pairs)
        shift = (torch.cumsum(n_atoms, 0) - n_atoms)[pair_frame]
        return Batch(
            self.species_index[atoms],
            self.positions[atoms],
            self.pairs_i[pairs].to(torch.int64) + shift,
            self.pairs_j[pairs].to(torch.int64) + shift,
            frame,
            n_atoms.to(torch.float32),
            self.forces[atoms],
            self.energies[rows],
            self.weights[rows],
        )


def prior_labels(
    student: Student, species: NDArray[np.int64], positions: Float
) -> tuple[Float, Float]:
    """Energies (n_frames,) and forces (n_frames, n_atoms, 3) of the prior alone, float64."""
    n_atoms = len(species)
    energies = np.empty(len(positions))
    forces = np.empty(positions.shape)
    for start in range(0, len(positions), 500):
        part = positions[start : start + 500]
        idx_i, idx_j = complete_pairs(n_atoms, len(part))
        x = torch.tensor(part.reshape(-1, 3), dtype=torch.float64, requires_grad=True)
        d_ij = torch.linalg.vector_norm(x[idx_j] - x[idx_i], dim=-1)
        numbers = torch.tensor(np.asarray(species)).repeat(len(part))
        pair = student.prior(numbers, idx_i, idx_j, d_ij)
        per_frame = pair.view(len(part), -1).sum(1)
        (gradient,) = torch.autograd.grad(per_frame.sum(), x)
        energies[start : start + 500] = per_frame.detach().numpy()
        forces[start : start + 500] = -gradient.view(part.shape).numpy()
    return energies, forces


def _ragged(first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Indices first, first + 1, ... of every group, and the group of each."""
    group = torch.repeat_interleave(torch.arange(len(count)), count)
    start = torch.cumsum(count, 0) - count
    inside = torch.arange(len(group)) - start[group]
    return first[group] + inside, group
