"""Contexts that are made once and kept for whoever asks for the same again.

To make a Context costs as much as many evaluations: a module is scripted, a device compiles, the
first calls are thrown away. What asks for the same potential, atoms, platform, precision, timestep
and number of copies gets the same Context. Nothing is handed on with it: who takes it sets the
positions, and `Held.ready` puts back whatever else a former user may have left.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import openmm

from omm_mlff.dynamics.graphs import Case, open_context
from omm_mlff.errors import UnsupportedSystemError
from omm_mlff.forces.built import Built
from omm_mlff.forces.faults import one_line
from omm_mlff.forces.interrupt import deferred_interrupt
from omm_mlff.forces.platforms import device_asked
from omm_mlff.forces.potential_errors import is_not_a_number, own_error
from omm_mlff.forces.tap import Part, Tap
from omm_mlff.potentials.base import Potential, system_and_built
from omm_mlff.schema import MolecularSystem, Precision
from omm_mlff.units import PS_PER_FS

DISCARDED_CALLS = 3
"""The first calls of a TorchScript module differ from later ones in the last bits."""


def make_context(
    potential: Potential,
    system: MolecularSystem,
    integrator: openmm.Integrator,
    platform_name: str,
    precision: Precision,
    *,
    n_copies: int,
    tap: Tap | None,
) -> openmm.Context:
    """A Context of a potential on copies of a molecular system.

    Raises
    ------
    UnsupportedSystemError : the potential cannot serve it, or OpenMM makes no Context of it
    ValidationFailure : memory or the device failed
    """
    return context_and_built(
        potential, system, integrator, platform_name, precision, n_copies=n_copies, tap=tap
    )[0]


def context_and_built(
    potential: Potential,
    system: MolecularSystem,
    integrator: openmm.Integrator,
    platform_name: str,
    precision: Precision,
    *,
    n_copies: int,
    tap: Tap | None,
) -> tuple[openmm.Context, Built]:
    """What `make_context` makes, and what the potential has put into its System.

    Raises
    ------
    UnsupportedSystemError, ValidationFailure : see `make_context`
    """
    openmm_system, built = system_and_built(potential, system, n_replicas=n_copies, tap=tap)
    try:
        case = Case(potential, system, platform_name, precision, n_copies)
        return open_context(openmm_system, built, integrator, case, tap)
    except openmm.OpenMMException as error:
        own_error(error, potential.card)
        raise UnsupportedSystemError(
            f"{potential.card.name} cannot serve {system.name}: OpenMM makes no Context of it: "
            f"{one_line(error)}"
        ) from error


@dataclass(frozen=True, eq=False)
class Wanted:
    """What a Context is for: a potential under VerletIntegrator, on copies of a system.

    Attributes
    ----------
    device : the index that was asked for; None for the platform's own choice
    """

    potential: Potential
    system: MolecularSystem
    platform_name: str
    precision: Precision
    timestep_fs: float
    n_copies: int = 1
    device: int | None = field(default_factory=device_asked)

    def key(self) -> tuple[object, ...]:
        """Equal for two that one Context can serve; `potential` must live as long."""
        # Of two systems with the same atoms only the positions differ, and those are set anew. A
        # potential that knows its atoms by more than their elements may look at more of a system.
        system = self.system
        by_element = self.potential.card.knows_atoms_by == "element"
        return (
            id(self.potential),
            _atoms(system) if by_element else id(system),
            self.platform_name,
            self.precision,
            self.timestep_fs,
            self.n_copies,
            self.device,
        )


def _atoms(system: MolecularSystem) -> str:
    digest = hashlib.sha256(str(system.charge).encode())
    box = np.zeros(0) if system.box_vectors is None else system.box_vectors
    for array in (system.species, system.masses, system.bonds, box):
        digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Held:
    """Copies of a molecular system in one Context that has forgotten its first calls.

    Attributes
    ----------
    tap : of all copies; None where the potential has none
    on_host : the tap's tensors are where the processor is
    built : what the potential has put into its System
    """

    wanted: Wanted
    context: openmm.Context
    tap: Tap | None
    on_host: bool
    built: Built

    @property
    def takes_parts(self) -> bool:
        """Whether fewer copies than it has cost no more than those."""
        return self.tap is not None and self.tap.takes_parts and self.on_host

    def ready(self) -> None:
        """Put back what a former user may have left, positions and velocities apart."""
        if self.tap is not None:
            self.tap.alive.fill_(True)
            self.tap.raised = {}
        box = self.wanted.system.box_vectors
        if box is not None:
            self.context.setPeriodicBoxVectors(*box)

    def raised(self) -> str | None:
        """What the potential's own code raised in the last evaluation of the first copy."""
        if self.tap is None or 0 not in self.tap.raised:
            return None
        return own_error(self.tap.raised[0], self.wanted.potential.card)

    @property
    def masked(self) -> bool:
        """Whether a copy's numbers were not finite, since `ready`, and zero was put in for them."""
        return self.tap is not None and not bool(self.tap.alive.all())

    def close(self) -> None:
        """Forget the tap; the Context goes with its last user."""
        if self.tap is not None:
            self.tap.close()


class Contexts:
    """Contexts of any potential on any system, until they are closed."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], list[Held]] = {}

    def get(self, wanted: Wanted) -> Held:
        """The Context that everybody shares.

        Raises
        ------
        UnsupportedSystemError : the potential cannot serve the system, or no Context can be made
        ValidationFailure : memory or the device failed
        """
        kept = self._kept.setdefault(wanted.key(), [])
        if not kept:
            kept.append(_made(wanted))
        return kept[0]

    def other(self, wanted: Wanted) -> Held:
        """One that is not the Context that everybody shares; somebody may have used it.

        Raises
        ------
        UnsupportedSystemError, ValidationFailure : see `get`
        """
        self.get(wanted)
        kept = self._kept[wanted.key()]
        if len(kept) == 1:
            kept.append(_made(wanted))
        return kept[1]

    def new(self, wanted: Wanted) -> Held:
        """One that nobody has used yet; from then on it is the `other`.

        Raises
        ------
        UnsupportedSystemError, ValidationFailure : see `get`
        """
        self.get(wanted)
        kept = self._kept[wanted.key()]
        made = _made(wanted)
        for former in kept[1:]:
            former.close()
        kept[1:] = [made]
        return made

    def close(self) -> None:
        """Give all Contexts and their taps back."""
        for kept in self._kept.values():
            for held in kept:
                held.close()
        self._kept = {}

    def __enter__(self) -> Contexts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _made(wanted: Wanted) -> Held:
    """A new Context that has forgotten its first calls."""
    potential, system, n_copies = wanted.potential, wanted.system, wanted.n_copies
    tap = Tap(n_copies, system.n_atoms) if potential.capabilities(system).tap else None
    try:
        context, built = context_and_built(
            potential,
            system,
            openmm.VerletIntegrator(wanted.timestep_fs * PS_PER_FS),
            wanted.platform_name,
            wanted.precision,
            n_copies=n_copies,
            tap=tap,
        )
        on_host = wanted.platform_name in ("Reference", "CPU")
        held = Held(wanted, context, tap, on_host, built)
        _warm_up(held)
    except BaseException:
        if tap is not None:
            tap.close()
        raise
    return held


def _warm_up(held: Held) -> None:
    context, system = held.context, held.wanted.system
    context.setPositions(np.tile(system.positions, (held.wanted.n_copies, 1)))
    if held.takes_parts and held.tap is not None:
        held.tap.part = Part(1, forces=True)  # copies are all alike to what has to be forgotten
    with deferred_interrupt() as interrupted:
        for _ in range(DISCARDED_CALLS):
            try:
                context.getState(energy=True, forces=True)
            except openmm.OpenMMException as error:
                # What is wrong shows again when it is asked for.
                if not is_not_a_number(error):
                    own_error(error, held.wanted.potential.card)
        if interrupted():
            raise KeyboardInterrupt
    if held.tap is not None:
        held.tap.part = None
