"""`omm-mlff simulate` with input that no simulation can be, and with one that does not survive."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omm_mlff.cli.main import main

RUN = ["simulate", "--model", "ultra-tiny", "--system", "water", "--platform", "Reference"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--temperature", "-5"], "wanted"),
        (["--temperature", "nan"], "a temperature of 0 or more; got nan K"),
        (["--temperature", "-5", "--ensemble", "nvt"], "a temperature of 0 or more; got -5 K"),
        (["--temperature", "inf"], "a temperature of 0 or more; got inf K"),
        (["--seed", "-1"], "a seed of 0 or more; got -1"),
        (["--length-ps", "inf"], "a length above 0; got inf ps"),
        (["--length-ps", "nan"], "a length above 0; got nan ps"),
        (["--timestep-fs", "inf"], "a timestep above 0; got inf fs"),
        (["--length-ps", "0.0001"], "got 0 steps"),
    ],
)
def test_what_no_simulation_can_be_ends_in_2_with_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, "--out", str(tmp_path / "run"), *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said.replace("wanted", "a temperature of 0 or more; got -5 K") in lines[0]
    assert not (tmp_path / "run").exists()


def test_a_run_of_which_nothing_survived_does_not_end_in_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--timestep-fs", "500", "--length-ps", "50", "--out", str(tmp_path / "run")]
    assert main([*RUN, *words]) == 4
    assert "0 of 1 replicas ran to 50 ps" in capsys.readouterr().out


def test_a_finished_run_is_not_made_shorter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main([*RUN, "--length-ps", "0.05", "--out", str(out)]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main([*RUN, "--length-ps", "0.02", "--resume", "--out", str(out)]) == 2
    assert "holds 0.05 ps of this run, more than the 0.02 ps asked for" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert main([*RUN, "--length-ps", "0.06", "--resume", "--out", str(out)]) == 0
    assert json.loads((out / "spec.json").read_text())["length_ps"] == 0.06
