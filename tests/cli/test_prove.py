"""The command `prove`: exit codes, JSON, the files that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omm_mlff.cli.main import main
from omm_mlff.proving import matrix as module
from omm_mlff.proving.attempt import Attempt, Task
from omm_mlff.proving.kinds import KINDS

CAUSE = {kind.name: kind.cause for kind in KINDS}


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Attempts are made up: the verdict on each name, by default as it should be."""
    chosen: dict[str, str] = {}

    def made_up(task: Task) -> Attempt:
        bad = task.strength is not None
        verdict = chosen.get(task.name, "REJECTED" if bad else "APPROVED")
        causes = (CAUSE[task.name],) if bad else ()
        return Attempt(task, verdict, causes, "", (), (), 0.0, 0.0)

    monkeypatch.setattr(module, "attempt", made_up)
    return chosen


def test_all_as_it_should_be_is_exit_0(verdicts, capsys) -> None:
    assert main(["prove", "--short", "--json", "--workers", "1"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {row["kind"] for row in data["kinds"]} == set(CAUSE)
    assert all(row["cause_right"] for row in data["kinds"])
    assert {row["rejected"] for row in data["known_good"]} == {0}


def test_a_gross_fault_that_is_not_rejected_is_exit_1(verdicts) -> None:
    verdicts["curl"] = "UNDECIDED"
    assert main(["prove", "--kind", "curl", "--workers", "1"]) == 1
    assert main(["prove", "--kind", "jump", "--workers", "1"]) == 0


def test_a_good_one_that_is_rejected_is_exit_1(verdicts) -> None:
    verdicts["methanol"] = "REJECTED"
    assert main(["prove", "--kind", "methanol", "--seeds", "2", "--workers", "1"]) == 1


def test_the_table_names_kind_verdict_and_cause(verdicts, capsys) -> None:
    main(["prove", "--kind", "curl", "--kind", "methanol", "--seeds", "3", "--workers", "1"])
    out = capsys.readouterr().out
    assert "curl" in out
    assert "REJECTED" in out
    assert "3 APPROVED" in out


def test_the_files_are_written_where_asked(verdicts, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "study"
    main(["prove", "--kind", "curl", "--workers", "1", "--out", str(folder)])
    assert json.loads((folder / "prove.json").read_text())["passed"] is True
    assert "## Known bad" in (folder / "prove.md").read_text()
    assert "prove.md" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [["--kind", "curls"], ["--seeds", "0"], ["--workers", "0"], ["--shorter"]],
    ids=["unknown kind", "no seed", "no worker", "unknown option"],
)
def test_bad_input_is_exit_2(words: list[str]) -> None:
    assert main(["prove", *words]) == 2
