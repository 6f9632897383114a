"""Drift: Verlet's own invariant, leaks of known size, and replicas that died."""

from __future__ import annotations

import math

import numpy as np
import pytest
from checks.fakes import FakeReplica, FakeRun, by_name, card, water

from omm_mlff.checks import drift
from omm_mlff.checks.base import Evidence
from omm_mlff.schema import Event
from omm_mlff.units import MEV_PER_KJMOL

MASS, STIFFNESS = 2.0, 3.0e5  # dalton, kJ/mol/nm^2: a period of 16 fs


def oscillator(timestep_fs: float, n_steps: int, *, phase=0.3, leak=0.0, wrong=1.0) -> FakeReplica:
    """Three uncoupled oscillators by leapfrog, recorded as the product records.

    `leak` (kJ/mol/ps) is added to the energy; `wrong` scales the forces, not the energy.
    """
    dt = timestep_fs * 1e-3
    turn = np.random.default_rng(round(10 * phase)).uniform(0.0, 2.0 * math.pi, size=(3, 3))
    rate = math.sqrt(STIFFNESS / MASS)
    x = 0.01 * np.cos(turn)
    v = -0.01 * rate * np.sin(turn - 0.5 * rate * dt)
    frames: dict[str, list] = {name: [] for name in ("positions", "velocities", "forces", "e", "k")}
    for step in range(n_steps):
        force = -wrong * STIFFNESS * x
        v_on = v + 0.5 * dt * force / MASS
        frames["positions"].append(x)
        frames["velocities"].append(v_on)
        frames["forces"].append(force)
        frames["e"].append(0.5 * STIFFNESS * (x**2).sum() + leak * step * dt)
        frames["k"].append(0.5 * MASS * (v_on**2).sum())
        v = v + dt * force / MASS
        x = x + dt * v
    arrays = {name: np.array(values) for name, values in frames.items()}
    return FakeReplica(
        3,
        dt,
        potential_energy=arrays.pop("e"),
        kinetic_energy=arrays.pop("k"),
        **arrays,
    )


def run_of(replicas, **options) -> FakeRun:
    return FakeRun(replicas, [MASS] * 3, **options)


def shadow(replica: FakeReplica, timestep_fs: float) -> np.ndarray:
    total = replica.potential_energy + replica.kinetic_energy
    return drift.shadow_energy(
        total, replica.velocities, replica.forces, np.full(3, MASS), timestep_fs * 1e-3
    )


def evidence(*runs: FakeRun, **options) -> Evidence:
    return Evidence(water(), card(), tuple(runs), **options)


def test_shadow_energy_is_the_closed_form_of_the_harmonic_oscillator() -> None:
    """Leapfrog conserves m v^2 / 2 + k x^2 (1 - (w dt)^2 / 4) / 2 exactly, v on the step.

    The expansion's shadow energy is (1 + (w dt)^2 / 6) times that, up to order dt^4.
    """
    for timestep_fs in (0.5, 0.25):
        replica = oscillator(timestep_fs, 400)
        square = STIFFNESS / MASS * (timestep_fs * 1e-3) ** 2
        exact = replica.kinetic_energy + replica.potential_energy * (1.0 - square / 4.0)
        assert np.ptp(exact) < 1e-12 * exact.mean()
        ours = shadow(replica, timestep_fs)
        assert ours == pytest.approx(exact[1:-1] * (1.0 + square / 6.0), rel=0.1 * square**2)


def test_shadow_energy_fluctuates_with_the_fourth_power_of_the_timestep() -> None:
    plain, shadowed = [], []
    for timestep_fs in (0.5, 0.25):
        replica = oscillator(timestep_fs, round(400 / timestep_fs))
        plain.append(np.ptp(replica.potential_energy + replica.kinetic_energy))
        shadowed.append(np.ptp(shadow(replica, timestep_fs)))
    assert math.log2(plain[0] / plain[1]) == pytest.approx(2.0, abs=0.05)
    assert math.log2(shadowed[0] / shadowed[1]) == pytest.approx(4.0, abs=0.05)


def test_a_known_leak_is_measured() -> None:
    leak = 0.01  # kJ/mol/ps
    replicas = [oscillator(0.5, 2000, phase=0.2 * k, leak=leak) for k in range(8)]
    found = by_name(drift.CHECK.measure(evidence(run_of(replicas))))
    expected = leak * MEV_PER_KJMOL / 3
    row = found["nve.drift"]
    assert row.ci_low < expected < row.ci_high
    assert row.value == pytest.approx(expected, rel=0.01)
    assert (row.n_samples, row.dof) == (8, 7.0)


def test_a_conservative_oscillator_does_not_drift() -> None:
    replicas = [oscillator(0.5, 2000, phase=0.7 * k) for k in range(8)]
    row = by_name(drift.CHECK.measure(evidence(run_of(replicas))))["nve.drift"]
    assert row.ci_low <= 0.0 <= row.ci_high
    assert row.ci_high - row.ci_low < 0.004


def test_the_shadow_energy_narrows_the_interval_of_the_drift() -> None:
    replicas = [oscillator(0.5, 1000, phase=0.7 * k) for k in range(8)]
    plain = [drift.slope(r.time, r.potential_energy + r.kinetic_energy) for r in replicas]
    shadowed = [drift.slope(r.time[1:-1], shadow(r, 0.5)) for r in replicas]
    assert np.std(shadowed) < np.std(plain) / 20.0


def test_a_thousandth_of_a_mev_is_four_kelvin_a_nanosecond() -> None:
    """DESIGN section 6: 0.001, 0.01 and 0.1 meV/atom/ps are 3.9, 39 and 390 K/ns."""
    assert round(0.001 * drift.KELVIN_PER_NS, 1) == 3.9
    replicas = [oscillator(0.5, 100, phase=k, leak=0.1) for k in range(3)]
    found = by_name(drift.CHECK.measure(evidence(run_of(replicas))))
    expected = found["nve.drift"].value * drift.KELVIN_PER_NS
    assert found["nve.drift_temperature"].value == pytest.approx(expected)


def test_energy_change_is_absent_where_nothing_is_said_of_the_atoms_energies() -> None:
    run = run_of([oscillator(0.5, 400, phase=k) for k in range(3)])
    found = by_name(drift.CHECK.measure(evidence(run, reference_energy_kjmol=None)))
    assert found["nve.energy_change"].value is None
    assert "does not say what part of its energy" in found["nve.energy_change"].not_applicable
    said = by_name(drift.CHECK.measure(evidence(run, reference_energy_kjmol=0.0)))
    assert found["nve.drift"].value == said["nve.drift"].value


def test_energy_change_is_relative_to_the_start_without_reference_energies() -> None:
    leak, reference = 2.0, -20000.0
    replicas = [oscillator(0.5, 2001, phase=k, leak=leak) for k in range(3)]
    plain = [r.potential_energy + r.kinetic_energy for r in replicas]
    for replica in replicas:
        replica.arrays["potential_energy"] = replica.potential_energy + reference
    run = run_of(replicas)
    ours = by_name(drift.CHECK.measure(evidence(run, reference_energy_kjmol=reference)))
    expected = np.mean([100.0 * abs(e[-1] - e[0]) / abs(e[0]) for e in plain])
    assert ours["nve.energy_change"].value == pytest.approx(expected, rel=1e-9)
    forgotten = by_name(drift.CHECK.measure(evidence(run)))
    assert forgotten["nve.energy_change"].value < 0.1 * expected


def test_an_energy_of_zero_at_the_start_has_no_percentage() -> None:
    still = [FakeReplica(3, 5e-4, potential_energy=np.zeros(32)) for _ in range(2)]
    row = by_name(drift.CHECK.measure(evidence(run_of(still))))["nve.energy_change"]
    assert "exactly 0" in row.not_applicable


def test_fluctuation_is_the_rms_about_the_line() -> None:
    time = np.arange(4000) * 5e-4
    energy = 7.0 + 3.0 * time + 0.5 * math.sqrt(2.0) * np.sin(2.0 * math.pi * time / 0.01)
    replicas = [FakeReplica(3, 5e-4, potential_energy=energy) for _ in range(2)]
    row = by_name(drift.CHECK.measure(evidence(run_of(replicas))))["nve.fluctuation"]
    assert row.value == pytest.approx(0.5 * MEV_PER_KJMOL / 3, rel=1e-3)


def test_a_record_with_gaps_has_no_shadow_energy_and_says_so() -> None:
    replicas = [oscillator(0.5, 100, phase=k) for k in range(3)]
    found = by_name(drift.CHECK.measure(evidence(run_of(replicas, stride=2))))
    assert "record stride of 1" in found["nve.drift"].not_applicable
    assert found["nve.fluctuation"].value is not None


def test_a_single_replica_has_a_drift_and_no_interval() -> None:
    row = by_name(drift.CHECK.measure(evidence(run_of([oscillator(0.5, 100)]))))["nve.drift"]
    assert row.value is not None
    assert (row.ci_low, row.ci_high, row.n_samples) == (-math.inf, math.inf, 1)


def test_fewer_than_sixteen_frames_are_not_applicable() -> None:
    found = drift.CHECK.measure(evidence(run_of([oscillator(0.5, 15) for _ in range(3)])))
    assert len(found) == 4
    assert all("15 frames" in row.not_applicable for row in found)


def died(step: int) -> Event:
    return Event("energy", step, step * 5e-4, (0, 1), 0.2, "eV/atom", "total energy is off")


def test_a_replica_that_died_late_counts_up_to_twenty_femtoseconds_before() -> None:
    replicas = [oscillator(0.5, 400, phase=k) for k in range(4)]
    spoiled = oscillator(0.5, 300, phase=9.0)
    # the last 20 fs rise steeply; they are the death, not the life
    spoiled.arrays["potential_energy"][-40:] += np.linspace(0.0, 1e4, 40)
    found = by_name(
        drift.CHECK.measure(evidence(run_of([*replicas, spoiled], events={4: died(300)})))
    )
    assert found["nve.drift"].n_samples == 5
    assert abs(found["nve.drift"].value) < 0.5
    assert found["nve.drift"].cause == ""


def test_a_replica_that_died_early_is_left_out_and_named() -> None:
    replicas = [oscillator(0.5, 400, phase=k) for k in range(4)]
    run = run_of([*replicas, oscillator(0.5, 150)], events={4: died(150)})
    row = by_name(drift.CHECK.measure(evidence(run)))["nve.drift"]
    assert row.n_samples == 4
    assert "replica 4 stopped at 0.075 ps (total energy is off)" in row.cause


def test_a_run_read_in_pieces_gives_what_it_gives_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of([oscillator(0.5, 333, phase=k, leak=1.0) for k in range(3)])
    whole = drift.CHECK.measure(evidence(run))
    monkeypatch.setattr(drift, "_PIECE", 50)
    pieces = drift.CHECK.measure(evidence(run))
    assert [row.value for row in pieces] == pytest.approx([row.value for row in whole], rel=1e-9)


def test_every_run_is_measured_at_its_own_place() -> None:
    runs = [
        run_of([oscillator(0.5, 64, phase=k) for k in range(2)], target_K=target)
        for target in (100.0, 500.0)
    ]
    found = [r for r in drift.CHECK.measure(evidence(*runs)) if r.name == "nve.drift"]
    assert [row.where.temperature_K for row in found] == [100.0, 500.0]
    assert found[0].where.run == runs[0].spec.name
