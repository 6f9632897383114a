"""Soak: leaks and slowing down are seen; a noisy machine, an allocation and a new batch are not."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from checks.fakes import FakeReplica, FakeRun, by_name, card, water
from scipy.special import stdtr

from omm_mlff.checks import soak
from omm_mlff.checks.base import Evidence
from omm_mlff.record.rundir import Pace
from omm_mlff.schema import CONFIDENCE
from omm_mlff.verdict.policies import check_bounds

ROWS = 40
STEPS_PER_ROW = 256


def run_with(seconds=None, memory=None, n_batches=1, n_parts=1) -> FakeRun:
    """A run with a pace of its own; what is not given is constant."""
    n = (
        len(seconds if seconds is not None else memory)
        if (seconds is not None or memory is not None)
        else 0
    )
    run = FakeRun([FakeReplica(3, 5e-4, potential_energy=np.zeros(8))], [1.0] * 3)
    per_batch = max(1, n // n_batches)
    row = np.arange(n)
    run.pace = Pace(
        row // per_batch,
        row // max(1, n // n_parts),
        (row % per_batch + 1.0) * STEPS_PER_ROW,
        np.full(n, 1e-3) if seconds is None else np.asarray(seconds),
        np.full(n, 600.0) if memory is None else np.asarray(memory),
    )
    return run


def measured(run):
    return by_name(soak.CHECK.measure(Evidence(water(), card(), (run,))))


def verdict(row, severity="limit") -> str:
    """As `judge` decides a sampled measurement: pass, fail or undecided."""
    (high,) = (
        c.high for c in soak.CHECK.criteria if c.measurement == row.name and c.severity == severity
    )
    if row.ci_high <= high:
        return "pass"
    if row.standard_error == 0.0:
        return "fail"
    t = (row.value - high) / row.standard_error
    return "fail" if t > 0.0 and stdtr(row.dof, -t) < 1.0 - CONFIDENCE else "undecided"


def bursts(random: np.random.Generator, n: int) -> np.ndarray:
    """Pace on a machine with other work: 1.5 to 4 times as slow, for some rows, 30% of the time."""
    pace = 1.0 + 0.05 * np.abs(random.normal(size=n))
    at, slow = 0, random.random() < 0.3
    while at < n:
        length = 1 + int(random.exponential(5.0 if slow else 12.0))
        if slow:
            pace[at : at + length] *= random.uniform(1.5, 4.0)
        at, slow = at + length, not slow
    return pace


@pytest.mark.parametrize("n_rows", [ROWS, 400])
def test_a_pace_that_grows_linearly_is_measured(n_rows: int) -> None:
    noise = 1.0 + 0.02 * np.random.default_rng(1).normal(size=n_rows)
    grown = np.linspace(1.0, 4.0, n_rows) * noise
    row = measured(run_with(1e-3 * grown))["soak.slowdown"]
    # relative to the start, but for the row left out; noise makes the least of three smaller
    assert 2.2 < row.value < 3.1
    assert verdict(row) == "fail"
    assert verdict(row, "reject") == "pass"
    assert "in the first quarter" in row.cause


def test_a_pace_of_twenty_times_is_rejected() -> None:
    row = measured(run_with(1e-3 * np.linspace(1.0, 60.0, 200) ** 1.5))["soak.slowdown"]
    assert verdict(row) == "fail"


def test_a_steady_pace_passes() -> None:
    noise = np.random.default_rng(2).normal(size=ROWS)
    row = measured(run_with(1e-3 * (1.0 + 0.05 * noise)))["soak.slowdown"]
    assert abs(row.value) < 0.1
    assert verdict(row) == "pass"


@pytest.mark.parametrize("start", [5, 13, 20, 27, 33])
def test_other_work_that_comes_and_stays_is_no_slowdown(start: int) -> None:
    noise = 1.0 + 0.03 * np.random.default_rng(start).normal(size=ROWS)
    row = measured(run_with(np.where(np.arange(ROWS) < start, 1e-3, 3e-3) * noise))["soak.slowdown"]
    assert verdict(row) == "pass"


def test_bursts_of_other_work_fail_no_run_in_a_thousand() -> None:
    random = np.random.default_rng(3)
    verdicts = [
        verdict(measured(run_with(1e-3 * bursts(random, ROWS)))["soak.slowdown"])
        for _ in range(1000)
    ]
    assert verdicts.count("fail") == 0
    assert verdicts.count("undecided") < 100  # these are made longer


def test_a_leak_of_a_kilobyte_a_step_is_measured_and_beyond_the_limit() -> None:
    steps = np.arange(1, ROWS + 1) * STEPS_PER_ROW
    leak = 600.0 + np.round(steps * 1000.0 / 4096) * 4096 / 2**20
    row = measured(run_with(memory=leak))["soak.memory_growth"]
    assert row.value == pytest.approx(1.0, rel=0.02)
    assert verdict(row) == "fail"
    assert "after the first quarter" in row.cause


@pytest.mark.parametrize("n_rows", [40, 150, 400])
def test_a_leak_is_per_step_whatever_the_length(n_rows: int) -> None:
    steps = np.arange(1, n_rows + 1) * STEPS_PER_ROW
    row = measured(run_with(memory=600.0 + steps * 300.0 / 2**20))["soak.memory_growth"]
    assert row.value == pytest.approx(0.3, rel=0.01)


def test_a_leak_in_large_allocations_is_seen_all_the_same() -> None:
    steps = np.arange(1, 401) * STEPS_PER_ROW
    row = measured(run_with(memory=600.0 + np.floor(steps * 1e3 / 2**22) * 4.0))
    assert row["soak.memory_growth"].value == pytest.approx(1.0, rel=0.15)
    assert verdict(row["soak.memory_growth"]) == "fail"


@pytest.mark.parametrize("at", [2, 8, 15, 22, 30, 36])
def test_one_allocation_is_no_leak_wherever_it_falls(at: int) -> None:
    """A resumed run is another process with other memory: a step down or up."""
    for change in (+50.0, -80.0):
        memory = 600.0 + change * (np.arange(ROWS) >= at)
        row = measured(run_with(memory=memory))["soak.memory_growth"]
        assert row.value == 0.0
        assert verdict(row) == "pass"


def test_memory_that_rises_while_buffers_fill_is_no_leak() -> None:
    memory = 600.0 + 30.0 * np.minimum(np.arange(ROWS), 9) / 9.0
    assert measured(run_with(memory=memory))["soak.memory_growth"].value == 0.0


def test_spikes_of_memory_are_no_leak() -> None:
    random = np.random.default_rng(4)
    memory = 600.0 + 3.0 * (random.random(ROWS) < 0.3)
    assert verdict(measured(run_with(memory=memory))["soak.memory_growth"]) == "pass"


def test_a_new_batch_has_memory_and_pace_of_its_own() -> None:
    batch = np.repeat([0, 1, 2], ROWS)
    run = run_with(1e-3 * (1.0 + batch), 600.0 + 40.0 * batch, n_batches=3)
    found = measured(run)
    assert found["soak.memory_growth"].value == 0.0
    assert found["soak.slowdown"].value == 0.0
    assert found["soak.slowdown"].n_samples == 3 * ((ROWS - 1) // soak.N_PARTS)


@pytest.mark.parametrize("n_rows", [0, 1, 11, 23])
def test_a_short_run_says_nothing_of_growth(n_rows: int) -> None:
    found = measured(run_with(np.full(n_rows, 1e-3)))
    assert all("rows of pace" in row.not_applicable for row in found.values())


def test_the_bounds_are_allowed() -> None:
    check_bounds(soak.CHECK.criteria, {row.name: row for row in soak.CHECK.declares})


def test_every_run_is_measured_at_its_own_place() -> None:
    runs = [run_with(np.full(ROWS, 1e-3)) for _ in range(2)]
    runs[1].spec = dataclasses.replace(runs[1].spec, temperature_K=500.0)
    found = soak.CHECK.measure(Evidence(water(), card(), tuple(runs)))
    assert [row.where.temperature_K for row in found] == [300.0, 300.0, 500.0, 500.0]
    assert not any(math.isnan(row.value) for row in found)


def test_an_extension_that_starts_at_the_old_pace_hides_no_slowdown() -> None:
    """A longer look goes on in a new Context, where what has piled up is gone."""
    growing = 1e-3 * np.linspace(1.0, 5.0, ROWS)
    once, twice = run_with(growing), run_with(np.tile(growing, 2), n_parts=2)
    value = measured(once)["soak.slowdown"].value
    again = measured(twice)["soak.slowdown"]
    assert again.value == pytest.approx(value, rel=1e-6)
    assert again.n_samples == 2 * measured(once)["soak.slowdown"].n_samples


@pytest.mark.parametrize("steps", [(0.3, 0.63), (0.34, 0.67), (0.2, 0.8)])
def test_two_jobs_that_come_and_stay_are_no_slowdown(steps) -> None:
    row = np.arange(78)
    load = 1.6 ** sum((row >= part * 78).astype(float) for part in steps)
    noise = 1.0 + 0.03 * np.random.default_rng(2).normal(size=78)
    assert verdict(measured(run_with(1e-3 * load * noise))["soak.slowdown"]) == "pass"


def test_a_run_that_was_extended_counts_its_parts(tmp_path) -> None:
    import dataclasses

    from springs import SpringPotential, triatomic

    from omm_mlff.dynamics.simulate import simulate
    from omm_mlff.schema import RunSpec

    spec = RunSpec("springs", "springs", 0.3, 300.0, 2, seed=1, platform="Reference")
    potential, system = SpringPotential(), triatomic()
    simulate(spec, potential, system, tmp_path / "run")
    longer = dataclasses.replace(spec, length_ps=0.6)
    pace = simulate(longer, potential, system, tmp_path / "run", resume=True).pace
    assert pace.part.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert pace.step.tolist() == [256.0, 512.0, 856.0, 1112.0]
