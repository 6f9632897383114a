"""Cutoff: the step of a plain Lennard-Jones cutoff is known in closed form."""

from __future__ import annotations

import re

import numpy as np
import pytest
from checks.fakes import FakeEvaluator, Pairs, by_name, card, water
from springs import molecule

from omm_mlff.checks import cutoff
from omm_mlff.checks.base import Evidence
from omm_mlff.geometry.distances import van_der_waals_radii
from omm_mlff.geometry.pulled_apart import first_molecule, two_copies
from omm_mlff.units import EV_ANGSTROM_PER_KJMOL_NM, MEV_PER_KJMOL

CUTOFF = 0.5
PLAIN = Pairs(sigma=0.2, cutoff=CUTOFF)
SWITCHED = Pairs(sigma=0.2, cutoff=CUTOFF, switch=0.4)


def measured(function, system=None, named=CUTOFF, **options):
    system = system or water()
    evaluator = FakeEvaluator(function, system, **options)
    evidence = Evidence(system, card(cutoff_nm=named), evaluator=evaluator)
    found = by_name(cutoff.CHECK.measure(evidence))
    return found["cutoff.energy_jump"], found["cutoff.force_jump"]


def closed_form(pairs: Pairs, distance: float) -> tuple[float, float]:
    energy, slope = Pairs(pairs.epsilon, pairs.sigma).pair(np.array([distance]))
    return abs(energy[0]) * MEV_PER_KJMOL, abs(slope[0]) * EV_ANGSTROM_PER_KJMOL_NM


def test_a_plain_cutoff_steps_by_its_closed_form() -> None:
    energy, force = measured(PLAIN)
    expected_energy, expected_force = closed_form(PLAIN, CUTOFF)
    assert energy.value == pytest.approx(expected_energy, rel=1e-3)
    assert force.value == pytest.approx(expected_force, rel=1e-3)
    length = float(re.search(r"(\S+) angstrom apart \(cutoff 5\)", energy.cause)[1])
    assert length == pytest.approx(10.0 * CUTOFF, abs=1e-3)


def test_a_switched_cutoff_does_not_step() -> None:
    energy, force = measured(SWITCHED)
    assert energy.value < 1e-6
    assert force.value < 1e-6


def test_a_potential_shifted_to_zero_steps_in_its_force_alone() -> None:
    edge, _ = Pairs(PLAIN.epsilon, PLAIN.sigma).pair(np.array([CUTOFF]))

    class Shifted(Pairs):
        def pair(self, d):
            energy, slope = Pairs.pair(self, d)
            return energy - edge[0] * (d < CUTOFF), slope

    energy, force = measured(Shifted(sigma=0.2, cutoff=CUTOFF))
    _, expected_force = closed_form(PLAIN, CUTOFF)
    assert energy.value < 1e-3 * closed_form(PLAIN, CUTOFF)[0] * 10
    assert force.value == pytest.approx(expected_force, rel=1e-3)


@pytest.mark.parametrize("real", [0.46, 0.53])
def test_a_cutoff_that_the_card_does_not_name_is_found(real: float) -> None:
    hidden = Pairs(sigma=0.2, cutoff=real)
    energy, force = measured(hidden)
    expected_energy, expected_force = closed_form(hidden, real)
    assert energy.value == pytest.approx(expected_energy, rel=0.01)
    assert force.value == pytest.approx(expected_force, rel=0.01)


def test_a_step_estimate_is_exact_for_a_parabola_with_a_step() -> None:
    x = np.arange(20.0)
    smooth = 3.0 - 2.0 * x + 0.7 * x**2
    found = cutoff.steps(smooth + 0.25 * (x >= 9))
    assert found[6] == pytest.approx(0.25, abs=1e-10)  # between the points 8 and 9
    assert cutoff.steps(smooth) == pytest.approx(np.zeros(15), abs=1e-10)


def test_a_smooth_function_leaves_a_step_of_third_order() -> None:
    def largest(h: float) -> float:
        return float(np.abs(cutoff.steps(np.sin(np.arange(0.0, 3.0, h)))).max())

    assert np.log2(largest(0.02) / largest(0.01)) == pytest.approx(3.0, abs=0.05)


def test_crossings_are_where_a_pair_is_at_the_cutoff() -> None:
    line = two_copies(water(), np.random.default_rng(0))
    separations, pairs = line.crossings(CUTOFF)
    assert len(separations) == 9
    positions = line.at(separations)
    k = np.arange(9)
    lengths = np.linalg.norm(positions[k, pairs[:, 1]] - positions[k, pairs[:, 0]], axis=1)
    assert lengths == pytest.approx(np.full(9, CUTOFF), abs=1e-12)
    assert (pairs[:, 0] < 3).all()
    assert (pairs[:, 1] >= 3).all()


def test_two_copies_are_two_copies() -> None:
    system = water()
    line = two_copies(system, np.random.default_rng(4))
    both = line.system
    assert both.species.tolist() == [8, 1, 1, 8, 1, 1]
    assert both.bonds.tolist() == [[0, 1], [0, 2], [3, 4], [3, 5]]
    assert [a.element.symbol for a in both.topology.atoms()] == ["O", "H", "H"] * 2
    assert len(list(both.topology.bonds())) == 4
    for part in (both.positions[:3], both.positions[3:]):
        ours = np.linalg.norm(part[:, None] - part[None], axis=2)
        theirs = np.linalg.norm(system.positions[:, None] - system.positions[None], axis=2)
        assert ours == pytest.approx(theirs, abs=1e-12)


def test_of_a_box_the_first_molecule_is_taken_and_made_whole() -> None:
    one = np.array(water().positions)
    positions = np.concatenate((one, one + 0.4)) + np.array([0.0, 0.95, 0.0])
    positions[2] -= [0.0, 1.0, 0.0]  # one hydrogen lies in the next box
    box = molecule([8, 1, 1] * 2, positions, [[0, 1], [0, 2], [3, 4], [3, 5]], np.eye(3))
    assert first_molecule(box).tolist() == [0, 1, 2]
    line = two_copies(box, np.random.default_rng(4))
    lengths = np.linalg.norm(line.system.positions[1:3] - line.system.positions[0], axis=1)
    assert lengths == pytest.approx(np.linalg.norm(one[1:] - one[0], axis=1), abs=1e-12)
    assert not line.system.periodic


def test_the_copies_never_come_closer_than_they_should() -> None:
    seen = []

    def watching(positions, system):
        r = positions[3:, None] - positions[None, :3]
        radii = van_der_waals_radii(water().species)
        seen.append((np.sqrt((r**2).sum(-1)) / (radii[:, None] + radii[None, :])).min())
        return SWITCHED(positions, system)

    measured(watching)
    assert min(seen) > 0.9 * cutoff.CLOSEST


def test_no_cutoff_or_no_second_copy_is_not_applicable() -> None:
    energy, _ = measured(PLAIN, named=None)
    assert "names no cutoff" in energy.not_applicable
    energy, _ = measured(PLAIN, refuses="its atom order is fixed")
    assert "its atom order is fixed" in energy.not_applicable


def test_an_energy_that_is_not_finite_is_an_infinite_step() -> None:
    def breaks(positions, system):
        energy, forces = SWITCHED(positions, system)
        near = np.linalg.norm(positions[3] - positions[0]) < 0.45
        return (float("nan") if near else energy), forces

    energy, _ = measured(breaks)
    assert energy.value == np.inf
