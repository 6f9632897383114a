"""Replicas start at rest, without motion of the whole, with the energy that they are due."""

from __future__ import annotations

import dataclasses

import numpy as np
import openmm
import pytest
from springs import SpringPotential, diatomic, molecule, triatomic

from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.dynamics.initial_state import (
    degrees_of_freedom,
    draw_velocities,
    inertia_tensor,
    minimized,
    thermal_velocities,
)
from omm_mlff.schema import MolecularSystem
from omm_mlff.systems import load_system
from omm_mlff.units import BOLTZMANN

LINEAR = molecule([8, 6, 8], [[-0.12, 0, 0], [0, 0, 0], [0.12, 0, 0]], [[0, 1], [1, 2]])
ATOM = molecule([8], [[0, 0, 0]], [])
BOX = molecule([8, 8], [[0, 0, 0], [0.3, 0, 0]], [], box_vectors=np.eye(3))


def drawn(system: MolecularSystem, temperature_K: float = 300.0, replica: int = 0) -> np.ndarray:
    return draw_velocities(
        system.positions,
        system.masses,
        n_dof=degrees_of_freedom(system),
        temperature_K=temperature_K,
        periodic=system.periodic,
        seed=1,
        replica=replica,
    )


def kinetic_energy(system: MolecularSystem, velocities: np.ndarray) -> float:
    return float(0.5 * (system.masses[:, None] * velocities**2).sum())


def test_velocities_are_maxwell_boltzmann_before_rescaling():
    """Equipartition over many draws: each atom's share of the kinetic energy is its due."""
    system = triatomic()
    n_dof = degrees_of_freedom(system)
    draws = np.stack(
        [
            draw_velocities(
                system.positions,
                system.masses,
                n_dof=n_dof,
                temperature_K=300.0,
                periodic=False,
                seed=1,
                replica=i,
            )
            for i in range(400)
        ]
    )
    kinetic = 0.5 * (system.masses[None, :, None] * draws**2).sum((1, 2))
    np.testing.assert_allclose(kinetic, n_dof * BOLTZMANN * 300.0, rtol=1e-12)
    share = 0.5 * system.masses * (draws**2).sum(2).mean(0) / kinetic[0]
    # Two equal hydrogens, within four standard errors of one another.
    assert share[1] == pytest.approx(share[2], abs=0.05)
    assert share[0] < 0.2


@pytest.mark.parametrize(
    ("system", "n_dof"),
    [
        (diatomic(), 1),
        (triatomic(), 3),
        (LINEAR, 4),
        (BOX, 3),
    ],
)
def test_degrees_of_freedom(system, n_dof):
    assert degrees_of_freedom(system) == n_dof


@pytest.mark.parametrize("system", [triatomic(), LINEAR, BOX, ATOM])
def test_a_thermostat_moves_all_of_it(system: MolecularSystem) -> None:
    assert degrees_of_freedom(system, "nvt") == 3 * system.n_atoms


def test_inertia_of_two_atoms_is_the_reduced_mass_times_the_square_of_their_distance() -> None:
    masses = np.array([16.0, 1.0])
    positions = np.array([[0.3, -0.2, 0.7], [0.3, -0.1, 0.7]])  # along y, away from the origin
    inertia = 16.0 * 1.0 / 17.0 * 0.1**2
    np.testing.assert_allclose(
        inertia_tensor(positions, masses), np.diag([inertia, 0.0, inertia]), atol=1e-15
    )


def test_inertia_turns_with_the_molecule() -> None:
    system = load_system("ethanol")
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    tensor = inertia_tensor(system.positions, system.masses)
    turned = inertia_tensor(system.positions @ rotation.T + 5.0, system.masses)
    np.testing.assert_allclose(turned, rotation @ tensor @ rotation.T, atol=1e-12)


@pytest.mark.parametrize("system", [triatomic(), LINEAR, load_system("ethanol")])
def test_a_molecule_in_vacuum_neither_flies_off_nor_turns(system: MolecularSystem) -> None:
    velocities = drawn(system)
    momentum = system.masses[:, None] * velocities
    assert np.abs(momentum.sum(0)).max() < 1e-12
    assert np.abs(np.cross(system.positions, momentum).sum(0)).max() < 1e-12
    assert kinetic_energy(system, velocities) == pytest.approx(
        degrees_of_freedom(system) * BOLTZMANN * 300.0, rel=1e-12
    )


def test_in_a_box_the_whole_may_turn_and_may_not_fly_off() -> None:
    momentum = BOX.masses[:, None] * drawn(BOX)
    assert np.abs(momentum.sum(0)).max() < 1e-12
    assert np.abs(np.cross(BOX.positions, momentum).sum(0)).max() > 0.1
    assert kinetic_energy(BOX, drawn(BOX)) == pytest.approx(3 * BOLTZMANN * 300.0, rel=1e-12)


def test_what_has_nothing_left_to_move_stands_still() -> None:
    np.testing.assert_array_equal(drawn(ATOM), np.zeros((1, 3)))
    np.testing.assert_array_equal(drawn(triatomic(), temperature_K=0.0), np.zeros((3, 3)))


def test_velocities_are_of_the_seed_and_the_replica_and_scale_with_the_root_of_temperature() -> (
    None
):
    system = triatomic()
    np.testing.assert_array_equal(drawn(system), drawn(system))
    assert np.abs(drawn(system) - drawn(system, replica=1)).min() > 0.0
    np.testing.assert_allclose(drawn(system, 1200.0), 2.0 * drawn(system, 300.0), rtol=1e-12)


def test_thermal_velocities_have_the_variance_of_each_mass() -> None:
    """k T / m in every direction; 6,000 draws an atom, within four standard errors (7%)."""
    masses = np.array([1.008, 15.999])
    draws = np.stack(
        [thermal_velocities(masses, temperature_K=300.0, seed=2, replica=i) for i in range(2000)]
    )
    variance = (draws**2).mean((0, 2))
    np.testing.assert_allclose(variance, BOLTZMANN * 300.0 / masses, rtol=0.073)


def test_the_minimum_is_the_one_that_the_closed_form_has() -> None:
    system = dataclasses.replace(diatomic(), positions=np.array([[0.0, 0, 0], [0.104, 0, 0]]))
    with Evaluator(SpringPotential(rest_scale=0.1 / 0.104), system, "Reference") as evaluator:
        rest = minimized(evaluator)
    assert rest.kind == "minimum"
    assert np.linalg.norm(rest.positions[1] - rest.positions[0]) == pytest.approx(0.1, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"breaks_at": 0.01}, "its energy or forces are not finite"),
        ({"raises_at": 0.5}, "the potential raised"),
        ({"rest_scale": 1.7}, "the minimiser broke a bond"),
        ({"rest_scale": 1.2, "breaks_at": 0.11}, "the minimiser met a NaN"),
    ],
)
def test_a_start_that_cannot_be_minimised_is_the_structure_as_given_and_says_why(
    options: dict[str, float], reason: str
) -> None:
    system = diatomic()
    with Evaluator(SpringPotential(**options), system, "Reference") as evaluator:
        rest = minimized(evaluator)
    assert rest.kind.startswith("structure as given: ")
    assert reason in rest.kind
    np.testing.assert_array_equal(rest.positions, system.positions)


def test_ctrl_c_while_it_minimises_is_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    def pressed(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(openmm.LocalEnergyMinimizer, "minimize", pressed)
    with (
        Evaluator(SpringPotential(), diatomic(), "Reference") as evaluator,
        pytest.raises(KeyboardInterrupt),
    ):
        minimized(evaluator)
