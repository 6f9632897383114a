"""What a tap receives on a device, kept there until a block of steps is over.

The slot is a counter in the device's memory: a CUDA graph that was captured once fills the next one
at every replay, and nobody waits for the device in between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class CountedRing:
    """Energies and forces of the last evaluations.

    Parameters
    ----------
    n_slots : how many evaluations it holds; the next takes the place of the oldest
    n_replicas, n_atoms : of each
    dtype : of the forces
    device : where it lies; the host will do

    Attributes
    ----------
    counter : shape (1,), int64, evaluations so far
    energies : shape (n_slots, n_replicas), float64, kJ/mol
    forces : shape (n_slots, n_replicas * n_atoms, 3), kJ/mol/nm
    """

    def __init__(
        self, n_slots: int, n_replicas: int, n_atoms: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.n_slots = n_slots
        self.device = device
        self.shape = (n_replicas, n_atoms, 3)
        self.counter = torch.zeros(1, dtype=torch.int64, device=device)
        self.energies = torch.zeros(n_slots, n_replicas, dtype=torch.float64, device=device)
        self.forces = torch.zeros(n_slots, n_replicas * n_atoms, 3, dtype=dtype, device=device)
        self._landing: tuple[Tensor, Tensor, Tensor] | None = None
        self._stream: torch.cuda.Stream | None = None

    def keep(self, energies: Tensor, forces: Tensor) -> None:
        """The next evaluation; nothing here looks at a value."""
        slot = torch.remainder(self.counter, self.n_slots)
        self.energies.index_copy_(0, slot, energies.unsqueeze(0))
        self.forces.index_copy_(0, slot, forces.unsqueeze(0))
        self.counter.add_(1)

    @property
    def n_received(self) -> int:
        """Evaluations so far; waits for the device."""
        return int(self.counter)

    def last(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Energies and forces of the last evaluation, as `Fetched.arrays`; waits for the device."""
        slot = (self.n_received - 1) % self.n_slots
        forces = self.forces[slot].to("cpu", torch.float64).numpy().reshape(self.shape)
        return self.energies[slot].cpu().numpy().copy(), forces.copy()

    def fetch(self, first: int, n: int) -> Fetched:
        """Begin to bring evaluations to the host; the device may go on with others meanwhile.

        One may be under way at a time: the next one's numbers come to the same memory.

        Parameters
        ----------
        first : how many evaluations came before them
        n : at most `n_slots`
        """
        counter = self.counter.clone()  # before another evaluation is counted
        if self._landing is None or len(self._landing[0]) < n:
            on_cuda = self.device.type == "cuda"
            self._landing = (
                torch.empty(n, *self.energies.shape[1:], dtype=torch.float64, pin_memory=on_cuda),
                torch.empty(n, *self.forces.shape[1:], dtype=self.forces.dtype, pin_memory=on_cuda),
                torch.empty(1, dtype=torch.int64, pin_memory=on_cuda),
            )
        event = None
        if self.device.type == "cuda":
            if self._stream is None:
                self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._stream):
                self._copy(first, n, counter)
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record()
        else:
            self._copy(first, n, counter)
        return Fetched(first, n, *self._landing, self.shape, event, counter)

    def _copy(self, first: int, n: int, counter: Tensor) -> None:
        assert self._landing is not None
        slot = first % self.n_slots
        before_the_end = min(n, self.n_slots - slot)
        self._landing[2].copy_(counter, non_blocking=True)
        for landing, ring in zip(self._landing, (self.energies, self.forces), strict=False):
            landing[:before_the_end].copy_(ring[slot : slot + before_the_end], non_blocking=True)
            landing[before_the_end:n].copy_(ring[: n - before_the_end], non_blocking=True)


@dataclass(frozen=True, eq=False)
class Fetched:
    """Evaluations on their way to the host.

    Attributes
    ----------
    landed_energies, landed_forces, landed_counter : on the host, once `event` has come
    counter : on the device; must live until it was copied
    """

    first: int
    n: int
    landed_energies: Tensor
    landed_forces: Tensor
    landed_counter: Tensor
    shape: tuple[int, int, int]
    event: torch.cuda.Event | None
    counter: Tensor

    def arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """What was fetched, once it is there.

        Returns
        -------
        energies : shape (n, n_replicas), kJ/mol
        forces : shape (n, n_replicas, n_atoms, 3), kJ/mol/nm
        None where more or fewer evaluations had been made than `n` since `first`
        """
        if self.event is not None:
            self.event.synchronize()
        if int(self.landed_counter) != self.first + self.n:
            return None
        forces = self.landed_forces[: self.n].to(torch.float64).numpy()
        return (
            self.landed_energies[: self.n].numpy().copy(),
            forces.reshape(self.n, *self.shape).copy(),
        )
