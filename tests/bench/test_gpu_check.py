"""What a node with a GPU is asked, tried with parts that pass, crash, hang and look at nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from omm_mlff.bench import gpu_check
from omm_mlff.bench.gpu_check import Part, parts, run_part


def is_running(stat: Path) -> bool:
    """Whether a process is there that is not merely waiting to be forgotten."""
    try:
        return stat.read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def said(tmp_path: Path, code: str, **words: object) -> gpu_check.Outcome:
    part = Part("part", ("-c", code), 20.0, **words)  # type: ignore[arg-type]
    return run_part(part, tmp_path, 20.0)


def test_a_part_passes_by_its_exit_code_and_by_what_it_leaves(tmp_path):
    assert said(tmp_path, "print('fine')").tail == "fine\n"
    assert said(tmp_path, "").passed
    assert not said(tmp_path, "raise SystemExit(3)").passed
    assert said(tmp_path, "raise SystemExit(3)", passing=(0, 3)).passed
    assert not said(tmp_path, "", result="left.json").passed
    file = tmp_path / "part" / "left.json"
    leaves = f"open({str(file)!r}, 'w').write('[1, 2]')"
    assert said(tmp_path, leaves, result="left.json").result == [1, 2]


def test_a_part_that_crashes_says_by_which_signal(tmp_path):
    outcome = said(tmp_path, "import os; os.abort()")
    assert (outcome.passed, outcome.exit_code) == (False, -6)


def test_a_part_that_hangs_is_stopped_with_all_that_it_started(tmp_path):
    code = (
        "import subprocess, sys, time, signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    outcome = run_part(Part("hangs", ("-c", code), 60.0), tmp_path, 1.0)
    assert not outcome.passed
    assert outcome.exit_code is None
    assert outcome.tail.endswith("stopped at its limit of 1 s")
    child = Path("/proc") / outcome.tail.split()[0] / "stat"
    deadline = time.monotonic() + 20.0
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


def test_a_part_for_which_no_time_is_left_is_not_begun(tmp_path):
    outcome = run_part(Part("late", ("-c", "print('begun')"), 60.0), tmp_path, 0.0)
    assert (outcome.passed, outcome.exit_code, outcome.tail) == (False, None, "no time was left")


@pytest.mark.parametrize(
    ("body", "passed"),
    [
        ("def test_one(): pass", True),
        ("import pytest\n@pytest.mark.skip\ndef test_one(): pass", False),
        ("def test_one(): assert False", False),
    ],
)
def test_tests_that_were_all_skipped_have_not_passed(tmp_path, body, passed):
    file = tmp_path / "test_small.py"
    file.write_text(body)
    xml = tmp_path / "tests" / "junit.xml"
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", str(file), f"--junitxml={xml}")
    outcome = run_part(Part("tests", command, 60.0, "junit.xml"), tmp_path, 60.0)
    assert outcome.passed == passed


def test_what_is_known_is_written_after_each_part(tmp_path, monkeypatch):
    chosen = [
        Part("one", ("-c", "print('fine')"), 20.0),
        Part("two", ("-c", "raise SystemExit('broken here')"), 20.0),
    ]
    monkeypatch.setattr(gpu_check, "parts", lambda folder, platform: chosen)
    done = CliRunner().invoke(gpu_check.main, [str(tmp_path / "out")])
    assert done.exit_code == 1
    document = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert [row["passed"] for row in document["parts"]] == [True, False]
    written = (tmp_path / "out" / "gpu_check.md").read_text()
    assert "| one | yes |" in written
    assert "broken here" in written
    done = CliRunner().invoke(gpu_check.main, [str(tmp_path / "out"), "--only", "one"])
    assert done.exit_code == 0
    done = CliRunner().invoke(gpu_check.main, [str(tmp_path / "out"), "--only", "three"])
    assert done.exit_code == 2
    assert "no part is named 'three'; known: one, two" in done.output


def test_each_part_names_a_module_or_a_command_that_is_there(tmp_path):
    from importlib.util import find_spec

    assert any(path.endswith("test_making.py") for path in gpu_check.files_with_cuda_tests())
    for part in parts(tmp_path, "CUDA"):
        if part.command[0] == "-m":
            assert find_spec(part.command[1]), part.name
        else:
            assert part.command[:2] == ("-c", gpu_check._MAIN)
            assert part.command[2] in {"doctor", "validate", "bench"}
