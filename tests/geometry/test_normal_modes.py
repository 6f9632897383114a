"""Normal modes against closed forms, and what a relaxation does where there is no minimum."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import constants
from springs import STIFFNESS, diatomic, molecule, triatomic

from omm_mlff.geometry.normal_modes import (
    hessian,
    minimum_with_modes,
    normal_modes,
    vibrations_basis,
)
from omm_mlff.geometry.relaxation import guessed_hessian, moved_most, relaxed
from omm_mlff.units import INVERSE_CM_PER_RADIAN_PER_PS, MEV_PER_INVERSE_CM


def springs(rest, stiffness=STIFFNESS, longer=0.0):
    """Every pair on a spring, rest lengths as in `rest` (n_atoms, 3): batched, plain numpy.

    The last pair's spring is longer by `longer`, nm.
    """
    i, j = np.triu_indices(len(rest), k=1)
    lengths = np.linalg.norm(rest[j] - rest[i], axis=1)
    lengths[-1:] += longer

    def surface(positions):
        r = positions[:, j] - positions[:, i]
        d = np.linalg.norm(r, axis=2)
        pull = stiffness * (d - lengths)[..., None] * r / d[..., None]
        forces = np.zeros_like(positions)
        for k in range(len(i)):
            forces[:, i[k]] += pull[:, k]
            forces[:, j[k]] -= pull[:, k]
        return 0.5 * stiffness * ((d - lengths) ** 2).sum(axis=1), forces

    return surface


def exact_hessian(rest, stiffness=STIFFNESS):
    """Of the same springs at rest: sum of k b b^T over pairs."""
    n = len(rest)
    second = np.zeros((n, 3, n, 3))
    for i in range(n):
        for j in range(i + 1, n):
            u = (rest[j] - rest[i]) / np.linalg.norm(rest[j] - rest[i])
            b = np.zeros((n, 3))
            b[i], b[j] = -u, u
            second += stiffness * np.multiply.outer(b, b)
    return second.reshape(3 * n, 3 * n)


def test_factors_are_those_of_codata() -> None:
    assert pytest.approx(constants.h * constants.c * 100 / constants.e * 1000) == MEV_PER_INVERSE_CM
    per_second = 1.0e12 / (2 * np.pi * constants.c * 100)
    assert pytest.approx(per_second) == INVERSE_CM_PER_RADIAN_PER_PS


def test_a_diatomic_vibrates_with_the_root_of_k_over_mu() -> None:
    system = diatomic()
    second = hessian(springs(system.positions), system.positions, 1e-5)
    modes = normal_modes(second, system.positions, system.masses)
    omega = np.sqrt(STIFFNESS / (system.masses[0] / 2.0))  # rad/ps
    wanted = omega * 1e12 / (2 * np.pi * constants.c) / 100
    assert modes.frequencies == pytest.approx([wanted], rel=1e-6)
    assert set(modes.movers(0)) == {0, 1}


def test_a_triatomic_has_the_modes_of_its_exact_second_derivatives() -> None:
    system = triatomic()
    second = hessian(springs(system.positions), system.positions, 1e-5)
    assert np.allclose(second, exact_hessian(system.positions), atol=1e-3 * STIFFNESS)
    root = np.repeat(np.sqrt(system.masses), 3)
    plain = np.linalg.eigvalsh(exact_hessian(system.positions) / np.outer(root, root))
    assert np.abs(plain[:6]).max() < 1e-6 * plain[-1]  # translations and rotations
    modes = normal_modes(second, system.positions, system.masses)
    wanted = np.sqrt(plain[6:]) * INVERSE_CM_PER_RADIAN_PER_PS
    assert modes.frequencies == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("size", [1.0, 0.01, 100.0])
def test_rigid_motions_are_not_vibrations(size) -> None:
    system = triatomic()
    positions = size * system.positions + 5.0
    basis = vibrations_basis(positions, system.masses)
    assert basis.shape == (9, 3)
    assert np.allclose(basis.T @ basis, np.eye(3))
    root = np.sqrt(system.masses)[:, None]
    for axis in np.eye(3):
        for rigid in (root * axis, root * np.cross(axis, positions)):
            assert np.abs(basis.T @ rigid.ravel()).max() < 1e-9 * np.linalg.norm(rigid)


def test_a_linear_molecule_has_one_mode_more() -> None:
    line = molecule([8, 6, 8], [[-0.116, 0, 0], [0, 0, 0], [0.116, 0, 0]], [[0, 1], [1, 2]])
    assert vibrations_basis(line.positions, line.masses).shape == (9, 4)
    turned = line.positions @ np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turned[1] += 2e-4  # a relaxed molecule is straight only nearly
    assert vibrations_basis(turned, line.masses).shape == (9, 4)


def test_a_saddle_has_a_negative_frequency() -> None:
    system = diatomic()
    second = -exact_hessian(system.positions)
    (frequency,) = normal_modes(second, system.positions, system.masses).frequencies
    (real,) = normal_modes(-second, system.positions, system.masses).frequencies
    assert frequency == pytest.approx(-real)


def test_displaced_copies_relax_to_the_springs_rest() -> None:
    system = triatomic()
    noise = np.random.default_rng(3).normal(size=(5, 3, 3)) * 0.01
    rest = relaxed(springs(system.positions), system, system.positions + noise)
    assert not any(rest.obstacles)
    assert rest.n_steps < 40
    assert rest.energies == pytest.approx(np.zeros(5), abs=1e-4)
    distances = np.linalg.norm(rest.positions[:, 1] - rest.positions[:, 2], axis=1)
    wanted = np.linalg.norm(system.positions[1] - system.positions[2])
    assert distances == pytest.approx(np.full(5, wanted), abs=1e-5)


def test_copies_relax_as_they_do_alone() -> None:
    system = triatomic()
    starts = system.positions + np.random.default_rng(4).normal(size=(3, 3, 3)) * 0.01
    surface = springs(system.positions)
    together = relaxed(surface, system, starts)
    for k, start in enumerate(starts):
        alone = relaxed(surface, system, start[None])
        assert np.allclose(alone.positions[0], together.positions[k], atol=1e-12)


def test_a_restraint_is_told_which_copies_still_move() -> None:
    system = diatomic()
    targets = np.array([0.1, 0.102, 0.105])

    def held(positions, copies):
        r = positions[:, 1] - positions[:, 0]
        d = np.linalg.norm(r, axis=1)
        off = d - targets[copies]
        push = -1e8 * off[:, None] * r / d[:, None]
        return 0.5e8 * off**2, np.stack((-push, push), axis=1)

    starts = np.repeat(system.positions[None], 3, axis=0)
    rest = relaxed(springs(system.positions), system, starts, restraint=held)
    lengths = np.linalg.norm(rest.positions[:, 1] - rest.positions[:, 0], axis=1)
    assert lengths == pytest.approx(targets, abs=1e-4)


def test_what_is_not_finite_is_told_and_the_other_copies_go_on() -> None:
    system = triatomic()
    sound = springs(system.positions)

    def broken(positions):
        energies, forces = sound(positions)
        far = np.linalg.norm(positions[:, 1] - positions[:, 0], axis=1) > 0.11
        energies[far], forces[far] = np.nan, np.nan
        return energies, forces

    starts = np.stack([system.positions] * 2)
    starts[:, 2] += 0.005
    starts[1, 1] *= 1.2
    rest = relaxed(broken, system, starts)
    assert rest.obstacles[0] == ""
    assert "not finite" in rest.obstacles[1]


def test_a_molecule_that_flies_apart_names_the_bond() -> None:
    system = triatomic()

    def repulsion(positions):
        energies, forces = springs(system.positions, stiffness=-1e4)(positions)
        return energies, forces

    start = system.positions.copy()
    start[1] *= 1.05
    found = minimum_with_modes(repulsion, system, start)
    assert found.modes is None
    assert found.obstacle.startswith("bond O0-H")


def test_forces_that_never_vanish_are_no_minimum() -> None:
    system = dataclasses.replace(triatomic(), bonds=np.empty((0, 2), dtype=np.int64))

    def slope(positions):
        return -positions[:, 1, 0], np.broadcast_to([[0, 0, 0], [1e4, 0, 0], [0, 0, 0]], (1, 3, 3))

    rest = relaxed(slope, system, system.positions[None])
    assert "is left after" in rest.obstacles[0]


def test_a_symmetric_start_is_pushed_off_its_saddle() -> None:
    # Springs that want a bent molecule, started from the straight one: no force bends it.
    bent = triatomic()
    start = np.array([[0.0, 0, 0], [0.096, 0, 0], [-0.096, 0, 0]])
    surface = springs(bent.positions)
    assert np.abs(relaxed(surface, bent, start[None]).positions[0, :, 1:]).max() < 1e-9
    found = minimum_with_modes(surface, bent, start)
    assert found.modes.n_imaginary == 0
    assert surface(found.positions[None])[0] == pytest.approx([0.0], abs=1e-3)


def test_the_first_guess_is_positive_and_knows_bonds() -> None:
    system = triatomic()
    guess = guessed_hessian(system.positions, system.bonds)
    assert np.linalg.eigvalsh(guess).min() > 0.0
    along = np.zeros((3, 3))
    along[1] = system.positions[1] / np.linalg.norm(system.positions[1])
    across = np.zeros((3, 3))
    across[1, 2] = 1.0
    assert along.ravel() @ guess @ along.ravel() > 10 * across.ravel() @ guess @ across.ravel()


def test_what_moved_is_named() -> None:
    system = triatomic()
    moved = system.positions.copy()
    moved[1] *= 1.2
    assert moved_most(system, system.positions, system.positions) == "it stays where it is"
    assert "O0-H1 changes by +0.19" in moved_most(system, system.positions, moved)
