"""Invariance: a symmetric potential passes, one that breaks a symmetry fails that one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from checks.fakes import FakeEvaluator, Pairs, by_name, card, water

from omm_mlff.checks import invariance
from omm_mlff.checks.base import Evidence

MODEL = Pairs()


def measured(function, system=None, identity="element"):
    system = system or water()
    evaluator = FakeEvaluator(function, system)
    mine = dataclasses.replace(card(), knows_atoms_by=identity)
    return by_name(invariance.CHECK.measure(Evidence(system, mine, evaluator=evaluator)))


def failed(found) -> set[str]:
    return {name for name, row in found.items() if row.value is not None and row.value > 1e-6}


def test_a_pair_potential_has_every_symmetry() -> None:
    found = measured(MODEL)
    assert failed(found) == set()
    assert len(found) == 8


def test_a_wall_breaks_place_and_direction_and_pushes() -> None:
    def wall(positions, system):
        energy, forces = MODEL(positions, system)
        return energy + 5.0 * positions[:, 0].sum(), forces - np.array([5.0, 0.0, 0.0])

    names = failed(measured(wall))
    assert {"invariance.translation_energy", "invariance.net_force"} <= names
    assert "invariance.rotation_force" in names
    assert "invariance.permutation_energy" not in names


def test_an_axis_breaks_direction_alone() -> None:
    """Springs along x only: no net force, but a torque."""

    def along_x(positions, system):
        x = positions[:, 0] - positions[:, 0].mean()
        forces = np.zeros_like(positions)
        forces[:, 0] = -200.0 * x
        return 100.0 * (x**2).sum(), forces

    assert failed(measured(along_x)) == {
        "invariance.rotation_energy",
        "invariance.rotation_force",
        "invariance.net_torque",
    }


def test_forces_that_do_not_turn_with_the_molecule_are_seen() -> None:
    def transposed(positions, system):
        energy, forces = MODEL(positions, system)
        return energy, forces[:, ::-1]

    names = failed(measured(transposed))
    assert "invariance.rotation_force" in names
    assert "invariance.rotation_energy" not in names


def test_a_preferred_atom_breaks_permutation_alone() -> None:
    def first_hydrogen(positions, system):
        r = positions[1] - positions[0]
        forces = np.zeros_like(positions)
        forces[1], forces[0] = -50.0 * r, 50.0 * r
        return 25.0 * (r**2).sum(), forces

    assert failed(measured(first_hydrogen)) == {
        "invariance.permutation_energy",
        "invariance.permutation_force",
    }


def test_a_known_torque_is_measured() -> None:
    """Two equal forces on the ends of a lever: |sum r x F| = F_rms R_gyration sum over atoms."""

    def spin(positions, system):
        r = positions - positions.mean(axis=0)
        return 0.0, np.cross([0.0, 0.0, 1.0], r)

    found = measured(spin)
    frames = water().positions
    r = frames - frames.mean(axis=0)
    gyration, size = np.sqrt((r**2).sum(1).mean()), np.sqrt((r[:, :2] ** 2).sum(1).mean())
    plain = (r[:, :2] ** 2).sum() / (gyration * size)
    assert found["invariance.net_torque"].value == pytest.approx(plain, rel=0.1)
    assert found["invariance.net_force"].value < 1e-12


def test_like_atoms_are_exchanged_and_unlike_never() -> None:
    species = np.array([8, 1, 1, 6, 1, 8])
    for seed in range(20):
        order = invariance.like_atoms_exchanged(species, np.random.default_rng(seed))
        assert sorted(order) == list(range(6))
        assert np.array_equal(species[order], species)


def test_a_box_has_no_rotation_and_no_torque() -> None:
    box = dataclasses.replace(water(), box_vectors=2.0 * np.eye(3))
    found = measured(MODEL, box)
    assert "one orientation" in found["invariance.rotation_force"].not_applicable
    assert "torque" in found["invariance.net_torque"].not_applicable
    assert found["invariance.translation_force"].value < 1e-9


def test_a_native_force_field_is_not_asked_to_exchange_atoms() -> None:
    found = measured(MODEL, identity="bond")
    assert "atoms by bond" in found["invariance.permutation_energy"].not_applicable


def test_nothing_over_nothing_is_nothing_and_something_is_infinite() -> None:
    ratio = invariance.relative(np.array([0.0, 1.0, 1.0]), np.array([0.0, 0.0, 2.0]))
    assert ratio.tolist() == [0.0, np.inf, 0.5]
