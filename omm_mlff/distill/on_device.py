"""Dynamics and labels of many structures on a GPU: a data set in a minute, where torchani is not.

Each structure runs by itself, a few thousand to a batch: Langevin dynamics on one network of the
teacher, then the whole ensemble's labels at positions on the pack's grid. What the teacher is not
believed on is dropped. More time gives longer trajectories, not more frames.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omm_mlff.distill.dynamics import ACCELERATION, BOLTZMANN_EV
from omm_mlff.distill.label import BOND_RANGE, CONTACT_RANGE, HEAVY_CONTACT
from omm_mlff.distill.packed import GRID, SOURCES, STRATA, PackedFrames, joined
from omm_mlff.distill.starts import Starts
from omm_mlff.teachers.mixed import MixedTeacher

MASSES = {1: 1.008, 6: 12.011, 7: 14.007, 8: 15.999}
"""Standard atomic weights, dalton (IUPAC 2021, abridged)."""

STRONGEST = 25.0
"""eV/angstrom: a frame with a larger force is dropped."""

TIMESTEP_FS = 1.0
_WARM_STEPS = 60
_FRAMES_PER_TURN = 4
_FIRST_STRIDE = 12
_LONGEST_STRIDE = 60


@dataclass(eq=False)
class _Batch:
    """Structures of like size, padded."""

    rows: NDArray[np.int64]
    species: Tensor
    real: Tensor
    low: Tensor
    high: Tensor
    positions: Tensor
    velocities: Tensor
    masses: Tensor
    temperature: Tensor
    reach: Tensor  # inf for single molecules


class DeviceSampler:
    """Samples and labels.

    Parameters
    ----------
    starts : what to move, and what to label as it is
    tensors : the teacher's, see `teachers.mixed.teacher_tensors`
    atoms_per_batch : padding counted
    """

    def __init__(
        self,
        starts: Starts,
        tensors: dict[str, Tensor],
        device: torch.device,
        seed: int,
        atoms_per_batch: int = 40_000,
    ) -> None:
        self.starts = starts
        self.device = device
        self.atoms_per_batch = atoms_per_batch
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.teacher = MixedTeacher(tensors=tensors, device=device)
        self.surface = MixedTeacher((0,), tensors, device)
        self._first_atom = np.cumsum(starts.n_atoms, dtype=np.int64) - starts.n_atoms
        self._first_bond = np.cumsum(starts.n_bonds, dtype=np.int64) - starts.n_bonds
        self._parts: list[PackedFrames] = []

    def run(self, seconds: float, n_frames: int, say: Callable[[str], None]) -> PackedFrames:
        """Frames of all structures, `n_frames` or so, in no more than this time or so."""
        begin = time.monotonic()
        thermal = self.starts.stratum == STRATA.index("thermal")
        for batch in self._batches(np.flatnonzero(~thermal)):
            self._label(batch)
        say(f"  {sum(p.n_frames for p in self._parts)} frames labelled as they came")
        batches = list(self._batches(np.flatnonzero(thermal)))
        n_turns = max(1, round(n_frames / max(1, int(thermal.sum()) * _FRAMES_PER_TURN)))
        stride = _FIRST_STRIDE
        for turn in range(n_turns):
            turn_begin, longest = time.monotonic(), 0.0
            for batch in batches:
                now = time.monotonic()
                if now - begin + longest > seconds:
                    say(f"  out of time in turn {turn}")
                    return joined(self._parts, apart=False)
                if turn == 0:
                    self._move(batch, _WARM_STEPS, friction_per_ps=25.0)
                for _ in range(_FRAMES_PER_TURN):
                    self._move(batch, stride, friction_per_ps=5.0)
                    self._label(batch)
                longest = max(longest, time.monotonic() - now)
            took = time.monotonic() - turn_begin
            say(
                f"  turn {turn}: {sum(p.n_frames for p in self._parts)} frames, "
                f"{stride} fs apart, {took:.1f} s"
            )
            left = seconds - (time.monotonic() - begin)
            per_step = took / (_FRAMES_PER_TURN * stride + (_WARM_STEPS if turn == 0 else 0))
            if turn + 1 < n_turns:
                affordable = 0.9 * left / (n_turns - turn - 1) / per_step / _FRAMES_PER_TURN
                stride = int(min(max(affordable, _FIRST_STRIDE), _LONGEST_STRIDE))
        return joined(self._parts, apart=False)

    def _batches(self, rows: NDArray[np.int64]) -> list[_Batch]:
        """In random order, so that what is done in time is of all sizes."""
        rows = rows[np.argsort(self.starts.n_atoms[rows], kind="stable")]
        cut: list[NDArray[np.int64]] = []
        first = 0
        for last in range(1, len(rows) + 1):
            if last == len(rows) or (last + 1 - first) * int(self.starts.n_atoms[rows[last]]) > (
                self.atoms_per_batch
            ):
                cut.append(rows[first:last])
                first = last
        return [self._batch(cut[k]) for k in self.rng.permutation(len(cut))]

    def _batch(self, rows: NDArray[np.int64]) -> _Batch:
        starts, n = self.starts, int(self.starts.n_atoms[rows].max())
        slot = np.arange(n)[None]
        real = np.asarray(slot < starts.n_atoms[rows][:, None])
        atom = np.where(real, self._first_atom[rows][:, None] + slot, 0)
        species = np.where(real, starts.species[atom], 0).astype(np.int64)
        positions = np.where(real[..., None], starts.positions[atom] * GRID, 0.0)
        low, high = np.zeros((len(rows), n, n)), np.full((len(rows), n, n), np.inf)
        for molecule in np.unique(starts.molecule[rows]):
            mine = starts.molecule[rows] == molecule
            count = int(starts.n_atoms[rows[mine][0]])
            low[mine, :count, :count], high[mine, :count, :count] = self._range(
                int(molecule), species[mine][0, :count]
            )
        mass = np.zeros(max(MASSES) + 1)
        mass[list(MASSES)] = list(MASSES.values())
        # Padding is heavy and at rest.
        masses = np.where(real, mass[species], 1e12)
        kelvin = starts.temperature_K[rows].astype(np.float64)
        reach = np.where(real, np.linalg.norm(positions, axis=-1), 0.0).max(1) + 0.3
        reach = np.where(starts.n_parts[starts.molecule[rows]] > 1, reach, np.inf)

        def tensor(values: NDArray[np.float64]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=self.device)

        batch = _Batch(
            rows,
            torch.tensor(species, device=self.device),
            torch.tensor(real, device=self.device),
            tensor(low),
            tensor(high),
            tensor(positions),
            tensor(np.zeros_like(positions)),
            tensor(masses).unsqueeze(-1),
            tensor(kelvin).view(-1, 1, 1),
            tensor(reach).unsqueeze(-1),
        )
        # Started at rest, half of the kinetic energy flows into the potential.
        batch.velocities = math.sqrt(2.0) * self._thermal(batch) * self._noise(batch)
        return batch

    def _range(
        self, molecule: int, species: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Between which distances the teacher is believed: see `label.in_range`."""
        n = len(species)
        low = np.array(
            [
                [CONTACT_RANGE.get((min(a, b), max(a, b)), HEAVY_CONTACT) for b in species]
                for a in species
            ]
        )
        high = np.full((n, n), np.inf)
        first = int(self._first_bond[molecule])
        part = slice(first, first + int(self.starts.n_bonds[molecule]))
        i, j = self.starts.bonds[part].astype(np.int64).T
        length = self.starts.lengths[part].astype(np.float64)
        low[i, j] = low[j, i] = BOND_RANGE[0] * length
        high[i, j] = high[j, i] = BOND_RANGE[1] * length
        np.fill_diagonal(low, 0.0)
        return low, high

    def _thermal(self, batch: _Batch) -> Tensor:
        return torch.sqrt(BOLTZMANN_EV * ACCELERATION * batch.temperature / batch.masses)

    def _noise(self, batch: _Batch) -> Tensor:
        return torch.randn(batch.positions.shape, generator=self.generator, device=self.device)

    def _acceleration(self, batch: _Batch) -> Tensor:
        _, forces = self.surface.evaluate(batch.species, batch.positions)
        distance = torch.linalg.vector_norm(batch.positions, dim=-1)
        excess = torch.clamp(distance - batch.reach, min=0.0) * batch.real
        pull = 0.5 * excess / torch.clamp(distance, min=1e-6)
        forces = forces - pull.unsqueeze(-1) * batch.positions
        strength = torch.linalg.vector_norm(forces, dim=-1, keepdim=True)
        return ACCELERATION * forces * torch.clamp(20.0 / (strength + 1e-9), max=1.0) / batch.masses

    def _move(self, batch: _Batch, n_steps: int, friction_per_ps: float) -> None:
        """Langevin dynamics by the BAOAB splitting."""
        dt = TIMESTEP_FS
        decay = math.exp(-friction_per_ps * 1e-3 * dt)
        kick = math.sqrt(1.0 - decay**2) * self._thermal(batch)
        x, v = batch.positions, batch.velocities
        a = self._acceleration(batch)
        for _ in range(n_steps):
            v = v + 0.5 * dt * a
            x = x + 0.5 * dt * v
            v = decay * v + kick * self._noise(batch)
            x = x + 0.5 * dt * v
            batch.positions = x
            a = self._acceleration(batch)
            v = v + 0.5 * dt * a
        # Centred, so that positions keep fitting the grid.
        weight = batch.real.unsqueeze(-1) / batch.real.sum(1).view(-1, 1, 1)
        x = (x - (x * weight).sum(1, keepdim=True)) * batch.real.unsqueeze(-1)
        batch.positions, batch.velocities = x, v

    def _label(self, batch: _Batch) -> None:
        grid = torch.round(batch.positions / GRID)
        sound = torch.isfinite(grid).all(-1).all(-1) & (grid.abs().amax((1, 2)) < 2**15 - 1)
        d = torch.cdist(grid, grid, compute_mode="donot_use_mm_for_euclid_dist") * GRID
        pair = batch.real.unsqueeze(1) & batch.real.unsqueeze(2)
        sound &= (((d >= batch.low) & (d <= batch.high)) | ~pair).all(-1).all(-1)
        (rows,) = sound.nonzero(as_tuple=True)
        if not len(rows):
            return
        species, real, grid = batch.species[rows], batch.real[rows], grid[rows]
        atomic, forces = self.teacher.evaluate(species, grid * GRID)
        (fine,) = (
            (torch.linalg.vector_norm(forces, dim=-1).amax(1) < STRONGEST)
            & torch.isfinite(forces).all(-1).all(-1)
        ).nonzero(as_tuple=True)
        real = real[fine]
        structure = batch.rows[rows[fine].cpu().numpy()]
        numbers = species[fine].cpu().numpy()
        energies = atomic[fine].double().sum(1).cpu().numpy()
        self._parts.append(
            PackedFrames(
                species[fine][real].to(torch.int8).cpu().numpy(),
                grid[fine][real].to(torch.int16).cpu().numpy(),
                forces[fine][real].to(torch.float16).cpu().numpy(),
                atomic[fine][real].to(torch.float16).cpu().numpy(),
                self.starts.n_atoms[structure],
                energies + self.teacher.self_energies[numbers].sum(1),
                self.starts.molecule[structure],
                structure.astype(np.int32),
                self.starts.temperature_K[structure],
                self.starts.stratum[structure],
                np.full(len(structure), SOURCES.index("teacher"), dtype=np.int8),
                self.starts.names,
            )
        )
