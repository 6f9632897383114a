"""MOL2 files, by RDKit's reader."""

from __future__ import annotations

import re
from pathlib import Path

from rdkit import Chem, rdBase

from omm_mlff.errors import StructureError
from omm_mlff.systems.frames import the_frame
from omm_mlff.systems.molecules import bonds_in, positions_of, topology_of
from omm_mlff.systems.structure import Structure
from omm_mlff.systems.text import read_text, require_numbers, require_size

SUFFIXES = (".mol2",)

_MOLECULE = "@<TRIPOS>MOLECULE"
_WHOLE = 0.05
"""Partial charges are rounded in the file: their sum is a whole number to this."""


def read(path: Path, frame: int | None = None) -> Structure:
    """What a MOL2 file says; its total charge is the sum of its partial charges.

    Raises
    ------
    StructureError : unreadable, several molecules and no `frame`, or partial charges whose sum is
        no whole number
    """
    text = read_text(path)
    records = text.split(_MOLECULE)[1:]
    if not records:
        raise StructureError(f"{path} holds no {_MOLECULE} record; is it a MOL2 file?")
    record = _MOLECULE + records[the_frame(path, len(records), frame, "molecules")]
    lines = record.splitlines()
    counts = (lines[2].split() if len(lines) > 2 else []) or [""]
    if re.fullmatch(r"[0-9]{1,9}", counts[0]):
        require_size(path, int(counts[0]), len(lines))
    block = record.partition("@<TRIPOS>ATOM")[2].partition("@<TRIPOS>")[0]
    rows = [line for line in block.splitlines() if line.strip()]
    require_numbers(path, [(" ".join(line.split()[2:5]), line) for line in rows])
    with rdBase.BlockLogs():
        molecule = Chem.MolFromMol2Block(
            record, sanitize=False, removeHs=False, cleanupSubstructures=False
        )
    if molecule is None or molecule.GetNumAtoms() != len(rows) or not rows:
        raise StructureError(
            f"{path} is not a MOL2 file that RDKit can read; wanted SYBYL atom types in "
            f"{len(rows)} atom lines: export it anew, or give an SDF file"
        )
    return Structure(
        name=path.stem,
        source=str(path),
        topology=topology_of(str(path), molecule),
        positions=positions_of(molecule),
        bonds=bonds_in(molecule),
        charge=_charge(path, lines, rows),
    )


def _charge(path: Path, lines: list[str], rows: list[str]) -> int | None:
    """The sum of the last column; None where the file says that it has no charges."""
    kind = lines[4].strip().upper() if len(lines) > 4 else "NO_CHARGES"
    columns = [line.split() for line in rows]
    if kind == "NO_CHARGES" or any(len(fields) < 9 for fields in columns):
        return None
    try:
        total = sum(float(fields[8]) for fields in columns)
    except ValueError:
        return None
    if abs(total - round(total)) > _WHOLE:
        raise StructureError(
            f"{path}: its partial charges add up to {total:g}; wanted a whole number: correct "
            "them, or write NO_CHARGES and give --charge"
        )
    return round(total)
