"""mmCIF (PDBx) files, by OpenMM's reader."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from openmm import unit
from openmm.app import PDBxFile
from openmm.app.internal.pdbx.reader.PdbxReader import PdbxReader

from omm_mlff.errors import StructureError
from omm_mlff.systems.build import bonds_of
from omm_mlff.systems.frames import the_frame
from omm_mlff.systems.structure import Structure
from omm_mlff.systems.text import read_text, require_size

SUFFIXES = (".cif", ".mmcif", ".pdbx")


def read(path: Path, frame: int | None = None) -> Structure:
    """What an mmCIF file says; formal charges where it states them.

    Raises
    ------
    StructureError : unreadable, several models and no `frame`, or alternate locations
    """
    text = read_text(path)
    try:
        blocks: list[Any] = []
        PdbxReader(io.StringIO(text)).read(blocks)
        table = blocks[0].getObj("atom_site") if blocks else None
        if table is None:
            raise StructureError(
                f"{path} holds no atom_site table; wanted an mmCIF file of coordinates (the CIF "
                "of a small-molecule crystal has another form: convert it)"
            )
        rows = table.getRowList()
        require_size(path, len(rows))
        _require_one_place(path, table, rows)
        pdbx = PDBxFile(io.StringIO(text))
        chosen = the_frame(path, pdbx.getNumFrames(), frame, "models")
        positions = np.array(
            pdbx.getPositions(asNumpy=True, frame=chosen).value_in_unit(unit.nanometer)
        )
    except StructureError:
        raise
    except Exception as error:  # what its parser raises is many things
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StructureError(
            f"{path} is not an mmCIF file that OpenMM can read ({reason}); export it anew"
        ) from error
    topology = pdbx.topology
    if len(positions) != topology.getNumAtoms():
        raise StructureError(
            f"{path}: frame {chosen} has {len(positions)} atoms, the first one "
            f"{topology.getNumAtoms()}; wanted the same in all"
        )
    vectors = topology.getPeriodicBoxVectors()
    box = None if vectors is None else np.array(vectors.value_in_unit(unit.nanometer), dtype=float)
    if box is not None and 0.0 < np.diag(box).max() <= 0.1 + 1e-9:
        box = None  # "1 x 1 x 1 angstrom" says that there is no crystal
    return Structure(
        name=path.stem,
        source=str(path),
        topology=topology,
        positions=positions,
        bonds=bonds_of(topology),
        box_vectors=box,
        charge=_formal_charge(table, rows),
    )


def _column(table: Any, rows: list[list[str]], name: str) -> list[str]:
    index = table.getAttributeIndex(name)
    return [] if index < 0 else [row[index] for row in rows]


def _require_one_place(path: Path, table: Any, rows: list[list[str]]) -> None:
    places = sorted(set(_column(table, rows, "label_alt_id")) - {".", "?", ""})
    if len(places) > 1:
        raise StructureError(
            f"{path} has alternate locations ({', '.join(places)}); wanted one place for every "
            "atom: keep one location, for instance with pdbfixer"
        )


def _formal_charge(table: Any, rows: list[list[str]]) -> int | None:
    """The sum over the first model; None where none is stated but zeros."""
    models = _column(table, rows, "pdbx_PDB_model_num") or ["1"] * len(rows)
    stated = _column(table, rows, "pdbx_formal_charge")
    charges = [
        int(text)
        for text, model in zip(stated, models, strict=bool(stated))
        if model == models[0] and text.lstrip("+-").isdigit()
    ]
    return sum(charges) if any(charges) else None
