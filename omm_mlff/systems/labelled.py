"""What a file of labels holds, before it is sorted into systems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LabelledFrames:
    """Frames of the same atoms in the same order, in the units of the file.

    Attributes
    ----------
    species : shape (n_atoms,), atomic numbers
    positions : shape (n_frames, n_atoms, 3)
    energies : shape (n_frames,)
    forces : shape (n_frames, n_atoms, 3)
    box_vectors : shape (3, 3), or None
    charge, spin_multiplicity : None where the file does not say
    temperature_K : shape (n_frames,), of the dynamics that a frame is from; NaN where not known
    isotopes : masses of atoms that are not of the usual mixture, by index, dalton
    frame : index of the first frame in the file, where it counts frames; else None
    """

    species: NDArray[np.int64]
    positions: Float
    energies: Float
    forces: Float
    box_vectors: Float | None = None
    charge: int | None = None
    spin_multiplicity: int | None = None
    temperature_K: Float | None = None
    isotopes: Mapping[int, float] = field(default_factory=dict)
    frame: int | None = None


@dataclass(frozen=True)
class LabelKeys:
    """What a file calls its energies and its forces; None: as its format does."""

    energy: str | None = None
    forces: str | None = None
