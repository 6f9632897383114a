"""Writes a comparison: table, data, study, picture, and the verdicts that it rests on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from omm_mlff.comparison import picture as pictures
from omm_mlff.comparison.advice import advise, failures
from omm_mlff.comparison.compare import Comparison, folder_name
from omm_mlff.comparison.finished import (
    FINDINGS_FILE,
    MEASUREMENTS_FILE,
    VERDICT_FILE,
    Finished,
)
from omm_mlff.comparison.forecast import outcome
from omm_mlff.comparison.study import as_markdown, commands
from omm_mlff.errors import OutputExistsError
from omm_mlff.record.storage import storage_errors
from omm_mlff.report.wording import reason, repeat_command
from omm_mlff.schema import finite

TABLE_FILE = "comparison.csv"
DATA_FILE = "comparison.json"
STUDY_FILE = "README.md"
PICTURE_FILE = "comparison.png"


def write_comparison(
    comparison: Comparison,
    out: str | Path,
    *,
    picture: bool = True,
    forecast_file: str | Path | None = None,
) -> list[Path]:
    """Write everything into a folder, in the place of an older comparison that it may hold.

    Parameters
    ----------
    picture : needs the extra `report`
    forecast_file : where the forecast came from, for the commands that repeat the study

    Returns
    -------
    the files

    Raises
    ------
    MissingPackageError : a picture is wanted and matplotlib is not installed
    OutputExistsError : something there is not ours to replace
    StorageError : the disk is full or the folder not writable
    """
    out = Path(out)
    if picture:
        pictures.require_matplotlib()
    _check(comparison, out)
    repeat = commands(comparison, _named(out), _named(forecast_file) if forecast_file else None)
    study = as_markdown(comparison, PICTURE_FILE if picture else None, repeat)
    data = json.dumps(as_json(comparison), indent=2, allow_nan=False)
    written = [out / DATA_FILE, out / TABLE_FILE, out / STUDY_FILE]
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        _remove_copies(out)
        (out / DATA_FILE).write_text(data + "\n", encoding="utf-8")
        comparison.table.to_csv(out / TABLE_FILE, index=False)
        (out / STUDY_FILE).write_text(study, encoding="utf-8")
        if picture:
            pictures.save(comparison, out / PICTURE_FILE)
            written.append(out / PICTURE_FILE)
        else:
            (out / PICTURE_FILE).unlink(missing_ok=True)
        for label, finished in comparison.models.items():
            target = out / folder_name(label)
            if _is_same(target, finished.folder):
                continue
            target.mkdir(exist_ok=True)
            for name in (VERDICT_FILE, FINDINGS_FILE):
                shutil.copyfile(finished.folder / name, target / name)
                written.append(target / name)
    return written


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The content of `comparison.json`, schema 1."""
    forecast = comparison.forecast
    content = {
        "schema": 1,
        "models": [_model(comparison, label) for label in comparison.models],
        "differences": [
            {"what": item.what, "values": dict(item.values)} for item in comparison.differences
        ],
        "forecast": dataclasses.asdict(forecast) if forecast else None,
        "rows": [row.to_json() for row in comparison.rows],
    }
    return dict(finite(content))


def _model(comparison: Comparison, label: str) -> dict[str, Any]:
    finished = comparison.models[label]
    forecast = comparison.forecast
    expected = forecast.verdicts.get(finished.model) if forecast else None
    verdict = finished.verdicts.get(forecast.policy) if forecast else None
    return {
        "label": label,
        "model": finished.model,
        "sha256": finished.measured.card.sha256,
        "n_parameters": finished.n_parameters,
        "profile": finished.profile,
        "policy": finished.policy,
        "verdicts": {name: item.name for name, item in finished.verdicts.items()},
        "reasons": {name: reason(item) for name, item in finished.verdicts.items()},
        "command": _command(finished),
        "forecast": expected,
        "outcome": outcome(expected, verdict.name if verdict else None) if expected else None,
        "failures": [
            {
                "name": item.name,
                "measurement": item.measurement,
                "criteria": list(item.criteria),
                "findings": [finding.to_json() for finding in item.findings],
            }
            for item in failures(finished)
        ],
        "recommendation": dataclasses.asdict(advise(finished)),
    }


def _command(finished: Finished) -> str:
    recorded = finished.provenance.command
    return repeat_command(finished.model, finished.profile, finished.policy, recorded)


def _remove_copies(out: Path) -> None:
    """Remove what an older comparison copied here; a validation itself is left alone."""
    try:
        old = json.loads((out / DATA_FILE).read_text(encoding="utf-8"))
        labels = [str(model["label"]) for model in old["models"]]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return
    for label in labels:
        folder = out / folder_name(label)
        if folder.is_dir() and not (folder / MEASUREMENTS_FILE).exists():
            for name in (VERDICT_FILE, FINDINGS_FILE):
                (folder / name).unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()


def _check(comparison: Comparison, out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out} is a file; wanted a folder")
    if (out / STUDY_FILE).exists() and not (out / DATA_FILE).exists():
        raise OutputExistsError(
            f"{out} holds a {STUDY_FILE} that no comparison wrote; use another --out"
        )
    if (out / MEASUREMENTS_FILE).exists():
        raise OutputExistsError(f"{out} holds a validation; use another --out")
    for label, finished in comparison.models.items():
        target = out / folder_name(label)
        is_other = (target / MEASUREMENTS_FILE).exists() and not _is_same(target, finished.folder)
        if is_other:
            raise OutputExistsError(
                f"{target} holds another validation than that of {label}; use another --out"
            )


def _is_same(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()


def _named(path: str | Path) -> str:
    """A path as it may be published: one of this machine is cut down to its name."""
    path = Path(path)
    return path.name if path.is_absolute() else path.as_posix()
