"""Timing against clocks whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import psutil
import pytest

from omm_mlff.bench import timing
from omm_mlff.bench.timing import SPREAD_LIMIT, Timing, inconclusive, median, speedup, time_ways
from omm_mlff.errors import AnalysisError


class Clockwork:
    """A way that takes what it is told to take, and says so without taking it."""

    def __init__(self, name, cost, n_replicas=1, log=None, weather=lambda run: 1.0):
        self.name = name
        self.cost = cost
        self.n_replicas = n_replicas
        self.log = [] if log is None else log
        self.weather = weather
        self.runs = 0

    def run(self, n_steps):
        seconds = n_steps * self.cost * self.weather(self.runs)
        self.runs += 1
        self.log.append((self.name, n_steps))
        return seconds

    def close(self):
        pass


def chance_of_covering(n, rank):
    """That the rank-th smallest and largest of n enclose the median, by counting coin throws."""
    outside = sum(math.comb(n, k) for k in range(rank)) / 2**n
    return 1.0 - 2.0 * outside


@pytest.mark.parametrize("n", range(6, 60))
def test_the_interval_of_a_median_is_the_narrowest_that_covers_at_95_percent(n):
    found = median(np.arange(1.0, n + 1.0))  # the k-th smallest is k
    rank = round(found.low)
    assert found.high == n + 1 - rank
    assert chance_of_covering(n, rank) >= 0.95
    assert rank + 1 > n // 2 or chance_of_covering(n, rank + 1) < 0.95


@pytest.mark.parametrize("n", range(1, 6))
def test_the_interval_of_few_is_all_of_them(n):
    found = median(np.arange(float(n)))
    assert (found.low, found.high) == (0.0, n - 1.0)


def test_seconds_a_step_are_exact_where_the_clock_is():
    found = time_ways([Clockwork("a", 3e-4), Clockwork("b", 2e-6)], n_rounds=7, block_s=0.1)
    assert found["a"].step.value == pytest.approx(3e-4)
    assert found["b"].step.value == pytest.approx(2e-6)
    assert found["a"].spread == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("cost", [1e-7, 3e-5, 2e-2, 5.0])
def test_a_block_takes_about_as_long_as_was_asked_or_one_step(cost):
    way = Clockwork("a", cost)
    found = time_ways([way], n_rounds=3, block_s=0.4)["a"]
    assert found.n_steps == max(1, round(0.4 / cost))


def test_a_cheap_way_is_not_tried_for_long():
    way = Clockwork("a", 1e-7)
    time_ways([way], n_rounds=3, block_s=0.4)
    assert way.runs - 3 <= 4


def test_a_speedup_counts_steps_of_replicas():
    one, many = Clockwork("one", 1e-3), Clockwork("many", 4e-3, n_replicas=16)
    found = time_ways([one, many], n_rounds=6, block_s=0.1)
    assert speedup(found["one"], found["many"]).value == pytest.approx(4.0)
    assert speedup(found["many"], found["one"]).value == pytest.approx(0.25)
    assert found["many"].replica_step == pytest.approx(2.5e-4)


def test_what_slows_a_whole_round_leaves_ratios_alone():
    def weather(run):
        return 1.0 + 0.5 * math.sin(run)

    ways = [Clockwork("a", 0.1, weather=weather), Clockwork("b", 0.05, weather=weather)]
    found = time_ways(ways, n_rounds=20, block_s=0.1)
    assert found["a"].spread > 0.1
    ratio = speedup(found["a"], found["b"])
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((2.0, 2.0, 2.0))


def test_one_interrupted_block_moves_neither_median_nor_spread():
    def weather(run):
        return 100.0 if run == 4 else 1.0

    found = time_ways([Clockwork("a", 0.01, weather=weather)], n_rounds=9, block_s=0.1)["a"]
    assert max(found.seconds) > 10 * min(found.seconds)
    assert found.step.value == pytest.approx(0.01)
    assert found.conclusive


def rounds_of(log, n_ways, n_rounds):
    names = [name for name, _ in log[-n_ways * n_rounds :]]
    return [names[k : k + n_ways] for k in range(0, len(names), n_ways)]


def test_every_round_has_each_way_once_in_an_order_that_changes_and_repeats_by_seed():
    def orders(seed):
        log = []
        ways = [Clockwork(name, 0.1, log=log) for name in "abcd"]
        time_ways(ways, n_rounds=12, block_s=0.1, seed=seed)
        return rounds_of(log, 4, 12)

    found = orders(0)
    assert all(sorted(order) == list("abcd") for order in found)
    assert len({tuple(order) for order in found}) > 3
    assert orders(0) == found
    assert orders(1) != found


class Broken(Clockwork):
    def run(self, n_steps):
        if self.runs == 3:
            raise AnalysisError("it broke")
        return super().run(n_steps)


def test_a_way_that_cannot_be_timed_is_left_out_with_the_reason():
    failed = {}
    ways = [Clockwork("a", 0.1), Broken("b", 0.1)]
    found = time_ways(ways, n_rounds=9, block_s=0.1, failed=failed)
    assert failed == {"b": "it broke"}
    assert list(found) == ["a"]
    assert len(found["a"].seconds) == 9


def test_a_way_that_cannot_be_timed_ends_it_where_nobody_asks_for_the_reason():
    with pytest.raises(AnalysisError, match="it broke"):
        time_ways([Broken("b", 0.1)], n_rounds=9, block_s=0.1)


def test_progress_ends_with_all_rounds():
    seen = []
    time_ways(
        [Clockwork("a", 0.1)],
        n_rounds=3,
        block_s=0.1,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_the_spread_is_half_the_interquartile_range_over_the_median():
    assert Timing("a", 1, 1, (1.0, 2.0, 3.0, 4.0, 5.0)).spread == pytest.approx(1.0 / 3.0)


def test_a_wide_spread_is_named_with_its_size_and_the_limit():
    quiet = Timing("quiet", 1, 1, (1.0,) * 9)
    wide = Timing("wide", 1, 1, (1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0))
    assert inconclusive({"quiet": quiet}) == ""
    line = inconclusive({"quiet": quiet, "wide": wide})
    assert "too loaded" in line
    assert "wide is 50%" in line
    assert f"{SPREAD_LIMIT:.0%}" in line
    assert "\n" not in line


def test_what_is_busy_now_does_not_depend_on_the_last_minute(monkeypatch):
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 37.0 if interval > 0 else 0.0)
    monkeypatch.setattr("os.getloadavg", lambda: (64.0, 64.0, 64.0))
    assert timing.busy_now() == pytest.approx(0.37)
