"""Rows of the pace: one every 256 steps of each part, by the clock of whoever computes."""

from __future__ import annotations

import pytest

from omm_mlff.dynamics import pace
from omm_mlff.dynamics.pace import Pace
from omm_mlff.record.status import PaceRow


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    now = {"process": 0.0, "wall": 0.0}
    monkeypatch.setattr(pace.time, "process_time", lambda: now["process"])
    monkeypatch.setattr(pace.time, "monotonic", lambda: now["wall"])
    return now


@pytest.mark.parametrize(("on_host", "seconds"), [(True, 0.5), (False, 2.0)])
def test_a_row_has_the_seconds_of_whoever_computes(
    on_host: bool, seconds: float, clock: dict[str, float]
) -> None:
    rows: list[PaceRow] = []
    counted = Pace(rows, on_host=on_host, first_step=0)
    for step in (16, 255, 256, 257, 512):
        clock["process"], clock["wall"] = 0.5 * step, 2.0 * step
        counted.note(step)
    assert [row[:3] for row in rows] == [(0, 256, seconds), (0, 512, seconds)]
    assert all(row[3] > 1.0 for row in rows)


def test_a_part_that_goes_on_counts_from_where_it_began(clock: dict[str, float]) -> None:
    rows: list[PaceRow] = [(0, 256, 0.1, 1.0)]
    counted = Pace(rows, on_host=True, first_step=300)
    assert counted.next_step == 556
    clock["process"] = 256.0
    counted.note(512)
    counted.note(556)
    assert [row[:3] for row in rows] == [(0, 256, 0.1), (1, 556, 1.0)]
