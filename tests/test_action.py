"""The GitHub Action: its scripts run as GitHub runs them, by bash, in a folder of their own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = {
    step.get("id", step.get("name", step.get("uses"))): step for step in ACTION["runs"]["steps"]
}

HOSTILE = 'it\'s "$(touch harm)" `touch harm`; touch harm #\\ && ${HOME}'

PROFILE = """
title = "short"
static_systems = ["water"]

[[run]]
system = "water"
length_ps = 0.05
n_replicas = 2
temperature_K = 300
"""

PRETENDED = """
import json, os, pathlib, sys
words = sys.argv[1:]
pathlib.Path("words.json").write_text(json.dumps(words))
out = pathlib.Path(next(w for w in words if w.startswith("--out="))[6:])
verdict, code = {verdict!r}, {code}
if verdict:
    out.mkdir()
    (out / "verdict.json").write_text(json.dumps({{"verdict": verdict}}))
    (out / "report.md").write_text("# the report\\n")
sys.exit(code)
"""


@dataclass
class Ended:
    """What a step left."""

    code: int
    shown: str
    outputs: dict[str, str]
    summary: str


class Runner:
    """A folder, and programs that stand before all others on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "work space"
        self.programs = folder / "bin"
        self.folder.mkdir()
        self.programs.mkdir()
        self.program("python", f'exec "{sys.executable}" "$@"')

    def program(self, name: str, script: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def pretend(self, verdict: str, code: int) -> None:
        """A validation that comes to this at once."""
        (self.programs / "pretended.py").write_text(PRETENDED.format(verdict=verdict, code=code))
        self.program(
            "omm-mlff", f'shift; exec "{sys.executable}" "{self.programs}/pretended.py" "$@"'
        )

    def words(self) -> list[str]:
        """What the pretended validation was called with."""
        return list(json.loads((self.folder / "words.json").read_text()))

    def step(self, name: str, **inputs: str) -> Ended:
        """Run one step's script as GitHub does."""
        given = {key: str(spec.get("default", "")) for key, spec in ACTION["inputs"].items()}
        given |= {key.replace("_", "-"): value for key, value in inputs.items()}
        meaning = {f"inputs.{key}": value for key, value in given.items()}
        meaning["github.action_path"] = str(ROOT)
        environment = {
            key: re.sub(r"\$\{\{ *(.*?) *\}\}", lambda found: meaning[found[1]], value)
            for key, value in STEPS[name]["env"].items()
        }
        files = {key: self.folder / key for key in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        for path in files.values():
            path.write_text("")
        script = self.folder / "script.sh"
        script.write_text(STEPS[name]["run"])
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.folder,
            env={
                "PATH": f"{self.programs}:/usr/bin:/bin",
                "HOME": str(self.folder),
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                **environment,
                **{key: str(path) for key, path in files.items()},
            },
            capture_output=True,
            text=True,
            check=False,
        )
        lines = files["GITHUB_OUTPUT"].read_text().splitlines()
        assert not (self.folder / "harm").exists()
        return Ended(
            done.returncode,
            done.stdout + done.stderr,
            dict(line.split("=", 1) for line in lines),
            files["GITHUB_STEP_SUMMARY"].read_text(),
        )


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def test_no_input_stands_in_a_script() -> None:
    scripts = [step["run"] for step in STEPS.values() if "run" in step]
    assert len(scripts) == 2
    assert not any("${{" in script for script in scripts)


def test_the_action_is_whole() -> None:
    assert ACTION["runs"]["using"] == "composite"
    assert all(step.get("shell") == "bash" for step in STEPS.values() if "run" in step)
    named = set(re.findall(r"inputs\.([a-z-]+)", (ROOT / "action.yml").read_text()))
    assert named == set(ACTION["inputs"])
    assert [key for key, spec in ACTION["inputs"].items() if spec.get("required")] == ["model"]
    assert STEPS["Keep the reports"]["if"].startswith("${{ always()")


@pytest.mark.slow
def test_a_validation_ends_the_job_and_leaves_its_reports(runner: Runner) -> None:
    (runner.folder / "my profile.toml").write_text(PROFILE)
    runner.program(
        "omm-mlff",
        f'exec "{sys.executable}" -c \'import sys; from omm_mlff.cli.main import main; '
        'sys.exit(main())\' "$@"',
    )
    ended = runner.step(
        "validate", model="ultra-tiny", profile="my profile.toml", out="a report's folder"
    )
    folder = runner.folder / "a report's folder"
    verdict = json.loads((folder / "verdict.json").read_text())["verdict"]
    expected = {"APPROVED": 0, "NOT RECOMMENDED": 1, "REJECTED": 1, "UNDECIDED": 3}[verdict]
    assert ended.code == expected, ended.shown
    assert ended.outputs == {
        "verdict": verdict,
        "exit-code": str(expected),
        "folder": "a report's folder",
    }
    assert ended.summary == (folder / "report.md").read_text()
    assert verdict in ended.summary
    junit = ElementTree.parse(folder / "junit.xml").getroot()
    red = int(junit.get("failures", "")) + int(junit.get("errors", ""))
    assert (red > 0) is (expected != 0)


@pytest.mark.parametrize(
    ("verdict", "code", "undecided", "ends"),
    [
        ("APPROVED", 0, "fail", 0),
        ("NOT RECOMMENDED", 1, "fail", 1),
        ("REJECTED", 1, "pass", 1),
        ("UNDECIDED", 3, "fail", 3),
        ("UNDECIDED", 3, "pass", 0),
        ("", 2, "pass", 2),
        ("", 4, "pass", 4),
    ],
)
def test_the_job_ends_as_the_verdict_says(
    runner: Runner, verdict: str, code: int, undecided: str, ends: int
) -> None:
    runner.pretend(verdict, code)
    ended = runner.step("validate", model="tiny", undecided=undecided)
    assert ended.code == ends
    assert ended.outputs["verdict"] == verdict
    assert ended.outputs["exit-code"] == str(code)
    assert ended.summary == ("# the report\n" if verdict else "") + (
        "" if verdict else f"omm-mlff reached no verdict (exit code {code}).\n"
    )


def test_what_stands_in_an_input_is_passed_on_and_never_run(runner: Runner) -> None:
    runner.pretend("APPROVED", 0)
    ended = runner.step(
        "validate",
        model=f"--help {HOSTILE}",
        system=f"{HOSTILE}\r\n\n-x.pdb\n* my molecule.sdf\n",
        profile=HOSTILE,
        policy=HOSTILE,
        out=HOSTILE.replace("/", ""),
    )
    assert ended.code == 0, ended.shown
    assert runner.words() == [
        f"--model=--help {HOSTILE}",
        f"--profile={HOSTILE}",
        f"--policy={HOSTILE}",
        f"--out={HOSTILE}",
        f"--system={HOSTILE}",
        "--system=-x.pdb",
        "--system=* my molecule.sdf",
    ]
    assert ended.outputs["folder"] == HOSTILE


@pytest.mark.parametrize(
    "inputs",
    [
        {"out": "a\nverdict=APPROVED"},
        {"out": ""},
        {"undecided": "maybe"},
        {"undecided": "$(touch harm)"},
    ],
)
def test_inputs_that_would_write_other_outputs_are_refused(
    runner: Runner, inputs: dict[str, str]
) -> None:
    runner.pretend("APPROVED", 0)
    ended = runner.step("validate", model="tiny", **inputs)
    assert ended.code == 2
    assert ended.outputs == {}
    assert "::error title=omm-mlff::" in ended.shown


def test_a_verdict_that_is_none_is_not_passed_on(runner: Runner) -> None:
    runner.pretend("FINE\nexit-code=0", 1)
    ended = runner.step("validate", model="tiny")
    assert (ended.code, ended.outputs["verdict"], ended.outputs["exit-code"]) == (1, "", "1")


@pytest.mark.parametrize(
    ("inputs", "installed"),
    [
        ({}, f"{ROOT}[cpu]"),
        ({"extra": "cuda12,ase"}, f"{ROOT}[cuda12,ase]"),
        ({"version": "0.1.0"}, "omm-mlff[cpu]==0.1.0"),
    ],
)
def test_what_is_installed(runner: Runner, inputs: dict[str, str], installed: str) -> None:
    runner.program("python", 'printf "%s\\n" "$@"')
    ended = runner.step("install", **inputs)
    assert ended.code == 0
    words = ended.shown.splitlines()
    assert words[:3] == ["-m", "pip", "install"]
    assert words[-1] == installed
    assert f"{ROOT}/constraints.txt" in words


@pytest.mark.parametrize("inputs", [{"extra": HOSTILE}, {"extra": ""}, {"version": "1 --pre"}])
def test_what_cannot_be_installed_is_refused(runner: Runner, inputs: dict[str, str]) -> None:
    runner.program("python", "touch harm")
    assert runner.step("install", **inputs).code == 2
