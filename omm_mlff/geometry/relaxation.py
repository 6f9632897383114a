"""Relaxes many copies of a molecule at once, each to the minimum next to its start.

Quasi-Newton steps (BFGS) in Cartesian coordinates, no atom farther than a trust radius in one: a
line search may step over a barrier and end in another minimum, which is not the one that was
asked for. What breaks on the way is told, never raised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omm_mlff.geometry.distances import BOND_LIMIT_NM
from omm_mlff.schema import MolecularSystem
from omm_mlff.units import ANGSTROM_PER_NM, KJMOL_NM_PER_EV_ANGSTROM, NM_PER_ANGSTROM

Float = NDArray[np.float64]
Surface = Callable[[Float], tuple[Float, Float]]
"""positions (n_frames, n_atoms, 3) nm -> energies (n_frames,) kJ/mol, forces kJ/mol/nm."""

Restraint = Callable[[Float, NDArray[np.int64]], tuple[Float, Float]]
"""Energies and forces of something added to a surface, told which copies the frames belong to."""

TOLERANCE = 1.0e-3 * KJMOL_NM_PER_EV_ANGSTROM
"""Largest force component at a minimum: ten times the rounding of float32 forces."""

NEARLY = 20.0 * TOLERANCE
"""With less than this left when the steps are used up, it is a minimum for what is asked here."""

MAX_STEPS = 250
"""The floppiest shipped molecule needs 60."""

MAX_RADIUS_NM = 0.1 * NM_PER_ANGSTROM
MIN_RADIUS_NM = 0.002 * NM_PER_ANGSTROM

EXPLODED = 1.0e12
"""An energy or force component beyond, kJ/mol and nm, is no number that says anything."""

NOTABLE_NM = 0.05 * NM_PER_ANGSTROM
"""A distance that changes by less is not worth a word."""

# Springs of the first guess at the second derivatives, by bonds between two atoms, then one
# that holds every atom in place: the usual sizes of stretch, bend and torsion.
_STIFFNESS = 35.0, 5.0
_ANCHOR = 1.0
_KJMOL_PER_NM2 = KJMOL_NM_PER_EV_ANGSTROM * ANGSTROM_PER_NM  # of one eV/angstrom^2


@dataclass(frozen=True, eq=False)
class Relaxed:
    """Where copies came to rest.

    Attributes
    ----------
    positions : shape (n_copies, n_atoms, 3), nm
    energies : shape (n_copies,), kJ/mol
    obstacles : for each copy why this is no minimum, one line; empty where it is one
    forces_left : shape (n_copies,), the largest component, kJ/mol/nm
    n_steps : of the copy that took longest
    """

    positions: Float
    energies: Float
    obstacles: tuple[str, ...]
    forces_left: Float
    n_steps: int


def relaxed(
    surface: Surface,
    system: MolecularSystem,
    starts: Float,
    *,
    tolerance: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
    restraint: Restraint | None = None,
) -> Relaxed:
    """The minimum next to each start.

    Parameters
    ----------
    system : a copy that breaks one of its bonds is given up
    starts : shape (n_copies, n_atoms, 3), nm
    tolerance : largest force component of a minimum, kJ/mol/nm

    References
    ----------
    Nocedal & Wright, Numerical Optimization, 2nd ed. (2006), section 6.1.
    """

    def evaluate(positions: Float, copies: NDArray[np.int64]) -> tuple[Float, Float]:
        energies, forces = surface(positions)
        if restraint is None:
            return np.array(energies), np.array(forces)
        more, push = restraint(positions, copies)
        return energies + more, forces + push

    x = np.array(starts, dtype=np.float64)
    bonds = system.bonds
    n_copies, n_atoms, _ = x.shape
    rest = _lengths(x, bonds)
    curvature = np.stack([guessed_hessian(frame, bonds) for frame in x])
    radius = np.full(n_copies, MAX_RADIUS_NM)
    energy, force = evaluate(x, np.arange(n_copies))
    obstacles = [""] * n_copies
    moving = np.ones(n_copies, dtype=bool)
    n_steps = 0
    while True:
        for k in np.flatnonzero(moving):
            obstacles[k] = _obstacle(system, x[k], energy[k], force[k], rest[k])
            moving[k] = not obstacles[k] and np.abs(force[k]).max() > tolerance
        if not moving.any() or n_steps == max_steps:
            break
        n_steps += 1
        active = np.flatnonzero(moving)
        flat = force[active].reshape(len(active), -1)
        move = _steps(curvature[active], flat, radius[active])
        x[active] += move.reshape(-1, n_atoms, 3)
        new_energy, new_force = evaluate(x[active], active)
        pull = flat - new_force.reshape(len(active), -1)  # the change of the gradient
        for row, k in enumerate(active):
            if not (np.abs(pull[row]) < EXPLODED).all():
                continue
            curvature[k] = _updated(curvature[k], move[row], pull[row])
            worse = new_energy[row] > energy[k]
            radius[k] = radius[k] * 0.5 if worse else radius[k] * 1.5
        radius = radius.clip(MIN_RADIUS_NM, MAX_RADIUS_NM)
        energy[active], force[active] = new_energy, new_force
    left = np.abs(force).max(axis=(1, 2))
    for k in np.flatnonzero(moving):
        if left[k] > NEARLY:
            obstacles[k] = (
                f"a force of {left[k] / KJMOL_NM_PER_EV_ANGSTROM:.3g} eV/angstrom is left after "
                f"{n_steps} steps"
            )
    return Relaxed(x, energy, tuple(obstacles), left, n_steps)


def guessed_hessian(positions: Float, bonds: NDArray[np.int64]) -> Float:
    """Second derivatives of springs along bonds and between the ends of angles.

    Parameters
    ----------
    positions : shape (n_atoms, 3), nm

    Returns
    -------
    shape (3 n_atoms, 3 n_atoms), kJ/mol/nm^2, positive definite
    """
    n_atoms = len(positions)
    bonded = np.zeros((n_atoms, n_atoms), dtype=bool)
    bonded[bonds[:, 0], bonds[:, 1]] = bonded[bonds[:, 1], bonds[:, 0]] = True
    angled = (bonded.astype(int) @ bonded > 0) & ~bonded
    guess = _ANCHOR * np.eye(3 * n_atoms).reshape(n_atoms, 3, n_atoms, 3)
    for pairs, stiffness in zip((bonded, angled), _STIFFNESS, strict=True):
        for i, j in np.argwhere(np.triu(pairs, k=1)):
            r = positions[j] - positions[i]
            square = float(r @ r)
            block = stiffness * np.outer(r, r) / square if square else np.zeros((3, 3))
            guess[i, :, i] += block
            guess[j, :, j] += block
            guess[i, :, j] -= block
            guess[j, :, i] -= block
    return np.asarray(_KJMOL_PER_NM2 * guess.reshape(3 * n_atoms, 3 * n_atoms))


def moved_most(system: MolecularSystem, before: Float, after: Float) -> str:
    """The distance that changed most between two structures of (n_atoms, 3), nm, in words."""
    i, j = np.triu_indices(system.n_atoms, k=1)
    change = _lengths(after[None], np.stack((i, j), axis=1))[0]
    change = change - _lengths(before[None], np.stack((i, j), axis=1))[0]
    k = int(np.abs(change).argmax())
    if abs(change[k]) < NOTABLE_NM:
        return "it stays where it is"
    pair = _pair(system, int(i[k]), int(j[k]))
    return f"{pair} changes by {change[k] * ANGSTROM_PER_NM:+.2f} angstrom"


def _steps(curvature: Float, force: Float, radius: Float) -> Float:
    """Newton's step of each copy, downhill also where it curves down: shape (n, 3 n_atoms)."""
    values, vectors = np.linalg.eigh(curvature)
    along = np.einsum("nij,ni->nj", vectors, force)
    softest = 0.02 * _ANCHOR * _KJMOL_PER_NM2
    move = np.einsum("nij,nj->ni", vectors, along / np.maximum(np.abs(values), softest))
    farthest = np.linalg.norm(move.reshape(len(move), -1, 3), axis=2).max(axis=1)
    shrink = np.minimum(1.0, radius / np.maximum(farthest, 1.0e-300))
    return np.asarray(move * shrink[:, None])


def _updated(curvature: Float, move: Float, pull: Float) -> Float:
    """BFGS; left as it is where the step says nothing."""
    bent = curvature @ move
    work, bending = float(move @ pull), float(move @ bent)
    if abs(work) < 1.0e-12 or abs(bending) < 1.0e-12:
        return curvature
    return np.asarray(curvature + np.outer(pull, pull) / work - np.outer(bent, bent) / bending)


def _obstacle(
    system: MolecularSystem, positions: Float, energy: float, force: Float, rest: Float
) -> str:
    # A NaN fails every comparison.
    if not (np.abs(energy) < EXPLODED and (np.abs(force) < EXPLODED).all()):
        return "its energy or forces are not finite on the way to a minimum"
    lengths = _lengths(positions[None], system.bonds)[0]
    change = np.abs(lengths - rest)
    if change.max(initial=0.0) > BOND_LIMIT_NM:
        worst = int(change.argmax())
        i, j = system.bonds[worst]
        return (
            f"bond {_pair(system, i, j)} goes from {rest[worst] * ANGSTROM_PER_NM:.2f} to "
            f"{lengths[worst] * ANGSTROM_PER_NM:.2f} angstrom on the way to a minimum"
        )
    return ""


def _pair(system: MolecularSystem, i: int, j: int) -> str:
    symbols = [atom.element.symbol for atom in system.topology.atoms()]
    return f"{symbols[i]}{i}-{symbols[j]}{j}"


def _lengths(positions: Float, bonds: NDArray[np.int64]) -> Float:
    """Shape (n_copies, n_bonds), nm."""
    return np.asarray(np.linalg.norm(positions[:, bonds[:, 1]] - positions[:, bonds[:, 0]], axis=2))
