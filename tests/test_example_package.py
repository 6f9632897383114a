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
    paths = [str(path) for path in (site, *filter(None, sys.path))]
    command = f"validate --model {model} --profile short.toml --platform Reference --json"
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
