"""Repeats the study of native force fields: python scripts/native_study.py [RUNS] [STUDY].

RUNS is the folder for the validations (default runs/native; called again, it goes on with what is
there), STUDY the one that the tables are written into (default analysis/native).
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

from omm_mlff import validate

PROFILE = "quick"
SAGE = ("methane", "ethanol", "alanine", "benzene", "aspirin", "alanine-dipeptide")
PLAN = (
    *(("native:tip3p", "water"), ("native:spce", "water"), ("native:charmm36", "water")),
    *(("native:sage", name) for name in SAGE),
    *((f"native:{name}", "alanine-dipeptide") for name in ("amber14", "amber19", "charmm36")),
    *((model, name) for name in ("water", *SAGE) for model in ("tiny", "original")),
)
COLUMNS = {
    "force_rmse_eV_angstrom": "accuracy.force_rmse",
    "energy_rmse_meV_atom": "accuracy.energy_rmse",
    "drift_meV_atom_ps": "nve.drift",
    "frequency_rmse_per_cm": "vibrations.frequency_rmse",
    "torsion_map_rmse_meV": "torsions.map_rmse",
    "step_ms": "cost.step_time",
}


def main(runs: Path = Path("runs/native"), study: Path = Path("analysis/native")) -> None:
    rows, verdicts = [], []
    for model, system in PLAN:
        folder = runs / f"{model.replace(':', '-')}_{system}_{PROFILE}"
        if not (folder / "verdict.json").is_file():
            print(f"{model} on {system}", flush=True)
            validate(model, systems=[system], profile=PROFILE, out=folder, resume=folder.is_dir())
        verdict = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
        rows.append({"model": model, "system": system, **_row(verdict)})
        verdicts.append({"model": model, "system": system, **_compact(verdict)})
    study.mkdir(parents=True, exist_ok=True)
    with (study / "native.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = json.dumps(verdicts, indent=1)
    (study / "verdicts.json").write_text(text + "\n", encoding="utf-8")


def _row(verdict: dict[str, Any]) -> dict[str, Any]:
    """Values with their intervals, and both policies' verdicts."""
    row: dict[str, Any] = {}
    for column, measurement in COLUMNS.items():
        found = next(
            (
                finding
                for finding in verdict["findings"]
                if finding["measurement"] == measurement and finding["value"] is not None
            ),
            {},
        )
        for suffix, key in (("", "value"), ("_low", "ci_low"), ("_high", "ci_high")):
            value = found.get(key)
            row[column + suffix] = "" if value is None else f"{value:.4g}"
    return row | verdict["policies"]


def _compact(verdict: dict[str, Any]) -> dict[str, Any]:
    """The verdict without the findings that passed or have no meaning."""
    kept = ("criterion", "status", "severity", "value", "unit", "ci_low", "ci_high", "cause")
    findings = [
        {key: finding[key] for key in kept}
        for finding in verdict["findings"]
        if finding["policy"] == verdict["policy"]
        and finding["status"] in ("fail", "undecided", "not-measured")
    ]
    card = {key: verdict["model"][key] for key in ("name", "source", "sha256")}
    rest = {key: verdict[key] for key in ("profile", "policies", "diagnosis")}
    return {"card": card, **rest, "findings": findings}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
