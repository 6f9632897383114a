"""Gradient: sound forces pass, and each way of being wrong is seen."""

from __future__ import annotations

import numpy as np
import pytest
from checks.fakes import FakeEvaluator, Pairs, by_name, card, labels, water, with_labels

from omm_mlff.checks import gradient
from omm_mlff.checks.base import Evidence
from omm_mlff.units import KJMOL_PER_EV

MODEL = Pairs()


def measured(function, system=None):
    system = system or water()
    evaluator = FakeEvaluator(function, system)
    found = by_name(gradient.CHECK.measure(Evidence(system, card(), evaluator=evaluator)))
    return found["gradient.error"], found["gradient.scale"]


def scaled(factor):
    def function(positions, system):
        energy, forces = MODEL(positions, system)
        return energy, factor * forces

    return function


def test_forces_that_are_the_gradient_have_no_error() -> None:
    error, scale = measured(MODEL)
    assert error.value < 1e-8
    assert scale.value == pytest.approx(1.0, abs=1e-8)
    assert error.n_samples >= 32


def test_a_stencil_is_of_fourth_order() -> None:
    system = water()
    evaluator = FakeEvaluator(MODEL, system)
    positions = system.positions[None]
    directions = np.random.default_rng(0).normal(size=positions.shape)
    directions /= np.linalg.norm(directions)
    exact = -(evaluator.evaluate(positions)[1] * directions).sum()
    errors = [
        abs(gradient.directional_derivatives(evaluator, positions, directions, h)[0] - exact)
        for h in (4.0e-3, 2.0e-3)
    ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(4.0, abs=0.3)


def test_forces_off_by_half_a_percent_are_seen() -> None:
    error, scale = measured(scaled(1.005))
    assert error.value == pytest.approx(0.005 / 1.005, rel=1e-3)
    assert scale.value == pytest.approx(1.005, rel=1e-6)


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (0.5, "half the gradient"),
        (-1.0, "sign"),
        (10.0, "per angstrom"),
        (KJMOL_PER_EV, "energies in eV"),
    ],
)
def test_a_wrong_factor_is_named(factor: float, words: str) -> None:
    error, scale = measured(scaled(factor))
    assert scale.value == pytest.approx(factor, rel=1e-6)
    assert words in error.cause


def test_a_curl_is_seen_that_the_scale_does_not_show() -> None:
    def curled(positions, system):
        energy, forces = MODEL(positions, system)
        size = np.sqrt((forces**2).mean())
        return energy, forces + 0.02 * size * np.cross([0.0, 0.0, 1.0], positions) / 0.05

    error, scale = measured(curled)
    assert error.value > 2e-3
    assert scale.value == pytest.approx(1.0, abs=0.02)


def test_float32_energies_are_forgiven_their_rounding() -> None:
    def single(positions, system):
        energy, forces = MODEL(positions, system)
        return float(np.float32(energy)), forces.astype(np.float32).astype(float)

    error, _ = measured(single)
    assert 1e-8 < error.value < 5e-4


def test_a_large_constant_in_the_energy_costs_no_digits_it_need_not() -> None:
    """Reference energies of a molecule are some 2e5 kJ/mol."""

    def shifted(positions, system):
        energy, forces = MODEL(positions, system)
        return energy - 2.0e5, forces

    assert measured(shifted)[0].value < 1e-6


def test_few_labelled_frames_are_looked_at_in_more_directions() -> None:
    bare = water()
    reference = labels(MODEL, bare, temperature_K=[300.0] * 3, trajectory=[0, 1, 2])
    error, _ = measured(MODEL, with_labels(bare, reference))
    assert error.n_samples == 33
    assert error.value < 1e-8


def test_no_force_and_no_energy_agree() -> None:
    error, scale = measured(lambda positions, system: (0.0, np.zeros_like(positions)))
    assert (error.value, scale.value) == (0.0, 1.0)


def test_an_energy_without_forces_does_not_pass() -> None:
    error, _ = measured(lambda x, system: (MODEL(x, system)[0], np.zeros_like(x)))
    assert error.value == np.inf
