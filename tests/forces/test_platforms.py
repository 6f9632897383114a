"""A platform counts only if TorchForce computes on it."""

from __future__ import annotations

import openmm
import pytest

from omm_mlff.errors import PlatformError
from omm_mlff.forces import platforms
from omm_mlff.forces.platforms import (
    choose_platform,
    installed_platforms,
    platform_properties,
    working_platforms,
)


@pytest.fixture(autouse=True)
def _fresh():
    platforms.forget_what_failed()
    yield
    platforms.forget_what_failed()


def test_the_host_platforms_work():
    assert {"Reference", "CPU"} <= set(working_platforms())


def test_a_named_platform_is_taken_whatever_its_case():
    assert choose_platform("cpu", 10) == "CPU"


def test_a_missing_platform_lists_what_is_there():
    with pytest.raises(PlatformError, match=r"'Metal' is not available.*working: .*Reference"):
        choose_platform("Metal", 10)


def test_a_platform_that_computes_a_wrong_force_does_not_count(monkeypatch):
    monkeypatch.setattr(platforms._Spring, "forward", lambda self, x, box=None: (x, x))

    def wrong(name, n_particles, precision="double"):
        system = openmm.System()
        for _ in range(n_particles):
            system.addParticle(1.0)
        context = openmm.Context(
            system, openmm.VerletIntegrator(1e-4), openmm.Platform.getPlatformByName(name)
        )
        context.setPositions([(0.0, 0.0, 0.0)] * n_particles)
        return context

    monkeypatch.setattr(platforms, "spring_context", wrong)
    assert working_platforms() == []
    with pytest.raises(PlatformError, match="no platform computes"):
        choose_platform("auto", 3)


def test_a_platform_that_raises_does_not_count(monkeypatch):
    def raises(name, n_particles, precision="double"):
        raise openmm.OpenMMException("no kernels for TorchForce")

    monkeypatch.setattr(platforms, "spring_context", raises)
    assert "no kernels" in platforms.platform_failure("CPU")


def test_auto_prefers_cuda_then_opencl_then_the_faster_host(monkeypatch):
    there = {"CUDA", "OpenCL", "CPU", "Reference"}
    monkeypatch.setattr(
        platforms, "platform_failure", lambda name: "" if name in there else "absent"
    )
    monkeypatch.setattr(
        platforms, "_seconds_per_step", lambda name, n: {"CPU": 1.0, "Reference": 2.0}[name]
    )
    for gone, expected in (("CUDA", "OpenCL"), ("OpenCL", "CPU")):
        platforms.choose_platform.cache_clear()
        assert choose_platform("auto", 10) != expected
        there.remove(gone)
        platforms.choose_platform.cache_clear()
        assert choose_platform("auto", 10) == expected


def test_precision_is_a_property_of_gpu_platforms_only():
    assert platform_properties("CUDA", "mixed") == {"Precision": "mixed"}
    assert platform_properties("Reference", "mixed") == {}


def test_installed_platforms_come_best_first():
    names = installed_platforms()
    assert names.index("CPU") < names.index("Reference")


def test_auto_takes_reference_for_small_systems():
    assert choose_platform("auto", 3) == "Reference"
