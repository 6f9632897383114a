"""A student in other people's programs: ASE, and torch-sim where it is installed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from omm_mlff.bench.ways import SEED, TEMPERATURE_K, TIMESTEP_FS, velocities
from omm_mlff.errors import MissingPackageError
from omm_mlff.schema import MolecularSystem
from omm_mlff.students.engine import Engine, build_engine
from omm_mlff.students.student import Student
from omm_mlff.units import (
    ANGSTROM_PER_NM,
    BOLTZMANN,
    EV_ANGSTROM_PER_KJMOL_NM,
    EV_PER_KJMOL,
    KJMOL_PER_EV,
    NM_PER_ANGSTROM,
    PS_PER_FS,
)


class AseVerlet:
    """ASE's VelocityVerlet with `StudentCalculator`.

    Raises
    ------
    MissingPackageError : ase is absent
    """

    n_replicas = 1

    def __init__(
        self, student: Student, system: MolecularSystem, *, name: str, engine: Engine
    ) -> None:
        try:
            from ase import Atoms, units
            from ase.md.verlet import VelocityVerlet
        except ImportError as error:
            raise MissingPackageError(
                "ase", "its dynamics", "pip install 'omm-mlff[ase]'"
            ) from error
        from omm_mlff.adapters.ase_calculator import StudentCalculator

        self.name = name
        boxed = system.box_vectors is not None
        atoms = Atoms(
            numbers=system.species,
            positions=system.positions * ANGSTROM_PER_NM,
            cell=system.box_vectors * ANGSTROM_PER_NM if system.box_vectors is not None else None,
            pbc=boxed,
        )
        atoms.set_masses(system.masses)
        angstrom_per_ps = velocities(system, 1) * ANGSTROM_PER_NM
        atoms.set_velocities(angstrom_per_ps * units.Angstrom / (1000.0 * units.fs))
        atoms.calc = StudentCalculator(student, engine=engine)
        self.dynamics = VelocityVerlet(atoms, timestep=TIMESTEP_FS * units.fs)

    def run(self, n_steps: int) -> float:
        began = time.perf_counter()
        self.dynamics.run(n_steps)
        return time.perf_counter() - began

    def close(self) -> None:
        del self.dynamics


class TorchSim:
    """torch-sim's NVE of a batch of copies, with the scripted student as its model.

    Raises
    ------
    MissingPackageError : torch-sim is absent, or has another interface than 0.3
    """

    def __init__(
        self, student: Student, system: MolecularSystem, *, name: str, n_replicas: int
    ) -> None:
        try:
            from torch_sim.integrators.nve import nve
            from torch_sim.models.interface import ModelInterface
            from torch_sim.state import SimState
        except ImportError as error:
            raise MissingPackageError(
                f"torch-sim 0.3 ({error})", "its dynamics", "pip install torch-sim-atomistic==0.3.0"
            ) from error

        class Model(ModelInterface):  # type: ignore[misc]  # it is not always there to be read
            """A student as torch-sim calls it: angstrom and eV."""

            def __init__(self) -> None:
                super().__init__()
                self._device, self._dtype = torch.device("cpu"), torch.float64
                self._compute_stress, self._compute_forces = False, True
                engine = build_engine(
                    student,
                    torch.from_numpy(system.species),
                    periodic=False,
                    n_copies=n_replicas,
                )
                self.engine = torch.jit.script(engine)

            def forward(self, state: Any, **_: Any) -> dict[str, torch.Tensor]:
                energies, forces = self.engine(state.positions * NM_PER_ANGSTROM)
                return {
                    "energy": energies * EV_PER_KJMOL,
                    "forces": forces * EV_ANGSTROM_PER_KJMOL_NM,
                }

        self.name = name
        self.n_replicas = n_replicas
        # Its unit of time is that of angstrom, eV and dalton; 1 kJ/mol is 1 dalton nm^2/ps^2.
        ps = (KJMOL_PER_EV * ANGSTROM_PER_NM**2) ** 0.5
        timestep = torch.tensor(TIMESTEP_FS * PS_PER_FS * ps, dtype=torch.float64)
        kT = torch.tensor(BOLTZMANN * TEMPERATURE_K * EV_PER_KJMOL, dtype=torch.float64)
        n_atoms = system.n_atoms
        state = SimState(
            positions=torch.from_numpy(
                np.tile(system.positions * ANGSTROM_PER_NM, (n_replicas, 1))
            ),
            masses=torch.from_numpy(np.tile(system.masses, n_replicas)),
            cell=torch.eye(3, dtype=torch.float64).repeat(n_replicas, 1, 1) * 100.0,
            pbc=False,
            atomic_numbers=torch.from_numpy(np.tile(system.species, n_replicas)),
            system_idx=torch.arange(n_replicas).repeat_interleave(n_atoms),
        )
        start, self.step = nve(Model(), dt=timestep, kT=kT, seed=SEED)
        self.state = start(state)

    def run(self, n_steps: int) -> float:
        began = time.perf_counter()
        for _ in range(n_steps):
            self.state = self.step(self.state)
        return time.perf_counter() - began

    def close(self) -> None:
        del self.state
