"""What can be wrong with a replica, and in which order it is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

KINDS = (
    "overlap",
    "jump",
    "transfer",
    "broken-bond",
    "new-bond",
    "fragmentation",
    "evaporation",
    "drift",
    "heating",
    "cooling",
    "frozen",
    "raised",
    "nan",
)
"""Of two symptoms at one time, the one that stands first here is told first: the rest may follow
from it, it does not follow from them."""


@dataclass(frozen=True)
class Symptom:
    """One thing that is wrong with a replica.

    Attributes
    ----------
    kind : one of `KINDS`
    time_ps : of its onset
    atoms : the first atoms at fault; empty where it belongs to the whole
    value, unit : what was measured there
    sentence : for a person, with the place and without the replica
    """

    kind: str
    time_ps: float
    atoms: tuple[int, ...]
    value: float
    unit: str
    sentence: str

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def in_order(symptoms: Iterable[Symptom]) -> tuple[Symptom, ...]:
    """By time of onset; at one time, causes before consequences."""
    return tuple(sorted(symptoms, key=lambda item: (item.time_ps, KINDS.index(item.kind))))
