"""Keeps what a simulation leaves while it runs: frames by the chunk, and its status.

`rundir` says how a run directory looks; this fills one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omm_mlff.dynamics.frames import Frames
from omm_mlff.record import rundir
from omm_mlff.record.documents import read_document, write_document
from omm_mlff.record.frame_fields import FRAME_FIELDS
from omm_mlff.record.rundir import SegmentWriter
from omm_mlff.record.status import BatchStatus, PaceRow, RunStatus, State
from omm_mlff.schema import Event, MolecularSystem, RunSpec


@dataclass
class BatchLog:
    """What is known so far of one batch of replicas: see `BatchStatus`, which it becomes."""

    replicas: tuple[int, int] | None = None
    wall_s: float = 0.0
    n_steps: int = 0
    n_evaluations: int | None = None
    pace: list[PaceRow] = field(default_factory=list)
    new_random_streams: list[int] = field(default_factory=list)

    def frozen(self) -> BatchStatus:
        """As it stands now."""
        return BatchStatus(
            self.replicas,
            self.wall_s,
            self.n_steps,
            self.n_evaluations,
            tuple(self.pace),
            tuple(self.new_random_streams),
        )


@dataclass
class StatusLog:
    """What `status.json` is to say: events and costs, by replica and by batch."""

    folder: Path
    spec: RunSpec
    events: dict[int, Event] = field(default_factory=dict)
    batches: dict[int, BatchLog] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = self.folder / rundir.STATUS_FILE
        if path.exists():
            old = read_document(path, RunStatus)
            self.events = dict(old.events)
            for number, batch in old.batches.items():
                lists = {
                    "pace": list(batch.pace),
                    "new_random_streams": list(batch.new_random_streams),
                }
                self.batches[number] = BatchLog(**{**vars(batch), **lists})

    def write(self, state: State) -> None:
        """Write it down as it stands now."""
        batches = {number: batch.frozen() for number, batch in sorted(self.batches.items())}
        events = dict(sorted(self.events.items()))
        status = RunStatus(state, self.spec.n_steps, batches, events)
        write_document(self.folder / rundir.STATUS_FILE, status)


class Recorder:
    """Holds a chunk of frames of every replica, then hands it to their writers."""

    def __init__(
        self, writers: list[SegmentWriter], shape: tuple[int, int, int], n_frames: int
    ) -> None:
        self.writers = writers
        n_replicas, n_atoms, _ = shape
        self.size = n_frames
        self.time = np.empty(n_frames)
        per_replica = (n_frames, n_replicas)
        self.blocks = {
            row.name: np.empty((*per_replica, n_atoms, 3) if row.per_atom else per_replica)
            for row in FRAME_FIELDS
            if row.name != "time"
        }
        self.recorded = np.zeros(per_replica, dtype=bool)
        self.filled = 0
        self.n_in_segment = 0

    @property
    def full(self) -> bool:
        return self.filled == self.size

    def add(self, frames: Frames, recorded: NDArray[np.bool_]) -> None:
        """More frames.

        Parameters
        ----------
        recorded : shape (n_replicas,), those that are kept, the same in each frame
        """
        i, end = self.filled, self.filled + len(frames)
        self.time[i:end] = frames.time_ps
        for name, kept in self.blocks.items():
            kept[i:end] = getattr(frames, name)
        self.recorded[i:end] = recorded
        self.filled = end

    @property
    def room(self) -> int:
        """How many more frames it takes before it must be flushed."""
        return self.size - self.filled

    def flush(self) -> None:
        for r, writer in enumerate(self.writers):
            rows = np.flatnonzero(self.recorded[: self.filled, r])
            writer.append(
                {
                    "time": self.time[rows],
                    **{name: block[rows, r] for name, block in self.blocks.items()},
                }
            )
        self.n_in_segment += self.filled
        self.filled = 0

    def close_segment(self) -> None:
        self.flush()
        for writer in self.writers:
            writer.close_segment()
        self.n_in_segment = 0


def topology_json(system: MolecularSystem) -> str:
    """A system's topology as MDTraj's layout wants it."""
    atoms = list(system.topology.atoms())
    return rundir.mdtraj_topology(
        [atom.name for atom in atoms],
        [atom.element.symbol for atom in atoms],
        [(atom.residue.name, atom.residue.index) for atom in atoms],
        system.bonds,
    )
