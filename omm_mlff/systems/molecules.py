"""RDKit's molecules as topology, positions and bonds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from openmm.app import Topology

from omm_mlff.systems.structure import Bonds, element_of
from omm_mlff.units import NM_PER_ANGSTROM


def topology_of(source: str, molecule: Any) -> Topology:
    """One chain, one residue; atoms named C1, C2, H1 in the order of the file.

    Raises
    ------
    StructureError : an atom that is no element
    """
    atoms = [(atom.GetAtomicNum(), atom.GetSymbol()) for atom in molecule.GetAtoms()]
    return plain_topology(source, atoms)


def plain_topology(source: str, atoms: list[tuple[int, str]]) -> Topology:
    """One chain and one residue of atoms without bonds, named C1, C2, H1 in their order.

    Parameters
    ----------
    atoms : atomic number and symbol of each

    Raises
    ------
    StructureError : an atom that is no element
    """
    topology = Topology()
    residue = topology.addResidue("UNL", topology.addChain("A"))
    counts: dict[str, int] = {}
    for number, symbol in atoms:
        element = element_of(source, number, symbol)
        counts[symbol] = counts.get(symbol, 0) + 1
        topology.addAtom(f"{symbol}{counts[symbol]}", element, residue)
    return topology


def positions_of(molecule: Any) -> NDArray[np.float64]:
    """Shape (n_atoms, 3), nm."""
    return np.array(molecule.GetConformer().GetPositions(), dtype=np.float64) * NM_PER_ANGSTROM


def bonds_in(molecule: Any) -> Bonds:
    """Pairs of atom indices, first < second."""
    pairs = ((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds())
    return {(min(i, j), max(i, j)) for i, j in pairs}
