"""One benchmark against an earlier one: what got slower beyond the noise of both.

On the machine where the earlier one ran, seconds a step are compared; on another, only ratios to
the yardstick of the same run, which is the script without this package on the same machine.

A way has got slower when its interval lies wholly on the slow side of the earlier one's, and the
medians differ by more than both spreads together, and by more than `LEAST`. A way whose spread is
too wide, now or then, is undecided.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from omm_mlff.bench.rows import BenchDocument
from omm_mlff.bench.timing import SPREAD_LIMIT
from omm_mlff.errors import InputError

LEAST = 0.05
"""Relative change below which nothing is called a regression, however quiet the machine."""

Change = Literal["slower", "faster", "same", "undecided"]


@dataclass(frozen=True)
class Row:
    """One way, then and now.

    Attributes
    ----------
    before, after : ms a step; on another machine the yardstick's time over it, turned over so that
        more is slower
    factor : after over before; above 1 is slower
    """

    model: str
    system: str
    way: str
    before: float
    after: float
    factor: float
    change: Change


@dataclass(frozen=True)
class BenchComparison:
    """All that both have.

    Attributes
    ----------
    measure : what is compared, in words
    missing : ways that only one of them has
    """

    measure: str
    rows: tuple[Row, ...]
    missing: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """1 where something got slower, 3 where nothing did and something is undecided, else 0."""
        changes = {row.change for row in self.rows}
        return 1 if "slower" in changes else 3 if "undecided" in changes else 0


def compare(old: BenchDocument, new: BenchDocument) -> BenchComparison:
    """Hold a benchmark against an earlier one.

    Raises
    ------
    InputError : they have nothing in common
    """
    same_machine = _machine(old) == _machine(new)
    before, after = dict(_ways(old, same_machine)), dict(_ways(new, same_machine))
    common = [key for key in after if key in before]
    if not common:
        raise InputError(
            "the two benchmarks have no way, model and system in common; "
            "wanted one of the same --model and --system"
        )
    missing = sorted(" ".join(key) for key in before.keys() ^ after.keys())
    measure = "ms a step" if same_machine else "time over the yardstick's of the same run"
    rows = [_row(key, before[key], after[key]) for key in common]
    return BenchComparison(measure, tuple(rows), tuple(missing))


def require_common(old: BenchDocument, asked: Iterable[tuple[str, str]]) -> None:
    """See that a benchmark that is about to run can be held against an earlier one.

    Parameters
    ----------
    asked : models and systems, as results name them

    Raises
    ------
    InputError : it has nothing in common with the earlier one
    """
    known = {(result.model, result.system) for result in old.results}
    wanted = set(asked)
    if not known & wanted:
        raise InputError(
            f"the earlier benchmark timed {_listed(known)}, and {_listed(wanted)} is asked for; "
            "name a --model and a --system that it has"
        )


def _listed(pairs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{model} on {system}" for model, system in sorted(pairs)) or "nothing"


@dataclass(frozen=True)
class _Cost:
    value: float
    low: float
    high: float
    spread: float


def _row(key: tuple[str, str, str], before: _Cost, after: _Cost) -> Row:
    factor = after.value / before.value
    noise = max(LEAST, before.spread + after.spread)
    change: Change
    if max(before.spread, after.spread) > SPREAD_LIMIT:
        change = "undecided"
    elif factor > 1.0 + noise and after.low > before.high:
        change = "slower"
    elif factor < 1.0 / (1.0 + noise) and after.high < before.low:
        change = "faster"
    else:
        change = "same"
    return Row(*key, before.value, after.value, factor, change)


def _machine(document: BenchDocument) -> tuple[str, ...]:
    found = document.provenance
    where = (found.processor, found.device, found.cores, dict(found.threads), found.platform)
    return tuple(map(str, where))


def _ways(
    document: BenchDocument, same_machine: bool
) -> Iterator[tuple[tuple[str, str, str], _Cost]]:
    for result in document.results:
        if same_machine:
            for row in result.ways:
                if row.way == "yardstick":
                    continue  # the script is not this package's
                key = (result.model, result.system, f"{row.way} x{row.n_replicas}")
                yield key, _Cost(**vars(row.ms_per_step), spread=row.spread)
            continue
        spreads = {row.way: row.spread for row in result.ways}
        for ratio in result.ratios:
            if ratio.slow == "yardstick":
                key = (result.model, result.system, ratio.fast)
                spread = max(spreads["yardstick"], spreads[ratio.fast])
                yield key, _Cost(1 / ratio.value, 1 / ratio.high, 1 / ratio.low, spread)
