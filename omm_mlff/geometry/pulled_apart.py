"""Two copies of a molecule that are drawn apart along a line."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omm_mlff.geometry.distances import van_der_waals_radii
from omm_mlff.schema import MolecularSystem


@dataclass(frozen=True, eq=False)
class Line:
    """Two fragments, and the line along which the second one moves.

    Attributes
    ----------
    system : the fragments, the second one unmoved
    n_first : atoms of the first fragment
    direction : shape (3,), unit length
    """

    system: MolecularSystem
    n_first: int
    direction: NDArray[np.float64]

    def at(self, separations: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions at each separation (nm), shape (n_separations, n_atoms, 3), nm."""
        positions = np.repeat(self.system.positions[None], len(separations), axis=0)
        positions[:, self.n_first :] += separations[:, None, None] * self.direction
        return positions

    def crossings(self, cutoff_nm: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Separations at which a pair is at the cutoff, on its way out.

        Returns
        -------
        separations : shape (n_crossings,), nm, ascending
        pairs : shape (n_crossings, 2), atom indices
        """
        first = self.system.positions[: self.n_first]
        second = self.system.positions[self.n_first :]
        d = second[None, :] - first[:, None]
        along = d @ self.direction
        inside = along**2 - (d**2).sum(axis=2) + cutoff_nm**2
        i, j = np.nonzero(inside >= 0.0)
        separations = -along[i, j] + np.sqrt(inside[i, j])
        order = np.argsort(separations)
        return separations[order], np.column_stack((i, j + self.n_first))[order]

    def closeness(self, separations: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shortest distance between the fragments, as a part of the van der Waals contact.

        Parameters
        ----------
        separations : shape (n_separations,), nm

        Returns
        -------
        shape of `separations`
        """
        positions = self.at(separations)
        radii = van_der_waals_radii(self.system.species)
        closest = np.full(len(separations), np.inf)
        for i in range(self.n_first):  # pair by pair all separations would be too many numbers
            d = positions[:, self.n_first :] - positions[:, i : i + 1]
            contact = radii[i] + radii[self.n_first :]
            closest = np.minimum(closest, (np.sqrt((d**2).sum(axis=2)) / contact).min(axis=1))
        return closest


def first_molecule(system: MolecularSystem) -> NDArray[np.int64]:
    """Atoms that bonds connect to the first atom, sorted; all atoms of a molecule in vacuum."""
    if not system.periodic:
        return np.arange(system.n_atoms)
    found = {0}
    while True:
        more = {
            int(atom)
            for bond in system.bonds
            if found & {int(bond[0]), int(bond[1])}
            for atom in bond
        }
        if more <= found:
            return np.array(sorted(found))
        found |= more


def two_copies(system: MolecularSystem, random: np.random.Generator) -> Line:
    """Two copies of a molecule, the second turned at random, to be drawn apart.

    The line is the thinnest direction of the molecule, tilted at random, so that many pairs
    cross and no two at once.
    """
    from openmm import app
    from scipy.spatial.transform import Rotation

    atoms = first_molecule(system)
    positions = system.positions[atoms] - system.positions[atoms].mean(axis=0)
    if system.box_vectors is not None:
        raise_whole = np.round((positions - positions[0]) @ np.linalg.inv(system.box_vectors))
        positions = positions - raise_whole @ system.box_vectors
        positions -= positions.mean(axis=0)
    thinnest = np.linalg.svd(positions, full_matrices=True)[2][2]
    direction = thinnest + 0.2 * random.normal(size=3)
    direction /= np.linalg.norm(direction)
    turned = Rotation.random(rng=random).apply(positions)

    elements = [atom.element for atom in system.topology.atoms()]
    topology = app.Topology()
    for _ in range(2):
        residue = topology.addResidue("MOL", topology.addChain())
        for atom in atoms:
            topology.addAtom(elements[atom].symbol, elements[atom], residue)
    place = {int(atom): k for k, atom in enumerate(atoms)}
    inside = [[place[int(i)], place[int(j)]] for i, j in system.bonds if int(i) in place]
    bonds = np.array(inside, dtype=np.int64).reshape(-1, 2)
    both = np.concatenate((bonds, bonds + len(atoms)))
    listed = list(topology.atoms())
    for i, j in both:
        topology.addBond(listed[i], listed[j])
    pair = MolecularSystem(
        name=f"two of {system.name}",
        source=system.source,
        topology=topology,
        positions=np.concatenate((positions, turned)),
        species=np.tile(system.species[atoms], 2),
        masses=np.tile(system.masses[atoms], 2),
        bonds=both,
        charge=0 if system.periodic else 2 * system.charge,
    )
    return Line(pair, len(atoms), direction)
