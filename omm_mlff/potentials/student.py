"""Students as potentials, and a student added to any System by hand."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import torch
from numpy.typing import NDArray

from omm_mlff.data import shipped_names
from omm_mlff.errors import UnsupportedSystemError
from omm_mlff.forces import Backend, Tap, make_force
from omm_mlff.schema import MolecularSystem, PotentialCard
from omm_mlff.students.checkpoint import CARD_FILE, load_card, load_student
from omm_mlff.students.engine import MAX_COMPLETE_ATOMS, build_engine
from omm_mlff.students.student import Student
from omm_mlff.units import KJMOL_PER_EV, NM_PER_ANGSTROM

SOURCE = "student"
_MAX_REPLICAS = 1024


class StudentPotential:
    """A student checkpoint.

    Parameters
    ----------
    spec : a shipped name such as "tiny", or the folder of a checkpoint
    backend : which Force carries it
    """

    def __init__(self, spec: str, backend: Backend = "auto") -> None:
        self.spec = spec
        self.backend: Backend = backend
        self.student: Student = load_student(spec)
        self._card = _card(load_card(spec), self.student)

    @property
    def card(self) -> PotentialCard:
        return self._card

    def unsupported(self, system: MolecularSystem) -> str | None:
        unknown = sorted(set(system.species.tolist()) - set(self.student.config.species))
        if unknown:
            return f"it was never trained on {_symbols(unknown)} (knows {_symbols(self._known())})"
        if system.charge != 0:
            return f"it is for neutral molecules, this one has charge {system.charge:+d}"
        if system.n_atoms < 2:
            return "a single atom has no pairs"
        return None

    def has_tap(self, system: MolecularSystem) -> bool:
        return True

    def max_replicas(self, system: MolecularSystem) -> int:
        single = system.periodic or system.n_atoms > MAX_COMPLETE_ATOMS
        return 1 if single else _MAX_REPLICAS

    def add_to(
        self,
        openmm_system: openmm.System,
        system: MolecularSystem,
        *,
        n_replicas: int = 1,
        tap: Tap | None = None,
    ) -> None:
        engine = build_engine(
            self.student,
            torch.from_numpy(system.species),
            periodic=system.periodic,
            n_copies=n_replicas,
        )
        force = make_force(engine, periodic=system.periodic, tap=tap, backend=self.backend)
        openmm_system.addForce(force)

    def energies_and_forces(
        self, positions: NDArray[np.float64], system: MolecularSystem
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        engine = build_engine(
            self.student, torch.from_numpy(system.species), periodic=system.periodic
        )
        box = None if system.box_vectors is None else torch.from_numpy(system.box_vectors)
        energies = np.empty(len(positions))
        forces = np.empty_like(positions)
        for i, frame in enumerate(positions):
            energy, force = engine(torch.from_numpy(np.ascontiguousarray(frame)), box)
            energies[i] = float(energy)
            forces[i] = force.numpy()
        return energies, forces

    def reference_energy(self, system: MolecularSystem) -> float:
        atomic = self.student.reference_energy(torch.from_numpy(system.species))
        return float(atomic.sum()) * KJMOL_PER_EV

    def in_float64(self) -> StudentPotential | None:
        """The same weights with the network in float64; None where it is in float64 already.

        What the two differ by is the rounding of the network.
        """
        if self.student.dtype == torch.float64:
            return None
        twin = copy.copy(self)
        twin.student = copy.deepcopy(self.student)
        twin.student.network.double()
        twin._card = dataclasses.replace(self._card, dtype="float64")
        return twin

    def _known(self) -> Sequence[int]:
        return self.student.config.species


def add_student(
    openmm_system: openmm.System,
    topology: openmm.app.Topology,
    name: str,
    *,
    backend: Backend = "auto",
) -> openmm.Force:
    """Add a student to a System by hand; all atoms of the topology are under it.

    Parameters
    ----------
    openmm_system : with one particle an atom; its box decides nothing, the topology's does
    topology : elements, and a box if periodic
    name : a shipped name such as "tiny", or the folder of a checkpoint

    Returns
    -------
    the Force that was added

    Raises
    ------
    UnsupportedSystemError : an element that the student never saw, or virtual sites
    """
    student = load_student(name)
    if openmm_system.getNumParticles() != topology.getNumAtoms():
        raise UnsupportedSystemError(
            f"the System has {openmm_system.getNumParticles()} particles, "
            f"the topology {topology.getNumAtoms()} atoms; a student needs one particle an atom"
        )
    species = [atom.element.atomic_number if atom.element else 0 for atom in topology.atoms()]
    unknown = sorted(set(species) - set(student.config.species))
    if unknown:
        raise UnsupportedSystemError(f"{name} was never trained on {_symbols(unknown)}")
    periodic = topology.getPeriodicBoxVectors() is not None
    engine = build_engine(student, torch.tensor(species), periodic=periodic)
    force = make_force(engine, periodic=periodic, backend=backend)
    openmm_system.addForce(force)
    return force


def names() -> list[str]:
    """Shipped students."""
    return shipped_names("checkpoints", CARD_FILE)


def matches(spec: str) -> bool:
    """Whether this source reads the spec: a shipped name or a checkpoint's folder."""
    return spec in names() or Path(spec).is_dir()


@functools.lru_cache(maxsize=8)
def load(spec: str) -> StudentPotential:
    """The potential behind a spec."""
    return StudentPotential(spec)


def _card(card: dict[str, Any], student: Student) -> PotentialCard:
    return PotentialCard(
        name=str(card["name"]),
        source=SOURCE,
        species=student.config.species,
        cutoff_nm=student.config.cutoff_angstrom * NM_PER_ANGSTROM,
        dtype=str(student.dtype).removeprefix("torch."),
        n_parameters=student.n_parameters,
        training_domain=card.get("training_domain", {}),
        sha256=card["sha256"],
    )


def _symbols(atomic_numbers: Sequence[int]) -> str:
    symbols = [
        openmm.app.Element.getByAtomicNumber(z).symbol if z else "virtual sites"
        for z in atomic_numbers
    ]
    return ", ".join(symbols)
