"""Reads the folder of one finished validation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omm_mlff.errors import InputError, RunDirectoryError
from omm_mlff.record.documents import parsed
from omm_mlff.record.rundir import RunRecord
from omm_mlff.record.status import RunStatus
from omm_mlff.schema import Finding, Reason, RunSpec, Verdict
from omm_mlff.verdict.measurement_file import MeasurementFile
from omm_mlff.verdict.provenance import ValidationProvenance

VERDICT_FILE = "verdict.json"
MEASUREMENTS_FILE = "measurements.json"
FINDINGS_FILE = "findings.csv"


@dataclass(frozen=True)
class FinishedRun:
    """What a run was, and what it cost.

    Attributes
    ----------
    planned : name of the run as it was planned, before any extension; also its folder
    spec : what was run in the end
    replica_steps : steps of single replicas, all together
    wall_s : seconds that they took, recording included
    torch_threads : that the process was allowed
    """

    planned: str
    spec: RunSpec
    replica_steps: int
    wall_s: float
    torch_threads: int | None

    @property
    def name(self) -> str:
        """As measurements name it."""
        return self.spec.name


@dataclass(frozen=True)
class Finished:
    """One validation, as it lies in its folder.

    Attributes
    ----------
    folder : of the validation
    policy : the one that was asked for
    verdicts : by policy
    measured : what they rest on
    provenance : what it depends on, and the command that repeats it
    runs : none where the run directories were not kept
    """

    folder: Path
    policy: str
    verdicts: Mapping[str, Verdict]
    measured: MeasurementFile
    provenance: ValidationProvenance
    runs: tuple[FinishedRun, ...]

    @property
    def model(self) -> str:
        """Name of the model, from its card."""
        return self.measured.card.name

    @property
    def n_parameters(self) -> int | None:
        """Of the model, where its card says so."""
        return self.measured.card.n_parameters

    @property
    def profile(self) -> str:
        """Name of the profile."""
        return self.measured.scope.profile

    def planned_name(self, run: str) -> str:
        """Name of a run before it was extended; the name itself where that is not known."""
        if run in self.measured.runs:
            return self.measured.runs[run].name
        return next((item.planned for item in self.runs if item.name == run), run)

    def length_ps(self, run: str) -> float | None:
        """How long a run was in the end; None where nothing says so."""
        places = (item.where for item in self.measured.measurements)
        return next((where.length_ps for where in places if where.run == run), None)


def read_finished(folder: str | Path) -> Finished:
    """What a validation has left.

    Raises
    ------
    InputError : the folder holds no finished validation, or files of two
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no folder {folder}; wanted one that `omm-mlff validate` wrote")
    data, verdicts, provenance = _verdicts(folder / VERDICT_FILE)
    measured = MeasurementFile.read(folder / MEASUREMENTS_FILE)
    for key in ("name", "sha256", "n_parameters"):
        judged, found = data["model"].get(key), getattr(measured.card, key)
        if judged != found:
            raise InputError(
                f"{folder}: {VERDICT_FILE} and {MEASUREMENTS_FILE} are of two models ({key} is "
                f"{judged!r} and {found!r}); validate again into a new folder"
            )
    if not (folder / FINDINGS_FILE).is_file():
        raise InputError(f"{folder} lacks {FINDINGS_FILE}; go on with it: validate --resume")
    return Finished(
        folder=folder,
        policy=data["policy"],
        verdicts={
            name: dataclasses.replace(
                verdict, findings=tuple(_completed(f, measured) for f in verdict.findings)
            )
            for name, verdict in verdicts.items()
        },
        measured=measured,
        provenance=provenance,
        runs=_runs(folder / "runs"),
    )


def _completed(finding: Finding, measured: MeasurementFile) -> Finding:
    """A finding from before its check and its reasons were kept, with what else tells of them."""
    if finding.check:
        return finding
    checks = {row.name: row.check for row in measured.declarations}
    excluded = measured.scope.excluded.get(finding.policy, {})
    reasons = (Reason.OUT_OF_SCOPE,) if finding.criterion in excluded else finding.reasons
    check = checks.get(finding.measurement, "")
    return dataclasses.replace(finding, check=check, reasons=reasons)


def _verdicts(path: Path) -> tuple[dict[str, Any], dict[str, Verdict], ValidationProvenance]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != 1:
            raise ValueError(f"schema {data['schema']!r}, wanted 1")
        findings = [Finding.from_json(item) for item in data["findings"]]
        verdicts = {
            policy: Verdict(policy, name, tuple(f for f in findings if f.policy == policy))
            for policy, name in data["policies"].items()
        }
        if data["policy"] not in verdicts:
            raise ValueError(f"no verdict under its policy {data['policy']!r}")
        for key in ("model", "provenance"):
            if not isinstance(data[key], dict):
                raise ValueError(f"{key} is no object")
        return data, verdicts, parsed(ValidationProvenance, data["provenance"])
    except FileNotFoundError:
        raise InputError(
            f"no verdict at {path}; an interrupted validation goes on with --resume"
        ) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no verdict of schema 1: {error!r}") from error


def _runs(folder: Path) -> tuple[FinishedRun, ...]:
    found = []
    for path in sorted(folder.glob("*/status.json")):
        try:
            record = RunRecord.open(path.parent)
            steps, wall_s = _cost(record.status)
        except RunDirectoryError as error:
            raise InputError(f"{path.parent} is no run directory: {error}") from error
        found.append(
            FinishedRun(
                planned=path.parent.name,
                spec=record.spec,
                replica_steps=steps,
                wall_s=wall_s,
                torch_threads=record.provenance.torch_threads,
            )
        )
    return tuple(found)


def _cost(status: RunStatus) -> tuple[int, float]:
    """Steps of single replicas, and the seconds that they took.

    A batch whose replicas have all stopped counts as run to its end; how often its energy was
    evaluated, where that was counted, tells how far it really came.
    """
    steps, seconds = 0, 0.0
    for batch in status.batches.values():
        if batch.replicas is None:
            continue
        first, last = batch.replicas
        n_steps = batch.n_steps
        if batch.n_evaluations is not None:
            n_steps = min(n_steps, batch.n_evaluations)
        steps += n_steps * (last - first + 1)
        seconds += batch.wall_s
    return steps, seconds
