"""Survival over a temperature ladder: runs made by hand, with what happens in them known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from checks.fakes import WATER, FakeReplica, FakeRun, by_name, card, water
from springs import molecule

from omm_mlff.checks import survival
from omm_mlff.checks.base import Evidence
from omm_mlff.schema import Event, Measurement
from omm_mlff.statistics.intervals import garwood
from omm_mlff.statistics.kaplan_meier import survival_at

N_FRAMES, DT = 400, 5e-4
LENGTH = N_FRAMES * DT


def at_rest(n_frames: int = N_FRAMES) -> np.ndarray:
    return np.tile(np.array(WATER), (n_frames, 1, 1))


def broken(first: int) -> np.ndarray:
    """Bond 0-1 is 0.6 angstrom too long from a frame on."""
    positions = at_rest()
    positions[first:, 1, 0] += 0.06
    return positions


def run(kelvin: float, *trajectories: np.ndarray, purpose="survival", system=None, **options):
    system = system or water()
    replicas = [FakeReplica(system.n_atoms, DT, positions=x) for x in trajectories]
    made = FakeRun(replicas, system.masses, target_K=kelvin, **options)
    made.spec = dataclasses.replace(made.spec, purpose=purpose, length_ps=LENGTH)
    return made


def measured(*runs, system=None) -> list[Measurement]:
    return survival.CHECK.measure(Evidence(system or water(), card(), runs))


def at(found: list[Measurement], kelvin: float) -> dict[str, Measurement]:
    return by_name([row for row in found if row.where.temperature_K == kelvin])


def criterion(name: str):
    return next(row for row in survival.CHECK.criteria if row.name == name)


def test_a_ladder_without_an_event_survives_to_its_top_and_its_end() -> None:
    found = measured(*(run(kelvin, *[at_rest()] * 8) for kelvin in (300.0, 100.0, 700.0)))
    assert by_name(found)["survival.highest_temperature"].value == 700.0
    assert "no event" in by_name(found)["survival.lowest_failure"].not_applicable
    rung = at(found, 300.0)
    assert (rung["survival.events"].value, rung["survival.events"].n_samples) == (0, 8)
    assert rung["survival.events"].exposure_ps == pytest.approx(8 * LENGTH)
    probability = rung["survival.probability"]
    assert (probability.value, probability.ci_high) == (1.0, 1.0)
    assert probability.ci_low == pytest.approx(
        survival_at(LENGTH, np.full(8, LENGTH), np.zeros(8, bool)).ci_low
    )
    per_ns = 1000.0 / (8 * LENGTH)
    assert rung["survival.rate_limit"].value == pytest.approx(garwood(0)[1] * per_ns)


def test_nothing_is_claimed_beyond_the_run_and_a_nanosecond_has_its_price() -> None:
    row = at(measured(run(300.0, *[at_rest()] * 8)), 300.0)["survival.probability"]
    assert row.cause.startswith("for 0.2 ps and no longer")
    assert "59 replicas of 1 ns" in row.cause
    assert "watched here: 0.0016 ns" in row.cause


def test_events_end_the_watch_of_their_replicas() -> None:
    crash = Event("nan", 300, 300 * DT, (0, 2), float("nan"), "kJ/mol", "not finite")
    found = measured(
        run(300.0, at_rest(), broken(100), at_rest(300), at_rest(200), events={2: crash})
    )
    rung = at(found, 300.0)
    row = rung["survival.events"]
    assert (row.value, row.where.replica, row.where.frame, row.where.atoms) == (2, 1, 100, (0, 1))
    assert row.cause.startswith("bond O0-H1 at 1.56 angstrom (0.96 at rest), replica 1 of ")
    assert row.cause.endswith("at 0.05 ps; 2 of 4 replicas")
    until = np.array([LENGTH, 100 * DT, 300 * DT, 200 * DT])  # the last spent its budget early
    had = np.array([False, True, True, False])
    assert row.exposure_ps == pytest.approx(until.sum())
    expected = survival_at(LENGTH, until, had)
    probability = rung["survival.probability"]
    assert probability.value == pytest.approx(expected.probability) == pytest.approx(3 / 4 / 2)
    assert (probability.ci_low, probability.ci_high) == pytest.approx(
        (expected.ci_low, expected.ci_high)
    )


def test_the_first_witness_decides_when_it_happened() -> None:
    late = Event("bond", 140, 140 * DT, (0, 1), 0.156, "nm", "bond O0-H1 is 1.56 angstrom long")
    found = measured(run(300.0, broken(100)[:141], events={0: late}))
    assert at(found, 300.0)["survival.events"].exposure_ps == pytest.approx(100 * DT)


def test_a_hydrogen_transfer_is_called_one() -> None:
    system = molecule([8, 1, 7], [[0, 0, 0], [0.1, 0, 0], [0.3, 0, 0]], [[0, 1]])
    positions = np.tile(system.positions, (N_FRAMES, 1, 1))
    positions[150:, 1, 0] = 0.2
    found = measured(run(300.0, positions, system=system), system=system)
    cause = at(found, 300.0)["survival.events"].cause
    assert cause.startswith("hydrogen transfer: H1 from O0 to N2")


def test_runs_at_one_temperature_are_pooled() -> None:
    ladder = run(300.0, *[at_rest()] * 3)
    production = run(300.0, *[at_rest()] * 5, purpose="production")
    stepped = run(300.0, *[broken(5)] * 5, purpose="timestep")
    row = at(measured(ladder, production, stepped), 300.0)["survival.events"]
    assert (row.value, row.n_samples) == (0, 8)


def test_a_model_that_breaks_at_room_temperature_fails_the_reject_criterion() -> None:
    found = by_name(measured(run(100.0, at_rest()), run(300.0, at_rest(), broken(50))))
    highest = found["survival.highest_temperature"]
    assert highest.value == 100.0 < criterion("survival.highest_temperature-reject").low
    assert highest.where.atoms == (0, 1)
    assert "at 300 K bond O0-H1" in highest.cause
    alone = by_name(measured(run(300.0, broken(50))))["survival.highest_temperature"]
    assert alone.value == 0.0


@pytest.mark.parametrize(("kelvin", "limited"), [(500.0, True), (700.0, False), (1000.0, False)])
def test_what_breaks_only_when_hot_is_not_rejected(kelvin: float, limited: bool) -> None:
    found = by_name(measured(run(300.0, at_rest()), run(kelvin, broken(50))))
    highest = found["survival.highest_temperature"]
    assert highest.value == 300.0 >= criterion("survival.highest_temperature-reject").low
    lowest = found["survival.lowest_failure"]
    assert (lowest.value, lowest.where.temperature_K) == (kelvin, kelvin)
    assert (lowest.value < criterion("survival.lowest_failure-limit").low) is limited


def test_a_temperature_above_a_failure_is_not_called_survived() -> None:
    runs = [run(300.0, at_rest()), run(500.0, broken(9)), run(700.0, at_rest())]
    assert by_name(measured(*runs))["survival.highest_temperature"].value == 300.0


@pytest.mark.parametrize(
    "runs", [[(100.0, at_rest())], [(500.0, broken(9))], [(100.0, at_rest()), (500.0, broken(9))]]
)
def test_what_was_not_run_at_room_temperature_is_not_judged_there(runs) -> None:
    found = by_name(measured(*(run(kelvin, x) for kelvin, x in runs)))
    row = found["survival.highest_temperature"]
    assert "nothing is known of 300 K: add a run there" in row.not_applicable


def test_a_run_that_never_began_says_so() -> None:
    found = measured(run(300.0, at_rest(0)))
    assert len(found) == 5
    assert all(row.not_applicable == "no replica has a frame" for row in found)


def test_the_lifetimes_behind_the_limit_are_those_of_arrhenius() -> None:
    """The docstring's (nu tau)^(T / 300 K) / nu, against E = k T ln(nu tau) put back at 300 K."""
    for kelvin, low, high in ((500.0, 2e4, 1e5), (600.0, 2.5e5, 2.6e6), (700.0, 3e6, 7e7)):
        lives = []
        for attempts in (10.0, 100.0):
            barrier = kelvin * np.log(attempts * 160.0)  # over k, K
            lives.append(np.exp(barrier / 300.0) / attempts)
            assert lives[-1] == pytest.approx((attempts * 160.0) ** (kelvin / 300.0) / attempts)
        assert 0.99 * low <= lives[0] < lives[1] <= 1.05 * high
