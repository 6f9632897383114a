"""One frame of a trajectory as the start, by mdtraj's readers."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omm_mlff.errors import StructureError
from omm_mlff.systems.build import bonds_of
from omm_mlff.systems.frames import the_frame
from omm_mlff.systems.structure import Structure

WITH_TOPOLOGY = (".h5",)
"""Of MDTraj's own layout, in which runs are recorded here."""

COORDINATES = (".dcd", ".xtc", ".trr", ".nc", ".netcdf", ".h5", ".binpos", ".mdcrd")


def read_whole(path: Path, frame: int | None) -> Structure:
    """A frame of a file that has its topology in it.

    Raises
    ------
    StructureError : unreadable, or several frames and no `frame`
    """
    loaded = _load(path, frame, None)
    topology = loaded.topology.to_openmm()
    return Structure(
        name=path.stem,
        source=str(path),
        topology=topology,
        positions=np.asarray(loaded.xyz[0], dtype=np.float64),
        bonds=bonds_of(topology),
        box_vectors=_box(loaded),
    )


def at_frame(structure: Structure, path: Path, frame: int | None) -> Structure:
    """A structure with positions and box of a frame; its charge, spin and bonds stay.

    Positions are as precise as the file has them, single precision at most.

    Raises
    ------
    StructureError : unreadable, of another number of atoms, or several frames and no `frame`
    """
    loaded = _load(path, frame, structure)
    return dataclasses.replace(
        structure,
        source=f"{structure.source}+{path}",
        positions=np.asarray(loaded.xyz[0], dtype=np.float64),
        box_vectors=_box(loaded),
    )


def _load(path: Path, frame: int | None, structure: Structure | None) -> Any:
    import mdtraj

    top = None if structure is None else mdtraj.Topology.from_openmm(structure.topology)
    keywords = {} if path.suffix.lower() in WITH_TOPOLOGY else {"top": top}
    if not path.is_file():
        raise StructureError(f"no such file: {path} (from {Path.cwd()}); check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with mdtraj.open(str(path)) as file:
                n_frames = len(file)
            chosen = the_frame(path, n_frames, frame)
            loaded = mdtraj.load_frame(str(path), chosen, **keywords)
    except StructureError:
        raise
    except Exception as error:  # what the readers raise is many things
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StructureError(
            f"{path} is not a trajectory of these atoms that mdtraj can read ({reason}); give the "
            "topology that it was written with"
        ) from error
    n_atoms = loaded.n_atoms if structure is None else structure.topology.getNumAtoms()
    if loaded.xyz.shape[1] != n_atoms:
        raise StructureError(
            f"{path} has {loaded.xyz.shape[1]} atoms, {structure.source if structure else path} "
            f"has {n_atoms}; wanted the same system"
        )
    return loaded


def _box(loaded: Any) -> NDArray[np.float64] | None:
    vectors = loaded.unitcell_vectors
    return None if vectors is None else np.asarray(vectors[0], dtype=np.float64)
