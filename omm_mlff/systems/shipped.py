"""Shipped systems, each a folder with a structure, a card, reference labels, landmarks."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omm_mlff.data import data_folder, shipped_names
from omm_mlff.errors import StructureError, UnknownNameError
from omm_mlff.schema import MolecularSystem, ReferenceLabels, ReferenceLandmarks, TorsionScan

STRUCTURE = "structure.pdb"
CARD = "system.toml"
LABELS = "reference.npz"
LANDMARKS = "landmarks.npz"
LANDMARK_CARD = "landmarks.toml"


@dataclass(frozen=True)
class ReferenceCard:
    """What is recorded of a system's reference labels; the attributes are those of the file."""

    method: str
    sha256: str
    n_frames: int
    n_trajectories: int
    temperatures_K: tuple[float, ...]
    dynamics: str


@dataclass(frozen=True)
class SystemCard:
    """What a shipped system says of itself.

    Attributes
    ----------
    name : of the folder
    bonds : atom indices, first < second, sorted
    trained_on : whether the shipped students saw this molecule; its reference frames they never saw
    reference : None while the folder has no labels
    """

    name: str
    title: str
    formula: str
    charge: int
    smiles: str
    source: str
    trained_on: bool
    notes: str
    bonds: tuple[tuple[int, int], ...]
    reference: ReferenceCard | None

    @property
    def folder(self) -> Path:
        return data_folder("systems") / self.name


def read_card(name: str) -> SystemCard:
    """The card of a shipped system.

    Raises
    ------
    UnknownNameError : no such system is shipped
    """
    names = shipped_names("systems", CARD)
    if name not in names:
        raise UnknownNameError("system", name, names)
    fields = tomllib.loads((data_folder("systems") / name / CARD).read_text(encoding="utf-8"))
    fields["bonds"] = tuple((int(i), int(j)) for i, j in fields["bonds"])
    labels = fields.pop("reference", None)
    if labels is not None:
        labels["temperatures_K"] = tuple(float(value) for value in labels["temperatures_K"])
        labels = ReferenceCard(**labels)
    return SystemCard(name=name, reference=labels, **fields)


def load_shipped(name: str) -> MolecularSystem:
    """A shipped system with its reference labels and landmarks.

    Raises
    ------
    UnknownNameError : no such system is shipped
    StructureError : the labels or landmarks are not those that their card was written for
    """
    from omm_mlff.systems.build import build_system
    from omm_mlff.systems.formats.pdb import read_pdb

    card = read_card(name)
    topology, positions, _ = read_pdb(card.folder / STRUCTURE)
    bonds = np.array(card.bonds, dtype=np.int64).reshape(-1, 2)
    reference = None
    if card.reference is not None:
        reference = _read_labels(card.folder / LABELS, card.reference, len(positions))
    system = build_system(
        name=name,
        source=str(card.folder),
        topology=topology,
        positions=positions,
        bonds=bonds,
        charge=card.charge,
        reference=reference,
    )
    return dataclasses.replace(system, landmarks=_read_landmarks(card.folder, len(positions)))


def _read_labels(path: Path, card: ReferenceCard, n_atoms: int) -> ReferenceLabels:
    content = _certified(path, card.sha256, "reference labels")
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        arrays: dict[str, NDArray[np.float64]] = {
            key: np.asarray(stored[key], dtype=np.float64)
            for key in ("positions", "energies", "forces", "temperature_K")
        }
        trajectory = np.asarray(stored["trajectory"], dtype=np.int64)
    if arrays["positions"].shape != (len(trajectory), n_atoms, 3):
        raise StructureError(
            f"reference labels {path}: wanted positions of ({len(trajectory)}, {n_atoms}, 3), "
            f"got {arrays['positions'].shape}; make them anew"
        )
    return ReferenceLabels(
        positions=arrays["positions"],
        energies=arrays["energies"],
        forces=arrays["forces"],
        trajectory=trajectory,
        temperature_K=arrays["temperature_K"],
        method=card.method,
    )


@dataclass(frozen=True)
class LandmarkCard:
    """What is recorded of a system's landmarks; the attributes are those of the file."""

    method: str
    sha256: str
    n_minima: int
    n_scans: int
    n_scan_points: int
    recipe: str


def stored_landmarks(landmarks: ReferenceLandmarks) -> dict[str, NDArray[np.generic]]:
    """The arrays of `landmarks.npz`, by their names in it; scans in float32."""
    arrays: dict[str, NDArray[np.generic]] = {
        "minima": landmarks.minima,
        "energies": landmarks.energies,
        "frequencies": landmarks.frequencies,
    }
    for k, scan in enumerate(landmarks.scans):
        arrays[f"scan{k}.torsions"] = scan.torsions
        arrays[f"scan{k}.shape"] = np.array(scan.shape)
        arrays[f"scan{k}.positions"] = scan.positions.astype(np.float32)
        arrays[f"scan{k}.energies"] = scan.energies
        arrays[f"scan{k}.forces"] = scan.forces.astype(np.float32)
    return arrays


def _read_landmarks(folder: Path, n_atoms: int) -> ReferenceLandmarks | None:
    card_path, path = folder / LANDMARK_CARD, folder / LANDMARKS
    if not card_path.is_file():
        return None
    card = LandmarkCard(**tomllib.loads(card_path.read_text(encoding="utf-8")))
    content = _certified(path, card.sha256, "landmarks")
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:

        def floats(key: str) -> NDArray[np.float64]:
            return np.asarray(stored[key], dtype=np.float64)

        scans = tuple(
            TorsionScan(
                torsions=np.asarray(stored[f"scan{k}.torsions"], dtype=np.int64),
                shape=tuple(int(n) for n in stored[f"scan{k}.shape"]),
                positions=floats(f"scan{k}.positions"),
                energies=floats(f"scan{k}.energies"),
                forces=floats(f"scan{k}.forces"),
            )
            for k in range(card.n_scans)
        )
        minima, energies, frequencies = map(floats, ("minima", "energies", "frequencies"))
    if minima.shape != (card.n_minima, n_atoms, 3):
        raise StructureError(
            f"landmarks {path}: wanted minima of ({card.n_minima}, {n_atoms}, 3), got "
            f"{minima.shape}; make them anew"
        )
    return ReferenceLandmarks(minima, energies, frequencies, scans, card.method)


def _certified(path: Path, sha256: str, what: str) -> bytes:
    """The content of a file that a card was written for."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StructureError(
            f"{what} {path} cannot be read ({error.strerror}); reinstall omm-mlff"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise StructureError(
            f"{what} {path} are not those of its card: wanted sha256 {sha256[:12]}..., "
            f"got {found[:12]}...; reinstall omm-mlff, or make them anew"
        )
    return content
