"""Normal modes: small vibrations about a minimum, from forces alone.

Second derivatives by central differences of forces,

    H_ij = -[F_i(x + h e_j) - F_i(x - h e_j)] / 2h,    made symmetric,

weighted by masses, H_ij / sqrt(m_i m_j). Rigid translations and rotations are projected out, so
that 3N - 6 modes remain (3N - 5 of a linear molecule), and an eigenvalue w^2 is a wavenumber
w / 2 pi c; where w^2 < 0 the mode is imaginary and its wavenumber is written negative.

References
----------
Wilson, Decius & Cross, Molecular Vibrations (1955), chapter 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omm_mlff.geometry.relaxation import Relaxed, Surface, relaxed
from omm_mlff.schema import MolecularSystem
from omm_mlff.units import INVERSE_CM_PER_RADIAN_PER_PS, NM_PER_ANGSTROM

Float = NDArray[np.float64]

STEP_NM = 0.005 * NM_PER_ANGSTROM
"""Of the central difference. Rounding of float32 forces (1e-4 eV/angstrom) leaves a few 1/cm on the
softest mode; curvature leaves 0.3 1/cm on an O-H stretch."""

AMPLITUDE_NM = 0.03 * NM_PER_ANGSTROM
"""Of the central difference where two methods are compared: half of what a hydrogen moves in its
ground state.
Reference methods that are networks themselves can have forces that bend within less (ANI's
activations have no continuous second derivative: its water bends with 1737 1/cm over 0.005
angstrom and with 1610 over 0.03), which no motion feels and nobody should reproduce. Over
this step an O-H stretch reads 10 1/cm high, and of a floppy molecule the modes below 100 1/cm read
low (a straight move strains stiff bonds), in both methods."""

IMAGINARY = -30.0
"""1/cm; a mode softer than this is a direction in which it falls, not rounding."""

PUSH_NM = 0.1 * NM_PER_ANGSTROM
"""How far a structure that rests on a saddle is pushed off it."""

N_PUSHES = 3

LINEAR = 0.01
"""A molecule is linear where it is this much thinner than long: a relaxed one is never exact."""


@dataclass(frozen=True, eq=False)
class Modes:
    """Normal modes, the softest first.

    Attributes
    ----------
    frequencies : shape (n_modes,), 1/cm; negative where imaginary
    displacements : shape (n_modes, n_atoms, 3), Cartesian, of unit length over all coordinates
    """

    frequencies: Float
    displacements: Float

    @property
    def n_imaginary(self) -> int:
        return int((self.frequencies < IMAGINARY).sum())

    def movers(self, mode: int, n_atoms: int = 2) -> tuple[int, ...]:
        """The atoms that move most in a mode, the first most."""
        moved = np.linalg.norm(self.displacements[mode], axis=1)
        return tuple(int(atom) for atom in np.argsort(-moved, kind="stable")[:n_atoms])


@dataclass(frozen=True, eq=False)
class Minimum:
    """A minimum with its normal modes.

    Attributes
    ----------
    positions : shape (n_atoms, 3), nm
    modes : None where `obstacle` says why there is no minimum
    """

    positions: Float
    modes: Modes | None
    obstacle: str = ""


def hessian(surface: Surface, positions: Float, step_nm: float = STEP_NM) -> Float:
    """Second derivatives of the energy, from 6 n_atoms evaluations of forces in one call.

    Parameters
    ----------
    positions : shape (n_atoms, 3), nm

    Returns
    -------
    shape (3 n_atoms, 3 n_atoms), kJ/mol/nm^2, symmetric; not finite where the forces are not
    """
    n = positions.size
    moves = step_nm * np.eye(n).reshape(n, *positions.shape)
    _, forces = surface(np.concatenate((positions + moves, positions - moves)))
    ahead, behind = forces.reshape(2, n, n)
    with np.errstate(over="ignore", invalid="ignore"):
        second = (behind - ahead) / (2.0 * step_nm)
        return np.asarray(0.5 * (second + second.T))


def normal_modes(second: Float, positions: Float, masses: Float) -> Modes:
    """Normal modes from second derivatives.

    Parameters
    ----------
    second : shape (3 n_atoms, 3 n_atoms), kJ/mol/nm^2
    positions : shape (n_atoms, 3), nm
    masses : shape (n_atoms,), dalton
    """
    root = np.repeat(np.sqrt(masses), 3)
    inner = vibrations_basis(positions, masses)  # (3 n_atoms, n_modes)
    # kJ/mol/nm^2/dalton is 1/ps^2
    squares, vectors = np.linalg.eigh(inner.T @ (second / np.outer(root, root)) @ inner)
    frequencies = np.sign(squares) * np.sqrt(np.abs(squares)) * INVERSE_CM_PER_RADIAN_PER_PS
    moved = (inner @ vectors / root[:, None]).T
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    return Modes(frequencies, moved.reshape(len(moved), *positions.shape))


def vibrations_basis(positions: Float, masses: Float) -> Float:
    """Mass-weighted directions that neither translate nor rotate, orthonormal columns.

    Returns
    -------
    shape (3 n_atoms, 3 n_atoms - 6); one column more for a linear molecule
    """
    root = np.sqrt(masses)[:, None]
    r = positions - np.average(positions, axis=0, weights=masses)
    moves = np.array([(root * axis).ravel() for axis in np.eye(3)])
    turns = np.array([(root * np.cross(axis, r)).ravel() for axis in np.eye(3)])
    # Turning a molecule about the line that its atoms stand on moves nothing but rounding.
    _, sizes, axes = np.linalg.svd(turns, full_matrices=False)
    rigid = np.concatenate((moves, axes[sizes > LINEAR * sizes[0]]))
    u, _, _ = np.linalg.svd(rigid.T)
    return np.asarray(u[:, len(rigid) :])


def minimum_with_modes(surface: Surface, system: MolecularSystem, start: Float) -> Minimum:
    """The minimum next to a structure, with its normal modes.

    A symmetric start can come to rest on a saddle, whose downhill direction no force shows. There
    it is pushed along the softest mode, both ways, and relaxed again.

    Parameters
    ----------
    start : shape (n_atoms, 3), nm
    """
    at_rest = relaxed(surface, system, start[None])
    found = _with_modes(surface, system, at_rest)
    for _ in range(N_PUSHES):
        if found.modes is None or not found.modes.n_imaginary:
            break
        away = found.modes.displacements[0]
        away = PUSH_NM * away / np.linalg.norm(away, axis=1).max()
        pushed = relaxed(surface, system, found.positions + np.stack((away, -away)))
        lower = _with_modes(surface, system, pushed)
        if lower.modes is not None and lower.modes.n_imaginary > found.modes.n_imaginary:
            break
        found = lower
    return found


def _with_modes(surface: Surface, system: MolecularSystem, at_rest: Relaxed) -> Minimum:
    """Of the copies the lowest one that came to rest, with its modes."""
    sound = [k for k, obstacle in enumerate(at_rest.obstacles) if not obstacle]
    if not sound:
        return Minimum(at_rest.positions[0], None, at_rest.obstacles[0])
    lowest = min(sound, key=lambda k: float(at_rest.energies[k]))
    positions = at_rest.positions[lowest]
    second = hessian(surface, positions)
    if not np.isfinite(second).all():
        return Minimum(positions, None, "its forces are not finite next to the minimum")
    return Minimum(positions, normal_modes(second, positions, system.masses))
