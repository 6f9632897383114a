"""What `status.json` in a run directory says: how far the run is, what it cost, who was stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from omm_mlff.schema import EXACT_KEYS, Event

State = Literal["running", "interrupted", "complete"]

PaceRow = tuple[int, int, float, float]
"""Part of the run, steps completed, seconds a step, resident memory in MiB: see `Pace`."""


@dataclass(frozen=True)
class BatchStatus:
    """One batch of replicas, which run together.

    Attributes
    ----------
    replicas : the first and the last; None before it has begun
    wall_s : seconds that it took so far, recording included
    n_steps : that it took
    n_evaluations : how often the model ran; None where that was not counted
    pace : how fast it went
    new_random_streams : steps at which a thermostat's random numbers were begun anew
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    replicas: tuple[int, int] | None = None
    wall_s: float = 0.0
    n_steps: int = 0
    n_evaluations: int | None = None
    pace: tuple[PaceRow, ...] = ()
    new_random_streams: tuple[int, ...] = ()


@dataclass(frozen=True)
class RunStatus:
    """How a run stands.

    Attributes
    ----------
    n_steps : that each replica is to take
    batches : by their number, in which they run one after another
    events : why replicas were stopped, by replica
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    state: State
    n_steps: int
    batches: Mapping[int, BatchStatus]
    events: Mapping[int, Event]
