"""A reference method that a user names: any potential, asked for what no file of labels has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.potentials.base import Potential
from omm_mlff.schema import MolecularSystem

Float = NDArray[np.float64]


class ReferenceMethod:
    """A potential as the reference of another.

    Parameters
    ----------
    potential : the method
    platform : of OpenMM, for a potential that has no other way

    Attributes
    ----------
    name : of the method
    spec : what a user wrote to get it
    """

    def __init__(self, potential: Potential, platform: str = "auto") -> None:
        self.potential = potential
        self.name = potential.card.name
        self.spec = potential.spec
        self._platform = platform

    def unsupported(self, system: MolecularSystem) -> str | None:
        """Why it cannot be asked about a system, in one line; None where it can."""
        reason = self.potential.unsupported(system)
        return f"the reference method {self.name} cannot serve it: {reason}" if reason else None

    def evaluate(self, system: MolecularSystem, positions: Float) -> tuple[Float, Float]:
        """Energies, kJ/mol, and forces, kJ/mol/nm.

        Parameters
        ----------
        positions : shape (n_frames, n_atoms, 3), nm
        """
        direct = self.potential.energies_and_forces(positions, system)
        if direct is not None:
            return direct
        with Evaluator(self.potential, system, self._platform) as evaluator:
            return evaluator.evaluate(positions)
