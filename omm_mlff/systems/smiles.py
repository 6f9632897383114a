"""A molecule from its SMILES string, built in three dimensions by RDKit."""

from __future__ import annotations

from typing import Any

from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from omm_mlff.errors import StructureError
from omm_mlff.systems.molecules import bonds_in, positions_of, topology_of
from omm_mlff.systems.structure import Structure

PREFIX = "smiles:"
SEED = 20261127
MAX_HEAVY_ATOMS = 500
"""Embedding takes time with the square and more."""


def from_smiles(spec: str) -> Structure:
    """A molecule with all hydrogens, embedded by ETKDG and relaxed with MMFF94 or UFF.

    The same string gives the same structure. Charges, radicals and isotopes are the string's.

    Parameters
    ----------
    spec : such as "smiles:CCO"

    Raises
    ------
    StructureError : not a SMILES string, several molecules, or one that cannot be embedded
    """
    text = spec.removeprefix(PREFIX).strip()
    parameters: Any = Chem.SmilesParserParams()
    parameters.removeHs = False
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(text, parameters) if text else None
    if molecule is None or molecule.GetNumAtoms() == 0:
        raise StructureError(
            f"{spec!r}: RDKit reads no molecule from it; wanted a SMILES string, such as smiles:CCO"
        )
    if molecule.GetNumHeavyAtoms() > MAX_HEAVY_ATOMS:
        raise StructureError(
            f"{spec[:60]!r}: {molecule.GetNumHeavyAtoms()} heavy atoms; wanted at most "
            f"{MAX_HEAVY_ATOMS}: give a structure file"
        )
    if len(Chem.GetMolFrags(molecule)) > 1:
        raise StructureError(
            f"{spec!r} is {len(Chem.GetMolFrags(molecule))} molecules, and says nothing of where "
            "they are; wanted one: give a structure file"
        )
    molecule = Chem.AddHs(molecule)
    topology = topology_of(spec, molecule)  # before RDKit is asked about dummies
    embedding: Any = rdDistGeom.ETKDGv3()
    embedding.randomSeed = SEED
    with rdBase.BlockLogs():
        failed = rdDistGeom.EmbedMolecule(molecule, embedding) != 0
        if not failed and molecule.GetNumAtoms() > 1:
            if rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
                rdForceFieldHelpers.MMFFOptimizeMolecule(molecule, maxIters=2000)
            elif rdForceFieldHelpers.UFFHasAllMoleculeParams(molecule):
                rdForceFieldHelpers.UFFOptimizeMolecule(molecule, maxIters=2000)
    if failed:
        raise StructureError(
            f"{spec!r}: RDKit finds no structure in three dimensions; give a structure file"
        )
    unpaired = sum(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms())
    return Structure(
        name=spec,
        source=f"RDKit, from {text}",
        topology=topology,
        positions=positions_of(molecule),
        bonds=bonds_in(molecule),
        charge=Chem.GetFormalCharge(molecule),
        spin_multiplicity=unpaired + 1 if unpaired else None,
        masses={a.GetIdx(): a.GetMass() for a in molecule.GetAtoms() if a.GetIsotope()},
        settled=True,
    )
