"""Torsions: a molecule with a closed-form torsional potential, and graphs by another program."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from checks.fakes import by_name, card
from checks.test_vibrations import Batched
from geometry.test_normal_modes import springs
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.stats import kendalltau
from springs import molecule

from omm_mlff.checks import torsions
from omm_mlff.checks.base import Evidence
from omm_mlff.geometry.landmarks import torsion_angles, turned
from omm_mlff.schema import ReferenceLandmarks, TorsionScan
from omm_mlff.units import KJMOL_PER_EV

TORSION = np.array([[2, 0, 1, 3]])
MEV = KJMOL_PER_EV / 1000.0
ANGLES = np.radians(np.arange(12) * 30.0 - 180.0)


def peroxide():
    """H-O-O-H, atoms O0, O1, H2 on O0 and H3 on O1, trans."""
    positions = [[0, 0, 0], [0.145, 0, 0], [-0.02, 0.095, 0], [0.165, -0.095, 0]]
    return molecule([8, 8, 1, 1], positions, [[0, 1], [0, 2], [1, 3]])


class Torsional:
    """Springs on every pair but H-H, and V = a (1 + cos 3 phi) / 2 + b (1 + cos phi) / 2, meV.

    Trans and gauche are minima; from trans to gauche there is about `a` to climb.
    """

    def __init__(self, threefold=100.0, onefold=40.0, offset=0.0) -> None:
        self.threefold, self.onefold, self.offset = threefold, onefold, offset
        self.rest = peroxide().positions

    def energy(self, phi):
        three = 0.5 * self.threefold * (1.0 + np.cos(3.0 * phi))
        return (three + 0.5 * self.onefold * (1.0 + np.cos(phi)) + self.offset) * MEV

    def slope(self, phi):
        return -(1.5 * self.threefold * np.sin(3.0 * phi) + 0.5 * self.onefold * np.sin(phi)) * MEV

    def __call__(self, positions):
        energies = np.zeros(len(positions))
        forces = np.zeros(positions.shape)
        for i, j in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3)):
            pair = springs(self.rest[[i, j]])
            energy, force = pair(positions[:, [i, j]])
            energies += energy
            forces[:, [i, j]] += force
        phi, gradient = torsion_angles(positions, TORSION)
        energies += self.energy(phi[:, 0])
        for corner, atom in enumerate(TORSION[0]):
            forces[:, atom] -= self.slope(phi[:, :1]) * gradient[:, 0, corner]
        return energies, forces


REFERENCE = Torsional()


def minima(surface):
    """Trans and one gauche minimum of a torsional potential, by a fine grid."""
    fine = np.radians(np.arange(0.0, 360.0, 0.01))
    v = surface.energy(fine)
    found = fine[(v < np.roll(v, 1)) & (v < np.roll(v, -1))]
    return [float(phi) for phi in found if phi <= np.pi + 1e-6]


def with_landmarks(surface=REFERENCE):
    system = peroxide()
    stack = [turned(system.positions, TORSION[0], phi, system.bonds) for phi in minima(surface)]
    stack.sort(key=lambda frame: float(surface(frame[None])[0][0]))
    conformers = np.stack(stack)
    frames = np.stack([turned(system.positions, TORSION[0], phi, system.bonds) for phi in ANGLES])
    scan = TorsionScan(TORSION, (12,), frames, *surface(frames))
    landmarks = ReferenceLandmarks(
        conformers, surface(conformers)[0], np.ones(6), (scan,), "itself"
    )
    return dataclasses.replace(system, landmarks=landmarks)


def measured(surface, system=None):
    system = system or with_landmarks()
    evidence = Evidence(system, card(), evaluator=Batched(surface, system))
    return by_name(torsions.CHECK.measure(evidence))


def limit(name, severity="limit"):
    (row,) = (c for c in torsions.CHECK.criteria if c.name == f"{name}-{severity}")
    return row.low if row.high is None else row.high


def test_the_reference_itself_has_no_error() -> None:
    found = measured(REFERENCE)
    assert found["torsions.map_rmse"].value == pytest.approx(0.0, abs=1e-9)
    assert found["torsions.barrier"].value == pytest.approx(0.0, abs=1e-9)
    assert found["conformers.energy_rmse"].value == pytest.approx(0.0, abs=1e-3)
    assert found["conformers.order"].value == 1.0
    assert found["conformers.order"].n_samples == 1


def test_a_constant_between_two_methods_is_no_error() -> None:
    for row in measured(Torsional(offset=1e6)).values():
        assert row.value == pytest.approx(1.0 if row.name == "conformers.order" else 0.0, abs=1e-2)


def test_a_barrier_without_its_threefold_part_is_missed_by_that_much() -> None:
    found = measured(Torsional(threefold=0.0))
    energy = REFERENCE.energy(ANGLES)
    wanted = (energy.max() - energy.min()) / MEV - 40.0
    assert found["torsions.barrier"].value == pytest.approx(wanted, rel=1e-6)
    assert found["torsions.barrier"].value > limit("torsions.barrier")
    error = 50.0 * (1.0 + np.cos(3.0 * ANGLES))
    assert found["torsions.map_rmse"].value == pytest.approx(error.std(), rel=1e-6)
    assert "H2-O0-O1-H3 = " in found["torsions.barrier"].cause


def test_points_that_nobody_visits_do_not_count() -> None:
    high = Torsional(threefold=100.0, onefold=850.0)  # cis is 950 meV above trans
    other = Torsional(threefold=100.0, onefold=950.0)
    energy = high.energy(ANGLES) / MEV
    near = energy - energy.min() <= 500.0
    assert 0 < near.sum() < 12
    error = 50.0 * (1.0 + np.cos(ANGLES))[near]
    found = measured(other, with_landmarks(high))
    assert found["torsions.map_rmse"].value == pytest.approx(error.std(), rel=1e-6)
    assert found["torsions.map_rmse"].n_samples == near.sum()


def test_conformers_in_the_wrong_order_are_seen() -> None:
    found = measured(Torsional(onefold=-40.0))
    assert found["conformers.order"].value == -1.0
    assert found["conformers.order"].value < limit("conformers.order")
    assert found["conformers.order"].cause.endswith("2 < 1")
    # trans and gauche: the difference of two energies, halved by removing the mean
    trans, gauche = (REFERENCE.energy(phi) for phi in (np.pi, minima(REFERENCE)[0]))
    turned_round = Torsional(onefold=-40.0)
    other = turned_round.energy(np.pi) - turned_round.energy(minima(turned_round)[0])
    wanted = abs((trans - gauche) - other) / MEV / 2.0
    assert found["conformers.energy_rmse"].value == pytest.approx(wanted, rel=1e-3)


def test_a_conformer_that_the_model_does_not_have_falls_into_another() -> None:
    found = measured(Torsional(threefold=0.0))  # trans alone is a minimum
    assert "H2-H3 changes by" in found["conformers.energy_rmse"].cause
    gap = (REFERENCE.energy(minima(REFERENCE)[0]) - REFERENCE.energy(np.pi)) / MEV
    assert found["conformers.energy_rmse"].value == pytest.approx(gap / 2.0, abs=0.1)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_told_and_never_raised(wrong) -> None:
    def broken(positions):
        return np.full(len(positions), wrong), np.full(positions.shape, wrong)

    found = measured(broken)
    for name in ("torsions.map_rmse", "torsions.barrier", "conformers.energy_rmse"):
        assert found[name].value == np.inf
        assert found[name].cause
    assert found["conformers.order"].value == -1.0


def test_one_point_that_is_not_finite_is_found() -> None:
    def broken(positions):
        energies, forces = REFERENCE(positions)
        if len(positions) == 12:
            energies = energies.copy()
            energies[3] = np.nan
        return energies, forces

    found = measured(broken)
    assert found["torsions.map_rmse"].value == np.inf
    assert "= -90 degrees" in found["torsions.map_rmse"].cause
    assert found["torsions.barrier"].value == np.inf
    assert found["conformers.order"].value == 1.0


def test_a_molecule_that_flies_apart_has_no_conformers() -> None:
    class Apart(Torsional):
        def __init__(self) -> None:
            super().__init__()
            self.rest = 3.0 * self.rest

    found = measured(Apart())
    assert found["conformers.energy_rmse"].value == np.inf
    assert "bond O0-" in found["conformers.energy_rmse"].cause


def test_without_landmarks_rotors_or_conformers_there_is_nothing_to_compare() -> None:
    for row in measured(REFERENCE, peroxide()).values():
        assert "conformers and scans are known" in row.not_applicable
    system = with_landmarks()
    bare = dataclasses.replace(
        system.landmarks,
        scans=(),
        minima=system.landmarks.minima[:1],
        energies=system.landmarks.energies[:1],
    )
    found = measured(REFERENCE, dataclasses.replace(system, landmarks=bare))
    assert "no rotatable bond" in found["torsions.barrier"].not_applicable
    assert "only one conformer" in found["conformers.order"].not_applicable


def test_conformers_that_are_alike_have_no_order() -> None:
    alike = Torsional(onefold=2.0)
    found = measured(alike, with_landmarks(alike))
    assert found["conformers.energy_rmse"].value == pytest.approx(0.0, abs=1e-3)
    assert "within 5 meV" in found["conformers.order"].not_applicable


def test_tau_is_kendalls_where_nothing_ties() -> None:
    random = np.random.default_rng(2)
    for n in (2, 3, 7, 12):
        a, b = random.normal(size=(2, n))
        tau, n_pairs = torsions.kendall_tau(a, b, 1e-12)
        assert tau == pytest.approx(kendalltau(a, b).statistic)
        assert n_pairs == n * (n - 1) // 2


def test_pairs_that_the_reference_cannot_tell_apart_do_not_count() -> None:
    reference = np.array([0.0, 1.0, 50.0])
    assert torsions.kendall_tau(np.array([9.0, 0.0, 40.0]), reference, 5.0) == (1.0, 2)
    assert torsions.kendall_tau(np.array([9.0, 0.0, 4.0]), reference, 4.0) == (0.0, 2)


def test_a_tie_in_the_model_is_neither_right_nor_wrong() -> None:
    reference = np.array([0.0, 50.0])
    for rounding in (-1e-9, 0.0, 1e-9):
        tau, _ = torsions.kendall_tau(np.array([0.0, rounding]), reference, 5.0)
        assert tau == pytest.approx(0.0, abs=1e-8)


def bottleneck(energies, start, end):
    """The lowest highest point between two points of a periodic grid, by a spanning tree."""
    n = energies.size
    index = np.arange(n).reshape(energies.shape)
    flat = energies.ravel() - energies.min() + 1.0  # an edge of weight 0 is no edge to scipy
    rows, columns = [], []
    for axis in (0, 1):
        rows.append(index.ravel())
        columns.append(np.roll(index, -1, axis=axis).ravel())
    rows, columns = np.concatenate(rows), np.concatenate(columns)
    weights = np.maximum(flat[rows], flat[columns])
    tree = minimum_spanning_tree(csr_matrix((weights, (rows, columns)), shape=(n, n)))
    tree = (tree + tree.T).toarray()
    waiting, seen = [(start, 0.0)], set()
    while waiting:
        point, highest = waiting.pop()
        if point == end:
            return highest - 1.0 + energies.min()
        seen.add(point)
        for other in np.flatnonzero(tree[point]):
            if other not in seen:
                waiting.append((int(other), max(highest, tree[point, other])))
    raise AssertionError


def test_the_lowest_pass_is_that_of_a_spanning_tree() -> None:
    random = np.random.default_rng(6)
    for _ in range(20):
        energies = random.normal(size=(5, 6))
        start, end = (int(k) for k in random.choice(30, 2, replace=False))
        top = torsions.lowest_pass(energies, start, end)
        assert energies.flat[top] == pytest.approx(bottleneck(energies, start, end))


def test_a_map_has_its_closed_form_barrier() -> None:
    # Two valleys in the first torsion, a ripple in the second that a path need not climb.
    angle = np.radians(np.arange(24) * 15.0 - 180.0)
    x, y = np.meshgrid(angle, angle, indexing="ij")
    energies = 100.0 * np.cos(x) ** 2 + 5.0 * np.sin(x) + 20.0 * (1.0 - np.cos(y))
    ends = torsions.deepest_basins(energies)
    assert [np.degrees(x.flat[k]) for k in ends] == pytest.approx([-90.0, 90.0])
    height, top = torsions.barrier(energies, energies)
    assert height == pytest.approx(100.0 + 5.0)  # over x = 0 or 180 at y = 0, from x = -90
    assert y.flat[top] == pytest.approx(0.0)


def test_a_map_of_one_basin_has_its_whole_height() -> None:
    angle = np.radians(np.arange(12) * 30.0)
    energies = 50.0 * (2.0 - np.cos(angle)[:, None] - np.cos(angle)[None, :])
    assert torsions.barrier(energies, energies)[0] == pytest.approx(200.0)


def test_bounds_are_of_accuracy_and_say_so() -> None:
    for criterion in torsions.CHECK.criteria:
        assert criterion.source.endswith("A bound of accuracy")
