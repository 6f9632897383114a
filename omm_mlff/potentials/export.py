"""Writes a student as a TorchScript file for openmm-torch users who do not have this package."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from openmm import app

from omm_mlff import __version__
from omm_mlff.errors import InputError, OutputExistsError, StorageError, UnsupportedSystemError
from omm_mlff.forces.scripting import read_script, script
from omm_mlff.potentials.student import StudentPotential
from omm_mlff.potentials.torchscript import SUFFIXES
from omm_mlff.potentials.torchscript_file import DESCRIPTION_FILE, DESCRIPTION_FORMAT
from omm_mlff.schema import MolecularSystem, PotentialCard
from omm_mlff.students.checkpoint import load_card
from omm_mlff.students.portable import portable

USAGE_FILE = "usage.py"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes
    ----------
    elements : symbols of the atoms, in the order of the positions
    card : of the student
    pdb : the system as it was given, beside the file
    energy_kjmol : what the file gives for the system's own positions
    usage : a script that runs the two with openmm-torch, from the folder where it was made
    """

    path: Path
    pdb: Path
    elements: tuple[str, ...]
    card: PotentialCard
    energy_kjmol: float
    usage: str


def export_student(
    model: str,
    system: MolecularSystem,
    path: str | Path,
    *,
    forces: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Write a student for one molecule or box; what is written needs torch and nothing else.

    Parameters
    ----------
    model : a shipped name such as "tiny", or a checkpoint's folder
    system : its atoms, in their order; whether it is periodic decides what the file takes
    path : of the new file; the system is written beside it, with the ending .pdb
    forces : it returns energy and forces, else the energy alone
    overwrite : replace files that are there

    Raises
    ------
    UnsupportedSystemError : the student cannot serve it, or the box is too small
    OutputExistsError : the file is there
    InputError : a suffix by which such a file is not known, or a folder that is not there
    StorageError : it cannot be written
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"wanted a file named *{', *'.join(SUFFIXES)}, got {path.name}")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent}; make it first")
    pdb = path.with_suffix(".pdb")
    for there in (path, pdb):
        if there.exists() and not overwrite:
            raise OutputExistsError(f"{there} is there already; take another name, or --overwrite")
    potential = StudentPotential(model)
    reason = potential.unsupported(system)
    if reason:
        raise UnsupportedSystemError(f"{model} cannot serve {system.name}: {reason}")
    species = torch.from_numpy(system.species)
    module = portable(potential.student, species, periodic=system.periodic, forces=forces)
    arguments = [torch.from_numpy(system.positions)]
    if system.box_vectors is not None:
        arguments.append(torch.from_numpy(system.box_vectors))
    try:
        given = module(*arguments)
    except ValueError as error:
        raise UnsupportedSystemError(f"{system.name} cannot be exported: {error}") from None
    energy = float(given[0] if forces else given)
    elements = tuple(atom.element.symbol for atom in system.topology.atoms())
    kind = {"periodic": system.periodic, "forces": forces}
    usage = _usage(Path(path.name), Path(pdb.name), **kind)
    description = {
        "format": DESCRIPTION_FORMAT,
        "written_by": f"omm-mlff {__version__}",
        "model": load_card(model),
        "system": system.name,
        "periodic": system.periodic,
        "elements": elements,
        "species": system.species.tolist(),
        "units": {"positions": "nm", "box": "nm", "energy": "kJ/mol", "forces": "kJ/mol/nm"},
        "returns": ["energy", "forces"] if forces else ["energy"],
        "cutoff_nm": potential.card.cutoff_nm,
        "reference_energy_kjmol": potential.reference_energy(system),
    }
    _write_pdb(system, pdb)
    _write(
        path, script(module.eval()), {DESCRIPTION_FILE: json.dumps(description), USAGE_FILE: usage}
    )
    here = _usage(path, pdb, **kind)
    return Exported(path, pdb, elements, potential.card, energy, here)


def _write_pdb(system: MolecularSystem, path: Path) -> None:
    """Read back before it gets its name, by what will read it."""
    partial = path.with_name(path.name + ".partial")
    try:
        system.to_pdb(partial)
        found = [atom.element for atom in app.PDBFile(str(partial)).topology.atoms()]
        if found != [atom.element for atom in system.topology.atoms()]:
            raise UnsupportedSystemError(
                f"{system.name} cannot be exported: a PDB file does not keep its atoms; rename "
                "those of one residue that begin with the same four letters"
            )
        os.replace(partial, path)
    except OSError as error:
        raise StorageError(f"cannot write {path} ({error}); choose another place") from None
    finally:
        partial.unlink(missing_ok=True)


def _write(path: Path, module: torch.jit.ScriptModule, extra_files: dict[str, str]) -> None:
    """Read back before it gets its name: a file that exists is whole."""
    partial = path.with_name(path.name + ".partial")
    try:
        torch.jit.save(module, str(partial), _extra_files=extra_files)
        read_script(partial.read_bytes())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path} ({error}); choose another place") from None


def _usage(path: Path, pdb: Path, *, periodic: bool, forces: bool) -> str:
    """Ten lines for somebody who has openmm, torch and openmm-torch."""
    lines = [
        "import torch, openmm, openmmtorch  # torch first",
        "from openmm import app",
        f"pdb = app.PDBFile({json.dumps(pdb.as_posix())})  # the same atoms in the same order",
        "system = openmm.System()",
        "for atom in pdb.topology.atoms(): system.addParticle(atom.element.mass)",
    ]
    if periodic:
        lines += [
            "system.setDefaultPeriodicBoxVectors(*pdb.topology.getPeriodicBoxVectors())",
        ]
    lines += [f"force = openmmtorch.TorchForce({json.dumps(path.as_posix())})"]
    if forces:
        lines += ["force.setOutputsForces(True)"]
    if periodic:
        lines += ["force.setUsesPeriodicBoundaryConditions(True)"]
    lines += [
        "system.addForce(force)",
        "simulation = app.Simulation(pdb.topology, system, openmm.VerletIntegrator(0.0005))",
        "simulation.context.setPositions(pdb.positions)",
        "print(simulation.context.getState(energy=True).getPotentialEnergy())",
    ]
    return "\n".join(lines) + "\n"
