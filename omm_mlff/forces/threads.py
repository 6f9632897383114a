"""How many threads torch uses while a small system is evaluated."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

SMALL = 1000
"""Particles, replicas included, below which one thread is used."""


@contextlib.contextmanager
def threads_for(n_particles: int) -> Iterator[None]:
    """One thread for a small system, torch's own choice for a large one or where the user chose.

    A small network gains next to nothing from a second thread (measured on two cores: 0.9 to 1.2
    times for 24 to 208 atoms), and where another process wants the same core every operation waits
    for it (100 to 200 times slower). The number is put back afterwards.
    """
    if n_particles >= SMALL or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
