"""Steps of many replicas, recorded: many in one call of OpenMM, or one at a time.

Where the potential says that it is `repeatable`, OpenMM takes many steps in one call and the tap
keeps what each of them evaluates. Velocities are then (x(t) - x(t - dt)) (1 / dt), which is what
OpenMM sets them to, to the last bit. When anything is amiss with any of those steps, they are taken
again from where they began, one by one, and what happens is dealt with where it happens.

A potential whose own code raises ends the replica for which it did, with the step and the message,
and the others go on. Where several replicas share one evaluation, each is evaluated alone to see
which it was; where none raises alone, all that share it end, and their events say so. A replica
that was taken out stands where one that goes on stood, so that it raises no more.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import openmm
from numpy.typing import NDArray

from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.dynamics.frames import Frames
from omm_mlff.dynamics.recording import Recorder
from omm_mlff.dynamics.replicas import Replicas
from omm_mlff.dynamics.stability_watch import Watch
from omm_mlff.forces.faults import nobody_alone
from omm_mlff.forces.potential_errors import is_not_a_number, own_error
from omm_mlff.forces.tap import Ring
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
    thermostatted : velocities are recorded as the integrator has them
    ring : where many steps in one call are kept; None where they must be taken one by one
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
        thermostatted: bool,
        ring: Ring | None,
        alone: Callable[[], Evaluator],
        stopped: Callable[[dict[int, Event]], None],
        interrupted: Callable[[], bool],
    ) -> None:
        self.replicas = replicas
        self.watch = watch
        self.recorder = recorder
        self.stride = stride
        self.thermostatted = thermostatted
        self.ring = ring
        self.alone = alone
        self.stopped = stopped
        self.interrupted = interrupted
        self._steps_a_call = _FIRST_CALL_STEPS

    def take(self, first: int, most: int) -> int:
        """Some steps, from step `first` on, recorded.

        Returns
        -------
        how many: 1 to `most`; the last of them may be the last of all replicas
        """
        if self.ring is not None:
            most = min(most, self.ring.n_frames, self._steps_a_call)
            if self._many(self.ring, first, most):
                return most
        return self._one_by_one(first, most)

    def room(self, step: int) -> int:
        """How many steps from `step` on there is room for before the recorder must be flushed."""
        return (self.recorder.room - 1) * self.stride + self.stride - step % self.stride

    def _many(self, ring: Ring, first: int, n: int) -> bool:
        """`n` steps in one call of OpenMM, recorded.

        Returns
        -------
        False where something is amiss in any of them: then everything is as it was before
        """
        replicas, tap = self.replicas, self.replicas.tap
        assert tap is not None
        alive_before = tap.alive.clone()
        began = time.monotonic()
        ring.empty(unmasked=bool(replicas.alive.all()))
        tap.ring = ring
        try:
            replicas.context.getIntegrator().step(n)
        except openmm.OpenMMException:
            sound = False
        else:
            sound = ring.n_received == n
        finally:
            tap.ring = None
        if sound:
            end = replicas.in_context()
            frames = self._frames(ring, first, n)
            sound = self.watch.passes(
                first,
                frames.positions,
                frames.velocities,
                frames.potential_energy,
                frames.kinetic_energy,
                replicas.alive,
            )
        if not sound:
            tap.alive.copy_(alive_before)
            replicas.put_back()
            return False
        self.recorder.add(frames.every(self.stride, first), replicas.alive)
        replicas.positions, replicas.velocities = end
        seconds = max(time.monotonic() - began, 1e-6)
        self._steps_a_call = max(1, min(2 * n, int(n * _CALL_SECONDS / seconds)))
        return True

    def _frames(self, ring: Ring, first: int, n: int) -> Frames:
        replicas = self.replicas
        positions, forces = ring.positions[:n], ring.forces[:n]
        moved = np.diff(positions, axis=0) * (1.0 / replicas.timestep_ps)
        velocities = np.concatenate((replicas.velocities[None], moved))
        velocities += replicas.half_kick(forces)
        return Frames(
            replicas.timestep_ps * np.arange(first, first + n).astype(np.float64),
            positions,
            velocities,
            forces,
            ring.energies[:n],
            replicas.kinetic(velocities),
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
