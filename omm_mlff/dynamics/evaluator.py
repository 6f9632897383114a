"""A potential in an OpenMM Context, evaluated on given frames."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import openmm
from numpy.typing import NDArray

from omm_mlff.dynamics.graphs import Case, open_context
from omm_mlff.errors import AnalysisError, InputError, UnsupportedSystemError
from omm_mlff.forces.built import Built
from omm_mlff.forces.faults import nobody_alone, one_line
from omm_mlff.forces.interrupt import deferred_interrupt
from omm_mlff.forces.platforms import choose_platform
from omm_mlff.forces.potential_errors import Tally, is_not_a_number, own_error
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials.base import Potential, system_and_built
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


def make_context(
    potential: Potential,
    system: MolecularSystem,
    integrator: openmm.Integrator,
    platform_name: str,
    precision: Precision,
    *,
    n_copies: int,
    tap: Tap | None,
) -> openmm.Context:
    """A Context of a potential on copies of a molecular system.

    Raises
    ------
    UnsupportedSystemError : the potential cannot serve it, or OpenMM makes no Context of it
    ValidationFailure : memory or the device failed
    """
    return context_and_built(
        potential, system, integrator, platform_name, precision, n_copies=n_copies, tap=tap
    )[0]


def context_and_built(
    potential: Potential,
    system: MolecularSystem,
    integrator: openmm.Integrator,
    platform_name: str,
    precision: Precision,
    *,
    n_copies: int,
    tap: Tap | None,
) -> tuple[openmm.Context, Built]:
    """What `make_context` makes, and what the potential has put into its System.

    Raises
    ------
    UnsupportedSystemError, ValidationFailure : see `make_context`
    """
    openmm_system, built = system_and_built(potential, system, n_replicas=n_copies, tap=tap)
    try:
        case = Case(potential, system, platform_name, precision, n_copies)
        return open_context(openmm_system, built, integrator, case, tap)
    except openmm.OpenMMException as error:
        own_error(error, potential.card)
        raise UnsupportedSystemError(
            f"{potential.card.name} cannot serve {system.name}: OpenMM makes no Context of it: "
            f"{one_line(error)}"
        ) from error


class Evaluator:
    """Energies and forces through the Force that production uses.

    Where the potential's own code raises there is no number: energy and forces are NaN.

    Parameters
    ----------
    potential, system : what is evaluated
    platform : a name, or "auto"
    precision : of the platform where it has a choice
    timestep_fs : of the integrator, for `time_steps`
    tally : goes on counting there; a new one by default

    Attributes
    ----------
    raised : by frame of the last `evaluate`, what the potential's own code raised
    built : what the potential has put into its System
    tally : of all frames so far, those of evaluators that `for_system` made from this one included

    Raises
    ------
    UnsupportedSystemError : the potential cannot serve the system, or no Context can be made
    PlatformError : the platform is not available
    """

    def __init__(
        self,
        potential: Potential,
        system: MolecularSystem,
        platform: str = "auto",
        precision: Precision = "double",
        timestep_fs: float = 0.5,
        tally: Tally | None = None,
    ) -> None:
        self.raised: dict[int, str] = {}
        self.tally = tally if tally is not None else Tally()
        self.potential = potential
        self.system = system
        self.precision: Precision = precision
        self.platform_name = choose_platform(platform, system.n_atoms)
        self.timestep_fs = timestep_fs
        self.tap = Tap(1, system.n_atoms) if potential.capabilities(system).tap else None
        self.built = Built()
        self._batch: _Batch | None = None
        try:
            self.context = self._context(1, self.tap)
        except BaseException:
            if self.tap is not None:
                self.tap.close()
            raise

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

        Raises
        ------
        InputError : positions of another shape
        """
        positions = np.asarray(positions, dtype=np.float64)
        if positions.ndim != 3 or positions.shape[1:] != (self.system.n_atoms, 3):
            raise InputError(
                f"positions: wanted shape (n_frames, {self.system.n_atoms}, 3) in nm, got "
                f"{positions.shape}; of one frame take positions[None]"
            )
        n_copies = self._n_copies() if batched and box_vectors is None else 1
        energies = np.empty(len(positions))
        forces = np.empty(np.shape(positions))
        self.raised = {}
        # Ctrl-C inside a callback would reach OpenMM as an error without a message.
        with deferred_interrupt() as interrupted:
            if n_copies > 1 and len(positions) >= n_copies:
                self._evaluate_copies(positions, n_copies, energies, forces, interrupted)
            else:
                if box_vectors is not None:
                    self.context.setPeriodicBoxVectors(*box_vectors)
                for i, frame in enumerate(positions):
                    energies[i], forces[i] = self._evaluate_one(i, frame)
                    if interrupted():
                        break
            if interrupted():
                raise KeyboardInterrupt
        self.tally.add(len(positions), list(self.raised.values()))
        return energies, forces

    def _evaluate_one(
        self, i: int, frame: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        """Energy and forces of the i-th frame; what the potential raises is kept."""
        nothing = float("nan"), np.full(np.shape(frame), np.nan)
        if not np.isfinite(frame).all():  # no potential answers there, and many raise
            return nothing
        if self.tap is not None:
            self.tap.alive.fill_(True)
            self.tap.raised = {}
        self.context.setPositions(frame)
        try:
            state = self.context.getState(energy=True, forces=True)
        except openmm.OpenMMException as error:
            if not is_not_a_number(error):
                self.raised[i] = own_error(error, self.potential.card)
            return nothing
        if self.tap is not None and 0 in self.tap.raised:
            self.raised[i] = own_error(self.tap.raised[0], self.potential.card)
            return nothing
        if self.tap is not None and not bool(self.tap.alive[0]):
            # The tap has masked it for OpenMM's sake; here the truth is wanted.
            energy, force = self.tap.read()
            return float(energy[0]), force[0]
        return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value

    def _n_copies(self) -> int:
        if self.tap is None:
            return 1
        fitting = max(1, BATCH_ATOMS // self.system.n_atoms)
        return min(fitting, self.potential.capabilities(self.system).max_replicas)

    def _evaluate_copies(
        self,
        positions: NDArray[np.float64],
        n_copies: int,
        energies: NDArray[np.float64],
        forces: NDArray[np.float64],
        interrupted: Callable[[], bool],
    ) -> None:
        """The same, `n_copies` frames in one call; the last call is filled up with a repetition."""
        if self._batch is None:
            tap = Tap(n_copies, self.system.n_atoms)
            try:
                self._batch = _Batch(tap, self._context(n_copies, tap))
            except BaseException:
                tap.close()
                raise
        tap, context = self._batch.tap, self._batch.context
        for first in range(0, len(positions), n_copies):
            some = np.asarray(positions[first : first + n_copies])
            n = len(some)
            if not np.isfinite(some).all():
                for i, frame in enumerate(some, start=first):
                    energies[i], forces[i] = self._evaluate_one(i, frame)
                continue
            filled = np.concatenate((some, np.repeat(some[-1:], n_copies - n, axis=0)))
            tap.alive.fill_(True)
            tap.raised = {}
            context.setPositions(filled.reshape(-1, 3))
            try:
                context.getState(energy=True, forces=True)
            except openmm.OpenMMException as error:
                self._evaluate_alone(error, first, some, energies, forces)
            else:
                energy, force = tap.read()
                energies[first : first + n], forces[first : first + n] = energy[:n], force[:n]
                for copy, message in tap.raised.items():
                    if copy < n:
                        self.raised[first + copy] = own_error(message, self.potential.card)
            if interrupted():
                return

    def _evaluate_alone(
        self,
        error: openmm.OpenMMException,
        first: int,
        frames: NDArray[np.float64],
        energies: NDArray[np.float64],
        forces: NDArray[np.float64],
    ) -> None:
        """Frames one by one, to see which of them an error was for."""
        chosen = range(first, first + len(frames))
        for i, frame in zip(chosen, frames, strict=True):
            energies[i], forces[i] = self._evaluate_one(i, frame)
        if is_not_a_number(error) or not self.raised.keys().isdisjoint(chosen):
            return
        message = f"{own_error(error, self.potential.card)} {nobody_alone(len(frames))}"
        self.raised |= dict.fromkeys(chosen, message)
        energies[first : chosen.stop], forces[first : chosen.stop] = np.nan, np.nan

    def _context(self, n_copies: int, tap: Tap | None) -> openmm.Context:
        """A Context that has forgotten its first calls."""
        context, self.built = context_and_built(
            self.potential,
            self.system,
            openmm.VerletIntegrator(self.timestep_fs * PS_PER_FS),
            self.platform_name,
            self.precision,
            n_copies=n_copies,
            tap=tap,
        )
        context.setPositions(np.tile(self.system.positions, (n_copies, 1)))
        with deferred_interrupt() as interrupted:
            for _ in range(DISCARDED_CALLS):
                try:
                    context.getState(energy=True, forces=True)
                except openmm.OpenMMException as error:
                    # What is wrong shows again when it is asked for.
                    if not is_not_a_number(error):
                        own_error(error, self.potential.card)
            if interrupted():
                raise KeyboardInterrupt
        return context

    def time_steps(self, n_steps: int, n_blocks: int) -> NDArray[np.float64]:
        """Seconds a step of one replica under VerletIntegrator, shape (n_blocks,).

        Starts from the system's structure at rest, after a warm-up of one block. NaN where the
        potential raises on the way.
        """
        seconds = np.full(n_blocks, np.nan)
        if self.tap is not None:
            self.tap.alive.fill_(True)
            self.tap.raised = {}
        self.context.setPositions(self.system.positions)
        self.context.setVelocities(np.zeros((self.system.n_atoms, 3)))
        integrator = self.context.getIntegrator()
        with deferred_interrupt() as interrupted:
            try:
                integrator.step(n_steps)
                for block in range(n_blocks):
                    if interrupted():
                        raise KeyboardInterrupt
                    start = time.perf_counter()
                    integrator.step(n_steps)
                    # Asking for positions waits for the device without evaluating anything again.
                    self.context.getState(positions=True)
                    seconds[block] = (time.perf_counter() - start) / n_steps
            except openmm.OpenMMException as error:
                seconds[:] = np.nan
                if not is_not_a_number(error):
                    self.tally.add(1, [own_error(error, self.potential.card)])
        if self.tap is not None and not bool(self.tap.alive.all()):
            seconds[:] = np.nan  # it was not all there, whether or not it raised in the last step
        if self.tap is not None and self.tap.raised:
            self.tally.add(1, [own_error(self.tap.raised[0], self.potential.card)])
        return seconds

    def for_system(self, system: MolecularSystem) -> Evaluator:
        """The same potential and platform on another molecular system.

        Raises
        ------
        UnsupportedSystemError : the potential cannot serve it
        AnalysisError : it is the same system, of which a second Context could not be made
        """
        try:
            return Evaluator(
                self.potential, system, self.platform_name, self.precision, tally=self.tally
            )
        except UnsupportedSystemError as error:
            if system is self.system:
                raise AnalysisError(f"a second Context could not be made: {error}") from error
            raise

    def __repr__(self) -> str:
        name = self.potential.card.name
        return f"<Evaluator of {name} on {self.system.name}, {self.platform_name}>"

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
