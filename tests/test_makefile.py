"""`make` on a bare machine: what it refuses, what it does not do twice, how it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *words],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A folder that `make` takes for an environment in which all is installed."""
    for stamp in (".created", ".installed-cpu", ".installed-cpu-for-tests"):
        (tmp_path / stamp).touch()
    program(tmp_path / "bin" / "python", 'echo "python $*"')
    return tmp_path


def test_help_is_the_default_target() -> None:
    done = make()
    assert done.returncode == 0
    assert done.stdout == make("help").stdout
    assert all(f"make {target}" in done.stdout for target in ("validate", "test", "check", "setup"))


@pytest.mark.parametrize(
    ("code", "good"), [(0, True), (1, True), (3, True), (2, False), (4, False), (130, False)]
)
def test_validate_succeeds_whenever_a_verdict_was_reached(
    ready: Path, code: int, good: bool
) -> None:
    program(ready / "bin" / "omm-mlff", f'echo "called with $*"; exit {code}')
    done = make("validate", f"VENV={ready}", "EXTRA=cpu", "ARGS=--profile standard")
    assert (done.returncode == 0) is good
    assert done.stdout.splitlines()[0] == "called with validate --model tiny --profile standard"


def test_what_is_installed_is_not_installed_again(ready: Path) -> None:
    done = make("setup", f"VENV={ready}", "EXTRA=cpu")
    assert done.returncode == 0
    assert "pip" not in done.stdout


def test_another_plugin_replaces_the_one_that_is_there(ready: Path) -> None:
    done = make("setup", f"VENV={ready}", "EXTRA=cuda13")
    assert done.returncode == 0, done.stderr
    removed, installed = (line for line in done.stdout.splitlines() if "python -m pip" in line)
    assert "uninstall" in removed
    assert "acellera-openmmtorch-cpu" in removed
    assert ".[cuda13,report,teacher,xtb,ml,ase,physics,dev]" in installed
    assert "-c constraints.txt" in installed
    assert not (ready / ".installed-cpu").exists()
    assert (ready / ".installed-cuda13").exists()
    assert (ready / ".installed-cuda13-for-tests").exists()


@pytest.mark.parametrize(("words", "processes"), [([], "auto"), (["WORKERS=3"], "3")])
def test_the_tests_run_on_all_cores_unless_told_otherwise(
    ready: Path, words: list[str], processes: str
) -> None:
    done = make("test", f"VENV={ready}", "EXTRA=cpu", *words)
    called = next(line for line in done.stdout.splitlines() if line.startswith("python -m pytest"))
    assert f" -n {processes} --dist loadgroup " in called
    assert "--cov-fail-under=80" in called


def test_a_failed_installation_is_tried_again(ready: Path) -> None:
    (ready / ".installed-cpu").unlink()
    program(ready / "bin" / "python", "exit 1")
    done = make("validate", f"VENV={ready}", "EXTRA=cpu")
    assert done.returncode != 0
    assert not (ready / ".installed-cpu").exists()


def test_an_unknown_extra_is_refused(ready: Path) -> None:
    done = make("setup", f"VENV={ready}", "EXTRA=cuda11")
    assert done.returncode != 0
    assert "EXTRA is cpu, cuda12 or cuda13, not 'cuda11'" in done.stderr


@pytest.mark.parametrize(
    ("version", "extra"), [("13.0", "cuda13"), ("12.8", "cuda12"), ("", "cpu")]
)
def test_the_driver_decides_which_plugin_is_installed(
    tmp_path: Path, version: str, extra: str
) -> None:
    line = "| NVIDIA-SMI 580.82.07    Driver Version: 580.82.07    CUDA Version: {}   |"
    program(tmp_path / "nvidia-smi", f"echo '{line.format(version)}'" if version else "exit 9")
    done = make("help", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert f"EXTRA={extra} " in done.stdout


def test_a_python_too_old_is_refused_by_name(tmp_path: Path) -> None:
    old = program(
        tmp_path / "python3", 'case "$1" in --version) echo "Python 3.9.2" ;; *) exit 1 ;; esac'
    )
    done = make("setup", f"VENV={tmp_path / 'venv'}", f"PYTHON={old}")
    assert done.returncode != 0
    assert f"needs Python 3.11 to 3.13; {old} is Python 3.9.2" in done.stderr
    for name in ("python3.11", "python3.12", "python3.13"):
        program(tmp_path / name, "exit 127")
    done = make(
        "setup", f"VENV={tmp_path / 'venv'}", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    )
    assert done.returncode != 0
    assert "found Python 3.9.2" in done.stderr


def test_a_python_without_venv_is_explained(tmp_path: Path) -> None:
    bare = program(tmp_path / "python3", 'case "$2" in *venv*) exit 1 ;; esac')
    done = make("setup", f"VENV={tmp_path / 'venv'}", f"PYTHON={bare}")
    assert done.returncode != 0
    assert "apt-get install python3-venv" in done.stderr


def test_the_start_up_script_calls_the_doctor_that_is_on_the_path(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    script = checkout / "scripts" / "startup_check.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "startup_check.sh", script)
    path = f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin"

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(script), "--json"],
            env={"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )

    done = start()
    assert done.returncode == 2
    assert "make -C" in done.stderr
    program(tmp_path / "omm-mlff", 'echo "on the path: $*"; exit 4')
    done = start()
    assert (done.stdout, done.returncode) == ("on the path: doctor --json\n", 4)
    program(checkout / ".venv" / "bin" / "omm-mlff", 'echo "of the checkout: $*"')
    done = start()
    assert (done.stdout, done.returncode) == ("of the checkout: doctor --json\n", 0)


@pytest.mark.parametrize("words", [[], ["3.9"], ["3.12", "folder", "cu11"]])
def test_the_wheelhouse_script_explains_its_arguments(tmp_path: Path, words: list[str]) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "cuda_wheelhouse.sh"), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "usage: scripts/cuda_wheelhouse.sh PYTHON_VERSION" in done.stderr
