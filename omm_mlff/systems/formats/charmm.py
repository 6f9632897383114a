"""CHARMM's (and NAMD's, XPLOR's) psf with coordinates, by OpenMM's readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from openmm import unit
from openmm.app import CharmmCrdFile, CharmmPsfFile

from omm_mlff.errors import StructureError
from omm_mlff.systems.formats import pdb
from omm_mlff.systems.frames import the_frame
from omm_mlff.systems.paired import paired
from omm_mlff.systems.structure import Structure

SUFFIXES = (".psf",)
PARTNERS = (".crd", ".cor", ".pdb")


def read(path: Path, frame: int | None = None, partner: Path | None = None) -> Structure:
    """What the two files say; the total charge is the sum of the partial charges.

    A psf has no elements: they are those whose mass is nearest. The box is that of a PDB file's
    CRYST1 record; a crd file has none.

    Raises
    ------
    StructureError : unreadable, files that do not fit, or charges whose sum is no whole number
    """
    if partner is None:
        raise StructureError(f"{path} has no coordinates; wanted a crd or pdb file with it")
    positions, box = _coordinates(partner, frame)
    try:
        psf = CharmmPsfFile(str(path))
        topology = psf.topology
        total = sum(float(atom.charge) for atom in psf.atom_list)
    except Exception as error:  # what the reader raises is many things
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StructureError(
            f"{path} is not a psf file that OpenMM can read ({reason}); export it anew"
        ) from error
    return paired(path, partner, topology, positions, box, total)


def _coordinates(
    partner: Path, frame: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    if partner.suffix.lower() == ".pdb":
        structure = pdb.read(partner, frame)
        return structure.positions, structure.box_vectors
    the_frame(partner, 1, frame)
    try:
        crd = CharmmCrdFile(str(partner))
        return np.array(crd.positions.value_in_unit(unit.nanometer), dtype=np.float64), None
    except Exception as error:  # what the reader raises is many things
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StructureError(
            f"{partner} is not a CHARMM coordinate file that OpenMM can read ({reason})"
        ) from error
