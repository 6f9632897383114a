"""Topology, positions, bonds, put together as a checked system."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from openmm import unit
from openmm.app import Element, Topology
from scipy.spatial import cKDTree

from omm_mlff.errors import StructureError
from omm_mlff.schema import MolecularSystem, ReferenceLabels
from omm_mlff.units import ANGSTROM_PER_NM

Float = NDArray[np.float64]
Bonds = NDArray[np.int64]

SAME_PLACE_NM = 0.05
"""Closer than this, two atoms are at one place: the shortest bond, H-H, is 0.074 nm."""

DEUTERIUM_DALTON = 2.01410177812
"""Of the atom: Wang et al., Chin. Phys. C 45, 030003 (2021)."""


def build_system(
    *,
    name: str,
    source: str,
    topology: Topology,
    positions: Float,
    bonds: Bonds,
    charge: int = 0,
    box_vectors: Float | None = None,
    reference: ReferenceLabels | None = None,
    spin_multiplicity: int = 1,
    isotopes: Mapping[int, float] | None = None,
) -> MolecularSystem:
    """A system whose topology has exactly the bonds given.

    Parameters
    ----------
    topology : bonds that it lacks are added to it, and deuterium becomes hydrogen with its own mass
    positions : shape (n_atoms, 3), nm
    bonds : shape (n_bonds, 2), atom indices
    isotopes : masses of atoms that are not of the usual mixture, by index, dalton

    Raises
    ------
    StructureError : an atom without an element, a coordinate that is not finite, or two atoms at
        one place
    """
    atoms = list(topology.atoms())
    for atom in atoms:
        if atom.element is None:
            raise StructureError(
                f"{source}: atom {atom.index + 1} ({atom.name}) has no known element; "
                "write its symbol into the file, or remove dummy atoms"
            )
    masses = np.array([atom.element.mass.value_in_unit(unit.dalton) for atom in atoms])
    for atom in atoms:
        if atom.element is Element.getBySymbol("D"):  # an isotope has a mass of its own, no more
            atom.element = Element.getBySymbol("H")
            masses[atom.index] = DEUTERIUM_DALTON
    for index, mass in (isotopes or {}).items():
        masses[index] = mass
    positions = np.ascontiguousarray(positions, dtype=np.float64)
    labels = atom_labels(topology)
    require_finite(source, labels, positions)
    require_distinct(source, labels, positions, box_vectors)
    ordered = np.array(sorted({(min(i, j), max(i, j)) for i, j in bonds.tolist()}), dtype=np.int64)
    ordered = ordered.reshape(-1, 2)
    present = bonds_of(topology)
    for i, j in ordered.tolist():
        if (i, j) not in present:
            topology.addBond(atoms[i], atoms[j])
    return MolecularSystem(
        name=name,
        source=source,
        topology=topology,
        positions=positions,
        species=np.array([atom.element.atomic_number for atom in atoms], dtype=np.int64),
        masses=masses,
        bonds=ordered,
        box_vectors=box_vectors,
        charge=charge,
        spin_multiplicity=spin_multiplicity,
        reference=reference,
    )


def bonds_of(topology: Topology) -> set[tuple[int, int]]:
    """Pairs of atom indices, first < second."""
    pairs = ((bond[0].index, bond[1].index) for bond in topology.bonds())
    return {(min(i, j), max(i, j)) for i, j in pairs}


def atom_labels(topology: Topology) -> list[str]:
    """A name for every atom that a person finds again in the file, such as "CA of ALA 2"."""
    alone = topology.getNumResidues() == 1
    return [
        f"{atom.name} (atom {atom.index + 1})"
        if alone
        else f"{atom.name} of {atom.residue.name} {atom.residue.id} (atom {atom.index + 1})"
        for atom in topology.atoms()
    ]


def require_finite(source: str, labels: list[str], positions: Float) -> None:
    """Refuse a coordinate that is NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if len(bad):
        first = int(bad[0])
        raise StructureError(
            f"{source}: {labels[first]} is at {positions[first].tolist()}, "
            f"{len(bad)} atom(s) in all; wanted finite coordinates: write the file anew"
        )


def require_distinct(
    source: str, labels: list[str], positions: Float, box_vectors: Float | None
) -> None:
    """Refuse two atoms at one place, seen also across the faces of a rectangular box."""
    points, sides = positions, None
    if box_vectors is not None and np.array_equal(box_vectors, np.diag(np.diag(box_vectors))):
        sides = np.diag(box_vectors)
        points = positions - np.floor(positions / sides) * sides
        points = np.where(points >= sides, 0.0, points)  # a rounding of -1e-17 lands on the face
    pairs = cKDTree(points, boxsize=sides).query_pairs(SAME_PLACE_NM, output_type="ndarray")
    if len(pairs):
        i, j = sorted(pairs.tolist())[0]
        gap = points[i] - points[j]
        if sides is not None:
            gap -= np.round(gap / sides) * sides
        distance = float(np.linalg.norm(gap)) * ANGSTROM_PER_NM
        raise StructureError(
            f"{source}: {labels[i]} and {labels[j]} are {distance:.3f} angstrom apart, "
            f"{len(pairs)} such pair(s) in all; wanted atoms at different places, in angstrom: "
            "remove duplicates, or convert the unit"
        )
