"""HDF5 as TorchMD-Net has it: groups with types, pos, energy and forces, in units of its maker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from omm_mlff.errors import InputError
from omm_mlff.systems.hdf5 import opened
from omm_mlff.systems.label_units import LabelUnits
from omm_mlff.systems.labelled import LabelKeys, LabelledFrames

FORMAT = "HDF5 in TorchMD-Net's layout"
UNITS: LabelUnits | None = None


def matches(path: Path) -> bool:
    """Whether a group of it has types and pos."""
    if path.suffix.lower() not in (".h5", ".hdf5"):
        return False
    with opened(path) as groups:
        return any({"types", "pos"} <= set(arrays) for _, arrays in groups)


def read(path: Path, keys: LabelKeys) -> Iterator[LabelledFrames]:
    """Group by group; `types` are atomic numbers, one row for all frames or one for each.

    Raises
    ------
    InputError : a group that lacks an array
    """
    energy, forces = keys.energy or "energy", keys.forces or "forces"
    with opened(path) as groups:
        for name, arrays in groups:
            lacking = [key for key in ("types", "pos", energy, forces) if key not in arrays]
            if lacking:
                raise InputError(
                    f"{path}: group {name!r} has no {lacking[0]} (it has: "
                    f"{', '.join(sorted(arrays))}); name it with --energy-key or --forces-key"
                )
            positions = np.asarray(arrays["pos"].read(), dtype=np.float64)
            types = np.asarray(arrays["types"].read(), dtype=np.int64)
            types = types.reshape(-1, positions.shape[1])
            energies = np.asarray(arrays[energy].read(), dtype=np.float64).ravel()
            given = np.asarray(arrays[forces].read(), dtype=np.float64)
            if len(types) == 1:
                yield LabelledFrames(types[0], positions, energies, given)
                continue
            for species in np.unique(types, axis=0):
                same = (types == species).all(axis=1)
                yield LabelledFrames(species, positions[same], energies[same], given[same])
