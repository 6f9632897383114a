"""A potential in an OpenMM Context, evaluated on given frames."""

from __future__ import annotations

import time
from dataclasses import dataclass
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

BATCH_ATOMS = 128
"""Copies of a molecule that are evaluated together have about this many atoms: beyond, a batch
leaves the processor's cache and gains nothing."""


@dataclass(frozen=True, eq=False)
class _Batch:
    """Copies of the molecule in one Context."""

    tap: Tap
    context: openmm.Context


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
        self.timestep_fs = timestep_fs
        self.tap = Tap(1, system.n_atoms) if potential.has_tap(system) else None
        self.context = self._context(1, self.tap)
        self._batch: _Batch | None = None

    def evaluate(
        self,
        positions: NDArray[np.float64],
        box_vectors: NDArray[np.float64] | None = None,
        *,
        batched: bool = True,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Energies and forces of frames.

        Parameters
        ----------
        positions : shape (n_frames, n_atoms, 3), nm
        box_vectors : shape (3, 3), nm; None leaves the system's
        batched : evaluate many frames in one call, as copies in one System, where the potential
            takes copies; the sums inside a network then round differently in the last bits

        Returns
        -------
        energies : shape (n_frames,), kJ/mol; NaN where the potential gives none
        forces : shape of `positions`, kJ/mol/nm
        """
        n_copies = self._n_copies() if batched and box_vectors is None else 1
        if n_copies > 1 and len(positions) >= n_copies:
            return self._evaluate_copies(positions, n_copies)
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

    def _n_copies(self) -> int:
        if self.tap is None:
            return 1
        fitting = max(1, BATCH_ATOMS // self.system.n_atoms)
        return min(fitting, self.potential.max_replicas(self.system))

    def _evaluate_copies(
        self, positions: NDArray[np.float64], n_copies: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The same, `n_copies` frames in one call; the last call is filled up with a repetition."""
        if self._batch is None:
            tap = Tap(n_copies, self.system.n_atoms)
            self._batch = _Batch(tap, self._context(n_copies, tap))
        tap, context = self._batch.tap, self._batch.context
        energies = np.empty(len(positions))
        forces = np.empty(np.shape(positions))
        for first in range(0, len(positions), n_copies):
            some = np.asarray(positions[first : first + n_copies])
            n = len(some)
            filled = np.concatenate((some, np.repeat(some[-1:], n_copies - n, axis=0)))
            tap.alive.fill_(True)
            context.setPositions(filled.reshape(-1, 3))
            context.getState(energy=True, forces=True)
            energy, force = tap.read()
            energies[first : first + n], forces[first : first + n] = energy[:n], force[:n]
        return energies, forces

    def _context(self, n_copies: int, tap: Tap | None) -> openmm.Context:
        """A Context that has forgotten its first calls."""
        context = openmm.Context(
            build_system(self.potential, self.system, n_replicas=n_copies, tap=tap),
            openmm.VerletIntegrator(self.timestep_fs * PS_PER_FS),
            openmm.Platform.getPlatformByName(self.platform_name),
            platform_properties(self.platform_name, self.precision),
        )
        context.setPositions(np.tile(self.system.positions, (n_copies, 1)))
        for _ in range(DISCARDED_CALLS):
            context.getState(energy=True, forces=True)
        return context

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
        """Give the Contexts and their taps back."""
        del self.context
        if self.tap is not None:
            self.tap.close()
        if self._batch is not None:
            self._batch.tap.close()
            self._batch = None

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
