"""Vibrations: closed-form errors, and what has no minimum."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from checks.fakes import FakeEvaluator, by_name, card
from geometry.test_normal_modes import exact_hessian, springs
from springs import STIFFNESS, diatomic, molecule, triatomic

from omm_mlff.checks import vibrations
from omm_mlff.checks.base import Evidence
from omm_mlff.distill.landmarks import teacher_surface
from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.geometry.normal_modes import AMPLITUDE_NM, hessian, minimum_with_modes, normal_modes
from omm_mlff.potentials.student import StudentPotential
from omm_mlff.schema import ReferenceLandmarks
from omm_mlff.systems import load_system
from omm_mlff.units import MEV_PER_INVERSE_CM


class Batched(FakeEvaluator):
    """Evaluates a batched surface."""

    def evaluate(self, positions, box_vectors=None, *, batched=True):
        self.n_evaluations += len(positions)
        return self.function(positions)


def with_landmarks(system, surface=None):
    """The system with the minimum and the modes of a surface (of its springs at rest)."""
    surface = surface or springs(system.positions)
    second = hessian(surface, system.positions, AMPLITUDE_NM)
    modes = normal_modes(second, system.positions, system.masses)
    landmarks = ReferenceLandmarks(
        system.positions[None], np.zeros(1), modes.frequencies, (), "itself"
    )
    return dataclasses.replace(system, landmarks=landmarks)


def measured(surface, system):
    evaluator = Batched(surface, system)
    rows = vibrations.CHECK.measure(Evidence(system, card(), evaluator=evaluator))
    return by_name(rows)


def limit(name, severity="limit"):
    (row,) = (c for c in vibrations.CHECK.criteria if c.name == f"vibrations.{name}-{severity}")
    return row.high


def test_the_reference_itself_has_no_error() -> None:
    system = with_landmarks(triatomic())
    found = measured(springs(system.positions), system)
    assert found["vibrations.frequency_rmse"].value < 1e-3
    assert found["vibrations.zero_point"].value < 1e-4
    assert found["vibrations.imaginary"].value == 0
    assert found["vibrations.frequency_rmse"].n_samples == 3


@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_frequencies_go_with_the_root_of_the_stiffness(factor) -> None:
    system = with_landmarks(triatomic())
    found = measured(springs(system.positions, factor * STIFFNESS), system)
    target = system.landmarks.frequencies
    off = (np.sqrt(factor) - 1.0) * target
    assert found["vibrations.frequency_rmse"].value == pytest.approx(
        np.sqrt((off**2).mean()), rel=1e-3
    )
    zero_point = abs(0.5 * off.sum()) * MEV_PER_INVERSE_CM / 3
    assert found["vibrations.zero_point"].value == pytest.approx(zero_point, rel=1e-3)
    assert found["vibrations.frequency_rmse"].value > limit("frequency_rmse", "reject")
    assert "the reference's" in found["vibrations.frequency_rmse"].cause


def test_a_diatomic_that_is_a_fifth_too_stiff_is_off_by_a_tenth() -> None:
    system = with_landmarks(diatomic())
    found = measured(springs(system.positions, 1.21 * STIFFNESS), system)
    (wanted,) = 0.1 * system.landmarks.frequencies
    assert found["vibrations.frequency_rmse"].value == pytest.approx(wanted, rel=1e-3)
    assert found["vibrations.frequency_rmse"].value > limit("frequency_rmse")


def test_a_model_is_judged_at_its_own_minimum() -> None:
    # The same springs, 5% longer: frequencies of springs at rest do not change with the size.
    system = with_landmarks(triatomic())
    found = measured(springs(1.05 * system.positions), system)
    assert found["vibrations.frequency_rmse"].value < 0.005 * system.landmarks.frequencies[0]
    assert "changes by +0." in found["vibrations.frequency_rmse"].cause


def test_rounding_to_float32_makes_no_imaginary_mode() -> None:
    system = with_landmarks(triatomic())
    sound = springs(system.positions, 1e-3 * STIFFNESS)
    random = np.random.default_rng(5)

    def rounded(positions):
        energies, forces = sound(positions)
        return energies, forces + random.normal(size=forces.shape) * 0.1  # 1e-4 eV/angstrom

    assert measured(rounded, system)["vibrations.imaginary"].value == 0


def test_a_start_on_a_ridge_with_nothing_below_has_no_minimum() -> None:
    line = molecule([6, 6, 6], [[-0.15, 0, 0], [0, 0, 0], [0.15, 0, 0]], [[0, 1], [1, 2]])

    def ridge(positions):
        energies, forces = springs(line.positions)(positions)
        off = positions[:, 1, 1]
        forces[:, 1, 1] += 3.0 * STIFFNESS * off
        return energies - 1.5 * STIFFNESS * off**2, forces

    found = measured(ridge, line)["vibrations.imaginary"]
    assert found.value == np.inf
    assert "it has no minimum: bond C" in found.cause


@pytest.mark.parametrize(
    "wrong", [np.nan, np.inf, -np.inf], ids=["nan", "infinite", "minus infinite"]
)
def test_what_is_not_finite_is_told_and_never_raised(wrong) -> None:
    system = with_landmarks(triatomic())

    def broken(positions):
        return np.full(len(positions), wrong), np.full(positions.shape, wrong)

    found = measured(broken, system)
    for row in found.values():
        assert row.value == np.inf
        assert "not finite" in row.cause


def test_forces_that_break_only_beside_the_minimum_are_seen() -> None:
    system = with_landmarks(triatomic())
    sound = springs(system.positions)

    def broken(positions):
        energies, forces = sound(positions)
        forces[np.abs(positions - system.positions).max(axis=(1, 2)) > 1e-4] = np.nan
        return energies, forces

    for row in measured(broken, system).values():
        assert row.value == np.inf


def test_a_molecule_that_flies_apart_is_rejected() -> None:
    system = with_landmarks(triatomic())
    found = measured(springs(system.positions * 3.0), system)
    for name in ("frequency_rmse", "imaginary", "zero_point"):
        row = found[f"vibrations.{name}"]
        assert row.value > limit(name, "reject")
        assert "bond O0-H" in row.cause


def test_a_straight_minimum_of_a_bent_molecule_is_an_error() -> None:
    system = with_landmarks(triatomic())
    straight = np.array([[0.0, 0, 0], [0.096, 0, 0], [-0.096, 0, 0]])
    found = measured(springs(straight, longer=0.05), system)
    assert found["vibrations.imaginary"].value == 0
    assert found["vibrations.frequency_rmse"].value == np.inf
    assert "has 4 modes, the reference's 3" in found["vibrations.frequency_rmse"].cause


def test_without_landmarks_only_imaginary_modes_are_counted() -> None:
    system = triatomic()
    found = measured(springs(system.positions), system)
    assert found["vibrations.imaginary"].value == 0
    for name in ("frequency_rmse", "zero_point"):
        assert "normal modes are known" in found[f"vibrations.{name}"].not_applicable


def test_boxes_and_single_atoms_have_no_modes() -> None:
    box = dataclasses.replace(triatomic(), box_vectors=2.0 * np.eye(3))
    atom = molecule([2], [[0.0, 0.0, 0.0]], [])
    crowd = molecule([1] * 101, np.random.default_rng(0).normal(size=(101, 3)), [])
    for system, reason in ((box, "periodic"), (atom, "one atom"), (crowd, "101 atoms")):
        for row in measured(springs(system.positions), system).values():
            assert reason in row.not_applicable


def test_the_cost_is_two_sets_of_second_derivatives() -> None:
    system = with_landmarks(triatomic())
    evaluator = Batched(springs(system.positions), system)
    vibrations.CHECK.measure(Evidence(system, card(), evaluator=evaluator))
    assert evaluator.n_evaluations < 2 * 6 * 3 + 30


def test_the_teacher_has_no_error_against_its_own_landmarks(teacher) -> None:
    system = load_system("water")
    found = measured(teacher_surface(teacher, system.species), system)
    assert found["vibrations.frequency_rmse"].value < 0.5
    assert found["vibrations.zero_point"].value < 0.02
    assert found["vibrations.imaginary"].value == 0


def test_a_sound_student_is_within_every_limit() -> None:
    system = load_system("alanine")
    potential = StudentPotential("ultra-tiny")
    with Evaluator(potential, system, "Reference") as evaluator:
        rows = vibrations.CHECK.measure(Evidence(system, potential.card, evaluator=evaluator))
    for row in rows:
        assert 0.0 <= row.value <= limit(row.name.removeprefix("vibrations.")), row.cause


def test_the_closed_form_is_what_the_helper_differences() -> None:
    system = triatomic()
    found = minimum_with_modes(springs(system.positions), system, system.positions)
    wanted = normal_modes(exact_hessian(system.positions), system.positions, system.masses)
    assert found.modes.frequencies == pytest.approx(wanted.frequencies, rel=1e-3)
