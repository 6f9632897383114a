"""The molecules that students are trained on, built from SMILES."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omm_mlff.errors import UnknownNameError

Float = NDArray[np.float64]

# Neither benzene, which is left to `broad`, nor aspirin, which no student ever sees.
SINGLE: dict[str, str] = {
    "water": "O",
    "methane": "C",
    "ammonia": "N",
    "methanol": "CO",
    "ethanol": "CCO",
    "ethane": "CC",
    "formaldehyde": "C=O",
    "formic-acid": "C(=O)O",
    "formamide": "C(=O)N",
    "acetamide": "CC(=O)N",
    "n-methylacetamide": "CC(=O)NC",
    "glycine": "NCC(=O)O",
    "alanine": "C[C@H](N)C(=O)O",
    "alanine-dipeptide": "CC(=O)N[C@@H](C)C(=O)NC",
    "hydrogen": "[H][H]",
}

CLUSTERS: dict[str, tuple[str, ...]] = {
    "water-dimer": ("water", "water"),
    "water-trimer": ("water",) * 3,
    "water-pentamer": ("water",) * 5,
    "water-methane": ("water", "methane"),
    "water-formaldehyde": ("water", "formaldehyde"),
    "water-ammonia": ("water", "ammonia"),
    "water-hydrogen": ("water", "hydrogen"),
    "water-formamide": ("water", "formamide"),
    "water-methanol": ("water", "methanol"),
    "water-formic-acid": ("water", "formic-acid"),
    "ammonia-dimer": ("ammonia", "ammonia"),
    "ammonia-methane": ("ammonia", "methane"),
    "ammonia-formaldehyde": ("ammonia", "formaldehyde"),
    "methane-dimer": ("methane", "methane"),
    "methane-formaldehyde": ("methane", "formaldehyde"),
    "hydrogen-dimer": ("hydrogen", "hydrogen"),
    "hydrogen-methane": ("hydrogen", "methane"),
    "hydrogen-ammonia": ("hydrogen", "ammonia"),
    "formaldehyde-dimer": ("formaldehyde", "formaldehyde"),
    "formamide-dimer": ("formamide", "formamide"),
}


@dataclass(frozen=True, eq=False)
class Molecule:
    """One molecule or cluster as it is embedded, before any minimisation.

    Attributes
    ----------
    species : shape (n_atoms,), atomic numbers
    positions : shape (n_atoms, 3), angstrom
    masses : shape (n_atoms,), dalton
    bonds : shape (n_bonds, 2), atom indices, first < second
    fragment : shape (n_atoms,), which molecule of a cluster each atom belongs to
    """

    name: str
    species: NDArray[np.int64]
    positions: Float
    masses: Float
    bonds: NDArray[np.int64]
    fragment: NDArray[np.int64]

    @property
    def n_atoms(self) -> int:
        return len(self.species)

    @property
    def n_fragments(self) -> int:
        return int(self.fragment.max()) + 1


def molecule_names() -> list[str]:
    """Names of all training molecules, single ones first."""
    return [*SINGLE, *CLUSTERS]


def build_molecule(name: str, seed: int) -> Molecule:
    """A training molecule with one geometry.

    Parameters
    ----------
    name : one of `molecule_names()`
    seed : of the conformer's embedding, or of a cluster's orientations

    Raises
    ------
    UnknownNameError : not a training molecule
    """
    if name in SINGLE:
        return _single(name, seed)
    if name in CLUSTERS:
        return _cluster(name, seed)
    raise UnknownNameError("training molecule", name, molecule_names())


def _single(name: str, seed: int) -> Molecule:
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom

    parser = Chem.SmilesParserParams()
    parser.removeHs = False  # type: ignore[assignment]  # else H2 loses both of its atoms
    molecule = Chem.AddHs(Chem.MolFromSmiles(SINGLE[name], parser))
    status = rdDistGeom.EmbedMolecule(molecule, randomSeed=seed % (2**31))
    if status != 0:
        raise ValueError(f"rdkit could not embed {name}")
    species = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()], dtype=np.int64)
    pairs = [sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())) for bond in molecule.GetBonds()]
    return Molecule(
        name=name,
        species=species,
        positions=np.array(molecule.GetConformer().GetPositions(), dtype=np.float64),
        masses=np.array([atom.GetMass() for atom in molecule.GetAtoms()]),
        bonds=np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2),
        fragment=np.zeros(len(species), dtype=np.int64),
    )


def _cluster(name: str, seed: int) -> Molecule:
    rng = np.random.default_rng(seed)
    parts = [_single(part, seed + index) for index, part in enumerate(CLUSTERS[name])]
    placed: list[Float] = []
    for part in parts:
        while True:
            candidate = (part.positions - part.positions.mean(0)) @ random_rotation(rng).T
            if placed:
                candidate = candidate + 4.5 * rng.standard_normal(3) / np.sqrt(3)
            others = np.concatenate(placed) if placed else np.empty((0, 3))
            gaps = np.linalg.norm(candidate[:, None] - others[None], axis=-1)
            if gaps.size == 0 or 2.0 < gaps.min() < 3.5:
                break
        placed.append(candidate)
    starts = np.cumsum([0, *(part.n_atoms for part in parts)])
    return Molecule(
        name=name,
        species=np.concatenate([part.species for part in parts]),
        positions=np.concatenate(placed),
        masses=np.concatenate([part.masses for part in parts]),
        bonds=np.concatenate(
            [part.bonds + start for part, start in zip(parts, starts[:-1], strict=True)]
        ),
        fragment=np.concatenate(
            [np.full(part.n_atoms, index, dtype=np.int64) for index, part in enumerate(parts)]
        ),
    )


def random_rotation(rng: np.random.Generator) -> Float:
    """A rotation matrix of (3, 3), uniform over all orientations."""
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    if np.linalg.det(q) < 0.0:
        q[:, 0] = -q[:, 0]
    return np.asarray(q, dtype=np.float64)
