"""The sound field: closed forms, finite differences and symmetries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from springs import molecule

from omm_mlff.geometry.pulled_apart import two_copies
from omm_mlff.proving.field import PairEngine, angles_of, pairs_of, sound_terms, unknown_elements
from omm_mlff.proving.grounds import BOX, CHAIN, CLUSTER, METHANOL
from omm_mlff.units import KJMOL_PER_EV

GROUNDS = {ground.name: ground for ground in (METHANOL, CHAIN, CLUSTER, BOX)}


def evaluated(engine, positions, box=None):
    boxed = None if box is None else torch.from_numpy(box)
    energies, forces = engine(torch.from_numpy(np.array(positions)).reshape(-1, 3), boxed)
    return energies.numpy(), forces.numpy().reshape(np.shape(positions))


@pytest.mark.parametrize("name", GROUNDS)
def test_forces_are_minus_the_gradient(name: str) -> None:
    ground = GROUNDS[name]
    system = ground.system()
    rng = np.random.default_rng(1)
    x = system.positions + rng.normal(scale=0.004, size=system.positions.shape)
    u = rng.normal(size=x.shape)
    step = 1.0e-5
    moved = x + step * np.array([-2.0, -1.0, 1.0, 2.0])[:, None, None] * u
    energies, _ = evaluated(ground.engine(system, 4), moved, system.box_vectors)
    slope = energies @ np.array([1.0, -8.0, 8.0, -1.0]) / (12.0 * step)
    _, forces = evaluated(ground.engine(system, 1), x, system.box_vectors)
    assert slope == pytest.approx(-(forces * u).sum(), rel=1e-7)


@pytest.mark.parametrize("name", GROUNDS)
def test_the_structure_is_at_rest(name: str) -> None:
    ground = GROUNDS[name]
    system = ground.system()
    _, forces = evaluated(ground.engine(system, 1), system.positions, system.box_vectors)
    assert np.abs(forces).max() < 0.1


def test_two_argon_atoms_are_lennard_jones() -> None:
    d = 2.0 ** (1.0 / 6.0) * 0.34
    pair = molecule([18, 18], [[0, 0, 0], [d, 0, 0]], [])
    energy, forces = evaluated(CLUSTER.engine(pair, 1), pair.positions)
    assert energy[0] == pytest.approx(-0.996, rel=1e-12)
    assert np.abs(forces).max() < 1e-9
    far = CLUSTER.cutoff_nm * np.array([[0, 0, 0], [1.001, 0, 0]])
    assert evaluated(CLUSTER.engine(pair, 1), far)[0][0] == 0.0


def test_a_bond_has_its_stiffness_and_its_depth() -> None:
    bond = molecule([8, 1], [[0, 0, 0], [0.096, 0, 0]], [[0, 1]])
    lengths = np.array([0.0955, 0.096, 0.0965, 2.0])
    frames = np.zeros((4, 2, 3))
    frames[:, 1, 0] = lengths
    energies, _ = evaluated(METHANOL.engine(bond, 4), frames)
    stiffness = (energies[0] - 2.0 * energies[1] + energies[2]) / 0.0005**2
    assert stiffness == pytest.approx(3.9e5, rel=2e-3)
    assert energies[3] - energies[1] == pytest.approx(460.0, rel=1e-3)


def test_methanol_vibrates_like_methanol() -> None:
    system = METHANOL.system()
    n = 3 * system.n_atoms
    step = 1.0e-5
    hessian = np.empty((n, n))
    moved = system.positions.ravel() + step * np.concatenate((np.eye(n), -np.eye(n)))
    _, forces = evaluated(METHANOL.engine(system, 2 * n), moved.reshape(2 * n, -1, 3))
    hessian = (forces[n:] - forces[:n]).reshape(n, n) / (2.0 * step)
    root_mass = np.sqrt(np.repeat(system.masses, 3))
    squares = np.linalg.eigvalsh(0.5 * (hessian + hessian.T) / np.outer(root_mass, root_mass))
    wave_numbers = np.sqrt(np.maximum(squares, 0.0)) / (2.0 * np.pi * 0.0299792458)  # cm^-1
    vibrations = wave_numbers[6:]
    assert wave_numbers[5] < 5.0
    assert 150.0 < vibrations[0] < 450.0  # the torsion
    assert 3500.0 < vibrations[-1] < 3800.0  # O-H
    assert np.count_nonzero((vibrations > 2700.0) & (vibrations < 3450.0)) == 3  # C-H


@pytest.mark.parametrize("name", ["methanol", "chain", "argon-cluster"])
def test_turning_moving_and_a_second_copy_far_away_change_nothing(name: str) -> None:
    ground = GROUNDS[name]
    system = ground.system()
    x = system.reference.positions[3]
    (energy,), forces = evaluated(ground.engine(system, 1), x)
    turn = Rotation.random(rng=np.random.default_rng(2))
    (turned,), turned_forces = evaluated(ground.engine(system, 1), turn.apply(x) + 2.0)
    assert turned == pytest.approx(energy, abs=1e-9)
    np.testing.assert_allclose(turned_forces, turn.apply(forces), atol=1e-8)
    line = two_copies(system, np.random.default_rng(3))
    both = np.concatenate((x, turn.apply(x) + 5.0))
    (double,), _ = evaluated(ground.engine(line.system, 1), both)
    assert double == pytest.approx(2.0 * energy, abs=1e-8)


def test_a_box_takes_no_notice_of_where_it_is_cut() -> None:
    system = BOX.system()
    box = system.box_vectors
    assert box is not None
    x = system.reference.positions[5]
    moved = np.mod(x + np.array([0.31, -0.72, 1.9]), np.diag(box))
    (energy,), forces = evaluated(BOX.engine(system, 1), x, box)
    (other,), other_forces = evaluated(BOX.engine(system, 1), moved, box)
    assert other == pytest.approx(energy, abs=1e-9)
    np.testing.assert_allclose(other_forces, forces, atol=1e-8)


@pytest.mark.parametrize("name", ["methanol", "argon-cluster"])
def test_molecules_that_are_pressed_together_repel(name: str) -> None:
    ground = GROUNDS[name]
    line = two_copies(ground.system(), np.random.default_rng(4))
    far, near = (
        evaluated(ground.engine(line.system, 1), line.at(np.array([s]))[0])[0] for s in (3.0, 0.05)
    )
    assert near[0] - far[0] > 2.0 * KJMOL_PER_EV


def test_copies_are_independent() -> None:
    system = METHANOL.system()
    frames = system.reference.positions[:6]
    energies, forces = evaluated(METHANOL.engine(system, 6), frames)
    np.testing.assert_allclose(energies, system.reference.energies[:6], atol=1e-9)
    np.testing.assert_allclose(forces, system.reference.forces[:6], atol=1e-8)


def test_labels_have_the_temperature_that_they_say() -> None:
    reference = CHAIN.system().reference
    rest = evaluated(CHAIN.engine(CHAIN.system(), 1), CHAIN.system().positions)[0][0]
    # Six harmonic vibrations: <E_pot> = 6 kT / 2; 96 frames scatter by 6%, bound at 4 sigma.
    mean = (reference.energies - rest).mean()
    assert mean == pytest.approx(3.0 * 0.00831446 * 300.0, rel=0.25)
    assert len(np.unique(reference.trajectory)) == 8


def test_pairs_know_how_many_bonds_apart_they_are() -> None:
    pairs = pairs_of(METHANOL.system())
    apart = {
        (int(i), int(j)): int(n) for i, j, n in zip(pairs.i, pairs.j, pairs.apart, strict=True)
    }
    assert apart[0, 1] == apart[1, 5] == 1
    assert apart[2, 3] == apart[0, 5] == 2
    assert apart[2, 5] == apart[4, 5] == 3
    assert len(angles_of(METHANOL.system())) == 7


def test_an_element_or_a_bond_without_parameters_is_named() -> None:
    assert unknown_elements(molecule([7, 1], [[0, 0, 0], [0.1, 0, 0]], [[0, 1]])) == [1, 7]
    assert unknown_elements(molecule([18, 1], [[0, 0, 0], [0.1, 0, 0]], [[0, 1]])) == [1, 18]


def test_a_single_atom_has_no_energy() -> None:
    atom = molecule([18], [[0, 0, 0]], [])
    engine = PairEngine(atom, 1, sound_terms(atom, 0.8, False))
    energies, forces = evaluated(engine, atom.positions)
    assert energies[0] == 0.0
    assert not forces.any()
