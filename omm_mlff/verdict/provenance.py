"""What a validation depends on: the `provenance` of `measurements.json` and `verdict.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from omm_mlff.schema import EXACT_KEYS, finite


@dataclass(frozen=True)
class SimulatedRun:
    """Where a run was computed, and the picoseconds of all of its replicas."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    platform: str
    simulated_ps: float


@dataclass(frozen=True)
class ValidationProvenance:
    """What a validation depends on; None where that is not known, or was not kept yet.

    Attributes
    ----------
    versions : of packages, by name
    platform, precision, force, engine, recording : of the first run, see `RunProvenance`
    notices : of all runs
    runs : by name
    reference : the method of the labels, by system; None where there are none
    command : repeats the validation
    date : of the verdict, ISO 8601
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    versions: Mapping[str, str] = field(default_factory=dict)
    platform: str | None = None
    precision: str | None = None
    force: str | None = None
    engine: str | None = None
    recording: str | None = None
    notices: tuple[str, ...] = ()
    seed: int | None = None
    runs: Mapping[str, SimulatedRun] = field(default_factory=dict)
    reference: Mapping[str, str | None] = field(default_factory=dict)
    command: str | None = None
    date: str | None = None

    @property
    def methods(self) -> list[str]:
        """The methods of the labels, sorted."""
        return sorted({method for method in self.reference.values() if method})

    def to_json(self) -> dict[str, Any]:
        """The content of the files; without command and date where there is no verdict yet."""
        content = dict(finite(dataclasses.asdict(self)))
        return {
            key: value
            for key, value in content.items()
            if value is not None or key not in ("command", "date")
        }
