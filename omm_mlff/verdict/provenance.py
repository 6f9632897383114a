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
class LabelsUsed:
    """Labels that a user has brought, and what was said of them.

    Attributes
    ----------
    units : as they were taken
    held_out : "yes", "no" or "unknown", by the user's word
    zero_of_energy : what was done with the constant between two methods
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    file: str
    sha256: str | None
    units: str
    method: str
    n_frames: int
    held_out: str
    zero_of_energy: str


@dataclass(frozen=True)
class TeacherUsed:
    """The method that a user has named for what no file has.

    Attributes
    ----------
    labels_differ_from_it_by : relative to the forces, by system; None where there are no labels
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    spec: str
    name: str
    sha256: str | None
    labels_differ_from_it_by: Mapping[str, float | None]


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
    labels : that the user has brought, by system
    teacher : that the user has named
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
    labels: Mapping[str, LabelsUsed] = field(default_factory=dict)
    teacher: TeacherUsed | None = None
    command: str | None = None
    date: str | None = None

    @property
    def methods(self) -> list[str]:
        """The methods of the labels, sorted."""
        return sorted({method for method in self.reference.values() if method})

    def to_json(self) -> dict[str, Any]:
        """The content of the files, without what there is not, such as a date at first."""
        content = dict(finite(dataclasses.asdict(self)))
        return {
            key: value
            for key, value in content.items()
            if value or key not in ("labels", "teacher", "command", "date")
        }
