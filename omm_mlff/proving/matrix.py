"""Every kind at every strength, and the known-good ones with many seeds: who is caught by what."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from omm_mlff.campaign.workers import spread
from omm_mlff.errors import InputError, UnknownNameError
from omm_mlff.proving.attempt import FAILED, Attempt, Task, attempt
from omm_mlff.proving.good import KNOWN_GOOD, KnownGood, good_names
from omm_mlff.proving.kinds import KINDS, Kind, kind_names

REJECTED = "REJECTED"
SHORT_STRENGTHS = 2  # gross, and the next
SEED = 0  # of the known-bad ones

Progress = Callable[[str, int, int], None]
"""Called with what is done, how many are done, and how many there are."""


@dataclass(frozen=True)
class BadRow:
    """A kind at one strength.

    Attributes
    ----------
    gross : it is the kind's grossest setting
    cause_right : the first cause that was named is the kind's; None where it was not caught
    """

    kind: Kind
    attempt: Attempt
    gross: bool

    @property
    def strength(self) -> float:
        assert self.attempt.task.strength is not None
        return self.attempt.task.strength

    @property
    def cause_right(self) -> bool | None:
        if not self.attempt.caught:
            return None
        return self.attempt.cause == self.kind.cause

    @property
    def as_it_must_be(self) -> bool:
        """A gross fault is rejected with the right cause named; a subtle one may slip through."""
        return not self.gross or (self.attempt.verdict == REJECTED and bool(self.cause_right))


@dataclass(frozen=True)
class GoodRow:
    """A known-good potential over its seeds."""

    good: KnownGood
    attempts: tuple[Attempt, ...]

    @property
    def verdicts(self) -> dict[str, int]:
        """How often each verdict was given."""
        return dict(Counter(item.verdict for item in self.attempts))

    @property
    def n_rejected(self) -> int:
        return sum(item.verdict in (REJECTED, FAILED) for item in self.attempts)

    @property
    def alarms(self) -> dict[tuple[str, str], int]:
        """In how many seeds each criterion failed, by severity and name; reject first."""
        counted = Counter(
            key
            for item in self.attempts
            for key in {(alarm.severity, alarm.criterion) for alarm in item.alarms}
        )
        return dict(sorted(counted.items(), key=lambda row: (row[0][0] != "reject", -row[1])))


@dataclass(frozen=True)
class Reach:
    """The smallest strength of a kind that is still caught, and still rejected; None for never."""

    kind: Kind
    tried: tuple[float, ...]
    caught: float | None
    rejected: float | None


@dataclass(frozen=True)
class Matrix:
    """What the proving ground came to."""

    bad: tuple[BadRow, ...]
    good: tuple[GoodRow, ...]

    @property
    def passed(self) -> bool:
        """Every gross fault is rejected with the right cause, nothing good is rejected."""
        return all(row.as_it_must_be for row in self.bad) and not any(
            row.n_rejected for row in self.good
        )

    @property
    def reach(self) -> tuple[Reach, ...]:
        """For every kind, in order."""
        kinds = dict.fromkeys(row.kind for row in self.bad)
        return tuple(self._reach(kind) for kind in kinds)

    def _reach(self, kind: Kind) -> Reach:
        rows = [row for row in self.bad if row.kind is kind]
        caught = [row.strength for row in rows if row.attempt.caught]
        rejected = [row.strength for row in rows if row.attempt.verdict == REJECTED]
        tried = tuple(row.strength for row in rows)
        return Reach(
            kind, tried, caught[-1] if caught else None, rejected[-1] if rejected else None
        )


def prove(
    *,
    short: bool = False,
    names: Sequence[str] = (),
    seeds: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Matrix:
    """Put every potential of known truth through validation.

    Parameters
    ----------
    short : two strengths of each kind, one or two seeds of each known-good potential, no teacher
    names : of kinds and known-good potentials, in place of all
    seeds : of each known-good potential, in place of its own number
    workers : processes of one thread each; by default as many as there are processors

    Raises
    ------
    UnknownNameError : a name that is neither a kind nor a known-good potential
    InputError : a number of seeds or workers below 1
    """
    known = [*kind_names(), *good_names()]
    for name in names:
        if name not in known:
            raise UnknownNameError("potential of the proving ground", name, known)
    for what, number in (("seeds", seeds), ("workers", workers)):
        if number is not None and number < 1:
            raise InputError(f"the number of {what} must be 1 or more, got {number}")
    kinds = [kind for kind in KINDS if not names or kind.name in names]
    good = [item for item in KNOWN_GOOD if not names or item.name in names]
    bad_tasks = [
        (kind, Task(kind.name, strength, SEED))
        for kind in kinds
        for strength in kind.strengths[: SHORT_STRENGTHS if short else None]
    ]
    good_tasks = [
        (item, [Task(item.name, None, seed) for seed in range(_n_seeds(item, short, seeds, names))])
        for item in good
    ]
    tasks = [task for _, task in bad_tasks] + [task for _, own in good_tasks for task in own]
    done: dict[Task, Attempt] = {}
    for finished in spread(attempt, tasks, workers or _processors(), prepare=_one_thread):
        done[finished.task] = finished
        if progress is not None:
            progress(_label(finished), len(done), len(tasks))
    return Matrix(
        bad=tuple(
            BadRow(kind, done[task], gross=task.strength == kind.strengths[0])
            for kind, task in bad_tasks
        ),
        good=tuple(
            GoodRow(item, tuple(done[task] for task in own)) for item, own in good_tasks if own
        ),
    )


def _n_seeds(good: KnownGood, short: bool, seeds: int | None, names: Sequence[str]) -> int:
    own = good.short_seeds if short else good.seeds
    if not own and good.name in names:
        own = 1
    return seeds if seeds is not None and own else own


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _label(finished: Attempt) -> str:
    task = finished.task
    what = f"{task.strength:g}" if task.strength is not None else f"seed {task.seed}"
    return f"{task.name} {what}: {finished.verdict}"
