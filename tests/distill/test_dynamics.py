"""Dynamics against closed forms: a harmonic oscillator's energy and temperature."""

from __future__ import annotations

import numpy as np

from omm_mlff.distill.dynamics import (
    ACCELERATION,
    BOLTZMANN_EV,
    langevin,
    minimise,
    thermal_velocities,
    verlet,
)

STIFFNESS = 30.0  # eV/angstrom^2, about a C-H bond
MASSES = np.array([12.0, 1.0])
LENGTH = 1.1


def spring(positions):
    offset = positions[:, 1] - positions[:, 0]
    distance = np.linalg.norm(offset, axis=1)
    stretch = distance - LENGTH
    pull = (STIFFNESS * stretch / distance)[:, None] * offset
    return 0.5 * STIFFNESS * stretch**2, np.stack([pull, -pull], axis=1)


def wells(positions):
    return 0.5 * STIFFNESS * (positions**2).sum((1, 2)), -STIFFNESS * positions


def start(n_replicas):
    return np.repeat(np.array([[[0.0, 0.0, 0.0], [LENGTH + 0.05, 0.0, 0.0]]]), n_replicas, 0)


def test_verlet_fluctuation_scales_with_timestep_squared():
    spread = []
    for timestep in (0.25, 0.5):
        run = verlet(
            spring,
            start(1),
            MASSES,
            np.zeros((1, 2, 3)),
            timestep_fs=timestep,
            n_steps=round(400 / timestep),
            stride=1,
        )
        spread.append(np.ptp(run.energies + run.kinetic))
    assert 3.7 < spread[1] / spread[0] < 4.3


def test_verlet_period_is_that_of_the_reduced_mass():
    run = verlet(
        spring, start(1), MASSES, np.zeros((1, 2, 3)), timestep_fs=0.05, n_steps=4000, stride=1
    )
    stretch = np.linalg.norm(run.positions[:, 0, 1] - run.positions[:, 0, 0], axis=1) - LENGTH
    falling = np.flatnonzero((stretch[:-1] > 0) & (stretch[1:] <= 0))
    reduced = MASSES.prod() / MASSES.sum()
    expected = 2 * np.pi * np.sqrt(reduced / (STIFFNESS * ACCELERATION))
    assert np.isclose(np.diff(falling).mean() * 0.05, expected, rtol=5e-3)


def test_langevin_reaches_the_temperature_of_each_replica():
    rng = np.random.default_rng(11)
    temperature = np.repeat([200.0, 800.0], 200)
    run = langevin(
        wells,
        np.zeros((400, 2, 3)),
        MASSES,
        temperature,
        timestep_fs=0.5,
        n_steps=600,
        stride=200,
        rng=rng,
        friction_per_ps=50.0,
    )
    # BAOAB's configurations are exact for a harmonic well; 1,200 values a group: 4.1% is one sigma.
    for kelvin in (200.0, 800.0):
        rows = temperature == kelvin
        energy = run.energies[-1, rows].mean() / (0.5 * 6 * BOLTZMANN_EV)
        assert abs(energy / kelvin - 1.0) < 4 * 0.041


def test_same_generator_gives_the_same_trajectory():
    runs = [
        langevin(
            spring,
            start(3),
            MASSES,
            np.full(3, 300.0),
            timestep_fs=0.5,
            n_steps=50,
            stride=10,
            rng=np.random.default_rng(5),
        )
        for _ in range(2)
    ]
    assert np.array_equal(runs[0].positions, runs[1].positions)


def test_a_stopped_replica_leaves_the_others_alone():
    def stop(positions):
        return np.linalg.norm(positions[:, 1] - positions[:, 0], axis=1) > 1.5

    velocities = np.zeros((2, 2, 3))
    together = np.concatenate([start(1), start(1)])
    together[0, 1, 0] = 1.9
    run = verlet(
        spring, together, MASSES, velocities, timestep_fs=0.5, n_steps=20, stride=1, stop=stop
    )
    alone = verlet(spring, start(1), MASSES, velocities[:1], timestep_fs=0.5, n_steps=20, stride=1)
    assert run.length.tolist() == [0, 20]
    assert np.array_equal(run.positions[:, 1], alone.positions[:, 0])


def test_thermal_velocities_carry_no_momentum():
    v = thermal_velocities(MASSES, 300.0, 5, np.random.default_rng(0))
    assert np.abs((MASSES[None, :, None] * v).sum(1)).max() < 1e-15


def test_minimise_finds_the_springs_length():
    rest = minimise(spring, np.array([[0.0, 0.0, 0.0], [0.7, 0.6, 0.2]]), tolerance=1e-6)
    assert abs(np.linalg.norm(rest[1] - rest[0]) - LENGTH) < 1e-6
