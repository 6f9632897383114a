"""A model source of another package: `network:STIFFNESS`, an elastic network.

Springs between all atoms of a molecule, each as long as in the given structure (Tirion, Phys. Rev.
Lett. 77, 1905 (1996)): `omm-mlff validate --model network:50000`.
"""

from __future__ import annotations

import itertools

import numpy as np
import openmm

from omm_mlff.errors import InputError
from omm_mlff.forces.built import Built
from omm_mlff.potentials.base import Capabilities
from omm_mlff.schema import PotentialCard

PREFIX = "network:"
FORMS = ("network:STIFFNESS in kJ/mol/nm^2",)


class ElasticNetwork:
    """The methods of `omm_mlff.potentials.base.Potential`; OpenMM's own Force computes,
    so that there is nothing to declare."""

    def __init__(self, spec, stiffness):
        self.spec = spec
        self.stiffness = stiffness
        self.card = PotentialCard(
            name=spec.replace(":", "-"),
            source="network",
            species=None,
            cutoff_nm=None,
            dtype="float64",
            n_parameters=1,
            knows_atoms_by="bond",
        )

    def unsupported(self, system):
        return "a box has no structure at rest" if system.periodic else None

    def capabilities(self, system):
        return Capabilities()

    def add_to(self, openmm_system, system, *, n_replicas=1, tap=None):
        springs = openmm.HarmonicBondForce()
        for i, j in itertools.combinations(range(system.n_atoms), 2):
            length = float(np.linalg.norm(system.positions[j] - system.positions[i]))
            springs.addBond(i, j, length, self.stiffness)
        openmm_system.addForce(springs)
        return Built("openmm")

    def energies_and_forces(self, positions, system):
        return None

    def reference_energy(self, system):
        return 0.0


def names():
    return []


def matches(spec):
    return spec.startswith(PREFIX)


def load(spec):
    try:
        return ElasticNetwork(spec, float(spec.removeprefix(PREFIX)))
    except ValueError:
        raise InputError(f"{spec!r}: wanted a stiffness, as in network:50000") from None
