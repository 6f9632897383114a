"""The platform that `auto` takes: where there is a GPU, the faster one for this very potential.

A GPU loses where there is little to compute: three atoms of a small student step faster on the
host than the plugin takes to call the device. So the potential itself takes some steps on the GPU
and on the host. Where no GPU computes, nothing of this is done.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openmm

from omm_mlff.dynamics.evaluator import make_context
from omm_mlff.errors import OmmMlffError, PlatformError
from omm_mlff.forces import platforms
from omm_mlff.forces.faults import one_line
from omm_mlff.forces.gpu_faults import gpu_fault
from omm_mlff.forces.plugin import why_no_torch_force
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials.base import Potential
from omm_mlff.potentials.registry import content_hash
from omm_mlff.schema import MolecularSystem, Precision

AUTO = "auto"

_HOST_ADVANTAGE = 0.9
"""On a tie the GPU: what it is given to do while it runs leaves the cores to others."""
_TIMESTEP_PS = 1e-4
_WARM_UP_STEPS = 5
_BLOCKS = 5
_BLOCK_STEPS = 4
_PATIENCE = 20.0
"""A host that is so many times slower in its first steps is not asked for more."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """Where a potential will run.

    Attributes
    ----------
    platform : its name
    notices : what a person should know of it, a line each: what was passed over, and why
    """

    platform: str
    notices: tuple[str, ...] = ()


def choose(
    potential: Potential,
    system: MolecularSystem,
    requested: str = AUTO,
    *,
    n_replicas: int = 1,
    precision: Precision = "double",
) -> Choice:
    """The platform for so many replicas of a system under a potential.

    Parameters
    ----------
    requested : a platform's name, which is taken or refused, or "auto"
    n_replicas : of one System

    Raises
    ------
    PlatformError : the named one is not there or does not compute
    """
    n_particles = n_replicas * system.n_atoms
    if requested != AUTO:
        return Choice(platforms.choose_platform(requested, n_particles))
    passed_over = tuple(_passed_over())
    for line in passed_over:
        say_once(line)
    first = platforms.choose_platform(AUTO, n_particles)
    if first not in platforms.GPU_PLATFORMS:
        return Choice(first, passed_over)
    box = b"" if system.box_vectors is None else system.box_vectors.tobytes()
    key = (potential.spec, content_hash(potential), system.species.tobytes(), box, n_replicas)
    if (*key, precision) not in _known:
        _known[*key, precision] = _faster(potential, system, first, n_replicas, precision)
    found = _known[*key, precision]
    return Choice(found.platform, (*passed_over, *found.notices))


_known: dict[tuple[object, ...], Choice] = {}


def _faster(
    potential: Potential,
    system: MolecularSystem,
    gpu: str,
    n_replicas: int,
    precision: Precision,
) -> Choice:
    host = platforms.host_platform(n_replicas * system.n_atoms)
    what = f"{potential.card.name}, {n_replicas} x {system.name}"
    try:
        on_gpu = seconds_per_step(potential, system, gpu, n_replicas, precision)
    except (OmmMlffError, openmm.OpenMMException, RuntimeError) as error:
        line = f"{what}: {gpu} fails ({gpu_fault(str(error)) or one_line(error)}); taken: {host}"
        say_once(line)
        return Choice(host, (line,))
    try:
        on_host = seconds_per_step(
            potential, system, host, n_replicas, precision, give_up_s=_PATIENCE * on_gpu
        )
    except (OmmMlffError, openmm.OpenMMException, RuntimeError):
        return Choice(gpu)
    if on_host >= _HOST_ADVANTAGE * on_gpu:
        return Choice(gpu)
    line = (
        f"{what}: {host} takes {1e3 * on_host:.2g} ms a step, {gpu} {1e3 * on_gpu:.2g}; taken: "
        f"{host} (--platform {gpu} insists)"
    )
    say_once(line)
    return Choice(host, (line,))


def seconds_per_step(
    potential: Potential,
    system: MolecularSystem,
    platform_name: str,
    n_replicas: int,
    precision: Precision,
    *,
    give_up_s: float = float("inf"),
) -> float:
    """Wall time of a step of Verlet's from the structure as given, with the tap; the median.

    Parameters
    ----------
    give_up_s : a first step after warming up that is slower is all that is taken
    """
    tap = Tap(n_replicas, system.n_atoms) if potential.capabilities(system).tap else None
    context = None
    try:
        integrator = openmm.VerletIntegrator(_TIMESTEP_PS)
        context = make_context(
            potential, system, integrator, platform_name, precision, n_copies=n_replicas, tap=tap
        )
        context.setPositions(np.tile(system.positions, (n_replicas, 1)))
        integrator.step(1)
        first = _timed(integrator, context, 1)
        if first > give_up_s:
            return first
        _timed(integrator, context, _WARM_UP_STEPS)
        return statistics.median(_timed(integrator, context, _BLOCK_STEPS) for _ in range(_BLOCKS))
    finally:
        del context
        if tap is not None:
            tap.close()


def _timed(integrator: openmm.Integrator, context: openmm.Context, n_steps: int) -> float:
    start = time.perf_counter()
    integrator.step(n_steps)
    context.getState(positions=True)  # waits for the device
    return (time.perf_counter() - start) / n_steps


def _passed_over() -> list[str]:
    """Why CUDA does not compute, where OpenMM's platform for it is installed."""
    reason = platforms.cuda_failure()
    return [f"CUDA is passed over: {reason}"] if reason else []


def refuse_fallback(
    potential: Potential, system: MolecularSystem, platform: str, *, allowed: bool
) -> None:
    """Stop where a platform was asked for by name and TorchForce, which is meant, cannot be had.

    Parameters
    ----------
    allowed : go on with what stands in for it

    Raises
    ------
    PlatformError : with the remedy
    """
    why = "" if platform == AUTO or allowed else why_not_meant(potential, system)
    if why:
        raise PlatformError(
            f"platform {platform!r} was asked for by name, and {why}; or go on through OpenMM's "
            "PythonForce, which computes on the host: --allow-fallback"
        )


def why_not_meant(potential: Potential, system: MolecularSystem) -> str:
    """Why another Force than the one that is meant carries a potential; empty where it does not."""
    if potential.capabilities(system).force != "torchforce":
        return ""
    return why_no_torch_force()


def where_runs_are(requested: str, used: Iterable[str]) -> str:
    """What to ask for so that frames are evaluated where the runs were: on their device, if any.

    Parameters
    ----------
    requested : for the runs
    used : the platforms that they were computed on
    """
    on_device = [name for name in used if name in platforms.GPU_PLATFORMS]
    return on_device[0] if requested == AUTO and on_device else requested


def require_recorded(folder: Path, recorded: str) -> None:
    """Go on by `auto` only where the platform that a run was begun on computes.

    Raises
    ------
    PlatformError : it does not; how to go on elsewhere
    """
    failure = platforms.platform_failure(recorded)
    if failure:
        raise PlatformError(
            f"{folder} was begun on {recorded}, which does not compute here: {failure}; to go on "
            "elsewhere name a platform, such as --platform CPU (the parts then differ by rounding)"
        )


def say_once(line: str) -> None:
    """A notice on the error stream, once in a process."""
    if line not in _said:
        _said.add(line)
        log.warning("notice: %s", line)


_said: set[str] = set()
