"""A serialised openmm.System as a potential: it knows its atoms by their place."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import openmm

from omm_mlff.errors import InputError, UnsupportedSystemError
from omm_mlff.forces.faults import one_line
from omm_mlff.potentials.cloned import SOURCE, ClonedPotential, formula, narrow_for
from omm_mlff.potentials.probe import Probe
from omm_mlff.schema import MolecularSystem, PotentialCard

_HYDROGEN_DALTON = (0.9, 4.5)
"""From light hydrogen to one that was given mass of its neighbour; nothing heavier is one."""
_TOLERANCE_DALTON = 0.1

TORCH_FORCE = "TorchForce"
WITH_TORCH_FORCE = (
    "has a TorchForce, which the plugin cannot copy or read back under OpenMM 8.6 (it would end "
    "the process); give its TorchScript file itself, as path/model.pt"
)
"""What to do with such a System."""


class SystemPotential(ClonedPotential):
    """The forces of an openmm.System, for the molecule or box that it was made for.

    Its masses, box and thermostat stay behind, those of the run count. Masses are looked at for
    one thing: whether the elements stand in the order of the molecule. Hydrogens may be heavier,
    and their neighbours lighter, as in hydrogen mass repartitioning; masses of zero, and masses
    that are all the same, tell nothing.

    Parameters
    ----------
    system : copied
    sha256 : of the serialised text where it is None
    said : what the card says of dtype and cutoff

    Raises
    ------
    InputError : it cannot be copied, by its own fault or since it has a TorchForce
    """

    def __init__(
        self,
        system: openmm.System,
        *,
        spec: str,
        name: str,
        sha256: str | None = None,
        said: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            text = openmm.XmlSerializer.serialize(system)
        except openmm.OpenMMException as error:  # such as a function that does not pickle
            raise InputError(
                f"{spec} cannot be copied ({one_line(error)}); wanted Forces that can be "
                "serialised, their functions from the top level of a module"
            ) from error
        if f'type="{TORCH_FORCE}"' in text:  # in Python it is a Force like any other
            raise InputError(f"{spec} {WITH_TORCH_FORCE}")
        self._system = copy.deepcopy(system)
        self._has_python = 'type="PythonForce"' in text
        card = PotentialCard(
            name=name,
            source=SOURCE,
            species=None,
            sha256=sha256 or hashlib.sha256(text.encode()).hexdigest(),
            knows_atoms_by="index",
            **({"dtype": "float64", "cutoff_nm": None} | dict(said or {})),
        )
        super().__init__(spec, card)
        self._probe = Probe(self)

    def unsupported(self, system: MolecularSystem) -> str | None:
        """Why it cannot serve this system, in one line; None if it can."""
        return misfit(self._system, system) or self._probe.failure(system)

    def reference_energy(self, system: MolecularSystem) -> float | None:
        """0; None where a function in Python may add energies of atoms, and does not say."""
        return None if self._has_python else 0.0

    def made(self, system: MolecularSystem) -> openmm.System:
        reason = misfit(self._system, system)
        if reason:
            raise UnsupportedSystemError(reason)
        return self._system


def misfit(made: openmm.System, system: MolecularSystem) -> str | None:
    """Why a System is not one of this molecule or box, in one line; None where it may be."""
    if made.getNumParticles() != system.n_atoms:
        return (
            f"the System has {made.getNumParticles()} particles, {system.name} "
            f"{system.n_atoms} atoms ({formula(system)})"
        )
    if any(made.isVirtualSite(i) for i in range(made.getNumParticles())):
        return "the System has virtual sites, which a run here does not move; use a model without"
    if made.getNumConstraints():
        return (
            f"the System has {made.getNumConstraints()} constraints, and a run here has none; "
            "make it with constraints=None and rigidWater=False"
        )
    return _other_order(made, system) or _other_box(made, system)


def _other_order(made: openmm.System, system: MolecularSystem) -> str | None:
    masses = np.array([made.getParticleMass(i)._value for i in range(made.getNumParticles())])
    if len(set(masses)) == 1 and system.n_atoms > 1:
        return None
    hydrogen = system.species == 1
    gained = np.zeros(system.n_atoms)  # by the hydrogens of each atom
    for i, j in system.bonds.tolist():
        for one, other in ((i, j), (j, i)):
            if hydrogen[other]:
                heavier = min(masses[other], _HYDROGEN_DALTON[1]) - system.masses[other]
                gained[one] += max(0.0, heavier)
    low = np.where(hydrogen, _HYDROGEN_DALTON[0], system.masses - gained - _TOLERANCE_DALTON)
    high = np.where(hydrogen, _HYDROGEN_DALTON[1], system.masses + _TOLERANCE_DALTON)
    wrong = np.flatnonzero((masses != 0.0) & ((masses < low) | (masses > high)))
    if not len(wrong):
        return None
    first = int(wrong[0])
    symbol = openmm.app.Element.getByAtomicNumber(int(system.species[first])).symbol
    return (
        f"atom {first} of {system.name} is {symbol}, of {system.masses[first]:.3f} dalton, "
        f"and particle {first} of the System has {masses[first]:.3f}: it was made for another "
        "molecule or another order of atoms"
    )


def _other_box(made: openmm.System, system: MolecularSystem) -> str | None:
    periodic = made.usesPeriodicBoundaryConditions()
    if periodic and not system.periodic:
        return (
            f"the System's forces are periodic, and {system.name} is in vacuum; "
            "make it with nonbondedMethod=NoCutoff"
        )
    if system.periodic and not periodic:
        return (
            f"the System's forces know no box, and {system.name} has one; "
            "make it with nonbondedMethod=PME"
        )
    cutoffs = [
        force.getCutoffDistance()._value
        for force in made.getForces()
        if hasattr(force, "getCutoffDistance")
    ]
    narrow = narrow_for(system, max(cutoffs, default=0.0))
    return f"{narrow}; make it with a shorter nonbondedCutoff" if narrow else None
