"""What every potential must offer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import openmm
from numpy.typing import NDArray

from omm_mlff.errors import InputError, UnsupportedSystemError
from omm_mlff.forces.built import Built, ForceKind
from omm_mlff.forces.tap import Tap
from omm_mlff.schema import MolecularSystem, PotentialCard


@dataclass(frozen=True)
class Capabilities:
    """What a potential can do with a system; what it does not declare, nobody asks of it.

    Attributes
    ----------
    tap : it hands over what it computes (`forces.tap.Tap`)
    max_replicas : how many copies of the system it takes into one System
    repeatable : the same positions give the same numbers however often they are asked for, and its
        own code raises nothing. Steps of dynamics may then be taken many at a time, and again
        where something happened on the way
    reads_box : it computes with the box that a Context has; without it no box is served
    graphs : every evaluation does the same work and waits for nothing, so that a CUDA graph of one
        may be replayed
    force : the Force that is meant to carry it; where a TorchForce cannot be had, a PythonForce
        stands in, and that is a fallback
    float64_twin : makes the same potential with its network in float64, where there is such a one;
        what the two differ by is rounding
    """

    tap: bool = False
    max_replicas: int = 1
    repeatable: bool = False
    reads_box: bool = False
    graphs: bool = False
    force: ForceKind = "openmm"
    float64_twin: Callable[[], Potential] | None = None


@runtime_checkable
class Potential(Protocol):
    """A potential that puts itself into an openmm.System.

    Attributes
    ----------
    spec : what a user writes to get it, such as "tiny"
    """

    spec: str

    @property
    def card(self) -> PotentialCard:
        """What it says of itself."""

    def unsupported(self, system: MolecularSystem) -> str | None:
        """Why it cannot serve this system, in one line; None if it can."""

    def capabilities(self, system: MolecularSystem) -> Capabilities:
        """What it can do with this system; the same at every call."""

    def add_to(
        self,
        openmm_system: openmm.System,
        system: MolecularSystem,
        *,
        n_replicas: int = 1,
        tap: Tap | None = None,
    ) -> Built:
        """Add its forces to a System that already has the particles of every replica.

        Returns
        -------
        what has been added, as it is: the kind of Force, and what evaluates it where
        """

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
    return system_and_built(potential, system, n_replicas=n_replicas, tap=tap)[0]


def system_and_built(
    potential: Potential, system: MolecularSystem, *, n_replicas: int = 1, tap: Tap | None = None
) -> tuple[openmm.System, Built]:
    """What `build_system` makes, and what the potential says that it has put into it.

    Raises
    ------
    UnsupportedSystemError : the potential cannot serve it, with the reason
    InputError : the potential does not say what it has added
    """
    refuse_unsupported(potential, system)
    most = potential.capabilities(system).max_replicas
    if n_replicas > most:
        raise UnsupportedSystemError(
            f"{potential.card.name} takes {most} copies of "
            f"{system.name} into one System, {n_replicas} were asked for"
        )
    openmm_system = bare_system(system, n_replicas)
    built = potential.add_to(openmm_system, system, n_replicas=n_replicas, tap=tap)
    if not isinstance(built, Built):
        raise InputError(
            f"{potential.card.name}: add_to returned a {type(built).__name__}, wanted a "
            "forces.built.Built that says which Force it has added"
        )
    return openmm_system, built


def refuse_unsupported(potential: Potential, system: MolecularSystem) -> None:
    """Go on only where a potential can serve a system.

    Raises
    ------
    UnsupportedSystemError : it cannot, with the reason
    """
    reason = potential.unsupported(system)
    if not reason and system.periodic and not potential.capabilities(system).reads_box:
        reason = "it does not read the box, and this system has one"
    if reason:
        raise UnsupportedSystemError(f"{potential.card.name} cannot serve {system.name}: {reason}")


def bare_system(system: MolecularSystem, n_replicas: int = 1) -> openmm.System:
    """An openmm.System with the particles and the box of a molecular system, and no forces."""
    openmm_system = openmm.System()
    for mass in np.tile(system.masses, n_replicas):
        openmm_system.addParticle(float(mass))
    if system.box_vectors is not None:
        openmm_system.setDefaultPeriodicBoxVectors(*system.box_vectors)
    return openmm_system
