"""Tries a potential on a system once, so that what it cannot do is said before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import openmm

from omm_mlff.errors import OmmMlffError
from omm_mlff.forces.faults import one_line
from omm_mlff.forces.interrupt import deferred_interrupt
from omm_mlff.schema import MolecularSystem

if TYPE_CHECKING:
    from omm_mlff.potentials.base import Potential


class Probe:
    """Remembers for each molecule whether a potential could evaluate it.

    Parameters
    ----------
    potential : its `add_to` is called, never its `unsupported`
    """

    def __init__(self, potential: Potential) -> None:
        self._potential = potential
        self._known: dict[tuple[bytes, ...], str | float] = {}

    def failure(self, system: MolecularSystem) -> str | None:
        """What went wrong at the system's own positions, in one line; None where nothing did."""
        found = self._found(system)
        return found if isinstance(found, str) else None

    def energy(self, system: MolecularSystem) -> float | None:
        """The energy at the system's own positions, kJ/mol; None where something went wrong."""
        found = self._found(system)
        return None if isinstance(found, str) else found

    def _found(self, system: MolecularSystem) -> str | float:
        box = b"" if system.box_vectors is None else system.box_vectors.tobytes()
        charge = f"{system.charge} {system.spin_multiplicity}".encode()
        key = (system.species.tobytes(), system.bonds.tobytes(), box, charge)
        if key not in self._known:
            self._known[key] = self._try(system)
        return self._known[key]

    def _try(self, system: MolecularSystem) -> str | float:
        from omm_mlff.potentials.base import bare_system

        openmm_system = bare_system(system)
        try:
            self._potential.add_to(openmm_system, system)
            context = openmm.Context(
                openmm_system,
                openmm.VerletIntegrator(0.001),
                openmm.Platform.getPlatformByName("Reference"),
            )
            context.setPositions(system.positions)
            # Ctrl-C inside a callback would reach OpenMM as an error without a message.
            with deferred_interrupt() as interrupted:
                try:
                    state = context.getState(energy=True, forces=True)
                finally:
                    if interrupted():
                        raise KeyboardInterrupt
        except OmmMlffError as error:
            return str(error)
        except Exception as error:  # what somebody else's code raises is not known beforehand
            return one_line(error)
        energy = float(state.getPotentialEnergy()._value)
        if not np.isfinite(energy):
            return "its energy is not finite at the structure as given"
        if not np.isfinite(state.getForces(asNumpy=True)._value).all():
            return "its forces are not finite at the structure as given"
        return energy
