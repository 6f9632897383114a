"""Students as potentials, and a student added to any System by hand."""

from __future__ import annotations

import copy
import dataclasses
import functools
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from torch import nn

from omm_mlff.data import shipped_names
from omm_mlff.errors import InputError, UnsupportedSystemError
from omm_mlff.forces.built import Built, Device
from omm_mlff.forces.making import make_force
from omm_mlff.forces.plugin import Backend, built_as, resolve_backend
from omm_mlff.forces.scripting import script
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials.base import Capabilities
from omm_mlff.potentials.content import content_digest
from omm_mlff.potentials.ions import no_neutral_singlet
from omm_mlff.potentials.spec import split_options
from omm_mlff.schema import MolecularSystem, PotentialCard
from omm_mlff.students.checkpoint import CARD_FILE, load_card, load_student
from omm_mlff.students.compiled import engine_on
from omm_mlff.students.engine import (
    MAX_COMPLETE_ATOMS,
    Engine,
    SubsetEngine,
    build_engine,
    is_compiled_here,
)
from omm_mlff.students.footprint import available_bytes, directed_pairs, evaluation_bytes
from omm_mlff.students.student import Student
from omm_mlff.units import KJMOL_PER_EV, NM_PER_ANGSTROM

SOURCE = "student"
FORMS = ("the folder of a student's checkpoint", "STUDENT?engine=auto|compiled|scripted")
_MAX_REPLICAS = 1024
_SAME_BOX_NM = 1e-5
_DIRECT_ATOMS = 256
"""Evaluated together without OpenMM; twice as many gain nothing."""
_SURELY_FITTING = 500
"""Atoms, replicas included, whose memory nobody need estimate."""


class StudentPotential:
    """A student.

    Parameters
    ----------
    student : a shipped name such as "tiny", the folder of a checkpoint, or a student itself
    backend : which Force carries it
    engine : how it is evaluated in OpenMM, see `students.engine.build_engine`
    cuda_graphs : on CUDA, for molecules of `MAX_COMPLETE_ATOMS` or fewer, see `forces.make_force`;
        "auto" captures where a trial shows that it is right
    """

    def __init__(
        self,
        student: str | Student,
        backend: Backend = "auto",
        engine: Engine = "auto",
        cuda_graphs: bool | Literal["auto"] = "auto",
    ) -> None:
        if engine not in get_args(Engine):
            raise InputError(f"unknown engine {engine!r}; known: {', '.join(get_args(Engine))}")
        self.backend: Backend = backend
        self.engine: Engine = engine
        self.cuda_graphs = cuda_graphs
        if isinstance(student, Student):
            self.student = student
            self.spec = f"{student.config.name} (object)"
            numbers = [str(student.config), str(student.dtype), dict(student.state_dict())]
            card = {"name": student.config.name, "sha256": content_digest(numbers)}
            self._card = _card(card, student)
        else:
            self.student = load_student(student)
            options = [f"engine={engine}"] * (engine != "auto") + [f"cuda_graphs={cuda_graphs}"] * (
                cuda_graphs != "auto"
            )
            self.spec = "?".join([student, *(["&".join(options)] if options else [])])
            self._card = _card(load_card(student), self.student)

    @property
    def card(self) -> PotentialCard:
        return self._card

    def unsupported(self, system: MolecularSystem) -> str | None:
        unknown = sorted(set(system.species.tolist()) - set(self.student.config.species))
        if unknown:
            return f"it was never trained on {_symbols(unknown)} (knows {_symbols(self._known())})"
        reason = no_neutral_singlet(system)
        if reason:
            return reason
        if system.n_atoms < 2:
            return "a single atom has no pairs"
        return self._too_large(system, 1)

    def _too_large(self, system: MolecularSystem, n_replicas: int) -> str | None:
        """Why an evaluation finds no room, in one line; a device itself says when it has none."""
        if torch.cuda.is_available() or n_replicas * system.n_atoms < _SURELY_FITTING:
            return None
        config = self.student.config
        n_pairs = directed_pairs(
            system.positions, system.box_vectors, config.cutoff_angstrom * NM_PER_ANGSTROM
        )
        compiled = self.engine != "scripted" and is_compiled_here()
        wanted = evaluation_bytes(
            config,
            n_replicas * system.n_atoms,
            n_replicas * n_pairs,
            compiled=compiled,
            itemsize=torch.finfo(self.student.dtype).bits // 8,
        )
        available = available_bytes()
        if wanted <= available:
            return None
        advice = "take a smaller one" if n_replicas == 1 else "take fewer replicas"
        if not compiled:
            advice += ", or the compiled engine, which needs a tenth (engine=compiled)"
        return (
            f"one step of {n_replicas * system.n_atoms} atoms needs about "
            f"{wanted / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are free; {advice}"
        )

    def capabilities(self, system: MolecularSystem) -> Capabilities:
        single = system.periodic or system.n_atoms > MAX_COMPLETE_ATOMS
        return Capabilities(
            tap=True,
            max_replicas=1 if single else _MAX_REPLICAS,
            repeatable=True,
            reads_box=True,
            graphs=not single and self.cuda_graphs is not False,
            force="pythonforce" if self.backend == "pythonforce" else "torchforce",
            float64_twin=None if self.student.dtype == torch.float64 else self.in_float64,
        )

    def add_to(
        self,
        openmm_system: openmm.System,
        system: MolecularSystem,
        *,
        n_replicas: int = 1,
        tap: Tap | None = None,
    ) -> Built:
        reason = self._too_large(system, n_replicas)
        if reason:
            raise UnsupportedSystemError(f"{self.spec} cannot serve {system.name}: {reason}")
        engine = build_engine(
            self.student,
            torch.from_numpy(system.species),
            periodic=system.periodic,
            n_copies=n_replicas,
            engine=self.engine,
        )
        graph = self.cuda_graphs is True and self.capabilities(system).graphs
        force = make_force(
            engine, periodic=system.periodic, tap=tap, backend=self.backend, cuda_graphs=graph
        )
        openmm_system.addForce(force)
        return built_as(
            self.backend,
            engines=_Engines(engine),
            graph=graph,
            graph_reason=self._graph_reason(system),
        )

    def _graph_reason(self, system: MolecularSystem) -> str:
        """Why there is a graph, or none; empty where that is found out when a Context is made."""
        if self.cuda_graphs is False:
            return "turned off"
        if not self.capabilities(system).graphs:
            return f"a box, or a molecule of more than {MAX_COMPLETE_ATOMS} atoms"
        return "asked for" if self.cuda_graphs is True else ""

    def energies_and_forces(
        self, positions: NDArray[np.float64], system: MolecularSystem
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        box = None if system.box_vectors is None else torch.from_numpy(system.box_vectors)
        most = self.capabilities(system).max_replicas
        together = min(most, max(1, _DIRECT_ATOMS // system.n_atoms))
        energies = np.empty(len(positions))
        forces = np.empty_like(positions)
        for first in range(0, len(positions), together):
            some = np.ascontiguousarray(positions[first : first + together])
            # Scripted whatever runs in OpenMM: what is compiled is held against it.
            engine = build_engine(
                self.student,
                torch.from_numpy(system.species),
                periodic=system.periodic,
                n_copies=len(some),
            )
            energy, force = engine(torch.from_numpy(some.reshape(-1, 3)), box)
            energies[first : first + together] = energy.numpy()
            forces[first : first + together] = force.numpy().reshape(some.shape)
        return energies, forces

    def reference_energy(self, system: MolecularSystem) -> float:
        atomic = self.student.reference_energy(torch.from_numpy(system.species))
        return float(atomic.sum()) * KJMOL_PER_EV

    def in_float64(self) -> StudentPotential:
        """This student, its weights as they are, with the network in float64.

        What the two differ by is the rounding of the network.
        """
        twin = copy.copy(self)
        twin.student = copy.deepcopy(self.student)
        twin.student.network.double()
        twin._card = dataclasses.replace(self._card, dtype="float64")
        return twin

    def _known(self) -> Sequence[int]:
        return self.student.config.species


class _Engines(Mapping[Device, str]):
    """What evaluates where, asked of the engine itself: it may find out at its first evaluation."""

    def __init__(self, engine: nn.Module) -> None:
        self._engine = engine

    def __getitem__(self, device: Device) -> str:
        return engine_on(self._engine, device)

    def __iter__(self) -> Iterator[Device]:
        return iter(get_args(Device))

    def __len__(self) -> int:
        return len(get_args(Device))


def add_student(
    openmm_system: openmm.System,
    topology: openmm.app.Topology,
    student: str | os.PathLike[str] | Student | StudentPotential,
    *,
    atoms: Iterable[int] | None = None,
    force_group: int = 0,
    backend: Backend = "auto",
    engine: Engine = "auto",
) -> openmm.Force:
    """Add a student to a System by hand.

    A System with a TorchForce cannot be copied or read back from XML: OpenMM 8.6 and plugin 1.10
    end the process. With `backend="pythonforce"` it can, at some microseconds a step.

    Parameters
    ----------
    openmm_system : with one particle an atom. Where the topology has a box, the System gets it,
        unless it has been given one already
    topology : elements, and a box if periodic
    student : a shipped name such as "tiny", the folder of a checkpoint, or a loaded student
    atoms : indices of those under the student; None means all. It sees no others and puts no
        force on them; what binds the two parts is left to the System's other forces
    force_group : of the Force that is added
    backend : "torchforce", "pythonforce", or "auto": TorchForce where the plugin is there
    engine : "compiled" is many times faster than "scripted" on Reference and CPU, and needs a C++
        compiler; "auto" takes it where it can be had

    Returns
    -------
    the Force that was added

    Raises
    ------
    UnsupportedSystemError : an element that the student never saw, or virtual sites, among its
        atoms
    InputError : indices that the topology does not have, or one that comes twice; a System whose
        box is not the topology's; "compiled" was asked for and cannot be had; no student
    """
    if openmm_system.getNumParticles() != topology.getNumAtoms():
        raise UnsupportedSystemError(
            f"the System has {openmm_system.getNumParticles()} particles, "
            f"the topology {topology.getNumAtoms()} atoms; a student needs one particle an atom"
        )
    force = student_force(topology, student, atoms=atoms, backend=backend, engine=engine)
    force.setForceGroup(force_group)
    _take_box(openmm_system, topology)
    openmm_system.addForce(force)
    return force


def _take_box(openmm_system: openmm.System, topology: openmm.app.Topology) -> None:
    """Give a System the topology's box where it still has the one that every System begins with.

    Raises
    ------
    InputError : it was given another one
    """
    wanted = topology.getPeriodicBoxVectors()
    if wanted is None:
        return
    box = np.array(wanted._value)

    has = _box_of(openmm_system)
    if np.allclose(has, box, rtol=0.0, atol=_SAME_BOX_NM):
        return
    if not np.allclose(has, _box_of(openmm.System()), rtol=0.0, atol=_SAME_BOX_NM):
        raise InputError(
            f"the System's box has edges of {_edges(has)} nm, the topology's of {_edges(box)} nm; "
            "make them the same (System.setDefaultPeriodicBoxVectors, or "
            "Topology.setPeriodicBoxVectors)"
        )
    openmm_system.setDefaultPeriodicBoxVectors(*box)


def _box_of(openmm_system: openmm.System) -> NDArray[np.float64]:
    """Default box vectors of a System, shape (3, 3), nm."""
    return np.array([list(row._value) for row in openmm_system.getDefaultPeriodicBoxVectors()])


def _edges(box: NDArray[np.float64]) -> str:
    return " ".join(f"{length:.4g}" for length in np.linalg.norm(box, axis=1))


def student_force(
    topology: openmm.app.Topology,
    student: str | os.PathLike[str] | Student | StudentPotential,
    *,
    atoms: Iterable[int] | None = None,
    backend: Backend = "auto",
    engine: Engine = "auto",
) -> openmm.Force:
    """The Force of a student on a topology's atoms, belonging to no System yet.

    A PythonForce can be copied and serialised: what is kept is which student is on which atoms.
    Parameters, returns and errors are those of `add_student`.
    """
    given = _given(student)
    student = given if isinstance(given, Student) else load_student(given)
    name = student.config.name if isinstance(given, Student) else given
    listed = list(topology.atoms())
    chosen = None if atoms is None else _indices(atoms, len(listed))
    seen = listed if chosen is None else [listed[i] for i in chosen]
    if len(seen) < 2:
        raise UnsupportedSystemError(
            f"{name} was given {len(seen)} of {len(listed)} atoms; a student needs two or more"
        )
    species = [atom.element.atomic_number if atom.element else 0 for atom in seen]
    unknown = sorted(set(species) - set(student.config.species))
    if unknown:
        raise UnsupportedSystemError(
            f"{name} was never trained on {_symbols(unknown)} "
            f"(knows {_symbols(student.config.species)})"
        )
    periodic = topology.getPeriodicBoxVectors() is not None
    if resolve_backend(backend) == "pythonforce":
        force = openmm.PythonForce(StudentFunction(given, species, chosen, periodic, engine))
        force.setUsesPeriodicBoundaryConditions(periodic)
        return force
    return make_force(
        _engine(student, species, chosen, periodic, engine), periodic=periodic, backend=backend
    )


def _given(student: object) -> str | Student:
    """What names a student, or the student itself.

    Raises
    ------
    InputError : it is none
    """
    if isinstance(student, StudentPotential):
        return student.student
    if isinstance(student, Student):
        return student
    if isinstance(student, str | os.PathLike):
        return os.fspath(student)
    raise InputError(
        'wanted a student: a shipped name such as "tiny", the folder of a checkpoint, or what '
        f"load_student or load_potential has loaded; got a {type(student).__name__}. What is no "
        "student adds itself: load_potential(...).add_to(system, ...)"
    )


class StudentFunction:
    """A student as the function of a PythonForce. Pickled, it is the student's name and the atoms;
    the numbers are read again where it is unpickled.

    Parameters
    ----------
    name : a shipped name, the folder of a checkpoint, or the student itself
    species : atomic numbers of the atoms under it
    atoms : their indices; None means all
    periodic : whether the box repeats
    engine : see `students.engine.build_engine`
    """

    def __init__(
        self,
        name: str | Student,
        species: Sequence[int],
        atoms: Sequence[int] | None,
        periodic: bool,
        engine: Engine = "auto",
    ) -> None:
        self._parameters = (name, species, atoms, periodic, engine)
        self._periodic = periodic
        student = name if isinstance(name, Student) else load_student(name)
        self._engine = script(_engine(student, species, atoms, periodic, engine))

    def __call__(self, state: openmm.State) -> tuple[float, NDArray[np.float64]]:
        positions = torch.from_numpy(np.array(state.getPositions(asNumpy=True)._value))
        box = None
        if self._periodic:
            box = torch.from_numpy(np.array(state.getPeriodicBoxVectors(asNumpy=True)._value))
        energies, forces = self._engine(positions, box)
        return float(energies.sum()), forces.numpy()

    def __reduce__(self) -> tuple[type[StudentFunction], tuple[Any, ...]]:
        return StudentFunction, self._parameters


def _engine(
    student: Student,
    species: Sequence[int],
    atoms: Sequence[int] | None,
    periodic: bool,
    engine: Engine,
) -> nn.Module:
    built = build_engine(student, torch.tensor(species), periodic=periodic, engine=engine)
    return built if atoms is None else SubsetEngine(built, torch.tensor(atoms))


def _indices(atoms: Iterable[int], n_atoms: int) -> list[int]:
    """The indices as they came, each known to be one of the topology's."""
    try:
        indices = [operator.index(atom) for atom in atoms]
    except TypeError:
        raise InputError("atoms: wanted indices such as [0, 1, 2]; got something else") from None
    strange = [i for i in indices if not 0 <= i < n_atoms]
    if strange:
        raise InputError(f"atom {strange[0]} is none of the topology's (0 to {n_atoms - 1})")
    if len(set(indices)) < len(indices):
        twice = next(i for i in indices if indices.count(i) > 1)
        raise InputError(f"atom {twice} comes twice; name each once")
    return indices


def names() -> list[str]:
    """Shipped students."""
    return shipped_names("checkpoints", CARD_FILE)


def matches(spec: str) -> bool:
    """Whether this source reads the spec: a shipped name or a checkpoint's folder."""
    name = spec.partition("?")[0]
    if name in names():
        return True
    try:
        return Path(spec).is_dir() or Path(name).is_dir()
    except OSError:  # a name too long for a file system, or a folder that may not be looked into
        return False


@functools.lru_cache(maxsize=8)
def load(spec: str) -> StudentPotential:
    """The potential behind a spec; its options are `engine` and `cuda_graphs`.

    Raises
    ------
    InputError : another option, or a value that is not known
    """
    name, options = _name_and_options(spec)
    engine, cuda_graphs = options.pop("engine", "auto"), options.pop("cuda_graphs", "auto")
    if options:
        raise InputError(
            f"{spec!r}: a student's options are engine and cuda_graphs, got {next(iter(options))!r}"
        )
    if cuda_graphs != "auto" and not isinstance(cuda_graphs, bool):
        raise InputError(f"{spec!r}: wanted cuda_graphs auto, True or False, got {cuda_graphs!r}")
    return StudentPotential(name, engine=engine, cuda_graphs=cuda_graphs)


def _name_and_options(spec: str) -> tuple[str, dict[str, Any]]:
    """A folder may have a question mark in its name."""
    return (spec, {}) if Path(spec).is_dir() else split_options(spec)


def takes(thing: Any) -> bool:
    """Whether it is a student."""
    return isinstance(thing, Student)


def wrap(thing: Student) -> StudentPotential:
    """The potential of a student from a script."""
    return StudentPotential(thing)


def _card(card: dict[str, Any], student: Student) -> PotentialCard:
    return PotentialCard(
        name=str(card["name"]),
        source=SOURCE,
        species=student.config.species,
        cutoff_nm=student.config.cutoff_angstrom * NM_PER_ANGSTROM,
        dtype=str(student.dtype).removeprefix("torch."),
        n_parameters=student.n_parameters,
        training_domain=card.get("training_domain", {}),
        sha256=card.get("sha256"),
        charge=0,
        spin_multiplicity=1,
    )


def _symbols(atomic_numbers: Sequence[int]) -> str:
    symbols = [
        openmm.app.Element.getByAtomicNumber(z).symbol if z else "virtual sites"
        for z in atomic_numbers
    ]
    return ", ".join(symbols)
