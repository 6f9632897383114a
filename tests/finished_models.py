"""Folders of finished validations of made-up models, for the tests of comparisons."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from judged_models import CARD, count, judged, replaced, sampled, sound
from run_documents import write_documents

from omm_mlff.record.status import BatchStatus, RunStatus
from omm_mlff.report import write_reports
from omm_mlff.schema import Measurement, RunSpec, Where
from omm_mlff.verdict.measurement_file import MeasurementFile
from omm_mlff.verdict.profiles import load_profile

WATER = "water-nve-300K-0.5fs-5ps-x16"
ALANINE = "alanine-nve-300K-0.5fs-5ps-x16"


def at(run: str) -> Where:
    """The place of a run, from its name."""
    system, _, rest = run.partition("-nve-")
    kelvin = float(rest.partition("K-")[0])
    return Where(system=system, run=run, temperature_K=kelvin, length_ps=5.0)


def made_up(name: str, n_parameters: int, *changes: Measurement) -> MeasurementFile:
    """A model that is sound under the standard profile but for the changes."""
    file = replaced(sound("standard"), *changes)
    return dataclasses.replace(
        file,
        card=dataclasses.replace(CARD, name=name, n_parameters=n_parameters),
        provenance=dataclasses.replace(
            file.provenance,
            command=f"omm-mlff validate --model {name} --profile standard --policy m6",
            precision="double",
            reference={"water": "ANI-1ccx", "methane": "ANI-1ccx", "alanine": "ANI-1ccx"},
        ),
    )


def original() -> MeasurementFile:
    times = [sampled("cost.step_time", t, 0.1, Where(system=s)) for s, t in STEP_TIMES.items()]
    return made_up("original", 428545, *times)


STEP_TIMES = {"water": 6.0, "methane": 6.5, "alanine": 9.0}


def tiny() -> MeasurementFile:
    """Its alanine misses the force limit of `strict`, not that of `m6`."""
    return made_up(
        "tiny", 76993, sampled("accuracy.force_rmse", 0.17, 0.003, Where(system="alanine"))
    )


def ultra_tiny() -> MeasurementFile:
    """Its water falls apart, its alanine is far off and drifts, openly, in one run."""
    broken = dataclasses.replace(at(WATER), replica=3, frame=531, atoms=(0, 1))
    return made_up(
        "ultra-tiny",
        20953,
        count("stability.broken_bonds", 2, broken, "bond O0-H1 at 1.53 angstrom (0.96 at rest)"),
        sampled("accuracy.force_rmse", 0.31, 0.007, Where(system="alanine")),
        sampled("nve.drift", float("nan"), float("nan"), at(WATER), cause="fewer than 8 left"),
        sampled("nve.drift", 0.009, 0.001, at(ALANINE)),
        *(sampled("cost.step_time", t / 4, 0.02, Where(system=s)) for s, t in STEP_TIMES.items()),
    )


def write_validation(
    folder: Path,
    file: MeasurementFile,
    *,
    policy: str = "m6",
    runs: bool = True,
    wall_s: float = 20.0,
) -> Path:
    """The folder as `omm-mlff validate` would leave it, its trajectories left out."""
    folder.mkdir(parents=True, exist_ok=True)
    file.write(folder / "measurements.json")
    write_reports(judged(file, policy), folder)
    if runs:
        plan = load_profile(file.scope.profile)
        for run in (run for run in plan.runs if run.purpose == "production"):
            write_run(folder / "runs", run.spec("model", 0).to_json(), wall_s=wall_s)
    return folder


def write_run(
    folder: Path,
    spec: dict[str, Any],
    *,
    planned: str | None = None,
    wall_s: float = 20.0,
    batches: dict[int, BatchStatus] | None = None,
) -> None:
    """A run directory without trajectories."""
    parsed = RunSpec.from_json(spec)
    default = {0: BatchStatus((0, parsed.n_replicas - 1), wall_s, parsed.n_steps)}
    status = RunStatus("complete", parsed.n_steps, batches or default, {})
    write_documents(folder / (planned or parsed.name), parsed, status)
