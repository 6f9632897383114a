"""SDF and MOL files, V2000 and V3000, by RDKit's reader."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase

from omm_mlff.errors import StructureError
from omm_mlff.systems.build import atom_labels
from omm_mlff.systems.frames import the_frame
from omm_mlff.systems.hydrogens import describe_missing
from omm_mlff.systems.molecules import bonds_in, positions_of, topology_of
from omm_mlff.systems.structure import Bonds, Structure
from omm_mlff.systems.text import MAX_ATOMS, read_text, require_numbers, require_size
from omm_mlff.units import ANGSTROM_PER_NM

Float = NDArray[np.float64]

SUFFIXES = (".sdf", ".mol")

_V3000_COUNTS = re.compile(r"^M  V30 COUNTS\s+(\d+)", re.MULTILINE)
_V2000_RADICALS = re.compile(r"^M  RAD\s+\d+((?:\s+\d+\s+\d+)+)\s*$", re.MULTILINE)
_V3000_SINGLETS = re.compile(r"^M  V30 .*\bRAD=1\b", re.MULTILINE)
_RECORD_END = re.compile(r"^\$\$\$\$[^\n]*\n?", re.MULTILINE)
_SINGLET = "1"
"""A pair of electrons on one atom, such as a singlet carbene's."""


def read(path: Path, frame: int | None = None) -> Structure:
    """What an SDF file says: bonds, formal charges, radicals and isotopes.

    Raises
    ------
    StructureError : unreadable, several molecules and no `frame`, not a molecule, hydrogens
        missing, or a drawing
    """
    text = read_text(path)
    records = [record for record in _RECORD_END.split(text) if record.strip()]
    text = records[the_frame(path, len(records), frame, "molecules")]
    _require_sizes(path, text)
    atom_block = text.partition("M  END")[0].splitlines()[4:]
    require_numbers(path, [(line, line) for line in atom_block])
    with rdBase.BlockLogs():
        molecule = Chem.MolFromMolBlock(text, sanitize=False, removeHs=False)
    if molecule is None or molecule.GetNumAtoms() == 0 or molecule.GetNumConformers() == 0:
        raise StructureError(
            f"{path} is not an SDF file that RDKit can read; check its counts line and atom block, "
            "or export it anew"
        )
    topology = topology_of(str(path), molecule)
    labels = atom_labels(topology)
    try:
        with rdBase.BlockLogs():
            Chem.SanitizeMol(molecule)
    except ValueError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StructureError(
            f"{path}: the bonds and charges are not those of a molecule ({reason}); correct its "
            "bond orders and formal charges"
        ) from error
    missing = {
        atom.GetIdx(): atom.GetTotalNumHs() for atom in molecule.GetAtoms() if atom.GetTotalNumHs()
    }
    if missing:
        raise StructureError(describe_missing(str(path), labels, missing))
    positions, bonds = positions_of(molecule), bonds_in(molecule)
    _refuse_drawing(path, molecule, positions, bonds, labels)
    unpaired = sum(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms())
    return Structure(
        name=path.stem,
        source=str(path),
        topology=topology,
        positions=positions,
        bonds=bonds,
        charge=Chem.GetFormalCharge(molecule),
        spin_multiplicity=1 + unpaired - 2 * _singlet_pairs(text) if unpaired else None,
        masses={a.GetIdx(): a.GetMass() for a in molecule.GetAtoms() if a.GetIsotope()},
        settled=True,
    )


def _require_sizes(path: Path, text: str) -> None:
    """Refuse a count that the file has no lines for: RDKit takes the memory first."""
    lines = text.splitlines()
    found = _V3000_COUNTS.search(text)
    if found is not None:
        digits = found.group(1)
        require_size(path, int(digits) if len(digits) < 10 else 10 * MAX_ATOMS, len(lines))
    elif len(lines) > 3 and lines[3][:3].strip().isdigit():
        require_size(path, int(lines[3][:3]), max(0, len(lines) - 4))


def _singlet_pairs(text: str) -> int:
    """Atoms whose two free electrons are paired: RDKit counts both as unpaired."""
    pairs = len(_V3000_SINGLETS.findall(text))
    for row in _V2000_RADICALS.findall(text):
        pairs += row.split()[1::2].count(_SINGLET)
    return pairs


def _refuse_drawing(
    path: Path, molecule: Any, positions: Float, bonds: Bonds, labels: list[str]
) -> None:
    """A flat record is a flat molecule or a drawing: a drawing's bonds to H are too long."""
    if molecule.GetConformer().Is3D():
        return
    table = Chem.GetPeriodicTable()
    for i, j in sorted(bonds):
        length = float(np.linalg.norm(positions[i] - positions[j])) * ANGSTROM_PER_NM
        usual = sum(table.GetRcovalent(molecule.GetAtomWithIdx(k).GetAtomicNum()) for k in (i, j))
        if not 0.7 * usual < length < 1.3 * usual:
            raise StructureError(
                f"{path} is a flat drawing: its bond {labels[i]}-{labels[j]} is {length:.2f} "
                f"angstrom long (usual: {usual:.2f}); export three-dimensional coordinates"
            )
