"""Labelled frames of many molecules in one small file of flat arrays.

Needs numpy alone, so that a machine without OpenMM can train on it. Positions are whole multiples
of `GRID`, forces have 11 bits: the labels are those of the positions as they stand here, and the
rounding of a force, 2.5e-4 of it, is far below what a student can learn.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omm_mlff.distill.frames import Frames
from omm_mlff.errors import InputError
from omm_mlff.record.replacing import replaced

Float = NDArray[np.float64]

GRID = 2.0**-11
"""Resolution of positions, angstrom."""

STRATA = ("thermal", "modes", "bond", "approach", "excursion", "varied")
SOURCES = ("teacher", "xtb")


@dataclass(frozen=True, eq=False)
class PackedFrames:
    """Frames of any molecules, one after another.

    Attributes
    ----------
    species : shape (n_atoms,), int8, atomic numbers
    positions : shape (n_atoms, 3), int16, in units of `GRID`, each frame about its own centre
    forces : shape (n_atoms, 3), float16, eV/angstrom, total
    atomic : shape (n_atoms,), float16, eV, the teacher's share of each atom without its self
        energy; NaN where another method made the label
    n_atoms : shape (n_frames,), int16
    energies : shape (n_frames,), float64, eV, total on the teacher's scale
    molecule : shape (n_frames,), int32, row of `names`
    trajectory : shape (n_frames,), int32; frames of one trajectory of one molecule belong together
    temperature_K : shape (n_frames,), float32, 0 where no dynamics was involved
    stratum, source : shape (n_frames,), int8, rows of `STRATA` and `SOURCES`
    names : names of molecules
    """

    species: NDArray[np.int8]
    positions: NDArray[np.int16]
    forces: NDArray[np.float16]
    atomic: NDArray[np.float16]
    n_atoms: NDArray[np.int16]
    energies: Float
    molecule: NDArray[np.int32]
    trajectory: NDArray[np.int32]
    temperature_K: NDArray[np.float32]
    stratum: NDArray[np.int8]
    source: NDArray[np.int8]
    names: NDArray[np.str_]

    @property
    def n_frames(self) -> int:
        return len(self.n_atoms)

    @classmethod
    def of_molecule(
        cls,
        frames: Frames,
        energies: Float,
        forces: Float,
        atomic: Float,
        source: NDArray[np.str_],
    ) -> PackedFrames:
        """Pack frames of one molecule, whose positions are on the grid.

        Parameters
        ----------
        energies, forces : shapes (n_frames,) and (n_frames, n_atoms, 3), eV and eV/angstrom
        atomic : shape (n_frames, n_atoms), eV, NaN where there is none
        source : shape (n_frames,), each one of `SOURCES`
        """
        n = frames.n_frames
        strata = [STRATA.index(name) for name in frames.stratum.tolist()]
        return cls(
            np.tile(frames.species, n).astype(np.int8),
            np.round(frames.positions / GRID).astype(np.int16).reshape(-1, 3),
            forces.astype(np.float16).reshape(-1, 3),
            atomic.astype(np.float16).reshape(-1),
            np.full(n, frames.n_atoms, dtype=np.int16),
            np.asarray(energies, dtype=np.float64),
            np.zeros(n, dtype=np.int32),
            frames.trajectory.astype(np.int32),
            frames.temperature_K.astype(np.float32),
            np.array(strata, dtype=np.int8),
            np.array([SOURCES.index(name) for name in source.tolist()], dtype=np.int8),
            np.array([frames.molecule]),
        )


@dataclass(frozen=True, eq=False)
class PackedScale:
    """What the numbers of a pack are relative to.

    Attributes
    ----------
    grid : unit of the positions, angstrom
    free_atoms, self_energies : by atomic number, 0 for elements that it lacks: energies of free
        atoms on the teacher's scale, and the teacher's own atomic terms, eV
    """

    free_atoms: Float
    self_energies: Float
    grid: float = GRID


_SCALE = "scale_"
_PER_ATOM = ("species", "positions", "forces", "atomic")


def joined(parts: list[PackedFrames], *, apart: bool = True) -> PackedFrames:
    """Several packs as one, in which a name stands once.

    Parameters
    ----------
    apart : whether equal numbers of trajectories in different parts mean different trajectories
    """
    names: dict[str, int] = {}
    used: dict[int, int] = {}
    molecule, trajectory = [], []
    for part in parts:
        row = np.array([names.setdefault(str(n), len(names)) for n in part.names], dtype=np.int32)
        where = row[part.molecule] if len(row) else part.molecule
        moved = part.trajectory.copy()
        for number in np.unique(where).tolist() if apart else ():
            mine = where == number
            moved[mine] += used.get(number, 0)
            used[number] = int(moved[mine].max()) + 1
        molecule.append(where)
        trajectory.append(moved)
    arrays = {
        item.name: np.concatenate([getattr(part, item.name) for part in parts])
        for item in fields(PackedFrames)
        if item.name not in ("molecule", "trajectory", "names")
    }
    return PackedFrames(
        **arrays,
        molecule=np.concatenate(molecule),
        trajectory=np.concatenate(trajectory),
        names=np.array(list(names)),
    )


def selected(frames: PackedFrames, rows: NDArray[np.bool_]) -> PackedFrames:
    """Some of the frames; the names stay."""
    atoms = np.repeat(rows, frames.n_atoms)
    return PackedFrames(
        **{
            item.name: getattr(frames, item.name)
            if item.name == "names"
            else getattr(frames, item.name)[atoms if item.name in _PER_ATOM else rows]
            for item in fields(PackedFrames)
        }
    )


def content_hash(frames: PackedFrames) -> str:
    """sha256 over everything a training sees, in order."""
    digest = hashlib.sha256()
    for item in fields(PackedFrames):
        digest.update(np.ascontiguousarray(getattr(frames, item.name)).tobytes())
    return digest.hexdigest()


def save_packed(path: Path, frames: PackedFrames, scale: PackedScale | None = None) -> None:
    """Write a pack, by xz where the name ends in .xz; `scale` makes it one to train on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {item.name: getattr(frames, item.name) for item in fields(PackedFrames)}
    if scale is not None:
        arrays |= {_SCALE + i.name: np.array(getattr(scale, i.name)) for i in fields(PackedScale)}
    with (
        replaced(path) as partial,
        lzma.open(partial, "wb", preset=3) if path.suffix == ".xz" else partial.open("wb") as file,
    ):
        np.savez(file, allow_pickle=False, **arrays)


def load_packed(path: Path) -> PackedFrames:
    """Read what `save_packed` wrote.

    Raises
    ------
    InputError : not such a file, or damaged
    """
    return load_training_pack(path, need_scale=False)[0]


def load_training_pack(path: Path, need_scale: bool = True) -> tuple[PackedFrames, PackedScale]:
    """Read a pack that was written with its scale.

    Raises
    ------
    InputError : not such a file, or damaged, or without a scale
    """
    try:
        data = path.read_bytes()
        data = lzma.decompress(data) if path.suffix == ".xz" else data
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            frames = PackedFrames(**{i.name: archive[i.name] for i in fields(PackedFrames)})
            if _SCALE + "grid" not in archive.files:
                if need_scale:
                    raise InputError(f"{path} is one part of a pack; join the parts first")
                return frames, PackedScale(np.zeros(0), np.zeros(0))
            return frames, PackedScale(
                archive[_SCALE + "free_atoms"],
                archive[_SCALE + "self_energies"],
                float(archive[_SCALE + "grid"]),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, lzma.LZMAError) as error:
        raise InputError(f"{path} cannot be read ({error}); make it again") from error
