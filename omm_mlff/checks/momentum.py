"""Do the internal forces leave the whole molecule at rest?

    p = |sum_i m_i v_i| / sum_i m_i |v_i|
    l = |sum_i m_i (r_i - R) x v_i| / sum_i m_i |r_i - R| |v_i|

largest over frames and replicas; both are 0 at the start of a run and remain so when forces and
torques of the molecule add up to nothing. By the Cauchy-Schwarz inequality
(sum m |v|)^2 <= (sum m) (sum m v^2): the centre of mass carries at most a fraction p^2 of the
kinetic energy. From this the bounds: 1e-3 is a millionth of it, which no observable shows; 0.1 is
one percent, the flying ice cube (Harvey, Tan & Cheatham, J. Comput. Chem. 19, 726 (1998)). For the
angular momentum the same holds up to the ratio of sum m r^2 to the moment of inertia.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import (
    FREE,
    SPOILS_DYNAMICS,
    SPOILS_EVALUATION,
    Check,
    Evidence,
    absent,
    bounds,
    exact,
    for_each_run,
    run_where,
    worst,
)
from omm_mlff.checks.frames import in_words, none_lasted, stretches, usable_replicas
from omm_mlff.schema import Declaration, Fault, Measurement

if TYPE_CHECKING:
    from omm_mlff.record.rundir import RunRecord

_PIECE = 4096

MOMENTUM = Declaration(
    "nve.momentum",
    "deterministic",
    "1",
    "largest |sum m v| over sum m |v|",
    "momentum",
    failure="momentum is not conserved",
)
ANGULAR_MOMENTUM = Declaration(
    "nve.angular_momentum",
    "deterministic",
    "1",
    "largest |sum m r x v| over sum m |r| |v|, about the centre of mass",
    "momentum",
    failure="angular momentum is not conserved",
)


def momentum_fraction(
    velocities: NDArray[np.float64], masses: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Total momentum relative to the sum of the atoms' momenta.

    Parameters
    ----------
    velocities : shape (n_frames, n_atoms, 3), any unit
    masses : shape (n_atoms,)

    Returns
    -------
    shape (n_frames,), 0 where nothing moves
    """
    total = _norm(_weighted_sum(velocities, masses))
    scale = _norm(velocities) @ masses
    return np.asarray(np.divide(total, scale, out=np.zeros_like(total), where=scale != 0.0))


def angular_momentum_fraction(
    positions: NDArray[np.float64], velocities: NDArray[np.float64], masses: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Angular momentum about the centre of mass relative to the most that it could be.

    Parameters
    ----------
    positions, velocities : shape (n_frames, n_atoms, 3)
    masses : shape (n_atoms,)

    Returns
    -------
    shape (n_frames,), 0 where nothing moves
    """
    centre = _weighted_sum(positions, masses) / masses.sum()
    r = positions - centre[:, None]
    total = _norm(_weighted_sum(_cross(r, velocities), masses))
    scale = (_norm(r) * _norm(velocities)) @ masses
    return np.asarray(np.divide(total, scale, out=np.zeros_like(total), where=scale != 0.0))


def _weighted_sum(
    vectors: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Sum over atoms, shape (n_frames, 3); one product of matrices is fast for few atoms."""
    table = np.kron(weights[:, None], np.eye(3))
    summed: NDArray[np.float64] = vectors.reshape(len(vectors), -1) @ table
    return summed


def _norm(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lengths of vectors, shape (..., 3); by components, since a loop over three is slow."""
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    square = x * x
    square += y * y
    square += z * z
    length: NDArray[np.float64] = np.sqrt(square, out=square)
    return length


def _cross(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vector product, shape (..., 3)."""
    product = np.empty(np.shape(a))
    for k in range(3):
        i, j = (k + 1) % 3, (k + 2) % 3
        np.multiply(a[..., i], b[..., j], out=product[..., k])
        product[..., k] -= a[..., j] * b[..., i]
    return product


def _of_run(evidence: Evidence, run: RunRecord) -> list[Measurement]:
    """Momentum and angular momentum of one run."""
    where = run_where(evidence, run)
    samples, left_out = usable_replicas(run, min_frames=1)
    rows = [MOMENTUM] if evidence.system.periodic else [MOMENTUM, ANGULAR_MOMENTUM]
    found = []
    if evidence.system.periodic:
        reason = "a periodic box does not conserve angular momentum"
        found.append(absent(ANGULAR_MOMENTUM, where, reason))
    if not samples:
        reason = none_lasted(left_out)
        return found + [absent(row, where, reason) for row in rows]
    n_frames = sum(sample.n_frames for sample in samples)
    worst_at = {row.name: (-1.0, 0, 0) for row in rows}
    for sample in samples:
        start = 0
        for piece in stretches(sample, _PIECE, ("positions", "velocities")):
            fractions = {MOMENTUM.name: momentum_fraction(piece["velocities"], run.masses)}
            if ANGULAR_MOMENTUM in rows:
                fractions[ANGULAR_MOMENTUM.name] = angular_momentum_fraction(
                    piece["positions"], piece["velocities"], run.masses
                )
            for name, values in fractions.items():
                value, frame = worst(values)
                largest = worst_at[name][0]
                if not (np.isnan(largest) or value <= largest):
                    worst_at[name] = (value, sample.index, start + frame)
            start += len(piece["positions"])
    for row in rows:
        value, replica, frame = worst_at[row.name]
        spot = dataclasses.replace(where, replica=replica, frame=frame)
        found.append(exact(row, value, spot, n_frames, in_words(left_out)))
    return found


_CAUCHY_SCHWARZ = (
    "by Cauchy-Schwarz the whole carries at most the square of this of the kinetic energy: "
    "a millionth (limit), one percent (reject)"
)

CHECK = Check(
    name="momentum",
    question="Do the internal forces leave the whole molecule at rest?",
    formula="|sum m v| / sum m |v|; |sum m r x v| / sum m |r| |v|",
    source="Harvey, Tan & Cheatham, J. Comput. Chem. 19, 726 (1998)",
    declares=(MOMENTUM, ANGULAR_MOMENTUM),
    criteria=(
        *bounds(MOMENTUM, _CAUCHY_SCHWARZ, high=(1.0e-3, 0.1)),
        *bounds(ANGULAR_MOMENTUM, _CAUCHY_SCHWARZ, high=(1.0e-3, 0.1)),
    ),
    needs=frozenset({"runs"}),
    take=for_each_run(_of_run),
    use=FREE,
    explained_by=(
        *SPOILS_EVALUATION,
        *SPOILS_DYNAMICS,
        Fault.CUTOFF,
        Fault.ATTRIBUTED,
    ),
)
