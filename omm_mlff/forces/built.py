"""What a potential has put into a System: which Force, and what evaluates it on which device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import openmm

ForceKind = Literal["torchforce", "pythonforce", "openmm"]
"""TorchForce of the plugin, OpenMM's own PythonForce, or Forces that OpenMM computes itself."""

_CARRIERS: tuple[ForceKind, ...] = ("torchforce", "pythonforce")

Device = Literal["cpu", "cuda"]


def device_of(platform_name: str) -> Device:
    """Where torch computes for a TorchForce on a platform; for OpenCL that is the host."""
    return "cuda" if platform_name in ("CUDA", "HIP") else "cpu"


def kind_in(openmm_system: openmm.System) -> ForceKind:
    """The kind of Force that a System has: one that carries a model if there is one."""
    names = {force.getName().lower() for force in openmm_system.getForces()}
    return next((kind for kind in _CARRIERS if kind in names), "openmm")


@dataclass(frozen=True)
class Built:
    """What `Potential.add_to` has added to a System.

    Attributes
    ----------
    force : the kind of Force
    engines : what evaluates, by the device on which it is asked, such as "scripted" or "compiled
        (C++)"; empty where nothing is to choose
    graph : whether evaluations on CUDA are captured once and replayed
    graph_reason : why, or why not, in one line; empty where nothing could be captured
    fallback : why this Force stands in for a TorchForce, in one line; empty where it does not
    """

    force: ForceKind = "openmm"
    engines: Mapping[Device, str] = field(default_factory=dict)
    graph: bool = False
    graph_reason: str = ""
    fallback: str = ""

    def engine_on(self, platform_name: str) -> str:
        """The engine that evaluates on a platform; a PythonForce computes on the host anyway."""
        device: Device = "cpu" if self.force == "pythonforce" else device_of(platform_name)
        return self.engines.get(device, "")

    @property
    def notices(self) -> tuple[str, ...]:
        """What a person should know of it, a line each."""
        return (f"PythonForce computes in the place of TorchForce: {self.fallback}",) * bool(
            self.fallback
        )
