"""Reporters that drop into any openmm.app.Simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray

from omm_mlff.errors import OutputExistsError
from omm_mlff.rundir import FrameFile, mdtraj_topology


class TrajectoryReporter:
    """Writes energies, forces, positions and velocities in MDTraj's HDF5 layout, in float64.

    The file appears under its name when the reporter is closed (or goes out of a `with`); before,
    it is `NAME.partial`. Every report asks the Context for energy and forces, which evaluates the
    model once more than stepping does: `simulate` records every step without that.

    Velocities are those of the State: half a step behind the positions under a leapfrog such as
    VerletIntegrator, while the kinetic energy is OpenMM's own, at the time of the positions.

    Parameters
    ----------
    file : ending in .h5, not there yet
    interval : steps between reports

    Raises
    ------
    OutputExistsError : the file is there already
    """

    def __init__(self, file: str | Path, interval: int) -> None:
        self.file = Path(file)
        self.interval = interval
        if self.file.exists():
            raise OutputExistsError(f"{self.file} is already there; choose another name")
        self._writer: FrameFile | None = None

    def describeNextReport(self, simulation: Any) -> dict[str, Any]:
        """What OpenMM asks a reporter before it steps on."""
        steps = self.interval - simulation.currentStep % self.interval
        include = ["positions", "velocities", "forces", "energy"]
        return {"steps": steps, "periodic": None, "include": include}

    def report(self, simulation: Any, state: openmm.State) -> None:
        """Append one frame."""
        positions = _values(state.getPositions(asNumpy=True))
        if self._writer is None:
            self._writer = self._open(simulation, state, len(positions))
        self._writer.append(
            {
                "time": np.array([state.getTime()._value]),
                "potential_energy": np.array([state.getPotentialEnergy()._value]),
                "kinetic_energy": np.array([state.getKineticEnergy()._value]),
                "positions": positions[None],
                "velocities": _values(state.getVelocities(asNumpy=True))[None],
                "forces": _values(state.getForces(asNumpy=True))[None],
            }
        )

    def close(self) -> None:
        """Close the file and give it its name."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> TrajectoryReporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, simulation: Any, state: openmm.State, n_atoms: int) -> FrameFile:
        atoms = list(simulation.topology.atoms())
        bonds = sorted(sorted((a.index, b.index)) for a, b in simulation.topology.bonds())
        topology = mdtraj_topology(
            [atom.name for atom in atoms],
            [atom.element.symbol if atom.element else "VS" for atom in atoms],
            [(atom.residue.name, atom.residue.index) for atom in atoms],
            np.array(bonds, dtype=np.int64).reshape(-1, 2),
        )
        periodic = simulation.system.usesPeriodicBoundaryConditions()
        box = _values(state.getPeriodicBoxVectors(asNumpy=True)) if periodic else None
        return FrameFile(self.file, topology, n_atoms, box)


def _values(quantity: Any) -> NDArray[np.float64]:
    return np.array(quantity._value, dtype=np.float64)
