"""What every potential must offer."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import openmm
from numpy.typing import NDArray

from omm_mlff.errors import UnsupportedSystemError
from omm_mlff.forces.tap import Tap
from omm_mlff.schema import MolecularSystem, PotentialCard


@runtime_checkable
class Potential(Protocol):
    """A potential that puts itself into an openmm.System.

    Attributes
    ----------
    spec : what a user writes to get it, such as "tiny"

    One more may be there: `repeatable`, true where the same positions give the same numbers however
    often they are asked for, and its own code raises nothing. Steps of dynamics may then be taken
    many at a time, and again where something happened on the way.
    """

    spec: str

    @property
    def card(self) -> PotentialCard:
        """What it says of itself."""

    def unsupported(self, system: MolecularSystem) -> str | None:
        """Why it cannot serve this system, in one line; None if it can."""

    def has_tap(self, system: MolecularSystem) -> bool:
        """Whether it hands over what it computes (`forces.Tap`)."""

    def max_replicas(self, system: MolecularSystem) -> int:
        """How many copies of the system it takes into one System."""

    def add_to(
        self,
        openmm_system: openmm.System,
        system: MolecularSystem,
        *,
        n_replicas: int = 1,
        tap: Tap | None = None,
    ) -> None:
        """Add its forces to a System that already has the particles of every replica."""

    def energies_and_forces(
        self, positions: NDArray[np.float64], system: MolecularSystem
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Evaluated directly, without OpenMM; None where there is no other way than OpenMM.

        Parameters
        ----------
        positions : shape (n_frames, n_atoms, 3), nm

        Returns
        -------
        energies : shape (n_frames,), kJ/mol
        forces : shape of `positions`, kJ/mol/nm
        """

    def reference_energy(self, system: MolecularSystem) -> float | None:
        """Sum of the atomic reference energies inside its total energy, kJ/mol.

        0 where it has none, None where it does not say.
        """


def build_system(
    potential: Potential, system: MolecularSystem, *, n_replicas: int = 1, tap: Tap | None = None
) -> openmm.System:
    """An openmm.System with `n_replicas` copies of a molecular system under a potential.

    Raises
    ------
    UnsupportedSystemError : the potential cannot serve it, with the reason
    """
    reason = potential.unsupported(system)
    if reason:
        raise UnsupportedSystemError(f"{potential.card.name} cannot serve {system.name}: {reason}")
    if n_replicas > potential.max_replicas(system):
        raise UnsupportedSystemError(
            f"{potential.card.name} takes {potential.max_replicas(system)} copies of "
            f"{system.name} into one System, {n_replicas} were asked for"
        )
    openmm_system = bare_system(system, n_replicas)
    potential.add_to(openmm_system, system, n_replicas=n_replicas, tap=tap)
    return openmm_system


def bare_system(system: MolecularSystem, n_replicas: int = 1) -> openmm.System:
    """An openmm.System with the particles and the box of a molecular system, and no forces."""
    openmm_system = openmm.System()
    for mass in np.tile(system.masses, n_replicas):
        openmm_system.addParticle(float(mass))
    if system.box_vectors is not None:
        openmm_system.setDefaultPeriodicBoxVectors(*system.box_vectors)
    return openmm_system
