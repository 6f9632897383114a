"""GRO files of GROMACS, by OpenMM's reader; elements come from the names of the atoms."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
from openmm import unit
from openmm.app import Element, GromacsGroFile, Topology

from omm_mlff.errors import StructureError
from omm_mlff.systems.atom_names import element_symbol
from omm_mlff.systems.build import bonds_of
from omm_mlff.systems.frames import the_frame
from omm_mlff.systems.structure import BIOPOLYMER, Structure
from omm_mlff.systems.text import read_text, require_numbers, require_size

SUFFIXES = (".gro",)

_NUMBER = r"[+-]?[0-9]*\.?[0-9]+\.?"


def read(path: Path, frame: int | None = None) -> Structure:
    """What a GRO file says.

    Raises
    ------
    StructureError : unreadable, several frames and no `frame`, or a name that could be of two
        elements
    """
    lines = read_text(path).splitlines()
    count = lines[1].strip() if len(lines) > 1 else ""
    if not re.fullmatch(r"[0-9]{1,9}", count) or int(count) < 1:
        raise StructureError(
            f"{path} is not a GRO file: wanted the number of atoms in its second line, got "
            f"{count[:40]!r}"
        )
    n_atoms = int(count)
    require_size(path, n_atoms, len(lines) - 3)
    require_numbers(path, [(line[20:], line) for line in lines[2 : 2 + n_atoms]])
    try:
        gro, no_box = _by_openmm(lines)
        chosen = the_frame(path, gro.getNumFrames(), frame)
        positions = np.array(
            gro.getPositions(asNumpy=True, frame=chosen).value_in_unit(unit.nanometer)
        )
        vectors = gro.getPeriodicBoxVectors(chosen)
    except StructureError:
        raise
    except Exception as error:  # OpenMM raises plain Exception here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StructureError(
            f"{path} is not a GRO file that OpenMM can read ({reason}); check its columns, or "
            "export it anew"
        ) from error
    box = np.array(vectors.value_in_unit(unit.nanometer), dtype=np.float64)
    topology = _topology(path, gro)
    return Structure(
        name=path.stem,
        source=str(path),
        topology=topology,
        positions=positions.reshape(-1, 3),
        bonds=bonds_of(topology),
        box_vectors=None if no_box[chosen] else box,
    )


def _by_openmm(lines: list[str]) -> tuple[GromacsGroFile, list[bool]]:
    """OpenMM's reading, and for each frame whether it has no box.

    GROMACS writes a box always, and three zeros say that there is none; OpenMM divides by them.
    """
    no_box = []
    for number, line in enumerate(lines):
        fields = line.split()
        if len(fields) in (3, 9) and all(re.fullmatch(_NUMBER, text) for text in fields):
            no_box.append(not any(float(text) for text in fields))
            if no_box[-1]:
                lines = [*lines[:number], "1.0 1.0 1.0", *lines[number + 1 :]]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "structure.gro"  # OpenMM reads from a path alone
        copy.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return GromacsGroFile(str(copy)), no_box


def _topology(path: Path, gro: GromacsGroFile) -> Topology:
    topology = Topology()
    chain = topology.addChain("A")
    residue, last = None, None
    for name, res_name, res_id in zip(gro.atomNames, gro.residueNames, gro.residueIds, strict=True):
        if (res_name, res_id) != last:
            residue, last = topology.addResidue(res_name, chain, str(res_id)), (res_name, res_id)
        symbol, question = element_symbol(name, res_name, res_name.upper() in BIOPOLYMER)
        if symbol is None:
            raise StructureError(
                f"{path}: a GRO file has no column for elements, and {question} (residue "
                f"{res_name}); give a PDB or mmCIF file with elements, or a topology with it"
            )
        topology.addAtom(name, Element.getBySymbol(symbol), residue)
    topology.createStandardBonds()
    return topology
