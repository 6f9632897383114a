"""What a file says becomes a system, if it is one whole structure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from openmm import Vec3, unit
from openmm.app import Element, Topology
from openmm.app.internal.unitcell import reducePeriodicBoxVectors
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds
from scipy.spatial import cKDTree

from omm_mlff.errors import StructureError
from omm_mlff.schema import MolecularSystem
from omm_mlff.systems.build import atom_labels, build_system, require_distinct, require_finite
from omm_mlff.systems.hydrogens import require_hydrogens
from omm_mlff.units import ANGSTROM_PER_BOHR, ANGSTROM_PER_NM

Float = NDArray[np.float64]
Bonds = set[tuple[int, int]]

_FAR = 1.4
"""Bonds are about 1.0 of the sum of their radii long; in bohr the number is 1.89 times that."""

HEAVIEST = 116
"""OpenMM has no element beyond livermorium."""

# Residues whose protonation, hence charge, is a matter of pH, then the ions about them.
# fmt: off
BIOPOLYMER = frozenset((
    "ALA", "ARG", "ASH", "ASN", "ASP", "CYS", "CYX", "GLH", "GLN", "GLU", "GLY",
    "HID", "HIE", "HIP", "HIS", "HSD", "HSE", "HSP", "ILE", "LEU", "LYN", "LYS", "MET",
    "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL", "ACE", "NME", "NH2",
    "A", "C", "G", "U", "I", "DA", "DC", "DG", "DT", "DI",
    "LI", "NA", "K", "RB", "CS", "MG", "CA", "ZN", "F", "CL", "BR", "NA+", "K+", "CL-",
))
# fmt: on


@dataclass(frozen=True, eq=False)
class Structure:
    """What a file says, before it is known whether that is a whole structure.

    Attributes
    ----------
    name, source : of the system
    topology : every atom with its element, or with None where the file leaves it open
    positions : shape (n_atoms, 3), nm
    bonds : pairs of atom indices, first < second; what the file leaves out is found by distances
    box_vectors : shape (3, 3), nm, in any orientation; None for a molecule in vacuum
    charge : total, elementary charges; None where the file says nothing
    spin_multiplicity : 2 S + 1; None where the file says nothing
    masses : of isotopes, by atom index, dalton
    settled : the file has bond orders and charges that leave no question of missing hydrogens
    unit_is_stated : the format says in which unit lengths are; else bohr may have been meant
    remark : ends the refusal of a structure that is not whole, such as what was guessed
    """

    name: str
    source: str
    topology: Topology
    positions: Float
    bonds: Bonds
    box_vectors: Float | None = None
    charge: int | None = None
    spin_multiplicity: int | None = None
    masses: dict[int, float] = field(default_factory=dict)
    settled: bool = False
    unit_is_stated: bool = True
    remark: str = ""


def whole(
    structure: Structure, charge: int | None = None, spin_multiplicity: int | None = None
) -> MolecularSystem:
    """The system that a structure is.

    Parameters
    ----------
    charge, spin_multiplicity : what the user says of it; None leaves it to the file

    Raises
    ------
    StructureError : an atom without an element, two at one place, a box that is none, missing
        hydrogens, or a charge or spin that contradicts the file or the number of electrons
    """
    source = structure.source
    charge = _agreed(source, "charge", structure.charge, charge)
    spin = _agreed(source, "spin", structure.spin_multiplicity, spin_multiplicity)
    labels = atom_labels(structure.topology)
    species = _species(structure, labels)
    positions, box = standard_cell(source, structure.positions, structure.box_vectors)
    require_finite(source, labels, positions)
    require_distinct(source, labels, positions, box)
    bonds = completed(structure.bonds, species, positions)
    if structure.settled:
        total = charge or 0
    else:
        total = _total_charge(structure, labels, species, positions, box, bonds, charge, spin)
    if not structure.settled or spin_multiplicity is not None:
        _require_parity(source, species, total, spin)
    topology = structure.topology
    topology.setPeriodicBoxVectors(None if box is None else box * unit.nanometer)
    return build_system(
        name=structure.name,
        source=source,
        topology=topology,
        positions=positions,
        bonds=np.array(sorted(bonds), dtype=np.int64).reshape(-1, 2),
        charge=total,
        spin_multiplicity=spin or 1,
        box_vectors=box,
        isotopes=structure.masses,
    )


def completed(bonds: Bonds, species: NDArray[np.int64], positions: Float) -> Bonds:
    """The file's bonds, or, where it leaves an atom bare that has a neighbour, geometry's too.

    Parameters
    ----------
    species : shape (n_atoms,), atomic numbers
    positions : shape (n_atoms, 3), nm
    """
    bare = np.setdiff1d(np.arange(len(species)), np.array(sorted(bonds), dtype=np.int64).ravel())
    if len(bare) == 0:
        return bonds
    perceived = bonds_by_distance(species, positions)
    lonely = set(bare.tolist())
    if any(i in lonely or j in lonely for i, j in perceived):
        return bonds | perceived
    return bonds


def bonds_by_distance(species: NDArray[np.int64], positions: Float) -> Bonds:
    """Bonds as RDKit finds them by covalent radii; parameters as in `completed`."""
    molecule = Chem.RWMol()
    for number in species.tolist():
        molecule.AddAtom(Chem.Atom(number))
    conformer = Chem.Conformer(len(species))
    conformer.SetPositions(np.ascontiguousarray(positions * ANGSTROM_PER_NM))
    molecule.AddConformer(conformer)
    with rdBase.BlockLogs():
        rdDetermineBonds.DetermineConnectivity(molecule)
    pairs = ((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds())
    return {(min(i, j), max(i, j)) for i, j in pairs}


def standard_cell(
    source: str, positions: Float, box_vectors: Float | None
) -> tuple[Float, Float | None]:
    """Positions and box, turned and reduced as OpenMM wants them: the first vector along x.

    Parameters
    ----------
    positions : shape (n_atoms, 3), nm
    box_vectors : shape (3, 3), nm, rows; or None

    Raises
    ------
    StructureError : the box has no volume, or is not finite
    """
    if box_vectors is None:
        return positions, None
    turn = cell_rotation(source, box_vectors)
    lower = np.tril(box_vectors @ turn)
    if not np.array_equal(turn, np.eye(3)):
        positions = positions @ turn
    vectors = reducePeriodicBoxVectors([Vec3(*row) for row in lower] * unit.nanometer)
    reduced = np.array(vectors.value_in_unit(unit.nanometer), dtype=np.float64)
    return positions, reduced


def cell_rotation(source: str, box_vectors: Float) -> Float:
    """Shape (3, 3): row vectors times it are turned so that the first box vector is along x.

    Raises
    ------
    StructureError : as in `standard_cell`
    """
    sides = np.linalg.norm(box_vectors, axis=1)
    if not np.isfinite(box_vectors).all() or abs(np.linalg.det(box_vectors)) <= 1e-6 * max(
        float(np.prod(sides)), 1e-12
    ):
        raise StructureError(
            f"{source}: its box has no volume (sides "
            f"{', '.join(f'{side * ANGSTROM_PER_NM:g}' for side in sides)} angstrom); wanted three "
            "independent vectors, or no box for a molecule in vacuum"
        )
    if np.linalg.det(box_vectors) < 0.0:
        raise StructureError(
            f"{source}: its box vectors are left-handed, and turning them would mirror the "
            "structure; exchange two of them"
        )
    if np.array_equal(box_vectors, np.tril(box_vectors)) and (np.diag(box_vectors) > 0.0).all():
        return np.eye(3)
    turn, upper = np.linalg.qr(box_vectors.T)
    signs = np.where(np.diag(upper) < 0.0, -1.0, 1.0)
    return np.asarray(turn * signs, dtype=np.float64)


def _species(structure: Structure, labels: list[str]) -> NDArray[np.int64]:
    numbers = []
    for atom, label in zip(structure.topology.atoms(), labels, strict=True):
        if atom.element is None:
            raise StructureError(
                f"{structure.source}: {label} has no known element; write its symbol into the "
                "file (in a PDB file, columns 77-78), or remove dummy atoms"
            )
        numbers.append(atom.element.atomic_number)
    return np.array(numbers, dtype=np.int64)


def element_of(source: str, number: int, symbol: str) -> Element:
    """OpenMM's element of an atomic number.

    Raises
    ------
    StructureError : none, a dummy atom, or one that OpenMM does not know
    """
    if not 1 <= number <= HEAVIEST:
        raise StructureError(
            f"{source}: {symbol!r} is not an element that OpenMM knows (atomic numbers 1 to "
            f"{HEAVIEST}); remove dummy and query atoms"
        )
    return Element.getByAtomicNumber(number)


def _agreed(source: str, what: str, read: int | None, said: int | None) -> int | None:
    if read is not None and said is not None and read != said:
        raise StructureError(
            f"{source} says {what} {read}, and the option --{what} says {said}; correct one of them"
        )
    return read if said is None else said


def _total_charge(
    structure: Structure,
    labels: list[str],
    species: NDArray[np.int64],
    positions: Float,
    box: Float | None,
    bonds: Bonds,
    charge: int | None,
    spin: int | None,
) -> int:
    biopolymer = [atom.residue.name.upper() in BIOPOLYMER for atom in structure.topology.atoms()]
    try:
        return require_hydrogens(
            structure.source,
            labels,
            species,
            positions,
            bonds,
            charge=charge,
            biopolymer=np.array(biopolymer, dtype=bool),
            box_vectors=box,
            n_unpaired=(spin or 1) - 1,
        )
    except StructureError as error:
        if not structure.unit_is_stated and _whole_in_bohr(structure, charge, spin):
            raise StructureError(
                f"{structure.source}: its coordinates are a whole molecule if they are in bohr; "
                f"wanted angstrom: multiply them by {ANGSTROM_PER_BOHR:.6f}"
            ) from error
        if structure.remark:
            raise StructureError(f"{error}; {structure.remark}") from error
        raise


def _whole_in_bohr(structure: Structure, charge: int | None, spin: int | None) -> bool:
    """Whether every atom is too far from the others, and in bohr it is a whole molecule."""
    if _closest_by_radii(structure) < _FAR:
        return False
    scaled = dataclasses.replace(
        structure,
        positions=structure.positions * ANGSTROM_PER_BOHR,
        bonds=set(),
        box_vectors=None,
        unit_is_stated=True,
        charge=None,
        spin_multiplicity=None,
    )
    try:
        system = whole(scaled, charge, spin)
    except StructureError:
        return False
    return len(system.bonds) > 0


def _closest_by_radii(structure: Structure) -> float:
    """The least distance of two atoms over the sum of their covalent radii."""
    positions = structure.positions * ANGSTROM_PER_NM
    if len(positions) < 2:
        return 0.0
    table = Chem.GetPeriodicTable()
    numbers = [atom.element.atomic_number for atom in structure.topology.atoms()]
    radii = np.array([table.GetRcovalent(number) for number in numbers])
    distances, nearest = cKDTree(positions).query(positions, k=2)
    return float((distances[:, 1] / (radii + radii[nearest[:, 1]])).min())


def _require_parity(source: str, species: NDArray[np.int64], charge: int, spin: int | None) -> None:
    """Refuse a spin that is none for this number of electrons."""
    n_electrons = int(species.sum()) - charge
    if spin is None:
        return
    n_unpaired = spin - 1
    if n_unpaired < 0 or n_unpaired > n_electrons or (n_electrons - n_unpaired) % 2:
        raise StructureError(
            f"{source}: {n_electrons} electrons (charge {charge:+d}) have no spin multiplicity "
            f"{spin}; wanted an {'odd' if n_electrons % 2 == 0 else 'even'} number of 1 or more: "
            "correct the charge or the spin"
        )
