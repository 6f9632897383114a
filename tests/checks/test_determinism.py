"""Determinism: stale lists, random answers, and which of the two it is."""

from __future__ import annotations

import numpy as np
import pytest
from checks.fakes import FakeEvaluator, Pairs, by_name, card, labels, with_labels
from springs import SpringPotential, molecule, triatomic

from omm_mlff.checks import determinism
from omm_mlff.checks.base import Evidence
from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.schema import MolecularSystem
from omm_mlff.units import MEV_PER_KJMOL

CUTOFF = 0.85
ARGON = Pairs(sigma=0.34, cutoff=CUTOFF, switch=0.7)


def argon() -> MolecularSystem:
    """Six atoms in a row of 0.38 nm, zigzag, with thermal frames."""
    positions = [[0.33 * k, 0.19 * (k % 2), 0.05 * (k % 3)] for k in range(6)]
    system = molecule([18] * 6, positions, [])
    frames = labels(ARGON, system, temperature_K=[60.0] * 8, trajectory=np.arange(8), spread=0.01)
    return with_labels(system, frames)


class Listed:
    """Pairs from a list that is built anew where `is_due(itself, positions)` says so."""

    def __init__(self, is_due, reach=CUTOFF) -> None:
        self.is_due, self.reach = is_due, reach
        self.built_at = self.previous = None
        self.n_calls = 0

    def __call__(self, positions, system):
        if self.built_at is None or self.is_due(self, positions):
            i, j = np.triu_indices(len(positions), k=1)
            near = np.linalg.norm(positions[j] - positions[i], axis=1) < self.reach
            self.pairs = i[near], j[near]
            self.built_at, self.n_calls = positions.copy(), 0
        self.n_calls += 1
        self.previous = positions.copy()
        i, j = self.pairs
        r = positions[j] - positions[i]
        d = np.sqrt((r**2).sum(axis=1))
        energy, slope = ARGON.pair(d)
        pull = (slope / d)[:, None] * r
        forces = np.zeros_like(positions)
        np.add.at(forces, i, pull)
        np.add.at(forces, j, -pull)
        return float(energy.sum()), forces


def every(n: int) -> Listed:
    return Listed(lambda listed, positions: listed.n_calls >= n)


def moved(positions, since) -> float:
    return float(np.linalg.norm(positions - since, axis=1).max())


def measured(function, system=None):
    system = system or argon()
    evaluator = FakeEvaluator(function, system)
    evidence = Evidence(system, card(cutoff_nm=CUTOFF), evaluator=evaluator)
    found = by_name(determinism.CHECK.measure(evidence))
    return found["determinism.energy"], found["determinism.force"], found["determinism.history"]


def random_forces(size: float):
    random = np.random.default_rng(5)

    def function(positions, system):
        energy, forces = ARGON(positions, system)
        rms = np.sqrt((forces**2).mean())
        return energy, forces + size * rms * random.normal(size=forces.shape)

    return function


def test_a_function_of_the_positions_alone_is_deterministic() -> None:
    energy, force, history = measured(ARGON)
    assert (energy.value, force.value, history.value) == (0.0, 0.0, 0.0)
    assert "the same bits" in force.cause
    assert history.n_samples > 40


@pytest.mark.parametrize("n", [2, 3, 5, 10, 20, 40])
def test_a_list_rebuilt_only_every_n_calls_has_a_history(n: int) -> None:
    _, force, history = measured(every(n))
    assert force.value == 0.0
    # Nothing is left of the forces where the list is that of atoms without neighbours.
    assert history.value > 0.5
    assert "after" in history.cause


def test_a_list_rebuilt_at_every_call_has_none() -> None:
    assert measured(every(1))[2].value == 0.0


def test_a_list_with_a_skin_has_none() -> None:
    skin = Listed(lambda listed, x: moved(x, listed.built_at) > 0.1, reach=CUTOFF + 0.2)
    assert measured(skin)[2].value < 1e-12


def test_a_skin_that_is_compared_with_one_step_has_a_history_after_a_walk() -> None:
    skin = Listed(lambda listed, x: moved(x, listed.previous) > 0.1, reach=CUTOFF + 0.2)
    _, force, history = measured(skin)
    assert force.value == 0.0
    assert history.value > 0.5
    assert "a walk" in history.cause


def test_random_forces_are_no_history() -> None:
    _, force, history = measured(random_forces(1e-3))
    # Two calls differ by sqrt(2) of it, at the frame with the largest forces.
    assert 1e-3 < force.value < 1e-2
    assert "11 of 11" in force.cause
    assert history.value == 0.0


def test_a_stale_list_is_found_under_random_forces() -> None:
    stale, noisy = every(10), random_forces(1e-3)

    def both(positions, system):
        energy, forces = stale(positions, system)
        return energy, forces + noisy(positions, system)[1] - ARGON(positions, system)[1]

    _, force, history = measured(both)
    assert force.value > 1e-3
    assert history.value > 0.5


def test_an_energy_that_counts_its_calls_is_seen() -> None:
    count = iter(range(10**6))
    energy, force, _ = measured(lambda x, system: (1e-3 * next(count), ARGON(x, system)[1]))
    assert energy.value == pytest.approx(
        1e-3 * (determinism.N_REPEATS - 1) * MEV_PER_KJMOL / 6, rel=1e-9
    )
    assert force.value == 0.0


def test_an_answer_that_settles_once_is_history_and_not_chance() -> None:
    count = iter(range(10**6))
    settled = determinism.N_FRAMES + determinism.N_SETTLING + 5

    def warming_up(positions, system):
        energy, forces = ARGON(positions, system)
        return energy, forces * (1.0 if next(count) >= settled else 1.01)

    _, force, history = measured(warming_up)
    assert force.value == 0.0
    assert 1e-3 < history.value < 0.1


def test_nan_now_and_then_is_an_infinite_difference() -> None:
    count = iter(range(10**6))

    def sometimes(positions, system):
        energy, forces = ARGON(positions, system)
        return energy, forces * (np.nan if next(count) % 7 == 3 else 1.0)

    assert measured(sometimes)[1].value == np.inf


def test_nan_always_leaves_nothing_to_compare() -> None:
    for row in measured(lambda x, system: (np.nan, np.full_like(x, np.nan))):
        assert row.not_applicable.startswith("no answer is finite")


def test_in_a_box_like_atoms_change_places() -> None:
    system = argon()
    box = MolecularSystem(**{**vars(system), "box_vectors": np.eye(3) * 4.0})
    frame = system.positions
    evidence = Evidence(box, card(cutoff_nm=CUTOFF), evaluator=FakeEvaluator(ARGON, box))
    far = determinism._far_frame(evidence, evidence.live, frame)
    assert sorted(map(tuple, far)) == sorted(map(tuple, frame))
    assert not np.array_equal(far, frame)
    assert measured(ARGON, box)[2].value == 0.0
    assert measured(every(10), box)[2].value > 1e-3


def test_far_away_is_beyond_the_cutoff_and_a_skin() -> None:
    system = argon()
    evidence = Evidence(system, card(cutoff_nm=CUTOFF), evaluator=FakeEvaluator(ARGON, system))
    far = determinism._far_frame(evidence, evidence.live, system.positions)
    i, j = np.triu_indices(6, k=1)
    closest = np.linalg.norm(far[j] - far[i], axis=1).min()
    assert closest == pytest.approx(CUTOFF + determinism.CLEAR_NM)


def test_springs_through_a_context_give_the_same_bits() -> None:
    system = triatomic()
    with Evaluator(SpringPotential(), system, "Reference") as evaluator:
        found = determinism.CHECK.measure(Evidence(system, card(), evaluator=evaluator))
    assert [row.value for row in found] == [0.0, 0.0, 0.0]
