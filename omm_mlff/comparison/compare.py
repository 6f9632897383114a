"""Puts finished validations side by side."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from omm_mlff.comparison.finished import Finished, read_finished
from omm_mlff.comparison.forecast import Forecast
from omm_mlff.comparison.rows import Row, as_table, rows_of
from omm_mlff.errors import InputError
from omm_mlff.schema import RunSpec


@dataclass(frozen=True)
class Difference:
    """Something in which the compared validations are not alike, beside the model.

    Attributes
    ----------
    what : such as "platform"
    values : by label of the model
    """

    what: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class Comparison:
    """Finished validations side by side.

    Attributes
    ----------
    models : by label, in the order given
    rows : what was measured and what follows, model by model. Timings are each of its own time
        and load: of two models they say nothing, `omm-mlff bench` times them side by side
    differences : what else differs between the validations
    forecast : None where none was given
    """

    models: Mapping[str, Finished]
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    forecast: Forecast | None = None

    @property
    def table(self) -> pd.DataFrame:
        """One line for every row."""
        return as_table(self.rows)

    @property
    def policies(self) -> list[str]:
        """Every policy that a model was judged by; those asked for come first."""
        asked = [finished.policy for finished in self.models.values()]
        judged = [name for finished in self.models.values() for name in finished.verdicts]
        return list(dict.fromkeys(asked + judged))

    def planned_run(self, name: str) -> RunSpec | None:
        """A run as it was planned, by its name; None where no validation has kept that."""
        for finished in self.models.values():
            for spec in finished.measured.runs.values():
                if spec.name == name:
                    return spec
        return None

    @property
    def systems(self) -> dict[str, list[str]]:
        """Labels of the models that were asked each system, in order."""
        found: dict[str, list[str]] = {}
        for row in self.rows:
            if row.system and row.model not in found.setdefault(row.system, []):
                found[row.system].append(row.model)
        return found

    def select(self, quantity: str, model: str | None = None) -> list[Row]:
        """The rows of one quantity, of one model or of all."""
        return [
            row
            for row in self.rows
            if row.quantity == quantity and (model is None or row.model == model)
        ]


def compare(folders: Sequence[str | Path], forecast: Forecast | None = None) -> Comparison:
    """Put the validations in some folders side by side.

    Parameters
    ----------
    folders : of finished validations; a model that appears twice is called as its folder

    Raises
    ------
    InputError : a folder that holds no finished validation, one given twice, or a forecast under
        a policy by which nobody was judged
    """
    if not folders:
        raise InputError("nothing to compare: give the folder of a finished validation, or more")
    paths = [Path(folder) for folder in folders]
    resolved = [path.resolve() for path in paths]
    for path, count in Counter(resolved).items():
        if count > 1:
            raise InputError(f"{path} is given twice; give every validation once")
    found = [read_finished(path) for path in paths]
    models = dict(zip(_labels(found), found, strict=True))
    rows = [row for label, finished in models.items() for row in rows_of(label, finished)]
    comparison = Comparison(
        models=models,
        rows=tuple(rows),
        differences=_differences(models),
        forecast=forecast,
    )
    if forecast is not None and forecast.policy not in comparison.policies:
        raise InputError(
            f"the forecast is of policy {forecast.policy!r}, by which no model was judged "
            f"(judged by: {', '.join(comparison.policies)})"
        )
    return comparison


def folder_name(label: str) -> str:
    """A label as a folder of that name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", label).strip(".") or "_"


def _labels(found: Sequence[Finished]) -> list[str]:
    """Names of the models; for one that appears twice, as much of its folder as is needed."""
    depth = [0] * len(found)
    while True:
        labels = []
        for finished, parts in zip(found, depth, strict=True):
            tail = finished.folder.resolve().parts[-parts:]
            labels.append("/".join(tail).replace("//", "/") if parts else finished.model)
        seen = Counter(folder_name(label).lower() for label in labels)
        same = [i for i, label in enumerate(labels) if seen[folder_name(label).lower()] > 1]
        if not same:
            return labels
        if all(depth[i] >= len(found[i].folder.resolve().parts) for i in same):
            raise InputError(f"cannot tell apart: {', '.join(labels)}; rename a folder")
        for i in same:
            depth[i] += 1


def _differences(models: Mapping[str, Finished]) -> tuple[Difference, ...]:
    conditions = {label: _conditions(finished) for label, finished in models.items()}
    names = dict.fromkeys(name for found in conditions.values() for name in found)
    differences = []
    for name in names:
        values = {label: found.get(name, "none") for label, found in conditions.items()}
        if len(set(values.values())) > 1:
            differences.append(Difference(name, _without_common(values)))
    return tuple(differences)


def _without_common(values: Mapping[str, str]) -> dict[str, str]:
    """Lists in words, less the items that stand in every one of them."""
    items = {label: value.split(", ") for label, value in values.items()}
    common = set.intersection(*(set(listed) for listed in items.values()))
    return {
        label: ", ".join(item for item in listed if item not in common) or "nothing more"
        for label, listed in items.items()
    }


def _conditions(finished: Finished) -> dict[str, str]:
    """What ought to be alike for a fair comparison, in words."""
    provenance = finished.provenance
    measurements = finished.measured.measurements
    systems = dict.fromkeys(row.where.system for row in measurements if row.where.system)
    runs = dict.fromkeys(row.where.run for row in measurements if row.where.run)
    found: dict[str, Any] = {
        "profile": finished.profile,
        "policy": finished.policy,
        "systems": ", ".join(systems),
        "runs": ", ".join(sorted(runs)),
        "seed": provenance.seed,
        "platform": provenance.platform,
        "precision": provenance.precision,
        "force": provenance.force,
        "recording": provenance.recording,
        "dtype of the model": finished.measured.card.dtype,
        "torch threads": ", ".join(
            str(count) for count in sorted({run.torch_threads or 0 for run in finished.runs})
        ),
    }
    for system, method in provenance.reference.items():
        found[f"labels of {system}"] = method
    for package, version in provenance.versions.items():
        found[f"version of {package}"] = version
    return {name: "none" if value in (None, "") else str(value) for name, value in found.items()}
