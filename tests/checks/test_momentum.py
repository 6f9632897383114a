"""Momentum: rigid motions whose fraction is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from checks.fakes import WATER, FakeReplica, FakeRun, by_name, card, water

from omm_mlff.checks import momentum
from omm_mlff.checks.base import Evidence

MASSES = np.array([16.0, 1.0, 1.0])


def measured(positions, velocities, system=None):
    replica = FakeReplica(3, 5e-4, positions=positions, velocities=velocities)
    still = FakeReplica(3, 5e-4, positions=positions)
    run = FakeRun([still, replica], MASSES)
    return by_name(momentum.CHECK.measure(Evidence(system or water(), card(), (run,))))


def test_a_molecule_that_flies_without_vibrating_has_all_of_it() -> None:
    positions = np.tile(WATER, (4, 1, 1))
    found = measured(positions, np.tile([0.3, -0.1, 0.2], (4, 3, 1)))
    assert found["nve.momentum"].value == pytest.approx(1.0)
    assert found["nve.angular_momentum"].value < 1e-12


def test_a_molecule_that_spins_in_its_plane_has_all_of_the_angular_momentum() -> None:
    positions = np.tile(WATER, (4, 1, 1))
    centre = (positions * MASSES[:, None]).sum(1, keepdims=True) / MASSES.sum()
    velocities = np.cross([0.0, 0.0, 2.0], positions - centre)
    found = measured(positions, velocities)
    assert found["nve.angular_momentum"].value == pytest.approx(1.0)
    assert found["nve.momentum"].value < 1e-12


def test_the_whole_carries_at_most_the_square_of_its_fraction_of_kinetic_energy() -> None:
    """The inequality that the bounds are derived from."""
    velocities = np.random.default_rng(1).normal(size=(500, 3, 3))
    fraction = momentum.momentum_fraction(velocities, MASSES)
    whole = np.einsum("fax,a->fx", velocities, MASSES)
    carried = (
        (whole**2).sum(1) / MASSES.sum() / np.einsum("fax,fax,a->f", *[velocities] * 2, MASSES)
    )
    assert (carried <= fraction**2 + 1e-12).all()


def test_the_worst_frame_of_the_worst_replica_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(momentum, "_PIECE", 3)
    positions = np.tile(WATER, (8, 1, 1))
    velocities = np.zeros((8, 3, 3))
    velocities[5, 0, 0] = 1.0
    row = measured(positions, velocities)["nve.momentum"]
    assert (row.where.replica, row.where.frame) == (1, 5)
    assert row.kind == "deterministic"
    assert row.ci_low == row.ci_high == row.value == 1.0


def test_nan_is_the_largest_and_stays() -> None:
    positions = np.tile(WATER, (4, 1, 1))
    velocities = np.full((4, 3, 3), 0.1)
    velocities[1] = np.nan
    row = measured(positions, velocities)["nve.momentum"]
    assert np.isnan(row.value)
    assert row.where.frame == 1


def test_a_box_has_no_angular_momentum_to_conserve() -> None:
    box = dataclasses.replace(water(), box_vectors=np.eye(3))
    positions = np.tile(WATER, (4, 1, 1))
    found = measured(positions, np.ones((4, 3, 3)), box)
    assert "periodic" in found["nve.angular_momentum"].not_applicable
    assert found["nve.momentum"].value == pytest.approx(1.0)


def test_fractions_are_those_of_the_formula_to_rounding() -> None:
    random = np.random.default_rng(6)
    x, v = random.normal(size=(2, 50, 3, 3))
    r = x - (x * MASSES[:, None]).sum(1, keepdims=True) / MASSES.sum()
    m = MASSES[:, None]
    of_all = np.linalg.norm((m * np.cross(r, v)).sum(1), axis=1)
    most = (MASSES * np.linalg.norm(r, axis=2) * np.linalg.norm(v, axis=2)).sum(1)
    found = momentum.angular_momentum_fraction(x, v, MASSES)
    np.testing.assert_allclose(found, of_all / most, rtol=1e-12)
    straight = np.linalg.norm((m * v).sum(1), axis=1) / (MASSES * np.linalg.norm(v, axis=2)).sum(1)
    np.testing.assert_allclose(momentum.momentum_fraction(v, MASSES), straight, rtol=1e-12)
