"""A name or a file becomes a system: topology, positions, bonds, reference labels."""

from __future__ import annotations

import os
from pathlib import Path

from omm_mlff.data import shipped_names
from omm_mlff.errors import StructureError, UnknownNameError
from omm_mlff.schema import MolecularSystem

__all__ = ["load_system", "system_names"]

SUFFIXES = (".pdb", ".sdf", ".xyz")
WATER_BOX = "water-box:"


def system_names() -> list[str]:
    """Names of the shipped systems, sorted."""
    return shipped_names("systems", "system.toml")


def load_system(spec: str | os.PathLike[str]) -> MolecularSystem:
    """The system that a user means.

    Parameters
    ----------
    spec : a shipped name; a path to a .pdb, .sdf or .xyz file; or `water-box:N`, N water molecules
        in a periodic cube at 0.997 g/cm^3

    Raises
    ------
    UnknownNameError : neither a shipped system nor a file
    StructureError : a file or geometry that cannot be used, or a shipped file that was changed
    """
    spec = os.fspath(spec)
    if spec in system_names():
        from omm_mlff.systems.shipped import load_shipped

        return load_shipped(spec)
    if spec.startswith(WATER_BOX):
        from omm_mlff.systems.water import water_box

        return water_box(_molecule_count(spec))
    path = Path(spec)
    if path.suffix.lower() in SUFFIXES:
        from omm_mlff.systems.files import read_structure

        return read_structure(path)
    if path.exists():
        raise StructureError(
            f"{spec!r} is not a structure file that can be read here "
            f"(wanted: {', '.join(SUFFIXES)}); convert it to one of these"
        )
    raise UnknownNameError(
        "system", spec, system_names(), "or give a .pdb, .sdf or .xyz file, or water-box:N"
    )


def _molecule_count(spec: str) -> int:
    count = spec.removeprefix(WATER_BOX)
    if not (count.isascii() and count.isdigit()) or int(count) < 1:
        raise StructureError(
            f"{spec!r}: wanted a number of molecules of 1 or more, got {count!r}; "
            "write it as water-box:216"
        )
    return int(count)
