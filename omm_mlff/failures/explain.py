"""Explains a failed run: an ordered diagnosis for each replica, and a folder with what shows it.

    replica_003/
      failure.json   symptoms in order of onset, forces of the model and of the teacher
      before.pdb     frames of the last 50 fs before the first symptom
      after.pdb      frames after it, and some steps beyond the record
      replay.py      lets it happen again; starts from state.npz

The first symptom is the diagnosis: what comes later may follow from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from omm_mlff.checks.bonds import IncidentScan
from omm_mlff.failures.course import course_of
from omm_mlff.failures.disagreement import compared_forces, usable_teacher
from omm_mlff.failures.energetics import energetic_symptoms
from omm_mlff.failures.geometry import structural_symptoms
from omm_mlff.failures.moments import (
    BEFORE_PS,
    N_SHOWN,
    Moment,
    half_velocities,
    moment,
    steps_beyond,
    write_models,
)
from omm_mlff.failures.replay import SCRIPT, write_replay
from omm_mlff.failures.symptoms import Symptom, in_order
from omm_mlff.potentials.base import Potential
from omm_mlff.record.documents import write_json
from omm_mlff.record.rundir import replica_folder
from omm_mlff.record.storage import storage_errors
from omm_mlff.schema import MolecularSystem, finite
from omm_mlff.units import PS_PER_FS

if TYPE_CHECKING:
    from omm_mlff.record.rundir import RunRecord
    from omm_mlff.teachers.ani import Teacher

MAX_REPLICAS = 3
"""Replicas of one run that are written out; those that failed first."""

_MAX_REPLAYED = 400
_BEYOND = 20  # steps that a replay goes beyond the record


@dataclass(frozen=True)
class Explanation:
    """Why one replica failed.

    Attributes
    ----------
    run : name of the run
    symptoms : in order of onset; the first is the diagnosis
    n_failed : replicas of the run that have symptoms, this one among them
    folder : with `failure.json` and the rest
    """

    run: str
    replica: int
    symptoms: tuple[Symptom, ...]
    n_failed: int
    folder: Path

    @property
    def diagnosis(self) -> str:
        """Kind of the first symptom, such as "broken-bond"."""
        return self.symptoms[0].kind

    @property
    def replay(self) -> Path | None:
        """The script that lets it happen again; None where there is no frame to start from."""
        script = self.folder / SCRIPT
        return script if script.is_file() else None

    @property
    def sentence(self) -> str:
        """The diagnosis for a person."""
        first = self.symptoms[0]
        return f"{first.kind} at {first.time_ps:.4g} ps: {first.sentence}"


def diagnose(run: RunRecord, system: MolecularSystem, index: int) -> tuple[Symptom, ...]:
    """The symptoms of one replica in order of onset; none for a sound one."""
    return _symptoms(IncidentScan.of(system, run), index)


def _symptoms(scan: IncidentScan, index: int) -> tuple[Symptom, ...]:
    event = scan.run.events.get(index)
    found = structural_symptoms(scan, index, event)
    course = course_of(scan.run, scan.system, index)
    return in_order([*found, *energetic_symptoms(scan.run, course, event)])


def explain(
    run: RunRecord,
    system: MolecularSystem,
    potential: Potential,
    folder: Path,
    teacher: Teacher | Literal["auto"] | None = "auto",
) -> list[Explanation]:
    """Explain what failed in a run, and write it down.

    Parameters
    ----------
    folder : gets a folder for each replica that is explained; nothing is written for a sound run
    teacher : whose forces are set beside the model's; "auto" loads ANI-1ccx where it applies

    Returns
    -------
    for at most `MAX_REPLICAS` replicas, those that failed first in front; empty for a sound run

    Raises
    ------
    StorageError : the disk is full or not writable
    """
    scan = IncidentScan.of(system, run)
    symptoms = {index: _symptoms(scan, index) for index in range(run.n_replicas)}
    failed = [index for index, found in symptoms.items() if found]
    if not failed:
        return []
    failed.sort(key=lambda index: (symptoms[index][0].time_ps, index))
    witness, why_not = usable_teacher(system, teacher)
    explanations = []
    for index in failed[:MAX_REPLICAS]:
        place = folder / replica_folder(index)
        with storage_errors(place):
            place.mkdir(parents=True, exist_ok=True)
        made = Explanation(run.spec.name, index, symptoms[index], len(failed), place)
        _write(made, scan, potential, witness, why_not)
        explanations.append(made)
    return explanations


def _write(
    made: Explanation,
    scan: IncidentScan,
    potential: Potential,
    teacher: Teacher | None,
    why_not: str,
) -> None:
    """Everything that belongs to one replica."""
    run, system, names = scan.run, scan.system, scan.names
    first = made.symptoms[0]
    report: dict[str, Any] = {
        "schema": 1,
        "run": made.run,
        "replica": made.replica,
        "potential": run.spec.potential,
        "system": system.name,
        "temperature_K": run.spec.temperature_K,
        "diagnosis": first.kind,
        "sentence": made.sentence,
        "n_failed": made.n_failed,
        "n_replicas": run.n_replicas,
        "symptoms": [
            {**item.to_json(), "atom_names": [names[atom] for atom in item.atoms]}
            for item in made.symptoms
        ],
    }
    time = run.replica(made.replica).time
    if not len(time):
        report["frames"] = None
        report["frames_absent"] = "the replica has no frame: it failed at its first evaluation"
        write_json(made.folder / "failure.json", finite(report))
        return
    n_window = max(1, round(BEFORE_PS / run.dt_ps))
    onset = min(int(np.searchsorted(time, first.time_ps - 0.5 * run.dt_ps)), len(time) - 1)
    start = max(0, onset - n_window)
    end = min(len(time) - 1, onset + n_window)
    around = moment(run, made.replica, start, end)
    before = Moment(*(array[: onset - start + 1] for array in vars(around).values()))
    report["forces"] = compared_forces(system, before, first.atoms, names, teacher, why_not)
    stopped = made.replica in run.events
    n_steps = round((float(time[-1]) - around.time[0]) / (run.spec.timestep_fs * PS_PER_FS))
    n_steps = min(n_steps + _BEYOND, _MAX_REPLAYED)
    shown = before.spread(N_SHOWN)
    report["frames"] = {
        "before": {
            "file": "before.pdb",
            "n_written": write_models(made.folder / "before.pdb", system, before.positions[shown]),
            "time_ps": before.time[shown],
        },
        "after": _after(made, run, system, potential, around, onset - start, stopped),
    }
    report["replay"] = {"script": "replay.py", "from_ps": around.time[0], "n_steps": n_steps}
    write_replay(
        made.folder,
        run,
        system,
        title=(
            f"Replays replica {made.replica} of {run.spec.potential} on {system.name} "
            f"({run.spec.temperature_K:g} K): {made.sentence}"
        ),
        start_ps=float(around.time[0]),
        positions=around.positions[0],
        velocities=half_velocities(run, around, 0),
        n_steps=n_steps,
    )
    write_json(made.folder / "failure.json", finite(report))


def _after(
    made: Explanation,
    run: RunRecord,
    system: MolecularSystem,
    potential: Potential,
    around: Moment,
    onset: int,
    stopped: bool,
) -> dict[str, Any]:
    """Frames after the first symptom: recorded ones, and steps beyond where the record ends."""
    recorded = Moment(*(array[onset + 1 :] for array in vars(around).values()))
    shown = recorded.spread(N_SHOWN) if len(recorded.time) else np.empty(0, dtype=np.int64)
    positions, times = recorded.positions[shown], recorded.time[shown]
    note = "as recorded"
    if stopped or not len(recorded.time):
        beyond, steps, note = steps_beyond(
            run,
            system,
            potential,
            around.positions[-1],
            half_velocities(run, around, len(around.time) - 1),
        )
        positions = np.concatenate((positions, beyond))
        step_ps = run.spec.timestep_fs * PS_PER_FS
        times = np.concatenate((times, around.time[-1] + steps * step_ps))
    return {
        "file": "after.pdb",
        "n_written": write_models(made.folder / "after.pdb", system, positions),
        "time_ps": times,
        "note": note,
    }
