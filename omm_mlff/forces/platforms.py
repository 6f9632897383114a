"""Which OpenMM platform a potential runs on: one that is there, and on which TorchForce computes.

A platform that loads is not yet one that works: the plugin may lack its kernels, or the device
may be busy. So each is tried with a force whose value is known.
"""

from __future__ import annotations

import functools
import statistics
import time

import numpy as np
import openmm
import torch
from torch import Tensor, nn

from omm_mlff.errors import PlatformError
from omm_mlff.forces.making import make_force
from omm_mlff.schema import Precision

PREFERENCE = ("CUDA", "OpenCL", "CPU", "Reference")
_GPU_PLATFORMS = ("CUDA", "OpenCL")
_SPRING = 100.0  # kJ/mol/nm^2
_CPU_ADVANTAGE = 0.9


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
    names = [
        openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())
    ]
    rank = {name: i for i, name in enumerate(PREFERENCE)}
    return sorted(names, key=lambda name: rank.get(name, len(rank)))


def platform_properties(name: str, precision: Precision) -> dict[str, str]:
    """Properties for a Context; only the GPU platforms have a choice of precision."""
    return {"Precision": precision} if name in _GPU_PLATFORMS else {}


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
    """Why a platform does not compute a TorchForce; empty if it does."""
    if name not in installed_platforms():
        return "not installed"
    try:
        context = spring_context(name, 4)
        state = context.getState(energy=True, forces=True)
    except openmm.OpenMMException as error:
        return str(error).strip().splitlines()[0]
    positions = np.linspace(-0.1, 0.1, 12).reshape(4, 3)
    forces = state.getForces(asNumpy=True)._value
    energy = state.getPotentialEnergy()._value
    wrong_forces = not np.allclose(forces, -2.0 * _SPRING * positions, rtol=1e-5, atol=1e-5)
    if wrong_forces or not np.isclose(energy, _SPRING * (positions**2).sum(), rtol=1e-5):
        return "computes a wrong force for a spring"
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
        known = {name.lower(): name for name in installed_platforms()}
        name = known.get(requested.lower(), requested)
        failure = platform_failure(name)
        if failure:
            working = ", ".join(working_platforms())
            raise PlatformError(
                f"platform {requested!r} is not available here ({failure}; working: {working}); "
                "use --platform auto or one of these"
            )
        return name
    for name in _GPU_PLATFORMS:
        if not platform_failure(name):
            return name
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
