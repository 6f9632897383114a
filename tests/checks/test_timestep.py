"""Timestep: the power law of Verlet in closed form, and what breaks it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from checks.fakes import FakeReplica, FakeRun, by_name, card, water

from omm_mlff.checks import timestep
from omm_mlff.checks.base import Evidence
from omm_mlff.schema import Event
from omm_mlff.verdict.policies import check_bounds

MASS, STIFFNESS = 2.0, 3.0e5  # dalton, kJ/mol/nm^2: a period of 16 fs
RATE = math.sqrt(STIFFNESS / MASS)


def oscillator(timestep_fs, seed, *, length_ps=0.12, scale=1.0, curl=0.0, noise=0.0) -> FakeReplica:
    """Three oscillators by leapfrog; `scale` and `curl` spoil the forces, `noise` the energies."""
    random = np.random.default_rng([seed, round(1e4 * timestep_fs)])
    dt = timestep_fs * 1e-3
    x = 0.01 * random.normal(size=(3, 3))
    v = 0.01 * RATE * random.normal(size=(3, 3))
    frames = []
    for _ in range(round(length_ps / dt)):
        force = -STIFFNESS * x
        energy = 0.5 * STIFFNESS * (x**2).sum() + noise * random.normal()
        force = scale * force + curl * STIFFNESS * np.cross([0.0, 0.0, 1.0], x)
        v_on = v + 0.5 * dt * force / MASS
        frames.append((x, v_on, force, energy, 0.5 * MASS * (v_on**2).sum()))
        v = v + dt * force / MASS
        x = x + dt * v
    names = ("positions", "velocities", "forces", "potential_energy", "kinetic_energy")
    arrays = (np.array(values) for values in zip(*frames, strict=True))
    return FakeReplica(3, dt, **dict(zip(names, arrays, strict=True)))


def run_at(timestep_fs, n_replicas=4, *, first_seed=0, target_K=300.0, **options) -> FakeRun:
    replicas = [oscillator(timestep_fs, first_seed + k, **options) for k in range(n_replicas)]
    run = FakeRun(replicas, [MASS] * 3, timestep_fs=timestep_fs, target_K=target_K)
    run.spec = dataclasses.replace(run.spec, purpose="timestep")
    return run


def ladder(*timesteps, **options) -> list[FakeRun]:
    return [run_at(dt, first_seed=10 * k, **options) for k, dt in enumerate(timesteps)]


def measured(*runs):
    return by_name(timestep.CHECK.measure(Evidence(water(), card(), tuple(runs))))


def limits(row) -> dict[str, bool]:
    """Whether the value lies inside each criterion's bounds, by severity."""
    return {c.severity: c.low <= row.value <= c.high for c in timestep.CHECK.criteria}


def test_an_oscillators_exponent_is_the_closed_form() -> None:
    """rms(E) / rms(E - E_shadow) is 1 / (1 - (w dt)^2 / 6) for one frequency, at any phase."""
    row = measured(*ladder(0.25, 0.5))["timestep.exponent"]
    ratios = [1.0 / (1.0 - (RATE * dt * 1e-3) ** 2 / 6.0) for dt in (0.25, 0.5)]
    assert row.value == pytest.approx(2.0 + math.log2(ratios[1] / ratios[0]), abs=2e-3)
    assert row.ci_high - row.ci_low < 0.01
    assert row.n_samples == 8
    assert limits(row) == {"limit": True, "reject": True}


def test_different_velocities_in_every_run_do_not_blur_the_exponent() -> None:
    runs = ladder(0.125, 0.25, 0.5)
    energies = [run.replica(k).potential_energy for run in runs for k in range(4)]
    assert np.std(np.log([energy.std() for energy in energies])) > 0.15
    row = measured(*runs)["timestep.exponent"]
    assert row.standard_error < 0.002
    assert row.value == pytest.approx(2.0, abs=0.02)


@pytest.mark.parametrize("scale", [1.005, 0.995])
def test_forces_off_by_half_a_percent_break_the_power_law(scale: float) -> None:
    row = measured(*ladder(0.125, 0.25, 0.5, scale=scale))["timestep.exponent"]
    assert limits(row)["limit"] is False
    assert abs(row.value - 2.0) > 0.3
    assert "wrong force" in row.cause or row.value > 2.0


def test_forces_off_by_a_twentieth_of_a_percent_are_outside_the_limit() -> None:
    row = measured(*ladder(0.125, 0.25, 0.5, scale=0.9995))["timestep.exponent"]
    assert row.ci_high < 1.95


def test_a_curl_pulls_the_exponent_below_every_bound() -> None:
    row = measured(*ladder(0.125, 0.25, 0.5, curl=0.02))["timestep.exponent"]
    assert limits(row) == {"limit": False, "reject": False}
    assert row.value < 1.5


def test_noise_in_the_energy_pulls_the_exponent_down() -> None:
    row = measured(*ladder(0.125, 0.25, 0.5, noise=0.05))["timestep.exponent"]
    assert row.value < 1.95


def test_the_exponent_of_a_law_is_recovered_with_its_error() -> None:
    """Ratios that follow dt^-0.7 exactly, with independent noise: the interval covers 1.3."""
    random = np.random.default_rng(5)
    steps = (0.125, 0.25, 0.5)
    inside = 0
    for _ in range(400):
        ratios = [-0.7 * math.log(dt) + (0.05 + dt / 10) * random.normal(size=6) for dt in steps]
        found = timestep.exponent(steps, ratios)
        inside += found.ci_low < 1.3 < found.ci_high
    # the level is 0.983; four standard errors of 400 tries
    assert abs(inside / 400 - 0.983) < 4 * math.sqrt(0.983 * 0.017 / 400)


def test_every_timestep_safe_is_said_as_an_open_end() -> None:
    row = measured(*ladder(0.25, 0.5))["timestep.largest_safe"]
    assert (row.value, row.ci_high) == (0.5, math.inf)
    assert row.cause.startswith(">= 0.5 fs")


def test_a_timestep_near_the_limit_of_stability_is_not_safe() -> None:
    """Verlet is unstable from w dt = 2 on: 5.2 fs here; at 5 the energy swings without measure."""
    row = measured(*ladder(0.5, 1.0, 5.0, length_ps=0.5))["timestep.largest_safe"]
    assert row.value == 1.0
    assert row.cause.startswith("5 fs at 300 K")


def test_a_timestep_at_which_a_replica_was_stopped_is_not_safe() -> None:
    runs = ladder(0.25, 0.5)
    died = Event("energy", 350, 0.175, (), 0.2, "eV/atom", "total energy is off")
    runs[1].events = {0: died}
    row = measured(*runs)["timestep.largest_safe"]
    assert (row.value, row.ci_high) == (0.25, 0.25)
    assert "1 replicas were stopped" in row.cause


def test_a_drift_beyond_its_limit_is_not_safe() -> None:
    row = measured(*ladder(0.25, 0.5, curl=0.02))["timestep.largest_safe"]
    assert row.value == 0.0
    assert "drift" in row.cause


def test_timesteps_above_half_a_femtosecond_are_not_in_the_fit() -> None:
    runs = ladder(0.25, 0.5, 2.0)
    assert measured(*runs)["timestep.exponent"].n_samples == 8
    alone = measured(*ladder(0.5, 1.0, length_ps=0.5))
    assert "fewer than two timesteps up to 0.5 fs" in alone["timestep.exponent"].not_applicable
    assert alone["timestep.largest_safe"].value == 1.0


def test_one_timestep_has_no_exponent() -> None:
    found = measured(run_at(0.5), run_at(0.25, target_K=500.0))
    assert all("two timesteps" in row.not_applicable for row in found.values())


def test_temperatures_are_not_mixed_and_the_worst_is_named() -> None:
    sound = ladder(0.25, 0.5)
    wrong = ladder(0.25, 0.5, scale=1.005, target_K=500.0)
    row = measured(*sound, *wrong)["timestep.exponent"]
    assert abs(row.value - 2.0) > 0.1
    assert "at 500 K" in row.cause


def test_a_production_run_is_a_rung_of_the_ladder() -> None:
    production, other = ladder(0.25, 0.5)
    production.spec = dataclasses.replace(production.spec, purpose="production")
    hot = run_at(0.5, n_replicas=2)
    hot.spec = dataclasses.replace(hot.spec, purpose="survival")
    assert measured(production, other, hot)["timestep.exponent"].n_samples == 8


def test_single_replicas_give_no_interval() -> None:
    row = measured(*ladder(0.25, 0.5, n_replicas=1))["timestep.exponent"]
    assert (row.ci_low, row.ci_high) == (-math.inf, math.inf)


def test_atoms_that_do_not_move_have_no_exponent() -> None:
    still = [
        FakeRun(
            [FakeReplica(3, dt * 1e-3, potential_energy=np.zeros(64))], [MASS] * 3, timestep_fs=dt
        )
        for dt in (0.25, 0.5)
    ]
    assert all(row.value is None for row in measured(*still).values())


def test_the_bounds_are_allowed() -> None:
    check_bounds(timestep.CHECK.criteria, {row.name: row for row in timestep.CHECK.declares})
