"""Verlet's leapfrog in float64, from the forces that OpenMM was given.

On a device positions come to the potential in float32 (single and mixed precision), and in a box
wrapped: their differences over a step are no velocities (1e-7 nm over 5e-4 ps is 2e-4 nm/ps).
What moves the atoms is v(t + dt/2) = v(t - dt/2) + F(t) dt/m and x(t + dt) = x(t) + v(t + dt/2) dt,
and in mixed and double precision OpenMM does that in float64, with forces rounded to
2^-32 kJ/mol/nm. So the same sums, from where the Context stood when a block of steps began, give
its positions and velocities to rounding; where the block ends they are held against the Context's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from omm_mlff.schema import Precision

VELOCITY_TOLERANCE: dict[Precision, float] = {"single": 1e-4, "mixed": 1e-7, "double": 1e-7}
"""How far the Context's velocities may be off at a block's end, in fractions of the fastest atom's.
In single precision each of 256 steps rounds them to 6e-8 of themselves; in the others only the
rounding of forces counts, some 1e-11 in all."""
POSITION_TOLERANCE_NM: dict[Precision, float] = {"single": 1e-5, "mixed": 1e-8, "double": 1e-8}
"""The same for positions; float32 resolves 6e-8 nm at 1 nm."""


def leapfrog(
    positions: NDArray[np.float64],
    velocities: NDArray[np.float64],
    forces: NDArray[np.float64],
    inverse_mass: NDArray[np.float64],
    timestep_ps: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where atoms were at each of many steps, and their velocities half a step before.

    Parameters
    ----------
    positions, velocities : shape (..., 3), nm and nm/ps; before the first step, the velocities half
        a step behind
    forces : shape (n_steps, ..., 3), kJ/mol/nm
    inverse_mass : 1/dalton, of a shape that goes with `positions`

    Returns
    -------
    positions, velocities : shape (n_steps + 1, ..., 3); the last are those after the last step
    """
    kicks = timestep_ps * forces * inverse_mass
    v = np.concatenate((velocities[None], kicks)).cumsum(0)
    x = np.concatenate((positions[None], timestep_ps * v[1:])).cumsum(0)
    return x, v


def ends_agree(
    mine: tuple[NDArray[np.float64], NDArray[np.float64]],
    context: tuple[NDArray[np.float64], NDArray[np.float64]],
    precision: Precision,
) -> bool:
    """Whether positions (nm) and velocities (nm/ps) after a block are the Context's."""
    (x, v), (x_context, v_context) = mine, context
    fastest = float(np.sqrt((v_context**2).sum(-1).max(initial=0.0)))
    off_x = float(np.abs(x - x_context).max(initial=0.0))
    off_v = float(np.abs(v - v_context).max(initial=0.0))
    allowed = VELOCITY_TOLERANCE[precision] * fastest
    return off_x <= POSITION_TOLERANCE_NM[precision] and off_v <= allowed
