"""A potential in OpenMM, evaluated on given frames.

Frames that are handed over together are evaluated together, as copies of the system in one
Context, as many as fit. Copies in one Context cost less than as many calls; on a device, where a
call costs the same for one copy and for hundreds, much less. Where the engine can, a call is for as
many copies as there are frames left; else the last call is filled up.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from types import TracebackType

import numpy as np
import openmm
from numpy.typing import NDArray

from omm_mlff.dynamics.contexts import Contexts, Held, Wanted
from omm_mlff.errors import AnalysisError, InputError, UnsupportedSystemError
from omm_mlff.forces.built import Built
from omm_mlff.forces.faults import nobody_alone
from omm_mlff.forces.interrupt import deferred_interrupt
from omm_mlff.forces.platforms import choose_platform
from omm_mlff.forces.potential_errors import Tally, is_not_a_number, own_error
from omm_mlff.forces.tap import Part, Tap
from omm_mlff.potentials.base import Potential
from omm_mlff.schema import MolecularSystem, Precision

BATCH_ATOMS = 128
"""Copies of a molecule that are evaluated together have about this many atoms: beyond, a batch
leaves the processor's cache and gains nothing."""

PARTS_ATOMS = 512
"""The same for an engine that takes parts: it divides them by itself."""

DEVICE_BATCH_ATOMS = 4096
"""The same on a device, which is not busy with fewer; a large student needs 2 GiB for as many."""

DEVICE_BATCHES = (16, 256)
"""Copies in a Context on a device, for so many frames or fewer; for more of them as many as fit. A
call is filled up, and a Context for thousands of copies is dear where a few are asked for."""

FULL_ENOUGH = 0.25
"""On the host, fewer frames than this part of a batch are evaluated one by one: a call of an engine
that takes nothing but whole batches costs as much as so many calls for one (water, scripted: 3.6 of
32)."""


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
    contexts : where Contexts are taken from, and left for others; by default its own, which are
        given back when it is closed

    Attributes
    ----------
    raised : by frame of the last `evaluate`, what the potential's own code raised
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
        contexts: Contexts | None = None,
    ) -> None:
        self.raised: dict[int, str] = {}
        self.tally = tally if tally is not None else Tally()
        self.potential = potential
        self.system = system
        self.precision: Precision = precision
        self.platform_name = choose_platform(platform, system.n_atoms)
        self.timestep_fs = timestep_fs
        self.contexts = contexts if contexts is not None else Contexts()
        self._owns_contexts = contexts is None
        self._alone: Held | None = None
        self._together: dict[int, Held] = {}
        self._takes_parts = False
        try:
            # What cannot be made shows at once.
            self._takes_parts = self.one().takes_parts
        except BaseException:
            self.close()
            raise

    @property
    def context(self) -> openmm.Context:
        """Of one copy, as others who were given the same `contexts` use it too."""
        return self.one().context

    @property
    def tap(self) -> Tap | None:
        """Of one copy; None where the potential has none."""
        return self.one().tap

    @property
    def built(self) -> Built:
        """What the potential has put into the System of one copy."""
        return self.one().built

    def another(self) -> Held:
        """A second Context of one copy, which no evaluation of this evaluator goes through."""
        return self.contexts.other(self._wanted(1))

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
        box_vectors : shape (3, 3), nm; None is the system's
        batched : evaluate many frames in one call, as copies in one System, where the potential
            takes copies; the sums inside a network then round differently in the last bits, but
            for a compiled engine's on the host

        Returns
        -------
        energies : shape (n_frames,), kJ/mol; NaN where the potential gives none
        forces : shape of `positions`, kJ/mol/nm

        Raises
        ------
        InputError : positions of another shape
        """
        return self._evaluated(positions, box_vectors, batched=batched, with_forces=True)

    def energies(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Energies alone, which cost less where the engine can leave the forces out.

        Parameters
        ----------
        positions : shape (n_frames, n_atoms, 3), nm

        Returns
        -------
        shape (n_frames,), kJ/mol; NaN where the potential gives none

        Raises
        ------
        InputError : positions of another shape
        """
        return self._evaluated(positions, None, batched=True, with_forces=False)[0]

    def _evaluated(
        self,
        positions: NDArray[np.float64],
        box_vectors: NDArray[np.float64] | None,
        *,
        batched: bool,
        with_forces: bool,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        positions = np.asarray(positions, dtype=np.float64)
        if positions.ndim != 3 or positions.shape[1:] != (self.system.n_atoms, 3):
            raise InputError(
                f"positions: wanted shape (n_frames, {self.system.n_atoms}, 3) in nm, got "
                f"{positions.shape}; of one frame take positions[None]"
            )
        energies = np.full(len(positions), np.nan)
        forces = np.full(positions.shape, np.nan)
        self.raised = {}
        # No potential answers where a position is no number, and many raise.
        left = np.flatnonzero(np.isfinite(positions).all(axis=(1, 2)))
        # Ctrl-C inside a callback would reach OpenMM as an error without a message.
        with deferred_interrupt() as interrupted:
            if batched and box_vectors is None:
                n = self._n_together(len(left))
                self._evaluate_copies(
                    positions, left[:n], energies, forces, interrupted, with_forces=with_forces
                )
                left = left[n:]
            if len(left) and not interrupted():
                held = self.one()
                held.ready()
                if box_vectors is not None:
                    held.context.setPeriodicBoxVectors(*box_vectors)
                for i in left.tolist():
                    energies[i], forces[i] = self._evaluate_one(held, i, positions[i])
                    if interrupted():
                        break
            if interrupted():
                raise KeyboardInterrupt
        self.tally.add(len(positions), list(self.raised.values()))
        return energies, forces

    def _evaluate_one(
        self, held: Held, i: int, frame: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        """Energy and forces of the i-th frame; what the potential raises is kept."""
        nothing = float("nan"), np.full(np.shape(frame), np.nan)
        tap = held.tap
        if tap is not None:
            tap.alive.fill_(True)
            tap.raised = {}
        held.context.setPositions(frame)
        try:
            state = held.context.getState(energy=True, forces=True)
        except openmm.OpenMMException as error:
            if not is_not_a_number(error):
                self.raised[i] = own_error(error, self.potential.card)
            return nothing
        message = held.raised()
        if message is not None:
            self.raised[i] = message
            return nothing
        if tap is not None and held.masked:
            # The tap has masked it for OpenMM's sake; here the truth is wanted.
            energy, force = tap.read()
            return float(energy[0]), force[0]
        return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value

    def _wanted(self, n_copies: int) -> Wanted:
        return Wanted(
            self.potential,
            self.system,
            self.platform_name,
            self.precision,
            self.timestep_fs,
            n_copies,
        )

    def one(self) -> Held:
        """The Context of one copy, as it was left; others who share it use it too."""
        if self._alone is None:
            self._alone = self.contexts.get(self._wanted(1))
        return self._alone

    def _n_copies(self, n_frames: int) -> int:
        """How many a batch takes of so many frames; 1 where there are no batches."""
        capabilities = self.potential.capabilities(self.system)
        if not capabilities.tap:
            return 1
        n_atoms = BATCH_ATOMS if self._on_host else DEVICE_BATCH_ATOMS
        if self._takes_parts:
            n_atoms = PARTS_ATOMS
        fitting = max(1, n_atoms // self.system.n_atoms)
        fitting = min(fitting, capabilities.max_replicas)
        if self._on_host:
            return fitting
        return next((n for n in DEVICE_BATCHES if n_frames <= n < fitting), fitting)

    @property
    def _on_host(self) -> bool:
        return self.platform_name in ("Reference", "CPU")

    def _n_together(self, n_frames: int) -> int:
        """How many of so many frames are evaluated in batches, the rest one by one."""
        n_copies = self._n_copies(n_frames)
        if n_copies == 1 or not n_frames:
            return 0
        if not self._on_host:
            return n_frames if n_frames > 1 else 0
        if n_copies not in self._together and n_frames < FULL_ENOUGH * n_copies:
            return 0
        if self._copies(n_copies).takes_parts:
            return n_frames
        rest = n_frames % n_copies
        return n_frames if rest >= FULL_ENOUGH * n_copies else n_frames - rest

    def _copies(self, n_copies: int) -> Held:
        if n_copies not in self._together:
            self._together[n_copies] = self.contexts.get(self._wanted(n_copies))
        return self._together[n_copies]

    def _evaluate_copies(
        self,
        positions: NDArray[np.float64],
        chosen: NDArray[np.int64],
        energies: NDArray[np.float64],
        forces: NDArray[np.float64],
        interrupted: Callable[[], bool],
        *,
        with_forces: bool,
    ) -> None:
        """Evaluate chosen frames, many in one call; a call is filled up with a repetition."""
        if not len(chosen):
            return
        n_copies = self._n_copies(len(chosen))
        held = self._copies(n_copies)
        tap = held.tap
        assert tap is not None
        held.ready()
        for first in range(0, len(chosen), n_copies):
            some = chosen[first : first + n_copies]
            n = len(some)
            filled = np.concatenate((some, np.full(n_copies - n, some[-1])))
            tap.alive.fill_(True)
            tap.raised = {}
            held.context.setPositions(positions[filled].reshape(-1, 3))
            tap.part = Part(n, forces=with_forces) if held.takes_parts else None
            try:
                # On a device what may be replayed is what was tried: energy and forces in one.
                held.context.getState(energy=True, forces=not self._on_host)
            except openmm.OpenMMException as error:
                self._evaluate_alone(error, some, positions, energies, forces)
            else:
                found, pull = tap.read()
                energies[some] = found[:n]
                if with_forces:
                    forces[some] = pull[:n]
                for copy, message in tap.raised.items():
                    if copy < n:
                        self.raised[int(some[copy])] = own_error(message, self.potential.card)
            finally:
                tap.part = None
            if interrupted():
                return

    def _evaluate_alone(
        self,
        error: openmm.OpenMMException,
        chosen: NDArray[np.int64],
        positions: NDArray[np.float64],
        energies: NDArray[np.float64],
        forces: NDArray[np.float64],
    ) -> None:
        """Frames one by one, to see which of them an error was for."""
        indices = chosen.tolist()
        held = self.one()
        held.ready()
        for i in indices:
            energies[i], forces[i] = self._evaluate_one(held, i, positions[i])
        if is_not_a_number(error) or not self.raised.keys().isdisjoint(indices):
            return
        message = f"{own_error(error, self.potential.card)} {nobody_alone(len(indices))}"
        self.raised |= dict.fromkeys(indices, message)
        energies[chosen], forces[chosen] = np.nan, np.nan

    def time_steps(self, n_steps: int, n_blocks: int) -> NDArray[np.float64]:
        """Seconds a step of one replica under VerletIntegrator, shape (n_blocks,).

        Starts from the system's structure at rest, after a warm-up of one block. NaN where the
        potential raises on the way.
        """
        seconds = np.full(n_blocks, np.nan)
        held = self.one()
        held.ready()
        held.context.setPositions(self.system.positions)
        held.context.setVelocities(np.zeros((self.system.n_atoms, 3)))
        integrator = held.context.getIntegrator()
        with deferred_interrupt() as interrupted:
            try:
                integrator.step(n_steps)
                for block in range(n_blocks):
                    if interrupted():
                        raise KeyboardInterrupt
                    start = time.perf_counter()
                    integrator.step(n_steps)
                    # Asking for positions waits for the device without evaluating anything again.
                    held.context.getState(positions=True)
                    seconds[block] = (time.perf_counter() - start) / n_steps
            except openmm.OpenMMException as error:
                seconds[:] = np.nan
                if not is_not_a_number(error):
                    self.tally.add(1, [own_error(error, self.potential.card)])
        if held.masked:
            seconds[:] = np.nan  # it was not all there, whether or not it raised in the last step
        message = held.raised()
        if message is not None:
            self.tally.add(1, [message])
        return seconds

    def for_system(self, system: MolecularSystem) -> Evaluator:
        """An evaluator of this potential, on this platform, of another molecular system.

        Of the evaluator's own system it is one whose first evaluation of a single frame goes
        through a Context that nobody has used.

        Raises
        ------
        UnsupportedSystemError : the potential cannot serve it
        AnalysisError : it is the same system, of which a second Context could not be made
        """
        other = self._copy()
        other.system = system
        if system is not self.system:
            # What cannot be made shows at once.
            n_copies = other._n_copies(1)
            if n_copies > 1:
                other._copies(n_copies)
            else:
                other.one()
            return other
        try:
            other._alone = self.contexts.new(other._wanted(1))
        except UnsupportedSystemError as error:
            raise AnalysisError(f"a second Context could not be made: {error}") from error
        return other

    def varied(self, potential: Potential, precision: Precision) -> Evaluator:
        """An evaluator of this system, on this platform, of a potential in a precision.

        What cannot be made shows when it is asked for.
        """
        other = self._copy()
        other.potential, other.precision = potential, precision
        return other

    def _copy(self) -> Evaluator:
        """One that takes its Contexts from where this one does."""
        other = copy.copy(self)
        other.raised = {}
        other._owns_contexts, other._alone, other._together = False, None, {}
        return other

    def __repr__(self) -> str:
        name = self.potential.card.name
        return f"<Evaluator of {name} on {self.system.name}, {self.platform_name}>"

    def close(self) -> None:
        """Give its own Contexts and their taps back; those that it was given stay."""
        self._alone, self._together = None, {}
        if self._owns_contexts:
            self.contexts.close()

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
