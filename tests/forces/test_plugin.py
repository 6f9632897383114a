"""The plugin loads whatever was imported first, and says why where it does not."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import openmm
import pytest

from omm_mlff.errors import MissingPackageError
from omm_mlff.forces import plugin
from omm_mlff.forces.plugin import built_as, load_kernels, load_plugin, resolve_backend

HERE = Path(__file__).resolve()
SITE = Path(openmm.__file__).resolve().parents[1]
ROOT = HERE.parents[2]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """OpenMM and its plugin in another folder than torch."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name in ("openmm", "OpenMM.libs", "simtk"):
        shutil.copytree(SITE / name, folder / name)
    for path in SITE.glob("*openmmtorch*.*"):
        if path.is_file():
            shutil.copy(path, folder)
    return folder


def run(elsewhere, code):
    path = os.pathsep.join([str(elsewhere), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


FAILED = """
import openmm
assert openmm.__file__.startswith({folder!r}), openmm.__file__
print(sum("TorchReference" in row for row in openmm.Platform.getPluginLoadFailures()))
"""
COMPUTES = """
from omm_mlff.forces.platforms import platform_failure
print([platform_failure(name) for name in ("Reference", "CPU")])
"""


def test_openmm_cannot_load_the_kernels_before_torch_is_there(elsewhere):
    assert run(elsewhere, FAILED.format(folder=str(elsewhere))) == ["1"]


@pytest.mark.parametrize("order", ["openmm, torch", "openmm", "torch, openmm"])
def test_the_plugin_computes_whatever_was_imported_first(elsewhere, order):
    assert run(elsewhere, f"import {order}\n{COMPUTES}") == ["['', '']"]


def test_the_doctor_finds_it_computing_there(elsewhere):
    code = (
        "import openmm\nfrom omm_mlff.doctor import look_at_platforms, look_at_torch_force\n"
        "print([row.status for row in look_at_torch_force('Reference')])\n"
        "print([row.detail for row in look_at_platforms() if 'libtorch' in row.detail])"
    )
    assert run(elsewhere, code) == ["['ok']", "[]"]


@pytest.fixture
def fresh():
    load_plugin.cache_clear()
    load_kernels.cache_clear()
    yield
    load_plugin.cache_clear()
    load_kernels.cache_clear()


def test_a_plugin_that_is_there_and_does_not_load_is_no_absent_one(monkeypatch, fresh):
    monkeypatch.setitem(sys.modules, "openmmtorch", None)  # what a failed import leaves
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(MissingPackageError, match="is installed and does not load"):
        load_plugin()
    assert resolve_backend("auto") == "pythonforce"
    built = built_as()
    assert built.force == "pythonforce"
    assert "does not load" in built.fallback
    assert "PythonForce computes in the place of TorchForce" in built.notices[0]
    assert built_as("pythonforce").notices == ()


def test_an_absent_plugin_is_one_to_install(monkeypatch, fresh):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="is not installed; run: pip install"):
        load_plugin()


def test_kernels_that_do_not_load_are_named(monkeypatch, fresh):
    said = "Error loading library /x/libOpenMMTorchReference.so: libtorch.so: undefined symbol: x"

    class Broken:
        @staticmethod
        def getPluginLoadFailures():
            return [said]

        @staticmethod
        def loadPluginLibrary(path):
            assert path == "/x/libOpenMMTorchReference.so"
            raise openmm.OpenMMException(said)

    monkeypatch.setattr(plugin.openmm, "Platform", Broken)
    with pytest.raises(MissingPackageError, match=r"does not load \(libtorch.so: undefined symbol"):
        load_plugin()


def test_a_python_force_computes_on_the_host_whatever_the_platform():
    built = built_as("pythonforce", engines={"cpu": "compiled", "cuda": "scripted"})
    assert built.engine_on("CUDA") == "compiled"
    assert built_as("torchforce", engines=built.engines).engine_on("CUDA") == "scripted"
    assert built_as("torchforce", engines=built.engines).engine_on("OpenCL") == "compiled"
