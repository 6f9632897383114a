"""One batch of replicas, from its start or from where it was left, to the end of its run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omm_mlff.dynamics.blocks import Blocks, DeviceBlocks, HostBlocks
from omm_mlff.dynamics.checkpoint import Checkpoint
from omm_mlff.dynamics.evaluator import Evaluator, make_context
from omm_mlff.dynamics.initial_state import draw_velocities, thermal_velocities
from omm_mlff.dynamics.integrator import (
    is_thermostatted,
    make_integrator,
    random_stream,
    restore_random_stream,
)
from omm_mlff.dynamics.pace import ROW_STEPS, Pace
from omm_mlff.dynamics.recording import Recorder, StatusLog, topology_json
from omm_mlff.dynamics.replicas import Replicas
from omm_mlff.dynamics.stability_watch import Watch
from omm_mlff.dynamics.stepper import Stepper
from omm_mlff.forces.interrupt import deferred_interrupt
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials.base import Potential
from omm_mlff.record import rundir
from omm_mlff.record.rundir import SegmentWriter, replica_folder
from omm_mlff.schema import Event, MolecularSystem, RunSpec
from omm_mlff.units import PS_PER_FS

_WAITING_FRAMES = 4096
_WAITING_BYTES = 2**24
"""Of frames that wait to be written, whichever is less: an append costs the same for one or all."""
_DEVICE_BYTES = 2**28
"""Of a device's memory, for energies and forces that wait to be read out."""


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Replicas of a run that share one System.

    Attributes
    ----------
    folder : of the run
    number : of the batch in the run
    replicas : their numbers in the run, in a row
    """

    spec: RunSpec
    potential: Potential
    system: MolecularSystem
    platform_name: str
    folder: Path
    number: int
    replicas: list[int]

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / f"batch_{self.number:03d}.npz"

    @property
    def timestep_ps(self) -> float:
        return self.spec.timestep_fs * PS_PER_FS

    @property
    def on_host(self) -> bool:
        """Whether this process computes itself."""
        return self.platform_name in ("Reference", "CPU")

    def alone(self) -> Evaluator:
        """One replica by itself."""
        return Evaluator(self.potential, self.system, self.platform_name, self.spec.precision)


def record_batch(
    plan: BatchPlan,
    rest_positions: NDArray[np.float64],
    n_dof: int,
    log: StatusLog,
    progress: Callable[[int], None],
) -> None:
    """Run a batch to the end of its spec, recorded.

    Parameters
    ----------
    rest_positions : shape (n_atoms, 3), nm, where every replica starts
    n_dof : of one replica
    log : of the run; gets the batch's costs, pace and events
    progress : called with the steps done

    Raises
    ------
    KeyboardInterrupt : somebody interrupted; everything so far is kept
    RunDirectoryError : what was left is damaged
    StorageError, ValidationFailure : the disk, memory or the device failed
    """
    left = Checkpoint.read(plan.checkpoint_path)
    if left is not None and left.step >= plan.spec.n_steps:
        return
    if left is not None and not left.alive.any():
        progress(plan.spec.n_steps)  # there is nothing to extend
        return
    tapped = plan.potential.capabilities(plan.system).tap
    tap = _tap_for(plan) if tapped else None
    try:
        # Ctrl-C inside a callback would reach OpenMM as an error without a message.
        with deferred_interrupt() as interrupted:
            course = _Course(plan, tap, log, interrupted)
            course.prepare(left, rest_positions, n_dof)
            course.run(progress)
    finally:
        if tap is not None:
            tap.close()


def _tap_for(plan: BatchPlan) -> Tap:
    """A tap; on a device one that holds two blocks of steps, or as many as there is memory for."""
    n_replicas, n_atoms = len(plan.replicas), plan.system.n_atoms
    if not counts_itself(plan.platform_name):
        return Tap(n_replicas, n_atoms)
    frame_bytes = 8 * n_replicas * (3 * n_atoms + 1)
    n_slots = max(2, min(2 * ROW_STEPS, _DEVICE_BYTES // frame_bytes))
    return Tap(n_replicas, n_atoms, n_slots=n_slots, counted=True)


def counts_itself(platform_name: str) -> bool:
    """Whether a look at what was evaluated would wait for a device."""
    return platform_name not in ("Reference", "CPU")


class _Course:
    """A batch under way."""

    def __init__(
        self, plan: BatchPlan, tap: Tap | None, log: StatusLog, interrupted: Callable[[], bool]
    ) -> None:
        self.plan = plan
        self.tap = tap
        self.log = log
        self.interrupted = interrupted
        self.thermostatted = is_thermostatted(plan.spec)
        self.first_step = self.step = self.segment = 0
        self.watch = Watch(
            plan.system,
            plan.system.positions,
            len(plan.replicas),
            plan.timestep_ps,
            conserves_energy=not self.thermostatted,
        )

    def prepare(
        self, left: Checkpoint | None, rest_positions: NDArray[np.float64], n_dof: int
    ) -> None:
        """Stand at the start, or where the batch was left."""
        plan = self.plan
        if left is not None:
            self.first_step = self.step = left.step
            self.segment = left.segment
            self.watch.restore(left.first_energy, left.steps_stretched)
        context = make_context(
            plan.potential,
            plan.system,
            make_integrator(plan.spec, plan.number, self.first_step),
            plan.platform_name,
            plan.spec.precision,
            n_copies=len(plan.replicas),
            tap=self.tap,
        )
        self.replicas = Replicas(
            context,
            self.tap,
            plan.system,
            len(plan.replicas),
            plan.timestep_ps,
            plan.potential.card,
        )
        if left is None:
            x = np.broadcast_to(rest_positions, self.replicas.shape).copy()
            forces = self.replicas.warm_up(x)
            v = self._initial_velocities(x, forces, n_dof)
            self.replicas.begin(x, v, np.ones(len(plan.replicas), dtype=bool))
            return
        self.replicas.warm_up(left.positions)
        self.replicas.begin(left.positions, left.velocities, left.alive)
        if not self.thermostatted or restore_random_stream(context, left.checkpoint.tobytes()):
            return
        self.replicas.put_back()
        self._status.setdefault("new_random_streams", []).append(left.step)

    def run(self, progress: Callable[[int], None]) -> None:
        """To the end of the spec, or of the last replica."""
        plan = self.plan
        topology = topology_json(plan.system)
        writers = [
            SegmentWriter(
                plan.folder / replica_folder(r),
                topology,
                plan.system.n_atoms,
                plan.system.box_vectors,
                self.segment,
            )
            for r in plan.replicas
        ]
        frame_bytes = 3 * 8 * int(np.prod(self.replicas.shape))
        n_frames = max(1, min(_WAITING_FRAMES, _WAITING_BYTES // frame_bytes))
        recorder = Recorder(writers, self.replicas.shape, n_frames)
        try:
            self._steps(recorder, progress)
        finally:
            for writer in writers:
                writer.abandon()

    @np.errstate(over="ignore", invalid="ignore")  # what flies apart is recorded, not warned of
    def _steps(self, recorder: Recorder, progress: Callable[[int], None]) -> None:
        first_step, n_steps = self.first_step, self.plan.spec.n_steps

        def limit(step: int) -> int:
            """To the run's end, and no further than the pace's next row."""
            return min(n_steps - step, ROW_STEPS - (step - first_step) % ROW_STEPS)

        stepper = Stepper(
            self.replicas,
            self.watch,
            recorder,
            stride=self.plan.spec.record_stride,
            limit=limit,
            thermostatted=self.thermostatted,
            blocks=self._blocks(recorder.size),
            alone=self.plan.alone,
            stopped=self._stopped,
            interrupted=self.interrupted,
        )
        try:
            self._take_all(stepper, recorder, progress)
        finally:
            stepper.close()

    def _take_all(
        self, stepper: Stepper, recorder: Recorder, progress: Callable[[int], None]
    ) -> None:
        n_steps = self.plan.spec.n_steps
        calls_before = self.tap.n_calls if self.tap is not None else 0
        pace = Pace(self._status, on_host=self.plan.on_host, first_step=self.step)
        segment_began = started = time.monotonic()
        while self.step < n_steps and self.replicas.alive.any():
            if self.interrupted():
                self._close_segment(recorder, self.step)
                self._account(started, calls_before, self.step - self.first_step)
                raise KeyboardInterrupt
            self.step += stepper.take(self.step)
            if not self.replicas.alive.any():
                break
            progress(self.step)
            row_due = self.step == pace.next_step
            pace.note(self.step)
            if row_due and (
                recorder.n_in_segment + recorder.filled >= rundir.SEGMENT_FRAMES
                or time.monotonic() - segment_began > rundir.SEGMENT_SECONDS
            ):
                self._close_segment(recorder, self.step)
                segment_began = time.monotonic()
        self._close_segment(recorder, n_steps)
        self._account(started, calls_before, n_steps - self.first_step)
        if not self.replicas.alive.any():
            progress(n_steps)

    def _blocks(self, room: int) -> Blocks | None:
        """How many steps in one call are taken; None where they must be taken one by one."""
        repeatable = self.plan.potential.capabilities(self.plan.system).repeatable
        if self.tap is None or self.thermostatted or not repeatable:
            return None
        if not self.tap.counted:
            return HostBlocks(self.replicas, min(ROW_STEPS, room))
        n_most = max(1, min(ROW_STEPS, room, self.tap.n_slots // 2))
        return DeviceBlocks(self.replicas, n_most, self.plan.spec.precision)

    def _stopped(self, events: dict[int, Event]) -> None:
        for r, event in events.items():
            self.log.events[self.plan.replicas[r]] = event
        self.log.write("running")

    def _close_segment(self, recorder: Recorder, step: int) -> None:
        """Close what is open, then say from where to go on; in this order."""
        recorder.close_segment()
        self.segment += 1
        stream = random_stream(self.replicas.context, self.plan.spec)
        Checkpoint(
            step,
            self.segment,
            self.replicas.positions,
            self.replicas.velocities,
            self.replicas.alive,
            self.watch.first_energy,
            self.watch.steps_stretched,
            np.frombuffer(stream, dtype=np.uint8),
        ).write(self.plan.checkpoint_path)
        self.log.write("running")

    @property
    def _status(self) -> dict[str, Any]:
        """What the status says of this batch."""
        return self.log.batches.setdefault(self.plan.number, {})

    def _account(self, started: float, calls_before: int, n_steps: int) -> None:
        status, replicas = self._status, self.plan.replicas
        n_calls = self.tap.n_calls - calls_before if self.tap is not None else None
        seconds = time.monotonic() - started
        status |= {
            "replicas": [replicas[0], replicas[-1]],
            "wall_s": round(status.get("wall_s", 0.0) + seconds, 3),
            "n_steps": status.get("n_steps", 0) + n_steps,
            "n_evaluations": None
            if n_calls is None
            else (status.get("n_evaluations") or 0) + n_calls,
        }

    def _initial_velocities(
        self, x: NDArray[np.float64], forces: NDArray[np.float64], n_dof: int
    ) -> NDArray[np.float64]:
        """Velocities half a step before the start, as a leapfrog wants them."""
        spec, system = self.plan.spec, self.plan.system
        if self.thermostatted:
            return np.stack(
                [
                    thermal_velocities(
                        system.masses,
                        temperature_K=spec.temperature_K,
                        seed=spec.seed,
                        replica=replica,
                    )
                    for replica in self.plan.replicas
                ]
            )
        v = np.stack(
            [
                draw_velocities(
                    x[i],
                    system.masses,
                    n_dof=n_dof,
                    temperature_K=spec.temperature_K,
                    periodic=system.periodic,
                    seed=spec.seed,
                    replica=replica,
                )
                for i, replica in enumerate(self.plan.replicas)
            ]
        )
        half_kick = self.replicas.half_kick(forces)
        return v - np.where(np.isfinite(half_kick), half_kick, 0.0)
