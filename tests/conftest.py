"""One thread for every numerical library, the teacher, a reason for every skipped CUDA test."""

from __future__ import annotations

import os

# Before torch or OpenMM is loaded by anything: both read these once. Tests share the machine with
# one another and with other work; sums are also reproducible only on a fixed number of threads.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENMM_CPU_THREADS"):
    os.environ[_name] = "1"

import functools

import openmm
import pytest
import torch

from omm_mlff.errors import MissingPackageError
from omm_mlff.teachers.ani import Teacher

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def teacher() -> Teacher:
    """The teacher, loaded once for all tests that need it."""
    # Not importorskip: torchani warns while it is imported, and Teacher() knows of that.
    try:
        return Teacher()
    except MissingPackageError as error:
        pytest.skip(str(error))


@functools.cache
def cuda_obstacle() -> str | None:
    """Why a test marked `cuda` cannot run here; None where it can."""
    if not torch.cuda.is_available():
        return "no CUDA device: torch.cuda.is_available() is false"
    platforms = [
        openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())
    ]
    if "CUDA" not in platforms:
        failures = "; ".join(openmm.Platform.getPluginLoadFailures()) or "its plugin is absent"
        return f"a CUDA device is here, but OpenMM has no CUDA platform: {failures}"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("cuda")]
    reason = cuda_obstacle() if marked else None
    if reason is not None:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))
