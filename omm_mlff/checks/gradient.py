"""Are the forces the gradient of the energy?

Along a random direction u (unit length over all coordinates) the five-point stencil

    D(h) = [E(x - 2hu) - 8 E(x - hu) + 8 E(x + hu) - E(x + 2hu)] / 12 h

gives dE/du with an error of h^4, and F . u should be its negative. Eight frames with four
directions each; *error* is rms(D + F . u) / rms(F . u), the least over steps h from 2e-2 to
1e-4 angstrom: rounding spoils short steps, curvature long ones (in a large molecule least, where a
step of this length moves each atom little), and for wrong forces no step helps.

*Scale* is the least-squares slope of F . u on -D, 1 where the units are right. It is sampled: some
hundred pairs of a frame and a direction, its standard error from their scatter (the jackknife's,
which does not ask that all pairs scatter alike, and allows for pairs that weigh much); the step is
shortened from 1e-2 to 5e-3 and 1e-3 angstrom while that lessens the scatter.
Directions are u = F / |F| and half a random direction: along the force the energy changes most, by
sqrt(3N) times what it does in any direction, while its rounding stays.

Bounds of the error: a sound potential has 2e-9 to 2e-8 in float64 and 1.1e-4 to 2.4e-4 in float32.
A curl of 0.1% of the force, or forces off by 0.1%, have an error of 1e-3: in float64 rejected at
1e-4, which is 5000 times what is sound. In float32 it is a few times the rounding; there 2e-3 is
rejected, and forces off by 0.1% by their scale.

Bounds of the scale: 5e-5 and 5e-4 around 1, so that 0.02% is a limit and 0.1% a reason to reject.
The three shipped students in float32, on five molecules from water to aspirin: the interval reaches
3.4e-5 from 1 at most, its standard error is 4e-6 to 9e-6.

Everything goes through the OpenMM Context: the forces that OpenMM integrates are meant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import (
    MINIMISATION,
    SPOILS_EVALUATION,
    Check,
    Evidence,
    bounds,
    exact,
    ratio,
    sampled,
)
from omm_mlff.checks.frames import static_frames
from omm_mlff.schema import Declaration, Fault, Measurement, Where
from omm_mlff.statistics.intervals import Estimate, t_estimate
from omm_mlff.units import ANGSTROM_PER_NM, KJMOL_PER_EV, NM_PER_ANGSTROM

if TYPE_CHECKING:
    from omm_mlff.dynamics.evaluator import Evaluator

N_FRAMES = 8
N_DIRECTIONS = 4
STEPS_ANGSTROM = (2.0e-2, 1.0e-2, 1.0e-3, 1.0e-4)
SMALL = 1.0e-3
"""Below, an error that a shorter step makes larger is the best there is: rounding takes over."""

SCALE_PAIRS_TIMES_ATOMS = 480
"""A small molecule has little force to see the scale by, and costs little: it gets more pairs."""

SCALE_STEPS_ANGSTROM = (1.0e-2, 5.0e-3, 1.0e-3)
SIDEWAYS = 0.5
"""Random part of the scale's directions, beside the force's own of 1."""

_OFFSETS = np.array([-2.0, -1.0, 1.0, 2.0])
_WEIGHTS = np.array([1.0, -8.0, 8.0, -1.0]) / 12.0

ERROR = Declaration(
    "gradient.error",
    "deterministic",
    "1",
    "rms of dE/du + F.u over rms of F.u, at the best step",
    "gradient",
    failure="forces are not the gradient of the energy",
)
SCALE = Declaration(
    "gradient.scale",
    "sampled",
    "1",
    "slope of the forces on -dE/dx",
    "gradient",
    failure="forces are out of proportion to the energy",
    explained_by=(Fault.CUTOFF, Fault.JUMP, Fault.KINK),
)

_NAMED_SCALES = {
    0.5: "half the gradient is missing",
    2.0: "the gradient counts double",
    -1.0: "the sign of the forces is wrong",
    ANGSTROM_PER_NM: "forces per nm are given per angstrom, or the reverse",
    1.0 / ANGSTROM_PER_NM: "forces per nm are given per angstrom, or the reverse",
    KJMOL_PER_EV: "energies in eV beside forces in kJ/mol",
    1.0 / KJMOL_PER_EV: "forces in eV beside energies in kJ/mol",
}


def directional_derivatives(
    evaluator: Evaluator,
    positions: NDArray[np.float64],
    directions: NDArray[np.float64],
    step_nm: float,
) -> NDArray[np.float64]:
    """Derivative of the energy along each direction, by the five-point stencil.

    Parameters
    ----------
    positions, directions : shape (n_pairs, n_atoms, 3), nm; directions of unit length

    Returns
    -------
    shape (n_pairs,), kJ/mol/nm
    """
    n_pairs = len(positions)
    moved = positions[:, None] + _OFFSETS[:, None, None] * step_nm * directions[:, None]
    energies = evaluator.energies(moved.reshape(-1, *positions.shape[1:]))
    energies = energies.reshape(n_pairs, len(_OFFSETS))
    # The stencil's weights sum to zero, but only exact arithmetic would forget a large constant.
    energies = energies - energies.mean(axis=1, keepdims=True)
    derivative: NDArray[np.float64] = energies @ _WEIGHTS / step_nm
    return derivative


@np.errstate(all="ignore")  # a broken potential is measured, not warned of
def take(evidence: Evidence) -> list[Measurement]:
    """Error and scale of the forces against the gradient of the energy."""
    evaluator = evidence.live
    where = Where(system=evidence.system.name)
    random = evidence.random(CHECK.name)
    error, n_pairs = _error(evidence, random)
    scale, scatter = force_scale(evaluator, *_scale_pairs(evidence, random))
    cause = f"forces are {scale.value:.6g} times -dE/dx, with a scatter of {scatter:.1g}"
    for factor, meaning in _NAMED_SCALES.items():
        if np.isclose(scale.value, factor, rtol=5.0e-3):
            cause += f": {meaning}"
            break
    return [exact(ERROR, error, where, n_pairs, cause), sampled(SCALE, scale, where, cause)]


def _error(evidence: Evidence, random: np.random.Generator) -> tuple[float, int]:
    """rms(D + F . u) / rms(F . u) at the best step, and the pairs of frame and direction."""
    frames = static_frames(evidence, CHECK.name, N_FRAMES)
    _, forces = evidence.live.evaluate(frames)
    n_directions = max(N_DIRECTIONS, -(-N_FRAMES * N_DIRECTIONS // len(frames)))
    positions = np.repeat(frames, n_directions, axis=0)
    directions = _unit(random.normal(size=positions.shape))
    along = (np.repeat(forces, n_directions, axis=0) * directions).sum(axis=(1, 2))
    error = np.inf
    for step in STEPS_ANGSTROM:
        derivative = directional_derivatives(
            evidence.live, positions, directions, step * NM_PER_ANGSTROM
        )
        found = _relative_rms(derivative + along, along)
        if found >= error and error < SMALL:
            break
        error = min(error, found)
    return error, len(positions)


def _scale_pairs(
    evidence: Evidence, random: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Frames, their forces, and directions that lie mostly along these."""
    n_pairs = max(N_FRAMES * N_DIRECTIONS, SCALE_PAIRS_TIMES_ATOMS // evidence.system.n_atoms)
    frames = static_frames(evidence, CHECK.name, n_pairs)
    _, forces = evidence.live.evaluate(frames)
    repeats = -(-n_pairs // len(frames))
    positions, forces = (np.repeat(x, repeats, axis=0) for x in (frames, forces))
    # Forces that are not finite have no direction; they show in the slope all the same.
    along = _unit(np.where(np.isfinite(forces), forces, 0.0))
    sideways = _unit(random.normal(size=positions.shape))
    return positions, forces, _unit(along + SIDEWAYS * sideways)


def force_scale(
    evaluator: Evaluator,
    positions: NDArray[np.float64],
    forces: NDArray[np.float64],
    directions: NDArray[np.float64],
) -> tuple[Estimate, float]:
    """Slope of F . u on -dE/du at the step with the least scatter, with that scatter.

    Parameters
    ----------
    positions, forces, directions : shape (n_pairs, n_atoms, 3); nm, kJ/mol/nm, unit length

    Returns
    -------
    the slope, and rms(F . u - slope * -D) / rms(F . u)

    References
    ----------
    MacKinnon & White, J. Econometrics 29, 305 (1985), HC3, for the standard error.
    """
    along = (forces * directions).sum(axis=(1, 2))
    n_pairs = len(along)
    best, least = Estimate(np.nan, np.inf, 1.0, -np.inf, np.inf, n_pairs), np.inf
    for step in SCALE_STEPS_ANGSTROM:
        fall = -directional_derivatives(evaluator, positions, directions, step * NM_PER_ANGSTROM)
        square = float((fall**2).sum())
        if not (np.isfinite(square) and np.isfinite(along).all()):
            break
        if square == 0.0:  # an energy that never changes: without forces that is consistent
            slope, error = (1.0, 0.0) if not along.any() else (np.inf, np.inf)
            return Estimate(slope, error, 1.0, slope, slope, n_pairs), 0.0
        slope = float((along * fall).sum()) / square
        left = along - slope * fall
        # A pair of large weight pulls the slope to itself and hides its residual.
        without = left / np.maximum(1.0 - fall**2 / square, 1.0 / n_pairs)
        error = float(np.sqrt((without**2 * fall**2).sum())) / square
        scatter = _relative_rms(left, along)
        if scatter < least or not np.isfinite(best.value):
            best, least = t_estimate(slope, error, n_pairs - 1.0, n_pairs), scatter
        elif least < SMALL:
            break
    return best, least


def _unit(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scaled to unit length over all coordinates; what is zero stays."""
    length = np.sqrt((directions**2).sum(axis=(1, 2), keepdims=True))
    zero = np.zeros_like(directions)
    unit: NDArray[np.float64] = np.divide(directions, length, out=zero, where=length > 0.0)
    return unit


def _relative_rms(part: NDArray[np.float64], whole: NDArray[np.float64]) -> float:
    """rms(part) / rms(whole); infinite where it is not a number, 0 for 0/0."""
    return ratio(float(np.sqrt((part**2).mean())), float(np.sqrt((whole**2).mean())))


_SECTION_6 = (
    "DESIGN section 6: sound models reach 2e-8 in float64 and 9e-5 in float32; forces off by 0.5% "
    "give 5e-3, a curl 1e-2"
)
_DOUBLE = (
    "a tenth of what a curl of 0.1% or a scale of 0.1% gives, 5000 times what a sound float64 "
    "potential has (omm_mlff/checks/gradient.py)"
)
_SLOPE = (
    "0.02% is a limit, 0.1% rejected; intervals of the shipped students in float32 reach 3.4e-5 "
    "from 1 (omm_mlff/checks/gradient.py)"
)

CHECK = Check(
    name="gradient",
    question="Are the forces the gradient of the energy?",
    formula="min over h of rms(D(h) + F . u) / rms(F . u), D the five-point stencil along u; "
    "slope of F . u on -D",
    source="Abramowitz & Stegun, table 25.2 (1964), for the stencil",
    declares=(ERROR, SCALE),
    criteria=(
        *bounds(ERROR, _DOUBLE, dtypes=("float64",), high=(1.0e-6, 1.0e-4)),
        *bounds(ERROR, _SECTION_6, dtypes=("float32",), high=(5.0e-4, 2.0e-3)),
        *bounds(
            SCALE,
            _SLOPE,
            low=(1.0 - 5.0e-5, 1.0 - 5.0e-4),
            high=(1.0 + 5.0e-5, 1.0 + 5.0e-4),
        ),
    ),
    needs=frozenset({"evaluator"}),
    take=take,
    use=MINIMISATION,
    explained_by=(
        *SPOILS_EVALUATION,
        Fault.UNITS,
        Fault.FORCE_SCALE,
        Fault.CURL,
    ),
)
