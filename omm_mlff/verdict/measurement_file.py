"""What a campaign leaves for the judge: `measurements.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omm_mlff.errors import InputError
from omm_mlff.record.documents import parsed
from omm_mlff.schema import (
    Criterion,
    Declaration,
    Measurement,
    PotentialCard,
    RunSpec,
    Where,
    finite,
)
from omm_mlff.verdict.profiles import Scope, load_profile
from omm_mlff.verdict.provenance import ValidationProvenance


@dataclass(frozen=True)
class Planned:
    """A measurement that the campaign expected; what `where` leaves open matches anything."""

    measurement: str
    where: Where

    def covers(self, measurement: Measurement) -> bool:
        """Whether this is the measurement that was expected."""
        return measurement.name == self.measurement and all(
            expected is None or expected == () or expected == getattr(measurement.where, name)
            for name, expected in vars(self.where).items()
        )


@dataclass(frozen=True)
class MeasurementFile:
    """What a campaign leaves for the judge: the content of `measurements.json`, schema 1.

    Attributes
    ----------
    card : of the potential; its dtype decides which bounds apply
    declarations, default_criteria : of the checks that were there
    planned : what the campaign expected to be measured
    runs : as they were planned, by the name under which they were measured, which differs where a
        run was extended; none in a file from before they were kept
    """

    card: PotentialCard
    scope: Scope
    declarations: tuple[Declaration, ...]
    default_criteria: tuple[Criterion, ...]
    planned: tuple[Planned, ...]
    measurements: tuple[Measurement, ...]
    provenance: ValidationProvenance = field(default_factory=ValidationProvenance)
    runs: Mapping[str, RunSpec] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        content = {
            "schema": 1,
            "card": dataclasses.asdict(self.card),
            "profile": self.scope.profile,
            "scope": self.scope.to_json(),
            "declarations": [dataclasses.asdict(item) for item in self.declarations],
            "default_criteria": [item.to_json() for item in self.default_criteria],
            "planned": [dataclasses.asdict(item) for item in self.planned],
            "runs": {name: spec.to_json() for name, spec in self.runs.items()},
            "measurements": [item.to_json() for item in self.measurements],
            "provenance": self.provenance.to_json(),
        }
        return dict(finite(content))

    def write(self, path: Path) -> None:
        """Writes the measurement file."""
        text = json.dumps(self.to_json(), indent=2, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MeasurementFile:
        if data["schema"] != 1:
            raise ValueError(f"schema {data['schema']!r}, wanted 1")
        scope = data.get("scope")
        return cls(
            card=parsed(PotentialCard, data["card"]),
            scope=Scope.from_json(scope) if scope else load_profile(data["profile"]).scope,
            declarations=tuple(Declaration.from_json(item) for item in data["declarations"]),
            default_criteria=tuple(Criterion.from_json(item) for item in data["default_criteria"]),
            planned=tuple(
                Planned(item["measurement"], Where.from_json(item["where"]))
                for item in data["planned"]
            ),
            measurements=tuple(Measurement.from_json(item) for item in data["measurements"]),
            provenance=parsed(ValidationProvenance, data["provenance"]),
            runs={name: RunSpec.from_json(item) for name, item in data.get("runs", {}).items()},
        )

    @classmethod
    def read(cls, path: Path) -> MeasurementFile:
        """The content of a measurement file.

        Raises
        ------
        InputError : it is missing, or no measurement file of schema 1
        """
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise InputError(f"no measurements at {path}; run `omm-mlff validate` first") from None
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is no measurement file of schema 1: {error!r}") from error
