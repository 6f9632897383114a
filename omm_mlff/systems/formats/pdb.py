"""PDB files, by OpenMM's reader."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from openmm import unit
from openmm.app import PDBFile, Topology

from omm_mlff.errors import StructureError
from omm_mlff.systems.atom_names import element_symbol
from omm_mlff.systems.build import bonds_of
from omm_mlff.systems.frames import the_frame
from omm_mlff.systems.structure import BIOPOLYMER, Structure
from omm_mlff.systems.text import read_text, require_numbers, require_size

Float = NDArray[np.float64]

SUFFIXES = (".pdb", ".ent")

_ATOM_RECORDS = ("ATOM  ", "HETATM")


def read(path: Path, frame: int | None = None) -> Structure:
    """What a PDB file says; formal charges where it states them.

    Raises
    ------
    StructureError : see `read_pdb`
    """
    topology, positions, box, guessed = _read(path, frame)
    stated = [atom.formalCharge for atom in topology.atoms()]
    known = [charge for charge in stated if charge is not None]
    remark = ""
    if guessed:
        shown = ", ".join(f"{name} as {symbol}" for name, symbol in sorted(guessed.items())[:4])
        remark = f"it has no element columns (77-78): {shown}, by the names' columns"
    return Structure(
        name=path.stem,
        source=str(path),
        topology=topology,
        positions=positions,
        bonds=bonds_of(topology),
        box_vectors=box,
        charge=sum(known) if any(known) else None,
        remark=remark,
    )


def read_pdb(path: Path) -> tuple[Topology, Float, Float | None]:
    """Topology, positions (n_atoms, 3) nm, box vectors (3, 3) nm or None, as OpenMM reads them.

    Raises
    ------
    StructureError : unreadable, several models, alternate locations, atoms that share a name, or
        a name without an element column that could be of two elements
    """
    return _read(path, None)[:3]


def _read(path: Path, frame: int | None) -> tuple[Topology, Float, Float | None, dict[str, str]]:
    lines = _one_model(path, read_text(path).splitlines(), frame)
    records = [line for line in lines if line.startswith(_ATOM_RECORDS)]
    if not records:
        raise StructureError(f"{path} holds no ATOM or HETATM record; is it a PDB file?")
    require_size(path, len(records))
    require_numbers(path, [(line[30:54], line) for line in records])
    places = sorted({line[16] for line in records if len(line) > 16} - {" "})
    if len(places) > 1:
        raise StructureError(
            f"{path} has alternate locations ({', '.join(places)}); wanted one place for every "
            "atom: keep one location, for instance with pdbfixer"
        )
    _require_cell(path, lines)
    guessed: dict[str, str] = {}
    text = "\n".join(_with_element(path, line, guessed) for line in lines) + "\n"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of duplicate atoms, which are an error below
            pdb = PDBFile(io.StringIO(text))
    except (
        *(ValueError, IndexError, KeyError, TypeError, AttributeError, AssertionError),
        ZeroDivisionError,
    ) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StructureError(
            f"{path} is not a PDB file that OpenMM can read ({reason}); "
            "check its columns, or export it anew"
        ) from error
    topology = pdb.topology
    if topology.getNumAtoms() != len(records):
        raise StructureError(
            f"{path} has {len(records)} atom records, but only {topology.getNumAtoms()} distinct "
            "atoms: two atoms of a residue share a name; give every atom of a residue its own"
        )
    positions = np.array(pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    vectors = topology.getPeriodicBoxVectors()
    box = None if vectors is None else np.array(vectors.value_in_unit(unit.nanometer), dtype=float)
    if box is not None and np.diag(box).max() <= 0.1 + 1e-9:
        # "1 x 1 x 1 angstrom" is the PDB's way to say that there is no crystal
        topology.setPeriodicBoxVectors(None)
        box = None
    return topology, positions, box, guessed


def _one_model(path: Path, lines: list[str], frame: int | None) -> list[str]:
    """The lines of one model, with what stands before and after all of them."""
    starts = [number for number, line in enumerate(lines) if line.startswith("MODEL ")]
    chosen = the_frame(path, max(1, len(starts)), frame, "models")
    if len(starts) < 2:
        return lines
    ends = [number for number, line in enumerate(lines) if line.startswith("ENDMDL")]
    end = next((number for number in ends if number > starts[chosen]), len(lines))
    last = max([*ends, end])
    return [*lines[: starts[0]], *lines[starts[chosen] : end + 1], *lines[last + 1 :]]


def _require_cell(path: Path, lines: list[str]) -> None:
    """Refuse a cell with a side or an angle of zero: OpenMM divides by it."""
    for line in lines:
        if line.startswith("CRYST1"):
            try:
                numbers = [
                    float(line[i : i + n]) for i, n in zip((6, 15, 24), (9,) * 3, strict=True)
                ]
                numbers += [float(line[i : i + 7]) for i in (33, 40, 47)]
            except ValueError:
                return  # OpenMM's reader says what is wrong
            if not (np.isfinite(numbers).all() and min(numbers) > 0.0 and max(numbers[3:]) < 180.0):
                raise StructureError(
                    f"{path}: its cell has no volume ({line[6:54].strip()}); wanted sides and "
                    "angles above 0, or no CRYST1 record for a molecule in vacuum"
                )


def _with_element(path: Path, line: str, guessed: dict[str, str]) -> str:
    """The record with its element columns filled, where they are blank."""
    if not line.startswith(_ATOM_RECORDS) or line[76:78].strip():
        return line
    name, residue = line[12:16], line[17:21].strip()
    column_13 = name[:1] != " " if len(name.strip()) < 4 else None
    standard = residue.upper() in BIOPOLYMER
    symbol, question = element_symbol(name.strip(), residue, standard, column_13)
    if symbol is None and "could be" in question:
        raise StructureError(
            f"{path} has no element columns, and {question}; write the symbols into columns 77-78"
        )
    if symbol is None:
        return line  # refused as an atom without an element, with its place
    if not standard:
        guessed[name.strip()] = symbol
    return f"{line[:76]:<76}{symbol:>2}{line[78:]}"
