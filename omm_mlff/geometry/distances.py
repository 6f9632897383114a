"""Distances between atoms, to the nearest image in a box, and the radii of atoms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from omm_mlff.schema import MolecularSystem
from omm_mlff.units import NM_PER_ANGSTROM

BOND_LIMIT_NM = 0.05
"""A bond that is further off its length at rest counts as stretched."""


def covalent_radii(species: NDArray[np.int64]) -> NDArray[np.float64]:
    """Covalent radius of each atom, shape (n_atoms,), nm.

    References
    ----------
    Cordero et al., Dalton Trans. 2832 (2008), as tabulated by RDKit.
    """
    from rdkit.Chem import GetPeriodicTable

    table = GetPeriodicTable()
    return np.array([table.GetRcovalent(int(z)) for z in species]) * NM_PER_ANGSTROM


def van_der_waals_radii(species: NDArray[np.int64]) -> NDArray[np.float64]:
    """Van der Waals radius of each atom, shape (n_atoms,), nm.

    References
    ----------
    Bondi, J. Phys. Chem. 68, 441 (1964), and later additions, as tabulated by RDKit.
    """
    from rdkit.Chem import GetPeriodicTable

    table = GetPeriodicTable()
    return np.array([table.GetRvdw(int(z)) for z in species]) * NM_PER_ANGSTROM


def pair_lengths(
    positions: NDArray[np.float64],
    pairs: NDArray[np.int64],
    box_vectors: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """Distances of pairs, to the nearest image in a box.

    Parameters
    ----------
    positions : shape (..., n_atoms, 3), nm
    pairs : shape (n_pairs, 2)

    Returns
    -------
    shape (..., n_pairs), nm
    """
    r = positions[..., pairs[:, 1], :] - positions[..., pairs[:, 0], :]
    if box_vectors is not None:
        r = minimum_image(r, box_vectors)
    lengths: NDArray[np.float64] = np.sqrt((r * r).sum(-1))
    return lengths


def bond_lengths(system: MolecularSystem, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Length of every bond, shape (..., n_bonds), nm."""
    return pair_lengths(positions, system.bonds, system.box_vectors)


def minimum_image(r: NDArray[np.float64], box_vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Displacements brought to their nearest image, for boxes in OpenMM's reduced form."""
    for axis in (2, 1, 0):
        r = r - np.round(r[..., axis : axis + 1] / box_vectors[axis, axis]) * box_vectors[axis]
    return r
