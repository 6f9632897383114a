"""How fast a batch of replicas goes, and what memory it holds, as it goes on."""

from __future__ import annotations

import time
from typing import Any

import psutil

ROW_STEPS = 256
"""Steps between two rows of the pace."""


class Pace:
    """Rows of `RunRecord.pace`, written with the status at the next segment's end.

    Parameters
    ----------
    batch : the batch's own entry in the status; rows that it has are of earlier parts
    on_host : whether this process computes itself: then its own time is taken, so that other work
        on the machine does not count
    first_step : where this part begins

    Attributes
    ----------
    next_step : where the next row is due
    """

    def __init__(self, batch: dict[str, Any], *, on_host: bool, first_step: int) -> None:
        self._rows: list[list[float]] = batch.setdefault("pace", [])
        self._part = 1 + max((int(row[0]) for row in self._rows), default=-1)
        self._clock = time.process_time if on_host else time.monotonic
        self.next_step = first_step + ROW_STEPS
        self._began = self._clock()

    def note(self, step: int) -> None:
        """A row, where one is due."""
        if step != self.next_step:
            return
        now = self._clock()
        memory_MiB = psutil.Process().memory_info().rss / 2**20
        seconds_per_step = float(f"{(now - self._began) / ROW_STEPS:.4g}")
        self._rows.append([self._part, step, seconds_per_step, round(memory_MiB, 3)])
        self._began, self.next_step = now, step + ROW_STEPS
