"""What every report is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from omm_mlff.schema import Cause, ExplainedFailure, PotentialCard, Verdict
from omm_mlff.verdict.provenance import ValidationProvenance


@dataclass(frozen=True)
class Judged:
    """The verdicts on one potential, with what is needed to repeat them.

    Attributes
    ----------
    model : the potential's card
    profile : its name
    policy : the one whose verdict counts, a key of `verdicts`
    verdicts : by policy
    provenance : what it depends on, and the command that repeats it
    diagnosis : what the failures under `policy` come from, the first cause first
    failures : what happened in the runs behind them, replica by replica
    """

    model: PotentialCard
    profile: str
    policy: str
    verdicts: Mapping[str, Verdict]
    provenance: ValidationProvenance = field(default_factory=ValidationProvenance)
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
