"""The ways of running a potential in OpenMM: as people do it by hand, and as this package does.

Each starts from the structure at rest with velocities of 300 K and takes Verlet steps of 0.5 fs.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from omm_mlff.evaluate import DISCARDED_CALLS, make_context
from omm_mlff.forces import Tap
from omm_mlff.platforms import platform_properties
from omm_mlff.potentials.base import Potential, build_system
from omm_mlff.prepare import degrees_of_freedom, draw_velocities
from omm_mlff.schema import MolecularSystem, Precision, RunSpec
from omm_mlff.simulate import simulate
from omm_mlff.units import PS_PER_FS

TIMESTEP_FS = 0.5
TEMPERATURE_K = 300.0
SEED = 1


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
        self.simulation.context.setPositions(system.positions)
        self.simulation.context.setVelocities(velocities(system, 1))
        if recorded:
            self.simulation.reporters.append(self.reporter)

    def run(self, n_steps: int) -> float:
        self.reporter.frames.clear()
        began = time.perf_counter()
        self.simulation.step(n_steps)
        self.simulation.context.getState(positions=True)  # waits for the device
        return time.perf_counter() - began

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
        self.context.setPositions(np.tile(system.positions, (n_replicas, 1)))
        self.context.setVelocities(velocities(system, n_replicas))
        for _ in range(DISCARDED_CALLS):
            self.context.getState(energy=True, forces=True)

    def run(self, n_steps: int) -> float:
        began = time.perf_counter()
        self.context.getIntegrator().step(n_steps)
        self.context.getState(positions=True)  # waits for the device
        return time.perf_counter() - began

    def close(self) -> None:
        del self.context
        if self.tap is not None:
            self.tap.close()


class Recorded:
    """`simulate`: every step of every replica into a run directory, in float64.

    A block is a run of its own. Its seconds are those that the run directory accounts for: from the
    first step until the last file is closed, without minimisation and set-up.
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
        self.spec = RunSpec(
            potential.spec,
            system.name,
            length_ps=0.0,
            temperature_K=TEMPERATURE_K,
            n_replicas=n_replicas,
            seed=SEED,
            timestep_fs=TIMESTEP_FS,
            platform=platform,
            precision=precision,
        )

    def run(self, n_steps: int) -> float:
        place = self.folder / "run"
        spec = dataclasses.replace(self.spec, length_ps=n_steps * TIMESTEP_FS * PS_PER_FS)
        try:
            record = simulate(spec, self.potential, self.system, place)
            return sum(float(batch["wall_s"]) for batch in record.status["batches"].values())
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
