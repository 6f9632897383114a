"""Which OpenMM platforms are there, and on which of them a TorchForce computes.

A platform that loads is not yet one that works: the plugin may lack its kernels, or the device
may be busy. So each is tried with a force whose value is known.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Iterator
from contextvars import ContextVar

import numpy as np
import openmm
import torch
from torch import Tensor, nn

from omm_mlff.errors import InputError, PlatformError
from omm_mlff.forces.gpu_faults import gpu_fault, missing_platform
from omm_mlff.forces.making import make_force
from omm_mlff.forces.plugin import load_kernels
from omm_mlff.schema import Precision

PREFERENCE = ("CUDA", "OpenCL", "CPU", "Reference")
GPU_PLATFORMS = ("CUDA", "OpenCL")
_SPRING = 100.0  # kJ/mol/nm^2
_CPU_ADVANTAGE = 0.9
_DEVICE = "DeviceIndex"


class _Spring(nn.Module):
    """E = k x^2 for every coordinate, hence F = -2 k x."""

    def __init__(self) -> None:
        super().__init__()
        self.k = _SPRING

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        energy = (self.k * positions * positions).sum().to(torch.float64)
        return energy.unsqueeze(0), -2.0 * self.k * positions


def installed_platforms() -> list[str]:
    """Names of the platforms that OpenMM has loaded, best first."""
    load_kernels()
    names = [
        openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())
    ]
    rank = {name: i for i, name in enumerate(PREFERENCE)}
    return sorted(names, key=lambda name: rank.get(name, len(rank)))


def platform_properties(name: str, precision: Precision) -> dict[str, str]:
    """Properties for a Context; only the GPU platforms have a choice of precision."""
    return {"Precision": precision} if name in GPU_PLATFORMS else {}


@contextlib.contextmanager
def on_device(platform: str, index: int | None) -> Iterator[None]:
    """Every Context that is made inside computes on this device of a platform, and torch with it.

    Parameters
    ----------
    platform : CUDA or OpenCL, by its name
    index : as nvidia-smi counts those that CUDA_VISIBLE_DEVICES leaves; None changes nothing

    Raises
    ------
    InputError : another platform, which has no devices
    PlatformError : the platform or the device is not there
    """
    if index is None:
        yield
        return
    name = {known.lower(): known for known in GPU_PLATFORMS}.get(platform.lower())
    if name is None:
        raise InputError(
            f"device {index} was asked for with platform {platform!r}; devices belong to a "
            "platform by name: --platform CUDA --device N"
        )
    if name not in installed_platforms():
        raise PlatformError(
            f"platform {name!r} is not available here: "
            f"{missing_platform(name, openmm.Platform.getPluginLoadFailures())}"
        )
    n_devices = torch.cuda.device_count() if name == "CUDA" else index + 1
    if not 0 <= index < n_devices:
        there = {0: "none is", 1: "only device 0 is"}.get(n_devices, f"0 to {n_devices - 1} are")
        raise PlatformError(
            f"there is no CUDA device {index} here ({there}); name one that nvidia-smi lists and "
            "CUDA_VISIBLE_DEVICES leaves"
        )
    chosen = openmm.Platform.getPlatformByName(name)
    before = chosen.getPropertyDefaultValue(_DEVICE)
    chosen.setPropertyDefaultValue(_DEVICE, str(index))
    asked = _asked.set(index)
    forget_what_failed()
    try:
        with torch.cuda.device(index) if name == "CUDA" else contextlib.nullcontext():
            yield
    finally:
        _asked.reset(asked)
        chosen.setPropertyDefaultValue(_DEVICE, before)
        forget_what_failed()


_asked: ContextVar[int | None] = ContextVar("device", default=None)


def device_asked() -> int | None:
    """The index inside `on_device`; None elsewhere."""
    return _asked.get()


def forget_what_failed() -> None:
    """Try each platform anew when it is next asked for."""
    platform_failure.cache_clear()
    choose_platform.cache_clear()
    host_platform.cache_clear()


def device_properties(context: openmm.Context) -> dict[str, str]:
    """Index and name of the device that a Context computes on; empty on the host."""
    platform = context.getPlatform()
    if platform.getName() not in GPU_PLATFORMS:
        return {}
    return {
        "index": platform.getPropertyValue(context, _DEVICE),
        "name": platform.getPropertyValue(context, "DeviceName"),
    }


def spring_context(name: str, n_particles: int, precision: Precision = "double") -> openmm.Context:
    """A Context in which every particle hangs on a spring, through the plugin."""
    system = openmm.System()
    for _ in range(n_particles):
        system.addParticle(1.0)
    system.addForce(make_force(_Spring(), periodic=False))
    context = openmm.Context(
        system,
        openmm.VerletIntegrator(1e-4),
        openmm.Platform.getPlatformByName(name),
        platform_properties(name, precision),
    )
    context.setPositions(np.linspace(-0.1, 0.1, 3 * n_particles).reshape(n_particles, 3))
    return context


@functools.cache
def platform_failure(name: str) -> str:
    """Why a platform does not compute a TorchForce, in one line; empty if it does."""
    if name not in installed_platforms():
        return str(missing_platform(name, openmm.Platform.getPluginLoadFailures()))
    try:
        context = spring_context(name, 4)
        state = context.getState(energy=True, forces=True)
    except (openmm.OpenMMException, RuntimeError) as error:  # torch raises the latter
        fault = gpu_fault(str(error)) if name in GPU_PLATFORMS else None
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return lines[0] if fault is None else str(fault)
    positions = np.linspace(-0.1, 0.1, 12).reshape(4, 3)
    forces = state.getForces(asNumpy=True)._value
    energy = state.getPotentialEnergy()._value
    wrong_forces = not np.allclose(forces, -2.0 * _SPRING * positions, rtol=1e-5, atol=1e-5)
    if wrong_forces or not np.isclose(energy, _SPRING * (positions**2).sum(), rtol=1e-5):
        return "computes a wrong force for a spring"
    return ""


def cuda_failure() -> str:
    """Why CUDA does not compute, where somebody has installed OpenMM's platform for it.

    Empty where it computes, and where it is not installed: then nobody expects it.
    """
    failures = openmm.Platform.getPluginLoadFailures()
    if "CUDA" in installed_platforms() or any("libOpenMMCUDA.so" in row for row in failures):
        return platform_failure("CUDA")
    return ""


def working_platforms() -> list[str]:
    """Names of the platforms on which TorchForce computes, best first."""
    return [name for name in installed_platforms() if not platform_failure(name)]


@functools.cache
def choose_platform(requested: str, n_particles: int) -> str:
    """The platform to run on.

    Parameters
    ----------
    requested : a platform's name, or "auto": CUDA, then OpenCL, then whichever of Reference and
        CPU steps faster with this many particles
    n_particles : of the whole System, replicas included

    Raises
    ------
    PlatformError : the named one is not there or does not compute
    """
    if requested != "auto":
        known = {name.lower(): name for name in (*PREFERENCE, *installed_platforms())}
        name = known.get(requested.lower(), requested)
        failure = platform_failure(name)
        if failure:
            working = ", ".join(working_platforms())
            raise PlatformError(
                f"platform {requested!r} is not available here: {failure} (working: {working}); "
                "use --platform auto or one of these"
            )
        return name
    for name in GPU_PLATFORMS:
        if not platform_failure(name):
            return name
    return host_platform(n_particles)


@functools.cache
def host_platform(n_particles: int) -> str:
    """Reference or CPU, whichever steps faster with this many particles.

    Raises
    ------
    PlatformError : neither computes
    """
    hosts = [name for name in ("Reference", "CPU") if not platform_failure(name)]
    if not hosts:
        reasons = "; ".join(f"{name}: {platform_failure(name)}" for name in installed_platforms())
        raise PlatformError(
            f"no platform computes a TorchForce here ({reasons}); run omm-mlff doctor"
        )
    if len(hosts) == 1:
        return hosts[0]
    seconds = {name: _seconds_per_step(name, n_particles) for name in hosts}
    # On a tie Reference: it is deterministic and keeps everything in double precision.
    return "CPU" if seconds["CPU"] < _CPU_ADVANTAGE * seconds["Reference"] else "Reference"


def _seconds_per_step(name: str, n_particles: int) -> float:
    integrator = (context := spring_context(name, n_particles)).getIntegrator()
    integrator.step(5)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        integrator.step(10)
        times.append((time.perf_counter() - start) / 10)
    del context
    return statistics.median(times)
