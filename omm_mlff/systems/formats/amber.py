"""Amber's prmtop with an inpcrd or rst7 file, by OpenMM's readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from openmm import unit
from openmm.app import AmberInpcrdFile, AmberPrmtopFile

from omm_mlff.errors import StructureError
from omm_mlff.systems.frames import the_frame
from omm_mlff.systems.paired import paired
from omm_mlff.systems.structure import Structure

SUFFIXES = (".prmtop", ".parm7")
PARTNERS = (".inpcrd", ".rst7", ".crd", ".ncrst")

_CHARGE_UNIT = 18.2223
"""Of Amber's charges in one elementary charge: sqrt of Coulomb's constant in kcal/mol angstrom."""


def read(path: Path, frame: int | None = None, partner: Path | None = None) -> Structure:
    """What the two files say; the total charge is the sum of the partial charges.

    Masses are those of the elements: repartitioned hydrogen masses are a matter of how a force
    field is run.

    Raises
    ------
    StructureError : unreadable, files that do not fit, or charges whose sum is no whole number
    """
    if partner is None:
        raise StructureError(f"{path} has no coordinates; wanted an inpcrd or rst7 file with it")
    the_frame(path, 1, frame)
    try:
        prmtop = AmberPrmtopFile(str(path))
        inpcrd = AmberInpcrdFile(str(partner))
        positions = np.array(inpcrd.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
        vectors = inpcrd.boxVectors
        charges = [float(q) for q in prmtop._prmtop._raw_data["CHARGE"]]
    except Exception as error:  # what the readers raise is many things
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StructureError(
            f"{path} with {partner} are not Amber files that OpenMM can read ({reason}); wanted a "
            "prmtop of Amber 7 or later, and its coordinates"
        ) from error
    topology = prmtop.topology
    if vectors is None and topology.getPeriodicBoxVectors() is not None:
        vectors = topology.getPeriodicBoxVectors()
    box = None if vectors is None else np.array(vectors.value_in_unit(unit.nanometer), dtype=float)
    total = sum(charges) / _CHARGE_UNIT
    return paired(path, partner, topology, positions, box, total)
