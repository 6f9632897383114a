"""A library of small molecules of H, C, N and O: what students learn from at large."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

TRAIN, VALIDATION, TEST = "train", "validation", "test"

_ROTOR = "[!$(*#*)&!D1]-!@[!$(*#*)&!D1]"
"""Single bonds outside rings between atoms with other neighbours, hydrogens counted."""

_ACID = "[OX1]=C[OX2]-[H]"


@dataclass(frozen=True)
class Entry:
    """A molecule of the library.

    Attributes
    ----------
    family : what chemists would call it; the sampler does not look at it
    role : "train"; "validation", held out whole to watch a training; "test", held out whole
    """

    smiles: str
    family: str
    role: str


@dataclass(frozen=True, eq=False)
class Embedded:
    """Conformers of one molecule, by RDKit.

    Attributes
    ----------
    name : its SMILES
    species : shape (n_atoms,), atomic numbers
    masses : shape (n_atoms,), dalton
    bonds : shape (n_bonds, 2), atom indices, first < second
    lengths : shape (n_bonds,), in the force field's minimum, angstrom
    rotors : shape (n_rotors, 2), bonds that turn
    rings : atoms of each aromatic ring
    positions : shape (n_conformers, n_atoms, 3), angstrom
    """

    name: str
    species: NDArray[np.int64]
    masses: Float
    bonds: NDArray[np.int64]
    lengths: Float
    rotors: NDArray[np.int64]
    rings: tuple[tuple[int, ...], ...]
    positions: Float

    @property
    def n_atoms(self) -> int:
        return len(self.species)


@cache
def library() -> tuple[Entry, ...]:
    """All molecules, by family and size."""
    text = files("omm_mlff.distill").joinpath("library.csv").read_text(encoding="utf-8")
    return tuple(Entry(**row) for row in csv.DictReader(text.splitlines()))


def embed(smiles: str, n_conformers: int, seed: int) -> Embedded:
    """Conformers in MMFF94's minima; of an acid, every second with its O-H turned away from C=O.

    Parameters
    ----------
    seed : of the embedding

    Raises
    ------
    ValueError : RDKit finds no geometry
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers, rdMolTransforms

    molecule: Any = Chem.AddHs(Chem.MolFromSmiles(smiles))
    with rdBase.BlockLogs():
        found = list(
            rdDistGeom.EmbedMultipleConfs(molecule, n_conformers, randomSeed=seed % (2**31))
        )
        if not found:
            found = list(
                rdDistGeom.EmbedMultipleConfs(
                    molecule, n_conformers, randomSeed=seed % (2**31), useRandomCoords=True
                )
            )
        if not found:
            raise ValueError(f"rdkit could not embed {smiles}")
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
            rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(molecule, maxIters=200)
        else:
            rdForceFieldHelpers.UFFOptimizeMoleculeConfs(molecule, maxIters=200)
    pairs = sorted(
        sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())) for bond in molecule.GetBonds()
    )
    bonds = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    rest = np.array(molecule.GetConformer(found[0]).GetPositions())
    lengths = np.linalg.norm(rest[bonds[:, 0]] - rest[bonds[:, 1]], axis=1)
    acids = molecule.GetSubstructMatches(Chem.MolFromSmarts(_ACID))
    for count, conformer in enumerate(found):
        for acid in acids:
            angle = 180.0 if count % 2 else 0.0
            a, b, c, d = acid
            rdMolTransforms.SetDihedralDeg(molecule.GetConformer(conformer), a, b, c, d, angle)
    rotors = molecule.GetSubstructMatches(Chem.MolFromSmarts(_ROTOR))
    aromatic = [
        tuple(int(i) for i in ring)
        for ring in molecule.GetRingInfo().AtomRings()
        if all(molecule.GetAtomWithIdx(i).GetIsAromatic() for i in ring)
    ]
    positions = np.stack(
        [
            np.array(molecule.GetConformer(found[k % len(found)]).GetPositions())
            for k in range(n_conformers)
        ]
    )
    return Embedded(
        smiles,
        np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()], dtype=np.int64),
        np.array([atom.GetMass() for atom in molecule.GetAtoms()]),
        bonds,
        lengths,
        np.array(rotors, dtype=np.int64).reshape(-1, 2),
        tuple(aromatic),
        positions,
    )
