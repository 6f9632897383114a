"""Writes `findings.csv`: one row for every finding, units in a column of their own."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from omm_mlff.report.judged import Judged

FILE_NAME = "findings.csv"

COLUMNS = (
    "policy",
    "severity",
    "criterion",
    "status",
    "system",
    "temperature_K",
    "run",
    "replica",
    "frame",
    "element",
    "atoms",
    "measurement",
    "kind",
    "value",
    "ci_low",
    "ci_high",
    "unit",
    "bound",
    "p_value",
    "n_samples",
    "exposure_ps",
    "more_ps",
    "cause",
    "source",
)


def as_table(judged: Judged) -> pd.DataFrame:
    """One row for every finding, the counting policy's first; atoms as "0-1"."""
    rows = []
    for verdict in (judged.verdict, *judged.others):
        for finding in verdict.findings:
            row = {**vars(finding.where), **vars(finding)}
            row["atoms"] = "-".join(map(str, finding.where.atoms))
            rows.append({column: row[column] for column in COLUMNS})
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"replica": "Int64", "frame": "Int64"})


def write(judged: Judged, path: Path) -> None:
    """Writes the file, with the model and profile that its rows belong to in its first columns."""
    table = as_table(judged)
    table.insert(0, "model", judged.model.name)
    table.insert(1, "profile", judged.profile)
    table.to_csv(path, index=False)
