"""Cost: times that were given come back, and memory is this process's."""

from __future__ import annotations

import numpy as np
import psutil
import pytest
from checks.fakes import FakeEvaluator, by_name, card, water

from omm_mlff.checks import cost
from omm_mlff.checks.base import Evidence
from omm_mlff.units import BYTES_PER_MIB


def measured(seconds):
    evaluator = FakeEvaluator(None, water(), seconds=seconds)
    return by_name(cost.CHECK.measure(Evidence(water(), card(), evaluator=evaluator)))


def test_a_step_time_is_the_median_over_blocks_in_milliseconds() -> None:
    row = measured(np.array([0.002, 0.0021, 0.0019, 0.0500]))["cost.step_time"]
    assert row.value == pytest.approx(2.05)
    assert row.unit == "ms"
    assert row.n_samples == cost.N_BLOCKS
    assert row.ci_low <= row.value <= row.ci_high


def test_peak_memory_grows_by_what_is_allocated_and_never_shrinks() -> None:
    before = cost.peak_memory_bytes()
    now = psutil.Process().memory_info().rss
    assert before >= 0.9 * now
    block = np.ones((before - now) // 8 + 8 * BYTES_PER_MIB)  # 64 MiB above the peak
    after = cost.peak_memory_bytes()
    assert after - before >= 32 * BYTES_PER_MIB
    del block
    assert cost.peak_memory_bytes() >= after
    assert measured(np.array([1e-3]))["cost.peak_memory"].value >= after / BYTES_PER_MIB
