"""Where a step's time goes: model, pairs, Python around them, recording, integrator.

The model, the pairs and the integrator are timed by themselves; what the steps take beyond them is
what lies between OpenMM and the model, and what a recorded step takes beyond one that is not is
the recording.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import openmm
import torch

from omm_mlff.bench.ways import TIMESTEP_FS
from omm_mlff.forces.scripting import script
from omm_mlff.potentials.base import bare_system
from omm_mlff.schema import MolecularSystem
from omm_mlff.students.engine import BoxEngine, Engine, build_engine
from omm_mlff.students.student import Student
from omm_mlff.units import PS_PER_FS

_REPETITIONS = 7
_MEASURE_S = 0.1


@dataclass(frozen=True)
class Breakdown:
    """Seconds a step of all replicas; the parts add up to a recorded step, within the noise.

    Each is measured at its own time: one that would come out below zero by that is zero.

    Attributes
    ----------
    model : energy and forces, called from Python without OpenMM
    pairs : the neighbour list, where it is a step of its own; a molecule's pairs are in `model`
    python : between OpenMM and the model: the plugin, TorchScript, the custom op
    recording : keeping, watching and writing every step
    integrator : Verlet without forces
    """

    model: float
    pairs: float
    python: float
    recording: float
    integrator: float


def breakdown(
    student: Student,
    system: MolecularSystem,
    platform: str,
    *,
    engine: Engine,
    n_replicas: int,
    unrecorded_s: float,
    recorded_s: float,
) -> Breakdown:
    """The parts of a step.

    Parameters
    ----------
    unrecorded_s, recorded_s : seconds a step of all replicas
    """
    built = build_engine(
        student,
        torch.from_numpy(system.species),
        periodic=system.periodic,
        n_copies=n_replicas,
        engine=engine,
    )
    x = torch.from_numpy(np.tile(system.positions, (n_replicas, 1)))
    box = None if system.box_vectors is None else torch.from_numpy(system.box_vectors)
    finder = built if isinstance(built, BoxEngine) else getattr(built, "scripted", None)
    has_pairs = isinstance(finder, BoxEngine)
    # As TorchForce has it, not as plain Python, which is slower; and on its device.
    device = torch.device("cuda" if platform == "CUDA" else "cpu")
    model = script(built.eval()).to(device)
    x = x.to(device)
    box = None if box is None else box.to(device)
    whole = _seconds(lambda: model(x, box), device)
    pairs = 0.0
    if has_pairs:
        found = model if isinstance(built, BoxEngine) else model.scripted
        pairs = _seconds(lambda: found.pairs(x, box), device)
    integrator = _integrator_seconds(system, platform, n_replicas)
    return Breakdown(
        model=max(0.0, whole - pairs),
        pairs=pairs,
        python=max(0.0, unrecorded_s - whole - integrator),
        recording=max(0.0, recorded_s - unrecorded_s),
        integrator=integrator,
    )


def _integrator_seconds(system: MolecularSystem, platform: str, n_replicas: int) -> float:
    integrator = openmm.VerletIntegrator(TIMESTEP_FS * PS_PER_FS)
    context = openmm.Context(
        bare_system(system, n_replicas), integrator, openmm.Platform.getPlatformByName(platform)
    )
    context.setPositions(np.tile(system.positions, (n_replicas, 1)))
    many = 50

    def step() -> None:
        integrator.step(many)
        context.getState(positions=True)  # waits for the device

    return _seconds(step, torch.device("cpu")) / many


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a call that has been warmed up, until the device has done it."""

    def timed() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        timed()
    began, n_calls = time.perf_counter(), 0
    while n_calls < 1 or time.perf_counter() - began < _MEASURE_S / _REPETITIONS:
        timed()
        n_calls += 1
    found = []
    for _ in range(_REPETITIONS):
        began = time.perf_counter()
        for _ in range(n_calls):
            timed()
        found.append((time.perf_counter() - began) / n_calls)
    return statistics.median(found)
