"""NPZ as rMD17 (and MD17) have it: one molecule, in angstrom and kcal/mol.

References
----------
Christensen & von Lilienfeld, Mach. Learn.: Sci. Technol. 1, 045018 (2020).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from omm_mlff.errors import InputError
from omm_mlff.systems.label_units import LabelUnits
from omm_mlff.systems.labelled import LabelKeys, LabelledFrames

FORMAT = "NPZ in rMD17's layout"
UNITS = LabelUnits("kcal/mol", "angstrom")

_NAMES = {
    "species": ("nuclear_charges", "z"),
    "positions": ("coords", "R"),
    "energies": ("energies", "E"),
    "forces": ("forces", "F"),
}
"""By rMD17, then by MD17."""


def matches(path: Path) -> bool:
    """Whether it is an NPZ file."""
    return path.suffix.lower() == ".npz"


def read(path: Path, keys: LabelKeys) -> Iterator[LabelledFrames]:
    """All frames at once.

    Raises
    ------
    InputError : not an NPZ file, or one without these arrays
    """
    named: dict[str, tuple[str, ...]] = dict(_NAMES)
    if keys.energy:
        named["energies"] = (keys.energy,)
    if keys.forces:
        named["forces"] = (keys.forces,)
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            found = {}
            for what, names in named.items():
                there = [name for name in names if name in stored]
                if not there:
                    raise InputError(
                        f"{path} has no {what} under {' or '.join(names)} (it has: "
                        f"{', '.join(stored)}); name energies with --energy-key and forces with "
                        "--forces-key"
                    )
                found[what] = np.asarray(stored[there[0]])
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not an NPZ file that can be read ({error})") from error
    yield LabelledFrames(
        species=found["species"].astype(np.int64).ravel(),
        positions=found["positions"].astype(np.float64),
        energies=found["energies"].astype(np.float64).ravel(),
        forces=found["forces"].astype(np.float64),
    )
