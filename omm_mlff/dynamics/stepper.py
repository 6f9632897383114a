"""Steps of many replicas, recorded: many in one call of OpenMM, or one at a time.

Where the potential says that it is `repeatable`, OpenMM takes a block of steps in one call and the
tap keeps what each of them evaluates (`blocks`). When anything is amiss with any of those steps,
they are taken again from where they began, one by one, and what happens is dealt with where it
happens. On a device the next block is under way while one is looked at; where that one was amiss,
the next has never been.

A potential whose own code raises ends the replica for which it did, with the step and the message,
and the others go on. Where several replicas share one evaluation, each is evaluated alone to see
which it was; where none raises alone, all that share it end, and their events say so. A replica
that was taken out stands where one that goes on stood, so that it raises no more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import openmm
import torch
from numpy.typing import NDArray

from omm_mlff.dynamics.blocks import Blocks, Landed
from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.dynamics.frames import Frames
from omm_mlff.dynamics.recording import Recorder
from omm_mlff.dynamics.replicas import Replicas
from omm_mlff.dynamics.stability_watch import Watch
from omm_mlff.forces.faults import nobody_alone
from omm_mlff.forces.potential_errors import is_not_a_number, own_error
from omm_mlff.schema import Event

_CALL_SECONDS = 0.5
"""About so long one call of OpenMM may take: then somebody may want to interrupt."""
_FIRST_CALL_STEPS = 16


class Stepper:
    """Takes steps and hands what they were to the watch and the recorder.

    Parameters
    ----------
    replicas : what moves
    watch : says which of them to stop
    recorder : keeps the frames
    stride : every so many-th step is recorded
    limit : how many steps may be taken from a step on, 0 at the run's end; a function of that step
    thermostatted : velocities are recorded as the integrator has them
    blocks : how many steps in one call are taken; None where they must be taken one by one
    alone : makes an evaluator of one replica, to see for which of many a potential raised
    stopped : called with the events of a step, by index in the batch, once it is recorded
    interrupted : whether somebody wants to stop
    """

    def __init__(
        self,
        replicas: Replicas,
        watch: Watch,
        recorder: Recorder,
        *,
        stride: int,
        limit: Callable[[int], int],
        thermostatted: bool,
        blocks: Blocks | None,
        alone: Callable[[], Evaluator],
        stopped: Callable[[dict[int, Event]], None],
        interrupted: Callable[[], bool],
    ) -> None:
        self.replicas = replicas
        self.watch = watch
        self.recorder = recorder
        self.stride = stride
        self.thermostatted = thermostatted
        self.limit = limit
        self.blocks = blocks
        self.alone = alone
        self.stopped = stopped
        self.interrupted = interrupted
        self._steps_a_call = _FIRST_CALL_STEPS
        self._ahead: _Ahead | None = None

    def take(self, first: int) -> int:
        """Some steps, from step `first` on, recorded.

        Returns
        -------
        how many; the last of them may be the last of all replicas
        """
        n = self._size(first, self.recorder.room)
        if self.blocks is None or not self._block(self.blocks, first, n):
            n = self._one_by_one(first, n)
            self._flush_what_is_full()
        return n

    def close(self) -> None:
        """Forget what was taken ahead."""
        self._forget()
        if self.blocks is not None:
            self.blocks.close()

    def _size(self, first: int, room: int) -> int:
        """How many steps may be taken together, with room for so many frames."""
        until_full = (room - 1) * self.stride + self.stride - first % self.stride
        n = min(self.limit(first), until_full)
        return n if self.blocks is None else min(n, self.blocks.n_most, self._steps_a_call)

    def _block(self, blocks: Blocks, first: int, n: int) -> bool:
        """`n` steps in one call of OpenMM, recorded.

        Returns
        -------
        False where something is amiss in any of them: then everything is as it was before
        """
        replicas, ahead, self._ahead = self.replicas, self._ahead, None
        if ahead is None:
            began = time.monotonic()
            blocks.launch(first, n, (replicas.positions, replicas.velocities))
            ahead = _landed(blocks, first, n, began)
        assert (ahead.first, ahead.n) == (first, n)
        landed, following, began = ahead.block, 0, time.monotonic()
        if landed is not None and blocks.overlap:
            self._steps_a_call = _next_size(n, ahead.seconds)
            n_frames = len(range(-first % self.stride, n, self.stride))
            following = self._size(first + n, self.recorder.room - n_frames or self.recorder.size)
            if following > 0:
                blocks.launch(first + n, following, landed.end)
        frames = None if landed is None else landed.frames()
        if landed is None or frames is None or not self._passes(first, frames):
            self._forget()
            assert replicas.tap is not None
            replicas.tap.alive.copy_(torch.from_numpy(replicas.alive))
            replicas.put_back()
            return False
        self.recorder.add(frames.every(self.stride, first), replicas.alive)
        replicas.positions, replicas.velocities = landed.end
        self._flush_what_is_full()
        if following > 0:
            # Nothing is under way while others have the word: who measures them, or this, can.
            self._ahead = _landed(blocks, first + n, following, began)
        if not blocks.overlap:
            self._steps_a_call = _next_size(n, ahead.seconds + time.monotonic() - began)
        return True

    def _flush_what_is_full(self) -> None:
        if self.recorder.full:
            self.recorder.flush()

    def _forget(self) -> None:
        """What was taken ahead has never been; the Context is left where it came to."""
        self._ahead = None
        if self.blocks is not None:
            self.blocks.forget()

    def _passes(self, first: int, frames: Frames) -> bool:
        """Whether no replica is to be stopped in any of them."""
        return self.watch.passes(
            first,
            frames.positions,
            frames.velocities,
            frames.potential_energy,
            frames.kinetic_energy,
            self.replicas.alive,
        )

    def _one_by_one(self, first: int, n: int) -> int:
        """Up to `n` steps, each looked at before the next, recorded.

        Returns
        -------
        how many were taken: fewer when somebody interrupts or no replica is left
        """
        for step in range(first, first + n):
            if step > first and self.interrupted():
                return step - first
            self._one(step)
            if not self.replicas.alive.any():
                return step + 1 - first
        return n

    def _one(self, step: int) -> None:
        """One step, recorded; whoever is to be stopped, is."""
        replicas, x, v = self.replicas, self.replicas.positions, self.replicas.velocities
        energies, forces, raised = self._advance()
        x_next, v_next = replicas.in_context()
        v_on = v if self.thermostatted else v + replicas.half_kick(forces)
        kinetic = replicas.kinetic(v_on)
        finite = (
            np.isfinite(energies)
            & np.isfinite(forces).all((1, 2))
            & np.isfinite(x).all((1, 2))
            & np.isfinite(kinetic)
        )
        events = self.watch.look(step, x, energies, kinetic, finite, replicas.alive, raised)
        if step % self.stride == 0:
            time_ps = np.array([step * replicas.timestep_ps])
            frame = Frames(
                time_ps, x[None], v_on[None], forces[None], energies[None], kinetic[None]
            )
            self.recorder.add(frame, replicas.alive & finite)
        for r in events:
            replicas.alive[r] = False
            x_next[r], v_next[r] = np.where(np.isfinite(x[r]), x[r], 0.0), 0.0
            if replicas.tap is not None:
                replicas.tap.freeze(r)
        if events and replicas.alive.any():
            x_next[list(raised)] = x[replicas.alive.argmax()]
        replicas.positions, replicas.velocities = x_next, v_next
        if events:
            self.recorder.flush()
            self.stopped(events)
            if replicas.alive.any():
                replicas.put_back()

    def _advance(self) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[int, str]]:
        """One step, of all for which the potential does not raise.

        Returns
        -------
        energies, forces : at the replicas' positions; NaN for one that cannot go on
        raised : by replica, what the potential's own code raised
        """
        replicas, tap = self.replicas, self.replicas.tap
        integrator = replicas.context.getIntegrator()
        energies, forces = np.full(replicas.n_replicas, np.nan), np.full(replicas.shape, np.nan)
        faults: dict[int, str] = {}
        left = replicas.alive.copy()
        stand_ins = False
        while left.any():
            try:
                if tap is None:
                    energies, forces = replicas.ask()
                    integrator.step(1)
                else:
                    integrator.step(1)
                    energies, forces = tap.read()
                break
            except openmm.OpenMMException as error:
                # One that was stopped before may have been moved, by a thermostat, to where the
                # potential raises; only when none of them can have done it someone else is sought.
                if stand_ins or left.all():
                    found = self._at_fault(error, left)
                    faults |= found
                    left[list(found)] = False
                stand_ins = True
                if left.any():
                    self._stand_in(left)
        raised = {r: message for r, message in faults.items() if message}
        for r, message in tap.raised.items() if tap is not None else ():
            if left[r]:
                raised[r] = own_error(message, replicas.card)
        stopped = [*faults, *raised]
        energies[stopped], forces[stopped] = np.nan, np.nan
        return energies, forces, raised

    def _at_fault(self, error: openmm.OpenMMException, left: NDArray[np.bool_]) -> dict[int, str]:
        """For which replicas an evaluation of all of them failed, and what the potential raised.

        Returns
        -------
        by replica the message; empty where OpenMM has met a NaN
        """
        message = "" if is_not_a_number(error) else own_error(error, self.replicas.card)
        suspects = np.flatnonzero(left)
        if len(suspects) > 1:
            with self.alone() as alone:
                energies, forces = alone.evaluate(self.replicas.positions[suspects], batched=False)
            lost = ~(np.isfinite(energies) & np.isfinite(forces).all((1, 2)))
            if lost.any():
                return {
                    int(suspects[k]): alone.raised.get(k, "") for k in np.flatnonzero(lost).tolist()
                }
            message = message and f"{message} {nobody_alone(len(suspects))}"
        return {int(r): message for r in suspects}

    def _stand_in(self, left: NDArray[np.bool_]) -> None:
        """Begin the step again, those that cannot go on at the place of one that can."""
        replicas = self.replicas
        place, motion = replicas.positions.copy(), replicas.velocities.copy()
        place[~left], motion[~left] = place[left.argmax()], 0.0
        if replicas.tap is not None:
            for r in np.flatnonzero(~left).tolist():
                replicas.tap.freeze(r)
        replicas.put(place, motion)


@dataclass(frozen=True)
class _Ahead:
    """A block that is over and was not looked at.

    Attributes
    ----------
    block : None where OpenMM has met an error
    seconds : that its steps took
    """

    first: int
    n: int
    block: Landed | None
    seconds: float


def _landed(blocks: Blocks, first: int, n: int, began: float) -> _Ahead:
    """Wait for what was launched."""
    block = blocks.land()
    return _Ahead(first, n, block, max(time.monotonic() - began, 1e-6))


def _next_size(n: int, seconds: float) -> int:
    """How many steps the next call may take where `n` took so long."""
    return max(1, min(2 * n, int(n * _CALL_SECONDS / seconds)))
