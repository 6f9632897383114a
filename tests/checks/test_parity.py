"""Parity: a difference that was put in is found where it was put."""

from __future__ import annotations

import numpy as np
import pytest
from checks.fakes import FakeEvaluator, Pairs, by_name, card, water

from omm_mlff.checks import parity
from omm_mlff.checks.base import Evidence
from omm_mlff.units import EV_ANGSTROM_PER_KJMOL_NM, MEV_PER_KJMOL

MODEL = Pairs()


def measured(direct):
    evaluator = FakeEvaluator(MODEL, water())
    evaluator.potential.energies_and_forces = direct
    return by_name(parity.CHECK.measure(Evidence(water(), card(), evaluator=evaluator)))


def alone(positions, system):
    pairs = [MODEL(frame, system) for frame in positions]
    return np.array([e for e, _ in pairs]), np.array([f for _, f in pairs])


def test_the_same_on_both_sides_is_zero() -> None:
    found = measured(alone)
    assert found["parity.energy"].value == 0.0
    assert found["parity.force"].value == 0.0
    assert found["parity.force"].n_samples == parity.N_FRAMES


def test_the_largest_difference_is_found_and_placed() -> None:
    def different(positions, system):
        energies, forces = alone(positions, system)
        energies[3] -= 0.6
        forces[5, 2, 1] += 0.25
        return energies, forces

    found = measured(different)
    assert found["parity.energy"].value == pytest.approx(0.2 * MEV_PER_KJMOL)
    assert found["parity.energy"].where.frame == 3
    assert found["parity.force"].value == pytest.approx(0.25 * EV_ANGSTROM_PER_KJMOL_NM)
    assert (found["parity.force"].where.frame, found["parity.force"].where.atoms) == (5, (2,))


def test_a_nan_on_one_side_is_the_largest_difference() -> None:
    def broken(positions, system):
        energies, forces = alone(positions, system)
        forces[1, 0, 0] = np.nan
        return energies, forces

    assert np.isnan(measured(broken)["parity.force"].value)


def test_a_potential_that_lives_in_openmm_only_is_not_applicable() -> None:
    found = measured(lambda positions, system: None)
    assert "other than by OpenMM" in found["parity.energy"].not_applicable
