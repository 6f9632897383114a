"""A database of ASE (SQLite or JSON), with a calculator's energy and forces in each row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from omm_mlff.errors import InputError
from omm_mlff.systems.label_units import LabelUnits
from omm_mlff.systems.labelled import LabelKeys, LabelledFrames

FORMAT = "ASE database"
UNITS = LabelUnits("eV", "angstrom")


def matches(path: Path) -> bool:
    """Whether its suffix is one of ASE's databases."""
    return path.suffix.lower() == ".db"


def read(path: Path, keys: LabelKeys) -> Iterator[LabelledFrames]:
    """Row by row.

    Raises
    ------
    InputError : not a database, or a row without energy or forces
    """
    from ase.db import connect

    try:
        rows = list(connect(str(path)).select())
    except Exception as error:  # what its backends raise is many things
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is not a database that ASE can read ({reason})") from error
    for row in rows:
        atoms = row.toatoms()
        said = {**row.data, **row.key_value_pairs}
        yield LabelledFrames(
            species=np.asarray(atoms.numbers, dtype=np.int64),
            positions=np.asarray(atoms.positions, dtype=np.float64)[None],
            energies=np.array([float(_of(path, row, said, keys.energy, "energy"))]),
            forces=np.asarray(
                _of(path, row, said, keys.forces, "forces"), dtype=np.float64
            ).reshape(1, -1, 3),
            box_vectors=np.array(atoms.cell, dtype=np.float64) if atoms.pbc.all() else None,
            charge=_whole(said.get("charge")),
            spin_multiplicity=_whole(said.get("spin", said.get("multiplicity"))),
            temperature_K=np.array([float(said.get("temperature", np.nan))]),
        )


def _of(path: Path, row: Any, said: dict[str, Any], key: str | None, what: str) -> Any:
    value = said.get(key) if key else row.get(what)
    if value is None:
        option = "--energy-key" if what == "energy" else "--forces-key"
        raise InputError(
            f"{path}: row {row.id} has no {what} under {key or what!r} (it has: "
            f"{', '.join(sorted(said)) or 'no other data'}); name it with {option}"
        )
    return value


def _whole(value: Any) -> int | None:
    return None if value is None else round(float(value))
