"""Accuracy: errors that were put in come out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from checks.fakes import FakeEvaluator, Pairs, by_name, card, labels, water, with_labels

from omm_mlff.checks import accuracy
from omm_mlff.checks.base import Evidence
from omm_mlff.units import (
    EV_ANGSTROM_PER_KJMOL_NM,
    EV_PER_HARTREE,
    KJMOL_PER_EV,
    KJMOL_PER_KCALMOL,
    MEV_PER_KJMOL,
)

TRAJECTORY = np.repeat(np.arange(8), 10)
COOL = np.full(80, 300.0)
MODEL = Pairs()


def measured(model, temperature_K=COOL, trajectory=TRAJECTORY, truth=MODEL):
    bare = water()
    reference = labels(truth, bare, temperature_K=temperature_K, trajectory=trajectory)
    system = with_labels(bare, reference)
    evaluator = FakeEvaluator(model, system)
    return accuracy.CHECK.measure(Evidence(system, card(), evaluator=evaluator))


def test_a_model_that_is_its_own_reference_has_no_error() -> None:
    found = by_name(measured(MODEL))
    for name in ("energy_rmse", "energy_mae", "force_rmse", "force_mae"):
        assert found[f"accuracy.{name}"].value == pytest.approx(0.0, abs=1e-9)
    assert found["accuracy.force_r2"].value == pytest.approx(1.0, abs=1e-12)
    assert found["accuracy.force_cosine"].value == pytest.approx(1.0, abs=1e-12)
    assert found["accuracy.force_angle"].value == pytest.approx(0.0, abs=1e-4)


def test_a_constant_of_the_energy_is_removed_and_reported() -> None:
    def shifted(positions, system):
        energy, forces = MODEL(positions, system)
        return energy + 3000.0, forces

    found = by_name(measured(shifted))
    assert found["accuracy.energy_rmse"].value == pytest.approx(0.0, abs=1e-6)
    assert found["accuracy.energy_offset"].value == pytest.approx(1000.0 * MEV_PER_KJMOL, rel=1e-9)
    assert found["accuracy.energy_offset"].kind == "info"


def test_forces_too_large_by_a_tenth_have_an_r2_of_099_and_no_angle() -> None:
    def stronger(positions, system):
        energy, forces = MODEL(positions, system)
        return energy, 1.1 * forces

    found = by_name(measured(stronger))
    # The mean force component is not quite zero, so R2 is not quite 1 - 0.1^2.
    assert found["accuracy.force_r2"].value == pytest.approx(0.99, abs=1e-3)
    assert found["accuracy.force_angle"].value == pytest.approx(0.0, abs=1e-4)


def test_a_known_error_in_one_element_is_found_there() -> None:
    error = 0.3 / EV_ANGSTROM_PER_KJMOL_NM

    def off_at_oxygen(positions, system):
        energy, forces = MODEL(positions, system)
        forces = forces.copy()
        forces[0] += [error, -error, error]
        return energy, forces

    rows = measured(off_at_oxygen)
    element = {r.where.element: r.value for r in rows if r.name == "accuracy.force_rmse_element"}
    assert element["O"] == pytest.approx(0.3, rel=1e-9)
    assert element["H"] == pytest.approx(0.0, abs=1e-12)
    found = by_name(rows)
    assert found["accuracy.force_rmse"].value == pytest.approx(0.3 / np.sqrt(3.0), rel=1e-9)
    assert found["accuracy.force_mae"].value == pytest.approx(0.1, rel=1e-9)


def test_forces_turned_by_thirty_degrees_are_off_by_thirty_degrees() -> None:
    turn = np.radians(30.0)
    matrix = np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    )

    def flat(positions, system):
        energy, forces = MODEL(positions * [1.0, 1.0, 0.0], system)
        return energy, forces * 20.0

    def turned(positions, system):
        energy, forces = flat(positions, system)
        return energy, forces @ matrix.T

    found = by_name(measured(turned, truth=flat))
    assert found["accuracy.force_angle"].value == pytest.approx(30.0, abs=1e-6)
    assert found["accuracy.force_cosine"].value == pytest.approx(np.cos(turn), abs=1e-9)


def test_the_direction_of_a_weak_force_does_not_count() -> None:
    def weak(positions, system):
        forces = np.zeros_like(positions)
        forces[0, 0] = 5.0  # strong: 0.5 eV/angstrom and the right direction
        forces[1:, 1] = 1e-3
        return 0.0, forces / EV_ANGSTROM_PER_KJMOL_NM / 10.0

    def opposite_where_weak(positions, system):
        energy, forces = weak(positions, system)
        return energy, forces * np.array([1.0, -1.0, -1.0])[:, None]

    found = by_name(measured(opposite_where_weak, truth=weak))
    assert found["accuracy.force_angle"].value == pytest.approx(0.0, abs=1e-4)


def test_no_force_where_there_should_be_one_is_at_a_right_angle() -> None:
    def nothing(positions, system):
        return 0.0, np.zeros_like(positions)

    found = by_name(measured(nothing))
    assert found["accuracy.force_cosine"].value == 0.0
    assert found["accuracy.force_angle"].value == pytest.approx(90.0)


def test_frames_above_500_K_are_reported_and_not_judged() -> None:
    temperature = np.where(TRAJECTORY < 6, 500.0, 700.0)
    reference = labels(MODEL, water(), temperature_K=temperature, trajectory=TRAJECTORY)
    hot_frames = {frame.tobytes() for frame in reference.positions[temperature > 500.0]}

    def bad_when_hot(positions, system):
        energy, forces = MODEL(positions, system)
        hot = positions.tobytes() in hot_frames
        return energy, forces + hot / EV_ANGSTROM_PER_KJMOL_NM

    found = by_name(measured(bad_when_hot, temperature_K=temperature))
    assert found["accuracy.force_rmse"].value == pytest.approx(0.0, abs=1e-9)
    assert found["accuracy.force_rmse"].n_samples == 6
    assert found["accuracy.force_rmse_hot"].value == pytest.approx(1.0, rel=1e-9)
    assert found["accuracy.force_rmse_hot"].kind == "info"


def test_without_hot_or_without_cool_frames_the_reason_is_given() -> None:
    assert "hotter" in by_name(measured(MODEL))["accuracy.force_rmse_hot"].not_applicable
    found = by_name(measured(MODEL, temperature_K=np.full(80, 1000.0)))
    assert "every reference frame" in found["accuracy.force_rmse"].not_applicable
    assert found["accuracy.force_rmse_hot"].value is not None


def test_without_labels_every_measurement_is_not_applicable() -> None:
    rows = accuracy.CHECK.measure(
        Evidence(water(), card(), evaluator=FakeEvaluator(MODEL, water()))
    )
    assert {row.name for row in rows} == {row.name for row in accuracy.CHECK.declares}
    assert all("no reference labels" in row.not_applicable for row in rows)


def test_a_model_that_gives_nan_has_an_error_of_nan_and_not_of_zero() -> None:
    def broken(positions, system):
        return float("nan"), np.full_like(positions, np.nan)

    found = by_name(measured(broken))
    assert np.isnan(found["accuracy.force_rmse"].value)
    assert np.isnan(found["accuracy.energy_rmse"].value)


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1.0 / KJMOL_PER_EV, "in eV for kJ/mol"),
        (KJMOL_PER_EV, "in kJ/mol for eV"),
        (1.0 / KJMOL_PER_KCALMOL, "in kcal/mol for kJ/mol"),
        (KJMOL_PER_KCALMOL, "in kJ/mol for kcal/mol"),
        (0.1, "in angstrom for nm"),
        (10.0, "in nm for angstrom"),
        (EV_PER_HARTREE, "in eV for hartree"),
        (1.0 / (10.0 * KJMOL_PER_EV), "in eV/angstrom for kJ/mol/nm"),
        (-1.0, "sign is wrong"),
    ],
)
def test_a_potential_that_is_whole_in_another_unit_is_named(factor: float, words: str) -> None:
    def other(positions, system):
        energy, forces = MODEL(positions, system)
        return factor * energy, factor * forces

    found = by_name(measured(other))["accuracy.force_scale"]
    assert found.value == pytest.approx(factor, rel=1e-12)
    assert found.ci_low == pytest.approx(factor, rel=1e-9)
    assert words in found.cause
    (reject,) = [c for c in accuracy.CHECK.criteria if c.measurement == found.name]
    assert reject.severity == "reject"
    assert not reject.low <= found.value <= reject.high


def test_the_scale_of_an_inaccurate_model_is_near_one_and_its_interval_covers_it() -> None:
    """Errors that are independent of the force: the slope stays 1."""
    random = np.random.default_rng(4)

    def inaccurate(positions, system):
        energy, forces = MODEL(positions, system)
        return energy, forces + 3.0 * random.normal(size=forces.shape)

    found = by_name(measured(inaccurate))["accuracy.force_scale"]
    assert found.ci_low < 1.0 < found.ci_high
    assert found.standard_error < 0.02
    assert "as if" not in found.cause


def test_nearest_factors_are_told_apart() -> None:
    assert "eV for kcal/mol" in accuracy.scale_in_words(1.0 / 23.06)
    assert "hartree for eV" in accuracy.scale_in_words(1.0 / 27.21)
    assert "as if" not in accuracy.scale_in_words(1.3)


def test_frames_of_a_temperature_not_known_count() -> None:
    def stronger(positions, system):
        energy, forces = MODEL(positions, system)
        return energy, 1.1 * forces

    known, unknown = (by_name(measured(stronger, temperature_K=t)) for t in (COOL, COOL * np.nan))
    for name in ("accuracy.force_rmse", "accuracy.force_scale"):
        assert unknown[name].value == known[name].value
    assert unknown["accuracy.force_rmse_hot"].value is None


def test_what_a_user_said_of_the_labels_is_repeated() -> None:
    bare = water()
    reference = dataclasses.replace(
        labels(MODEL, bare, temperature_K=COOL, trajectory=TRAJECTORY),
        source="mine.xyz",
        held_out="no",
    )
    system = with_labels(bare, reference)

    def shifted(positions, system):
        energy, forces = MODEL(positions, system)
        return energy + 96.48533212331, forces

    evaluator = FakeEvaluator(shifted, system)
    found = by_name(accuracy.CHECK.measure(Evidence(system, card(), evaluator=evaluator)))
    cause = found["accuracy.energy_rmse"].cause
    assert cause.startswith("80 frames of mine.xyz")
    assert "the model was trained on them, as the user says" in cause
    assert "a constant of 1 eV for this composition is removed" in cause
    assert by_name(measured(MODEL))["accuracy.energy_rmse"].cause == ""
