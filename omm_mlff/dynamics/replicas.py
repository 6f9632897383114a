"""Replicas that share one System and one evaluation a step: where they are, and how they move.

VerletIntegrator is a leapfrog: its velocities are half a step behind its positions. A frame at t
holds x(t), F(t), E(t) from the tap, and the velocity on the step v(t) = v(t - dt/2) + F(t) dt / 2m,
whose kinetic energy equals OpenMM's own. One step, one evaluation of the model.

LangevinMiddleIntegrator (ensemble "nvt") is a leapfrog too, with the thermostat in the middle of
the move: v += F dt/m, x += v dt/2, v = c v + noise, x += v dt/2. Its velocities are recorded as
they are, and so is their kinetic energy, which again is OpenMM's own. They need no correction: for
a harmonic potential it is the half-step velocities that are distributed after Maxwell and
Boltzmann, whatever the timestep, while those on the step are too cold by a fraction of
(omega dt)^2 / 4 (Zhang, Liu, Yan, Tuckerman & Liu, J. Phys. Chem. A 123, 6056 (2019)).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import openmm
import torch
from numpy.typing import NDArray

from omm_mlff.dynamics.evaluator import DISCARDED_CALLS
from omm_mlff.forces.potential_errors import is_not_a_number, own_error
from omm_mlff.forces.tap import Tap
from omm_mlff.schema import MolecularSystem, PotentialCard


class Replicas:
    """Copies of a molecular system in one Context.

    Parameters
    ----------
    context : of all of them
    tap : in its Force; None where the potential has none
    system : one copy
    n_replicas : how many copies
    timestep_ps : of the integrator
    card : of the potential, for what it raises

    Attributes
    ----------
    positions, velocities : shape (n_replicas, n_atoms, 3), nm and nm/ps, after the last step that
        was recorded, as the integrator has them; in the Context they may have moved on
    alive : shape (n_replicas,), those that were not stopped
    inverse_mass : shape (1, n_atoms, 1), 1/dalton
    """

    def __init__(
        self,
        context: openmm.Context,
        tap: Tap | None,
        system: MolecularSystem,
        n_replicas: int,
        timestep_ps: float,
        card: PotentialCard,
    ) -> None:
        self.context = context
        self.tap = tap
        self.n_replicas = n_replicas
        self.timestep_ps = timestep_ps
        self.card = card
        self.shape = (n_replicas, system.n_atoms, 3)
        self.positions = np.zeros(self.shape)
        self.velocities = np.zeros(self.shape)
        self.alive = np.ones(n_replicas, dtype=bool)
        self.inverse_mass = 1.0 / system.masses[None, :, None]
        self._half_mass = 0.5 * system.masses[None, :, None]

    def begin(
        self,
        positions: NDArray[np.float64],
        velocities: NDArray[np.float64],
        alive: NDArray[np.bool_],
    ) -> None:
        """Stand where a run starts, or where it was left."""
        self.positions, self.velocities, self.alive = positions, velocities, alive
        if self.tap is not None:
            self.tap.alive.copy_(torch.from_numpy(alive))
        self.put_back()

    def put(self, positions: NDArray[np.float64], velocities: NDArray[np.float64]) -> None:
        """Move the Context, and nothing else."""
        self.context.setPositions(positions.reshape(-1, 3))
        self.context.setVelocities(velocities.reshape(-1, 3))

    def put_back(self) -> None:
        """Move the Context to where the last recorded step ended."""
        self.put(self.positions, self.velocities)

    def in_context(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Positions and velocities as the Context has them now; nothing is evaluated."""
        state = self.context.getState(positions=True, velocities=True)
        return (
            state.getPositions(asNumpy=True)._value.reshape(self.shape),
            state.getVelocities(asNumpy=True)._value.reshape(self.shape),
        )

    def ask(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Energy and forces the ordinary way, for a potential without a tap: evaluated again."""
        state = self.context.getState(energy=True, forces=True)
        energy = np.array([state.getPotentialEnergy()._value])
        return energy, state.getForces(asNumpy=True)._value.reshape(self.shape)

    def warm_up(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Evaluate until the numbers no longer change.

        Returns
        -------
        the forces at `positions`, kJ/mol/nm; zero where the potential raises and there is no tap
        """
        self.context.setPositions(positions.reshape(-1, 3))
        for _ in range(DISCARDED_CALLS):
            with self._tolerated():
                self.context.getState(energy=True, forces=True)
        forces = np.zeros(self.shape)
        if self.tap is not None:
            return self.tap.read()[1]
        with self._tolerated():
            _, forces = self.ask()
        return forces

    def times(self, first: int, n: int) -> NDArray[np.float64]:
        """Of `n` steps from step `first` on, ps."""
        return self.timestep_ps * np.arange(first, first + n).astype(np.float64)

    def kinetic(self, velocities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Kinetic energy of every replica, velocities of shape (..., n_replicas, n_atoms, 3)."""
        each = self._half_mass * velocities * velocities
        summed: NDArray[np.float64] = each.reshape(*each.shape[:-2], -1).sum(-1)
        return summed

    def half_kick(self, forces: NDArray[np.float64]) -> NDArray[np.float64]:
        """What Verlet's velocities gain in the half step that they are behind."""
        gained: NDArray[np.float64] = (0.5 * self.timestep_ps) * forces * self.inverse_mass
        return gained

    @contextlib.contextmanager
    def _tolerated(self) -> Iterator[None]:
        """What a potential raises before the first step, it raises again in it."""
        try:
            yield
        except openmm.OpenMMException as error:
            if not is_not_a_number(error):
                own_error(error, self.card)
