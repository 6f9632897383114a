"""Is it right where it goes?

Labelled frames were sampled from the reference's own dynamics. A student that is right on them may
still wander off to where nobody has taught it; its own trajectory is the only sample of that. So
the teacher is asked there: frames of the run, spread evenly over replicas and time, are labelled by
ANI-1ccx, and the forces in the record are compared with the labels.

    force_rmse  root mean square of F - F_teacher over Cartesian components, frames and replicas
    excursion   force_rmse / the same on labelled frames at the nearest temperature

`accuracy.force_rmse` is already a question of its own; a student that fails it would fail the same
bound here for the same fault. What is new is the ratio: 1 where the student stays in the region it
was measured in, more where its dynamics seek out its errors (a potential's holes attract). That
carries the limit, at 3: the forces are three times as wrong where production goes as the labels
promise, and the shipped students stay below 1.4 on water, methane and alanine, with intervals that
end below 1.9 (ultra-tiny on benzene: 2.7, not decided). Below
`SMALL_ERROR` neither error matters and the ratio of the two means nothing: both are taken to be at
least that. The absolute value carries a bound for `reject` alone, at 10 kcal/mol/angstrom, which is
`accuracy`'s own: such a trajectory is not one of the teacher's molecule.

`force_rmse_before_failure` follows the replicas that were stopped over their last 50 fs, for
information: whether the student went wrong first and then failed (the error rises before the stop),
or failed where it was right (a fault of the integration, not of the surface).

Intervals: replicas are the unit of repetition (jackknife); the ratio's adds the relative errors of
both in quadrature. Replicas that were stopped count up to 20 fs before, however early that was.

The teacher is not the truth far from equilibrium: believe it from 0.8 to 1.35 bond lengths (DESIGN,
section 6). A large error in a bond that is breaking says that the two differ, not by how much the
student is wrong. Neutral molecules of H, C, N and O in vacuum, and only where the system's labels
are ANI-1ccx's: a native force field on a user's own file does not claim to agree with it. Where the
user names a reference method, that one is asked, about whatever it serves.

So measured (5 ps x 16 at 300 K; eV/angstrom, then the ratio):

                original        tiny            ultra-tiny
    water       0.016   0.96    0.017   1.00    0.022   1.20
    methane     0.011   0.85    0.013   0.89    0.013   0.93
    alanine     0.050   0.95    0.073   1.08    0.088   1.10
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import (
    REFERENCE_FORCES,
    SPOILS_SURFACE,
    Check,
    Evidence,
    absent,
    bounds,
    for_each_run,
    run_where,
    sampled,
)
from omm_mlff.checks.frames import AFTERMATH_PS, nearest_in_temperature
from omm_mlff.errors import MissingPackageError
from omm_mlff.schema import Declaration, Event, Measurement, Symptom, Where
from omm_mlff.statistics.intervals import Estimate, blocks_of_frames, jackknife, t_estimate
from omm_mlff.units import ANGSTROM_PER_NM, EV_ANGSTROM_PER_KJMOL_NM, NM_PER_ANGSTROM, PS_PER_FS

if TYPE_CHECKING:
    from omm_mlff.record.rundir import RunRecord
    from omm_mlff.teachers.ani import Teacher

Float = NDArray[np.float64]

N_FRAMES = 64
"""Of a run, spread evenly over replicas and time."""

ATOM_FRAMES = 2048
"""So many atoms in all frames together: some 0.3 s of the teacher on one core."""

MIN_FRAMES = 8

SMALL_ERROR = 0.0043
"""eV/angstrom, 0.1 kcal/mol/angstrom: a tenth of what counts as an accurate force."""

NEAR_IN_TEMPERATURE = 0.25
"""Labelled frames say what to expect of a run whose temperature differs by no more of its own."""

LAGS_FS = (50.0, 40.0, 30.0, 20.0, 10.0, 0.0)
"""Before a replica was stopped; 50 fs are five periods of the fastest vibration."""

MAX_STOPPED = 8
"""Of the replicas that were stopped, so many are followed."""

FORCE_RMSE = Declaration(
    "along.force_rmse",
    "sampled",
    "eV/angstrom",
    "against the teacher, on the run's frames",
    "along",
    failure="forces are off where the run goes",
)
EXCURSION = Declaration(
    "along.excursion",
    "sampled",
    "1",
    "the same over the force error on labelled frames at that temperature",
    "along",
    failure="the run goes where the forces are worse",
)
BEFORE_FAILURE = Declaration(
    "along.force_rmse_before_failure",
    "info",
    "eV/angstrom",
    "over the last 50 fs of replicas that were stopped",
    "along",
    0.0,
)


@dataclass(frozen=True, eq=False)
class Visited:
    """Frames of a run, with the forces that the potential had there.

    Attributes
    ----------
    positions, forces : shape (n_frames, n_atoms, 3), angstrom and eV/angstrom
    replica : shape (n_frames,)
    time_ps : shape (n_frames,)
    lag_fs : shape (n_frames,), before the replica was stopped; NaN for a frame of the even spread
    """

    positions: Float
    forces: Float
    replica: NDArray[np.int64]
    time_ps: Float
    lag_fs: Float


def visited_frames(run: RunRecord, n_atoms: int) -> Visited:
    """Frames spread evenly over replicas and time, and those just before a replica was stopped."""
    n_wanted = max(MIN_FRAMES, min(N_FRAMES, ATOM_FRAMES // n_atoms))
    each = max(1, round(n_wanted / run.n_replicas))
    every = max(1, math.ceil(run.n_replicas / n_wanted))
    stopped = sorted(run.events)[:MAX_STOPPED]
    rows: list[tuple[Float, Float, int, float, float]] = []
    for index in range(run.n_replicas):
        event = run.events.get(index)
        spread = index % every == 0
        if not spread and index not in stopped:
            continue
        n_spread = each if spread else 0
        replica = run.replica(index)
        wanted = _wanted(replica.time, event, n_spread, before_the_stop=index in stopped)
        wanted.sort(key=_frame)
        chosen = replica.frames([frame for frame, _ in wanted], ("time", "positions", "forces"))
        for row, (_, lag) in enumerate(wanted):
            rows.append(
                (
                    chosen["positions"][row] * ANGSTROM_PER_NM,
                    chosen["forces"][row] * EV_ANGSTROM_PER_KJMOL_NM,
                    index,
                    float(chosen["time"][row]),
                    lag,
                )
            )
    return Visited(
        np.array([row[0] for row in rows]).reshape(-1, n_atoms, 3),
        np.array([row[1] for row in rows]).reshape(-1, n_atoms, 3),
        np.array([row[2] for row in rows], dtype=np.int64),
        np.array([row[3] for row in rows]),
        np.array([row[4] for row in rows]),
    )


def _frame(wanted: tuple[int, float]) -> int:
    return wanted[0]


def _wanted(
    time: Float, event: Event | None, n_spread: int, *, before_the_stop: bool
) -> list[tuple[int, float]]:
    """Frames of one replica to look at, each with its lag before the stop (NaN: no lag)."""
    if not len(time):
        return []
    n_frames = len(time)
    if event is not None:
        n_frames = int(np.searchsorted(time, event.time_ps - AFTERMATH_PS))
    middles = (np.arange(n_spread) + 0.5) / max(1, n_spread)
    wanted = [(int(frame), math.nan) for frame in np.unique((middles * n_frames).astype(np.int64))]
    wanted = wanted if n_frames else []
    if event is not None and before_the_stop:
        seen: set[int] = set()
        for lag in LAGS_FS:
            if lag * PS_PER_FS > time[-1] - time[0] + 1.0e-9:
                continue
            frame = int(np.abs(time - (time[-1] - lag * PS_PER_FS)).argmin())
            if frame not in seen:
                seen.add(frame)
                wanted.append((frame, lag))
    return wanted


def rmse(error: Float, replica: NDArray[np.int64]) -> Estimate:
    """Root mean square over Cartesian components, with its interval over replicas.

    Parameters
    ----------
    error : shape (n_frames, n_atoms, 3)
    replica : shape (n_frames,)
    """
    square = (error**2).mean(axis=(1, 2))
    blocks = [np.flatnonzero(replica == one) for one in np.unique(replica)]
    return jackknife(lambda frames: float(np.sqrt(square[frames].mean())), blocks)


def ratio(above: Estimate, below: Estimate) -> Estimate:
    """Quotient of two errors, neither taken to be less than `SMALL_ERROR`."""
    a, b = max(above.value, SMALL_ERROR), max(below.value, SMALL_ERROR)
    parts = ((above.standard_error / a, above.dof), (below.standard_error / b, below.dof))
    relative = math.hypot(parts[0][0], parts[1][0])
    # Welch & Satterthwaite: degrees of freedom of a sum with unequal errors
    dof = min(above.dof, below.dof)
    if 0.0 < relative < math.inf:
        dof = relative**4 / sum(one**4 / n for one, n in parts)
    return t_estimate(a / b, a / b * relative, dof, min(above.n_samples, below.n_samples))


def _of_run(evidence: Evidence, run: RunRecord) -> list[Measurement]:
    """The teacher along one run."""
    where = run_where(evidence, run)
    labelled, reason = _labeller(evidence)
    if labelled is None:
        return [absent(row, where, reason) for row in CHECK.declares]
    system = evidence.system
    visited = visited_frames(run, system.n_atoms)
    error = np.zeros_like(visited.forces)
    if len(error):
        error = visited.forces - labelled(visited.positions)
    names = [f"{atom.element.symbol}{atom.index}" for atom in system.topology.atoms()]
    spread = np.isnan(visited.lag_fs)
    found = []
    if spread.any():
        found += _on_the_way(evidence, run, visited, error, spread, where, names)
    else:
        reason = "every replica was stopped within its first 20 fs"
        found += [absent(row, where, reason) for row in (FORCE_RMSE, EXCURSION)]
    if spread.all():
        reason = "no replica was stopped"
        if run.events:
            reason = "the replicas that were stopped left no frame"
        found.append(absent(BEFORE_FAILURE, where, reason))
    else:
        found.append(_before_failure(run, visited, error, ~spread, where, names))
    return found


def _labeller(evidence: Evidence) -> tuple[Callable[[Float], Float] | None, str]:
    """What gives the teacher's forces, eV/angstrom, at positions in angstrom; or why none does."""
    system, named = evidence.system, evidence.teacher
    if named is not None:
        unserved = named.unsupported(system)
        if unserved is not None:
            return None, unserved

        def by_named(positions: Float) -> Float:
            _, forces = named.evaluate(system, positions * NM_PER_ANGSTROM)
            return forces * EV_ANGSTROM_PER_KJMOL_NM

        return by_named, ""
    reason = _not_comparable(evidence)
    if reason is not None:
        return None, reason
    try:
        teacher = _teacher()
    except MissingPackageError as missing:
        return None, str(missing)
    return lambda positions: teacher.label(system.species, positions)[1], ""


def _not_comparable(evidence: Evidence) -> str | None:
    from omm_mlff.teachers.ani import TEACHER_NAME, TEACHER_SPECIES

    system = evidence.system
    reference = system.reference
    if reference is None or reference.method != TEACHER_NAME:
        method = "has no labels" if reference is None else f"has labels by {reference.method}"
        return (
            f"system {system.name!r} {method}: nothing says that its forces should be "
            f"those of {TEACHER_NAME}; a method is named with --teacher"
        )
    if system.periodic or system.charge or system.spin_multiplicity != 1:
        return f"{TEACHER_NAME} is asked about neutral molecules in vacuum only"
    if not set(system.species.tolist()) <= set(TEACHER_SPECIES):
        return f"{TEACHER_NAME} knows H, C, N and O only"
    return None


@functools.lru_cache(maxsize=1)
def _teacher() -> Teacher:
    from omm_mlff.teachers.ani import Teacher

    return Teacher()


def _on_the_way(
    evidence: Evidence,
    run: RunRecord,
    visited: Visited,
    error: Float,
    spread: NDArray[np.bool_],
    where: Where,
    names: list[str],
) -> list[Measurement]:
    estimate = rmse(error[spread], visited.replica[spread])
    norms = np.linalg.norm(error, axis=2) * spread[:, None]
    frame, atom = np.unravel_index(int(norms.argmax()), norms.shape)
    replica = int(visited.replica[frame])
    cause = (
        f"largest on {names[atom]}, {norms[frame, atom]:.2g} eV/angstrom in replica {replica} "
        f"at {visited.time_ps[frame]:.3g} ps"
    )
    spot = dataclasses.replace(where, replica=replica, atoms=(int(atom),))
    found = [sampled(FORCE_RMSE, estimate, spot, cause)]
    if evidence.evaluator is None:
        reason = "the potential is not loaded, only its runs are"
        return [*found, absent(EXCURSION, where, reason)]
    reference = evidence.system.reference
    if reference is None:
        reason = f"system {evidence.system.name!r} has no labelled frames to compare with"
        return [*found, absent(EXCURSION, where, reason)]
    distance = np.abs(reference.temperature_K - run.spec.temperature_K)
    if (
        np.isfinite(distance).any()
        and np.nanmin(distance) > NEAR_IN_TEMPERATURE * run.spec.temperature_K
    ):
        reason = f"no labelled frame is near {run.spec.temperature_K:g} K"
        return [*found, absent(EXCURSION, where, reason)]
    nearest = nearest_in_temperature(reference, run.spec.temperature_K)
    _, forces = evidence.evaluator.evaluate(reference.positions[nearest])
    labelled = (forces - reference.forces[nearest]) * EV_ANGSTROM_PER_KJMOL_NM
    square = (labelled**2).mean(axis=(1, 2))
    promised = jackknife(
        lambda frames: float(np.sqrt(square[frames].mean())),
        blocks_of_frames(reference.trajectory[nearest]),
    )
    words = f"{estimate.value:.3g} eV/angstrom against {promised.value:.3g} on labelled frames at "
    at = reference.temperature_K[nearest[0]]
    words += f"{at:g} K; {cause}" if np.isfinite(at) else f"a temperature not known; {cause}"
    return [*found, sampled(EXCURSION, ratio(estimate, promised), spot, words)]


def _before_failure(
    run: RunRecord,
    visited: Visited,
    error: Float,
    last: NDArray[np.bool_],
    where: Where,
    names: list[str],
) -> Measurement:
    estimate = rmse(error[last], visited.replica[last])
    course, lags = [], []
    for lag in LAGS_FS:
        rows = visited.lag_fs == lag
        if rows.any():
            course.append(f"{float(np.sqrt((error[rows] ** 2).mean())):.2g}")
            lags.append(f"{lag:g}")
    first = int(visited.replica[last][0])
    end = np.flatnonzero(last & (visited.replica == first))[-1]
    atom = int(np.linalg.norm(error[end], axis=1).argmax())
    n_stopped = len(run.events)
    followed = min(n_stopped, MAX_STOPPED)
    cause = (
        f"{', '.join(course)} eV/angstrom at {', '.join(lags)} fs before the stop, at last the "
        f"most on {names[atom]}; {followed} of {n_stopped} replicas that were stopped; "
        f"replica {first}: {run.events[first].detail}"
    )
    spot = dataclasses.replace(where, replica=first, atoms=(atom,))
    return sampled(BEFORE_FAILURE, estimate, spot, cause)


CHECK = Check(
    name="along",
    question="Is it right where it goes?",
    formula="rms(F - F_teacher) on the run's own frames, and over that on labelled frames",
    source="Smith et al., Nat. Commun. 10, 2903 (2019), for the teacher",
    declares=(FORCE_RMSE, EXCURSION, BEFORE_FAILURE),
    criteria=(
        *bounds(
            FORCE_RMSE,
            "10 kcal/mol/angstrom, at which accuracy.force_rmse rejects too: the trajectory is not "
            "one of the teacher's molecule",
            high=(None, 0.434),
        ),
        *bounds(
            EXCURSION,
            "1 where the run stays among frames like the labelled ones; at 3 the error that the "
            "labels promise is a third of what production meets",
            high=(3.0, None),
        ),
    ),
    needs=frozenset({"runs"}),
    take=for_each_run(_of_run),
    use=REFERENCE_FORCES,
    explained_by=SPOILS_SURFACE,
    symptom=Symptom.ACCURACY,
)
