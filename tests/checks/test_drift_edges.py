"""Drift at its edges: the bounds that are published, the shortest record, pieces of any length."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from checks.fakes import FakeReplica, FakeRun, by_name, card, water

from omm_mlff.checks import drift
from omm_mlff.checks.base import Evidence
from omm_mlff.checks.frames import MIN_FRAMES, Sample
from omm_mlff.errors import AnalysisError

MASSES = [16.0, 1.0, 1.0]


def replica(n_frames: int, seed: int = 0) -> FakeReplica:
    rng = np.random.default_rng(seed)
    vectors = {
        name: rng.normal(size=(n_frames, 3, 3)) for name in ("positions", "velocities", "forces")
    }
    energies = {name: rng.normal(size=n_frames) for name in ("potential_energy", "kinetic_energy")}
    return FakeReplica(3, 5e-4, **vectors, **energies)


def test_the_bounds_are_those_of_design_section_6() -> None:
    rows = {row.name: row for row in drift.CHECK.criteria}
    assert {(row.severity, row.low, row.high, row.unit) for row in rows.values()} == {
        ("info", -0.001, 0.001, "meV/atom/ps"),
        ("limit", -0.01, 0.01, "meV/atom/ps"),
        ("reject", -0.1, 0.1, "meV/atom/ps"),
    }
    assert {row.measurement for row in rows.values()} == {"nve.drift"}
    assert rows["nve.drift-info"].severity == "info"


def test_what_is_declared_has_the_units_and_kinds_that_a_policy_may_name() -> None:
    found = {row.name: (row.kind, row.unit, row.error_exponent) for row in drift.CHECK.declares}
    assert found == {
        "nve.drift": ("sampled", "meV/atom/ps", None),
        "nve.drift_temperature": ("info", "K/ns", None),
        "nve.energy_change": ("sampled", "%", 0.0),
        "nve.fluctuation": ("info", "meV/atom", None),
    }
    assert {row.check for row in drift.CHECK.declares} == {drift.CHECK.name}


def test_shadow_energy_of_one_atom_is_the_formula_by_hand() -> None:
    """Mass 2, timestep 0.3: v . dF/dt = (2 * (7 - 1) + 1 * (4 - 0)) / 0.6, |F|^2 = 9 + 16."""
    total = np.array([10.0, 20.0, 30.0])
    velocities = np.array([[[0.0, 0.0, 0.0]], [[2.0, 1.0, 0.0]], [[9.0, 9.0, 9.0]]])
    forces = np.array([[[1.0, 0.0, 5.0]], [[3.0, 4.0, 0.0]], [[7.0, 4.0, 5.0]]])
    found = drift.shadow_energy(total, velocities, forces, np.array([2.0]), 0.3)
    expected = 20.0 + 0.3**2 * (-((2 * 6 + 1 * 4) / 0.6) / 12 - 25.0 / (24 * 2.0))
    assert found == pytest.approx([expected], rel=1e-14)


def test_a_slope_is_numpys_and_needs_as_many_frames_as_it_says() -> None:
    rng = np.random.default_rng(4)
    time, values = np.sort(rng.random(MIN_FRAMES - 2)) + 3.0, rng.normal(size=MIN_FRAMES - 2)
    assert drift.slope(time, values) == pytest.approx(np.polyfit(time, values, 1)[0], rel=1e-10)
    with pytest.raises(AnalysisError, match="a slope needs 16 frames, got 15"):
        drift.slope(time[1:], values[1:])
    values[3] = np.inf
    with pytest.raises(AnalysisError, match="finite energies"):
        drift.slope(time, values)


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 40, 41, 4096])
def test_a_record_is_the_same_whatever_pieces_it_is_read_in(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = replica(40)
    run = FakeRun([one], MASSES)
    monkeypatch.setattr(drift, "_PIECE", piece)
    found = drift.energies(run, Sample(0, one, 40))
    total = one.potential_energy + one.kinetic_energy
    assert (found.first, found.last) == (total[0], total[-1])
    np.testing.assert_array_equal(found.time, one.time[1:-1])
    np.testing.assert_array_equal(found.total, total[1:-1])
    expected = drift.shadow_energy(total, one.velocities, one.forces, run.masses, 5e-4)
    np.testing.assert_allclose(found.shadow, expected, rtol=1e-13)
    for array in (found.time, found.total, found.shadow):
        assert not array.flags.writeable


def test_only_the_frames_of_a_sample_count_and_another_sample_is_read_anew() -> None:
    one = replica(40)
    run = FakeRun([one, replica(40, seed=1)], MASSES)
    short = drift.energies(run, Sample(0, one, 20))
    total = one.potential_energy + one.kinetic_energy
    assert (len(short.total), short.last) == (18, total[19])
    assert drift.energies(run, Sample(0, one, 40)).last == total[-1]
    assert drift.energies(run, Sample(1, run.replica(1), 40)).last != total[-1]
    assert drift.energies(run, Sample(0, one, 20)) is short


def test_every_row_of_a_run_whose_replicas_were_left_out_is_absent_with_the_reason() -> None:
    run = FakeRun([replica(15), replica(15)], MASSES)
    rows = drift.CHECK.measure(Evidence(water(), card(), (run,)))
    assert [row.name for row in rows] == [row.name for row in drift.CHECK.declares]
    for row in rows:
        assert row.value is None
        assert "replica 0 has 15 frames" in row.not_applicable
        assert (row.where.system, row.where.run) == ("water", run.spec.name)


def test_a_replica_that_was_left_out_is_named_in_every_row_that_has_a_value() -> None:
    run = FakeRun([replica(64), replica(64, 1), replica(15, 2)], MASSES)
    rows = by_name(
        drift.CHECK.measure(Evidence(water(), card(), (run,), reference_energy_kjmol=0.0))
    )
    assert len(rows) == 4
    for row in rows.values():
        assert row.n_samples == 2
        assert "replica 2 has 15 frames" in row.cause


def test_a_percentage_counts_either_way_and_needs_every_replicas_start() -> None:
    up, down, still = (replica(32) for _ in range(3))
    for one, last in ((up, 11.0), (down, 8.0), (still, 5.0)):
        energy = np.full(32, 10.0)
        energy[-1] = last
        one.arrays |= {"potential_energy": energy, "kinetic_energy": np.zeros(32)}
    run = FakeRun([up, down], MASSES)
    evidence = Evidence(water(), card(), (run,), reference_energy_kjmol=0.0)
    row = by_name(drift.CHECK.measure(evidence))["nve.energy_change"]
    assert row.value == pytest.approx((10.0 + 20.0) / 2)
    shifted = dataclasses.replace(evidence, reference_energy_kjmol=5.0)
    row = by_name(drift.CHECK.measure(shifted))["nve.energy_change"]
    assert row.value == pytest.approx((20.0 + 40.0) / 2)
    at_zero = dataclasses.replace(evidence, reference_energy_kjmol=10.0)
    assert "exactly 0" in by_name(drift.CHECK.measure(at_zero))["nve.energy_change"].not_applicable
