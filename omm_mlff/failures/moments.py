"""The frames around a failure: what was recorded before and after it, and a few steps beyond."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm.app import PDBFile

from omm_mlff.checks.frames import Sample, stretches
from omm_mlff.dynamics.platform_choice import where_runs_are
from omm_mlff.forces.faults import one_line
from omm_mlff.forces.platforms import choose_platform, platform_properties
from omm_mlff.potentials.base import Potential, build_system
from omm_mlff.record import rundir
from omm_mlff.schema import MolecularSystem
from omm_mlff.units import ANGSTROM_PER_NM, PS_PER_FS

if TYPE_CHECKING:
    from omm_mlff.record.rundir import RunRecord

BEFORE_PS = 50.0 * PS_PER_FS
N_SHOWN = 10
REPLAYED_STEPS = 20
_EVERY = 5  # of the replayed steps
_FRAMES_AT_ONCE = 256
_FIELDS = ("time", "positions", "velocities", "forces")
_PDB_LIMIT_NM = 999.0 / ANGSTROM_PER_NM  # a PDB file has four digits and a sign, in angstrom


@dataclass(frozen=True, eq=False)
class Moment:
    """Consecutive recorded frames of one replica.

    Attributes
    ----------
    time : shape (n,), ps
    positions, velocities, forces : shape (n, n_atoms, 3); nm, nm/ps on the step, kJ/mol/nm
    """

    time: NDArray[np.float64]
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]
    forces: NDArray[np.float64]

    def spread(self, n: int) -> NDArray[np.int64]:
        """At most `n` frames, evenly spread, the last among them."""
        wanted = np.linspace(0, len(self.time) - 1, min(n, len(self.time)))
        return wanted.round().astype(np.int64)


def moment(run: RunRecord, index: int, first: int, last: int) -> Moment:
    """Frames `first` to `last` of a replica, both included; the rest does not stay in memory."""
    replica = run.replica(index)
    sample = Sample(index, replica, min(last + 1, replica.n_frames))
    parts: dict[str, list[NDArray[np.float64]]] = {name: [] for name in _FIELDS}
    seen = 0
    for piece in stretches(sample, _FRAMES_AT_ONCE, _FIELDS):
        start = max(first - seen, 0)
        seen += len(piece["time"])
        for name in _FIELDS:
            parts[name].append(piece[name][start:])
    return Moment(**{name: np.concatenate(parts[name]) for name in _FIELDS})


def half_velocities(run: RunRecord, frames: Moment, frame: int) -> NDArray[np.float64]:
    """Velocities half a step before a frame, as a leapfrog wants them, shape (n_atoms, 3).

    Under a thermostat they are recorded so; at constant energy they are taken back from the step.
    """
    half = 0.0 if run.spec.ensemble == "nvt" else 0.5 * run.spec.timestep_fs * PS_PER_FS
    velocities: NDArray[np.float64] = (
        frames.velocities[frame] - half * frames.forces[frame] / run.masses[:, None]
    )
    return velocities


def steps_beyond(
    run: RunRecord,
    system: MolecularSystem,
    potential: Potential,
    positions: NDArray[np.float64],
    velocities: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.int64], str]:
    """What a replica would have done next, as long as it is finite.

    Parameters
    ----------
    positions : shape (n_atoms, 3), nm, of the last frame
    velocities : shape (n_atoms, 3), nm/ps, half a step before it

    Returns
    -------
    positions : shape (n, n_atoms, 3), nm
    steps : shape (n,), after the last frame
    note : why there are no more
    """
    name = choose_platform(
        where_runs_are(run.spec.platform, [str(run.provenance["platform"])]), system.n_atoms
    )
    context = openmm.Context(
        build_system(potential, system),
        openmm.VerletIntegrator(run.spec.timestep_fs * PS_PER_FS),
        openmm.Platform.getPlatformByName(name),
        platform_properties(name, run.spec.precision),
    )
    context.setPositions(positions)
    context.setVelocities(velocities)
    kept, steps = [], []
    note = f"{REPLAYED_STEPS} steps replayed from the last recorded frame"
    for step in range(1, REPLAYED_STEPS + 1):
        try:
            context.getIntegrator().step(1)
            state = context.getState(positions=True)
        except openmm.OpenMMException as error:
            note = f"step {step} after the last recorded frame cannot be taken: {one_line(error)}"
            break
        x = np.array(state.getPositions(asNumpy=True)._value)
        if not np.isfinite(x).all():
            note = f"positions are not finite {step} steps after the last recorded frame"
            break
        if step % _EVERY == 0:
            kept.append(x)
            steps.append(step)
    shape = (len(kept), system.n_atoms, 3)
    return np.array(kept).reshape(shape), np.array(steps, dtype=np.int64), note


def write_models(path: Path, system: MolecularSystem, positions: NDArray[np.float64]) -> int:
    """Write frames as the models of one PDB file; those that a PDB file cannot hold are left out.

    Parameters
    ----------
    positions : shape (n, n_atoms, 3), nm

    Returns
    -------
    how many were written; no file for none
    """
    fitting = [x for x in positions if np.abs(x).max(initial=0.0) < _PDB_LIMIT_NM]
    if not fitting:
        path.unlink(missing_ok=True)
        return 0
    with rundir.storage_errors(path), path.open("w", encoding="utf-8") as file:
        PDBFile.writeHeader(system.topology, file)
        for number, x in enumerate(fitting, start=1):
            PDBFile.writeModel(system.topology, x * ANGSTROM_PER_NM, file, modelIndex=number)
        PDBFile.writeFooter(system.topology, file)
    return len(fitting)
