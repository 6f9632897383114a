"""How many threads the kernel may use."""

from __future__ import annotations

import functools
import os


def kernel_threads() -> int:
    """Threads that the compiled engine may use: what the user chose, else every core there is.

    It takes fewer for little work. What it gives to threads are whole copies or parts of a box, on
    demand: one that has to wait for its core holds up nothing but what it has in hand.
    """
    return _n_threads(os.environ.get("OMP_NUM_THREADS", ""))


@functools.cache
def _n_threads(chosen: str) -> int:
    first = chosen.split(",")[0]
    if first.isdigit() and int(first) > 0:
        return int(first)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
