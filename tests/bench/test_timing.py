"""Timing against clocks whose truth is known."""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from omm_mlff.bench.compare import compare
from omm_mlff.bench.document import read, write
from omm_mlff.bench.rows import BenchDocument, IntervalRow, MemoryRow, RatioRow, ResultRow, WayRow
from omm_mlff.bench.scaling import exponent
from omm_mlff.bench.timing import (
    SPREAD_LIMIT,
    Timing,
    inconclusive,
    median,
    speedup,
    time_ways,
)
from omm_mlff.errors import InputError


class Clockwork:
    """A way that takes what it is told to take, and says so without waiting."""

    def __init__(self, name, seconds, n_replicas=1, drift=None):
        self.name, self.seconds, self.n_replicas = name, seconds, n_replicas
        self.drift = drift or (lambda: 1.0)
        self.calls = []

    def run(self, n_steps):
        self.calls.append(n_steps)
        return n_steps * self.seconds * self.drift()

    def close(self):
        pass


def test_interval_of_the_median_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for n, level in ((9, 0.95), (15, 0.95), (5, 0.93)):
        samples = rng.exponential(size=(4000, n))
        found = [median(row.tolist()) for row in samples]
        covered = np.mean([i.low <= np.log(2.0) <= i.high for i in found])
        assert covered > level - 3.0 * np.sqrt(level * (1.0 - level) / 4000)


def test_interval_agrees_with_scipys_quantile_test():
    values = np.random.default_rng(1).normal(size=25)
    ours = median(values.tolist())
    theirs = stats.quantile_test(values, q=0.0, p=0.5).confidence_interval(0.95)
    assert ours.low == pytest.approx(theirs.low)
    assert ours.high == pytest.approx(theirs.high)


def test_ratio_does_not_see_what_slows_both_down():
    rng = np.random.default_rng(2)
    load = {"now": 1.0}

    def loaded():
        load["now"] *= float(rng.uniform(0.9, 1.12))
        return load["now"]

    slow, fast = Clockwork("slow", 6e-3, 1, loaded), Clockwork("fast", 1e-3, 2, loaded)
    timings = time_ways([slow, fast], n_rounds=31, block_s=0.1)
    found = speedup(timings["slow"], timings["fast"])
    assert found.low < 12.0 < found.high
    assert found.value == pytest.approx(12.0, rel=0.1)
    assert timings["slow"].spread > SPREAD_LIMIT
    assert "too loaded to conclude" in inconclusive(timings)


def test_every_round_has_a_block_of_each_way_about_as_long_as_asked():
    ways = [Clockwork("a", 1e-3), Clockwork("b", 2e-5)]
    seen = []
    timings = time_ways(ways, n_rounds=7, block_s=0.5, progress=lambda *row: seen.append(row))
    assert seen == [(k, 7) for k in range(1, 8)]
    assert [timings[name].n_steps for name in "ab"] == [500, 25000]
    assert all(way.calls[-7:] == [timings[way.name].n_steps] * 7 for way in ways)
    assert timings["a"].seconds == pytest.approx((1e-3,) * 7)
    assert inconclusive(timings) == ""


def test_a_replicas_share_is_the_step_over_the_replicas():
    timing = Timing("many", 16, 10, (0.16, 0.15, 0.17))
    assert timing.replica_step == pytest.approx(0.01)


def test_a_real_sleep_is_timed():
    class Sleeper(Clockwork):
        def run(self, n_steps):
            began = time.perf_counter()
            time.sleep(2e-3 * n_steps)
            return time.perf_counter() - began

    timing = time_ways([Sleeper("sleep", 0.0)], n_rounds=3, block_s=0.05)["sleep"]
    assert timing.step.value >= 2e-3


def test_exponent_of_a_power_law_is_found_with_its_interval():
    sizes = np.array([300, 1000, 3000, 10000])
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(200):
        fit = exponent(sizes, 0.02 * sizes**1.04 * np.exp(rng.normal(scale=0.03, size=4)))
        inside += fit.low <= 1.04 <= fit.high
    assert 180 <= inside <= 198
    assert exponent([1, 10], [2, 200]).value == pytest.approx(2.0)


def document(steps, *, processor="one", spread=0.01, model="tiny") -> BenchDocument:
    ways = tuple(
        WayRow(name, 1, 9, 10, IntervalRow(ms, 0.99 * ms, 1.01 * ms), ms, 1.0, 1.0, 1.0, spread)
        for name, ms in steps.items()
    )
    ratios = tuple(
        RatioRow(
            "yardstick",
            name,
            steps["yardstick"] / ms,
            0.98 * steps["yardstick"] / ms,
            1.02 * steps["yardstick"] / ms,
        )
        for name, ms in steps.items()
        if name != "yardstick"
    )
    result = ResultRow(model, "water", 3, None, ways, ratios, (), MemoryRow())
    machine = dataclasses.replace(
        read(Path(__file__).parents[2] / "analysis" / "bench").provenance, processor=processor
    )
    return BenchDocument(machine, True, (), (result,), (), ())


BEFORE = {"yardstick": 2.0, "single": 0.2, "recorded": 0.5}


@pytest.mark.parametrize(
    ("after", "code", "changes"),
    [
        (BEFORE, 0, {"single": "same", "recorded": "same"}),
        ({**BEFORE, "single": 0.23}, 1, {"single": "slower", "recorded": "same"}),
        ({**BEFORE, "single": 0.205}, 0, {"single": "same", "recorded": "same"}),
        ({**BEFORE, "recorded": 0.4}, 0, {"single": "same", "recorded": "faster"}),
        # The script is somebody else's: that it got slower is no regression here.
        ({**BEFORE, "yardstick": 4.0}, 0, {"single": "same", "recorded": "same"}),
    ],
)
def test_what_got_slower_beyond_the_noise_is_a_regression(after, code, changes):
    found = compare(document(BEFORE), document(after))
    assert found.exit_code == code
    assert {row.way.split()[0]: row.change for row in found.rows} == changes
    assert found.measure == "ms a step"


def test_on_another_machine_ratios_to_the_yardstick_are_compared():
    twice_as_fast = {name: 0.5 * ms for name, ms in BEFORE.items()}
    there = document(twice_as_fast, processor="another")
    assert compare(document(BEFORE), there).exit_code == 0
    slower = document({**twice_as_fast, "single": 0.12}, processor="another")
    found = compare(document(BEFORE), slower)
    assert found.exit_code == 1
    assert [row.way for row in found.rows if row.change == "slower"] == ["single"]
    assert next(row for row in found.rows if row.way == "single").factor == pytest.approx(1.2)


def test_a_spread_that_is_too_wide_decides_nothing():
    found = compare(document(BEFORE), document({**BEFORE, "single": 0.6}, spread=0.3))
    assert found.exit_code == 3
    assert {row.change for row in found.rows} == {"undecided"}


def test_nothing_in_common_is_refused():
    other = document(BEFORE, model="original")
    with pytest.raises(InputError, match="no way, model and system in common"):
        compare(document(BEFORE), other)


COMMITTED = Path(__file__).parents[2] / "analysis" / "bench"


def test_a_benchmark_is_read_as_it_was_written(tmp_path):
    committed = read(COMMITTED)  # by the version before documents were typed
    assert {row.system for row in committed.results} >= {"water", "alanine"}
    assert committed.scaling[0].time_exponent is not None
    assert repr(read(write(committed, tmp_path))) == repr(committed)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"schema": 2}, "is no benchmark of schema 1"),
        ({"pareto": [{"potential": "tiny"}]}, r"is damaged at pareto\.0\.source"),
        ({"moon": 1}, "is damaged at moon"),
    ],
)
def test_a_damaged_benchmark_is_refused_by_name(tmp_path, change, complaint):
    found = json.loads((COMMITTED / "bench.json").read_text())
    (tmp_path / "bench.json").write_text(json.dumps({**found, **change}))
    with pytest.raises(InputError, match=complaint):
        read(tmp_path)
