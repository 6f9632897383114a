"""Finds the reader of a structure file, and has it read; refuses what is not whole."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from omm_mlff.errors import StructureError
from omm_mlff.schema import MolecularSystem
from omm_mlff.systems import formats, trajectory
from omm_mlff.systems.structure import Structure, whole


@functools.cache
def readers() -> dict[str, ModuleType]:
    """The module of `formats` that reads files with a suffix."""
    modules = [
        importlib.import_module(f"{formats.__name__}.{module.name}")
        for module in pkgutil.iter_modules(formats.__path__)
    ]
    return {suffix: module for module in modules for suffix in module.SUFFIXES}


def known_suffixes() -> list[str]:
    """Suffixes of the files that can be read alone, or as the first of two."""
    return sorted({*readers(), *trajectory.WITH_TOPOLOGY})


def names_files(spec: str) -> bool:
    """Whether a spec is the path of a structure file, or of two joined by a plus."""
    return any(Path(part).suffix.lower() in known_suffixes() for part in _paths(spec))


def read_structure(
    spec: str | Path,
    frame: int | None = None,
    charge: int | None = None,
    spin_multiplicity: int | None = None,
) -> MolecularSystem:
    """The system in a structure file, with every bond.

    A file of several structures (models, molecules, frames) is refused unless `frame` names one,
    and one with alternate locations always, because a choice made in silence is a wrong answer. The
    total charge is that of the file's formal or partial charges, else zero, but for residues of
    biopolymers, whose charge follows from their hydrogens. Hydrogens are never added.

    Parameters
    ----------
    spec : a path; or two joined by a plus: a topology and its coordinates (prmtop, psf), or any
        structure and a trajectory of it. A prmtop or psf alone takes the file beside it
    frame : which of several structures, from 0
    charge, spin_multiplicity : where the file does not say them

    Raises
    ------
    StructureError : anything that keeps the file from being one whole structure; the message says
        what was wanted, what came and what to do
    """
    first, *others = _paths(str(spec))
    if len(others) > 1:
        raise StructureError(f"{spec}: wanted one file, or two joined by a plus, got {spec!r}")
    return whole(_read(first, others[0] if others else None, frame), charge, spin_multiplicity)


def _read(path: Path, other: Path | None, frame: int | None) -> Structure:
    suffix = path.suffix.lower()
    if suffix in trajectory.WITH_TOPOLOGY and other is None:
        return trajectory.read_whole(path, frame)
    module = readers().get(suffix)
    if module is None:
        raise StructureError(
            f"{path} is not a structure file that can be read here (wanted: "
            f"{', '.join(known_suffixes())}); convert it to one of these"
        )
    moving = other is not None and other.suffix.lower() in trajectory.COORDINATES
    partners = getattr(module, "PARTNERS", ())
    own_frame = None if moving else frame
    if not partners:
        if other is not None and not moving:
            raise StructureError(
                f"{path}+{other}: wanted a trajectory after the plus "
                f"({', '.join(trajectory.COORDINATES)}), got {other.suffix or 'no suffix'}"
            )
        structure: Structure = module.read(path, own_frame)
    elif other is not None and not moving:
        structure = module.read(path, own_frame, other)
    else:
        structure = module.read(path, own_frame, _beside(path, partners))
    return trajectory.at_frame(structure, other, frame) if moving and other else structure


def _beside(path: Path, partners: tuple[str, ...]) -> Path:
    """The coordinates that lie beside a topology under the same name."""
    if not path.is_file():
        raise StructureError(f"no such file: {path} (from {Path.cwd()}); check the path")
    found = [path.with_suffix(suffix) for suffix in partners]
    there = [other for other in found if other.is_file()]
    if len(there) != 1:
        came = " and ".join(map(str, there)) or "none"
        raise StructureError(
            f"{path} has no coordinates; wanted one file of them beside it "
            f"({', '.join(partners)}), got {came}: name it as {path}+COORDINATES"
        )
    return there[0]


def _paths(spec: str) -> list[Path]:
    """The one or two paths in a spec; a plus within a name that exists is a part of it."""
    if Path(spec).exists() or "+" not in spec:
        return [Path(spec)]
    suffixes = {*known_suffixes(), *trajectory.COORDINATES}
    for module in readers().values():
        suffixes.update(getattr(module, "PARTNERS", ()))
    for at in [k for k, letter in enumerate(spec) if letter == "+"]:
        parts = [Path(spec[:at]), Path(spec[at + 1 :])]
        if all(part.suffix.lower() in suffixes for part in parts):
            return parts
    return [Path(spec)]
