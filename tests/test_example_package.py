"""A check of somebody else's package takes part in `omm-mlff validate` once it is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from omm_mlff.students.checkpoint import student_names

RUN = "import sys; from omm_mlff.cli.main import main; sys.exit(main())"
SOURCE = Path(__file__).resolve().parent / "example_package"

PROFILE = """
title = "one short run"
static_systems = ["water"]

[[run]]
system = "water"
length_ps = 0.02
n_replicas = 2
temperature_K = 300
"""


HARD = """
[[criterion]]
name = "at-rest"
measurement = "rest.force"
high = 1e-9
unit = "eV/angstrom"
severity = "limit"
source = "this test: no student is so near"
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example package in it, as pip installs it."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"  # a build leaves files beside what it builds
    shutil.copytree(SOURCE, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, *offline, "--target", str(folder / "site"), str(source)], check=True)
    return folder / "site"


def run(folder: Path, site: Path, model: str) -> subprocess.CompletedProcess[str]:
    (folder / "short.toml").write_text(PROFILE)
    command = f"validate --model {model} --profile short.toml --platform Reference --json"
    return omm_mlff(folder, site, command)


def omm_mlff(folder: Path, site: Path, command: str) -> subprocess.CompletedProcess[str]:
    """The command line where the example package is installed."""
    paths = [str(path) for path in (site, *filter(None, sys.path))]
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, *command.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )


def validated(folder: Path, site: Path, model: str) -> dict:
    done = run(folder, site, model)
    assert done.returncode in (0, 1, 3), done.stderr
    verdict = json.loads(done.stdout)
    assert isinstance(verdict, dict)
    return verdict


@pytest.mark.slow
@pytest.mark.skipif("ultra-tiny" not in student_names(), reason="no checkpoint here")
def test_a_check_of_another_package_is_judged_with_its_default_criteria(
    tmp_path: Path, installed: Path
) -> None:
    verdict = validated(tmp_path, installed, "ultra-tiny")
    rows = {f["criterion"]: f for f in verdict["findings"] if f["policy"] == "strict"}
    limit, reject = rows["rest.force-limit"], rows["rest.force-reject"]
    assert limit["status"] == reject["status"] == "pass"
    assert (limit["high"], reject["high"]) == (1.0, 10.0)
    assert 0.0 < limit["value"] < 1.0
    assert limit["system"] == "water"


@pytest.mark.slow
@pytest.mark.skipif("ultra-tiny" not in student_names(), reason="no checkpoint here")
def test_a_check_of_another_package_appears_everywhere_in_its_own_words(
    tmp_path: Path, installed: Path
) -> None:
    (tmp_path / "short.toml").write_text(PROFILE)
    (tmp_path / "hard.toml").write_text(HARD)
    done = omm_mlff(
        tmp_path,
        installed,
        "validate --model ultra-tiny --profile short.toml --policy hard.toml --out finished "
        "--platform Reference",
    )
    assert done.returncode == 1, done.stderr
    assert "rest" in done.stdout
    verdict = json.loads((tmp_path / "finished" / "verdict.json").read_text())
    (finding,) = (row for row in verdict["findings"] if row["policy"] == "hard")
    assert (finding["check"], finding["status"]) == ("rest", "fail")
    (cause,) = verdict["diagnosis"]
    assert (cause["slug"], cause["evidence"]) == ("rest", ["rest.force"])
    assert "rest.force" in (tmp_path / "finished" / "report.md").read_text()

    done = omm_mlff(tmp_path, installed, "compare finished --out compared")
    assert done.returncode == 0, done.stderr
    study = (tmp_path / "compared" / "README.md").read_text()
    assert "The shipped structure is pulled apart (`rest.force`" in study
    assert "a start from the shipped structure: water (force " in study

    done = omm_mlff(tmp_path, installed, "checks --markdown")
    assert "| `rest` | Is the structure as given at rest? |" in done.stdout
    declared = json.loads((tmp_path / "finished" / "measurements.json").read_text())
    (row,) = (row for row in declared["declarations"] if row["check"] == "rest")
    assert {"nan", "units", "curl"} <= set(row["explained_by"])


@pytest.mark.slow
def test_a_model_source_of_another_package_reaches_a_verdict(
    tmp_path: Path, installed: Path
) -> None:
    verdict = validated(tmp_path, installed, "network:50000")
    assert verdict["model"]["source"] == "network"
    rows = {f["criterion"]: f for f in verdict["findings"] if f["policy"] == "strict"}
    assert rows["gradient.error-limit-float64"]["status"] == "pass"
    # Springs all alike are not water: the teacher's labels say so.
    assert rows["accuracy.force_rmse-limit"]["status"] == "fail"
    assert verdict["verdict"] in ("REJECTED", "NOT RECOMMENDED")


def test_a_model_source_of_another_package_refuses_in_one_line(
    tmp_path: Path, installed: Path
) -> None:
    done = run(tmp_path, installed, "network:stiff")
    assert done.returncode == 2
    assert done.stderr == "error: 'network:stiff': wanted a stiffness, as in network:50000\n"
