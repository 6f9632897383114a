"""Molecular dynamics of many copies of one molecule at once, with any energy function.

Angstrom, eV, dalton, fs. For sampling only: what is validated runs in OpenMM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omm_mlff.units import (
    ANGSTROM_PER_NM,
    BOLTZMANN,
    EV_PER_KJMOL,
    KJMOL_PER_EV,
    PS_PER_FS,
)

Float = NDArray[np.float64]
EnergyFunction = Callable[[Float], tuple[Float, Float]]
StopFunction = Callable[[Float], NDArray[np.bool_]]

ACCELERATION = KJMOL_PER_EV * ANGSTROM_PER_NM**2 * PS_PER_FS**2
"""angstrom/fs^2 in one eV/angstrom/dalton."""

BOLTZMANN_EV = BOLTZMANN * EV_PER_KJMOL
"""Boltzmann's constant in eV/K."""


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Frames of independent replicas, each `stride` steps after the one before.

    Attributes
    ----------
    positions : shape (n_frames, n_replicas, n_atoms, 3), angstrom
    velocities : the same, angstrom/fs
    energies : shape (n_frames, n_replicas), potential, eV
    kinetic : shape (n_frames, n_replicas), eV
    length : shape (n_replicas,), frames before the replica was stopped (n_frames if never)
    """

    positions: Float
    velocities: Float
    energies: Float
    kinetic: Float
    length: NDArray[np.int64]


def langevin(
    function: EnergyFunction,
    positions: Float,
    masses: Float,
    temperature_K: Float,
    *,
    timestep_fs: float,
    n_steps: int,
    stride: int,
    rng: np.random.Generator,
    friction_per_ps: float = 2.0,
    velocities: Float | None = None,
    container_angstrom: float | None = None,
    stop: StopFunction | None = None,
) -> Trajectories:
    """Langevin dynamics by the BAOAB splitting; with no friction, velocity Verlet.

    Parameters
    ----------
    function : positions (n_replicas, n_atoms, 3) -> energies eV, forces eV/angstrom
    positions : shape (n_replicas, n_atoms, 3), angstrom
    masses : shape (n_atoms,), or (n_replicas, n_atoms) of different molecules, dalton
    temperature_K : shape (n_replicas,)
    n_steps, stride : a frame is recorded after every `stride` steps
    velocities : shape of `positions`, angstrom/fs; drawn at `temperature_K` where None
    container_angstrom : atoms farther than this from their centroid are pulled back gently
    stop : positions -> mask of replicas that end here, before the frame is recorded; a replica
        that is no longer finite always ends

    References
    ----------
    Leimkuhler & Matthews, Appl. Math. Res. Express 2013, 34.
    """
    x = np.array(positions, dtype=np.float64)
    n_replicas, _, _ = x.shape
    m = np.atleast_2d(np.asarray(masses, dtype=np.float64))[..., None]
    thermal = np.sqrt(
        BOLTZMANN_EV * np.asarray(temperature_K)[:, None, None] * ACCELERATION / m
    )  # (n_replicas, n_atoms, 1), angstrom/fs
    v = thermal * rng.standard_normal(x.shape) if velocities is None else np.array(velocities)
    decay = float(np.exp(-friction_per_ps * PS_PER_FS * timestep_fs))
    kick = np.sqrt(1.0 - decay**2) * thermal
    half = 0.5 * timestep_fs

    def evaluate(where: Float) -> tuple[Float, Float]:
        energies, forces = function(where)
        if container_angstrom is None:
            return energies, forces
        return energies, forces + _container(where, container_angstrom)

    n_frames = n_steps // stride
    recorded = np.empty((n_frames, *x.shape))
    recorded_v = np.empty((n_frames, *x.shape))
    energies_out = np.empty((n_frames, n_replicas))
    kinetic_out = np.empty((n_frames, n_replicas))
    length = np.full(n_replicas, n_frames, dtype=np.int64)
    alive = np.ones(n_replicas, dtype=bool)
    energy, force = evaluate(x)
    for step in range(1, n_frames * stride + 1):
        v += half * ACCELERATION * force / m
        x += half * v
        if friction_per_ps > 0.0:
            v = decay * v + kick * rng.standard_normal(x.shape)
        x += half * v
        # A stopped replica rests at its start: it costs little and can spoil nothing.
        x[~alive] = positions[~alive]
        v[~alive] = 0.0
        energy, force = evaluate(x)
        v += half * ACCELERATION * force / m
        if step % stride == 0:
            frame = step // stride - 1
            bad = ~(np.isfinite(x).all((1, 2)) & np.isfinite(energy) & np.isfinite(v).all((1, 2)))
            if stop is not None:
                bad |= stop(np.where(np.isfinite(x), x, 0.0))
            length[alive & bad] = frame
            alive &= ~bad
            x[~alive] = positions[~alive]
            v[~alive] = 0.0
            recorded[frame], recorded_v[frame], energies_out[frame] = x, v, energy
            kinetic_out[frame] = (0.5 * m * v**2).sum((1, 2)) / ACCELERATION
            if not alive.any():
                break
    return Trajectories(recorded, recorded_v, energies_out, kinetic_out, length)


def verlet(
    function: EnergyFunction,
    positions: Float,
    masses: Float,
    velocities: Float,
    *,
    timestep_fs: float,
    n_steps: int,
    stride: int,
    stop: StopFunction | None = None,
) -> Trajectories:
    """Velocity Verlet at constant energy; parameters as of `langevin`."""
    return langevin(
        function,
        positions,
        masses,
        np.zeros(len(positions)),
        timestep_fs=timestep_fs,
        n_steps=n_steps,
        stride=stride,
        rng=np.random.default_rng(0),
        friction_per_ps=0.0,
        velocities=velocities,
        stop=stop,
    )


def thermal_velocities(
    masses: Float, temperature_K: float, n_replicas: int, rng: np.random.Generator
) -> Float:
    """Velocities of (n_replicas, n_atoms, 3), angstrom/fs, with no net momentum."""
    m = np.asarray(masses, dtype=np.float64)[None, :, None]
    v = rng.standard_normal((n_replicas, m.shape[1], 3))
    v *= np.sqrt(BOLTZMANN_EV * temperature_K * ACCELERATION / m)
    v -= (m * v).sum(1, keepdims=True) / m.sum()
    return v


def minimise(function: EnergyFunction, positions: Float, *, tolerance: float = 1e-3) -> Float:
    """The local minimum below one structure of (n_atoms, 3), by L-BFGS.

    Parameters
    ----------
    tolerance : largest force component at which it ends, eV/angstrom
    """
    from scipy.optimize import minimize

    shape = np.shape(positions)

    def evaluate(flat: Float) -> tuple[float, Float]:
        energies, forces = function(flat.reshape(1, *shape))
        return float(energies[0]), -forces[0].ravel()

    result = minimize(
        evaluate,
        np.ravel(positions),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 500, "gtol": tolerance, "ftol": 1e-12},
    )
    return np.asarray(result.x, dtype=np.float64).reshape(shape)


def _container(positions: Float, radius: float, stiffness: float = 0.05) -> Float:
    offset = positions - positions.mean(1, keepdims=True)
    distance = np.linalg.norm(offset, axis=-1, keepdims=True)
    excess = np.maximum(distance - radius, 0.0)
    return np.asarray(-stiffness * excess * offset / np.maximum(distance, 1e-9))
