"""RunSpec -> run directory: recorded dynamics, every step, many replicas.

Replicas that fit into one System run together (`batch`), many steps in one call of OpenMM where
that can be (`stepper`); the rest runs after them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omm_mlff.dynamics.batch import BatchPlan, record_batch
from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.dynamics.initial_state import degrees_of_freedom, minimized
from omm_mlff.dynamics.integrator import FRICTION_PER_PS
from omm_mlff.dynamics.platform_choice import (
    AUTO,
    Choice,
    choose,
    refuse_fallback,
    require_recorded,
    say_once,
)
from omm_mlff.dynamics.provenance import run_provenance
from omm_mlff.dynamics.recording import StatusLog
from omm_mlff.errors import InputError, OutputExistsError, StorageError
from omm_mlff.forces.platforms import device_properties
from omm_mlff.forces.threads import threads_for
from omm_mlff.potentials.base import Potential, refuse_unsupported
from omm_mlff.record import rundir
from omm_mlff.record.rundir import RunRecord
from omm_mlff.schema import MolecularSystem, RunSpec

Progress = Callable[[int, int], None]
"""Called with steps done and steps in all, over every batch of replicas."""

ENSEMBLES = ("nve", "nvt")
_COMPUTED_BY = ("platform", "force", "engine")


def simulate(
    spec: RunSpec,
    potential: Potential,
    system: MolecularSystem,
    folder: str | Path,
    *,
    resume: bool = False,
    allow_fallback: bool = False,
    progress: Progress | None = None,
) -> RunRecord:
    """Run what a spec asks for and record it.

    Parameters
    ----------
    folder : of the run; new, unless `resume`
    resume : go on with what is there; a longer `length_ps` than before extends the run
    allow_fallback : where the spec names a platform, go on through a PythonForce, which computes on
        the host, if TorchForce cannot be had; otherwise that is an error
    progress : called now and then

    Returns
    -------
    the run directory, opened; a replica that diverged, or for which the potential raised, is in its
    `events`

    Raises
    ------
    InputError : what no simulation can be, see `require_possible`
    UnsupportedSystemError : the potential cannot serve the system
    PlatformError : the platform is not available; the run was begun on one that is not, and no
        other is named; TorchForce cannot be had
    OutputExistsError : the folder holds another run, or one of another model
    StorageError : the disk is full; everything in closed segments is kept
    ValidationFailure : memory or the device failed; likewise
    """
    folder = Path(folder)
    require_possible(spec)
    refuse_unsupported(potential, system)
    refuse_fallback(potential, system, spec.platform, allowed=allow_fallback)
    batch_size = min(spec.n_replicas, potential.capabilities(system).max_replicas)
    with threads_for(batch_size * system.n_atoms):
        _record(spec, potential, system, folder, batch_size, resume, progress)
    return RunRecord.open(folder)


def require_possible(spec: RunSpec) -> None:
    """Refuse what no simulation can be.

    Raises
    ------
    InputError : an unknown ensemble; a temperature or a seed below 0; a length, a timestep, a
        stride, a number of steps or replicas that is not positive; a number that is not finite
    """
    if spec.ensemble not in ENSEMBLES:
        raise InputError(f"unknown ensemble {spec.ensemble!r}; known: {', '.join(ENSEMBLES)}")
    for wanted, unit, value, low in (
        ("a temperature of 0 or more", " K", spec.temperature_K, 0.0),
        ("a length above 0", " ps", spec.length_ps, math.ulp(0.0)),
        ("a timestep above 0", " fs", spec.timestep_fs, math.ulp(0.0)),
        ("a seed of 0 or more", "", spec.seed, 0),
    ):
        if not (math.isfinite(value) and value >= low):
            raise InputError(f"a run needs {wanted}; got {value:g}{unit}")
    if spec.n_steps < 1 or spec.n_replicas < 1 or spec.record_stride < 1:
        raise InputError(
            f"a run needs one step, one replica and a stride of one, or more; got {spec.n_steps} "
            f"steps, {spec.n_replicas} replicas, stride {spec.record_stride}"
        )


def _record(
    spec: RunSpec,
    potential: Potential,
    system: MolecularSystem,
    folder: Path,
    batch_size: int,
    resume: bool,
    progress: Progress | None,
) -> None:
    before = _recorded(folder) if resume else {}
    chosen = _platform(spec, potential, system, folder, before.get("platform"), batch_size)
    platform_name = chosen.platform
    with Evaluator(potential, system, platform_name, spec.precision) as evaluator:
        rest = minimized(evaluator)
        built = evaluator.built
        device = device_properties(evaluator.context)
    n_dof = degrees_of_freedom(system, spec.ensemble)
    provenance = run_provenance(spec, potential, system, platform_name, rest, n_dof)
    provenance["integrator"] = _integrator_provenance(spec)
    provenance["force"] = built.force
    provenance["engine"] = built.engine_on(platform_name)
    provenance["graph"] = {"replayed": built.graph, "reason": built.graph_reason}
    for line in built.notices:
        say_once(line)
    notices = (*before.get("notices", []), *chosen.notices, *built.notices)
    provenance["notices"] = list(dict.fromkeys(notices))
    if device:
        provenance["device"] = device
    if before:
        _refuse_another_model(folder, before, provenance)
        provenance["earlier"] = _earlier(before, provenance)
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

            plan = BatchPlan(spec, potential, system, platform_name, folder, number, replicas)
            record_batch(plan, rest.positions, n_dof, log, report)
    except BaseException:
        with contextlib.suppress(OSError, StorageError):
            log.write("interrupted")
        raise
    log.write("complete")


def _recorded(folder: Path) -> dict[str, Any]:
    """The provenance of a run that is there already; empty where there is none."""
    path = folder / rundir.PROVENANCE_FILE
    return dict(rundir.read_json(path)) if path.exists() else {}


def _platform(
    spec: RunSpec,
    potential: Potential,
    system: MolecularSystem,
    folder: Path,
    recorded: str | None,
    batch_size: int,
) -> Choice:
    """Where the run goes; one that was begun goes on where it was, unless another is named."""
    if spec.platform == AUTO and recorded is not None:
        require_recorded(folder, recorded)
        return Choice(recorded)
    return choose(potential, system, spec.platform, n_replicas=batch_size, precision=spec.precision)


def _refuse_another_model(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Go on only with the model that a run was begun with, whatever their names are."""
    found, wanted = before.get("potential", {}).get("sha256"), now["potential"]["sha256"]
    if found is not None and found != wanted:
        raise OutputExistsError(
            f"{folder} holds a run of another model named {before['potential'].get('name')}: its "
            f"content had the sha256 {found[:12]}..., this one's is {str(wanted)[:12]}...; use "
            "another --out, or the model as it was"
        )


def _earlier(before: dict[str, Any], now: dict[str, Any]) -> list[dict[str, Any]]:
    """Where the first parts of the run were computed, if elsewhere or by something else."""
    said = {key: before.get(key) for key in _COMPUTED_BY}
    earlier: list[dict[str, Any]] = list(before.get("earlier", []))
    return earlier if said == {key: now.get(key) for key in _COMPUTED_BY} else [*earlier, said]


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
