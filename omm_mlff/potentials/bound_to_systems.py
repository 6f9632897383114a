"""Holds a potential that knows its atoms by their place to the systems that it was given for."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import openmm
from numpy.typing import NDArray

from omm_mlff.forces.built import Built
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials.base import Capabilities, Potential
from omm_mlff.schema import MolecularSystem, PotentialCard


class BoundPotential:
    """The same potential, which refuses every molecule but those that it is bound to.

    A file that was made for one molecule cannot tell that it is shown another one with as many
    atoms. Checks that build dimers, fragments or lone molecules from a system ask `unsupported`
    first; this is what answers them.

    Parameters
    ----------
    potential : one whose card says that it knows atoms by "index"
    systems : those that it was made for, by the word of whoever named them
    """

    def __init__(self, potential: Potential, systems: Iterable[MolecularSystem]) -> None:
        self.potential = potential
        self.spec = potential.spec
        self._bound = {_identity(system) for system in systems}

    @property
    def card(self) -> PotentialCard:
        return self.potential.card

    def unsupported(self, system: MolecularSystem) -> str | None:
        """Why it cannot serve this system, in one line; None if it can."""
        if _identity(system) not in self._bound:
            return "it knows its atoms by their place in the molecule that it was made for"
        return self.potential.unsupported(system)

    def capabilities(self, system: MolecularSystem) -> Capabilities:
        return self.potential.capabilities(system)

    def add_to(
        self,
        openmm_system: openmm.System,
        system: MolecularSystem,
        *,
        n_replicas: int = 1,
        tap: Tap | None = None,
    ) -> Built:
        return self.potential.add_to(openmm_system, system, n_replicas=n_replicas, tap=tap)

    def energies_and_forces(
        self, positions: NDArray[np.float64], system: MolecularSystem
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        return self.potential.energies_and_forces(positions, system)

    def reference_energy(self, system: MolecularSystem) -> float | None:
        return self.potential.reference_energy(system)


def bound(potential: Potential, systems: Iterable[MolecularSystem]) -> Potential:
    """The potential, held to these systems where it knows its atoms by index."""
    if potential.card.knows_atoms_by != "index":
        return potential
    return BoundPotential(potential, systems)


def _identity(system: MolecularSystem) -> tuple[bytes, bytes]:
    def raw(array: NDArray[np.int64]) -> bytes:
        return np.ascontiguousarray(array).tobytes()

    return raw(system.species), raw(system.bonds)
