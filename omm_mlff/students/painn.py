"""PaiNN: a polarizable-atom-interaction network, the body of every student.

Scalars s (n_atoms, F) and vectors v (n_atoms, 3, F) pass messages along pairs. The energy is
invariant under rotation, translation and permutation by construction: vectors enter it only
through their norms and inner products.

Two departures from the paper matter for dynamics. The filter is multiplied by the envelope after
its biases, so that a pair at the cutoff contributes exactly nothing. Every norm is
sqrt(|v|^2 + eps^2) with eps of 0.1: the usual 1e-4 is a cone, and each crossing of its tip kicks
the energy.

References
----------
Schuett, Unke & Gastegger, ICML 2021 (arXiv:2102.03150).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omm_mlff.students.radial import BesselBasis, envelope

MESSAGE_SCALE = 0.3
"""Keeps the sum over about ten neighbours near unit variance."""


def smooth_norm(vectors: Tensor, epsilon: float) -> Tensor:
    """sqrt(|v|^2 + eps^2) over the middle axis: (n, 3, F) -> (n, F)."""
    return torch.sqrt((vectors * vectors).sum(1) + epsilon * epsilon)


def sum_over_neighbors(values: Tensor, idx_i: Tensor, n_atoms: int, n_neighbors: int) -> Tensor:
    """Sum pair values into their first atom.

    Parameters
    ----------
    values : shape (n_pairs, ...)
    idx_i : shape (n_pairs,)
    n_neighbors : greater than 0 promises that pairs are sorted by `idx_i` with this many each;
        the sum is then a reshape, which is faster and deterministic

    Returns
    -------
    shape (n_atoms, ...)
    """
    if n_neighbors > 0:
        return values.view([n_atoms, n_neighbors] + list(values.shape[1:])).sum(1)  # noqa: RUF005
    shape = [n_atoms] + list(values.shape[1:])  # noqa: RUF005 (TorchScript knows no unpacking)
    return torch.zeros(shape, dtype=values.dtype, device=values.device).index_add(0, idx_i, values)


class Message(nn.Module):
    """What an atom receives from its neighbours."""

    def __init__(self, n_features: int, n_radial: int) -> None:
        super().__init__()
        self.n_features = n_features
        self.scale = MESSAGE_SCALE
        self.phi = nn.Sequential(
            nn.Linear(n_features, n_features), nn.SiLU(), nn.Linear(n_features, 3 * n_features)
        )
        self.filter = nn.Linear(n_radial, 3 * n_features)

    def forward(
        self,
        s: Tensor,
        v: Tensor,
        idx_i: Tensor,
        idx_j: Tensor,
        radial: Tensor,
        decay: Tensor,
        unit: Tensor,
        n_neighbors: int,
    ) -> tuple[Tensor, Tensor]:
        n_atoms = s.shape[0]
        weights = self.filter(radial) * (decay * self.scale)  # (n_pairs, 3F)
        x = self.phi(s)[idx_j] * weights
        ds, along_v, along_r = torch.split(x, self.n_features, dim=-1)
        dv = v[idx_j] * along_v.unsqueeze(1) + unit.unsqueeze(-1) * along_r.unsqueeze(1)
        s = s + sum_over_neighbors(ds, idx_i, n_atoms, n_neighbors)
        v = v + sum_over_neighbors(dv, idx_i, n_atoms, n_neighbors)
        return s, v


class Update(nn.Module):
    """Mixes the scalars and vectors of one atom."""

    def __init__(self, n_features: int, norm_epsilon: float) -> None:
        super().__init__()
        self.n_features = n_features
        self.norm_epsilon = norm_epsilon
        self.mix = nn.Linear(n_features, 2 * n_features, bias=False)
        self.gate = nn.Sequential(
            nn.Linear(2 * n_features, n_features),
            nn.SiLU(),
            nn.Linear(n_features, 3 * n_features),
        )

    def forward(self, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        left, right = torch.split(self.mix(v), self.n_features, dim=-1)
        norm = smooth_norm(right, self.norm_epsilon)
        a_vv, a_sv, a_ss = torch.split(
            self.gate(torch.cat([s, norm], dim=-1)), self.n_features, dim=-1
        )
        s = s + a_ss + a_sv * (left * right).sum(1)
        v = v + left * a_vv.unsqueeze(1)
        return s, v


class PaiNN(nn.Module):
    """Energy per atom of a molecule, in eV, without atomic reference energies.

    Parameters
    ----------
    n_species : how many species are embedded
    n_features : width F of scalars and vectors
    n_layers : rounds of message and update
    n_radial : size of the radial basis
    n_readout : width of the readout's hidden layer
    cutoff_angstrom : pairs beyond it contribute nothing
    norm_epsilon : of every norm
    """

    def __init__(
        self,
        n_species: int,
        n_features: int,
        n_layers: int,
        n_radial: int,
        n_readout: int,
        cutoff_angstrom: float,
        norm_epsilon: float,
    ) -> None:
        super().__init__()
        self.n_features = n_features
        self.norm_epsilon = norm_epsilon
        self.cutoff = cutoff_angstrom
        self.embedding = nn.Embedding(n_species, n_features)
        self.basis = BesselBasis(n_radial, cutoff_angstrom)
        self.messages = nn.ModuleList(Message(n_features, n_radial) for _ in range(n_layers))
        self.updates = nn.ModuleList(Update(n_features, norm_epsilon) for _ in range(n_layers))
        self.readout_mix = nn.Linear(n_features, n_features, bias=False)
        self.readout = nn.Sequential(
            nn.Linear(2 * n_features, n_readout), nn.SiLU(), nn.Linear(n_readout, 1)
        )

    def forward(
        self,
        species_index: Tensor,
        idx_i: Tensor,
        idx_j: Tensor,
        r_ij: Tensor,
        d_ij: Tensor,
        n_neighbors: int = 0,
    ) -> Tensor:
        """Energy per atom, shape (n_atoms,), eV.

        Parameters
        ----------
        species_index : shape (n_atoms,), row of the embedding
        idx_i, idx_j : shape (n_pairs,), directed pairs
        r_ij : shape (n_pairs, 3), angstrom, from i to j
        d_ij : shape (n_pairs,), its length
        n_neighbors : see `sum_over_neighbors`
        """
        unit = r_ij / d_ij.unsqueeze(-1)
        radial = self.basis(d_ij)
        decay = envelope(d_ij / self.cutoff).unsqueeze(-1)
        s = self.embedding(species_index)
        v = torch.zeros([s.shape[0], 3, self.n_features], dtype=s.dtype, device=s.device)
        for message, update in zip(self.messages, self.updates):  # noqa: B905 (TorchScript knows no strict)
            s, v = message(s, v, idx_i, idx_j, radial, decay, unit, n_neighbors)
            s, v = update(s, v)
        norm = smooth_norm(self.readout_mix(v), self.norm_epsilon)
        energy: Tensor = self.readout(torch.cat([s, norm], dim=-1)).squeeze(-1)
        return energy
