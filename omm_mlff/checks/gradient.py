"""Are the forces the gradient of the energy?

Along a random direction u (unit length over all coordinates) the five-point stencil

    D(h) = [E(x - 2hu) - 8 E(x - hu) + 8 E(x + hu) - E(x + 2hu)] / 12 h

gives dE/du with an error of h^4, and F . u should be its negative. Eight frames with four
directions each; *error* is rms(D + F . u) / rms(F . u), the least over steps h from 1e-2 to
1e-4 angstrom: rounding spoils short steps, curvature long ones, and for wrong forces no step
helps. *Scale* is the least-squares slope of F . u on -D, 1 where the units are right, at the step
at which the least is left over.

Everything goes through the OpenMM Context: the forces that OpenMM integrates are meant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import Check, Evidence, bounds, exact
from omm_mlff.checks.frames import static_frames
from omm_mlff.schema import Criterion, Declaration, Measurement, Where
from omm_mlff.units import ANGSTROM_PER_NM, KJMOL_PER_EV, NM_PER_ANGSTROM

if TYPE_CHECKING:
    from omm_mlff.evaluate import Evaluator

N_FRAMES = 8
N_DIRECTIONS = 4
STEPS_ANGSTROM = (1.0e-2, 1.0e-3, 1.0e-4)

_OFFSETS = np.array([-2.0, -1.0, 1.0, 2.0])
_WEIGHTS = np.array([1.0, -8.0, 8.0, -1.0]) / 12.0

ERROR = Declaration(
    "gradient.error",
    "deterministic",
    "1",
    "rms of dE/du + F.u over rms of F.u, best of three steps",
    "gradient",
)
SCALE = Declaration(
    "gradient.scale", "deterministic", "1", "slope of the forces on -dE/dx", "gradient"
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
    energies, _ = evaluator.evaluate(moved.reshape(-1, *positions.shape[1:]))
    energies = energies.reshape(n_pairs, len(_OFFSETS))
    # The stencil's weights sum to zero, but only exact arithmetic would forget a large constant.
    energies = energies - energies.mean(axis=1, keepdims=True)
    derivative: NDArray[np.float64] = energies @ _WEIGHTS / step_nm
    return derivative


def take(evidence: Evidence) -> list[Measurement]:
    """Error and scale of the forces against the gradient of the energy."""
    evaluator = evidence.live
    frames = static_frames(evidence, CHECK.name, N_FRAMES)
    _, forces = evaluator.evaluate(frames)
    n_directions = max(N_DIRECTIONS, -(-N_FRAMES * N_DIRECTIONS // len(frames)))
    positions = np.repeat(frames, n_directions, axis=0)
    directions = evidence.random(CHECK.name).normal(size=positions.shape)
    directions /= np.sqrt((directions**2).sum(axis=(1, 2), keepdims=True))
    along = (np.repeat(forces, n_directions, axis=0) * directions).sum(axis=(1, 2))
    where = Where(system=evidence.system.name)
    error, scale, scatter = np.inf, np.nan, np.inf
    for step in STEPS_ANGSTROM:
        derivative = directional_derivatives(
            evaluator, positions, directions, step * NM_PER_ANGSTROM
        )
        error = min(error, _relative_rms(derivative + along, along))
        square = float((derivative**2).sum())
        fitted = float(-(along * derivative).sum()) / square if square else 1.0
        left = _relative_rms(along + fitted * derivative, along)
        if left < scatter:
            scale, scatter = fitted, left
    cause = f"forces are {scale:.6g} times -dE/dx, with a scatter of {scatter:.1g}"
    for factor, meaning in _NAMED_SCALES.items():
        if np.isclose(scale, factor, rtol=5.0e-3):
            cause += f": {meaning}"
            break
    n_pairs = len(positions)
    return [
        exact(ERROR, error, where, n_pairs, cause),
        exact(SCALE, scale, where, n_pairs, cause),
    ]


def _relative_rms(part: NDArray[np.float64], whole: NDArray[np.float64]) -> float:
    """rms(part) / rms(whole); infinite where it is not a number, 0 for 0/0."""
    top, bottom = np.sqrt((part**2).mean()), np.sqrt((whole**2).mean())
    if top == 0.0:
        return 0.0
    ratio = float(top / bottom) if bottom else np.inf
    return ratio if np.isfinite(ratio) else np.inf


_SECTION_6 = (
    "DESIGN section 6: sound models reach 2e-8 in float64 and 9e-5 in float32; forces off by 0.5% "
    "give 5e-3, a curl 1e-2"
)

CHECK = Check(
    name="gradient",
    question="Are the forces the gradient of the energy?",
    formula="min over h of rms(D(h) + F . u) / rms(F . u), D the five-point stencil along u",
    source="Abramowitz & Stegun, table 25.2 (1964), for the stencil",
    declares=(ERROR, SCALE),
    criteria=(
        *bounds(ERROR, _SECTION_6, high=(None, 2.0e-3)),
        *bounds(ERROR, _SECTION_6, dtypes=("float64",), high=(1.0e-6, None)),
        *bounds(ERROR, _SECTION_6, dtypes=("float32",), high=(5.0e-4, None)),
        Criterion(
            "gradient.scale-info",
            SCALE.name,
            0.998,
            1.002,
            "1",
            "info",
            "DESIGN section 6: it names wrong units; the bound is that of gradient.error",
        ),
    ),
    needs=frozenset({"evaluator"}),
    take=take,
)
