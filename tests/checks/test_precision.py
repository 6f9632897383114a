"""Precision: noise that was put in comes out, and a smooth function has none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from checks.fakes import FakeEvaluator, Pairs, by_name, card, water
from springs import SpringPotential, triatomic

from omm_mlff.checks import precision
from omm_mlff.checks.base import Evidence
from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.potentials.student import StudentPotential
from omm_mlff.students.checkpoint import student_names
from omm_mlff.systems import load_system
from omm_mlff.units import MEV_PER_KJMOL

MODEL = Pairs()


def measured(function, dtype="float64"):
    evaluator = FakeEvaluator(function, water())
    return by_name(precision.CHECK.measure(Evidence(water(), card(dtype), evaluator=evaluator)))


def inside(row, dtype: str, severity: str) -> bool:
    (bound,) = [
        c.high
        for c in precision.CHECK.criteria
        if c.measurement == row.name
        and c.severity == severity
        and (not c.dtypes or dtype in c.dtypes)
    ]
    return row.value <= bound


@pytest.mark.parametrize("n_components", [(), (5,), (3, 3)])
def test_independent_errors_come_out_with_their_standard_deviation(n_components) -> None:
    """400 points have 390 differences; those 10 apart are independent: 4 standard errors."""
    x = np.arange(4000.0).reshape(-1, *[1] * len(n_components)) * 1e-3
    errors = np.random.default_rng(1).normal(size=(4000, *n_components))
    found = precision.noise_floor(1e3 * np.sin(x) + 0.02 * errors)
    assert found == pytest.approx(0.02, rel=0.1)


def test_a_smooth_function_has_a_noise_of_the_tenth_order_of_the_step() -> None:
    def floor(h: float) -> float:
        return precision.noise_floor(np.sin(np.arange(24) * h))

    assert np.log2(floor(0.4) / floor(0.2)) == pytest.approx(10.0, abs=0.6)
    # sin's tenth derivative is at most 1; the mean square over a short scan is not more.
    assert floor(0.2) < 0.2**10 / np.sqrt(184756.0)


def test_a_rounded_number_has_the_noise_of_its_spacing() -> None:
    """Uniform between the spacings: their width over sqrt(12)."""
    x = np.sin(np.arange(2000) * 0.1)
    assert precision.noise_floor(np.round(x / 1e-4) * 1e-4) == pytest.approx(
        1e-4 / np.sqrt(12.0), rel=0.1
    )


def test_a_smooth_potential_in_float64_has_none() -> None:
    found = measured(MODEL)
    assert found["precision.energy_noise"].value < 1e-9
    assert found["precision.force_noise"].value < 1e-9


def test_a_large_constant_in_float32_is_seen_in_the_energy_alone() -> None:
    def shifted(positions, system):
        energy, forces = MODEL(positions, system)
        return float(np.float32(energy + 1.0e6)), forces

    found = measured(shifted, "float32")
    spacing = float(np.spacing(np.float32(1.0e6)))
    expected = spacing / np.sqrt(12.0) * MEV_PER_KJMOL / 3.0
    assert found["precision.energy_noise"].value == pytest.approx(expected, rel=0.5)
    assert not inside(found["precision.energy_noise"], "float32", "limit")
    assert found["precision.force_noise"].value < 1e-9


def test_half_precision_inside_is_rejected() -> None:
    """Coordinates in half precision are steps of 6e-5 nm: nothing changes over 1e-5 angstrom."""

    def half(positions, system):
        rounded = np.float16(10.0 * positions).astype(float) / 10.0
        return MODEL(rounded, system)

    found = measured(half, "float32")
    assert not inside(found["precision.force_noise"], "float32", "reject")
    assert "0.002 angstrom" in found["precision.force_noise"].cause


@pytest.mark.parametrize("size", [1e-2, 0.3])
def test_noise_frozen_into_the_forces_comes_out_as_it_was_put_in(size: float) -> None:
    def rms(forces):
        return np.sqrt((forces**2).mean())

    def frozen(positions, system):
        energy, forces = MODEL(positions, system)
        key = np.frombuffer(positions.tobytes(), dtype=np.uint32)
        noise = np.random.default_rng(key).normal(size=forces.shape)
        return energy, forces + size * noise

    found = measured(frozen, "float32")["precision.force_noise"]
    evaluator = FakeEvaluator(MODEL, water())
    evidence = Evidence(water(), card(), evaluator=evaluator)
    frames = precision.static_frames(evidence, precision.CHECK.name, precision.N_FRAMES)
    expected = size / rms(evaluator.evaluate(frames)[1])
    assert found.value == pytest.approx(expected, rel=0.2)


def test_a_jump_in_one_frame_is_not_called_noise() -> None:
    """The fifth frame alone has an atom that crosses a step."""
    evaluator = FakeEvaluator(MODEL, water())
    evidence = Evidence(water(), card(), evaluator=evaluator)
    frames = precision.static_frames(evidence, precision.CHECK.name, precision.N_FRAMES)
    where = frames[4, 1, 0]

    def stepping(positions, system):
        energy, forces = MODEL(positions, system)
        near = np.abs(positions - frames[4]).max() < 5e-3
        return energy + 10.0 * (near and positions[1, 0] > where), forces

    assert measured(stepping)["precision.energy_noise"].value < 1e-9


def test_one_nan_is_infinite_noise() -> None:
    count = iter(range(10**6))

    def once(positions, system):
        energy, forces = MODEL(positions, system)
        return (np.nan if next(count) == 60 else energy), forces

    assert measured(once)["precision.energy_noise"].value == np.inf


def test_without_a_twin_and_with_one_precision_the_reasons_are_given() -> None:
    found = measured(MODEL, "float32")
    assert "no twin" in found["precision.float64_force"].not_applicable
    assert "one precision" in found["precision.single_force"].not_applicable
    assert "float64 itself" in measured(MODEL)["precision.float64_energy"].not_applicable


def test_precisions_of_the_platform_are_compared_where_it_has_them(monkeypatch) -> None:
    """A platform that rounds positions, as OpenMM's CUDA platform does: a stand-in for one."""

    def evaluated_by(evidence, potential, precision, frames):
        rounded = frames if precision == "double" else np.float32(frames).astype(float)
        scale = 1.0 + 1e-6 * (precision == "single")
        energies, forces = evidence.live.evaluate(rounded)
        return energies, scale * forces

    monkeypatch.setattr(precision, "_evaluated_by", evaluated_by)
    evaluator = FakeEvaluator(MODEL, water())
    evaluator.platform_name = "CUDA"
    evidence = Evidence(water(), card("float32"), evaluator=evaluator)
    found = by_name(precision.CHECK.measure(evidence))
    mixed, single = found["precision.mixed_force"], found["precision.single_force"]
    assert 1e-8 < mixed.value < single.value < 1e-4
    assert "CUDA in single precision" in single.cause


class Rounded(SpringPotential):
    """Springs whose stiffness is off by 1e-5, and their twin that is right."""

    def __init__(self) -> None:
        super().__init__("float32", force_scale=1.0 + 1e-5, rest_scale=1.01)

    def capabilities(self, system):
        return dataclasses.replace(
            super().capabilities(system), float64_twin=lambda: SpringPotential(rest_scale=1.01)
        )


def test_the_difference_to_the_twin_is_measured_through_the_context() -> None:
    system = triatomic()
    with Evaluator(Rounded(), system, "Reference") as evaluator:
        found = by_name(
            precision.CHECK.measure(Evidence(system, card("float32"), evaluator=evaluator))
        )
    # The largest of 16 frames, over the rms of them all.
    assert 1e-5 < found["precision.float64_force"].value < 4e-5
    assert found["precision.float64_energy"].value == 0.0
    assert found["precision.energy_noise"].value < 1e-9


@pytest.mark.skipif("tiny" not in student_names(), reason="no shipped student")
def test_a_shipped_student_is_three_times_inside_its_limits_and_so_is_its_twin() -> None:
    system = load_system("water")
    potential = StudentPotential("tiny")
    twin = potential.capabilities(system).float64_twin()
    for one, dtype in ((potential, "float32"), (twin, "float64")):
        with Evaluator(one, system, "Reference") as evaluator:
            found = precision.CHECK.measure(Evidence(system, one.card, evaluator=evaluator))
        for row in found:
            if row.value is not None:
                assert inside(dataclasses.replace(row, value=3.0 * row.value), dtype, "limit"), row
