"""Keeps what a simulation leaves while it runs: frames by the chunk, and its status.

`rundir` says how a run directory looks; this fills one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omm_mlff.dynamics.frames import Frames
from omm_mlff.record import rundir
from omm_mlff.record.rundir import SegmentWriter
from omm_mlff.schema import Event, MolecularSystem, RunSpec


@dataclass
class StatusLog:
    """What `status.json` says: state, events, costs."""

    folder: Path
    spec: RunSpec
    events: dict[int, Event] = field(default_factory=dict)
    batches: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = self.folder / rundir.STATUS_FILE
        if path.exists():
            old = rundir.read_json(path)
            self.batches = {int(k): v for k, v in old.get("batches", {}).items()}
            self.events = {
                int(k): Event(**{**v, "atoms": tuple(v["atoms"]), "value": float(v["value"])})
                for k, v in old.get("events", {}).items()
            }

    def write(self, state: str) -> None:
        events = {}
        for replica, event in sorted(self.events.items()):
            value = event.value if np.isfinite(event.value) else str(event.value)
            events[str(replica)] = {**event.__dict__, "value": value}
        rundir.write_json(
            self.folder / rundir.STATUS_FILE,
            {
                "state": state,
                "n_steps": self.spec.n_steps,
                "batches": {str(k): v for k, v in sorted(self.batches.items())},
                "events": events,
            },
        )


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
        self.energies = {
            name: np.empty(per_replica) for name in ("potential_energy", "kinetic_energy")
        }
        self.vectors = {
            name: np.empty((*per_replica, n_atoms, 3))
            for name in ("positions", "velocities", "forces")
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
        for block in (self.energies, self.vectors):
            for name, kept in block.items():
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
                    **{name: block[rows, r] for name, block in self.energies.items()},
                    **{name: block[rows, r] for name, block in self.vectors.items()},
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
