"""Writes `verdict.json`, schema 1 (DESIGN, section 4): what other programs read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from omm_mlff.report.judged import Judged
from omm_mlff.schema import finite

FILE_NAME = "verdict.json"


def as_json(judged: Judged) -> dict[str, Any]:
    """The content of the file: the findings of every policy, the counting one first."""
    return {
        "schema": 1,
        "model": finite(dataclasses.asdict(judged.model)),
        "profile": judged.profile,
        "policy": judged.policy,
        "verdict": judged.verdict.name,
        "policies": {name: verdict.name for name, verdict in judged.verdicts.items()},
        "findings": [
            finding.to_json()
            for verdict in (judged.verdict, *judged.others)
            for finding in verdict.findings
        ],
        "diagnosis": [dataclasses.asdict(cause) for cause in judged.diagnosis],
        "failures": [dataclasses.asdict(failure) for failure in judged.failures],
        "provenance": judged.provenance.to_json(),
    }


def write(judged: Judged, path: Path) -> None:
    """Writes the file; a value that is not finite is the text "nan", "inf" or "-inf"."""
    text = json.dumps(as_json(judged), indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
