"""Replicas that share one System and one evaluation a step, from their start to the end of a run.

VerletIntegrator is a leapfrog: its velocities are half a step behind its positions. A frame at t
holds x(t), F(t), E(t) from the tap, and the velocity on the step v(t) = v(t - dt/2) + F(t) dt / 2m,
whose kinetic energy equals OpenMM's own. One step, one evaluation of the model.

Where the tap is on the host, and the potential says that it is `repeatable`, OpenMM takes many
steps in one call and the tap keeps what each of them evaluates. Velocities are then
(x(t) - x(t - dt)) (1 / dt), which is what OpenMM sets them to, to the last bit. When anything is
amiss with any of those steps, they are taken again from where they began, one by one, and what
happens is dealt with where it happens.

LangevinMiddleIntegrator (ensemble "nvt") is a leapfrog too, with the thermostat in the middle of
the move: v += F dt/m, x += v dt/2, v = c v + noise, x += v dt/2. Its velocities are recorded as
they are, and so is their kinetic energy, which again is OpenMM's own. They need no correction: for
a harmonic potential it is the half-step velocities that are distributed after Maxwell and
Boltzmann, whatever the timestep, while those on the step are too cold by a fraction of
(omega dt)^2 / 4 (Zhang, Liu, Yan, Tuckerman & Liu, J. Phys. Chem. A 123, 6056 (2019)).

A potential whose own code raises ends the replica for which it did, with the step and the message,
and the others go on. Where several replicas share one evaluation, each is evaluated alone to see
which it was; where none raises alone, all that share it end, and their events say so. A replica
that was taken out stands where one that goes on stood, so that it raises no more.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import openmm
import psutil
import torch
from numpy.typing import NDArray

from omm_mlff.dynamics.evaluator import DISCARDED_CALLS, Evaluator, make_context
from omm_mlff.dynamics.initial_state import draw_velocities, thermal_velocities
from omm_mlff.dynamics.recording import Recorder, StatusLog, topology_json
from omm_mlff.dynamics.stability_watch import Watch
from omm_mlff.errors import RunDirectoryError
from omm_mlff.forces.faults import nobody_alone
from omm_mlff.forces.interrupt import deferred_interrupt
from omm_mlff.forces.potential_errors import is_not_a_number, own_error
from omm_mlff.forces.tap import Ring, Tap
from omm_mlff.potentials.base import Potential
from omm_mlff.record import rundir
from omm_mlff.record.rundir import SegmentWriter, replica_folder
from omm_mlff.schema import MolecularSystem, RunSpec
from omm_mlff.units import PS_PER_FS

FRICTION_PER_PS = 10.0
"""Of the Langevin thermostat. A small molecule in vacuum has no bath and hardly any exchange
between its vibrations: each of them is thermalised by the friction alone, at this rate. Most users
take 1/ps for a liquid; here that would waste several picoseconds of every replica on forgetting the
start, and leave one independent sample of the energy in 1 ps. Ten times as much does it in 0.1 ps,
and all vibrations above 30 cm^-1 remain underdamped. Not more: friction also cools what a wrong
force heats."""


_CALL_STEPS = 256
"""Most steps in one call of OpenMM; after so many, too, the pace is noted."""
_WAITING_FRAMES = 4096
_WAITING_BYTES = 2**24
"""Of frames that wait to be written, whichever is less: an append costs the same for one or all."""
_CALL_SECONDS = 0.5
"""About so long one call of OpenMM may take: then somebody may want to interrupt."""


class Batch:
    """Replicas that share one System and one evaluation a step."""

    def __init__(
        self,
        spec: RunSpec,
        potential: Potential,
        system: MolecularSystem,
        platform_name: str,
        folder: Path,
        number: int,
        replicas: list[int],
        log: StatusLog,
    ) -> None:
        self.spec = spec
        self.system = system
        self.folder = folder
        self.replicas = replicas
        self.number = number
        self.log = log
        self.state_path = folder / f"batch_{number:03d}.npz"
        self.dt_ps = spec.timestep_fs * PS_PER_FS
        self.potential = potential
        self.platform_name = platform_name
        self.n_replicas = len(replicas)
        self.shape = (self.n_replicas, system.n_atoms, 3)
        self.inverse_mass = 1.0 / system.masses[None, :, None]
        self.half_mass = 0.5 * system.masses[None, :, None]
        self.thermostatted = spec.ensemble == "nvt"
        self._steps_a_call = 16

    def run(
        self,
        rest_positions: NDArray[np.float64],
        n_dof: int,
        progress: Callable[[int], None],
    ) -> None:
        """From the start, or from where it was left, to the end of the spec."""
        kept = self._kept_state()
        if kept is not None and int(kept["step"]) >= self.spec.n_steps:
            return
        if kept is not None and not kept["alive"].any():
            progress(self.spec.n_steps)  # there is nothing to extend
            return
        tap = Tap(self.n_replicas, self.system.n_atoms) if self._tapped else None
        try:
            # Ctrl-C inside a callback would reach OpenMM as an error without a message.
            with deferred_interrupt() as interrupted:
                self._run(kept, tap, rest_positions, n_dof, progress, interrupted)
        finally:
            if tap is not None:
                tap.close()

    def _run(
        self,
        kept: dict[str, NDArray[Any]] | None,
        tap: Tap | None,
        rest_positions: NDArray[np.float64],
        n_dof: int,
        progress: Callable[[int], None],
        interrupted: Callable[[], bool],
    ) -> None:
        context = make_context(
            self.potential,
            self.system,
            self._integrator(0 if kept is None else int(kept["step"])),
            self.platform_name,
            self.spec.precision,
            n_copies=self.n_replicas,
            tap=tap,
        )
        watch = Watch(
            self.system,
            self.system.positions,
            self.n_replicas,
            self.dt_ps,
            conserves_energy=not self.thermostatted,
        )
        alive = np.ones(self.n_replicas, dtype=bool)
        first_step, first_segment = 0, 0
        if kept is None:
            x = np.broadcast_to(rest_positions, self.shape).copy()
            v = self._initial_velocities(context, tap, x, n_dof)
        else:
            x, v, alive = kept["positions"], kept["velocities"], kept["alive"].astype(bool)
            first_step, first_segment = int(kept["step"]), int(kept["segment"])
            watch.restore(kept["first_energy"], kept["steps_stretched"])
            self._warm_up(context, x)
        writers = [
            SegmentWriter(
                self.folder / replica_folder(r),
                topology_json(self.system),
                self.system.n_atoms,
                self.system.box_vectors,
                first_segment,
            )
            for r in self.replicas
        ]
        if tap is not None:
            tap.alive.copy_(torch.from_numpy(alive))
        self._set(context, x, v)
        if kept is not None and self.thermostatted:
            self._restore_random_stream(context, kept)
        frame_bytes = 3 * 8 * int(np.prod(self.shape))
        n_frames = max(1, min(_WAITING_FRAMES, _WAITING_BYTES // frame_bytes))
        recorder = Recorder(writers, self.shape, n_frames)
        try:
            self._steps(
                context,
                tap,
                watch,
                recorder,
                x,
                v,
                alive,
                first_step,
                first_segment,
                progress,
                interrupted,
            )
        finally:
            for writer in writers:
                writer.abandon()

    @property
    def _tapped(self) -> bool:
        return self.potential.capabilities(self.system).tap

    @np.errstate(over="ignore", invalid="ignore")  # what flies apart is recorded, not warned of
    def _steps(
        self,
        context: openmm.Context,
        tap: Tap | None,
        watch: Watch,
        recorder: Recorder,
        x: NDArray[np.float64],
        v: NDArray[np.float64],
        alive: NDArray[np.bool_],
        first_step: int,
        segment: int,
        progress: Callable[[int], None],
        interrupted: Callable[[], bool],
    ) -> None:
        n_steps, stride = self.spec.n_steps, self.spec.record_stride
        calls_before = tap.n_calls if tap is not None else 0
        part = 1 + max((int(row[0]) for row in self._pace_rows()), default=-1)
        segment_began = started = time.monotonic()
        row_began = self._clock()
        row_step = step = first_step
        ring = self._ring(tap, min(_CALL_STEPS, recorder.size))
        while step < n_steps:
            if interrupted():
                self._close_segment(context, recorder, segment, step, x, v, alive, watch)
                self._account(started, tap, calls_before, step - first_step)
                raise KeyboardInterrupt
            # Up to where the recorder is full, and no further than the pace's next row.
            n = min(
                n_steps - step,
                (recorder.room - 1) * stride + stride - step % stride,
                row_step + _CALL_STEPS - step,
            )
            moved = None
            if tap is not None and ring is not None:
                n = min(n, ring.n_frames, self._steps_a_call)
                moved = self._many(context, tap, ring, watch, recorder, x, v, alive, step, n)
            if moved is None:
                n, x, v = self._one_by_one(
                    context, tap, watch, recorder, x, v, alive, step, n, interrupted
                )
            else:
                x, v = moved
            step += n
            if not alive.any():
                self._close_segment(context, recorder, segment, n_steps, x, v, alive, watch)
                self._account(started, tap, calls_before, n_steps - first_step)
                progress(n_steps)
                return
            progress(step)
            if recorder.full:
                recorder.flush()
            if step == row_step + _CALL_STEPS:
                row_ended = self._clock()
                self._pace(part, step, (row_ended - row_began) / (step - row_step))
                row_began, row_step = row_ended, step
                if (
                    recorder.n_in_segment + recorder.filled >= rundir.SEGMENT_FRAMES
                    or time.monotonic() - segment_began > rundir.SEGMENT_SECONDS
                ):
                    self._close_segment(context, recorder, segment, step, x, v, alive, watch)
                    segment, segment_began = segment + 1, time.monotonic()
        self._close_segment(context, recorder, segment, n_steps, x, v, alive, watch)
        self._account(started, tap, calls_before, n_steps - first_step)

    def _ring(self, tap: Tap | None, n_frames: int) -> Ring | None:
        """Where many steps in one call are kept; None where they must be taken one by one."""
        on_host = self.platform_name in ("Reference", "CPU")
        repeatable = self.potential.capabilities(self.system).repeatable
        if tap is None or self.thermostatted or not on_host or not repeatable:
            return None
        return Ring(n_frames, self.n_replicas, self.system.n_atoms)

    def _many(
        self,
        context: openmm.Context,
        tap: Tap,
        ring: Ring,
        watch: Watch,
        recorder: Recorder,
        x: NDArray[np.float64],
        v: NDArray[np.float64],
        alive: NDArray[np.bool_],
        step: int,
        n: int,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """`n` steps in one call of OpenMM, recorded.

        Returns
        -------
        positions and velocities after them; None where something is amiss in any of them: then
        everything is as it was before
        """
        alive_before = tap.alive.clone()
        began = time.monotonic()
        ring.empty(unmasked=bool(alive.all()))
        tap.ring = ring
        try:
            context.getIntegrator().step(n)
        except openmm.OpenMMException:
            sound = False
        else:
            sound = ring.n_received == n
        finally:
            tap.ring = None
        if sound:
            state = context.getState(positions=True, velocities=True)
            x_next = state.getPositions(asNumpy=True)._value.reshape(self.shape)
            v_next = state.getVelocities(asNumpy=True)._value.reshape(self.shape)
            positions, forces, energies = ring.positions[:n], ring.forces[:n], ring.energies[:n]
            velocities = np.concatenate((v[None], np.diff(positions, axis=0) * (1.0 / self.dt_ps)))
            velocities += self._half_kick(forces)
            kinetic = self._kinetic(velocities)
            sound = watch.passes(step, positions, velocities, energies, kinetic, alive)
        if not sound:
            tap.alive.copy_(alive_before)
            self._set(context, x, v)
            return None
        kept = slice(-step % self.spec.record_stride, n, self.spec.record_stride)
        recorder.add_frames(
            self.dt_ps * np.arange(step, step + n)[kept].astype(np.float64),
            positions[kept],
            velocities[kept],
            forces[kept],
            energies[kept],
            kinetic[kept],
            alive,
        )
        seconds = max(time.monotonic() - began, 1e-6)
        self._steps_a_call = max(1, min(2 * n, int(n * _CALL_SECONDS / seconds)))
        return x_next, v_next

    def _one_by_one(
        self,
        context: openmm.Context,
        tap: Tap | None,
        watch: Watch,
        recorder: Recorder,
        x: NDArray[np.float64],
        v: NDArray[np.float64],
        alive: NDArray[np.bool_],
        first: int,
        n: int,
        interrupted: Callable[[], bool],
    ) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
        """Up to `n` steps, each looked at before the next, recorded.

        Returns
        -------
        how many were taken: fewer when somebody interrupts or no replica is left; positions and
        velocities after them
        """
        for step in range(first, first + n):
            if step > first and interrupted():
                return step - first, x, v
            energies, forces, raised = self._advance(context, tap, x, v, alive)
            state = context.getState(positions=True, velocities=True)
            x_next = state.getPositions(asNumpy=True)._value.reshape(self.shape)
            v_next = state.getVelocities(asNumpy=True)._value.reshape(self.shape)
            v_on = v if self.thermostatted else v + self._half_kick(forces)
            kinetic = self._kinetic(v_on)
            finite = (
                np.isfinite(energies)
                & np.isfinite(forces).all((1, 2))
                & np.isfinite(x).all((1, 2))
                & np.isfinite(kinetic)
            )
            events = watch.look(step, x, energies, kinetic, finite, alive, raised)
            if step % self.spec.record_stride == 0:
                recorder.add(step * self.dt_ps, x, v_on, forces, energies, kinetic, alive & finite)
            if events:
                for r, event in events.items():
                    self.log.events[self.replicas[r]] = event
                    alive[r] = False
                    x_next[r], v_next[r] = np.where(np.isfinite(x[r]), x[r], 0.0), 0.0
                    if tap is not None:
                        tap.freeze(r)
                if alive.any():
                    x_next[list(raised)] = x[alive.argmax()]
                recorder.flush()
                self.log.write("running")
                if not alive.any():
                    return step + 1 - first, x_next, v_next
                self._set(context, x_next, v_next)
            x, v = x_next, v_next
        return n, x, v

    def _advance(
        self,
        context: openmm.Context,
        tap: Tap | None,
        x: NDArray[np.float64],
        v: NDArray[np.float64],
        alive: NDArray[np.bool_],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[int, str]]:
        """One step, of all for which the potential does not raise.

        Returns
        -------
        energies, forces : at the positions `x`; NaN for a replica that cannot go on
        raised : by replica, what the potential's own code raised
        """
        integrator = context.getIntegrator()
        energies, forces = np.full(self.n_replicas, np.nan), np.full(self.shape, np.nan)
        faults: dict[int, str] = {}
        left = alive.copy()
        stand_ins = False
        while left.any():
            try:
                if tap is None:
                    energies, forces = self._ask(context)
                    integrator.step(1)
                else:
                    integrator.step(1)
                    energies, forces = tap.read()
                break
            except openmm.OpenMMException as error:
                # One that was stopped before may have been moved, by a thermostat, to where the
                # potential raises; only when none of them can have done it someone else is sought.
                if stand_ins or left.all():
                    found = self._at_fault(error, x, left)
                    faults |= found
                    left[list(found)] = False
                stand_ins = True
                if left.any():
                    self._stand_in(context, tap, x, v, left)
        raised = {r: message for r, message in faults.items() if message}
        for r, message in tap.raised.items() if tap is not None else ():
            if left[r]:
                raised[r] = own_error(message, self.potential.card)
        stopped = [*faults, *raised]
        energies[stopped], forces[stopped] = np.nan, np.nan
        return energies, forces, raised

    def _at_fault(
        self, error: openmm.OpenMMException, x: NDArray[np.float64], left: NDArray[np.bool_]
    ) -> dict[int, str]:
        """For which replicas an evaluation of all of them failed, and what the potential raised.

        Returns
        -------
        by replica the message; empty where OpenMM has met a NaN
        """
        message = "" if is_not_a_number(error) else own_error(error, self.potential.card)
        suspects = np.flatnonzero(left)
        if len(suspects) > 1:
            with Evaluator(
                self.potential, self.system, self.platform_name, self.spec.precision
            ) as alone:
                energies, forces = alone.evaluate(x[suspects], batched=False)
            lost = ~(np.isfinite(energies) & np.isfinite(forces).all((1, 2)))
            if lost.any():
                return {
                    int(suspects[k]): alone.raised.get(k, "") for k in np.flatnonzero(lost).tolist()
                }
            message = message and f"{message} {nobody_alone(len(suspects))}"
        return {int(r): message for r in suspects}

    def _stand_in(
        self,
        context: openmm.Context,
        tap: Tap | None,
        x: NDArray[np.float64],
        v: NDArray[np.float64],
        left: NDArray[np.bool_],
    ) -> None:
        """Begin the step again, those that cannot go on at the place of one that can."""
        place, motion = x.copy(), v.copy()
        place[~left], motion[~left] = x[left.argmax()], 0.0
        if tap is not None:
            for r in np.flatnonzero(~left).tolist():
                tap.freeze(r)
        self._set(context, place, motion)

    def _close_segment(
        self,
        context: openmm.Context,
        recorder: Recorder,
        segment: int,
        step: int,
        x: NDArray[np.float64],
        v: NDArray[np.float64],
        alive: NDArray[np.bool_],
        watch: Watch,
    ) -> None:
        """Close what is open, then say from where to go on; in this order."""
        recorder.close_segment()
        partial = self.state_path.with_suffix(".partial.npz")
        # Positions and velocities say all of Verlet, but nothing of the thermostat's random stream.
        checkpoint = context.createCheckpoint() if self.thermostatted else b""
        with rundir.storage_errors(self.state_path):
            np.savez(
                partial,
                step=np.array(step),
                segment=np.array(segment + 1),
                positions=x,
                velocities=v,
                alive=alive,
                first_energy=watch.first_energy,
                steps_stretched=watch.steps_stretched,
                checkpoint=np.frombuffer(checkpoint, dtype=np.uint8),
            )
            os.replace(partial, self.state_path)
        self.log.write("running")

    def _clock(self) -> float:
        """Seconds: of this process where it computes itself, so that other work does not count."""
        on_host = self.platform_name in ("Reference", "CPU")
        return time.process_time() if on_host else time.monotonic()

    def _pace(self, part: int, step: int, seconds_per_step: float) -> None:
        """One more row of `RunRecord.pace`; written with the status at the next segment's end."""
        memory_MiB = psutil.Process().memory_info().rss / 2**20
        row = [part, step, float(f"{seconds_per_step:.4g}"), round(memory_MiB, 3)]
        self._pace_rows().append(row)

    def _pace_rows(self) -> list[list[float]]:
        rows: list[list[float]] = self.log.batches.setdefault(self.number, {}).setdefault(
            "pace", []
        )
        return rows

    def _account(self, started: float, tap: Tap | None, calls_before: int, n_steps: int) -> None:
        old = self.log.batches.get(self.number, {})
        n_calls = tap.n_calls - calls_before if tap is not None else None
        seconds = time.monotonic() - started
        self.log.batches[self.number] = {
            **old,
            "replicas": [self.replicas[0], self.replicas[-1]],
            "wall_s": round(old.get("wall_s", 0.0) + seconds, 3),
            "n_steps": old.get("n_steps", 0) + n_steps,
            "n_evaluations": None if n_calls is None else (old.get("n_evaluations") or 0) + n_calls,
        }

    def _kept_state(self) -> dict[str, NDArray[Any]] | None:
        if not self.state_path.exists():
            return None
        try:
            with self.state_path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                return {key: kept[key] for key in kept.files}
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise RunDirectoryError(
                f"{self.state_path} is damaged ({error}); remove the run's folder and repeat it"
            ) from error

    def _integrator(self, first_step: int) -> openmm.Integrator:
        """The integrator of the ensemble; a resumed run must not repeat the first one's noise.

        The Reference platform has one random stream for the whole process: two thermostatted runs
        in threads of one process each sample their ensemble, but cannot be repeated.
        """
        if not self.thermostatted:
            return openmm.VerletIntegrator(self.dt_ps)
        integrator = openmm.LangevinMiddleIntegrator(
            self.spec.temperature_K, FRICTION_PER_PS, self.dt_ps
        )
        words = np.random.SeedSequence([self.spec.seed, self.number, first_step])
        # OpenMM takes a positive 32-bit integer, and 0 for "another one each time".
        integrator.setRandomNumberSeed(1 + int(words.generate_state(1)[0]) % (2**31 - 2))
        return integrator

    def _restore_random_stream(
        self, context: openmm.Context, kept: dict[str, NDArray[Any]]
    ) -> None:
        """Go on with the thermostat's random numbers where they were left, if that can be."""
        try:
            context.loadCheckpoint(kept["checkpoint"].tobytes())
        except openmm.OpenMMException:
            # Another platform or version of OpenMM: positions and velocities stand, the noise is
            # new. The same ensemble, not the same run.
            self._set(context, kept["positions"], kept["velocities"])
            batch = self.log.batches.setdefault(self.number, {})
            batch.setdefault("new_random_streams", []).append(int(kept["step"]))

    def _initial_velocities(
        self,
        context: openmm.Context,
        tap: Tap | None,
        x: NDArray[np.float64],
        n_dof: int,
    ) -> NDArray[np.float64]:
        """Velocities half a step before the start, as a leapfrog wants them."""
        self._warm_up(context, x)
        forces = np.zeros(self.shape)
        if tap is None:
            with self._tolerated():
                _, forces = self._ask(context)
        else:
            _, forces = tap.read()
            tap.alive.fill_(True)
        if self.thermostatted:
            return np.stack([self._thermal_velocities(replica) for replica in self.replicas])
        v = np.stack(
            [
                draw_velocities(
                    x[i],
                    self.system.masses,
                    n_dof=n_dof,
                    temperature_K=self.spec.temperature_K,
                    periodic=self.system.periodic,
                    seed=self.spec.seed,
                    replica=replica,
                )
                for i, replica in enumerate(self.replicas)
            ]
        )
        half_kick = self._half_kick(forces)
        return v - np.where(np.isfinite(half_kick), half_kick, 0.0)

    def _thermal_velocities(self, replica: int) -> NDArray[np.float64]:
        return thermal_velocities(
            self.system.masses,
            temperature_K=self.spec.temperature_K,
            seed=self.spec.seed,
            replica=replica,
        )

    def _kinetic(self, v: NDArray[np.float64]) -> NDArray[np.float64]:
        """Kinetic energy of every replica, velocities of shape (..., n_replicas, n_atoms, 3)."""
        each = self.half_mass * v * v
        summed: NDArray[np.float64] = each.reshape(*each.shape[:-2], -1).sum(-1)
        return summed

    def _half_kick(self, forces: NDArray[np.float64]) -> NDArray[np.float64]:
        """What Verlet's velocities gain in the half step that they are behind."""
        gained: NDArray[np.float64] = (0.5 * self.dt_ps) * forces * self.inverse_mass
        return gained

    def _warm_up(self, context: openmm.Context, x: NDArray[np.float64]) -> None:
        context.setPositions(x.reshape(-1, 3))
        for _ in range(DISCARDED_CALLS):
            with self._tolerated():
                context.getState(energy=True, forces=True)

    @contextlib.contextmanager
    def _tolerated(self) -> Iterator[None]:
        """What a potential raises before the first step, it raises again in it."""
        try:
            yield
        except openmm.OpenMMException as error:
            if not is_not_a_number(error):
                own_error(error, self.potential.card)

    def _ask(self, context: openmm.Context) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Energy and forces the ordinary way, for a potential without a tap."""
        state = context.getState(energy=True, forces=True)
        energy = np.array([state.getPotentialEnergy()._value])
        return energy, state.getForces(asNumpy=True)._value.reshape(self.shape)

    def _set(self, context: openmm.Context, x: NDArray[np.float64], v: NDArray[np.float64]) -> None:
        context.setPositions(x.reshape(-1, 3))
        context.setVelocities(v.reshape(-1, 3))
