"""How much memory an evaluation of a student takes, estimated before anything runs.

What grows with the system are arrays over pairs and over atoms. The compiled engine keeps what the
kernel's block has (`kernel/painn.cpp`) and the neighbour list; the scripted one keeps what autograd
needs for the way back, about `_SCRIPTED_ARRAYS` arrays as wide as a message (measured on boxes of
water of 3000 atoms: 11 to 13, and half a GiB for the first calls of TorchScript).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from omm_mlff.students.engine import MAX_COMPLETE_ATOMS
from omm_mlff.students.student import StudentConfig

_SCRIPTED_ARRAYS = 14
_SCRIPTED_START = 2**29
_KERNEL_PAIR = 68  # neighbour, row, prior and its slope, pull: bytes
_LIST_PAIR = 140  # two indices and a vector, twice, and the list's own room
_CGROUP = Path("/sys/fs/cgroup")


def directed_pairs(
    positions: NDArray[np.float64], box_vectors: NDArray[np.float64] | None, cutoff: float
) -> float:
    """How many pairs an evaluation has; in a box by its density.

    Parameters
    ----------
    positions : shape (n_atoms, 3)
    box_vectors : shape (3, 3), or None in vacuum; the unit of positions and cutoff
    """
    n_atoms = len(positions)
    if box_vectors is not None:
        density = n_atoms / abs(float(np.linalg.det(box_vectors)))
        return n_atoms * density * 4.0 / 3.0 * np.pi * cutoff**3
    if n_atoms <= MAX_COMPLETE_ATOMS:
        return float(n_atoms * (n_atoms - 1))
    tree = cKDTree(positions)
    return float(tree.count_neighbors(tree, cutoff) - n_atoms)


def evaluation_bytes(
    config: StudentConfig, n_atoms: int, n_pairs: float, *, compiled: bool, itemsize: int
) -> float:
    """Peak memory of one evaluation, bytes.

    Parameters
    ----------
    n_atoms, n_pairs : of everything that is evaluated in one call, pairs in both directions
    itemsize : of the network's numbers, bytes
    """
    width = config.n_features
    if not compiled:
        return _SCRIPTED_START + _SCRIPTED_ARRAYS * n_pairs * 3 * width * itemsize
    an_atom = (12 * config.n_layers + 7 * (config.n_layers - 1) + 9) * 1.25 * width * itemsize
    a_pair = (3 + 2 * (config.n_radial + 4)) * itemsize + _KERNEL_PAIR + _LIST_PAIR
    return n_atoms * an_atom + n_pairs * a_pair


def available_bytes() -> float:
    """Memory that this process may still take: of the machine, and of its control group."""
    available = float(psutil.virtual_memory().available)
    try:
        most = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        held = (_CGROUP / "memory.current").read_text(encoding="ascii").strip()
        if most != "max":
            available = min(available, float(most) - float(held))
    except (OSError, ValueError):
        pass  # no control groups here, or of the first version
    return available
