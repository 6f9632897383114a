"""Writes recorded trajectories as files of other programs: DCD, XTC, extended XYZ.

It reads a run directory, every run of a validation, one replica's folder, or one `.h5` file, block
by block: memory stays bounded however long the run is. An output is written under `*.partial` and
renamed when it is whole.

What the formats hold: DCD float32 in angstrom, XTC thousandths of a nm (float32 below ten atoms),
both with a PDB beside them for elements, bonds and box; extended XYZ text with eight decimals, in
ASE's units (angstrom, eV, and momenta in sqrt(dalton eV)).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tables
from numpy.typing import NDArray

from omm_mlff.errors import InputError, MissingPackageError, OutputExistsError, RunDirectoryError
from omm_mlff.record.rundir import SPEC_FILE, RunRecord, replica_folder
from omm_mlff.record.storage import storage_errors
from omm_mlff.schema import Event
from omm_mlff.units import (
    ANGSTROM_PER_NM,
    EV_ANGSTROM_PER_KJMOL_NM,
    EV_PER_KJMOL,
    KJMOL_PER_KCALMOL,
    NM_PER_ANGSTROM,
)

if TYPE_CHECKING:
    from ase import Atoms

Format = Literal["dcd", "xtc", "extxyz"]
FORMATS: tuple[Format, ...] = ("dcd", "xtc", "extxyz")
TOPOLOGY_FILE = "topology.pdb"

Progress = Callable[[str, int, int], None]
"""Called with the run, frames done and frames in all."""

_BLOCK_BYTES = 8 * 1024 * 1024
_TIME_BLOCK = 100_000
_NEEDED = ("time", "coordinates", "topology")
_PS_PER_AKMA = NM_PER_ANGSTROM / math.sqrt(KJMOL_PER_KCALMOL)
"""DCD's unit of time: sqrt(dalton angstrom^2 / (kcal/mol)), with kJ/mol = dalton nm^2/ps^2."""
_SQRT_EV_PER_SQRT_KJMOL = math.sqrt(EV_PER_KJMOL)
"""ASE's unit of momentum is sqrt(dalton eV), ours sqrt(dalton kJ/mol) = dalton nm/ps."""
_FAR_NM = 1e6
"""Farther out there is no molecule any more, and XTC's integers overflow without a word."""
_MAX_PDB_ATOMS = 99_999
_SEGMENT = re.compile(r"\d{5}\.h5")


@dataclass(frozen=True)
class Converted:
    """One trajectory that was written.

    Attributes
    ----------
    path : None where there was no frame to write
    n_frames : written
    end_ps : time of the last one
    stopped : why it ends before its run did; empty where it does not
    """

    name: str
    path: Path | None
    n_frames: int
    end_ps: float
    stopped: str


@dataclass(frozen=True)
class _Trajectory:
    """Segments that follow one another, and what the record says of them."""

    name: str
    files: tuple[Path, ...]
    masses: NDArray[np.float64] | None = None
    event: Event | None = None


@dataclass(frozen=True)
class _Run:
    """Trajectories of one topology; `folder` is theirs within the output."""

    name: str
    folder: str
    trajectories: tuple[_Trajectory, ...]


@dataclass(frozen=True)
class _Topology:
    """What MDTraj's layout says of the atoms; masses in dalton, or None where it does not."""

    names: list[str]
    symbols: list[str]
    residues: list[tuple[str, int]]
    bonds: list[tuple[int, int]]
    masses: NDArray[np.float64] | None

    @property
    def n_atoms(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class _Spacing:
    """When the frames of a trajectory are, every `stride`th counted."""

    n_frames: int
    first_ps: float
    recorded_ps: float
    even: bool


class _Block:
    """Frames of one block: shapes (n,), (n, n_atoms, 3), boxes (n, 3)."""

    def __init__(self, handle: tables.File, rows: slice) -> None:
        def read(dataset: str) -> Any:
            return handle.get_node("/", dataset)[rows] if f"/{dataset}" in handle else None

        self.time: NDArray[np.float64] = read("time")
        self.positions: NDArray[np.float64] = read("coordinates")
        self.cell_lengths: NDArray[np.float64] | None = read("cell_lengths")
        self.cell_angles: NDArray[np.float64] | None = read("cell_angles")
        self._read = read
        self.n_frames = len(self.time)

    def optional(self, dataset: str) -> NDArray[np.float64] | None:
        """A dataset that a trajectory may lack."""
        values: NDArray[np.float64] | None = self._read(dataset)
        return values

    def n_finite(self) -> int:
        """Frames before the first whose positions are not numbers, or beyond `_FAR_NM`."""
        bad = np.flatnonzero(~(np.abs(self.positions) < _FAR_NM).all((1, 2)))
        return int(bad[0]) if len(bad) else self.n_frames


def convert(
    run: str | Path,
    to: Format,
    out: str | Path,
    *,
    replicas: Sequence[int] = (),
    stride: int = 1,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Converted]:
    """Write the trajectories of a run in another format.

    Parameters
    ----------
    run : a run directory, the folder of a validation (all of its runs, a folder each), the folder
        of one replica, or one .h5 file
    out : folder; made where it is absent
    replicas : of every run; all of them where empty
    stride : every so many frames of the record, the first included
    force : replace outputs that are there

    Raises
    ------
    InputError : not such a thing, or damaged, or of a kind that the format cannot hold
    OutputExistsError : an output is there, and `force` is false; nothing has been written then
    MissingPackageError : extended XYZ without ASE
    """
    if to not in FORMATS:
        raise InputError(f"unknown format {to!r}; known: {', '.join(FORMATS)}")
    if stride < 1:
        raise InputError(f"the stride is at least 1; got {stride}")
    if to == "extxyz":
        _require_ase()
    runs = _find(Path(run), replicas)
    out = Path(out)
    _refuse_existing(runs, to, out, force)
    converted = []
    for one in runs:
        converted += _convert_run(one, to, out / one.folder, stride, progress)
    if not any(row.n_frames for row in converted):
        raise InputError(f"{run} holds no frame; nothing was written")
    return converted


def _convert_run(
    run: _Run, to: Format, folder: Path, stride: int, progress: Progress | None
) -> list[Converted]:
    spacings = [_spacing(trajectory, stride) for trajectory in run.trajectories]
    total = sum(spacing.n_frames for spacing in spacings)
    converted = []
    done = 0
    for trajectory, spacing in zip(run.trajectories, spacings, strict=True):
        stopped = trajectory.event.detail if trajectory.event else ""
        if not spacing.n_frames:
            converted.append(Converted(trajectory.name, None, 0, 0.0, stopped or "no frame"))
            continue
        if to == "dcd" and not spacing.even:
            raise InputError(
                f"{trajectory.files[0].parent}: the times of its frames are not evenly spaced, "
                "which dcd cannot hold; use --to xtc or extxyz"
            )
        with _named_when_whole(folder / f"{trajectory.name}.{to}") as partial:
            topology = _topology(trajectory.files[0], trajectory.masses)
            writer = _WRITERS[to](partial, topology, spacing, stride)
            n_written, end_ps = 0, 0.0
            with contextlib.closing(writer):
                for block in _blocks(trajectory, stride):
                    n_finite = block.n_finite()
                    writer.write(block, n_finite, n_written)
                    if n_finite:
                        n_written, end_ps = n_written + n_finite, float(block.time[n_finite - 1])
                    if progress is not None:
                        progress(run.name, min(done + n_written, total), total)
                    if n_finite < block.n_frames:
                        at = f"{block.time[n_finite]:g} ps"
                        stopped = f"positions at {at} are not finite, or beyond 1 mm"
                        break
            if not n_written:
                raise InputError(f"{trajectory.files[0]}: {stopped}; there is nothing before")
            if to == "dcd":
                _set_times(partial, spacing, stride)
        if to != "extxyz" and not any(row.n_frames for row in converted):
            with _named_when_whole(folder / TOPOLOGY_FILE) as partial:
                partial.write_text(_pdb(topology, trajectory.files[0]), encoding="ascii")
        done += spacing.n_frames
        path = folder / f"{trajectory.name}.{to}"
        converted.append(Converted(trajectory.name, path, n_written, end_ps, stopped))
    if progress is not None and total:
        progress(run.name, total, total)
    return converted


def _find(path: Path, replicas: Sequence[int]) -> list[_Run]:
    if path.is_dir() and (path / SPEC_FILE).is_file():
        return [_of_record(path, "", replicas)]
    if path.is_dir() and (path / "runs").is_dir():
        found = sorted(folder.parent for folder in (path / "runs").glob(f"*/{SPEC_FILE}"))
        if not found:
            raise InputError(f"{path / 'runs'} holds no run; has the validation begun?")
        return [_of_record(folder, folder.name, replicas) for folder in found]
    if path.is_dir():
        files = tuple(sorted(f for f in path.iterdir() if _SEGMENT.fullmatch(f.name)))
        name = path.resolve().name.removesuffix(".parts").removesuffix(".h5")
        masses = None
        if (path.resolve().parent / SPEC_FILE).is_file():
            masses = _opened_record(path.resolve().parent).masses
    else:
        files, name, masses = (path,), path.stem, None
        if not path.exists():
            raise InputError(f"{path} does not exist; give a run directory, or an .h5 file")
        if path.suffix != ".h5":
            raise InputError(f"{path} is not a run directory and not an .h5 file")
    if not files:
        raise InputError(
            f"{path} is not a run: expected {SPEC_FILE}, runs/, or segments such as 00000.h5 in it"
        )
    if replicas:
        raise InputError(f"{path} is one trajectory; leave out --replica")
    return [_Run(name, "", (_Trajectory(name, files, masses),))]


def _of_record(folder: Path, within: str, replicas: Sequence[int]) -> _Run:
    record = _opened_record(folder)
    absent = [index for index in replicas if not 0 <= index < record.n_replicas]
    if absent:
        raise InputError(
            f"{folder} has replicas 0 to {record.n_replicas - 1}; there is no replica {absent[0]}"
        )
    trajectories = []
    for index in sorted(set(replicas)) or range(record.n_replicas):
        replica = record.replica(index)
        trajectories.append(
            _Trajectory(replica_folder(index), replica.files, record.masses, replica.event)
        )
    return _Run(folder.resolve().name, within, tuple(trajectories))


def _opened_record(folder: Path) -> RunRecord:
    try:
        return RunRecord.open(folder)
    except (RunDirectoryError, TypeError) as error:
        raise InputError(f"{folder} cannot be read: {error}") from None


def _refuse_existing(runs: Sequence[_Run], to: Format, out: Path, force: bool) -> None:
    for run in runs:
        taken = [out / run.folder / f"{trajectory.name}.{to}" for trajectory in run.trajectories]
        if to != "extxyz" and not _has_topology_of(run, out / run.folder / TOPOLOGY_FILE):
            taken.append(out / run.folder / TOPOLOGY_FILE)
        for target in taken:
            if target.is_dir() or (target.exists() and not force):
                raise OutputExistsError(f"{target} is already there; use --force or another --out")


def _has_topology_of(run: _Run, path: Path) -> bool:
    """Whether a PDB that is there says the same as the one of this run, positions aside."""
    files = [file for trajectory in run.trajectories for file in trajectory.files]
    if not files or not path.is_file():
        return False
    found = path.read_text(encoding="ascii", errors="replace").splitlines()
    ours = _pdb(_topology(files[0], None), files[0]).splitlines()
    return [line[:30] + line[54:] for line in found] == [line[:30] + line[54:] for line in ours]


@contextlib.contextmanager
def _named_when_whole(path: Path) -> Iterator[Path]:
    """A path to write to; what is there gets the name at the end, or is removed on failure."""
    partial = path.with_name(path.name + ".partial")
    try:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            os.replace(partial, path)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"cannot make the folder {path.parent}: {error.strerror}; use another --out"
        ) from None
    finally:
        with contextlib.suppress(NotADirectoryError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tables.File]:
    try:
        handle = tables.open_file(str(path), mode="r")
    except (OSError, tables.HDF5ExtError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{path} cannot be read ({reason}); it may be damaged") from None
    with contextlib.closing(handle):
        lacking = [name for name in _NEEDED if f"/{name}" not in handle]
        if lacking:
            raise InputError(
                f"{path} has no {' and no '.join(lacking)}: not a trajectory of this package"
            )
        yield handle


def _spacing(trajectory: _Trajectory, stride: int) -> _Spacing:
    """Times of all frames, read in blocks; `even` also asks for a start at a whole multiple."""
    n_recorded, first, spacing, even = 0, 0.0, 0.0, True
    for path in trajectory.files:
        with _opened(path) as handle:
            node = handle.root.time
            for start in range(0, node.shape[0], _TIME_BLOCK):
                time = node[start : start + _TIME_BLOCK].astype(np.float64)
                if n_recorded == 0:
                    first = float(time[0])
                    spacing = float(time[1] - time[0]) if len(time) > 1 else 0.0
                elif n_recorded == 1 and spacing == 0.0:
                    spacing = float(time[0]) - first
                expected = first + spacing * np.arange(n_recorded, n_recorded + len(time))
                even &= bool((np.abs(time - expected) <= 1e-3 * abs(spacing)).all())
                n_recorded += len(time)
    if n_recorded == 1:
        spacing = first if first > 0.0 else 1.0
    if n_recorded and spacing > 0.0:
        even &= abs(first / spacing - round(first / spacing)) < 1e-3
    return _Spacing(-(-n_recorded // stride), first, spacing, even and spacing > 0.0)


def _blocks(trajectory: _Trajectory, stride: int) -> Iterator[_Block]:
    """Every `stride`th frame over all segments, in blocks of bounded size."""
    seen = 0
    for path in trajectory.files:
        with _opened(path) as handle:
            n_frames, n_atoms = handle.root.coordinates.shape[:2]
            n_block = max(1, _BLOCK_BYTES // (n_atoms * 3 * 8)) * stride
            first = -seen % stride
            for start in range(first, n_frames, n_block):
                yield _Block(handle, slice(start, min(start + n_block, n_frames), stride))
            seen += n_frames


def _topology(path: Path, masses: NDArray[np.float64] | None) -> _Topology:
    with _opened(path) as handle:
        raw = handle.root.topology[0]
    try:
        data = json.loads(raw)
        names, symbols, residues, weights = [], [], [], []
        for chain in data["chains"]:
            for residue in chain["residues"]:
                for atom in residue["atoms"]:
                    names.append(str(atom["name"]))
                    symbols.append(str(atom["element"]))
                    residues.append((str(residue["name"]), int(residue.get("resSeq", 1))))
                    weights.append(atom.get("mass"))
        bonds = [(int(i), int(j)) for i, j in data["bonds"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read: its topology is damaged ({error})") from None
    if masses is None and weights and None not in weights:
        masses = np.array(weights, dtype=np.float64)
    return _Topology(names, symbols, residues, bonds, masses)


class _DcdWriter:
    """MDTraj's DCD; its header says nothing of time, see `_set_times`."""

    def __init__(self, path: Path, topology: _Topology, spacing: _Spacing, stride: int) -> None:
        from mdtraj.formats import DCDTrajectoryFile

        self._file = DCDTrajectoryFile(str(path), "w", force_overwrite=True)

    def write(self, block: _Block, n_frames: int, n_before: int) -> None:
        if not n_frames:
            return
        lengths, angles = block.cell_lengths, block.cell_angles
        self._file.write(
            np.ascontiguousarray(block.positions[:n_frames] * ANGSTROM_PER_NM, dtype=np.float32),
            None if lengths is None else (lengths[:n_frames] * ANGSTROM_PER_NM).astype(np.float32),
            None if angles is None else angles[:n_frames].astype(np.float32),
        )

    def close(self) -> None:
        self._file.close()


class _XtcWriter:
    """MDTraj's XTC, in nm and ps."""

    def __init__(self, path: Path, topology: _Topology, spacing: _Spacing, stride: int) -> None:
        from mdtraj.formats import XTCTrajectoryFile

        self._file = XTCTrajectoryFile(str(path), "w", force_overwrite=True)
        self._spacing = spacing
        self._stride = stride

    def write(self, block: _Block, n_frames: int, n_before: int) -> None:
        if not n_frames:
            return
        box = None
        if block.cell_lengths is not None and block.cell_angles is not None:
            from mdtraj.utils import lengths_and_angles_to_box_vectors

            cell = np.concatenate([block.cell_lengths, block.cell_angles], axis=1)[:n_frames]
            box = np.stack(lengths_and_angles_to_box_vectors(*cell.T), axis=1).astype(np.float32)
        first = round(self._spacing.first_ps / self._spacing.recorded_ps)
        self._file.write(
            np.ascontiguousarray(block.positions[:n_frames], dtype=np.float32),
            time=block.time[:n_frames].astype(np.float32),
            step=np.arange(n_before, n_before + n_frames, dtype=np.int32) * self._stride + first,
            box=box,
        )

    def close(self) -> None:
        self._file.close()


class _ExtxyzWriter:
    """ASE's extended XYZ, a frame after the other.

    Energy and forces are results of a calculator when ASE reads them back. Momenta are the masses
    times the recorded velocities; the masses are written too, so that dividing gives these.
    """

    def __init__(self, path: Path, topology: _Topology, spacing: _Spacing, stride: int) -> None:
        from ase import Atoms
        from ase.data import atomic_masses, atomic_numbers
        from ase.io.extxyz import write_extxyz

        numbers = [atomic_numbers.get(symbol, 0) for symbol in topology.symbols]
        masses = topology.masses if topology.masses is not None else atomic_masses[numbers]
        self._atoms: Atoms = Atoms(numbers=numbers, masses=masses)
        self._masses = np.asarray(masses)[None, :, None]
        self._write = write_extxyz
        self._file = path.open("w", encoding="utf-8")

    def write(self, block: _Block, n_frames: int, n_before: int) -> None:
        from ase.calculators.singlepoint import SinglePointCalculator
        from ase.geometry import cellpar_to_cell

        potential = block.optional("potentialEnergy")
        kinetic = block.optional("kineticEnergy")
        forces = block.optional("forces")
        velocities = block.optional("velocities")
        for i in range(n_frames):
            atoms = self._atoms.copy()
            atoms.positions = block.positions[i] * ANGSTROM_PER_NM
            atoms.info["time_ps"] = float(block.time[i])
            if kinetic is not None:
                atoms.info["kinetic_energy_eV"] = float(kinetic[i]) * EV_PER_KJMOL
            if block.cell_lengths is not None and block.cell_angles is not None:
                lengths = block.cell_lengths[i] * ANGSTROM_PER_NM
                atoms.set_cell(cellpar_to_cell([*lengths, *block.cell_angles[i]]))
                atoms.pbc = True
            if velocities is not None:
                momenta = self._masses[0] * velocities[i] * _SQRT_EV_PER_SQRT_KJMOL
                atoms.set_momenta(momenta)
            results: dict[str, Any] = {}
            if potential is not None:
                results["energy"] = float(potential[i]) * EV_PER_KJMOL
            if forces is not None:
                results["forces"] = forces[i] * EV_ANGSTROM_PER_KJMOL_NM
            atoms.calc = SinglePointCalculator(atoms, **results)
            self._write(self._file, [atoms])

    def close(self) -> None:
        self._file.close()


_WRITERS: dict[Format, Any] = {"dcd": _DcdWriter, "xtc": _XtcWriter, "extxyz": _ExtxyzWriter}


def _set_times(path: Path, spacing: _Spacing, stride: int) -> None:
    """Write into a DCD's header when its frames are.

    MDTraj leaves it at one unit a frame from zero. The header is a Fortran record: its length, the
    letters CORD, then twenty integers of four bytes, of which the second is the step of the first
    frame, the third the steps between frames and the tenth, a float, the timestep.
    """
    with path.open("r+b") as file:
        file.seek(4 + 4 + 4)
        file.write(struct.pack("<2i", round(spacing.first_ps / spacing.recorded_ps), stride))
        file.seek(4 + 4 + 4 * 9)
        file.write(struct.pack("<f", spacing.recorded_ps / _PS_PER_AKMA))


def _pdb(topology: _Topology, path: Path) -> str:
    """The first frame as a PDB: every bond is a CONECT, which MDTraj writes for some only."""
    with _opened(path) as handle:
        block = _Block(handle, slice(0, 1))
    lines = []
    if block.cell_lengths is not None and block.cell_angles is not None:
        lengths = block.cell_lengths[0] * ANGSTROM_PER_NM
        cell = "".join(f"{length:9.3f}" for length in lengths)
        cell += "".join(f"{angle:7.2f}" for angle in block.cell_angles[0])
        lines.append(f"CRYST1{cell} P 1           1")
    positions = block.positions[0] * ANGSTROM_PER_NM
    for i, (name, symbol, (residue, number)) in enumerate(
        zip(topology.names, topology.symbols, topology.residues, strict=True)
    ):
        label = f" {name:<3}" if len(name) < 4 and len(symbol) < 2 else f"{name[:4]:<4}"
        x, y, z = (f"{value:8.3f}"[:8] for value in positions[i])
        lines.append(
            f"ATOM  {(i + 1) % 100_000:5d} {label} {residue[:3]:>3} A{number % 10_000:4d}    "
            f"{x}{y}{z}{1:6.2f}{0:6.2f}          {symbol.upper():>2}"
        )
    if topology.n_atoms <= _MAX_PDB_ATOMS:  # more do not fit: a CONECT would name another atom
        partners: dict[int, list[int]] = {}
        for i, j in topology.bonds:
            partners.setdefault(i, []).append(j)
            partners.setdefault(j, []).append(i)
        for i, bonded in sorted(partners.items()):
            for start in range(0, len(bonded), 4):
                row = [i, *sorted(bonded)[start : start + 4]]
                lines.append("CONECT" + "".join(f"{atom + 1:5d}" for atom in row))
    return "\n".join(itertools.chain(lines, ["END", ""]))


def _require_ase() -> None:
    try:
        import ase  # noqa: F401
    except ImportError:
        raise MissingPackageError("ase", "extended XYZ", "pip install 'omm-mlff[ase]'") from None
