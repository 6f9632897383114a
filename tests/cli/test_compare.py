"""The command `compare`: what it prints, writes and refuses."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest
from finished_models import original, tiny, ultra_tiny, write_validation

from omm_mlff.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
FORECAST = ROOT / "analysis" / "m6" / "forecast.toml"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("validations")
    files = {"original": original(), "tiny": tiny(), "ultra-tiny": ultra_tiny()}
    return [str(write_validation(root / name, file)) for name, file in files.items()]


def test_models_stand_side_by_side_in_eighty_columns(
    folders: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["compare", *folders, "--forecast", str(FORECAST)]) == 0
    shown = capsys.readouterr().out
    table = shown.split("The worst")[0]
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= 80
    rows = [line.split() for line in table.splitlines() if line.strip()]
    assert ["original", "APPROVED", "APPROVED"] in rows
    assert ["ultra-tiny", "REJECTED", "REJECTED"] in rows
    assert ["alanine", "original", "0.071", "0.0002", "0", "9"] in rows
    assert ["alanine", "ultra-tiny", "0.31", "0.009", "0", "2.25"] in rows
    assert ["water", "ultra-tiny", "0.071", "nan", "2", "1.5"] in rows
    assert "omm-mlff bench --model original --against tiny --against ultra-tiny" in shown
    assert "tiny, m6: APPROVED, better than forecast (NOT RECOMMENDED)." in shown
    assert "tiny, strict: NOT RECOMMENDED. accuracy.force_rmse fails for alanine" in shown


def test_only_what_every_model_was_asked_stands_side_by_side(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny()
    kept = tuple(row for row in file.measurements if row.where.system != "methane")
    fewer = write_validation(tmp_path / "t", dataclasses.replace(file, measurements=kept))
    assert main(["compare", folders[0], str(fewer)]) == 0
    shown = capsys.readouterr().out
    rows = [line.split()[:2] for line in shown.split("The worst")[0].splitlines()]
    assert ["water", "original"] in rows
    assert ["water", "tiny"] in rows
    assert not any("methane" in row for row in rows)
    assert "Not asked of every model, and left out: methane (original)" in shown


def test_out_is_written_and_named(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    assert main(["compare", *folders, "--out", str(out), "--forecast", str(FORECAST)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"Written to {out}: comparison.json, comparison.csv, README.md")
    assert "ultra-tiny/verdict.json" in last
    assert (out / "comparison.png").is_file()
    assert "scripts/m6_study.sh" in (out / "README.md").read_text()


def test_json_is_the_data_and_nothing_else(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    assert main(["compare", folders[0], "--json", "--no-picture", "--out", str(out)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads((out / "comparison.json").read_text())
    assert not (out / "comparison.png").exists()


def test_what_differs_is_said(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = write_validation(tmp_path / "again", tiny(), policy="strict")
    assert main(["compare", folders[1], str(again)]) == 0
    shown = capsys.readouterr().out
    assert "Not alike in policy: tiny: m6; again: strict" in shown


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["absent"], "no folder absent"),
        (["."], "no verdict at verdict.json"),
        (["@", "@"], "is given twice"),
        (["@", "--forecast", "absent.toml"], "no forecast at absent.toml"),
    ],
)
def test_bad_input_is_one_line_and_2(
    words: list[str],
    complaint: str,
    folders: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [folders[0] if word == "@" else word for word in words]
    assert main(["compare", *arguments]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert complaint in captured.err
    assert captured.out == ""


def test_nothing_to_compare_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare"]) == 2
    assert "Usage" in capsys.readouterr().err


FAKE = """#!/usr/bin/env bash
echo "$@" >> "$CALLS"
[ "$1" = validate ] && exit "$CODE"
exit 0
"""


@pytest.mark.parametrize(("code", "n_calls"), [(0, 4), (1, 4), (3, 4), (2, 1), (4, 1), (130, 1)])
def test_the_m6_script_goes_on_after_any_verdict_and_stops_at_any_error(
    tmp_path: Path, code: int, n_calls: int
) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "m6_study.sh").write_text((ROOT / "scripts" / "m6_study.sh").read_text())
    fake = tmp_path / ".venv" / "bin" / "omm-mlff"
    fake.parent.mkdir(parents=True)
    fake.write_text(FAKE)
    fake.chmod(0o755)
    calls = tmp_path / "calls"
    done = subprocess.run(
        ["bash", str(scripts / "m6_study.sh"), "work"],
        env={"PATH": "/usr/bin:/bin", "CALLS": str(calls), "CODE": str(code)},
        check=False,
    )
    lines = calls.read_text().splitlines()
    assert len(lines) == n_calls
    assert lines[0] == (
        "validate --model original --profile standard --policy m6 --out work/original --resume"
    )
    if n_calls == 4:
        assert done.returncode == 0
        assert lines[3] == (
            "compare work/original work/tiny work/ultra-tiny --out analysis/m6 "
            "--forecast analysis/m6/forecast.toml"
        )
    else:
        assert done.returncode == code
