"""Reads and writes a run directory: what simulating leaves and judging needs.

    spec.json  provenance.json  status.json
    replica_000/00000.h5 00001.h5 ...      closed segments in MDTraj's HDF5 layout, float64
    batch_000.npz                          where the replicas stand, to go on from

A segment is written under the name `*.partial` and renamed when it is closed: an HDF5 file that
is open for writing does not survive a kill. A frame holds, at one time t, the positions, the
forces there, the energies, and the velocities: on the step in a run at constant energy, under a
thermostat half a step behind, as its integrator has them.

Only numpy and tables are needed to read it. `mdtraj.load` reads a segment as it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tables
from numpy.typing import NDArray

from omm_mlff.errors import InputError, OutputExistsError, RunDirectoryError
from omm_mlff.record.documents import read_document, write_document
from omm_mlff.record.frame_cache import Kept
from omm_mlff.record.frame_fields import FIELDS, FRAME_FIELDS
from omm_mlff.record.provenance import RunProvenance
from omm_mlff.record.status import RunStatus
from omm_mlff.record.storage import storage_errors
from omm_mlff.schema import Event, RunSpec

SPEC_FILE = "spec.json"
PROVENANCE_FILE = "provenance.json"
STATUS_FILE = "status.json"
SEGMENT_FRAMES = 10_000
SEGMENT_SECONDS = 30.0

_CHUNK_CACHE_BYTES = 64 * 1024
"""HDF5's cache of one open dataset. Its default of 1 MiB, times six datasets and every replica,
would be most of what a run adds to the process, and appending whole chunks needs none of it."""

_FIELD = {row.name: row for row in FRAME_FIELDS}
_NUMBER_BYTES = 64


def create(folder: Path, spec: RunSpec, provenance: RunProvenance, *, resume: bool) -> bool:
    """Make a run directory, or find one to go on with.

    Returns
    -------
    whether there is something to go on with

    Raises
    ------
    OutputExistsError : the folder holds another run, holds this one and `resume` is false, or holds
        a longer one
    """
    spec_path = folder / SPEC_FILE
    found = spec_path.exists()
    if found:
        old = read_document(spec_path, RunSpec)
        if not resume:
            raise OutputExistsError(f"{folder} already holds a run; use --resume or another --out")
        # Where it is computed is no part of what is asked for; provenance.json says where it was.
        if dataclasses.replace(old, length_ps=spec.length_ps, platform=spec.platform) != spec:
            raise OutputExistsError(
                f"{folder} holds another run ({old.name}, {old.potential}); use another --out"
            )
        if spec.n_steps < old.n_steps:
            raise OutputExistsError(
                f"{folder} holds {old.length_ps:g} ps of this run, more than the "
                f"{spec.length_ps:g} ps asked for; ask for as much or more, or use another --out"
            )
    else:
        make_folder(folder)
    write_document(folder / PROVENANCE_FILE, provenance)
    write_document(spec_path, spec)
    return found


def make_folder(folder: Path) -> None:
    """Make a new folder for output, or take an empty one.

    Raises
    ------
    OutputExistsError : there is something in it
    InputError : no folder can be made there
    StorageError : the disk is full or not writable
    """
    try:
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise OutputExistsError(f"{folder} is not empty; use another --out")
    except OSError as error:
        raise InputError(
            f"cannot make the folder {folder}: {error.strerror}; use another --out"
        ) from None


class FrameFile:
    """One HDF5 file in MDTraj's layout, written under `*.partial` until it is closed.

    Parameters
    ----------
    path : its name once it is closed
    topology : MDTraj's topology as JSON, see `mdtraj_topology`
    n_atoms : in a frame
    box_vectors : shape (3, 3), nm, or None
    """

    def __init__(
        self,
        path: Path,
        topology: str,
        n_atoms: int,
        box_vectors: NDArray[np.float64] | None = None,
    ) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self.n_atoms = n_atoms
        self.box_vectors = box_vectors
        with storage_errors(self.partial):
            self._file = tables.open_file(
                str(self.partial), mode="w", chunk_cache_size=_CHUNK_CACHE_BYTES
            )
            self._lay_out(topology)

    def append(self, frames: Mapping[str, NDArray[np.float64]]) -> None:
        """Append frames.

        Parameters
        ----------
        frames : every field of the record, first axis the frames
        """
        n_frames = len(frames["time"])
        with storage_errors(self.partial):
            for row in FRAME_FIELDS:
                self._file.get_node("/", row.dataset).append(frames[row.name])
            if self.box_vectors is not None:
                lengths, angles = _box_lengths_and_angles(self.box_vectors)
                self._file.root.cell_lengths.append(np.tile(lengths, (n_frames, 1)))
                self._file.root.cell_angles.append(np.tile(angles, (n_frames, 1)))
            self._file.flush()

    def close(self) -> None:
        """Close the file and give it its name."""
        with storage_errors(self.partial):
            self._file.close()
            os.replace(self.partial, self.path)

    def abandon(self) -> None:
        """Close the file and remove it: half a segment is of no use, its space may be."""
        with contextlib.suppress(OSError, tables.HDF5ExtError):
            self._file.close()
        with contextlib.suppress(OSError):
            self.partial.unlink()

    def _lay_out(self, topology: str) -> None:
        attributes = self._file.root._v_attrs
        attributes.conventions = "Pande"
        attributes.conventionVersion = "1.1"
        attributes.program = "omm-mlff"
        attributes.programVersion = "1"
        attributes.application = "omm-mlff"
        self._file.create_array("/", "topology", obj=[topology.encode()])
        for row in FRAME_FIELDS:
            shape = (0, self.n_atoms, 3) if row.per_atom else (0,)
            self._column(row.dataset, row.unit, shape)
        if self.box_vectors is not None:
            self._column("cell_lengths", "nanometers", (0, 3))
            self._column("cell_angles", "degrees", (0, 3))

    def _column(self, dataset: str, unit: str, shape: tuple[int, ...]) -> None:
        node = self._file.create_earray(
            "/", dataset, atom=tables.Float64Atom(), shape=shape, expectedrows=4096
        )
        node._v_attrs.units = unit


class SegmentWriter:
    """Appends frames of one replica to the segment that is open.

    Parameters
    ----------
    folder : of the replica
    topology, n_atoms, box_vectors : see `FrameFile`
    first_index : of the next segment; older ones are kept, partial and later ones are removed
    """

    def __init__(
        self,
        folder: Path,
        topology: str,
        n_atoms: int,
        box_vectors: NDArray[np.float64] | None,
        first_index: int,
    ) -> None:
        self.folder = folder
        self.index = first_index
        self._layout = (topology, n_atoms, box_vectors)
        self._file: FrameFile | None = None
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("*.h5*"):
                if path.suffix == ".partial" or int(path.stem) >= first_index:
                    path.unlink()

    def append(self, frames: Mapping[str, NDArray[np.float64]]) -> None:
        """Append frames; nothing is opened for none."""
        if len(frames["time"]) == 0:
            return
        if self._file is None:
            self._file = FrameFile(self.folder / f"{self.index:05d}.h5", *self._layout)
        self._file.append(frames)

    def close_segment(self) -> None:
        """Close the segment that is open and give it its name; the next one opens by itself."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self.index += 1

    def abandon(self) -> None:
        """Close and remove the segment that is open."""
        if self._file is not None:
            self._file.abandon()
            self._file = None


def mdtraj_topology(
    names: Sequence[str],
    symbols: Sequence[str],
    residues: Sequence[tuple[str, int]],
    bonds: NDArray[np.int64],
) -> str:
    """A topology as MDTraj's HDF5 layout wants it.

    Parameters
    ----------
    names, symbols : of every atom
    residues : name and running index of every atom's residue
    bonds : shape (n_bonds, 2)
    """
    listed: list[dict[str, Any]] = []
    for i, (name, symbol, (residue, number)) in enumerate(
        zip(names, symbols, residues, strict=True)
    ):
        if not listed or listed[-1]["index"] != number:
            listed.append(
                {
                    "name": residue,
                    "index": number,
                    "resSeq": number + 1,
                    "segmentID": "",
                    "atoms": [],
                }
            )
        listed[-1]["atoms"].append({"name": name, "element": symbol, "index": i})
    return json.dumps({"chains": [{"index": 0, "residues": listed}], "bonds": bonds.tolist()})


@dataclass(frozen=True)
class ReplicaRecord:
    """The frames of one replica; arrays are read when they are asked for.

    Attributes
    ----------
    files : closed segments, in order
    event : why it was stopped; None where it came through
    kept : what was read before: small segments stay, and are not to be written to
    """

    files: tuple[Path, ...]
    event: Event | None
    kept: Kept = field(default_factory=Kept, compare=False, repr=False)

    @cached_property
    def n_frames(self) -> int:
        return sum(self._n_frames_of(path) for path in self.files)

    @cached_property
    def time(self) -> NDArray[np.float64]:
        """Shape (n_frames,), ps."""
        return self._read("time")

    @cached_property
    def potential_energy(self) -> NDArray[np.float64]:
        """Shape (n_frames,), kJ/mol."""
        return self._read("potential_energy")

    @cached_property
    def kinetic_energy(self) -> NDArray[np.float64]:
        """Shape (n_frames,), kJ/mol."""
        return self._read("kinetic_energy")

    @cached_property
    def positions(self) -> NDArray[np.float64]:
        """Shape (n_frames, n_atoms, 3), nm."""
        return self._read("positions")

    @cached_property
    def velocities(self) -> NDArray[np.float64]:
        """Shape (n_frames, n_atoms, 3), nm/ps, at the time of the frame."""
        return self._read("velocities")

    @cached_property
    def forces(self) -> NDArray[np.float64]:
        """Shape (n_frames, n_atoms, 3), kJ/mol/nm."""
        return self._read("forces")

    def chunks(
        self, n_frames: int, fields: Iterable[str] = FIELDS
    ) -> Iterator[dict[str, NDArray[np.float64]]]:
        """Fields in blocks of at most `n_frames`, in order; memory stays bounded."""
        names = tuple(fields)
        for path in self.files:
            whole = self._kept_segment(path)
            if whole is not None:
                for start in range(0, len(whole["time"]), n_frames):
                    yield {name: whole[name][start : start + n_frames] for name in names}
                continue
            with _opened(path) as handle:
                nodes = {name: handle.get_node("/", _FIELD[name].dataset) for name in names}
                for start in range(0, handle.root.time.shape[0], n_frames):
                    yield {name: node[start : start + n_frames] for name, node in nodes.items()}

    def frames(
        self, indices: Sequence[int], fields: Iterable[str] = FIELDS
    ) -> dict[str, NDArray[np.float64]]:
        """Fields of single frames; the others are not read.

        Parameters
        ----------
        indices : ascending, each below `n_frames`
        """
        names = tuple(fields)
        wanted = np.asarray(indices, dtype=np.int64)
        found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
        first = 0
        for path in self.files:
            n_frames = self._n_frames_of(path)
            inside = wanted[(wanted >= first) & (wanted < first + n_frames)] - first
            first += n_frames
            if not len(inside):
                continue
            whole = self._kept_segment(path)
            if whole is not None:
                for name in names:
                    found[name].append(whole[name][inside])
                continue
            with _opened(path) as handle:
                for name in names:
                    node = handle.get_node("/", _FIELD[name].dataset)
                    found[name].append(np.array([node[int(row)] for row in inside]))
        return {
            name: np.concatenate(found[name]) if found[name] else _no_frames(name) for name in names
        }

    def _n_frames_of(self, path: Path) -> int:
        whole = self._kept_segment(path)
        if whole is not None:
            return len(whole["time"])
        return self.kept.of(("length", *_version(path)), _NUMBER_BYTES, lambda: _length(path))

    def _kept_segment(self, path: Path) -> dict[str, NDArray[np.float64]] | None:
        """Every field of a segment, read once; None where there is no room for it."""
        version = _version(path)
        return self.kept.value(("segment", *version), version[-1], lambda: _segment(path))

    def _read(self, name: str) -> NDArray[np.float64]:
        blocks = [chunk[name] for chunk in self.chunks(SEGMENT_FRAMES, (name,))]
        return np.concatenate(blocks) if blocks else _no_frames(name)


def _version(path: Path) -> tuple[str, int, int]:
    """A file as it is now: its name, time and size."""
    try:
        found = path.stat()
    except OSError as error:
        raise RunDirectoryError(f"cannot read {path} ({error.strerror}); repeat the run") from error
    return str(path), found.st_mtime_ns, found.st_size


def _length(path: Path) -> int:
    with _opened(path) as handle:
        return int(handle.root.time.shape[0])


def _segment(path: Path) -> dict[str, NDArray[np.float64]]:
    """Every field of a segment, not to be written to."""
    with _opened(path) as handle:
        whole = {row.name: handle.get_node("/", row.dataset)[:] for row in FRAME_FIELDS}
    for array in whole.values():
        array.flags.writeable = False
    return whole


def _no_frames(name: str) -> NDArray[np.float64]:
    return np.empty((0, 0, 3) if _FIELD[name].per_atom else (0,))


@dataclass(frozen=True, eq=False)
class Pace:
    """Time and memory in the course of a run, one row for each chunk of frames that was written.

    Attributes
    ----------
    batch : shape (n_rows,), number of the batch of replicas, which ran one after another
    part : shape (n_rows,), counts the Contexts that ran the batch: a run that is resumed or
        extended goes on in a new one, with a pace and a memory of its own
    step : shape (n_rows,), steps completed at the end of the row
    seconds_per_step : shape (n_rows,), over the row, recording included; processor time on the
        platforms Reference and CPU, wall time where a GPU computes
    memory_MiB : shape (n_rows,), resident memory of the process at its end
    """

    batch: NDArray[np.float64]
    part: NDArray[np.float64]
    step: NDArray[np.float64]
    seconds_per_step: NDArray[np.float64]
    memory_MiB: NDArray[np.float64]


class RunRecord:
    """A run directory, opened for reading.

    Attributes
    ----------
    folder : of the run
    spec : what was asked for
    provenance : versions, device, precision, hashes; also the molecule
    status : how it stands; step counts, costs and events
    kept : frames, and what was worked out from them, while it is small
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = folder = Path(folder)
        if folder.is_file() or (not (folder / SPEC_FILE).exists() and any(folder.glob("*.h5*"))):
            raise RunDirectoryError(
                f"{folder} is no run directory; omm_mlff.read_record reads a trajectory as arrays"
            )
        self.kept = Kept()
        self.spec = read_document(folder / SPEC_FILE, RunSpec)
        self.provenance = read_document(folder / PROVENANCE_FILE, RunProvenance)
        self.status = read_document(folder / STATUS_FILE, RunStatus)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> RunRecord:
        """Open a run directory.

        Raises
        ------
        RunDirectoryError : it is not one, or it is damaged
        """
        return cls(folder)

    def __repr__(self) -> str:
        replicas = f"{self.n_replicas} replicas, {self.status.state}"
        return f"<RunRecord {self.name}: {replicas}, in {self.folder}>"

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def n_replicas(self) -> int:
        return self.spec.n_replicas

    @property
    def dt_ps(self) -> float:
        """Time between recorded frames, ps."""
        return self.spec.timestep_fs * self.spec.record_stride * 1e-3

    @property
    def species(self) -> NDArray[np.int64]:
        """Shape (n_atoms,), atomic numbers."""
        return np.array(self.provenance.molecule.species, dtype=np.int64)

    @property
    def masses(self) -> NDArray[np.float64]:
        """Shape (n_atoms,), dalton."""
        return np.array(self.provenance.molecule.masses)

    @property
    def bonds(self) -> NDArray[np.int64]:
        """Shape (n_bonds, 2)."""
        return np.array(self.provenance.molecule.bonds, dtype=np.int64).reshape(-1, 2)

    @property
    def rest_positions(self) -> NDArray[np.float64]:
        """Shape (n_atoms, 3), nm: the structure that the replicas were started from."""
        return np.array(self.provenance.molecule.positions)

    @property
    def n_dof(self) -> int:
        return self.provenance.n_dof

    @property
    def pace(self) -> Pace:
        """What the steps cost while the run went on; empty in a record from before it was kept."""
        rows = [
            (number, *row)
            for number, batch in sorted(self.status.batches.items())
            for row in batch.pace
        ]
        table = np.array(rows, dtype=np.float64).reshape(-1, 5)
        return Pace(*table.T)

    @property
    def events(self) -> Mapping[int, Event]:
        """Why replicas were stopped, by replica."""
        return self.status.events

    def replica(self, index: int) -> ReplicaRecord:
        """The record of one replica."""
        folder = self.folder / replica_folder(index)
        try:
            names = sorted(name for name in os.listdir(folder) if name.endswith(".h5"))
        except FileNotFoundError:
            names = []
        files = tuple(folder / name for name in names)
        return ReplicaRecord(files, self.events.get(index), self.kept)

    def replicas(self) -> Iterator[tuple[int, ReplicaRecord]]:
        """Every replica, one after another."""
        for index in range(self.n_replicas):
            yield index, self.replica(index)


def replica_folder(index: int) -> str:
    """Name of the folder of one replica."""
    return f"replica_{index:03d}"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tables.File]:
    try:
        handle = tables.open_file(str(path), mode="r")
    except (OSError, tables.HDF5ExtError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise RunDirectoryError(f"{path} is damaged ({reason}); repeat the run") from error
    try:
        yield handle
    finally:
        handle.close()


def _box_lengths_and_angles(
    box_vectors: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    lengths = np.linalg.norm(box_vectors, axis=1)
    pairs = ((1, 2), (0, 2), (0, 1))
    cosines = [box_vectors[i] @ box_vectors[j] / (lengths[i] * lengths[j]) for i, j in pairs]
    return lengths, np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0)))
