"""The first half of a new system's folder: its structure and its card, from a SMILES.

Labels, landmarks and an ensemble are made for what is there (`reference`, `landmarks`,
`ensemble`); a force field's parameters by `scripts/make_native.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omm_mlff.data import data_folder
from omm_mlff.distill.dynamics import minimise
from omm_mlff.errors import InputError, OutputExistsError
from omm_mlff.systems.shipped import CARD, STRUCTURE

if TYPE_CHECKING:
    from omm_mlff.teachers.ani import Teacher

N_STARTS = 40
SEED = 20261123

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_SOURCE = (
    "RDKit ETKDGv3 and MMFF94 from the SMILES, then the lowest of the minima found on {method}"
)


def make_structure(
    name: str, smiles: str, teacher: Teacher, *, title: str = "", notes: str = ""
) -> Path:
    """Make the folder of a new system with `structure.pdb` and `system.toml`.

    The structure is the lowest of the minima on the teacher that `N_STARTS` embedded conformers
    lead to. The same SMILES gives the same files on the same machine.

    Parameters
    ----------
    name : of the folder: small letters and digits, with hyphens between words
    smiles : of one neutral molecule with a closed shell
    title : for a person; the name with a capital letter by default

    Returns
    -------
    the folder, beside those of the other systems

    Raises
    ------
    InputError : a name or SMILES that cannot be used, with the reason
    OutputExistsError : there is a system of that name
    UnsupportedSystemError : an element that the teacher does not know
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is no name of a system; wanted small letters, digits and hyphens, "
            "such as acetic-acid"
        )
    folder = data_folder("systems") / name
    if folder.exists():
        raise OutputExistsError(f"{folder} is there already; choose another name, or remove it")
    molecule = _embedded(smiles)
    species = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()], dtype=np.int64)
    positions = _lowest_minimum(molecule, species, teacher)
    block = _pdb_block(molecule, positions, name)
    card = _card(molecule, title or name.capitalize(), smiles, teacher.name, notes)
    folder.mkdir(parents=True)
    (folder / STRUCTURE).write_text(block, encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")
    return folder


def _embedded(smiles: str) -> Any:
    """The molecule with its hydrogens and conformers, each at a minimum of MMFF94."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import Descriptors, rdDistGeom, rdForceFieldHelpers

    with rdBase.BlockLogs():
        found = Chem.MolFromSmiles(smiles)
    if found is None:
        raise InputError(f"{smiles!r} is no SMILES that RDKit reads")
    wanted = "wanted one neutral molecule with a closed shell"
    if len(Chem.GetMolFrags(found)) > 1:
        raise InputError(f"{smiles!r} is several molecules; {wanted}")
    if Chem.GetFormalCharge(found) != 0:
        raise InputError(f"{smiles!r} has the charge {Chem.GetFormalCharge(found):+d}; {wanted}")
    if Descriptors.NumRadicalElectrons(found):  # type: ignore[no-untyped-call]
        raise InputError(f"{smiles!r} has unpaired electrons; {wanted}")
    molecule = Chem.AddHs(found)
    if not rdDistGeom.EmbedMultipleConfs(molecule, N_STARTS, randomSeed=SEED):
        raise InputError(
            f"RDKit finds no structure of {smiles!r}; is there one in three dimensions?"
        )
    rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(molecule)
    return molecule


def _lowest_minimum(
    molecule: Any, species: NDArray[np.int64], teacher: Teacher
) -> NDArray[np.float64]:
    """Shape (n_atoms, 3), angstrom."""

    def evaluate(positions: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        energies, forces, _ = teacher.label(species, positions)
        return energies, forces

    starts = [np.array(conformer.GetPositions()) for conformer in molecule.GetConformers()]
    minima = [minimise(evaluate, start) for start in starts]
    energies, _ = evaluate(np.stack(minima))
    return minima[int(np.argmin(energies))]


def _pdb_block(molecule: Any, positions: NDArray[np.float64], name: str) -> str:
    """The structure as a PDB file: one residue, atoms numbered by element, their bonds."""
    from rdkit import Chem

    numbers: dict[str, int] = {}
    residue = re.sub("[^A-Z]", "", name.upper())[:3].ljust(3, "X")
    for atom in molecule.GetAtoms():
        symbol = atom.GetSymbol()
        numbers[symbol] = numbers.get(symbol, 0) + 1
        label = f" {symbol}{numbers[symbol]}".ljust(4)[:4]
        atom.SetMonomerInfo(
            Chem.AtomPDBResidueInfo(
                label, residueName=residue, residueNumber=1, chainId="A", isHeteroAtom=True
            )
        )
    placed = Chem.Mol(molecule, confId=molecule.GetConformer().GetId())
    conformer = placed.GetConformer()
    for i, position in enumerate(positions):
        conformer.SetAtomPosition(i, [float(x) for x in position])
    return str(Chem.MolToPDBBlock(placed, flavor=2 | 8))


def _card(molecule: Any, title: str, smiles: str, method: str, notes: str) -> str:
    from rdkit.Chem import rdMolDescriptors

    pairs = sorted(
        sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())) for bond in molecule.GetBonds()
    )
    listed = " ".join(f"[{i}, {j}]," for i, j in pairs)
    formula = rdMolDescriptors.CalcMolFormula(molecule)
    rows = (
        f"title = {json.dumps(title, ensure_ascii=False)}",
        f'formula = "{formula}"',
        "charge = 0",
        f"smiles = {json.dumps(smiles)}",
        f'source = "{_SOURCE.format(method=method)}"',
        "trained_on = false",
        f"notes = {json.dumps(notes, ensure_ascii=False)}",
        "bonds = [",
        f"    {listed}",
        "]",
    )
    return "\n".join(rows) + "\n"
