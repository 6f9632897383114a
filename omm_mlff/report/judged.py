"""What every report is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omm_mlff.schema import Cause, ExplainedFailure, Verdict


@dataclass(frozen=True)
class Judged:
    """The verdicts on one potential, with what is needed to repeat them.

    Attributes
    ----------
    model : the potential's card, as JSON
    profile : its name
    policy : the one whose verdict counts, a key of `verdicts`
    verdicts : by policy
    provenance : versions, device, hashes, seed; "command" repeats the validation
    diagnosis : what the failures under `policy` come from, the first cause first
    failures : what happened in the runs behind them, replica by replica
    """

    model: Mapping[str, Any]
    profile: str
    policy: str
    verdicts: Mapping[str, Verdict]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    diagnosis: tuple[Cause, ...] = ()
    failures: tuple[ExplainedFailure, ...] = ()

    def __post_init__(self) -> None:
        if self.policy not in self.verdicts:
            raise ValueError(f"policy {self.policy!r} was not judged ({', '.join(self.verdicts)})")

    @property
    def verdict(self) -> Verdict:
        """The one that counts."""
        return self.verdicts[self.policy]

    @property
    def others(self) -> list[Verdict]:
        """The verdicts under the other policies."""
        return [verdict for name, verdict in self.verdicts.items() if name != self.policy]
