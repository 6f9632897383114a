"""What a reference method that a user names says of a system: its minima, vibrations and torsions.

They cost thousands of evaluations, so they are kept in the campaign's folder, under a hash of the
system and the method, and found there by a campaign that goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omm_mlff.dynamics.reference_method import ReferenceMethod
from omm_mlff.forces.faults import one_line
from omm_mlff.geometry.landmarks import LandmarkPlan, find_landmarks
from omm_mlff.record.storage import storage_errors
from omm_mlff.schema import MolecularSystem, ReferenceLandmarks, TorsionScan

log = logging.getLogger(__name__)

FOLDER = "references"

PLAN = LandmarkPlan(n_starts=10, turns=(120.0, 180.0, 240.0), n_angles=12)
"""Fewer starts than for the shipped systems: a user's method may take a second a structure."""

MAX_ATOMS = 60
"""Second derivatives take 6 n_atoms evaluations for each minimum."""

DISAGREEMENT = 0.05
"""Of labels' forces and the method's, relative: beyond, they are not by one method."""

N_COMPARED = 10

Float = NDArray[np.float64]


def with_landmarks(
    system: MolecularSystem,
    teacher: ReferenceMethod,
    folder: Path,
    say: Callable[[str, int, int], None],
) -> MolecularSystem:
    """A system with the reference method's own minima, normal modes and torsional scans.

    Without them where the method cannot serve the system, the system is a box or too large, or a
    structure does not come to rest on the method's surface; a warning says which.

    Parameters
    ----------
    folder : of the campaign
    say : told what is being done
    """
    reason = teacher.unsupported(system) or _too_much(system)
    if reason:
        log.warning("notice: no torsions and vibrations to compare for %s: %s", system.name, reason)
        return dataclasses.replace(system, landmarks=None)
    path = folder / FOLDER / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', system.name)}.npz"
    key = _key(system, teacher)
    landmarks = _read(path, key, teacher.name)
    if landmarks is None:
        label = f"{system.name}: conformers and torsions by {teacher.name}"
        say(label, 0, 1)
        try:
            landmarks = find_landmarks(
                system, lambda x: teacher.evaluate(system, x), PLAN, teacher.name
            )
        except RuntimeError as error:
            log.warning(
                "notice: no torsions and vibrations to compare for %s: %s",
                system.name,
                one_line(error),
            )
            return dataclasses.replace(system, landmarks=None)
        _write(path, key, landmarks)
        say(label, 1, 1)
    return dataclasses.replace(system, landmarks=landmarks)


def disagreement(system: MolecularSystem, teacher: ReferenceMethod) -> float | None:
    """How far the labels' forces are from the method's, relative; None where nothing tells."""
    labels = system.reference
    if labels is None or not labels.n_frames or teacher.unsupported(system):
        return None
    n = min(N_COMPARED, labels.n_frames)
    chosen = np.linspace(0, labels.n_frames - 1, n).round().astype(np.int64)
    _, forces = teacher.evaluate(system, labels.positions[chosen])
    target = labels.forces[chosen]
    return float(np.sqrt(((forces - target) ** 2).mean() / (target**2).mean()))


def _too_much(system: MolecularSystem) -> str | None:
    if system.periodic:
        return "it is a periodic box"
    if system.n_atoms > MAX_ATOMS:
        return f"it has {system.n_atoms} atoms, and at most {MAX_ATOMS} are scanned"
    if not len(system.bonds):
        return "it has no bond"
    return None


def _key(system: MolecularSystem, teacher: ReferenceMethod) -> str:
    digest = hashlib.sha256()
    for array in (system.species, system.masses, system.bonds, system.positions):
        digest.update(np.ascontiguousarray(array).tobytes())
    words = f"{system.charge} {system.spin_multiplicity} {teacher.spec} {PLAN}"
    digest.update(f"{words} {teacher.potential.card.sha256}".encode())
    return digest.hexdigest()


def _write(path: Path, key: str, landmarks: ReferenceLandmarks) -> None:
    arrays: dict[str, NDArray[np.generic]] = {
        "key": np.array(key),
        "minima": landmarks.minima,
        "energies": landmarks.energies,
        "frequencies": landmarks.frequencies,
        "n_scans": np.array(len(landmarks.scans)),
    }
    for k, scan in enumerate(landmarks.scans):
        for field in dataclasses.fields(scan):
            arrays[f"scan{k}.{field.name}"] = np.asarray(getattr(scan, field.name))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())


def _read(path: Path, key: str, method: str) -> ReferenceLandmarks | None:
    """What is kept there; None where it is of another system or method, or damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            scans = tuple(
                TorsionScan(
                    torsions=stored[f"scan{k}.torsions"],
                    shape=tuple(int(n) for n in stored[f"scan{k}.shape"]),
                    positions=stored[f"scan{k}.positions"],
                    energies=stored[f"scan{k}.energies"],
                    forces=stored[f"scan{k}.forces"],
                )
                for k in range(int(stored["n_scans"]))
            )
            return ReferenceLandmarks(
                stored["minima"], stored["energies"], stored["frequencies"], scans, method
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
