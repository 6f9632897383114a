"""Landmarks of a shipped system on the teacher's surface, written beside its structure."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.geometry import landmarks as geometry
from omm_mlff.geometry.landmarks import LandmarkPlan
from omm_mlff.geometry.relaxation import Surface
from omm_mlff.schema import MolecularSystem, ReferenceLandmarks
from omm_mlff.systems.shipped import (
    LANDMARK_CARD,
    LANDMARKS,
    STRUCTURE,
    load_shipped,
    read_card,
    stored_landmarks,
)
from omm_mlff.units import ANGSTROM_PER_NM, KJMOL_NM_PER_EV_ANGSTROM, KJMOL_PER_EV

if TYPE_CHECKING:
    from rdkit.Chem import Mol

    from omm_mlff.teachers.ani import Teacher

Float = NDArray[np.float64]


def find_landmarks(name: str, teacher: Teacher, plan: LandmarkPlan) -> ReferenceLandmarks:
    """Minima, normal modes of the lowest one, and torsional scans of a shipped system.

    Parameters
    ----------
    name : of a shipped system

    Raises
    ------
    UnknownNameError : no such system is shipped
    UnsupportedSystemError : an element that the teacher does not know
    RuntimeError : a structure did not come to rest
    """
    system = load_shipped(name)
    surface = teacher_surface(teacher, system.species)
    return geometry.find_landmarks(system, surface, plan, teacher.name, _molecule(system))


def make_landmarks(name: str, teacher: Teacher, plan: LandmarkPlan) -> Path:
    """Find landmarks, then write `landmarks.npz` and its card beside the structure.

    The same seed on the same machine gives the same file, byte for byte.
    """
    folder = read_card(name).folder
    # Landmarks that are not those of their card would keep the system from loading.
    (folder / LANDMARK_CARD).unlink(missing_ok=True)
    landmarks = find_landmarks(name, teacher, plan)
    buffer = io.BytesIO()
    np.savez(buffer, **stored_landmarks(landmarks))  # type: ignore[arg-type]
    path = folder / LANDMARKS
    path.write_bytes(buffer.getvalue())
    (folder / LANDMARK_CARD).write_text(_card(landmarks, plan, buffer.getvalue()), encoding="utf-8")
    return path


def teacher_surface(teacher: Teacher, species: NDArray[np.int64]) -> Surface:
    """The teacher in nm and kJ/mol."""

    def surface(positions: Float) -> tuple[Float, Float]:
        energies, forces, _ = teacher.label(species, positions * ANGSTROM_PER_NM)
        return energies * KJMOL_PER_EV, forces * KJMOL_NM_PER_EV_ANGSTROM

    return surface


def _molecule(system: MolecularSystem) -> Mol:
    """The shipped structure in RDKit, atoms in the system's order."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import AllChem

    card = read_card(system.name)
    molecule: Mol = Chem.MolFromPDBFile(str(card.folder / STRUCTURE), removeHs=False)
    template = Chem.AddHs(Chem.MolFromSmiles(card.smiles))
    with rdBase.BlockLogs():  # it notes that a symmetric molecule matches in several ways
        molecule = AllChem.AssignBondOrdersFromTemplate(template, molecule)  # type: ignore[no-untyped-call]
    Chem.AssignStereochemistryFrom3D(molecule)
    return molecule


def _card(landmarks: ReferenceLandmarks, plan: LandmarkPlan, content: bytes) -> str:
    points = sum(len(scan.energies) for scan in landmarks.scans)
    turns = ", ".join(f"{turn:g}" for turn in plan.turns)
    recipe = (
        f"{plan.n_starts} ETKDGv3 conformers and the shipped structure, each minimum turned by "
        f"{turns} degrees about each bond, relaxed to {plan.tolerance_eV_angstrom:g} eV/angstrom; "
        f"scans every {360 / plan.n_angles:g} degrees, held by {plan.stiffness_eV:g} eV/rad^2, a "
        f"map from {plan.n_map_starts} conformers, a line from the lowest, seed {plan.seed}"
    )
    return (
        f'method = "{landmarks.method}"\n'
        f'sha256 = "{hashlib.sha256(content).hexdigest()}"\n'
        f"n_minima = {len(landmarks.energies)}\n"
        f"n_scans = {len(landmarks.scans)}\n"
        f"n_scan_points = {points}\n"
        f'recipe = "{recipe}"\n'
    )
