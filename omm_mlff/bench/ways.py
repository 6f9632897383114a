"""The ways of running a potential in OpenMM: as people do it by hand, and as this package does.

Each block starts from the structure at rest with velocities of 300 K and takes Verlet steps of
0.5 fs; a recorded run goes on from block to block.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from openmm import app, unit

from omm_mlff.dynamics.evaluator import DISCARDED_CALLS, make_context
from omm_mlff.dynamics.initial_state import degrees_of_freedom, draw_velocities
from omm_mlff.dynamics.simulate import simulate
from omm_mlff.errors import AnalysisError
from omm_mlff.forces.faults import one_line
from omm_mlff.forces.platforms import platform_properties
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials.base import Potential, build_system
from omm_mlff.record.rundir import STATUS_FILE, read_json
from omm_mlff.schema import MolecularSystem, Precision, RunSpec
from omm_mlff.units import PS_PER_FS

TIMESTEP_FS = 0.5
TEMPERATURE_K = 300.0
SEED = 1
_ENDLESS_STEPS = 10**9


def velocities(system: MolecularSystem, n_replicas: int) -> NDArray[np.float64]:
    """Shape (n_replicas * n_atoms, 3), nm/ps."""
    n_dof = degrees_of_freedom(system)
    drawn = [
        draw_velocities(
            system.positions,
            system.masses,
            n_dof=n_dof,
            temperature_K=TEMPERATURE_K,
            periodic=system.periodic,
            seed=SEED,
            replica=replica,
        )
        for replica in range(n_replicas)
    ]
    return np.concatenate(drawn)


class _EveryStep:
    """The reporter of the script: everything there is, at every step, kept in lists."""

    def __init__(self) -> None:
        self.frames: list[tuple[Any, ...]] = []

    def describeNextReport(self, simulation: app.Simulation) -> dict[str, Any]:
        return {
            "steps": 1,
            "periodic": None,
            "include": ["positions", "velocities", "forces", "energy"],
        }

    def report(self, simulation: app.Simulation, state: openmm.State) -> None:
        self.frames.append(
            (
                state.getTime(),
                state.getPotentialEnergy(),
                state.getKineticEnergy(),
                state.getPositions(asNumpy=True),
                state.getVelocities(asNumpy=True),
                state.getForces(asNumpy=True),
            )
        )


def _timed(
    step: Callable[[], object],
    context: openmm.Context,
    start: tuple[NDArray[np.float64], NDArray[np.float64]],
    name: str,
) -> float:
    """Seconds of steps from the start: the same work in every block, whatever becomes of it later.

    Raises
    ------
    AnalysisError : the steps came to no end
    """
    positions, motion = start
    context.setPositions(positions)
    context.setVelocities(motion)
    began = time.perf_counter()
    try:
        step()
        state = context.getState(positions=True)  # waits for the device
    except openmm.OpenMMException as error:
        raise AnalysisError(f"{name} cannot be timed: {one_line(error)}") from error
    seconds = time.perf_counter() - began
    if not np.isfinite(state.getPositions(asNumpy=True)._value).all():
        raise AnalysisError(f"{name} cannot be timed: its positions became NaN; validate it first")
    return seconds


class Yardstick:
    """The script that a careful user writes: a Simulation and a reporter at every step.

    Parameters
    ----------
    potential : as it runs without this package: a student scripted
    """

    n_replicas = 1

    def __init__(
        self,
        potential: Potential,
        system: MolecularSystem,
        platform: str,
        precision: Precision,
        *,
        name: str = "yardstick",
        recorded: bool = True,
    ) -> None:
        self.name = name
        self.reporter = _EveryStep()
        self.simulation = app.Simulation(
            system.topology,
            build_system(potential, system),
            openmm.VerletIntegrator(TIMESTEP_FS * unit.femtoseconds),
            openmm.Platform.getPlatformByName(platform),
            platform_properties(platform, precision),
        )
        self.start = system.positions, velocities(system, 1)
        if recorded:
            self.simulation.reporters.append(self.reporter)

    def run(self, n_steps: int) -> float:
        self.reporter.frames.clear()
        context = self.simulation.context
        return _timed(lambda: self.simulation.step(n_steps), context, self.start, self.name)

    def close(self) -> None:
        del self.simulation


class Unrecorded:
    """The steps alone, of one copy or many in one System; through the tap where there is one."""

    def __init__(
        self,
        potential: Potential,
        system: MolecularSystem,
        platform: str,
        precision: Precision,
        *,
        name: str,
        n_replicas: int = 1,
        tapped: bool = False,
    ) -> None:
        self.name = name
        self.n_replicas = n_replicas
        self.tap = Tap(n_replicas, system.n_atoms) if tapped else None
        self.context = make_context(
            potential,
            system,
            openmm.VerletIntegrator(TIMESTEP_FS * PS_PER_FS),
            platform,
            precision,
            n_copies=n_replicas,
            tap=self.tap,
        )
        self.start = np.tile(system.positions, (n_replicas, 1)), velocities(system, n_replicas)
        self.context.setPositions(self.start[0])
        for _ in range(DISCARDED_CALLS):
            self.context.getState(energy=True, forces=True)

    def run(self, n_steps: int) -> float:
        integrator = self.context.getIntegrator()
        return _timed(lambda: integrator.step(n_steps), self.context, self.start, self.name)

    def close(self) -> None:
        del self.context
        if self.tap is not None:
            self.tap.close()


class Recorded:
    """`simulate`: every step of every replica into a run directory, in float64.

    It is one run, which is held between blocks. What is timed are its steps and the writing,
    including the closing of one segment and the opening of the next where it is due; minimisation
    and set-up are over before the first block. `simulate` tells of its progress every so many
    steps, so that a block is a multiple of these, of which it counts its share. Segments that are
    closed are removed between blocks.

    Parameters
    ----------
    n_replicas : no more than the potential takes into one System
    """

    def __init__(
        self,
        potential: Potential,
        system: MolecularSystem,
        platform: str,
        precision: Precision,
        *,
        name: str,
        n_replicas: int,
    ) -> None:
        self.name = name
        self.n_replicas = n_replicas
        self.potential = potential
        self.system = system
        self.folder = Path(tempfile.mkdtemp(prefix="omm-mlff-bench-"))
        self.spec = recorded_run(
            potential,
            system,
            platform,
            precision,
            n_replicas=n_replicas,
            n_steps=_ENDLESS_STEPS,
            seed=SEED,
        )
        self._go, self._held = threading.Event(), threading.Event()
        self._done = self._wanted = 0
        self._ended = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def run(self, n_steps: int) -> float:
        """As every way; the first call sets the run up.

        Raises
        ------
        AnalysisError : a replica was stopped, so that fewer than were asked for take each step
        """
        if self._thread is None:
            n_threads = torch.get_num_threads()
            self._thread = threading.Thread(target=self._simulate, args=(n_threads,), daemon=True)
            self._thread.start()
            self._held.wait()
            self._raise_what_ended_it()
        first = self._done
        self._wanted = first + n_steps
        self._held.clear()
        began = time.perf_counter()
        self._go.set()
        self._held.wait()
        seconds = time.perf_counter() - began
        self._raise_what_ended_it()
        for segment in self.folder.rglob("*.h5"):
            segment.unlink()
        raise_where_one_was_stopped(self.folder / "run", self.potential, self.system)
        return seconds * n_steps / (self._done - first)

    def close(self) -> None:
        self._ended = True
        self._go.set()
        if self._thread is not None:
            self._thread.join()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _simulate(self, n_threads: int) -> None:
        torch.set_num_threads(n_threads)
        try:
            with contextlib.suppress(_Enough):
                simulate(
                    self.spec,
                    self.potential,
                    self.system,
                    self.folder / "run",
                    allow_fallback=True,  # who calls has decided that
                    progress=self._progress,
                )
        except BaseException as error:
            self._error = error
        finally:
            self._ended = True
            self._held.set()

    def _progress(self, done: int, total: int) -> None:
        """Hold the run where its block is over."""
        self._done = done
        if done == total:
            return
        if done >= self._wanted:
            self._go.clear()
            self._held.set()
            if not self._ended:  # else it was closed in the middle of a block
                self._go.wait()
        if self._ended:
            raise _Enough

    def _raise_what_ended_it(self) -> None:
        if self._error is not None:
            raise self._error
        raise_where_one_was_stopped(self.folder / "run", self.potential, self.system)


def recorded_run(
    potential: Potential,
    system: MolecularSystem,
    platform: str,
    precision: Precision,
    *,
    n_replicas: int,
    n_steps: int,
    seed: int,
) -> RunSpec:
    """The run that is recorded: at constant energy, every step."""
    return RunSpec(
        potential.spec,
        system.name,
        length_ps=n_steps * TIMESTEP_FS * PS_PER_FS,
        temperature_K=TEMPERATURE_K,
        n_replicas=n_replicas,
        seed=seed,
        timestep_fs=TIMESTEP_FS,
        platform=platform,
        precision=precision,
    )


def raise_where_one_was_stopped(
    folder: Path, potential: Potential, system: MolecularSystem
) -> None:
    """Refuse a run of which not every replica takes each step.

    Raises
    ------
    AnalysisError : a replica was stopped
    """
    events = read_json(folder / STATUS_FILE)["events"]
    for replica, event in events.items():
        raise AnalysisError(
            f"{potential.spec} on {system.name} cannot be timed: replica {replica} "
            f"was stopped at step {event['step']} ({event['detail']}); validate it first"
        )


class _Enough(Exception):  # noqa: N818 (an end, not an error)
    """Ends a run that has been timed."""
