"""The Markdown report and the CSV hold every finding, and a new format is one new file."""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path

import pandas as pd
import pytest

from omm_mlff import report
from omm_mlff.errors import StorageError
from omm_mlff.report import formats, write_reports
from omm_mlff.report.markdown import as_markdown
from omm_mlff.report.table_csv import COLUMNS
from omm_mlff.report.wording import number, reason, with_error, worst_by_criterion
from omm_mlff.schema import Where
from tests.judged_models import broken, judged, replaced, sampled, sound, unclear


def test_csv_has_one_row_for_each_finding_with_its_unit(tmp_path: Path) -> None:
    what = judged(broken())
    write_reports(what, tmp_path)
    table = pd.read_csv(tmp_path / "findings.csv")
    assert list(table.columns) == ["model", "profile", *COLUMNS]
    findings = [f for v in (what.verdict, *what.others) for f in v.findings]
    assert len(table) == len(findings)
    for row, finding in zip(table.to_dict("records"), findings, strict=True):
        assert row["criterion"] == finding.criterion
        assert row["status"] == finding.status
        assert str(row["unit"]) == finding.unit
        expected = math.nan if finding.value is None else finding.value
        assert row["value"] == pytest.approx(expected, nan_ok=True, rel=1e-15)
    crash = table[table["cause"].fillna("").str.startswith("2 of 8")].iloc[0]
    assert (crash["replica"], crash["frame"], crash["atoms"]) == (3, 531, "0-1")


def test_markdown_explains_every_failure_and_how_to_repeat() -> None:
    what = judged(broken())
    text = as_markdown(what)
    assert text.startswith("# REJECTED: tiny\n")
    for verdict in what.verdicts.values():
        assert f"## Policy {verdict.policy}: {verdict.name}" in text
        assert reason(verdict) in text
        for finding in verdict.findings:
            if finding.status == "fail" and finding.severity != "info":
                assert f"- **{finding.criterion}** ({finding.severity})" in text
                assert finding.cause in text
    for system in ("water", "methane", "alanine"):
        assert text.count(f"### {system}\n") == 2
    assert "```\nomm-mlff validate --model tiny --profile quick\n```" in text
    assert "| platform | `Reference` |" in text
    assert "- 1 x no reference labels: accuracy.force_rmse-limit" in text


def test_markdown_tables_keep_their_columns() -> None:
    where = Where(system="a|b")
    text = as_markdown(judged(replaced(broken(), sampled("accuracy.force_rmse", 9, 0.1, where))))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    width = 0
    for row in rows:
        cells = row.replace("\\|", "").count("|")
        if set(row) == set("| -"):
            assert cells == width
        width = cells
    assert "a\\|b" not in text.split("### a|b")[0].split("## Policy")[0]


def test_markdown_says_what_is_open() -> None:
    text = as_markdown(judged(unclear()))
    assert "- **gradient.error-reject** for methane: not-measured; it was planned" in text
    assert "run `alanine-nve-300K-0.5fs-2ps-x8`: 2.28 ps more in each replica" in text


def test_a_new_format_is_one_new_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert list(formats()) == ["findings.csv", "junit.xml", "report.md", "verdict.json"]
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "plain.py").write_text(
        "FILE_NAME = 'plain.txt'\n"
        "def write(judged, path):\n    path.write_text(judged.verdict.name)\n"
    )
    monkeypatch.setattr(report, "__path__", [*report.__path__, str(folder)])
    try:
        paths = write_reports(judged(sound()), tmp_path)
    finally:
        sys.modules.pop("omm_mlff.report.plain", None)
        vars(report).pop("plain", None)
    assert tmp_path / "plain.txt" in paths
    assert (tmp_path / "plain.txt").read_text() == "APPROVED"


def test_a_full_disk_is_a_failure_of_the_validation_not_of_the_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(judged: object, path: Path) -> None:
        raise OSError(28, "No space left on device")

    module = types.SimpleNamespace(write=full)
    monkeypatch.setattr(report, "formats", lambda: {"verdict.json": module})
    with pytest.raises(StorageError, match=r"cannot write .*verdict\.json: No space left") as error:
        write_reports(judged(sound()), tmp_path)
    assert error.value.exit_code == 4


def test_the_worst_of_a_criterion_is_the_one_furthest_out() -> None:
    values = {"water": 0.05, "methane": 0.12, "alanine": 0.09}
    file = replaced(
        sound(),
        *(sampled("accuracy.force_rmse", v, 0.001, Where(system=s)) for s, v in values.items()),
    )
    rows = worst_by_criterion(judged(file).verdict)
    worst = next(row for row in rows if row.measurement == "accuracy.force_rmse")
    assert worst.system == "methane"
    runs = [m.where for m in file.measurements if m.name == "nve.drift"]
    drifts = (0.0002, -0.0008, 0.0005)
    file = replaced(
        file, *(sampled("nve.drift", d, 1e-5, w) for d, w in zip(drifts, runs, strict=True))
    )
    rows = worst_by_criterion(judged(file).verdict)
    assert next(r for r in rows if r.criterion == "nve.drift-limit").value == -0.0008


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.123456, "0.123"),
        (1234.5, "1234"),
        (1.5e6, "1.5e+06"),
        (-2.5e-7, "-2.5e-07"),
        (0.0, "0"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_an_interval_that_is_not_symmetric_is_not_called_plus_minus() -> None:
    (finding,) = [
        f
        for f in judged(sound()).verdict.findings
        if f.measurement == "accuracy.force_rmse" and f.system == "water"
    ]
    assert with_error(finding) == "0.071 ± 0.0053"
    skewed = type(finding)(**{**vars(finding), "ci_high": 0.09})
    assert with_error(skewed) == "0.071 [0.0657, 0.09]"
