"""A file of atoms and partial charges, with the file of their coordinates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from openmm.app import Topology

from omm_mlff.errors import StructureError
from omm_mlff.systems.build import bonds_of
from omm_mlff.systems.structure import Structure
from omm_mlff.systems.text import require_size

_WHOLE = 0.05
"""So far from a whole number may partial charges add up, for their rounding."""


def paired(
    path: Path,
    partner: Path,
    topology: Topology,
    positions: NDArray[np.float64],
    box_vectors: NDArray[np.float64] | None,
    total_charge: float,
) -> Structure:
    """One structure of two files that belong together.

    Parameters
    ----------
    path, partner : the files, of the topology and of the coordinates
    positions : shape (n_atoms, 3), nm
    box_vectors : shape (3, 3), nm; None in vacuum
    total_charge : sum of the partial charges, elementary charges

    Raises
    ------
    StructureError : too many atoms, coordinates of another number of them, or a total charge
        that is no whole number
    """
    require_size(path, topology.getNumAtoms())
    if len(positions) != topology.getNumAtoms():
        raise StructureError(
            f"{path} has {topology.getNumAtoms()} atoms, {partner} has {len(positions)}; wanted "
            "the coordinates of the same system"
        )
    if abs(total_charge - round(total_charge)) > _WHOLE:
        raise StructureError(
            f"{path}: its partial charges add up to {total_charge:g}; wanted a whole number: "
            "correct them"
        )
    return Structure(
        name=path.stem,
        source=f"{path}+{partner}",
        topology=topology,
        positions=positions,
        bonds=bonds_of(topology),
        box_vectors=box_vectors,
        charge=round(total_charge),
    )
