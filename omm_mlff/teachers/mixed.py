"""The teacher on many structures of different molecules at once, in float32, on any device.

Padded with atoms of number 0, the eight networks as stacked matrices, and its descriptors written
out in torch, so that it runs where torchani is not installed: `teacher_tensors` takes the numbers
out of torchani, a file of them travels. Several times as fast as `Teacher`. The atoms' self
energies, which float32 could not carry, are added in float64; what is left of rounding is 1e-4 eV
and 1e-4 eV/angstrom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omm_mlff.teachers.ani import TEACHER_SPECIES, load_ensemble
from omm_mlff.units import EV_PER_HARTREE

Float = NDArray[np.float64]

_RADIAL_CUTOFF, _ANGULAR_CUTOFF = 5.2, 3.5
_ATOMS_PER_BATCH = 1500
_LAYERS = (0, 2, 4, 6)


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


def teacher_tensors() -> dict[str, Tensor]:
    """All numbers of ANI-1ccx, by name.

    Raises
    ------
    MissingPackageError : torchani is not installed
    """
    ensemble = load_ensemble()
    computer = ensemble.aev_computer
    tensors = {
        "self_energies": ensemble.energy_shifter.self_energies.double().clone(),
        "eta_r": computer.EtaR.flatten(),
        "shift_r": computer.ShfR.flatten(),
        "eta_a": computer.EtaA.flatten(),
        "shift_a": computer.ShfA.flatten(),
        "zeta": computer.Zeta.flatten(),
        "shift_z": computer.ShfZ.flatten(),
    }
    members = [list(network.values()) for network in ensemble.neural_networks]
    for element in range(len(TEACHER_SPECIES)):
        for row in _LAYERS:
            layers = [member[element][row] for member in members]
            tensors[f"{element}.{row}.weight"] = torch.stack([x.weight.detach().T for x in layers])
            tensors[f"{element}.{row}.bias"] = torch.stack([x.bias.detach() for x in layers])
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


class MixedTeacher:
    """ANI-1ccx, or some of its eight networks, on padded structures.

    Parameters
    ----------
    networks : which of the eight are averaged; all is the teacher, one is for dynamics
    tensors : see `teacher_tensors`, which None calls
    device : where it computes
    """

    def __init__(
        self,
        networks: tuple[int, ...] = tuple(range(8)),
        tensors: dict[str, Tensor] | None = None,
        device: torch.device | None = None,
    ) -> None:
        tensors = teacher_tensors() if tensors is None else tensors
        self.device = torch.device("cpu") if device is None else device
        self.self_energies = np.zeros(max(TEACHER_SPECIES) + 1)
        self.self_energies[list(TEACHER_SPECIES)] = (
            tensors["self_energies"].numpy() * EV_PER_HARTREE
        )
        self._shape = {
            name: tensors[name].to(self.device, torch.float32)
            for name in ("eta_r", "shift_r", "eta_a", "shift_a", "shift_z")
        }
        self._zeta = float(tensors["zeta"])
        chosen = list(networks)
        self._layers = [
            [
                (
                    tensors[f"{k}.{row}.weight"][chosen].to(self.device, torch.float32),
                    tensors[f"{k}.{row}.bias"][chosen].unsqueeze(1).to(self.device, torch.float32),
                )
                for row in _LAYERS
            ]
            for k in range(len(TEACHER_SPECIES))
        ]
        index = torch.full((max(TEACHER_SPECIES) + 1,), -1, dtype=torch.int64)
        index[list(TEACHER_SPECIES)] = torch.arange(len(TEACHER_SPECIES))
        self._index = index.to(self.device)
        n = len(TEACHER_SPECIES)
        pair = torch.zeros((n, n), dtype=torch.int64)
        first, second = torch.triu_indices(n, n)
        pair[first, second] = pair[second, first] = torch.arange(len(first))
        self._pair = pair.to(self.device)

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
            share, force = self.evaluate(
                torch.from_numpy(species[rows]).to(self.device),
                torch.tensor(positions[rows], dtype=torch.float32, device=self.device),
            )
            forces[rows], atomic[rows] = force.cpu().numpy(), share.cpu().numpy()
        energies = atomic.sum(1) + self.self_energies[species].sum(1)
        return MixedLabels(energies, forces, atomic)

    def evaluate(self, species: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The same in tensors on the device: shares of atoms (n_frames, n_max), eV, and forces."""
        x = positions.detach().requires_grad_(True)
        share = self._atomic(self._index[species], x)
        (gradient,) = torch.autograd.grad(share.sum(), x)
        return EV_PER_HARTREE * share.detach(), -EV_PER_HARTREE * gradient

    def _atomic(self, index: Tensor, x: Tensor) -> Tensor:
        flat = index.flatten()
        aev = self._descriptors(index, x)
        shares, rows = [], []
        for element, layers in enumerate(self._layers):
            (members,) = (flat == element).nonzero(as_tuple=True)
            h = aev.index_select(0, members).expand(len(layers[0][0]), -1, -1)
            for weight, bias in layers[:-1]:
                h = torch.celu(torch.baddbmm(bias, h, weight), 0.1)
            weight, bias = layers[-1]
            shares.append(torch.baddbmm(bias, h, weight).mean(0).squeeze(-1))
            rows.append(members)
        total = torch.zeros(len(flat), dtype=x.dtype, device=x.device)
        return total.index_add(0, torch.cat(rows), torch.cat(shares)).view(index.shape)

    def _descriptors(self, index: Tensor, x: Tensor) -> Tensor:
        """Radial and angular terms of each atom, in torchani's order: (n_frames * n_max, 384).

        References
        ----------
        Smith, Isayev & Roitberg, Chem. Sci. 8, 3192 (2017), eqs. 3 and 4.
        """
        n_frames, n = index.shape
        kinds, shape = len(TEACHER_SPECIES), self._shape
        real = index >= 0
        with torch.no_grad():
            d_all = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
            seen = real.unsqueeze(1) & real.unsqueeze(2)
            seen &= ~torch.eye(n, dtype=torch.bool, device=x.device)
            frame, i, j = (seen & (d_all <= _RADIAL_CUTOFF)).nonzero(as_tuple=True)
            idx_i, idx_j = frame * n + i, frame * n + j
            near = seen & (d_all <= _ANGULAR_CUTOFF)
            most = int(near.sum(-1).max())
            order = torch.argsort((~near).to(torch.int8), dim=-1, stable=True)[..., :most]
            there = near.gather(-1, order)
            a, b = torch.triu_indices(most, most, 1, device=x.device)
            frame, i, p = (there[..., a] & there[..., b]).nonzero(as_tuple=True)
            centre = frame * n + i
            one = frame * n + order[frame, i, a[p]]
            other = frame * n + order[frame, i, b[p]]
        where, kind = x.flatten(0, 1), index.flatten()
        d = torch.linalg.vector_norm(where[idx_j] - where[idx_i], dim=-1).unsqueeze(-1)
        radial = 0.25 * torch.exp(-shape["eta_r"] * (d - shape["shift_r"]) ** 2)
        radial = radial * _cosine_cutoff(d, _RADIAL_CUTOFF)
        n_radial = radial.shape[-1]
        summed = torch.zeros((n_frames * n * kinds, n_radial), dtype=x.dtype, device=x.device)
        summed = summed.index_add(0, idx_i * kinds + kind[idx_j], radial)

        to_one, to_other = where[one] - where[centre], where[other] - where[centre]
        d_one = torch.linalg.vector_norm(to_one, dim=-1)
        d_other = torch.linalg.vector_norm(to_other, dim=-1)
        # 0.95: torchani's own, which keeps the angle's derivative finite.
        cosine = 0.95 * (to_one * to_other).sum(-1) / (d_one * d_other)
        sine = torch.sqrt(1.0 - cosine * cosine)
        turned = cosine.unsqueeze(-1) * torch.cos(shape["shift_z"])
        turned = turned + sine.unsqueeze(-1) * torch.sin(shape["shift_z"])
        by_angle = (0.5 * (1.0 + turned)) ** self._zeta
        middle = 0.5 * (d_one + d_other).unsqueeze(-1)
        by_length = torch.exp(-shape["eta_a"] * (middle - shape["shift_a"]) ** 2)
        by_length = by_length * (
            2.0 * _cosine_cutoff(d_one, _ANGULAR_CUTOFF) * _cosine_cutoff(d_other, _ANGULAR_CUTOFF)
        ).unsqueeze(-1)
        angular = (by_length.unsqueeze(-1) * by_angle.unsqueeze(-2)).flatten(-2)
        n_pairs = kinds * (kinds + 1) // 2
        rows = centre * n_pairs + self._pair[kind[one], kind[other]]
        turned_sum = torch.zeros(
            (n_frames * n * n_pairs, angular.shape[-1]), dtype=x.dtype, device=x.device
        ).index_add(0, rows, angular)
        return torch.cat([summed.view(n_frames * n, -1), turned_sum.view(n_frames * n, -1)], -1)


def _cosine_cutoff(distance: Tensor, cutoff: float) -> Tensor:
    return 0.5 * torch.cos(distance * (math.pi / cutoff)) + 0.5
