"""XYZ and extended XYZ, by ASE's reader, once what is written in another dialect is plain.

The lines of a frame are looked at first: a symbol may be written in lower case, as an atomic
number, or as D or T; a number with Fortran's D for its exponent. What is left is ASE's to read, and
what it would pass over in silence (more columns than are declared, a decimal comma) is said here.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from ase.io.extxyz import key_val_str_to_dict, read_xyz
from rdkit import Chem

from omm_mlff.errors import StructureError
from omm_mlff.systems.text import MAX_ATOMS, require_numbers, require_size

MASS_NUMBERS = {"D": 2, "T": 3}

_FORTRAN = re.compile(r"(?<=[0-9.])[dD](?=[+-]?[0-9])")
_SYMBOLS = {symbol.lower(): symbol for symbol in chemical_symbols[1:]}
_CHARGE_KEYS = ("charge", "total_charge")
_SPIN_KEYS = ("spin", "multiplicity", "spin_multiplicity")
_SPECIES, _NUMBERS, _POSITIONS = ("species", "symbols"), ("z", "numbers"), ("pos", "positions")


@dataclass(frozen=True, eq=False)
class XyzFrame:
    """One frame of an XYZ file.

    Attributes
    ----------
    atoms : ASE's, with a cell (angstrom) where the frame has a box, and with results it may have
    isotopes : masses of deuterium and tritium, by atom index, dalton
    charge, spin_multiplicity : as the comment says; None where it says nothing
    n_columns_left : columns that no `Properties=` declares
    """

    atoms: Any
    isotopes: Mapping[int, float]
    charge: int | None
    spin_multiplicity: int | None
    n_columns_left: int


def frame_starts(path: Path, lines: list[str]) -> list[tuple[int, int]]:
    """For each frame the number of its first line, and of its atoms.

    Raises
    ------
    StructureError : a frame that does not begin with a number of atoms, or has fewer lines
    """
    found: list[tuple[int, int]] = []
    at = 0
    while at < len(lines):
        count = lines[at].strip()
        if not count and found:
            if any(line.strip() for line in lines[at:]):
                at += 1
                continue
            break
        if not re.fullmatch(r"[0-9]+", count) or not count.strip("0"):
            where = "in its first line" if not found else f"in line {at + 1}, after a frame"
            raise StructureError(
                f"{path} is not an XYZ file: wanted the number of atoms {where}, got {count[:40]!r}"
            )
        n_atoms = int(count) if len(count) < 10 else 10 * MAX_ATOMS
        require_size(path, n_atoms)
        _require_lines(path, lines, at, n_atoms)
        found.append((at, n_atoms))
        at += 2 + n_atoms
    return found


def read_frames(path: Path, lines: list[str], chosen: list[tuple[int, int]]) -> Iterator[XyzFrame]:
    """The frames that begin at these lines.

    Parameters
    ----------
    chosen : of `frame_starts`

    Raises
    ------
    StructureError : a line that is no atom, or a comment that contradicts itself
    """
    for at, n_atoms in chosen:
        yield _read_frame(path, lines[at + 1], lines[at + 2 : at + 2 + n_atoms])


def _require_lines(path: Path, lines: list[str], at: int, n_atoms: int) -> None:
    rows = lines[at + 2 : at + 2 + n_atoms]
    blank = next((number for number, row in enumerate(rows) if not row.strip()), len(rows))
    if blank == n_atoms:
        return
    if at + 1 < len(lines) and _is_atom(lines[at + 1]):
        raise StructureError(
            f"{path}: line {at + 2}, where the comment belongs, is an atom "
            f"({lines[at + 1].strip()!r}); wanted a line of comment, which may be empty, after the "
            "number of atoms: insert one"
        )
    raise StructureError(
        f"{path} is not an XYZ file that can be read; wanted {n_atoms} lines of an element with "
        f"three coordinates in angstrom, got {blank}: check them"
    )


def _is_atom(line: str) -> bool:
    fields = line.split()
    if len(fields) != 4 or _symbol(fields[0]) is None:
        return False
    return all(re.fullmatch(r"[+-]?[0-9.]+([eEdD][+-]?[0-9]+)?", text) for text in fields[1:])


def _symbol(written: str) -> str | None:
    """The symbol of an element as ASE wants it; None where the meaning is not certain."""
    if re.fullmatch(r"[0-9]{1,3}", written):
        number = int(written)
        return chemical_symbols[number] if 0 < number < len(chemical_symbols) else None
    if written.upper() in MASS_NUMBERS:
        return "H"
    return _SYMBOLS.get(written.lower())


def _read_frame(path: Path, comment: str, rows: list[str]) -> XyzFrame:
    info = _comment(comment)
    columns = _columns(path, info)
    first, _ = columns.get("species", (None, 0))
    xyz, _ = columns["pos"]
    isotopes: dict[int, int] = {}
    plain = []
    width = sum(n for _, n in columns.values())
    n_left = 0
    for index, row in enumerate(rows):
        fields = row.split()
        if len(fields) < width:
            raise StructureError(
                f"{path} is not an XYZ file that can be read; wanted {width} columns (an element "
                f"and three coordinates in angstrom among them), got {row.strip()[:80]!r}"
            )
        n_left = max(n_left, len(fields) - width)
        require_numbers(path, [(" ".join(fields[xyz : xyz + 3]), row)])
        for k in range(len(fields)):
            if k != first:
                fields[k] = _FORTRAN.sub("e", fields[k])
        if first is not None:
            symbol = _symbol(fields[first])
            if symbol is None:
                raise StructureError(
                    f"{path}: {fields[first]!r} in line {row.strip()[:80]!r} is not the symbol of "
                    "an element; write it as in C, H or Cl"
                )
            mass_number = MASS_NUMBERS.get(fields[first].upper())
            if mass_number:
                isotopes[index] = mass_number
            fields[first] = symbol
        plain.append(" ".join(fields[:width]))
    atoms = _by_ase(path, comment if info else "", plain)
    _set_cell(path, atoms, info)
    table = Chem.GetPeriodicTable()
    masses = {index: table.GetMassForIsotope(1, number) for index, number in isotopes.items()}
    return XyzFrame(atoms, masses, _whole(path, info, _CHARGE_KEYS), _spin(path, info), n_left)


def _comment(comment: str) -> dict[str, Any]:
    """Keys and values of a comment, by ASE's parser; prose has none."""
    if "=" not in comment:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dict(key_val_str_to_dict(comment))
    except Exception:  # prose with an equals sign in it
        return {}


def _columns(path: Path, info: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """First column and number of columns of each property that is declared."""
    declared = str(info.get("Properties", "species:S:1:pos:R:3")).split(":")
    columns: dict[str, tuple[int, int]] = {}
    at = 0
    try:
        for name, _, n in zip(*[iter(declared)] * 3, strict=True):
            key = name.lower()
            key = "species" if key in _SPECIES else "pos" if key in _POSITIONS else name
            columns[key] = (at, int(n))
            at += int(n)
    except ValueError as error:
        raise StructureError(
            f"{path}: Properties={':'.join(declared)} is not understood; wanted "
            "name:type:columns, again and again, as in species:S:1:pos:R:3"
        ) from error
    if columns.get("pos", (0, 0))[1] != 3:
        raise StructureError(f"{path}: its Properties= declares no pos:R:3; wanted positions")
    if "species" not in columns and not any(key.lower() in _NUMBERS for key in columns):
        raise StructureError(f"{path}: its Properties= declares no species:S:1; wanted elements")
    return columns


def _by_ase(path: Path, comment: str, rows: list[str]) -> Any:
    block = "\n".join([str(len(rows)), comment, *rows]) + "\n"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (atoms,) = read_xyz(io.StringIO(block), index=slice(0, None))
    except Exception as error:  # what its parser raises is many things
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StructureError(
            f"{path} is not an XYZ file that ASE can read ({reason}); wanted an element and three "
            "coordinates in angstrom in each line"
        ) from error
    return atoms


def _set_cell(path: Path, atoms: Any, info: Mapping[str, Any]) -> None:
    """The box of the frame, wherever its comment has it."""
    stated = next((value for key, value in info.items() if key.lower() == "cell"), None)
    if stated is not None and not atoms.cell.any():
        cell = np.asarray(stated, dtype=np.float64).ravel()
        if cell.size not in (3, 9):
            raise StructureError(
                f"{path}: cell={stated} is not understood; wanted three sides or nine numbers, in "
                "angstrom"
            )
        atoms.set_cell(np.diag(cell) if cell.size == 3 else cell.reshape(3, 3))
        if "pbc" not in info:
            atoms.pbc = True
    if atoms.pbc.any() and not atoms.pbc.all():
        raise StructureError(
            f"{path} is periodic in {int(atoms.pbc.sum())} of three directions; OpenMM knows all "
            'or none: write pbc="T T T" or pbc="F F F"'
        )
    has_lattice = any(key.lower() in ("cell", "lattice") for key in info)
    if atoms.pbc.all() and not has_lattice:
        raise StructureError(
            f"{path} says that it is periodic, and has no box; wanted Lattice= with nine numbers "
            "in angstrom"
        )


def _whole(path: Path, info: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    for key, value in info.items():
        if key.lower() in keys:
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = float("nan")
            if number != round(number, 0):
                raise StructureError(f"{path}: wanted {key} as a whole number, got {value!r}")
            return int(number)
    return None


def _spin(path: Path, info: Mapping[str, Any]) -> int | None:
    spin = _whole(path, info, _SPIN_KEYS)
    if spin is not None and spin < 1:
        raise StructureError(
            f"{path}: wanted spin as the multiplicity 2 S + 1 (1 for closed shells, 2 for a "
            f"radical), got {spin}"
        )
    return spin
