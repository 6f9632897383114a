"""The text of a structure file, read only as far as it can be one."""

from __future__ import annotations

import re
from pathlib import Path

from omm_mlff.errors import StructureError

MAX_ATOMS = 500_000
"""Ten times the largest system that this package has been run on; refused before anything grows."""

MAX_BYTES = 400_000_000
MAX_LINE = 100_000
"""Longer than any line of a structure: the data in it are something else."""

_BINARY = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_COMMA = re.compile(r"\d,\d")
_NOT_FINITE = re.compile(r"(?<![\w.])[+-]?(nan|inf|infinity)(?![\w.])", re.IGNORECASE)


def read_text(path: Path, wanted: str = "a structure") -> str:
    """The text of a file: UTF-8 with or without a byte-order mark, else Latin-1.

    Parameters
    ----------
    wanted : what it should be, for the message

    Raises
    ------
    StructureError : not there, not readable, not text, empty, or larger than any structure
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise StructureError(
                f"{path} has {size / 1e6:.0f} MB; wanted {wanted} of at most "
                f"{MAX_BYTES / 1e6:.0f} MB: cut out the frame that is meant"
            )
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise StructureError(
            f"no such file: {path} (from {Path.cwd()}); check the path, or name a shipped system"
        ) from error
    except OSError as error:
        raise StructureError(f"{path} cannot be read: {error.strerror}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    if _BINARY.search(text[:MAX_LINE]):
        raise StructureError(f"{path} is not a text file; wanted {wanted}")
    if not text.strip():
        raise StructureError(f"{path} is empty; wanted {wanted}: export it anew")
    longest = max(map(len, text.splitlines()))
    if longest > MAX_LINE:
        raise StructureError(
            f"{path} has a line of {longest} characters; wanted {wanted}, in lines of at most "
            f"{MAX_LINE}: is it another kind of file?"
        )
    return text


def require_size(path: Path, n_atoms: int, n_lines: int | None = None) -> None:
    """Refuse a number of atoms that cannot be, before memory is taken for them.

    Parameters
    ----------
    n_atoms : as the file says
    n_lines : that the file has for them; None where that says nothing
    """
    if n_atoms > MAX_ATOMS:
        raise StructureError(
            f"{path} says that it has {n_atoms} atoms; wanted at most {MAX_ATOMS}: cut out a "
            "smaller system"
        )
    if n_lines is not None and n_lines < n_atoms:
        raise StructureError(
            f"{path} says that it has {n_atoms} atoms, and has {n_lines} lines for them; wanted a "
            "line for each: correct the number, or export it anew"
        )


def require_numbers(path: Path, fields: list[tuple[str, str]]) -> None:
    """Refuse what a reader would take for another number, or stumble over with a worse message.

    Parameters
    ----------
    fields : the columns of the coordinates, and the line that they are from
    """
    for columns, line in fields:
        if _NOT_FINITE.search(columns):
            raise StructureError(
                f"{path}: a coordinate is not finite in line {line.strip()!r}; "
                "wanted finite numbers: write the file anew"
            )
        if _COMMA.search(columns):
            raise StructureError(
                f"{path}: a decimal comma in line {line.strip()!r}; wanted a point, as in 1.45: "
                "replace the commas"
            )
