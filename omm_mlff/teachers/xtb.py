"""GFN2-xTB through tblite, for what lies outside the teacher's range (angstrom, eV)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from omm_mlff.errors import MissingPackageError
from omm_mlff.units import ANGSTROM_PER_BOHR, EV_PER_HARTREE

Float = NDArray[np.float64]

XTB_NAME = "GFN2-xTB"


def xtb_labels(species: NDArray[np.int64], positions: Float) -> tuple[Float, Float]:
    """Energies and forces of neutral closed shells; NaN where it does not converge.

    Parameters
    ----------
    species : shape (n_atoms,), atomic numbers
    positions : shape (n_frames, n_atoms, 3), angstrom

    Returns
    -------
    energies : shape (n_frames,), eV, on xTB's own scale (valence electrons only)
    forces : shape (n_frames, n_atoms, 3), eV/angstrom

    Raises
    ------
    MissingPackageError : tblite is not installed

    References
    ----------
    Bannwarth, Ehlert & Grimme, J. Chem. Theory Comput. 15, 1652 (2019).
    """
    energies = np.full(len(positions), np.nan)
    forces = np.full(np.shape(positions), np.nan)
    numbers = np.asarray(species)
    for row, frame in enumerate(positions):
        try:
            forces[row], energies[row] = _calculate(numbers, frame)
        except RuntimeError:  # tblite's own: not converged
            continue
    return energies, forces


def _calculate(numbers: NDArray[np.int64], positions: Float) -> tuple[Float, float]:
    try:
        from tblite.interface import Calculator
    except ImportError as error:
        raise MissingPackageError("tblite", XTB_NAME, "pip install 'omm-mlff[xtb]'") from error
    # A new calculator a frame: each label depends on its frame alone, not on the one before.
    calculator = Calculator("GFN2-xTB", numbers, np.asarray(positions) / ANGSTROM_PER_BOHR)
    calculator.set("verbosity", 0)
    result = calculator.singlepoint()
    forces = -np.asarray(result.get("gradient")) * EV_PER_HARTREE / ANGSTROM_PER_BOHR
    return forces, float(result.get("energy")) * EV_PER_HARTREE
