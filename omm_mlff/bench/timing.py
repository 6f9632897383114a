"""Times several ways of doing the same work against each other.

A machine is never quiet for long, and never twice the same. So ways are timed in rounds: every
round runs a block of each way, in an order that changes, and what is compared are the blocks of one
round. Medians over rounds, with intervals that assume nothing of the noise's distribution.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import psutil
from scipy.stats import quantile_test

from omm_mlff.errors import AnalysisError

SPREAD_LIMIT = 0.10
"""Half of the interquartile range over the median, beyond which a timing concludes nothing."""

BUSY_LIMIT = 0.25
"""Share of the cores at work before the start, beyond which others use this machine."""

_LEVEL = 0.95
_CALIBRATION_S = 0.05
_MOST_AT_ONCE = 1000
_MOMENT_S = 0.5


class Way(Protocol):
    """One way of running a potential on a system.

    Attributes
    ----------
    name : unique among the ways that are timed together
    n_replicas : how many copies of the system take a step at once
    """

    name: str
    n_replicas: int

    def run(self, n_steps: int) -> float:
        """Take so many steps more; seconds that they took."""

    def close(self) -> None:
        """Give back what it holds."""


@dataclass(frozen=True)
class Interval:
    """A median with its confidence interval by order statistics, at 95% or the widest there is."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Timing:
    """Seconds a step of one way, round by round.

    Attributes
    ----------
    n_replicas : copies that take each step
    n_steps : of each block
    seconds : shape (n_rounds,), a step of all replicas
    """

    way: str
    n_replicas: int
    n_steps: int
    seconds: tuple[float, ...]

    @property
    def step(self) -> Interval:
        """Seconds a step of all replicas."""
        return median(self.seconds)

    @property
    def replica_step(self) -> float:
        """Seconds a step of one replica, its share of the work of all."""
        return self.step.value / self.n_replicas

    @property
    def spread(self) -> float:
        """Half of the interquartile range over the median."""
        lower, middle, upper = np.percentile(self.seconds, [25, 50, 75])
        return float(0.5 * (upper - lower) / middle)

    @property
    def conclusive(self) -> bool:
        """Whether the machine was quiet enough."""
        return self.spread <= SPREAD_LIMIT


def median(values: Sequence[float]) -> Interval:
    """Median and its interval between two of the values, the outermost where they are few.

    References
    ----------
    Conover, Practical Nonparametric Statistics, 3rd ed., Wiley, 1999, section 3.2.
    """
    middle = float(np.median(values))
    found = quantile_test(np.asarray(values), q=middle, p=0.5).confidence_interval(_LEVEL)
    if math.isnan(found.low):
        return Interval(middle, float(min(values)), float(max(values)))
    return Interval(middle, float(found.low), float(found.high))


def speedup(slow: Timing, fast: Timing) -> Interval:
    """How many times as many replica-steps a second, by the rounds that both were timed in."""
    ratios = np.array(slow.seconds) / slow.n_replicas / (np.array(fast.seconds) / fast.n_replicas)
    return median(ratios.tolist())


def time_ways(
    ways: Sequence[Way],
    *,
    n_rounds: int,
    block_s: float,
    seed: int = 0,
    failed: dict[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Timing]:
    """Time ways against each other.

    Parameters
    ----------
    ways : ready to run
    n_rounds : blocks of each way; from six on the interval of a median has 95%
    block_s : about how long a block takes
    seed : of the order within each round
    failed : receives the names of ways that cannot be timed, and why; without it they end it all
    progress : called with rounds done and rounds in all

    Returns
    -------
    by the ways' names, in their order, without those that failed
    """
    failures: dict[str, str] = {}
    steps: dict[str, int] = {}
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}

    @contextlib.contextmanager
    def tried(way: Way) -> Iterator[None]:
        try:
            yield
        except AnalysisError as error:
            if failed is None:
                raise
            failures[way.name] = str(error)

    for way in ways:
        with tried(way):
            steps[way.name] = _steps_in(way, block_s)
    rng = np.random.default_rng(seed)
    for done in range(n_rounds):
        for k in rng.permutation(len(ways)):
            way = ways[k]
            if way.name in failures:
                continue
            with tried(way):
                seconds[way.name].append(way.run(steps[way.name]) / steps[way.name])
        if progress is not None:
            progress(done + 1, n_rounds)
    if failed is not None:
        failed |= failures
    return {
        way.name: Timing(way.name, way.n_replicas, steps[way.name], tuple(seconds[way.name]))
        for way in ways
        if way.name not in failures
    }


def _steps_in(way: Way, block_s: float) -> int:
    """How many steps a block has, found by trying; this warms the way up as well."""
    enough = min(_CALIBRATION_S, block_s)
    n_steps, seconds = 1, way.run(1)
    while seconds < enough:
        n_steps = max(2 * n_steps, round(n_steps * enough / max(seconds, enough / _MOST_AT_ONCE)))
        seconds = way.run(n_steps)
    return max(1, round(n_steps * block_s / seconds))


def load_per_core() -> float:
    """Processes that wanted a core during the last minute, per core; this one counts as well."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def busy_now() -> float:
    """Share of the cores that are at work while this process waits for a moment.

    The load of the last minute would not do: it still tells of what this process, or the benchmark
    before it, did itself.
    """
    return float(psutil.cpu_percent(interval=_MOMENT_S)) / 100.0


def inconclusive(timings: Mapping[str, Timing]) -> str:
    """One line on why nothing can be concluded; empty where it can."""
    wide = {name: timing.spread for name, timing in timings.items() if not timing.conclusive}
    if not wide:
        return ""
    worst = max(wide, key=lambda name: wide[name])
    return (
        f"the machine is too loaded to conclude: the spread of {worst} is {wide[worst]:.0%} of its "
        f"median (wanted {SPREAD_LIMIT:.0%} or less)"
        + (f", and {len(wide) - 1} more are too wide" if len(wide) > 1 else "")
        + "; repeat it when nothing else runs"
    )
