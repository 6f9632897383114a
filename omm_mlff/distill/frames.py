"""Frames of one molecule, as sampled and as labelled, and their files."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omm_mlff.errors import InputError
from omm_mlff.record.replacing import replaced

Float = NDArray[np.float64]

STRATA = ("thermal", "modes", "bond", "approach", "excursion")


@dataclass(frozen=True, eq=False)
class Frames:
    """Structures of one molecule; frames of a path or trajectory stand in its order.

    Attributes
    ----------
    molecule : its name
    species : shape (n_atoms,), atomic numbers
    bonds : shape (n_bonds, 2), atom indices
    lengths : shape (n_bonds,), equilibrium bond lengths, angstrom
    positions : shape (n_frames, n_atoms, 3), angstrom
    stratum : shape (n_frames,), each one of `STRATA`
    trajectory : shape (n_frames,), unique within the molecule
    temperature_K : shape (n_frames,), of the dynamics; 0 where none was involved
    """

    molecule: str
    species: NDArray[np.int64]
    bonds: NDArray[np.int64]
    lengths: Float
    positions: Float
    stratum: NDArray[np.str_]
    trajectory: NDArray[np.int64]
    temperature_K: Float

    @property
    def n_frames(self) -> int:
        return len(self.positions)

    @property
    def n_atoms(self) -> int:
        return len(self.species)

    def select(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Frames:
        """The molecule with some of its frames."""
        return Frames(
            self.molecule,
            self.species,
            self.bonds,
            self.lengths,
            self.positions[rows],
            self.stratum[rows],
            self.trajectory[rows],
            self.temperature_K[rows],
        )


@dataclass(frozen=True, eq=False)
class LabelledFrames:
    """Frames with labels.

    Attributes
    ----------
    frames : only those that have a label
    energies : shape (n_frames,), eV, on the teacher's scale
    forces : shape (n_frames, n_atoms, 3), eV/angstrom
    spread : shape (n_frames,), disagreement of the teacher's networks, eV, NaN where it was not
        asked; never a filter
    source : shape (n_frames,), "teacher" or "xtb"
    n_dropped : frames for which no label could be had
    """

    frames: Frames
    energies: Float
    forces: Float
    spread: Float
    source: NDArray[np.str_]
    n_dropped: int


def concatenate(parts: list[Frames]) -> Frames:
    """Frames of one molecule from several samplers, trajectories renumbered to stay apart."""
    first = parts[0]
    offset = 0
    trajectory = []
    for part in parts:
        trajectory.append(part.trajectory + offset)
        offset = int(trajectory[-1].max(initial=offset - 1)) + 1
    return Frames(
        first.molecule,
        first.species,
        first.bonds,
        first.lengths,
        np.concatenate([part.positions for part in parts]),
        np.concatenate([part.stratum for part in parts]),
        np.concatenate(trajectory),
        np.concatenate([part.temperature_K for part in parts]),
    )


def save_frames(path: Path, frames: Frames) -> None:
    """Write frames; the file appears whole or not at all."""
    _write(path, _frames_arrays(frames))


def load_frames(path: Path) -> Frames:
    """Read what `save_frames` wrote.

    Raises
    ------
    InputError : not such a file, or damaged
    """
    return _frames(_read(path))


def save_labels(path: Path, labelled: LabelledFrames) -> None:
    """Write labelled frames; the file appears whole or not at all."""
    _write(
        path,
        {
            **_frames_arrays(labelled.frames),
            "energies": labelled.energies,
            "forces": labelled.forces,
            "spread": labelled.spread,
            "source": labelled.source,
            "n_dropped": np.array(labelled.n_dropped),
        },
    )


def load_labels(path: Path) -> LabelledFrames:
    """Read what `save_labels` wrote.

    Raises
    ------
    InputError : not such a file, or damaged
    """
    data = _read(path)
    return LabelledFrames(
        _frames(data),
        data["energies"].astype(np.float64),
        data["forces"].astype(np.float64),
        data["spread"].astype(np.float64),
        data["source"].astype(np.str_),
        int(data["n_dropped"]),
    )


def data_hash(labelled: list[LabelledFrames]) -> str:
    """sha256 over everything a training sees, in order."""
    digest = hashlib.sha256()
    for item in labelled:
        digest.update(item.frames.molecule.encode())
        for array in (
            item.frames.species,
            item.frames.positions,
            item.frames.trajectory,
            item.energies,
            item.forces,
        ):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _frames_arrays(frames: Frames) -> dict[str, NDArray[np.generic]]:
    return {
        "molecule": np.array(frames.molecule),
        "species": frames.species,
        "bonds": frames.bonds,
        "lengths": frames.lengths,
        "positions": frames.positions,
        "stratum": frames.stratum,
        "trajectory": frames.trajectory,
        "temperature_K": frames.temperature_K,
    }


def _frames(data: dict[str, NDArray[np.generic]]) -> Frames:
    return Frames(
        str(data["molecule"]),
        data["species"].astype(np.int64),
        data["bonds"].astype(np.int64),
        data["lengths"].astype(np.float64),
        data["positions"].astype(np.float64),
        data["stratum"].astype(np.str_),
        data["trajectory"].astype(np.int64),
        data["temperature_K"].astype(np.float64),
    )


def _write(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _read(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it and run again") from error
