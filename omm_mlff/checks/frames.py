"""Which frames the static checks look at, and which frames of a run the dynamic ones use."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import Evidence
from omm_mlff.schema import ReferenceLabels
from omm_mlff.units import NM_PER_ANGSTROM, PS_PER_FS

if TYPE_CHECKING:
    from omm_mlff.record.rundir import ReplicaRecord, RunRecord

DISPLACEMENT_NM = 0.05 * NM_PER_ANGSTROM
"""Per coordinate, of frames made where there are no labelled ones: thermal, at some 300 K."""

AFTERMATH_PS = 20.0 * PS_PER_FS
"""This much before an event a replica is no longer in the state that it is a sample of: two
periods of the fastest vibration (O-H, 9 fs)."""

MIN_FRACTION = 0.5
"""A replica that was stopped counts where its frames cover this part of the run."""

MIN_FRAMES = 16
"""Fewer frames say nothing of a slope or a mean."""


def static_frames(evidence: Evidence, check: str, n_frames: int) -> NDArray[np.float64]:
    """Geometries at which a potential is examined, the same at every repetition.

    Reference frames where there are labels, spread evenly; else the system's own structure and
    seeded random displacements of it.

    Returns
    -------
    shape (at most n_frames, n_atoms, 3), nm
    """
    reference = evidence.system.reference
    if reference is not None and reference.n_frames:
        n = min(n_frames, reference.n_frames)
        chosen = np.linspace(0, reference.n_frames - 1, n).round().astype(np.int64)
        return reference.positions[chosen]
    shape = (n_frames, evidence.system.n_atoms, 3)
    noise = evidence.random(check).normal(size=shape) * DISPLACEMENT_NM
    noise[0] = 0.0
    return evidence.system.positions + noise


def nearest_in_temperature(reference: ReferenceLabels, temperature_K: float) -> NDArray[np.int64]:
    """The labelled frames whose temperature is nearest; all, where none says its temperature."""
    distance = np.abs(reference.temperature_K - temperature_K)
    if not np.isfinite(distance).any():
        return np.arange(reference.n_frames)
    return np.flatnonzero(distance == np.nanmin(distance))


@dataclass(frozen=True)
class Sample:
    """The frames of one replica that belong to the state that was sampled."""

    index: int
    replica: ReplicaRecord
    n_frames: int


def usable_replicas(run: RunRecord, min_frames: int = MIN_FRAMES) -> tuple[list[Sample], list[str]]:
    """The replicas that say something of the ensemble, and why the others do not.

    A replica that was stopped by an event is used up to `AFTERMATH_PS` before it, if that is at
    least `MIN_FRACTION` of the planned length; else it is left out. Either way the event itself
    counts in `stability.*`.

    Returns
    -------
    samples, and one line for every replica that was left out
    """
    kept, left_out = [], []
    for index in range(run.n_replicas):
        replica = run.replica(index)
        event = run.events.get(index)
        n_frames = replica.n_frames
        if event is not None:
            n_frames = int(np.searchsorted(replica.time, event.time_ps - AFTERMATH_PS))
            covered = n_frames * run.dt_ps
            if covered < MIN_FRACTION * run.spec.length_ps:
                left_out.append(
                    f"replica {index} stopped at {event.time_ps:.4g} ps ({event.detail})"
                )
                continue
        if n_frames < min_frames:
            left_out.append(f"replica {index} has {n_frames} frames, fewer than {min_frames}")
            continue
        kept.append(Sample(index, replica, n_frames))
    return kept, left_out


def in_words(left_out: list[str]) -> str:
    """One line for the replicas that were left out; empty where there are none."""
    if not left_out:
        return ""
    more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
    return f"left out: {left_out[0]}{more}"


def none_lasted(left_out: list[str]) -> str:
    """Why a run has nothing to measure: every replica was left out."""
    return f"no replica lasted long enough; {in_words(left_out)}; see stability.*"


def stretches(
    sample: Sample, n_frames: int, fields: tuple[str, ...], overlap: int = 0
) -> Iterator[dict[str, NDArray[np.float64]]]:
    """The frames of a sample piece by piece, so that memory does not grow with a run's length.

    What is yielded is not to be written to.

    Parameters
    ----------
    n_frames : at most so many new frames in a piece
    fields : such as "positions", "forces"
    overlap : so many last frames of a piece are repeated at the start of the next
    """
    seen = 0
    tail: dict[str, NDArray[np.float64]] | None = None
    for chunk in sample.replica.chunks(n_frames, fields):
        wanted = min(len(chunk[fields[0]]), sample.n_frames - seen)
        if wanted <= 0:
            return
        seen += wanted
        piece = {name: np.asarray(chunk[name][:wanted], dtype=np.float64) for name in fields}
        if tail is not None and overlap:
            piece = {name: np.concatenate((tail[name], piece[name])) for name in fields}
        tail = {name: piece[name][-overlap:] for name in fields} if overlap else None
        yield piece


def frames_longer_than(duration_ps: float, dt_ps: float) -> int:
    """How many consecutive frames last longer than a duration, at least one."""
    return math.floor(duration_ps / dt_ps + 1.0e-9) + 1
