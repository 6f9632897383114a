"""The teacher on many structures of different molecules at once, in float32.

Padded with atoms of number 0, the eight networks as stacked matrices: twice as fast as `Teacher`
on one molecule, more on small ones. The atoms' self energies, which float32 could not carry, are
added in float64; what is left of rounding is 1e-4 eV and 1e-4 eV/angstrom.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omm_mlff.teachers.ani import TEACHER_SPECIES, load_ensemble
from omm_mlff.units import EV_PER_HARTREE

Float = NDArray[np.float64]

_ATOMS_PER_BATCH = 1500


@dataclass(frozen=True, eq=False)
class MixedLabels:
    """What the teacher says of padded structures.

    Attributes
    ----------
    energies : shape (n_frames,), eV, self energies included
    forces : shape (n_frames, n_max, 3), eV/angstrom, 0 on padding
    atomic : shape (n_frames, n_max), eV, each atom's share without its self energy, 0 on padding
    """

    energies: Float
    forces: Float
    atomic: Float


class MixedTeacher:
    """ANI-1ccx, or one of its eight networks, on padded structures.

    Parameters
    ----------
    networks : which of the eight are averaged; all is the teacher, one is for dynamics

    Raises
    ------
    MissingPackageError : torchani is not installed
    """

    def __init__(self, networks: tuple[int, ...] = tuple(range(8))) -> None:
        ensemble = load_ensemble()
        # Taken before the cast: in float32 they lose half a meV.
        self_energies = ensemble.energy_shifter.self_energies.double().numpy() * EV_PER_HARTREE
        self._self_energies = np.zeros(max(TEACHER_SPECIES) + 1)
        self._self_energies[list(TEACHER_SPECIES)] = self_energies
        ensemble = ensemble.to(torch.float32).requires_grad_(False)
        self._aev: Any = ensemble.aev_computer
        members = [list(ensemble.neural_networks[k].values()) for k in networks]
        self._layers = [
            [
                (
                    torch.stack([member[element][row].weight.T for member in members]).contiguous(),
                    torch.stack([member[element][row].bias for member in members]).unsqueeze(1),
                )
                for row in (0, 2, 4, 6)
            ]
            for element in range(len(TEACHER_SPECIES))
        ]
        self._index = torch.full((max(TEACHER_SPECIES) + 1,), -1, dtype=torch.int64)
        self._index[list(TEACHER_SPECIES)] = torch.arange(len(TEACHER_SPECIES))

    def label(self, species: NDArray[np.int64], positions: Float) -> MixedLabels:
        """Energies, their shares by atom, and forces.

        Parameters
        ----------
        species : shape (n_frames, n_max), atomic numbers, 0 for padding
        positions : shape (n_frames, n_max, 3), angstrom
        """
        n_frames, n_max = species.shape
        forces = np.zeros((n_frames, n_max, 3))
        atomic = np.zeros((n_frames, n_max))
        size = max(1, _ATOMS_PER_BATCH // n_max)
        for start in range(0, n_frames, size):
            rows = slice(start, start + size)
            x = torch.tensor(positions[rows], dtype=torch.float32, requires_grad=True)
            share = self._atomic(self._index[torch.from_numpy(species[rows])], x)
            (gradient,) = torch.autograd.grad(share.sum(), x)
            forces[rows] = -EV_PER_HARTREE * gradient.double().numpy()
            atomic[rows] = EV_PER_HARTREE * share.detach().double().numpy()
        energies = atomic.sum(1) + self._self_energies[species].sum(1)
        return MixedLabels(energies, forces, atomic)

    def _atomic(self, index: Tensor, x: Tensor) -> Tensor:
        aev = self._aev((index, x)).aevs.flatten(0, 1)
        flat = index.flatten()
        shares, rows = [], []
        for element, layers in enumerate(self._layers):
            (members,) = (flat == element).nonzero(as_tuple=True)
            h = aev.index_select(0, members).expand(len(layers[0][0]), -1, -1)
            for weight, bias in layers[:-1]:
                h = torch.celu(torch.baddbmm(bias, h, weight), 0.1)
            weight, bias = layers[-1]
            shares.append(torch.baddbmm(bias, h, weight).mean(0).squeeze(-1))
            rows.append(members)
        total = torch.zeros(len(flat), dtype=x.dtype)
        return total.index_add(0, torch.cat(rows), torch.cat(shares)).view(index.shape)
