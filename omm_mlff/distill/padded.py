"""Packed frames on a device, padded by size classes, with the prior taken off their labels."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omm_mlff.distill.library import TEST, VALIDATION, library
from omm_mlff.distill.packed import SOURCES, STRATA, PackedFrames, PackedScale
from omm_mlff.students.pairs import complete_pairs
from omm_mlff.students.student import Student

Float = NDArray[np.float64]

MAIN_SHARE = {
    "water": 0.04,
    "methane": 0.05,
    "ethanol": 0.15,
    "benzene": 0.14,
    "alanine": 0.27,
    "alanine-dipeptide": 0.35,
}
"""Of the draws that go to what students are asked to serve first: the harder, the more."""

GROUP_SHARE = {
    "main": 0.26,
    "single": 0.34,
    "varied": 0.08,
    "pair": 0.13,
    "cluster": 0.09,
    "wall": 0.10,
}
"""Of all draws; a group that the data lack gives its share to the others."""

HELD_OUT_SHARE = 0.04
"""Of the trajectories of every molecule that is trained on."""


@dataclass(frozen=True, eq=False)
class SizeClass:
    """Frames padded to one number of atoms.

    Attributes
    ----------
    row : shape (n_frames,), of the frame in its pack
    species_index : shape (n_frames, n_atoms), row of the embedding, 0 on padding
    real : shape (n_frames, n_atoms), whether an atom is no padding
    positions : shape (n_frames, n_atoms, 3), angstrom
    forces : shape (n_frames, n_atoms, 3), label minus prior, eV/angstrom, 0 on padding
    energies : shape (n_frames,), label minus prior minus references, eV
    atomic : shape (n_frames, n_atoms), the same by atoms where the teacher made the label
    has_atomic : shape (n_frames,), 1 where it did, else 0
    weights : shape (n_frames,), of the frames in the loss
    """

    row: NDArray[np.int64]
    species_index: Tensor
    real: Tensor
    positions: Tensor
    forces: Tensor
    energies: Tensor
    atomic: Tensor
    has_atomic: Tensor
    weights: Tensor

    @property
    def n_frames(self) -> int:
        return len(self.row)

    @property
    def n_atoms(self) -> int:
        return int(self.real.shape[1])


def roles(frames: PackedFrames, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Frames held out by their trajectory, and those of molecules held out whole.

    Returns
    -------
    shape (n_frames,) each, masks that do not overlap; the rest is trained on. Frames of a test
    molecule are an error of whoever packed them.

    Raises
    ------
    ValueError : frames of a test molecule
    """
    role = {entry.smiles: entry.role for entry in library()}
    of_name = [role.get(str(name)) for name in frames.names]
    if TEST in of_name:
        raise ValueError(f"{frames.names[of_name.index(TEST)]} is held out; pack without it")
    unseen = np.array([r == VALIDATION for r in of_name], dtype=bool)[frames.molecule]
    keys = frames.molecule.astype(np.int64) * 2**32 + frames.trajectory
    unique, inverse = np.unique(keys, return_inverse=True)
    draws = np.array([zlib.crc32(f"{seed}/{key}".encode()) / 2**32 for key in unique.tolist()])
    return (draws < HELD_OUT_SHARE)[inverse] & ~unseen, unseen


def groups(frames: PackedFrames) -> NDArray[np.str_]:
    """The group of `GROUP_SHARE` that each frame belongs to."""
    names = frames.names[frames.molecule]
    known = {entry.smiles for entry in library()}
    of_name = np.array(
        [
            "main"
            if name in MAIN_SHARE
            else "single"
            if name in known
            else "cluster"
            if "*" in name
            else "pair"
            for name in frames.names.tolist()
        ]
    )[frames.molecule]
    stratum = np.array(STRATA)[frames.stratum]
    teacher = np.array(SOURCES)[frames.source] == "teacher"
    found = np.where(stratum == "varied", "varied", of_name)
    contact = (stratum == "approach") & teacher & (np.char.find(names, ".") >= 0)
    wall = ~np.isin(stratum, ("thermal", "varied")) & ~contact
    return np.where(wall, "wall", found)


def draw_probability(frames: PackedFrames, rows: NDArray[np.bool_]) -> Float:
    """How often each frame is drawn: shape (n_frames,), 0 outside `rows`, sum 1."""
    group = groups(frames)
    probability = np.zeros(frames.n_frames)
    for name, share in GROUP_SHARE.items():
        mine = rows & (group == name)
        if not mine.any():
            continue
        molecules, which, counts = np.unique(
            frames.molecule[mine], return_inverse=True, return_counts=True
        )
        if name == "main":
            of_molecule = np.array([MAIN_SHARE[str(frames.names[m])] for m in molecules])
        else:
            of_molecule = np.sqrt(counts)
        probability[mine] = share * (of_molecule / of_molecule.sum() / counts)[which]
    return np.asarray(probability / probability.sum())


def size_limits(n_atoms: NDArray[np.int64], weight: Float, n_classes: int) -> list[int]:
    """Where sizes are parted so that padding, in pairs, costs least: the largest size of each."""
    sizes = np.unique(n_atoms)
    mass = np.array([weight[n_atoms == n].sum() for n in sizes])
    total = np.append(0.0, np.cumsum(mass))
    best = np.full((n_classes + 1, len(sizes) + 1), np.inf)
    cut = np.zeros(best.shape, dtype=int)
    best[0, 0] = 0.0
    for k in range(1, n_classes + 1):
        for last in range(1, len(sizes) + 1):
            for first in range(last):
                cost = best[k - 1, first] + (total[last] - total[first]) * (
                    sizes[last - 1] ** 2 + 8.0 * sizes[last - 1]
                )
                if cost < best[k, last]:
                    best[k, last], cut[k, last] = cost, first
    k = int(np.argmin(best[:, len(sizes)]))
    limits, last = [], len(sizes)
    while last:
        limits.append(int(sizes[last - 1]))
        last, k = int(cut[k, last]), k - 1
    return limits[::-1]


def padded(
    frames: PackedFrames,
    rows: NDArray[np.int64],
    limits: list[int],
    student: Student,
    scale: PackedScale,
    device: torch.device,
    force_scale: float = 10.0,
) -> list[SizeClass]:
    """The frames of `rows` in one class for each limit; a class may be empty.

    Parameters
    ----------
    limits : largest number of atoms of each class, ascending
    student : gives the prior and the order of species; its reference energies are set
    force_scale : a frame whose largest force is F weighs 1 / (1 + F / force_scale)
    """
    first = np.cumsum(frames.n_atoms, dtype=np.int64) - frames.n_atoms
    made, low = [], 0
    for high in limits:
        mine = rows[(frames.n_atoms[rows] > low) & (frames.n_atoms[rows] <= high)]
        made.append(_class(frames, mine, first[mine], high, student, scale, device, force_scale))
        low = high
    return made


def _class(
    frames: PackedFrames,
    rows: NDArray[np.int64],
    first: NDArray[np.int64],
    n: int,
    student: Student,
    scale: PackedScale,
    device: torch.device,
    force_scale: float,
) -> SizeClass:
    slot = np.arange(n)[None]
    real = np.asarray(slot < frames.n_atoms[rows][:, None])
    atom = np.where(real, first[:, None] + slot, 0)
    species = np.where(real, frames.species[atom], 0).astype(np.int64)
    positions = np.where(real[..., None], frames.positions[atom] * scale.grid, 0.0)
    forces = np.where(real[..., None], frames.forces[atom].astype(np.float64), 0.0)
    atomic = np.where(real, frames.atomic[atom].astype(np.float64), 0.0)
    strongest = np.linalg.norm(forces, axis=-1).max(1, initial=0.0)
    index = student.get_buffer("species_index").cpu().numpy()[species]
    index = np.where(real, index, 0)
    prior_atomic, prior_forces = _prior(student, species, positions, real, device)
    reference = np.where(real, student.reference_energies.cpu().numpy()[index], 0.0)
    own = np.where(real, scale.self_energies[species], 0.0)
    has_atomic = np.isfinite(atomic).all(1)

    def tensor(values: NDArray[Any], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device=device, dtype=dtype)

    return SizeClass(
        rows,
        tensor(index, torch.int64),
        tensor(np.asarray(real), torch.bool),
        tensor(positions),
        tensor(forces - prior_forces),
        tensor(frames.energies[rows] - (reference + prior_atomic).sum(1)),
        tensor(np.where(real, np.nan_to_num(atomic) + own - reference - prior_atomic, 0.0)),
        tensor(np.asarray(has_atomic)),
        tensor(1.0 / (1.0 + strongest / force_scale)),
    )


def _prior(
    student: Student,
    species: NDArray[np.int64],
    positions: Float,
    real: NDArray[np.bool_],
    device: torch.device,
) -> tuple[Float, Float]:
    """Energies by atoms and forces of the prior alone, in float64, on the device."""
    n_frames, n = species.shape
    energies, forces = np.zeros((n_frames, n)), np.zeros((n_frames, n, 3))
    if n < 2:
        return energies, forces
    prior = student.prior.to(device)
    # Padding has no charge; it only must not sit on another atom.
    apart = np.where(real[..., None], positions, 1000.0 * (1.0 + np.arange(n))[None, :, None])
    step = max(1, 2_000_000 // n**2)
    for start in range(0, n_frames, step):
        part = slice(start, start + step)
        count = len(species[part])
        idx_i, idx_j = (index.to(device) for index in complete_pairs(n, count))
        x = torch.tensor(apart[part].reshape(-1, 3), device=device, requires_grad=True)
        d_ij = torch.linalg.vector_norm(x[idx_j] - x[idx_i], dim=-1)
        pair = prior(torch.tensor(species[part].reshape(-1), device=device), idx_i, idx_j, d_ij)
        (gradient,) = torch.autograd.grad(pair.sum(), x)
        energies[part] = pair.detach().view(count, n, n - 1).sum(-1).cpu().numpy()
        forces[part] = -gradient.view(count, n, 3).cpu().numpy()
    return energies, forces


def draw_table(probability: Float, n_draws: int, seed: int) -> NDArray[np.int64]:
    """Frames in the order in which they are drawn, each as often as its probability says.

    Parameters
    ----------
    probability : shape (n_frames,), of any sum

    Returns
    -------
    shape (n_draws,)
    """
    rng = np.random.default_rng(seed)
    edges = np.cumsum(probability) / probability.sum() * n_draws
    edges[-1] = n_draws
    ticks = np.searchsorted(edges, np.arange(n_draws) + rng.random(), side="right")
    return rng.permutation(np.minimum(ticks, len(probability) - 1))
