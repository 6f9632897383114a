"""Reads a PDB, SDF or XYZ file with OpenMM's or RDKit's reader; refuses what is not whole."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openmm import unit
from openmm.app import Element, PDBFile, Topology
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds

from omm_mlff.errors import StructureError
from omm_mlff.schema import MolecularSystem
from omm_mlff.systems.build import (
    atom_labels,
    bonds_of,
    build_system,
    require_distinct,
    require_finite,
)
from omm_mlff.systems.hydrogens import describe_missing, require_hydrogens
from omm_mlff.units import ANGSTROM_PER_NM, NM_PER_ANGSTROM

Float = NDArray[np.float64]
Bonds = NDArray[np.int64]

_NOT_FINITE = re.compile(r"(?<![\w.])[+-]?(nan|inf|infinity)(?![\w.])", re.IGNORECASE)
_ATOM_RECORDS = ("ATOM  ", "HETATM")

# Residues whose protonation, hence charge, is a matter of pH, then the ions about them.
# fmt: off
_BIOPOLYMER = frozenset((
    "ALA", "ARG", "ASH", "ASN", "ASP", "CYS", "CYX", "GLH", "GLN", "GLU", "GLY",
    "HID", "HIE", "HIP", "HIS", "HSD", "HSE", "HSP", "ILE", "LEU", "LYN", "LYS", "MET",
    "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL", "ACE", "NME", "NH2",
    "A", "C", "G", "U", "I", "DA", "DC", "DG", "DT", "DI",
    "LI", "NA", "K", "RB", "CS", "MG", "CA", "ZN", "F", "CL", "BR", "NA+", "K+", "CL-",
))
# fmt: on


def read_structure(path: Path) -> MolecularSystem:
    """The system in a structure file, with every bond.

    A file holds one structure: several models, molecules or frames, or alternate locations, are
    refused, because a choice made in silence is a wrong answer. The total charge is that of the
    file's formal charges (SDF, PDB), else zero, but for residues of biopolymers, whose charge
    follows from their hydrogens. Hydrogens are never added.

    Parameters
    ----------
    path : ends in .pdb, .sdf or .xyz

    Raises
    ------
    StructureError : anything that keeps the file from being one whole structure; the message says
        what was wanted, what came and what to do
    """
    read = {".pdb": _from_pdb, ".sdf": _from_sdf, ".xyz": _from_xyz}[path.suffix.lower()]
    return read(path)


def read_pdb(path: Path) -> tuple[Topology, Float, Float | None]:
    """Topology, positions (n_atoms, 3) nm, box vectors (3, 3) nm or None, as OpenMM reads them.

    Raises
    ------
    StructureError : unreadable, several models, alternate locations, or atoms that share a name
    """
    text = _text(path)
    lines = text.splitlines()
    records = [line for line in lines if line.startswith(_ATOM_RECORDS)]
    if not records:
        raise StructureError(f"{path} holds no ATOM or HETATM record; is it a PDB file?")
    n_models = sum(line.startswith("MODEL ") for line in lines)
    if n_models > 1:
        raise StructureError(
            f"{path} holds {n_models} models; wanted one structure: keep one model in the file"
        )
    _require_numbers(path, [(line[30:54], line) for line in records])
    places = sorted({line[16] for line in records if len(line) > 16} - {" "})
    if len(places) > 1:
        raise StructureError(
            f"{path} has alternate locations ({', '.join(places)}); wanted one place for every "
            "atom: keep one location, for instance with pdbfixer"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of duplicate atoms, which are an error below
            pdb = PDBFile(io.StringIO(text))
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise StructureError(
            f"{path} is not a PDB file that OpenMM can read ({_first_line(error)}); "
            "check its columns, or export it anew"
        ) from error
    topology = pdb.topology
    if topology.getNumAtoms() != len(records):
        raise StructureError(
            f"{path} has {len(records)} atom records, but only {topology.getNumAtoms()} distinct "
            "atoms: two atoms of a residue share a name; give every atom of a residue its own"
        )
    positions = np.array(pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    vectors = topology.getPeriodicBoxVectors()
    box = None if vectors is None else np.array(vectors.value_in_unit(unit.nanometer), dtype=float)
    if box is not None and np.diag(box).max() <= 0.1 + 1e-9:
        # "1 x 1 x 1 angstrom" is the PDB's way to say that there is no crystal
        topology.setPeriodicBoxVectors(None)
        box = None
    return topology, positions, box


def _from_pdb(path: Path) -> MolecularSystem:
    topology, positions, box = read_pdb(path)
    labels = atom_labels(topology)
    source = str(path)
    for atom, label in zip(topology.atoms(), labels, strict=True):
        if atom.element is None:
            raise StructureError(
                f"{source}: {label} has no known element; write its symbol into columns 77-78"
            )
    species = np.array([atom.element.atomic_number for atom in topology.atoms()], dtype=np.int64)
    require_finite(source, labels, positions)
    require_distinct(source, labels, positions, box)
    bonds = _completed(bonds_of(topology), species, positions)
    stated = [atom.formalCharge for atom in topology.atoms()]
    known = [charge for charge in stated if charge is not None]
    charge = require_hydrogens(
        source,
        labels,
        species,
        positions,
        bonds,
        box_vectors=box,
        charge=sum(known) if any(known) else None,
        biopolymer=np.array(
            [atom.residue.name.upper() in _BIOPOLYMER for atom in topology.atoms()], dtype=bool
        ),
    )
    return build_system(
        name=path.stem,
        source=source,
        topology=topology,
        positions=positions,
        bonds=np.array(sorted(bonds), dtype=np.int64).reshape(-1, 2),
        charge=charge,
        box_vectors=box,
    )


def _from_sdf(path: Path) -> MolecularSystem:
    text = _text(path)
    atom_block = text.partition("M  END")[0].splitlines()[4:]
    _require_numbers(path, [(line, line) for line in atom_block])
    with rdBase.BlockLogs():
        supplier = Chem.SDMolSupplier()
        supplier.SetData(text, removeHs=False, sanitize=False)
        molecules = list(supplier) if len(supplier) else []
    if len(molecules) > 1:
        raise StructureError(
            f"{path} holds {len(molecules)} molecules; wanted one: keep one record in the file"
        )
    molecule = molecules[0] if molecules else None
    if molecule is None or molecule.GetNumAtoms() == 0 or molecule.GetNumConformers() == 0:
        raise StructureError(
            f"{path} is not an SDF file that RDKit can read; check its counts line and atom block, "
            "or export it anew"
        )
    topology = _topology(path, molecule)
    labels = atom_labels(topology)
    try:
        with rdBase.BlockLogs():
            Chem.SanitizeMol(molecule)
    except ValueError as error:
        raise StructureError(
            f"{path}: the bonds and charges are not those of a molecule "
            f"({_first_line(error)}); correct its bond orders and formal charges"
        ) from error
    missing = {
        atom.GetIdx(): atom.GetTotalNumHs() for atom in molecule.GetAtoms() if atom.GetTotalNumHs()
    }
    if missing:
        raise StructureError(describe_missing(str(path), labels, missing))
    positions = _positions(molecule)
    bonds = _bonds(molecule)
    _refuse_drawing(path, molecule, positions, bonds, labels)
    return build_system(
        name=path.stem,
        source=str(path),
        topology=topology,
        positions=positions,
        bonds=bonds,
        charge=Chem.GetFormalCharge(molecule),
    )


def _from_xyz(path: Path) -> MolecularSystem:
    text = _text(path)
    lines = text.splitlines()
    count = lines[0].strip()
    if not (count.isascii() and count.isdigit()) or int(count) < 1:
        raise StructureError(
            f"{path} is not an XYZ file: wanted the number of atoms in its first line, "
            f"got {count[:40]!r}"
        )
    if len(lines) > 1 and "lattice=" in lines[1].lower():
        raise StructureError(
            f"{path} is an extended XYZ file with a lattice, which is not read here; "
            "convert it to a PDB file with a CRYST1 record"
        )
    n_atoms = int(count)
    if any(line.strip() for line in lines[2 + n_atoms :]):
        raise StructureError(
            f"{path} goes on after its {n_atoms} atoms; wanted one structure: keep one frame"
        )
    rows = lines[2 : 2 + n_atoms]
    _require_numbers(path, [(line, line) for line in rows])
    for row in rows:
        symbol = (row.split() or [""])[0]
        if symbol not in _SYMBOLS:
            raise StructureError(
                f"{path}: {symbol!r} in line {row.strip()!r} is not the symbol of an element; "
                "write it as in C, H or Cl"
            )
    with rdBase.BlockLogs():
        # RDKit wants nothing after the last atom
        molecule = Chem.MolFromXYZBlock("\n".join([count, *lines[1:2], *rows]) + "\n")
    if molecule is None or molecule.GetNumAtoms() != n_atoms:
        raise StructureError(
            f"{path} is not an XYZ file that RDKit can read; wanted {n_atoms} lines of an element "
            f"with three coordinates in angstrom, got {len(rows)}: check them"
        )
    positions = _positions(molecule)
    labels = [f"{atom.GetSymbol()} (atom {atom.GetIdx() + 1})" for atom in molecule.GetAtoms()]
    source = str(path)
    require_finite(source, labels, positions)
    require_distinct(source, labels, positions, None)
    species = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()], dtype=np.int64)
    bonds = _completed(set(), species, positions)
    require_hydrogens(source, labels, species, positions, bonds)
    return build_system(
        name=path.stem,
        source=source,
        topology=_topology(path, molecule),
        positions=positions,
        bonds=np.array(sorted(bonds), dtype=np.int64).reshape(-1, 2),
    )


_SYMBOLS = frozenset(Chem.GetPeriodicTable().GetElementSymbol(number) for number in range(1, 119))


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise StructureError(
            f"no such file: {path} (from {Path.cwd()}); check the path, or name a shipped system"
        ) from error
    except UnicodeDecodeError as error:
        raise StructureError(f"{path} is not a text file; wanted PDB, SDF or XYZ") from error
    except OSError as error:
        raise StructureError(f"{path} cannot be read: {error.strerror}") from error
    if not text.strip():
        raise StructureError(f"{path} is empty; wanted a structure: export it anew")
    return text


def _require_numbers(path: Path, fields: list[tuple[str, str]]) -> None:
    """Refuse "nan" or "inf" where a reader would stumble over it with a worse message."""
    for columns, line in fields:
        if _NOT_FINITE.search(columns):
            raise StructureError(
                f"{path}: a coordinate is not finite in line {line.strip()!r}; "
                "wanted finite numbers: write the file anew"
            )


def _completed(
    bonds: set[tuple[int, int]], species: NDArray[np.int64], positions: Float
) -> set[tuple[int, int]]:
    """The file's bonds, or, where it leaves an atom bare that has a neighbour, geometry's too."""
    bare = np.setdiff1d(np.arange(len(species)), np.array(sorted(bonds), dtype=np.int64).ravel())
    if len(bare) == 0:
        return bonds
    molecule = Chem.RWMol()
    for number in species.tolist():
        molecule.AddAtom(Chem.Atom(number))
    conformer = Chem.Conformer(len(species))
    conformer.SetPositions(np.ascontiguousarray(positions * ANGSTROM_PER_NM))
    molecule.AddConformer(conformer)
    with rdBase.BlockLogs():
        rdDetermineBonds.DetermineConnectivity(molecule)
    perceived = {(min(i, j), max(i, j)) for i, j in _bonds(molecule).tolist()}
    lonely = set(bare.tolist())
    if any(i in lonely or j in lonely for i, j in perceived):
        return bonds | perceived
    return bonds


def _topology(path: Path, molecule: Any) -> Topology:
    """One chain, one residue; atoms named C1, C2, H1 in the order of the file."""
    topology = Topology()
    residue = topology.addResidue("UNL", topology.addChain("A"))
    counts: dict[str, int] = {}
    for atom in molecule.GetAtoms():
        symbol = atom.GetSymbol()
        if atom.GetAtomicNum() == 0:
            raise StructureError(
                f"{path}: atom {atom.GetIdx() + 1} ({symbol}) is not an element; "
                "remove dummy and query atoms"
            )
        counts[symbol] = counts.get(symbol, 0) + 1
        element = Element.getByAtomicNumber(atom.GetAtomicNum())
        topology.addAtom(f"{symbol}{counts[symbol]}", element, residue)
    return topology


def _positions(molecule: Any) -> Float:
    return np.array(molecule.GetConformer().GetPositions(), dtype=np.float64) * NM_PER_ANGSTROM


def _bonds(molecule: Any) -> Bonds:
    pairs = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds()]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _refuse_drawing(
    path: Path, molecule: Any, positions: Float, bonds: Bonds, labels: list[str]
) -> None:
    """A flat record is a flat molecule or a drawing: a drawing's bonds to H are too long."""
    if molecule.GetConformer().Is3D():
        return
    table = Chem.GetPeriodicTable()
    for i, j in bonds.tolist():
        length = float(np.linalg.norm(positions[i] - positions[j])) * ANGSTROM_PER_NM
        usual = sum(table.GetRcovalent(molecule.GetAtomWithIdx(k).GetAtomicNum()) for k in (i, j))
        if not 0.7 * usual < length < 1.3 * usual:
            raise StructureError(
                f"{path} is a flat drawing: its bond {labels[i]}-{labels[j]} is {length:.2f} "
                f"angstrom long (usual: {usual:.2f}); export three-dimensional coordinates"
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
