"""Prepares replicas: each at the structure at rest, with velocities of its own.

OpenMM acts on a whole System; what belongs to one copy is done here, per copy. A replica starts at
the minimum of its potential. At constant energy it gets twice the kinetic energy of its target
temperature, since half of it flows into the vibrations' potential energy; a thermostat needs no
such help, and moves the whole molecule as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import openmm
from numpy.typing import NDArray

from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.forces.interrupt import deferred_interrupt
from omm_mlff.forces.potential_errors import RAISED, is_not_a_number, own_error
from omm_mlff.geometry.distances import BOND_LIMIT_NM, bond_lengths
from omm_mlff.schema import MolecularSystem
from omm_mlff.units import BOLTZMANN

_MINIMIZER_TOLERANCE = 1.0  # kJ/mol/nm, root mean square
_MINIMIZER_ITERATIONS = 500
_LINEAR = 1.0e-6


def degrees_of_freedom(system: MolecularSystem, ensemble: str = "nve") -> int:
    """Kinetic degrees of freedom left when the conserved momenta are taken out.

    3N - 6 for a molecule, 3N - 5 for a linear one, 3N - 3 in a box. A Langevin thermostat ("nvt")
    conserves no momentum: all 3N.
    """
    if ensemble == "nvt":
        return 3 * system.n_atoms
    if system.periodic:
        return 3 * system.n_atoms - 3
    moments = np.linalg.eigvalsh(inertia_tensor(system.positions, system.masses))
    return 3 * system.n_atoms - (5 if moments[0] < _LINEAR * moments[-1] else 6)


def inertia_tensor(
    positions: NDArray[np.float64], masses: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Tensor of inertia about the centre of mass, shape (3, 3), dalton nm^2."""
    r = positions - np.average(positions, axis=0, weights=masses)
    second: NDArray[np.float64] = np.einsum("i,ij,ik->jk", masses, r, r)
    tensor: NDArray[np.float64] = np.eye(3) * np.trace(second) - second
    return tensor


@dataclass(frozen=True, eq=False)
class Rest:
    """Where replicas start.

    Attributes
    ----------
    positions : shape (n_atoms, 3), nm
    kind : "minimum", or why it is the structure as given
    """

    positions: NDArray[np.float64]
    kind: str


def minimized(evaluator: Evaluator) -> Rest:
    """The local minimum nearest to the system's structure, or that structure where there is none.

    A potential that is not finite at the structure is not minimised: OpenMM's minimiser does not
    return from a NaN. Its line search can also step over a barrier and leave the molecule in
    pieces, or come to where the potential raises; such a minimum is not the nearest one, and is not
    used.
    """
    system = evaluator.system
    start = system.positions
    energies, forces = evaluator.evaluate(start[None])
    if evaluator.raised:
        return Rest(start, f"structure as given: {RAISED} {evaluator.raised[0]}")
    if not (np.isfinite(energies).all() and np.isfinite(forces).all()):
        return Rest(start, "structure as given: its energy or forces are not finite")
    try:
        # Ctrl-C inside a callback would reach OpenMM as an error without a message.
        with deferred_interrupt() as interrupted:
            openmm.LocalEnergyMinimizer.minimize(
                evaluator.context, _MINIMIZER_TOLERANCE, _MINIMIZER_ITERATIONS
            )
            if interrupted():
                raise KeyboardInterrupt
    except openmm.OpenMMException as error:
        if is_not_a_number(error):
            return Rest(start, "structure as given: the minimiser met a NaN")
        message = own_error(error, evaluator.potential.card)
        return Rest(start, f"structure as given: in the minimiser {RAISED} {message}")
    positions = evaluator.context.getState(positions=True).getPositions(asNumpy=True)._value
    positions = np.array(positions)
    masked = evaluator.tap is not None and not bool(evaluator.tap.alive.all())
    if masked or not np.isfinite(positions).all():
        return Rest(start, "structure as given: the minimiser met a NaN or an error")
    moved = bond_lengths(system, positions) - bond_lengths(system, start)
    if np.abs(moved).max(initial=0.0) > BOND_LIMIT_NM:
        return Rest(start, "structure as given: the minimiser broke a bond")
    return Rest(positions, "minimum")


def thermal_velocities(
    masses: NDArray[np.float64], *, temperature_K: float, seed: int, replica: int
) -> NDArray[np.float64]:
    """Maxwell-Boltzmann velocities, shape (n_atoms, 3), nm/ps, from (seed, replica) alone.

    As they are drawn: the whole molecule moves and turns.
    """
    rng = np.random.default_rng([seed, replica])
    velocities: NDArray[np.float64] = rng.normal(size=(len(masses), 3)) * np.sqrt(
        BOLTZMANN * temperature_K / masses[:, None]
    )
    return velocities


def draw_velocities(
    positions: NDArray[np.float64],
    masses: NDArray[np.float64],
    *,
    n_dof: int,
    temperature_K: float,
    periodic: bool,
    seed: int,
    replica: int,
) -> NDArray[np.float64]:
    """Velocities of one replica, shape (n_atoms, 3), nm/ps, from (seed, replica) alone.

    Maxwell-Boltzmann, then without motion of the centre of mass and (outside a box) without angular
    momentum, then rescaled to a kinetic energy of n_dof k T: twice the mean at the target
    temperature, for a start at the potential's minimum.
    """
    velocities = thermal_velocities(
        masses, temperature_K=max(temperature_K, 1e-12), seed=seed, replica=replica
    )
    velocities -= np.average(velocities, axis=0, weights=masses)
    if not periodic:
        r = positions - np.average(positions, axis=0, weights=masses)
        angular = (masses[:, None] * np.cross(r, velocities)).sum(0)
        # The pseudo-inverse: a linear molecule has one axis about which nothing turns.
        omega = np.linalg.pinv(inertia_tensor(positions, masses), rcond=_LINEAR) @ angular
        velocities -= np.cross(omega, r)
    kinetic = 0.5 * (masses[:, None] * velocities**2).sum()
    if n_dof <= 0 or kinetic == 0.0:  # one atom in vacuum has nothing left to move
        return np.zeros_like(velocities)
    rescaled: NDArray[np.float64] = velocities * np.sqrt(
        n_dof * BOLTZMANN * temperature_K / kinetic
    )
    return rescaled
