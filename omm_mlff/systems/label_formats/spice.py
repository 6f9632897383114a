"""HDF5 as the SPICE dataset has it: a group for each molecule, in bohr and hartree.

References
----------
Eastman et al., Sci. Data 10, 11 (2023).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from omm_mlff.errors import InputError
from omm_mlff.systems.hdf5 import opened
from omm_mlff.systems.label_units import LabelUnits
from omm_mlff.systems.labelled import LabelKeys, LabelledFrames

FORMAT = "HDF5 in SPICE's layout"
UNITS = LabelUnits("hartree", "bohr")

_NUMBERS, _POSITIONS = "atomic_numbers", "conformations"
_ENERGY, _GRADIENT = "dft_total_energy", "dft_total_gradient"


def matches(path: Path) -> bool:
    """Whether a group of it has conformations."""
    if path.suffix.lower() not in (".h5", ".hdf5"):
        return False
    with opened(path) as groups:
        return any(_POSITIONS in arrays for _, arrays in groups)


def read(path: Path, keys: LabelKeys) -> Iterator[LabelledFrames]:
    """Molecule by molecule; SPICE stores gradients, so that forces are their negative.

    Raises
    ------
    InputError : a group that lacks one of the four arrays, or whose shapes do not fit
    """
    energy, forces = keys.energy or _ENERGY, keys.forces or _GRADIENT
    sign = -1.0 if "grad" in forces.lower() else 1.0
    with opened(path) as groups:
        for name, arrays in groups:
            lacking = [k for k in (_NUMBERS, _POSITIONS, energy, forces) if k not in arrays]
            if lacking:
                raise InputError(
                    f"{path}: group {name!r} has no {lacking[0]} (it has: "
                    f"{', '.join(sorted(arrays))}); name it with --energy-key or --forces-key"
                )
            species = np.asarray(arrays[_NUMBERS].read(), dtype=np.int64).ravel()
            positions = np.asarray(arrays[_POSITIONS].read(), dtype=np.float64)
            yield LabelledFrames(
                species=species,
                positions=positions,
                energies=np.asarray(arrays[energy].read(), dtype=np.float64).ravel(),
                forces=sign * np.asarray(arrays[forces].read(), dtype=np.float64),
            )
