"""A student: the prior plus a network, with the atomic reference energies kept apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from omm_mlff.students.painn import PaiNN, sum_over_neighbors
from omm_mlff.students.prior import RepulsionPrior

_N_ELEMENTS = 119
_TINY_SQUARED = 1.0e-12
"""Keeps the gradient of a distance finite for atoms at one place; below float32's resolution."""


@dataclass(frozen=True)
class StudentConfig:
    """The shape of a student; everything needed to build it before its weights are loaded.

    Attributes
    ----------
    species : atomic numbers that it knows
    norm_epsilon : of the network's norms, see `painn`
    """

    name: str
    n_features: int
    n_layers: int
    n_radial: int
    n_readout: int
    cutoff_angstrom: float = 5.0
    species: tuple[int, ...] = (1, 6, 7, 8)
    norm_epsilon: float = 0.1


STUDENT_CONFIGS = {
    config.name: config
    for config in (
        StudentConfig("original", n_features=128, n_layers=2, n_radial=20, n_readout=128),
        StudentConfig("tiny", n_features=52, n_layers=2, n_radial=20, n_readout=68),
        StudentConfig("ultra-tiny", n_features=24, n_layers=2, n_radial=20, n_readout=84),
    )
}


class Student(nn.Module):
    """E = prior + network + atomic reference energies, in eV and angstrom.

    The reference energies are never added to the rest inside a float32 number: `interaction` leaves
    them out, `reference_energy` gives their sum in float64.
    """

    if TYPE_CHECKING:
        species_index: Tensor
        reference_energies: Tensor

    __jit_unused_properties__ = ("n_parameters", "dtype")

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.prior = RepulsionPrior(config.cutoff_angstrom)
        self.network = PaiNN(
            n_species=len(config.species),
            n_features=config.n_features,
            n_layers=config.n_layers,
            n_radial=config.n_radial,
            n_readout=config.n_readout,
            cutoff_angstrom=config.cutoff_angstrom,
            norm_epsilon=config.norm_epsilon,
        )
        index = torch.full((_N_ELEMENTS,), -1, dtype=torch.int64)
        index[list(config.species)] = torch.arange(len(config.species))
        self.register_buffer("species_index", index, persistent=False)
        self.register_buffer(
            "reference_energies", torch.zeros(len(config.species), dtype=torch.float64)
        )
        self.tiny_squared = _TINY_SQUARED
        self.config = config

    @property
    def n_parameters(self) -> int:
        """Trained parameters; buffers such as the reference energies do not count."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's parameters."""
        return self.network.readout_mix.weight.dtype

    @torch.jit.export
    def interaction(
        self, species: Tensor, idx_i: Tensor, idx_j: Tensor, r_ij: Tensor, n_neighbors: int = 0
    ) -> Tensor:
        """Energy per atom without the atomic reference energies.

        Parameters
        ----------
        species : shape (n_atoms,), atomic numbers
        idx_i, idx_j : shape (n_pairs,), int64, every pair in both directions
        r_ij : shape (n_pairs, 3), angstrom, from i to j
        n_neighbors : greater than 0 promises that pairs are sorted by `idx_i` with this many each

        Returns
        -------
        shape (n_atoms,), float64, eV
        """
        d_ij = torch.sqrt((r_ij * r_ij).sum(-1) + self.tiny_squared)
        repulsion = self.prior(species, idx_i, idx_j, d_ij).to(torch.float64)
        dtype = self.network.readout_mix.weight.dtype
        energy: Tensor = self.network(
            self.species_index[species],
            idx_i,
            idx_j,
            r_ij.to(dtype),
            d_ij.to(dtype),
            n_neighbors,
        )
        n_atoms = species.shape[0]
        return energy.double() + sum_over_neighbors(repulsion, idx_i, n_atoms, n_neighbors)

    @torch.jit.export
    def reference_energy(self, species: Tensor) -> Tensor:
        """Atomic reference energy of each atom, shape (n_atoms,), float64, eV."""
        return self.reference_energies[self.species_index[species]]

    def forward(
        self, species: Tensor, idx_i: Tensor, idx_j: Tensor, r_ij: Tensor, n_neighbors: int = 0
    ) -> Tensor:
        """Total energy per atom, reference energies included; see `interaction`."""
        energy = self.interaction(species, idx_i, idx_j, r_ij, n_neighbors)
        return energy + self.reference_energy(species)
