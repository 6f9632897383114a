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


def failed(row, dtype: str) -> set[str]:
    """Severities of the bounds that a measurement's whole interval, or its value, lies outside."""
    return {
        c.severity
        for c in gradient.CHECK.criteria
        if c.measurement == row.name
        and (not c.dtypes or dtype in c.dtypes)
        and ((c.low is not None and row.ci_high < c.low) or row.ci_low > c.high)
    }


def passed(row, dtype: str) -> bool:
    """Whether the whole interval lies in every bound."""
    return all(
        (c.low is None or row.ci_low >= c.low) and row.ci_high <= c.high
        for c in gradient.CHECK.criteria
        if c.measurement == row.name and (not c.dtypes or dtype in c.dtypes)
    )


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


def bonded(positions, system):
    """Harmonic bonds between all atoms: forces of some 1e3 kJ/mol/nm."""
    i, j = np.triu_indices(len(positions), k=1)
    rest = np.linalg.norm(system.positions[j] - system.positions[i], axis=1)
    r = positions[j] - positions[i]
    d = np.linalg.norm(r, axis=1)
    pull = (1e5 * (d - rest) / d)[:, None] * r
    forces = np.zeros_like(positions)
    np.add.at(forces, i, pull)
    np.add.at(forces, j, -pull)
    return float(0.5e5 * ((d - rest) ** 2).sum()), forces


def in_float32(factor: float = 1.0, seed: int = 8):
    """Bonds with the noise that shipped students have on water: 1e-3 meV, 1e-3 kJ/mol/nm."""
    random = np.random.default_rng(seed)

    def function(positions, system):
        energy, forces = bonded(positions, system)
        noise = 1e-3 * random.normal(size=forces.shape)
        return energy + 1e-4 * random.normal(), factor * forces + noise

    return function


def test_the_scale_is_known_to_some_millionths_under_the_rounding_of_float32() -> None:
    error, scale = measured(in_float32())
    assert passed(error, "float32")
    assert passed(scale, "float32")
    assert 1e-7 < scale.standard_error < 1.5e-5
    assert scale.n_samples == 160
    assert scale.dof == 159


@pytest.mark.parametrize(
    ("factor", "severities"),
    [
        (1.0002, {"limit"}),
        (0.9998, {"limit"}),
        (1.001, {"limit", "reject"}),
        (0.999, {"limit", "reject"}),
    ],
)
def test_a_hidden_scale_is_a_limit_at_002_percent_and_rejected_at_01(factor, severities) -> None:
    _, scale = measured(in_float32(factor))
    assert failed(scale, "float32") == severities
    assert scale.value == pytest.approx(factor, abs=3e-5)


@pytest.mark.parametrize("model", [bonded, MODEL])
def test_the_interval_of_the_scale_covers_the_truth(model) -> None:
    """20 repetitions at 98.3%: fewer than 17 inside has a probability of 4e-4."""
    system = water()
    random = np.random.default_rng(3)
    evaluator = FakeEvaluator(model, system)
    evidence = Evidence(system, card(), evaluator=evaluator)
    frames, forces, directions = gradient._scale_pairs(evidence, random)
    size = np.sqrt((forces**2).mean(axis=(1, 2), keepdims=True))
    scales = [
        gradient.force_scale(
            evaluator, frames, forces + 1e-3 * size * random.normal(size=forces.shape), directions
        )[0]
        for _ in range(20)
    ]
    assert sum(s.ci_low <= 1.0 <= s.ci_high for s in scales) >= 17
    assert np.std([s.value for s in scales]) == pytest.approx(
        np.mean([s.standard_error for s in scales]), rel=0.5
    )


@pytest.mark.parametrize(("factor", "curl"), [(1.001, 0.0), (1.0, 1e-3)])
def test_in_float64_a_tenth_of_a_percent_is_rejected_of_scale_or_curl(factor, curl) -> None:
    def function(positions, system):
        energy, forces = MODEL(positions, system)
        swirl = np.cross([0.0, 0.0, 1.0], positions - positions.mean(axis=0))
        swirl *= np.sqrt((forces**2).mean() / (swirl**2).mean())
        return energy, factor * forces + curl * swirl

    error, _ = measured(function)
    assert failed(error, "float64") == {"limit", "reject"}
    assert "reject" not in failed(error, "float32")


def test_nan_is_no_gradient_and_no_scale() -> None:
    error, scale = measured(lambda x, system: (np.nan, MODEL(x, system)[1]))
    assert error.value == np.inf
    assert np.isnan(scale.value)


def test_forces_beside_an_energy_that_never_changes_have_no_scale() -> None:
    error, scale = measured(lambda x, system: (0.0, MODEL(x, system)[1]))
    assert error.value == pytest.approx(1.0)
    assert scale.value == np.inf


def test_directions_of_the_scale_lie_along_the_forces_and_not_quite() -> None:
    """A random direction in nine coordinates has a mean cosine of 1/3."""
    evidence = Evidence(water(), card(), evaluator=FakeEvaluator(MODEL, water()))
    _, forces, directions = gradient._scale_pairs(evidence, np.random.default_rng(1))
    assert np.linalg.norm(directions, axis=(1, 2)) == pytest.approx(np.ones(160))
    size = np.linalg.norm(forces, axis=(1, 2))
    cosine = (forces * directions).sum(axis=(1, 2))[size > 0.0] / size[size > 0.0]
    assert 0.7 < cosine.min() < cosine.mean() < 0.99
