"""Short range: walls whose height is known, and holes put where they are to be found."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from checks.fakes import FakeEvaluator, by_name, card
from springs import SpringPotential, diatomic, molecule, triatomic

from omm_mlff.checks import short_range
from omm_mlff.checks.base import Evidence
from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.potentials.student import StudentPotential
from omm_mlff.students.checkpoint import student_names
from omm_mlff.systems import load_system
from omm_mlff.units import ANGSTROM_PER_NM, BOLTZMANN, KJMOL_NM_PER_EV_ANGSTROM, KJMOL_PER_EV

CEILING_EV = short_range.CEILING / KJMOL_PER_EV
ACCESSIBLE_EV = short_range.ACCESSIBLE / KJMOL_PER_EV
BOUNDS = {c.severity: c.low for c in short_range.CHECK.criteria if "barrier" in c.measurement}


def morse(d, rest, depth=4.5, a=2.0):
    """A bond, eV and angstrom."""
    return depth * (1.0 - np.exp(-a * (d - rest))) ** 2


def wall(d):
    """The repulsion of atoms without a bond, eV and angstrom."""
    return 300.0 * np.exp(-5.0 * d)


def dip(d, depth, at, width):
    return -depth * np.exp(-(((d - at) / width) ** 2))


class Pairwise:
    """Energies of pairs in eV of a distance in angstrom: of bonds, and of all other pairs."""

    def __init__(self, other=wall, bond=morse) -> None:
        self.other, self.bond = other, bond

    def __call__(self, positions, system):
        x = np.asarray(positions) * ANGSTROM_PER_NM
        rest = np.linalg.norm(system.positions[:, None] - system.positions, axis=2)
        bonded = {tuple(bond) for bond in system.bonds.tolist()}
        energy, forces = 0.0, np.zeros_like(x)
        for i in range(len(x)):
            for j in range(i + 1, len(x)):
                r = x[j] - x[i]
                d = np.linalg.norm(r)
                known = (i, j) in bonded
                at_rest = rest[i, j] * ANGSTROM_PER_NM

                def of(d, known=known, at_rest=at_rest):
                    return self.bond(d, at_rest) if known else self.other(d)

                energy += of(d)
                pull = (of(d + 1e-5) - of(d - 1e-5)) / 2e-5 * r / d
                forces[i] += pull
                forces[j] -= pull
        return energy * KJMOL_PER_EV, forces * KJMOL_NM_PER_EV_ANGSTROM


def atom():
    """One helium atom: two of them meet on one line alone."""
    return molecule([2], [[0.0, 0.0, 0.0]], [])


def carbons():
    return molecule([6, 6], [[0.0, 0.0, 0.0], [0.15, 0.0, 0.0]], [[0, 1]])


def measured(function, system, identity="element", **options):
    evaluator = FakeEvaluator(function, system, **options)
    evidence = Evidence(
        system, dataclasses.replace(card(), knows_atoms_by=identity), evaluator=evaluator, seed=1
    )
    return by_name(short_range.CHECK.measure(evidence))


def highest(function, low, high):
    return float(function(np.linspace(low, high, 20001)).max())


def test_a_sound_molecule_has_walls_and_no_hole() -> None:
    found = measured(Pairwise(), triatomic())
    assert found["short_range.barrier"].value == pytest.approx(CEILING_EV)
    assert found["short_range.temperature"].value == pytest.approx(1000.0)
    assert found["short_range.binding"].value == pytest.approx(0.0, abs=1e-3)
    assert found["short_range.hole"].value == 0.0


def test_the_bounds_are_thirty_and_twenty_kt() -> None:
    kt = BOLTZMANN * 300.0 / KJMOL_PER_EV
    assert BOUNDS["limit"] == pytest.approx(30.0 * kt, abs=1e-3)
    assert BOUNDS["reject"] == pytest.approx(20.0 * kt, abs=1e-3)


@pytest.mark.parametrize("height", [0.1, 0.3, 0.6, 1.5])
def test_a_barrier_has_the_height_that_it_has(height) -> None:
    def other(d):
        return height * np.exp(-(((d - 1.1) / 0.2) ** 2)) + dip(d, 3.0, 0.5, 0.25)

    found = measured(Pairwise(other), atom())
    row = found["short_range.barrier"]
    assert row.value == pytest.approx(highest(other, 0.9, 1.4), rel=0.02)
    kelvin = row.value * KJMOL_PER_EV / (30.0 * BOLTZMANN)
    assert found["short_range.temperature"].value == pytest.approx(kelvin)
    assert "He0 and He0 of two copies turns over at 1.09" in row.cause
    assert row.where.atoms == (0, 0)


def test_a_hole_behind_five_ev_is_no_fault() -> None:
    def other(d):
        return 6.0 * np.exp(-(((d - 1.1) / 0.2) ** 2)) + dip(d, 50.0, 0.5, 0.2)

    found = measured(Pairwise(other), atom())
    assert found["short_range.barrier"].value == pytest.approx(CEILING_EV)
    assert found["short_range.hole"].value == 0.0


def test_pure_attraction_has_no_barrier_and_binds() -> None:
    found = measured(Pairwise(lambda d: dip(d, 2.0, 0.0, 2.0)), atom())
    assert found["short_range.barrier"].value == 0.0
    assert found["short_range.barrier"].value < BOUNDS["reject"]
    assert found["short_range.binding"].value > 1.0


def test_no_interaction_at_all_is_no_wall() -> None:
    found = measured(Pairwise(lambda d: 0.0 * d), atom())
    assert found["short_range.barrier"].value == 0.0
    assert "rises by no more than 0.00 eV by 0.50 angstrom" in found["short_range.barrier"].cause


def test_a_hydrogen_bond_is_no_hole_and_its_depth_counts_for_the_barrier() -> None:
    def other(d):
        return wall(d) + dip(d, 0.3, 2.2, 0.4)

    found = measured(Pairwise(other), atom())
    assert found["short_range.barrier"].value == pytest.approx(CEILING_EV)
    assert 0.1 < found["short_range.binding"].value < 0.35


def test_a_bump_outside_contact_is_no_wall() -> None:
    def other(d):
        return wall(d) + 0.08 * np.exp(-(((d - 3.0) / 0.2) ** 2))

    assert measured(Pairwise(other), atom())["short_range.barrier"].value > 2.5


def test_no_number_counts_before_the_ceiling_and_not_behind_it() -> None:
    def ends(above):
        return lambda d: np.where(wall(d) > above, np.nan, wall(d))

    early = measured(Pairwise(ends(0.4)), atom())["short_range.barrier"]
    assert 0.3 < early.value <= 0.4 < BOUNDS["reject"]
    assert "has no energy beyond" in early.cause
    late = measured(Pairwise(ends(4.0)), atom())["short_range.barrier"]
    assert late.value == pytest.approx(CEILING_EV)


def test_a_bond_that_lets_go_too_early_is_named() -> None:
    def weak(d, rest):
        x = d - rest
        # Rises to 0.55 eV at 0.3 angstrom and is gone at twice that.
        return np.where(x < 0.0, 40.0 * x**2, 0.55 * np.sin(np.pi * np.clip(x, 0, 0.6) / 0.6) ** 2)

    found = measured(Pairwise(bond=weak), carbons(), refuses="not today")
    row = found["short_range.barrier"]
    assert row.value == pytest.approx(0.55, rel=0.02)
    assert BOUNDS["reject"] < row.value < BOUNDS["limit"]
    assert "bond C0-C1 turns over at 1.8" in row.cause
    assert row.where.atoms == (0, 1)


def test_springs_hold_on_their_bonds_alone() -> None:
    potential = SpringPotential()
    with Evaluator(potential, triatomic(), "Reference") as evaluator:
        native = dataclasses.replace(potential.card, knows_atoms_by="bond")
        found = by_name(
            short_range.CHECK.measure(Evidence(triatomic(), native, evaluator=evaluator))
        )
    assert found["short_range.barrier"].value == pytest.approx(CEILING_EV)
    assert (
        "approaches left out: springs knows its atoms by bond" in found["short_range.barrier"].cause
    )
    assert "knows its atoms by bond" in found["short_range.binding"].not_applicable
    assert found["short_range.hole"].value == 0.0


def test_what_cannot_be_looked_at_says_why() -> None:
    found = measured(Pairwise(), atom(), refuses="its atom order is fixed")
    for name in ("barrier", "temperature", "binding"):
        assert "its atom order is fixed" in found[f"short_range.{name}"].not_applicable
    box = molecule([8, 1, 1], triatomic().positions, [[0, 1], [0, 2]], np.eye(3))
    found = measured(Pairwise(), box, refuses="its box is fixed")
    assert all("its box is fixed" in row.not_applicable for row in found.values())


def test_of_a_box_one_molecule_is_looked_at() -> None:
    seen = []

    def watching(positions, system):
        seen.append((len(positions), system.periodic))
        return Pairwise()(positions, system)

    box = molecule([8, 1, 1], triatomic().positions, [[0, 1], [0, 2]], np.eye(3))
    found = measured(watching, box)
    assert found["short_range.barrier"].value == pytest.approx(CEILING_EV)
    assert set(seen) == {(3, False), (6, False)}
    assert found["short_range.hole"].where.system == box.name


def test_nothing_but_nan_is_a_fault_and_no_exception() -> None:
    found = measured(lambda x, _: (math.nan, np.full_like(x, np.nan)), triatomic())
    assert found["short_range.barrier"].value == 0.0
    assert found["short_range.hole"].value == math.inf


def hump(height):
    """A bond that, pressed by 0.4 angstrom, is over a hump, and at rest again at 0.7 angstrom."""

    def bond(d, rest):
        x = (rest - d) / 0.8
        inside = height * np.sin(np.pi * np.clip(x, 0.0, 1.0)) ** 2
        return inside + np.where(x < 0, 10.0 * x**2, 0.0) + np.where(x > 1, 90.0 * (x - 1) ** 2, 0)

    return bond


@pytest.mark.parametrize(("height", "depth"), [(0.3, ACCESSIBLE_EV), (5.0, 0.0)])
def test_a_hole_counts_when_dynamics_get_there(height, depth) -> None:
    found = measured(Pairwise(bond=hump(height)), carbons(), refuses="no matter")
    assert found["short_range.hole"].value == pytest.approx(depth, abs=0.02)
    if depth:
        assert "C0 and C1 at 0.7" in found["short_range.hole"].cause


def test_the_way_in_is_the_height_of_the_hump() -> None:
    system = carbons()
    evaluator = FakeEvaluator(Pairwise(bond=hump(1.7)), system)
    hole = np.array([[0.04, 0.0, 0.0], [0.11, 0.0, 0.0]])
    top = short_range.way_in(evaluator, system.positions, hole, -math.inf)
    assert top / KJMOL_PER_EV == pytest.approx(1.7, rel=0.02)


def test_a_path_goes_round_what_can_be_gone_round() -> None:
    system = triatomic()

    def side(positions, _):
        # A hill in the way of atom 2, to be passed on either side.
        x = np.asarray(positions)
        r = x[2] - np.array([0.05, 0.003, 0.0])
        height = 500.0 * np.exp(-(r @ r) / 0.02**2)
        forces = np.zeros_like(x)
        forces[2] = 2.0 * height * r / 0.02**2
        return height, forces

    rest, hole = system.positions.copy(), system.positions.copy()
    rest[2], hole[2] = [0.0, 0.0, 0.0], [0.1, 0.0, 0.0]
    evaluator = FakeEvaluator(side, system)
    straight, _ = side(np.array([rest[0], rest[1], [0.05, 0.0, 0.0]]), None)
    relaxed = short_range.way_in(evaluator, rest, hole, -math.inf)
    assert relaxed < 0.5 * straight
    n = evaluator.n_evaluations
    assert short_range.way_in(evaluator, rest, hole, math.inf) > 0.0
    assert evaluator.n_evaluations - n == short_range.N_IMAGES


def test_descent_only_keeps_what_is_lower_and_arrives() -> None:
    system = diatomic(0.1)
    function = Pairwise(bond=lambda d, rest: 15.0 * (d - rest) ** 2)
    evaluator = FakeEvaluator(function, system)
    begin = short_range.starts(system, np.random.default_rng(0), 6)
    visited, energies = short_range.descend(evaluator, begin, 30)
    assert visited.shape == (30, 6, 2, 3)
    assert np.array_equal(visited[0], begin)
    assert (energies.min(axis=0) < 0.01 * KJMOL_PER_EV).all()


def test_searches_start_at_rest_shrunken_and_displaced() -> None:
    system = load_system("methane")
    begin = short_range.starts(system, np.random.default_rng(0), 19)
    assert np.array_equal(begin[0], system.positions)
    own = np.linalg.norm(system.positions[1] - system.positions[0])
    lengths = np.linalg.norm(begin[:, 1] - begin[:, 0], axis=1) / own
    assert lengths[1:7] == pytest.approx(np.linspace(0.5, 0.9, 6))
    rms = np.sqrt(((begin[7:] - system.positions) ** 2).sum(2).mean(1))
    assert rms[0] == pytest.approx(0.02, rel=0.5)
    assert rms[-1] == pytest.approx(0.06, rel=0.5)
    # Whole batches: 25 copies of methane go into one call.
    assert short_range.n_starts(system) == 25


@pytest.mark.skipif("ultra-tiny" not in student_names(), reason="ultra-tiny is not trained")
def test_a_student_without_its_prior_has_no_walls() -> None:
    potential, system = StudentPotential("ultra-tiny"), load_system("water")
    potential.student.prior.coulomb = 0.0
    with Evaluator(potential, system, "Reference") as evaluator:
        evidence = Evidence(system, potential.card, evaluator=evaluator)
        found = by_name(short_range.CHECK.measure(evidence))
    assert found["short_range.barrier"].value < BOUNDS["reject"]
    assert found["short_range.hole"].value > 0.0
