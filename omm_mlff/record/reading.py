"""Reads what was recorded, wherever it lies, as arrays whose names say their units.

    run directory         spec.json, replica_000/, ...
    replica               replica_000/00000.h5 ...
    validation            runs/NAME/spec.json ...
    a reporter's file     ethanol.h5, or ethanol.h5.parts/ where it was not closed
    one file              *.h5 in MDTraj's layout, *.h5.partial of a run that goes on or was killed

Only numpy and tables are needed, and pandas for a table.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tables
from numpy.typing import NDArray

from omm_mlff.errors import InputError
from omm_mlff.record.rundir import SPEC_FILE, RunRecord, replica_folder

if TYPE_CHECKING:
    import pandas as pd

_NEEDED = ("time", "coordinates", "topology")
_PARTIAL = ".h5.partial"


@dataclass(frozen=True)
class _File:
    """One file with frames; it may have grown since."""

    path: Path
    run: str
    replica: int
    n_frames: int
    elements: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Recording:
    """Recorded frames, one replica after another; arrays are read when they are asked for.

    What was not recorded is None. Positions, forces and energies of a frame belong to one time;
    velocities may be half a step behind, as the integrator has them.

    Attributes
    ----------
    path : that was read
    left_out : partial files that cannot be read: a run that goes on, or was killed in the middle
    """

    path: Path
    left_out: tuple[Path, ...]
    _files: tuple[_File, ...]

    def __repr__(self) -> str:
        runs = list(dict.fromkeys(file.run for file in self._files))
        return f"<Recording {self.path}: {self.n_frames} frames of {', '.join(runs)}>"

    @property
    def n_frames(self) -> int:
        return sum(file.n_frames for file in self._files)

    @cached_property
    def run(self) -> NDArray[np.str_]:
        """Shape (n_frames,), the run's name, or the file's."""
        return self._of_each([file.run for file in self._files])

    @cached_property
    def replica(self) -> NDArray[np.int64]:
        """Shape (n_frames,), 0 where there are no replicas."""
        return self._of_each([file.replica for file in self._files])

    @property
    def elements(self) -> tuple[str, ...]:
        """Symbols of the atoms.

        Raises
        ------
        InputError : there are runs of different molecules
        """
        kinds = {file.elements: file.run for file in self._files}
        if len(kinds) > 1:
            raise InputError(
                f"{self.path} holds different molecules ({', '.join(kinds.values())}), whose atoms "
                "make no one array; read the folder of one run"
            )
        return next(iter(kinds), ())

    @cached_property
    def time_ps(self) -> NDArray[np.float64]:
        """Shape (n_frames,)."""
        return self._required("time")

    @cached_property
    def potential_energy_kJ_mol(self) -> NDArray[np.float64] | None:
        """Shape (n_frames,)."""
        return self._read("potentialEnergy")

    @cached_property
    def kinetic_energy_kJ_mol(self) -> NDArray[np.float64] | None:
        """Shape (n_frames,)."""
        return self._read("kineticEnergy")

    @cached_property
    def positions_nm(self) -> NDArray[np.float64]:
        """Shape (n_frames, n_atoms, 3), not wrapped into the box."""
        return self._required("coordinates", per_atom=True)

    @cached_property
    def velocities_nm_ps(self) -> NDArray[np.float64] | None:
        """Shape (n_frames, n_atoms, 3)."""
        return self._read("velocities", per_atom=True)

    @cached_property
    def forces_kJ_mol_nm(self) -> NDArray[np.float64] | None:
        """Shape (n_frames, n_atoms, 3)."""
        return self._read("forces", per_atom=True)

    @cached_property
    def cell_lengths_nm(self) -> NDArray[np.float64] | None:
        """Shape (n_frames, 3), of the box's edges."""
        return self._read("cell_lengths")

    @cached_property
    def cell_angles_degrees(self) -> NDArray[np.float64] | None:
        """Shape (n_frames, 3), of the box."""
        return self._read("cell_angles")

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each frame: run, replica, time and energies, as far as they were recorded."""
        import pandas as pd

        columns = {
            "run": self.run,
            "replica": self.replica,
            "time_ps": self.time_ps,
            "potential_energy_kJ_mol": self.potential_energy_kJ_mol,
            "kinetic_energy_kJ_mol": self.kinetic_energy_kJ_mol,
        }
        return pd.DataFrame({name: row for name, row in columns.items() if row is not None})

    def _of_each(self, values: list[str] | list[int]) -> NDArray:  # type: ignore[type-arg]
        return np.repeat(np.array(values), [file.n_frames for file in self._files])

    def _required(self, dataset: str, *, per_atom: bool = False) -> NDArray[np.float64]:
        found = self._read(dataset, per_atom=per_atom)
        assert found is not None  # without it a file is not taken
        return found

    def _read(self, dataset: str, *, per_atom: bool = False) -> NDArray[np.float64] | None:
        if per_atom:
            _ = self.elements
        blocks = []
        for file in self._files:
            with _opened(file.path) as handle:
                if f"/{dataset}" not in handle:
                    return None
                node = handle.get_node("/", dataset)
                blocks.append(np.asarray(node[: file.n_frames], dtype=np.float64))
        return np.concatenate(blocks)


def read_record(path: str | os.PathLike[str]) -> Recording:
    """Open what was recorded.

    Parameters
    ----------
    path : a run directory, one replica's folder, the folder of a validation, a file of
        `TrajectoryReporter` or its folder `*.parts`, one file in MDTraj's HDF5 layout, or a
        `*.partial` of these

    Raises
    ------
    InputError : nothing is there, it is something else, it holds no frame, or it is damaged
    """
    path = Path(path)
    found: list[_File] = []
    left_out = []
    for run, replica, file in _candidates(path):
        try:
            n_frames, elements = _extent(file)
        except InputError:
            if file == path or not file.name.endswith(_PARTIAL):
                raise
            left_out.append(file)
            continue
        if n_frames:
            found.append(_File(file, run, replica, n_frames, elements))
    if not found:
        why = ""
        if left_out:
            why = f"; {left_out[0]} is still being written, or was torn by a kill"
        raise InputError(
            f"{path} holds no recorded frame{why}; wanted a run directory, a replica, a "
            "validation, or an .h5 file"
        )
    return Recording(path, tuple(left_out), tuple(found))


def _candidates(path: Path) -> Iterator[tuple[str, int, Path]]:
    """Run, replica and file, in order."""
    parts = path.with_name(path.name + ".parts") if path.name else path
    if not path.exists() and path.suffix == ".h5" and parts.is_dir():
        path = parts  # of a reporter that was killed
    if not path.exists():
        raise InputError(f"{path} does not exist; wanted a run directory, or an .h5 file")
    if path.is_file():
        if path.suffix != ".h5" and not path.name.endswith(_PARTIAL):
            raise InputError(f"{path} is no recorded trajectory: wanted a folder, or an .h5 file")
        yield path.name.removesuffix(".partial").removesuffix(".h5"), 0, path
    elif (path / SPEC_FILE).is_file():
        yield from _of_run(path)
    elif (path / "runs").is_dir():
        for spec in sorted((path / "runs").glob(f"*/{SPEC_FILE}")):
            yield from _of_run(spec.parent)
    else:
        folder = path.resolve()
        name, replica = folder.name.removesuffix(".parts").removesuffix(".h5"), 0
        if (folder.parent / SPEC_FILE).is_file():
            name, number = folder.parent.name, folder.name.rpartition("_")[2]
            replica = int(number) if number.isdigit() else 0
        for file in _segments(path):
            yield name, replica, file


def _of_run(folder: Path) -> Iterator[tuple[str, int, Path]]:
    name = folder.resolve().name
    for index in range(RunRecord.open(folder).n_replicas):
        for file in _segments(folder / replica_folder(index)):
            yield name, index, file


def _segments(folder: Path) -> list[Path]:
    """Closed ones, and the one that is being written, in order."""
    return sorted(p for p in folder.glob("*.h5*") if p.name.endswith((".h5", _PARTIAL)))


def _extent(path: Path) -> tuple[int, tuple[str, ...]]:
    """Whole frames, and the elements."""
    with _opened(path) as handle:
        columns = handle.list_nodes("/", classname="EArray")
        n_frames = min((int(column.shape[0]) for column in columns), default=0)
        topology = json.loads(handle.root.topology[0])
    atoms = [
        atom
        for chain in topology["chains"]
        for residue in chain["residues"]
        for atom in residue["atoms"]
    ]
    return n_frames, tuple(atom["element"] for atom in sorted(atoms, key=lambda a: a["index"]))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tables.File]:
    try:
        handle = tables.open_file(str(path), mode="r")
    except (OSError, ValueError, tables.HDF5ExtError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(
            f"{path} cannot be read ({reason}); it is damaged, or still being written"
        ) from None
    with contextlib.closing(handle):
        lacking = [name for name in _NEEDED if f"/{name}" not in handle]
        if lacking:
            raise InputError(f"{path} has no {' and no '.join(lacking)}: not MDTraj's HDF5 layout")
        yield handle
