"""XYZ files, plain and extended."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from omm_mlff.systems.extended_xyz import frame_starts, read_frames
from omm_mlff.systems.frames import the_frame
from omm_mlff.systems.molecules import plain_topology
from omm_mlff.systems.structure import Structure
from omm_mlff.systems.text import read_text
from omm_mlff.units import NM_PER_ANGSTROM

SUFFIXES = (".xyz", ".extxyz")

log = logging.getLogger(__name__)


def read(path: Path, frame: int | None = None) -> Structure:
    """What an XYZ file says: a box, charge and spin too, where its comment has them.

    Energies and forces are labels, and no part of a structure.

    Raises
    ------
    StructureError : unreadable, or several frames and no `frame`
    """
    lines = read_text(path).splitlines()
    starts = frame_starts(path, lines)
    chosen = starts[the_frame(path, len(starts), frame)]
    (found,) = read_frames(path, lines, [chosen])
    if found.n_columns_left:
        log.warning(
            "notice: %s has %d more column(s) than it declares; they are left out",
            path,
            found.n_columns_left,
        )
    atoms = found.atoms
    symbols = atoms.get_chemical_symbols()
    return Structure(
        name=path.stem,
        source=str(path),
        topology=plain_topology(str(path), list(zip(atoms.numbers.tolist(), symbols, strict=True))),
        positions=np.asarray(atoms.positions, dtype=np.float64) * NM_PER_ANGSTROM,
        bonds=set(),
        box_vectors=np.array(atoms.cell) * NM_PER_ANGSTROM if atoms.pbc.all() else None,
        charge=found.charge,
        spin_multiplicity=found.spin_multiplicity,
        masses=dict(found.isotopes),
        unit_is_stated=False,
    )
