"""One thread for every numerical library, the teacher, what runs where, why a test is skipped."""

from __future__ import annotations

import os

# Before torch or OpenMM is loaded by anything: both read these once. Tests share the machine with
# one another and with other work; sums are also reproducible only on a fixed number of threads.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENMM_CPU_THREADS"):
    os.environ[_name] = "1"

import functools
from collections import Counter

import openmm
import psutil
import pytest
import torch

from omm_mlff.errors import MissingPackageError
from omm_mlff.teachers.ani import Teacher

torch.set_num_threads(1)

_WORKER_BYTES = 2 * 2**30
"""What a process of the tests holds at its largest, the teacher included."""


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`: a process for each processor that this one may use, as far as memory goes."""
    try:
        processors = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        processors = os.cpu_count() or 1
    return max(1, min(processors, psutil.virtual_memory().available // _WORKER_BYTES))


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


def group_of(item: pytest.Item) -> str:
    """The group that runs in one process, one test after another, under `--dist loadgroup`.

    Those that time something, whatever their file, so that they do not time one another; those on
    a CUDA device, which all share; else those of a file, which share its fixtures and caches.
    """
    for mark in ("cuda", "timed"):
        if item.get_closest_marker(mark):
            return mark
    return item.nodeid.partition("::")[0]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What takes longest begins first, so that no process waits for another at the end.
    n_slow = Counter(group_of(item) for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -n_slow[group_of(item)])
    marked = [item for item in items if item.get_closest_marker("cuda")]
    reason = cuda_obstacle() if marked else None
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(group_of(item)))
    if reason is not None:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))
