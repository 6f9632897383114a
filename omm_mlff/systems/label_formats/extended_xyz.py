"""Extended XYZ, as ASE writes it: energy in the comment, forces in columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from omm_mlff.errors import InputError
from omm_mlff.systems import extended_xyz
from omm_mlff.systems.label_units import LabelUnits
from omm_mlff.systems.labelled import LabelKeys, LabelledFrames
from omm_mlff.systems.text import read_text

FORMAT = "extended XYZ"
UNITS = LabelUnits("eV", "angstrom")

_TEMPERATURES = ("temperature", "temperature_k")


def matches(path: Path) -> bool:
    """Whether its suffix is one of XYZ files."""
    return path.suffix.lower() in (".xyz", ".extxyz")


def read(path: Path, keys: LabelKeys) -> Iterator[LabelledFrames]:
    """Frame by frame.

    Raises
    ------
    StructureError : see `systems.extended_xyz`
    InputError : a frame without energy or forces under these keys
    """
    lines = read_text(path, "labelled frames").splitlines()
    starts = extended_xyz.frame_starts(path, lines)
    for number, found in enumerate(extended_xyz.read_frames(path, lines, starts)):
        atoms = found.atoms
        results = dict(getattr(atoms.calc, "results", {}))
        energy = _under(path, number, keys.energy or "energy", {**atoms.info, **results}, "energy")
        forces = _under(
            path, number, keys.forces or "forces", {**atoms.arrays, **results}, "forces"
        )
        temperature = [
            float(value) for key, value in atoms.info.items() if key.lower() in _TEMPERATURES
        ]
        yield LabelledFrames(
            species=np.asarray(atoms.numbers, dtype=np.int64),
            positions=np.asarray(atoms.positions, dtype=np.float64)[None],
            energies=np.array([float(energy)]),
            forces=np.asarray(forces, dtype=np.float64).reshape(1, -1, 3),
            box_vectors=np.array(atoms.cell, dtype=np.float64) if atoms.pbc.all() else None,
            charge=found.charge,
            spin_multiplicity=found.spin_multiplicity,
            temperature_K=np.array(temperature[:1] or [np.nan]),
            isotopes=found.isotopes,
            frame=number,
        )


def _under(path: Path, number: int, key: str, found: dict[str, Any], what: str) -> Any:
    for name, value in found.items():
        if name == key:
            return value
    others = ", ".join(sorted(set(found) - {"numbers", "positions"})) or "nothing"
    option = "--energy-key" if what == "energy" else "--forces-key"
    raise InputError(
        f"{path}: frame {number} has no {what} under {key!r} (it has: {others}); name it with "
        f"{option}"
    )
