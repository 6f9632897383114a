"""Faults as modules: each turns the sound field into one that is wrong in a known way.

Two sorts. A faulty *term* (`Cone`, `Jump`, ...) stands among or around the terms of a
`PairEngine`. A faulty *engine* wraps a whole engine and changes what goes in or comes out.
"""

from __future__ import annotations

import itertools
import math
import mmap
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from omm_mlff.proving.field import angles_of, bond_lengths, pairs_of
from omm_mlff.proving.terms import Float
from omm_mlff.schema import MolecularSystem

_DOUBLE_BITS = 53
_BLOCK_BYTES = 2**20

# --- terms --------------------------------------------------------------------------------------


class Cone(nn.Module):
    """h |d - tip| on every bond: the norm of a vector, with nothing under its root."""

    if TYPE_CHECKING:
        steepness: Tensor
        tip: Tensor

    def __init__(self, steepness: Float, tip: Float) -> None:
        super().__init__()
        self.register_buffer("steepness", torch.from_numpy(steepness))
        self.register_buffer("tip", torch.from_numpy(tip))

    def forward(self, d: Tensor) -> tuple[Tensor, Tensor]:
        off = d - self.tip
        return self.steepness * off.abs(), self.steepness * torch.sign(off)


class Jump(nn.Module):
    """The energy is `height` higher beyond an edge; the forces know nothing of it."""

    if TYPE_CHECKING:
        edge: Tensor

    def __init__(self, height: float, edge: Float) -> None:
        super().__init__()
        self.height = height
        self.register_buffer("edge", torch.from_numpy(edge))

    def forward(self, d: Tensor) -> tuple[Tensor, Tensor]:
        return self.height * (d > self.edge).to(d.dtype), torch.zeros_like(d)


class NotANumber(nn.Module):
    """NaN beyond an edge."""

    if TYPE_CHECKING:
        edge: Tensor

    def __init__(self, edge: Float) -> None:
        super().__init__()
        self.register_buffer("edge", torch.from_numpy(edge))

    def forward(self, d: Tensor) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(d)
        broken = torch.where(d > self.edge, torch.full_like(d, float("nan")), zero)
        return broken, broken


class Raises(nn.Module):
    """No energy, and an error instead of an answer beyond an edge."""

    if TYPE_CHECKING:
        edge: Tensor

    def __init__(self, edge: Float) -> None:
        super().__init__()
        self.register_buffer("edge", torch.from_numpy(edge))

    def forward(self, d: Tensor) -> tuple[Tensor, Tensor]:
        if bool((d > self.edge).any()):
            raise ValueError("a bond is too long")
        return torch.zeros_like(d), torch.zeros_like(d)


class Capped(nn.Module):
    """A repulsion that saturates: c tanh(E / c) where E is positive."""

    def __init__(self, term: nn.Module, cap: float) -> None:
        super().__init__()
        self.term = term
        self.cap = cap

    def forward(self, d: Tensor) -> tuple[Tensor, Tensor]:
        energy, slope = self.term(d.clamp(min=1.0e-3))
        soft = torch.tanh(energy / self.cap)
        repels = energy > 0.0
        return (
            torch.where(repels, self.cap * soft, energy),
            torch.where(repels, slope * (1.0 - soft * soft), slope),
        )


class Hole(nn.Module):
    """The wall is replaced by a well of depth D around a distance: E (1 - g) - D g."""

    if TYPE_CHECKING:
        concerned: Tensor

    def __init__(
        self, term: nn.Module, depth: float, centre: float, half_width: float, concerned: Float
    ) -> None:
        super().__init__()
        self.term = term
        self.depth = depth
        self.centre = centre
        self.half_width = half_width
        self.register_buffer("concerned", torch.from_numpy(concerned))

    def forward(self, d: Tensor) -> tuple[Tensor, Tensor]:
        energy, slope = self.term(d)
        x = (d - self.centre) / self.half_width
        g = self.concerned * torch.exp(-(x**6))
        dg = -6.0 * x**5 / self.half_width * g
        return energy * (1.0 - g) - self.depth * g, slope * (1.0 - g) - (energy + self.depth) * dg


class Rounded(nn.Module):
    """A term whose distances, energies and slopes are kept with few binary digits.

    Veltkamp's splitting (Numer. Math. 18, 224 (1971) as Dekker gives it): with c = x (2^s + 1) in
    float64, c - (c - x) is x rounded to 53 - s digits.
    """

    def __init__(self, term: nn.Module, digits: int) -> None:
        super().__init__()
        self.term = term
        self.splitter = 2.0 ** (_DOUBLE_BITS - digits) + 1.0

    def forward(self, d: Tensor) -> tuple[Tensor, Tensor]:
        energy, slope = self.term(self.rounded(d))
        return self.rounded(energy), self.rounded(slope)

    def rounded(self, x: Tensor) -> Tensor:
        c = self.splitter * x
        return c - (c - x)


class StaleList(nn.Module):
    """A term with a list of neighbours that is made anew only every so many calls.

    Parameters
    ----------
    every : calls between two lists
    """

    if TYPE_CHECKING:
        listed: Tensor

    def __init__(self, term: nn.Module, cutoff: float, every: int) -> None:
        super().__init__()
        self.term = term
        self.cutoff = cutoff
        self.every = every
        self.calls = 0
        self.register_buffer("listed", torch.zeros(0, 0, dtype=torch.float64))

    def forward(self, d: Tensor) -> tuple[Tensor, Tensor]:
        if self.calls % self.every == 0:
            self.listed = (d < self.cutoff).to(d.dtype)
        self.calls += 1
        energy, slope = self.term(d)
        return energy * self.listed, slope * self.listed


class WrongImage(nn.Module):
    """The nearest image in a box that is taken too long."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, r: Tensor, box: Tensor | None) -> Tensor:
        if box is not None:
            for axis in (2, 1, 0):
                shift = torch.round(r[..., axis] / (self.factor * box[axis, axis]))
                r = r - shift.unsqueeze(-1) * (self.factor * box[axis])
        return r


# --- engines ------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """Energies and forces, each times a factor of its own."""

    def __init__(self, engine: nn.Module, energy: float = 1.0, force: float = 1.0) -> None:
        super().__init__()
        self.engine = engine
        self.energy = energy
        self.force = force

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        energies, forces = self.engine(positions, box)
        return self.energy * energies, self.force * forces


class Offset(nn.Module):
    """The total energy, a large constant included, is kept in float32."""

    def __init__(self, engine: nn.Module, offset: float) -> None:
        super().__init__()
        self.engine = engine
        self.offset = offset

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        energies, forces = self.engine(positions, box)
        return (energies + self.offset).to(torch.float32).to(torch.float64), forces


class Reordered(nn.Module):
    """The engine takes its atoms in another order than the topology has them."""

    if TYPE_CHECKING:
        order: Tensor

    def __init__(self, engine: nn.Module, n_copies: int, order: list[int]) -> None:
        super().__init__()
        self.engine = engine
        every = [copy * len(order) + atom for copy in range(n_copies) for atom in order]
        self.register_buffer("order", torch.tensor(every))

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        energies, forces = self.engine(positions[self.order], box)
        return energies, torch.zeros_like(forces).index_copy(0, self.order, forces)


class Random(nn.Module):
    """Forces differ by Gaussian noise from one call to the next; no net force."""

    def __init__(self, engine: nn.Module, n_copies: int, size: float) -> None:
        super().__init__()
        self.engine = engine
        self.n_copies = n_copies
        self.size = size

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        energies, forces = self.engine(positions, box)
        noise = torch.randn_like(forces).view(self.n_copies, -1, 3)
        noise = noise - noise.mean(1, keepdim=True)
        return energies, forces + self.size * noise.reshape(forces.shape)


class Oriented(nn.Module):
    """E += c sum over bonds of (x / d)^2: the x axis is not like the others."""

    if TYPE_CHECKING:
        i: Tensor
        j: Tensor

    def __init__(
        self, engine: nn.Module, system: MolecularSystem, n_copies: int, size: float
    ) -> None:
        super().__init__()
        self.engine = engine
        self.n_copies = n_copies
        self.size = size
        self.register_buffer("i", torch.from_numpy(system.bonds[:, 0].copy()))
        self.register_buffer("j", torch.from_numpy(system.bonds[:, 1].copy()))

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        energies, forces = self.engine(positions, box)
        x = positions.detach().view(self.n_copies, -1, 3)
        r = x[:, self.j] - x[:, self.i]
        d = (r * r).sum(-1, keepdim=True).sqrt()
        u = r / d
        along = u[..., 0:1]
        axis = torch.zeros_like(u)
        axis[..., 0] = 1.0
        gradient = 2.0 * self.size * along * (axis - along * u) / d
        extra = torch.zeros_like(x).index_add(1, self.i, gradient)
        extra = extra.index_add(1, self.j, -gradient)
        energies = energies + self.size * (along * along).sum((1, 2))
        return energies, forces + extra.reshape(forces.shape)


class AlongBonds(nn.Module):
    """Forces along bonds that are the gradient of nothing.

    For every two bonds a and b of one atom, bond a is pulled by p(stretch of b), bond b is pushed
    by p(stretch of a): a rotation in the plane of both stretches, without net force or torque.
    p(s) = size * s for a smooth curl; with `wavelength`, p(s) = size * sin(2 pi s / wavelength), a
    frozen noise.
    """

    if TYPE_CHECKING:
        centre: Tensor
        first: Tensor
        second: Tensor
        first_rest: Tensor
        second_rest: Tensor

    def __init__(
        self,
        engine: nn.Module,
        system: MolecularSystem,
        n_copies: int,
        size: float,
        wavelength: float = 0.0,
    ) -> None:
        super().__init__()
        self.engine = engine
        self.n_copies = n_copies
        self.size = size
        self.wave_number = 2.0 * math.pi / wavelength if wavelength else 0.0
        angles = np.array(angles_of(system), dtype=np.int64).reshape(-1, 3)
        pairs = pairs_of(system)
        rest = np.zeros((system.n_atoms, system.n_atoms))
        rest[pairs.i, pairs.j] = rest[pairs.j, pairs.i] = bond_lengths(system)
        for name, column in (("first", 0), ("centre", 1), ("second", 2)):
            self.register_buffer(name, torch.from_numpy(angles[:, column].copy()))
        for name, column in (("first_rest", 0), ("second_rest", 2)):
            length = rest[angles[:, column], angles[:, 1]]
            self.register_buffer(name, torch.from_numpy(length))

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        energies, forces = self.engine(positions, box)
        x = positions.detach().view(self.n_copies, -1, 3)
        a = x[:, self.first] - x[:, self.centre]
        b = x[:, self.second] - x[:, self.centre]
        d_a, d_b = (a * a).sum(-1).sqrt(), (b * b).sum(-1).sqrt()
        pull_a = self.strength(d_b - self.second_rest) / d_a
        pull_b = -self.strength(d_a - self.first_rest) / d_b
        on_a, on_b = pull_a.unsqueeze(-1) * a, pull_b.unsqueeze(-1) * b
        extra = torch.zeros_like(x).index_add(1, self.first, on_a).index_add(1, self.second, on_b)
        extra = extra.index_add(1, self.centre, -on_a - on_b)
        return energies, forces + extra.reshape(forces.shape)

    def strength(self, stretch: Tensor) -> Tensor:
        if self.wave_number > 0.0:
            return self.size * torch.sin(self.wave_number * stretch)
        return self.size * stretch


class Burdened(nn.Module):
    """An engine that does something beside its work in every call; see `Burden`."""

    def __init__(self, engine: nn.Module, burden: Burden) -> None:
        super().__init__()
        self.engine = engine
        self.handle = burden.handle

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        energies, forces = self.engine(positions, box)
        with torch.no_grad():
            return torch.ops.omm_mlff_proving.bear(self.handle, energies), forces


class Burden:
    """What grows from call to call: memory that is never given back, or time that is spent.

    A Context runs a copy of its module, so what has to outlive a call is kept here, in Python,
    and reached through a custom op. One for each Force that is made; `put_down` ends all of them.

    Parameters
    ----------
    bytes_per_call : kept for good
    seconds_per_call : every call takes this much longer than the one before
    """

    def __init__(self, bytes_per_call: int = 0, seconds_per_call: float = 0.0) -> None:
        self.bytes_per_call = bytes_per_call
        self.seconds_per_call = seconds_per_call
        self.n_calls = 0
        self.kept: list[mmap.mmap] = []
        self.handle = next(_handles)
        _burdens[self.handle] = self
        _register_op()

    def bear(self) -> None:
        """One call."""
        self.n_calls += 1
        if self.bytes_per_call:
            self._keep()
        if self.seconds_per_call:
            end = time.process_time() + self.n_calls * self.seconds_per_call
            while time.process_time() < end:
                pass

    def _keep(self) -> None:
        """Write to fresh pages: what the process has once freed would hide a small leak."""
        block = self.kept[-1] if self.kept else None
        if block is None or len(block) - block.tell() < self.bytes_per_call:
            block = mmap.mmap(-1, max(_BLOCK_BYTES, self.bytes_per_call))
            self.kept.append(block)
        block.write(b"\1" * self.bytes_per_call)


def put_down() -> None:
    """Forget every burden: what they kept is free again, and a Force that names one fails."""
    _burdens.clear()


_burdens: dict[int, Burden] = {}
_handles = itertools.count()
_library: list[Any] = []


def _register_op() -> None:
    """Define the op that TorchScript calls; the library must live as long as the process."""
    if _library:
        return
    library: Any = torch.library.Library("omm_mlff_proving", "DEF")  # type: ignore[no-untyped-call]
    library.define("bear(int handle, Tensor energies) -> Tensor")

    def bear(handle: int, energies: Tensor) -> Tensor:
        _burdens[handle].bear()
        return energies.clone()

    library.impl("bear", bear, "CompositeExplicitAutograd")
    _library.append(library)
