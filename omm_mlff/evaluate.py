"""A potential in an OpenMM Context, evaluated on given frames."""

from __future__ import annotations

import time
from types import TracebackType

import numpy as np
import openmm
from numpy.typing import NDArray

from omm_mlff.forces import Tap
from omm_mlff.platforms import choose_platform, platform_properties
from omm_mlff.potentials.base import Potential, build_system
from omm_mlff.schema import MolecularSystem, Precision
from omm_mlff.units import PS_PER_FS

DISCARDED_CALLS = 3
"""The first calls of a TorchScript module differ from later ones in the last bits."""


class Evaluator:
    """Energies and forces through the Force that production uses.

    Parameters
    ----------
    potential, system : what is evaluated
    platform : a name, or "auto"
    precision : of the platform where it has a choice
    timestep_fs : of the integrator, for `time_steps`

    Raises
    ------
    UnsupportedSystemError : the potential cannot serve the system
    PlatformError : the platform is not available
    """

    def __init__(
        self,
        potential: Potential,
        system: MolecularSystem,
        platform: str = "auto",
        precision: Precision = "double",
        timestep_fs: float = 0.5,
    ) -> None:
        self.potential = potential
        self.system = system
        self.precision: Precision = precision
        self.platform_name = choose_platform(platform, system.n_atoms)
        self.tap = Tap(1, system.n_atoms) if potential.has_tap(system) else None
        self.context = openmm.Context(
            build_system(potential, system, tap=self.tap),
            openmm.VerletIntegrator(timestep_fs * PS_PER_FS),
            openmm.Platform.getPlatformByName(self.platform_name),
            platform_properties(self.platform_name, precision),
        )
        self.context.setPositions(system.positions)
        for _ in range(DISCARDED_CALLS):
            self.context.getState(energy=True, forces=True)

    def evaluate(
        self, positions: NDArray[np.float64], box_vectors: NDArray[np.float64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Energies and forces of frames.

        Parameters
        ----------
        positions : shape (n_frames, n_atoms, 3), nm
        box_vectors : shape (3, 3), nm; None leaves the system's

        Returns
        -------
        energies : shape (n_frames,), kJ/mol; NaN where the potential gives none
        forces : shape of `positions`, kJ/mol/nm
        """
        energies = np.empty(len(positions))
        forces = np.empty(np.shape(positions))
        if box_vectors is not None:
            self.context.setPeriodicBoxVectors(*box_vectors)
        for i, frame in enumerate(positions):
            if self.tap is not None:
                self.tap.alive.fill_(True)
            self.context.setPositions(frame)
            state = self.context.getState(energy=True, forces=True)
            energies[i] = state.getPotentialEnergy()._value
            forces[i] = state.getForces(asNumpy=True)._value
            if self.tap is not None and not bool(self.tap.alive[0]):
                # The tap has masked it for OpenMM's sake; here the truth is wanted.
                energy, force = self.tap.read()
                energies[i], forces[i] = energy[0], force[0]
        return energies, forces

    def time_steps(self, n_steps: int, n_blocks: int) -> NDArray[np.float64]:
        """Seconds a step of one replica under VerletIntegrator, shape (n_blocks,).

        Starts from the system's structure at rest, after a warm-up of one block.
        """
        if self.tap is not None:
            self.tap.alive.fill_(True)
        self.context.setPositions(self.system.positions)
        self.context.setVelocities(np.zeros((self.system.n_atoms, 3)))
        integrator = self.context.getIntegrator()
        integrator.step(n_steps)
        seconds = np.empty(n_blocks)
        for block in range(n_blocks):
            start = time.perf_counter()
            integrator.step(n_steps)
            # Asking for positions waits for the device without evaluating anything again.
            self.context.getState(positions=True)
            seconds[block] = (time.perf_counter() - start) / n_steps
        return seconds

    def for_system(self, system: MolecularSystem) -> Evaluator:
        """The same potential and platform on another molecular system."""
        return Evaluator(self.potential, system, self.platform_name, self.precision)

    def close(self) -> None:
        """Give the Context and the tap back."""
        del self.context
        if self.tap is not None:
            self.tap.close()

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
