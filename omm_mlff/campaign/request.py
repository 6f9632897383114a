"""What `campaign.json` says: what was asked for. A resumed campaign must ask for the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from omm_mlff.schema import EXACT_KEYS
from omm_mlff.verdict.profiles import PlannedRun


@dataclass(frozen=True)
class CampaignRequest:
    """Everything that the runs of a campaign depend on.

    Attributes
    ----------
    model : its spec
    sha256 : of the model's content
    profile : its name
    systems : what each system's content comes to, by its spec
    labels : of those that the user has brought, what they come to, by the system's spec
    teacher : spec and content of the method that the user has named
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    model: str
    sha256: str | None
    profile: str
    systems: Mapping[str, str]
    runs: tuple[PlannedRun, ...]
    seed: int
    platform: str
    labels: Mapping[str, str] = field(default_factory=dict)
    teacher: tuple[str, str | None] | None = None

    def differs_in(self, other: CampaignRequest) -> list[str]:
        """Names of what the two do not agree on, sorted."""
        return sorted(name for name, value in vars(self).items() if value != vars(other)[name])
