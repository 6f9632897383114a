"""The tap: hands over what a Force has computed anyway.

Asking the Context afterwards would run the model again: a per-step reporter that does so more than
doubles the cost of a step.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omm_mlff.forces.counted_ring import CountedRing
from omm_mlff.students.compiled import evaluate_molecules


class Ring:
    """Keeps what a tap receives, evaluation after evaluation, in memory that was taken before.

    Parameters
    ----------
    n_frames, n_replicas, n_atoms : how much it holds

    Attributes
    ----------
    energies : shape (n_frames, n_replicas), kJ/mol
    forces, positions : shape (n_frames, n_replicas, n_atoms, 3), kJ/mol/nm and nm
    n_received : evaluations since `empty`; more than `n_frames` were not all kept
    unmasked : whether everything goes on to OpenMM as it is: who finds that something is not finite
        takes the steps again, and until then nothing need be masked
    """

    def __init__(self, n_frames: int, n_replicas: int, n_atoms: int) -> None:
        self.n_frames = n_frames
        self.n_received = 0
        self.unmasked = False
        self.energies = np.empty((n_frames, n_replicas))
        self.forces = np.empty((n_frames, n_replicas, n_atoms, 3))
        self.positions = np.empty((n_frames, n_replicas, n_atoms, 3))
        # Frame by frame, as what is evaluated comes.
        self._rows = list(
            zip(
                torch.from_numpy(self.energies).unbind(0),
                torch.from_numpy(self.forces.reshape(n_frames, -1, 3)).unbind(0),
                torch.from_numpy(self.positions.reshape(n_frames, -1, 3)).unbind(0),
                strict=True,
            )
        )

    def empty(self, *, unmasked: bool) -> None:
        """Begin anew."""
        self.n_received = 0
        self.unmasked = unmasked

    def keep(self, energies: Tensor, forces: Tensor, positions: Tensor) -> None:
        """The next evaluation, which is on the host."""
        row = self._next()
        if row is not None:
            for kept, came in zip(row, (energies, forces, positions), strict=True):
                kept.copy_(came)

    def place(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        """Keeps the positions of the next evaluation; where its energies and forces are to go.

        None where there is no room, or where everything that is evaluated is not wanted as it is.
        """
        if not self.unmasked or positions.dtype != torch.float64:
            return None
        row = self._next()
        if row is None:
            return None
        row[2].copy_(positions)
        return row[0], row[1]

    def _next(self) -> tuple[Tensor, Tensor, Tensor] | None:
        k = self.n_received
        self.n_received += 1
        return self._rows[k] if k < self.n_frames else None


class Tap:
    """Receives energies, forces and positions from inside the Force, once per evaluation.

    A replica whose energy or forces are not finite is masked from then on: what goes on to OpenMM
    is zero for it, so that the others can go on. `alive` says which are left.

    Parameters
    ----------
    n_replicas, n_atoms : copies in the System, atoms of each
    n_slots : how many evaluations are kept on a device
    counted : on the host, too, evaluations are kept and counted as they are on a device

    Attributes
    ----------
    handle : names this tap to the custom op; the Context works on a copy of the module
    n_launches : how often Python was called; a CUDA graph is replayed without it
    energies : shape (n_replicas,), kJ/mol, as computed, before masking; of the host
    forces, positions : shape (n_replicas * n_atoms, 3), kJ/mol/nm and nm; of the host
    alive : shape (n_replicas,), bool, where the evaluations are
    raised : by replica, what the potential's own code raised at the last evaluation
    ring : where evaluations on the host are kept as well, while one is given
    kept : where evaluations on a device are kept, from the first on
    """

    def __init__(
        self, n_replicas: int, n_atoms: int, *, n_slots: int = 1, counted: bool = False
    ) -> None:
        self.n_replicas = n_replicas
        self.n_atoms = n_atoms
        self.n_slots = n_slots
        self.counted = counted
        self.n_launches = 0
        self.energies = torch.zeros(n_replicas, dtype=torch.float64)
        self.forces = torch.zeros(n_replicas * n_atoms, 3, dtype=torch.float64)
        self.positions = torch.zeros(n_replicas * n_atoms, 3, dtype=torch.float64)
        self.alive = torch.ones(n_replicas, dtype=torch.bool)
        self.raised: dict[int, str] = {}
        self.ring: Ring | None = None
        self.kept: CountedRing | None = None
        self._zeros: tuple[Tensor, Tensor] | None = None
        self._on_host = 0
        self.handle = next(_handles)
        _taps[self.handle] = self
        _register_tap_op()

    def receive(self, energies: Tensor, forces: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Keep what was computed and pass on what OpenMM may see.

        Raises
        ------
        RuntimeError : not one energy a replica and one force an atom
        """
        if len(energies) != self.n_replicas or len(forces) != self.n_replicas * self.n_atoms:
            raise RuntimeError(
                f"it gave {len(energies)} energies and {len(forces)} forces, wanted "
                f"{self.n_replicas} of {self.n_replicas} x {self.n_atoms} atoms"
            )
        if self.counted or energies.device.type != "cpu":
            return self._receive_there(energies, forces)
        self.count()
        if self.ring is not None:
            self.ring.keep(energies, forces, positions)
            if self.ring.unmasked:
                return energies, forces
        self.energies.copy_(energies)
        self.forces.copy_(forces)
        self.positions.copy_(positions)
        if self._all_finite():
            return energies, forces.contiguous()
        finite = torch.isfinite(energies) & torch.isfinite(forces).view(self.n_replicas, -1).all(1)
        self.alive.logical_and_(finite)
        masked_energies = torch.where(self.alive, energies, torch.zeros_like(energies))
        alive_atoms = self.alive.repeat_interleave(self.n_atoms).unsqueeze(1)
        masked_forces = torch.where(alive_atoms, forces, torch.zeros_like(forces))
        return masked_energies, masked_forces.contiguous()

    def _receive_there(self, energies: Tensor, forces: Tensor) -> tuple[Tensor, Tensor]:
        """Keep and mask on the device, in eleven small kernels, without a look at any value.

        Every write goes to memory that is owned here, so that a captured CUDA graph repeats it.
        What is not needed is masked all the same, since a graph cannot choose.
        """
        self.n_launches += 1
        if self.kept is None:
            self._settle(energies.device, forces.dtype)
        assert self.kept is not None
        assert self._zeros is not None
        self.kept.keep(energies, forces)
        by_replica = forces.reshape(self.n_replicas, -1)
        total = by_replica.sum(1, dtype=torch.float64).add_(energies)
        # The difference is zero, and of what is not finite NaN.
        self.alive.logical_and_(total.sub_(total).eq(0.0))
        passed_on = torch.where(self.alive, energies, self._zeros[0])
        masked = torch.where(self.alive.unsqueeze(1), by_replica, self._zeros[1])
        return passed_on, masked.view(forces.shape)

    @property
    def n_calls(self) -> int:
        """Evaluations so far, replays of a CUDA graph included; waits for the device."""
        return self._on_host + (0 if self.kept is None else self.kept.n_received)

    def _all_finite(self) -> bool:
        """Whether there is nothing to mask; on the host, where looking is cheap.

        The sum of finite numbers may overflow; then it is looked at one by one.
        """
        everything = float(self.energies.numpy().sum()) + float(self.forces.numpy().sum())
        return math.isfinite(everything) and bool(self.alive.numpy().all())

    def count(self) -> None:
        """One more evaluation on the host."""
        self.n_launches += 1
        self._on_host += 1

    def freeze(self, replica: int) -> None:
        """Mask one replica from the next evaluation on."""
        self.alive[replica] = False

    def read(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Energies (n_replicas,) and forces (n_replicas, n_atoms, 3) of the last evaluation."""
        if self.kept is not None:
            return self.kept.last()
        forces = self.forces.numpy().reshape(self.n_replicas, self.n_atoms, 3)
        return self.energies.numpy().copy(), forces.copy()

    def close(self) -> None:
        """Forget this tap; a Force that still names it would fail."""
        _taps.pop(self.handle, None)

    def _settle(self, device: torch.device, dtype: torch.dtype) -> None:
        """Take memory where the evaluations are."""
        self.alive = self.alive.to(device)
        self.kept = CountedRing(self.n_slots, self.n_replicas, self.n_atoms, dtype, device)
        self._zeros = (
            torch.zeros((), dtype=torch.float64, device=device),
            torch.zeros((), dtype=dtype, device=device),
        )


_taps: dict[int, Tap] = {}
_handles = itertools.count()


@functools.cache
def _register_tap_op() -> Any:
    """Define the op that TorchScript calls; the library must live as long as the process."""
    library: Any = torch.library.Library("omm_mlff", "DEF")  # type: ignore[no-untyped-call]
    library.define(
        "tap(int handle, Tensor energies, Tensor forces, Tensor positions) -> (Tensor, Tensor)"
    )
    library.define("student_tapped(int student, int handle, Tensor positions) -> (Tensor, Tensor)")

    def tap(
        handle: int, energies: Tensor, forces: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        # Detached inside the op as well: otherwise a graph grows and the step doubles.
        return _taps[handle].receive(energies.detach(), forces.detach(), positions.detach())

    def student_tapped(student: int, handle: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        tap, x = _taps[handle], positions.detach()
        place = None if tap.ring is None or x.is_cuda else tap.ring.place(x)
        if place is not None:
            tap.count()
            energies, forces = evaluate_molecules(student, x, place)
        else:
            energies, forces = tap.receive(*evaluate_molecules(student, x), x)
        return energies.sum(), forces

    library.impl("tap", tap, "CompositeExplicitAutograd")
    library.impl("student_tapped", student_tapped, "CompositeExplicitAutograd")
    return library
