"""Smoothness: steps and kinks of known size in curves that are smooth otherwise."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from checks.fakes import FakeEvaluator, by_name, card
from springs import STIFFNESS, SpringPotential, diatomic, molecule, triatomic

from omm_mlff.checks import smoothness
from omm_mlff.checks.base import Evidence
from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.units import (
    ANGSTROM_PER_NM,
    EV_PER_KJMOL,
    KJMOL_NM_PER_EV_ANGSTROM,
    KJMOL_PER_EV,
)

PEROXIDE = [[0.0, 0.0, 0.0], [0.145, 0.0, 0.0], [-0.02, 0.095, 0.0], [0.165, 0.03, 0.09]]


def morse(d):
    """A bond of 1 angstrom, eV: energy and derivative."""
    x = np.exp(-2.2 * (d - 1.0))
    return 4.5 * (1.0 - x) ** 2, 9.0 * 2.2 * (1.0 - x) * x


class Pair:
    """A function of the distance of two atoms in angstrom, to eV and its derivative."""

    def __init__(self, *functions, atoms=(0, 1)) -> None:
        self.functions, self.atoms = functions, atoms

    def __call__(self, positions, system):
        i, j = self.atoms
        r = (positions[j] - positions[i]) * ANGSTROM_PER_NM
        d = np.linalg.norm(r)
        found = [function(d) for function in self.functions]
        energy, slope = (sum(part) for part in zip(*found, strict=True))
        forces = np.zeros_like(positions)
        forces[i], forces[j] = slope * r / d, -slope * r / d
        return energy * KJMOL_PER_EV, forces * KJMOL_NM_PER_EV_ANGSTROM


def kink(size, at):
    """The force jumps by `size`, the energy does not."""
    return lambda d: (0.5 * size * abs(d - at), 0.5 * size * np.sign(d - at))


def cone(size, at, epsilon=1e-4):
    """The same with the tip of a norm sqrt(x^2 + epsilon^2)."""

    def function(d):
        norm = math.hypot(d - at, epsilon)
        return 0.5 * size * norm, 0.5 * size * (d - at) / norm

    return function


def step(size, at):
    """The energy jumps by `size`, no force knows of it."""
    return lambda d: (size * (d > at), 0.0)


def measured(function, system=None):
    system = system or diatomic(0.1)
    evidence = Evidence(system, card(), evaluator=FakeEvaluator(function, system), seed=1)
    return by_name(smoothness.CHECK.measure(evidence))


def bound(name, severity="limit"):
    rows = {c.name: c.high for c in smoothness.CHECK.criteria}
    return rows[f"smoothness.{name}-{severity}"]


def test_a_step_in_a_polynomial_of_sixth_degree_is_found_exactly() -> None:
    x = np.linspace(-1.0, 1.0, 40)
    smooth = 3.0 - x + 2.0 * x**3 - x**5 + 4.0 * x**6
    assert smoothness.steps(smooth) == pytest.approx(np.zeros(33), abs=1e-12)
    found = smoothness.steps(smooth - 0.37 * (np.arange(40) >= 20))
    assert found[16] == pytest.approx(0.37, abs=1e-12)  # between the points 19 and 20
    assert found.argmax() == 16


def test_a_smooth_curve_leaves_a_step_of_seventh_order() -> None:
    def largest(h):
        return smoothness.steps(np.sin(np.arange(0.0, 7.0, h))).max()

    assert np.log2(largest(0.2) / largest(0.1)) == pytest.approx(7.0, abs=0.1)
    assert largest(0.1) == pytest.approx(0.1**7 / 20.0, rel=0.05)


def test_what_is_not_finite_is_an_infinite_step() -> None:
    values = np.ones(20)
    values[9] = math.nan
    assert np.isinf(smoothness.steps(values)).any()
    assert smoothness.steps(values)[0] == 0.0


@pytest.mark.parametrize(
    ("curve", "extra"),
    [
        (lambda x: x**2, 0),
        (lambda x: x, 1),
        (lambda x: -(x**2), 2),
        (lambda x: (x**2 - 0.5) ** 2, 2),
        (lambda x: 5.0 * x**2 + 0.2 * np.cos(30.0 * x), 10),  # 10 x = 6 sin(30 x) eleven times
        (lambda x: x**2 + 1e-4 * np.cos(60.0 * x), 0),
    ],
)
def test_extrema_beside_one_minimum_are_counted(curve, extra) -> None:
    assert smoothness.extra_extrema(curve(np.linspace(-1.0, 1.0, 401)), 1e-3) == extra


def test_a_bond_is_smooth_with_one_minimum() -> None:
    found = measured(Pair(morse))
    assert found["smoothness.scan_force"].value < 1e-6
    assert found["smoothness.scan_energy"].value < 1e-6
    assert found["smoothness.extrema"].value == 0.0
    assert "no bond to turn about" in found["smoothness.torsion_force"].not_applicable


@pytest.mark.parametrize("fault", [kink, cone])
@pytest.mark.parametrize("at", [0.9, 1.0037, 1.15])
def test_a_force_that_jumps_is_measured_and_located(fault, at) -> None:
    found = measured(Pair(morse, fault(0.02, at)))
    row = found["smoothness.scan_force"]
    assert row.value == pytest.approx(0.02, rel=0.3)  # the tip may lie on a point of the grid
    assert bound("scan_force") < row.value < bound("scan_force", "reject")
    where = float(re.search(r"bond H0-H1: a step at (\S+) angstrom", row.cause)[1])
    assert where == pytest.approx(at, abs=0.007)
    assert found["smoothness.scan_energy"].value < bound("scan_energy")


def test_an_energy_that_jumps_is_measured() -> None:
    found = measured(Pair(morse, step(1.5e-3, 1.0432)))
    assert found["smoothness.scan_energy"].value == pytest.approx(1.5, rel=1e-3)
    assert found["smoothness.scan_energy"].value > bound("scan_energy", "reject")
    assert found["smoothness.scan_force"].value < 1e-6
    assert found["smoothness.scan_energy"].where.atoms == (0, 1)


def test_a_sharp_feature_is_no_step() -> None:
    def sharp(d):
        # The force changes by 0.1 eV/angstrom within a hundredth of an angstrom.
        x = (d - 1.05) / 0.005
        return 0.05 * 0.005 * np.log(np.cosh(x)), 0.05 * np.tanh(x)

    curves = smoothness.bond_curves(FakeEvaluator(Pair(morse, sharp), diatomic(0.1)), diatomic(0.1))
    coarse = smoothness.steps(curves[0].forces).max() / KJMOL_NM_PER_EV_ANGSTROM
    found = measured(Pair(morse, sharp))
    assert coarse > bound("scan_force")
    assert found["smoothness.scan_force"].value < bound("scan_force")


def test_a_step_is_found_beside_a_sharp_feature() -> None:
    def sharp(d):
        x = (d - 1.05) / 0.007
        return 0.3 * 0.007 * np.log(np.cosh(x)), 0.3 * np.tanh(x)

    row = measured(Pair(morse, sharp, kink(0.02, 0.93)))["smoothness.scan_force"]
    assert row.value == pytest.approx(0.02, rel=0.2)
    assert "0.93" in row.cause


def test_beyond_the_accessible_energy_nothing_is_looked_at() -> None:
    # The bond costs 0.78 eV at 0.85 and at 1.25 angstrom.
    found = measured(Pair(morse, kink(0.5, 1.5), step(0.1, 0.81)))
    assert found["smoothness.scan_force"].value < 1e-6
    assert found["smoothness.scan_energy"].value < 1e-6


def test_a_second_minimum_is_counted() -> None:
    def well(d):
        x = (d - 1.17) / 0.02
        e = -0.3 * np.exp(-(x**2))
        return e, -2.0 * x * e / 0.02

    row = measured(Pair(morse, well))["smoothness.extrema"]
    assert row.value == 2.0
    assert row.value > bound("extrema")
    assert "bond H0-H1: 2 extrema" in row.cause


def test_curvature_is_the_stiffness_of_a_spring() -> None:
    with Evaluator(SpringPotential(), diatomic(), "Reference") as evaluator:
        evidence = Evidence(diatomic(), card(), evaluator=evaluator)
        found = by_name(smoothness.CHECK.measure(evidence))
    expected = STIFFNESS * EV_PER_KJMOL / ANGSTROM_PER_NM**2
    assert found["smoothness.curvature"].value == pytest.approx(expected, rel=1e-6)
    assert found["smoothness.scan_force"].value < 1e-9
    assert found["smoothness.extrema"].value == 0.0


def around(*functions):
    """H-O-O-H whose two hydrogens see each other."""
    system = molecule([8, 8, 1, 1], PEROXIDE, [[0, 1], [0, 2], [1, 3]])
    return measured(Pair(*functions, atoms=(2, 3)), system)


def far(d):
    """A repulsion of the hydrogens, eV."""
    return 0.5 * np.exp(-d), -0.5 * np.exp(-d)


def test_a_torsion_is_smooth_all_the_way_round() -> None:
    found = around(far)
    assert found["smoothness.torsion_force"].value < 1e-6
    assert found["smoothness.torsion_energy"].value < 1e-5


def test_a_force_that_jumps_in_a_torsion_is_found() -> None:
    found = around(far, kink(0.05, 2.3))
    row = found["smoothness.torsion_force"]
    # Along the arc the hydrogens part more slowly than they move: some of the step is seen.
    assert bound("torsion_force") < row.value < 0.05
    assert row.cause.startswith("torsion H2-O0-O1-H3: a step at")
    assert row.where.atoms == (2, 0, 1, 3)


def test_an_energy_that_jumps_in_a_torsion_is_found() -> None:
    found = around(far, step(1.5e-3, 2.3))
    assert found["smoothness.torsion_energy"].value == pytest.approx(1.5, rel=0.01)


def test_no_number_is_an_infinite_step_and_no_exception() -> None:
    def breaks(positions, system):
        energy, forces = Pair(morse)(positions, system)
        broken = np.linalg.norm(positions[1] - positions[0]) > 0.11
        return (math.nan if broken else energy), forces * (math.nan if broken else 1.0)

    found = measured(breaks)
    assert found["smoothness.scan_force"].value == math.inf
    assert found["smoothness.scan_energy"].value == math.inf
    assert found["smoothness.extrema"].value == math.inf
    assert "not a number" in found["smoothness.scan_force"].cause
    everywhere = measured(lambda x, _: (math.nan, np.full_like(x, math.nan)), triatomic())
    assert everywhere["smoothness.scan_force"].value == math.inf


def test_without_bonds_or_alone_it_says_why() -> None:
    found = measured(Pair(morse), molecule([18], [[0, 0, 0]], []))
    assert all("no bond" in row.not_applicable for row in found.values())
    box = molecule([8, 1, 1], triatomic().positions, [[0, 1], [0, 2]], np.eye(3))
    evaluator = FakeEvaluator(Pair(morse), box, refuses="its box is fixed")
    rows = smoothness.CHECK.measure(Evidence(box, card(), evaluator=evaluator))
    assert all("its box is fixed" in row.not_applicable for row in rows)
    found = measured(Pair(morse), box)
    assert found["smoothness.scan_force"].where.system == box.name
    assert found["smoothness.scan_force"].value < 1e-3
