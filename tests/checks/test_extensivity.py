"""Extensivity: two far copies of pairs add up, whatever normalises over all atoms does not."""

from __future__ import annotations

import numpy as np
import pytest
from checks.fakes import FakeEvaluator, Pairs, by_name, card, labels, water, with_labels
from springs import molecule

from omm_mlff.checks import extensivity
from omm_mlff.checks.base import Evidence
from omm_mlff.schema import PotentialCard
from omm_mlff.units import MEV_PER_KJMOL

MODEL = Pairs(cutoff=0.5, switch=0.4)


def labelled():
    bare = water()
    return with_labels(
        bare, labels(MODEL, bare, temperature_K=[300.0] * 4, trajectory=range(4), spread=0.003)
    )


NAMED = card(cutoff_nm=0.5)


def measured(function, system=None, named=NAMED, **options):
    system = system or labelled()
    evaluator = FakeEvaluator(function, system, **options)
    found = by_name(extensivity.CHECK.measure(Evidence(system, named, evaluator=evaluator)))
    return found["extensivity.energy"], found["extensivity.force"]


def test_pairs_with_a_cutoff_are_extensive() -> None:
    energy, force = measured(MODEL)
    assert energy.value < 1e-9
    assert force.value < 1e-12
    assert energy.n_samples == 4


def test_a_constant_a_molecule_is_counted_once_too_few() -> None:
    energy, force = measured(lambda x, system: (MODEL(x, system)[0] + 12.0, MODEL(x, system)[1]))
    assert energy.value == pytest.approx(12.0 * MEV_PER_KJMOL / 6.0, rel=1e-9)
    assert force.value < 1e-12
    assert "-124 meV more" in energy.cause


def test_forces_that_are_averaged_over_the_molecule_are_seen() -> None:
    def averaged(positions, system):
        energy, forces = MODEL(positions, system)
        return energy / len(positions), forces / len(positions)

    energy, force = measured(averaged)
    assert energy.value > 1.0
    assert force.value > 0.3


def test_a_pull_across_three_nanometres_is_seen() -> None:
    long_range = Pairs(epsilon=MODEL.epsilon, sigma=0.6)
    energy, force = measured(long_range)
    i_j = 9 * long_range.pair(np.array([3.3]))[0][0]
    assert 0.3 * abs(i_j) < energy.value * 6.0 / MEV_PER_KJMOL < 3.0 * abs(i_j)
    assert force.value > 0.0


def test_copies_are_turned_and_apart() -> None:
    frames = labelled().reference.positions
    first, second = extensivity.far_apart(frames, 3.0, np.random.default_rng(2))
    r = np.linalg.norm(first[:, :, None] - second[:, None], axis=3)
    assert r.min() >= 3.0
    inside = np.linalg.norm(second[:, 1] - second[:, 0], axis=1)
    expected = np.roll(np.linalg.norm(frames[:, 1] - frames[:, 0], axis=1), 1)
    assert inside == pytest.approx(expected, abs=1e-12)
    directions = second[:, 1] - second[:, 0]
    assert np.abs(directions / inside[:, None] - [1.0, 0.0, 0.0]).max() > 0.1


def test_a_large_cutoff_moves_the_copies_further() -> None:
    seen = []

    def watching(positions, system):
        if len(positions) == 6:
            seen.append(np.linalg.norm(positions[3:, None] - positions[None, :3], axis=2).min())
        return MODEL(positions, system)

    measured(watching, named=card(cutoff_nm=2.0))
    assert min(seen) >= 4.0


@pytest.mark.parametrize(
    ("named", "options", "words"),
    [
        (card(), {}, "names no cutoff"),
        (
            PotentialCard("ff", "native", None, 0.5, "float64", knows_atoms_by="bond"),
            {},
            "atoms by bond",
        ),
        (NAMED, {"refuses": "its atom order is fixed"}, "atom order is fixed"),
    ],
)
def test_where_it_has_no_meaning_the_reason_is_given(named, options, words: str) -> None:
    for row in measured(MODEL, named=named, **options):
        assert words in row.not_applicable


def test_a_box_has_no_far_away() -> None:
    box = molecule([8, 1, 1], water().positions, [[0, 1], [0, 2]], np.eye(3) * 2.0)
    for row in measured(MODEL, box):
        assert "periodic box" in row.not_applicable


def test_nan_is_no_agreement() -> None:
    energy, force = measured(lambda x, system: (np.nan, np.full_like(x, np.nan)))
    assert np.isnan(energy.value)
    assert np.isnan(force.value)
