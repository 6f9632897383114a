"""Blocks of steps in one call of OpenMM: what the tap has kept of them, as frames.

On the host velocities are (x(t) - x(t - dt)) (1 / dt), which is what OpenMM sets them to, to the
last bit. On a device they come from the forces (`leapfrog`), and a block is read out while the next
one runs already.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import copy_context
from typing import Protocol

import numpy as np
import openmm
import torch
from numpy.typing import NDArray

from omm_mlff.dynamics.frames import Frames
from omm_mlff.dynamics.leapfrog import ends_agree, leapfrog
from omm_mlff.dynamics.replicas import Replicas
from omm_mlff.forces.counted_ring import Fetched
from omm_mlff.forces.tap import Ring, Tap
from omm_mlff.schema import Precision

State = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Positions (nm) and velocities (nm/ps) as the integrator has them."""


class Landed(Protocol):
    """A block that is over.

    Attributes
    ----------
    end : where the Context stood then
    """

    end: State

    def frames(self) -> Frames | None:
        """What is recorded of its steps; None where not each of them was evaluated once."""


class Blocks(Protocol):
    """How blocks of steps are taken.

    Attributes
    ----------
    n_most : most steps in one
    overlap : the next may be launched before the frames of the one that landed are asked for
    """

    n_most: int
    overlap: bool

    def launch(self, first: int, n: int, start: State) -> None:
        """Begin `n` steps, from step `first` on, where the Context stands: at `start`."""

    def land(self) -> Landed | None:
        """Wait until what was launched is over; None where OpenMM has met an error."""

    def forget(self) -> None:
        """Wait until nothing is under way, and forget what was; steps are taken elsewhere now."""

    def close(self) -> None:
        """Nothing more is launched."""


class HostBlocks:
    """Blocks on the host.

    Parameters
    ----------
    replicas : what moves, with a tap
    n_most : most steps in one
    """

    overlap = False

    def __init__(self, replicas: Replicas, n_most: int) -> None:
        self.n_most = n_most
        self._replicas = replicas
        self._tap = _tap_of(replicas)
        self._ring = Ring(n_most, *replicas.shape[:2])
        self._launched: tuple[int, int, State] | None = None

    def launch(self, first: int, n: int, start: State) -> None:
        self._launched = first, n, start

    def land(self) -> Landed | None:
        assert self._launched is not None
        first, n, start = self._launched
        ring, self._launched = self._ring, None
        ring.empty(unmasked=bool(self._replicas.alive.all()))
        self._tap.ring = ring
        try:
            self._replicas.context.getIntegrator().step(n)
        except openmm.OpenMMException:
            return None
        finally:
            self._tap.ring = None
        return _LandedOnHost(self._replicas, ring, first, n, start, self._replicas.in_context())

    def forget(self) -> None:
        self._launched = None

    def close(self) -> None:
        self._launched = None


class _LandedOnHost:
    def __init__(
        self, replicas: Replicas, ring: Ring, first: int, n: int, start: State, end: State
    ) -> None:
        self._replicas = replicas
        self._ring = ring
        self._first = first
        self._n = n
        self._start = start
        self.end = end

    def frames(self) -> Frames | None:
        replicas, ring, n = self._replicas, self._ring, self._n
        if ring.n_received != n:
            return None
        positions, forces = ring.positions[:n], ring.forces[:n]
        moved = np.diff(positions, axis=0) * (1.0 / replicas.timestep_ps)
        velocities = np.concatenate((self._start[1][None], moved))
        velocities += replicas.half_kick(forces)
        return Frames(
            replicas.times(self._first, n),
            positions,
            velocities,
            forces,
            ring.energies[:n],
            replicas.kinetic(velocities),
        )


class DeviceBlocks:
    """Blocks on a device; OpenMM takes their steps in a thread of its own.

    Parameters
    ----------
    replicas : what moves, with a tap that holds twice `n_most` evaluations
    n_most : most steps in one
    precision : of the Context
    """

    overlap = True

    def __init__(self, replicas: Replicas, n_most: int, precision: Precision) -> None:
        self.n_most = n_most
        self._replicas = replicas
        self._tap = _tap_of(replicas)
        self._precision = precision
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="omm-mlff-steps")
        self._launched: tuple[int, int, int, State, Future[None]] | None = None
        self._next_count: int | None = None

    def launch(self, first: int, n: int, start: State) -> None:
        # Where one block follows another it is known what was counted, and nobody need wait.
        count = self._tap.n_calls if self._next_count is None else self._next_count
        steps = self._thread.submit(copy_context().run, self._step, n)
        self._launched = first, n, count, start, steps

    def _step(self, n: int) -> None:
        """In the thread, which knows of no device but the first."""
        kept = self._tap.kept
        on_cuda = kept is not None and kept.device.type == "cuda"
        with torch.cuda.device(kept.device) if kept and on_cuda else nullcontext():
            self._replicas.context.getIntegrator().step(n)

    def land(self) -> Landed | None:
        assert self._launched is not None
        first, n, count, start, steps = self._launched
        self._launched = self._next_count = None
        try:
            steps.result()
        except openmm.OpenMMException:
            return None
        kept = self._tap.kept
        if kept is None:
            return None
        self._next_count = count + n
        fetched = kept.fetch(count, n)
        end = self._replicas.in_context()
        return _LandedOnDevice(self._replicas, fetched, first, start, end, self._precision)

    def forget(self) -> None:
        if self._launched is not None:
            self._launched[4].exception()  # which nobody asks for: those steps have never been
        self._launched = self._next_count = None

    def close(self) -> None:
        self._thread.shutdown(wait=True)


class _LandedOnDevice:
    def __init__(
        self,
        replicas: Replicas,
        fetched: Fetched,
        first: int,
        start: State,
        end: State,
        precision: Precision,
    ) -> None:
        self._replicas = replicas
        self._fetched = fetched
        self._first = first
        self._start = start
        self._precision: Precision = precision
        self.end = end

    def frames(self) -> Frames | None:
        replicas, n = self._replicas, self._fetched.n
        arrays = self._fetched.arrays()
        if arrays is None:
            return None
        energies, forces = arrays
        felt = np.where(replicas.alive[:, None, None], forces, 0.0)
        x, v = leapfrog(*self._start, felt, replicas.inverse_mass, replicas.timestep_ps)
        moving = replicas.alive
        mine, context = (x[n, moving], v[n, moving]), (self.end[0][moving], self.end[1][moving])
        if not ends_agree(mine, context, self._precision):
            return None
        velocities = v[:n] + replicas.half_kick(felt)
        return Frames(
            replicas.times(self._first, n),
            x[:n],
            velocities,
            forces,
            energies,
            replicas.kinetic(velocities),
        )


def _tap_of(replicas: Replicas) -> Tap:
    assert replicas.tap is not None, "blocks of steps are read out of the tap"
    return replicas.tap
