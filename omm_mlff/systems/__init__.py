"""A name or a file becomes a system: topology, positions, bonds, reference labels."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from omm_mlff.data import shipped_names
from omm_mlff.errors import StructureError, UnknownNameError
from omm_mlff.schema import MolecularSystem

__all__ = ["load_system", "system_names"]

WATER_BOX = "water-box:"

OPTIONS = ("frame", "charge", "spin")
"""What may follow a system's spec after a question mark."""


def system_names() -> list[str]:
    """Names of the shipped systems, sorted."""
    return shipped_names("systems", "system.toml")


def load_system(
    spec: str | os.PathLike[str],
    *,
    frame: int | None = None,
    charge: int | None = None,
    spin_multiplicity: int | None = None,
) -> MolecularSystem:
    """The system that a user means.

    Parameters
    ----------
    spec : a shipped name; a path to a structure file (PDB, mmCIF, SDF, MOL2, XYZ, GRO), or two
        joined by a plus (prmtop+inpcrd, psf+crd, any+trajectory); `smiles:CCO`; or `water-box:N`, N
        water molecules in a periodic cube at 0.997 g/cm^3. What a file leaves open may follow, as
        in `ion.xyz?charge=-1&spin=2&frame=0`, in place of the parameters below
    frame : which of several structures in a file, from 0
    charge, spin_multiplicity : of a file that does not say them, elementary charges and 2 S + 1

    Raises
    ------
    UnknownNameError : neither a shipped system nor a file
    StructureError : a file or geometry that cannot be used, or a shipped file that was changed
    """
    given = {"frame": frame, "charge": charge, "spin": spin_multiplicity}
    spec, options = split_spec(with_options(os.fspath(spec), **given))
    frame, charge, spin_multiplicity = (options.get(key) for key in given)
    if spec in system_names():
        from omm_mlff.systems.shipped import load_shipped

        _refuse_options(spec, options)
        return load_shipped(spec)
    if spec.startswith(WATER_BOX):
        from omm_mlff.systems.water import water_box

        _refuse_options(spec, options)
        return water_box(_molecule_count(spec))
    from omm_mlff.systems import smiles
    from omm_mlff.systems.files import known_suffixes, names_files, read_structure

    if spec.startswith(smiles.PREFIX):
        from omm_mlff.systems.structure import whole

        _refuse_options(spec, {key: value for key, value in options.items() if key != "spin"})
        return whole(smiles.from_smiles(spec), charge, spin_multiplicity)
    if names_files(spec):
        return read_structure(spec, frame, charge, spin_multiplicity)
    if Path(spec).exists():
        raise StructureError(
            f"{spec!r} is not a structure file that can be read here "
            f"(wanted: {', '.join(known_suffixes())}); convert it to one of these"
        )
    raise UnknownNameError(
        "system",
        spec,
        system_names(),
        "or give a structure file (.pdb, .cif, .sdf, .mol2, .xyz, .gro, .prmtop, .psf), "
        "smiles:STRING or water-box:N",
    )


def with_options(spec: str, **options: int | None) -> str:
    """A spec with options written into it, so that it can be read again anywhere.

    Parameters
    ----------
    options : `frame`, `charge` and `spin`; None leaves one out

    Raises
    ------
    StructureError : one that the spec has with another value
    """
    plain, written = split_spec(spec)
    for key, value in options.items():
        if value is not None and written.setdefault(key, value) != value:
            raise StructureError(
                f"{spec!r} says {key} {written[key]}, and --{key} says {value}; leave one out"
            )
    words = "&".join(f"{key}={value}" for key, value in written.items())
    return f"{plain}?{words}" if words else plain


def split_spec(spec: str) -> tuple[str, dict[str, int]]:
    """What stands before the question mark, and `frame`, `charge` and `spin` after it.

    Raises
    ------
    StructureError : an option that is none of these, or no whole number
    """
    plain, mark, query = spec.rpartition("?")
    if not mark or "=" not in query or Path(spec).exists():
        return spec, {}
    options: dict[str, int] = {}
    for word in query.split("&"):
        key, _, value = word.partition("=")
        if key not in OPTIONS or key in options or not re.fullmatch(r"[+-]?[0-9]{1,9}", value):
            raise StructureError(
                f"{spec!r}: wanted whole numbers for {', '.join(OPTIONS)}, once each, got "
                f"{word!r}; write it as ion.xyz?charge=-1&spin=2"
            )
        options[key] = int(value)
    return plain, options


def _refuse_options(spec: str, options: Mapping[str, int]) -> None:
    if options:
        words = " and ".join(f"--{key}" for key in options)
        raise StructureError(
            f"{spec!r} has a charge, a spin and one structure of its own; leave out {words}"
        )


def _molecule_count(spec: str) -> int:
    from omm_mlff.systems.text import MAX_ATOMS

    count = spec.removeprefix(WATER_BOX)
    most = MAX_ATOMS // 3
    if not re.fullmatch(r"[0-9]+", count) or not count.strip("0"):
        raise StructureError(
            f"{spec!r}: wanted a number of molecules of 1 or more, got {count!r}; "
            "write it as water-box:216"
        )
    if len(count) > 9 or int(count) > most:
        raise StructureError(
            f"{spec[:40]!r}: wanted at most {most} molecules; ask for a smaller box"
        )
    return int(count)
