"""A student's network on padded frames, as matrix products: the form that trains fast on a GPU.

The numbers are those of `PaiNN.forward`. A message, summed over neighbours j,

    sum_j sum_r B_r(d_ij) W_rf x_jf  =  sum_(j,r) B[i, (j,r)] (W_rf x_jf)[(j,r), f],

is one product of matrices a frame, in which nothing of the size of pairs times features is ever
stored, gathered or scattered. Every shape is fixed by the batch's layout, and nothing waits for the
device, so that a step of training can be recorded once as a CUDA graph and replayed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from omm_mlff.students.painn import Message, PaiNN, Update, smooth_norm
from omm_mlff.students.radial import envelope


@dataclass(frozen=True)
class Slab:
    """Frames of a batch that are padded to one size; slabs lie one after another in its atoms."""

    n_frames: int
    n_atoms: int

    @property
    def n_rows(self) -> int:
        """Its atoms in the batch, padding counted."""
        return self.n_frames * self.n_atoms


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What the messages of a slab need of its geometry.

    Attributes
    ----------
    scalar : shape (n_frames, n_atoms, n_atoms * (n_radial + 1)), the radial basis and a constant,
        both times the envelope and the messages' scale; 0 for pairs that do not see each other
    vector : shape (n_frames, 3 * n_atoms, n_atoms * (n_radial + 1)), the same times the unit
        vectors from i to j
    """

    scalar: Tensor
    vector: Tensor


def by_slab(values: Tensor, slabs: list[Slab]) -> list[Tensor]:
    """What belongs to the atoms of each slab: (n_frames, n_atoms, ...)."""
    # A split's gradient is one concatenation; that of a slice would be as long as the batch.
    parts = torch.split(values, [slab.n_rows for slab in slabs])
    return [
        part.view(slab.n_frames, slab.n_atoms, *values.shape[1:])
        for part, slab in zip(parts, slabs, strict=True)
    ]


def surroundings(network: PaiNN, positions: Tensor, real: Tensor) -> Surroundings:
    """The geometry of a slab.

    Parameters
    ----------
    positions : shape (n_frames, n_atoms, 3), angstrom
    real : shape (n_frames, n_atoms), whether an atom is no padding
    """
    n_frames, n, _ = positions.shape
    r_ij = positions.unsqueeze(1) - positions.unsqueeze(2)
    apart = ~torch.eye(n, dtype=torch.bool, device=positions.device)
    seen = real.unsqueeze(1) & real.unsqueeze(2) & apart
    # What is no pair is set far outside the cutoff, where every function is 0 and smooth.
    r_ij = r_ij.masked_fill(~seen.unsqueeze(-1), 4.0 * network.cutoff)
    d_ij = torch.sqrt((r_ij * r_ij).sum(-1))
    scale = cast(Message, network.messages[0]).scale
    decay = (envelope(d_ij / network.cutoff) * scale).unsqueeze(-1)
    radial = math.sqrt(2.0 / network.cutoff) * torch.sin(
        d_ij.unsqueeze(-1) * network.basis.wave_numbers.to(d_ij.dtype)
    )
    inverse = (1.0 / d_ij).unsqueeze(-1)
    basis = torch.cat([radial * inverse * decay, decay], dim=-1)  # (n_frames, n, n, n_radial + 1)
    unit = (r_ij * inverse).transpose(2, 3)  # (n_frames, n, 3, n)
    vector = unit.unsqueeze(-1) * basis.unsqueeze(2)
    return Surroundings(basis.reshape(n_frames, n, -1), vector.reshape(n_frames, 3 * n, -1))


def atomic_energies(
    network: PaiNN, species_index: Tensor, positions: Tensor, real: Tensor, slabs: list[Slab]
) -> Tensor:
    """What the network gives each atom, shape (n_atoms,), eV, 0 on padding.

    Parameters
    ----------
    species_index : shape (n_atoms,), row of the embedding; any on padding
    positions : shape (n_atoms, 3), angstrom
    real : shape (n_atoms,), whether an atom is no padding
    slabs : which atoms make a frame
    """
    around = [
        surroundings(network, x, present)
        for x, present in zip(by_slab(positions, slabs), by_slab(real, slabs), strict=True)
    ]
    # A sum instead of a look-up, whose gradient would be scattered.
    kinds = torch.arange(network.embedding.num_embeddings, device=positions.device)
    which = (species_index.unsqueeze(-1) == kinds).to(positions.dtype)
    s = (which.unsqueeze(-1) * network.embedding.weight).sum(1)
    v: Tensor | None = None
    for message, update in zip(network.messages, network.updates, strict=True):
        s, v = _message(cast(Message, message), s, v, around, slabs)
        s, v = cast(Update, update)(s, v)
    norm = smooth_norm(network.readout_mix(v), network.norm_epsilon)
    energy: Tensor = network.readout(torch.cat([s, norm], dim=-1)).squeeze(-1)
    return energy * real.to(energy.dtype)


def _message(
    message: Message,
    s: Tensor,
    v: Tensor | None,
    around: list[Surroundings],
    slabs: list[Slab],
) -> tuple[Tensor, Tensor]:
    n_atoms, n_features = s.shape
    phi = message.phi(s)
    weight = torch.cat([message.filter.weight.t(), message.filter.bias.unsqueeze(0)])
    for_s, along_v, along_r = torch.split(phi, n_features, dim=-1)
    w_s, w_v, w_r = torch.split(weight, n_features, dim=-1)  # (n_radial + 1, n_features) each
    if v is None:  # no vectors before the first message
        sent, filters = for_s, w_s
    else:
        sent = torch.cat([for_s, (along_v.unsqueeze(1) * v).flatten(1)], dim=-1)
        filters = torch.cat([w_s, w_v, w_v, w_v], dim=-1)
    scalars, vectors = [], []
    for geometry, one, other in zip(
        around, by_slab(sent, slabs), by_slab(along_r, slabs), strict=True
    ):
        scalars.append(_received(geometry.scalar, one, filters))
        vectors.append(_received(geometry.vector, other, w_r))
    received = torch.cat(scalars)
    dv = torch.cat(vectors).view(n_atoms, 3, n_features)
    if v is None:
        return s + received, dv
    ds, carried = torch.split(received, [n_features, 3 * n_features], dim=-1)
    return s + ds, v + dv + carried.view(n_atoms, 3, n_features)


def _received(geometry: Tensor, sent: Tensor, filters: Tensor) -> Tensor:
    """Messages of one slab: (n_frames * n_rows, n_columns)."""
    spread = sent.unsqueeze(2) * filters  # (n_frames, n_atoms, n_radial + 1, n_columns)
    return torch.bmm(geometry, spread.flatten(1, 2)).flatten(0, 1)
