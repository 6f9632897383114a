"""RunSpec -> run directory: recorded dynamics, every step, many replicas.

Replicas that fit into one System run together (`batch`); the rest runs after them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.dynamics.initial_state import degrees_of_freedom, minimized
from omm_mlff.dynamics.provenance import run_provenance
from omm_mlff.dynamics.recording import StatusLog
from omm_mlff.dynamics.replicas import FRICTION_PER_PS, Batch
from omm_mlff.errors import InputError, StorageError
from omm_mlff.forces.platforms import choose_platform
from omm_mlff.forces.threads import threads_for
from omm_mlff.potentials.base import Potential, refuse_unsupported
from omm_mlff.record import rundir
from omm_mlff.record.rundir import RunRecord
from omm_mlff.schema import MolecularSystem, RunSpec

Progress = Callable[[int, int], None]
"""Called with steps done and steps in all, over every batch of replicas."""

ENSEMBLES = ("nve", "nvt")


def simulate(
    spec: RunSpec,
    potential: Potential,
    system: MolecularSystem,
    folder: str | Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> RunRecord:
    """Run what a spec asks for and record it.

    Parameters
    ----------
    folder : of the run; new, unless `resume`
    resume : go on with what is there; a longer `length_ps` than before extends the run
    progress : called now and then

    Returns
    -------
    the run directory, opened; a replica that diverged, or for which the potential raised, is in its
    `events`

    Raises
    ------
    InputError : the ensemble is not known, or the run has no step
    UnsupportedSystemError : the potential cannot serve the system
    PlatformError : the platform is not available
    OutputExistsError : the folder holds another run
    StorageError : the disk is full; everything in closed segments is kept
    ValidationFailure : memory or the device failed; likewise
    """
    folder = Path(folder)
    if spec.ensemble not in ENSEMBLES:
        raise InputError(f"unknown ensemble {spec.ensemble!r}; known: {', '.join(ENSEMBLES)}")
    if spec.n_steps < 1 or spec.n_replicas < 1 or spec.record_stride < 1:
        raise InputError(
            f"a run needs one step, one replica and a stride of one, or more; got {spec.n_steps} "
            f"steps, {spec.n_replicas} replicas, stride {spec.record_stride}"
        )
    refuse_unsupported(potential, system)
    batch_size = min(spec.n_replicas, potential.capabilities(system).max_replicas)
    with threads_for(batch_size * system.n_atoms):
        _record(spec, potential, system, folder, batch_size, resume, progress)
    return RunRecord.open(folder)


def _record(
    spec: RunSpec,
    potential: Potential,
    system: MolecularSystem,
    folder: Path,
    batch_size: int,
    resume: bool,
    progress: Progress | None,
) -> None:
    platform_name = choose_platform(spec.platform, batch_size * system.n_atoms)
    with Evaluator(potential, system, platform_name, spec.precision) as evaluator:
        rest = minimized(evaluator)
        built = evaluator.built
    n_dof = degrees_of_freedom(system, spec.ensemble)
    provenance = run_provenance(spec, potential, system, platform_name, rest, n_dof)
    provenance["integrator"] = _integrator_provenance(spec)
    provenance["force"] = built.force
    provenance["engine"] = built.engine_on(platform_name)
    rundir.create(folder, spec, provenance, resume=resume)
    batches = [
        list(range(first, min(first + batch_size, spec.n_replicas)))
        for first in range(0, spec.n_replicas, batch_size)
    ]
    log = StatusLog(folder, spec)
    log.write("running")
    try:
        for number, replicas in enumerate(batches):
            done_before = number * spec.n_steps

            def report(step: int, done_before: int = done_before) -> None:
                if progress is not None:
                    progress(done_before + step, len(batches) * spec.n_steps)

            batch = Batch(spec, potential, system, platform_name, folder, number, replicas, log)
            batch.run(rest.positions, n_dof, report)
    except BaseException:
        with contextlib.suppress(OSError, StorageError):
            log.write("interrupted")
        raise
    log.write("complete")


def _integrator_provenance(spec: RunSpec) -> dict[str, Any]:
    if spec.ensemble == "nve":
        return {"name": "VerletIntegrator", "velocities": "on the step"}
    return {
        "name": "LangevinMiddleIntegrator",
        "velocities": "half a step behind, as the integrator has them",
        "friction_per_ps": FRICTION_PER_PS,
        "resumed": "from OpenMM's checkpoint, random stream included: the same run; where it does "
        "not load, a new stream, and status.json names the steps in new_random_streams",
    }
