"""Potentials with a closed form, for tests: harmonic bonds, tapped and untapped."""

from __future__ import annotations

import numpy as np
import openmm
import torch
from openmm.app import Element, Topology
from torch import Tensor, nn

from omm_mlff.forces.built import Built
from omm_mlff.forces.making import make_force
from omm_mlff.forces.plugin import built_as
from omm_mlff.forces.python_force import make_python_force
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials.base import Capabilities
from omm_mlff.schema import MolecularSystem, PotentialCard

STIFFNESS = 3.0e5  # kJ/mol/nm^2, of an O-H stretch


def diatomic(length_nm: float = 0.1) -> MolecularSystem:
    """Two hydrogens on a spring."""
    return molecule([1, 1], [[0.0, 0.0, 0.0], [length_nm, 0.0, 0.0]], [[0, 1]])


def triatomic() -> MolecularSystem:
    """Water's shape, every pair on a spring."""
    positions = [[0.0, 0.0, 0.0], [0.096, 0.0, 0.0], [-0.024, 0.093, 0.0]]
    return molecule([8, 1, 1], positions, [[0, 1], [0, 2]])


def molecule(species, positions, bonds, box_vectors=None) -> MolecularSystem:
    """A molecular system from lists."""
    topology = Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    elements = [Element.getByAtomicNumber(z) for z in species]
    for i, element in enumerate(elements):
        topology.addAtom(f"{element.symbol}{i}", element, residue)
    return MolecularSystem(
        name="springs",
        source="tests",
        topology=topology,
        positions=np.array(positions, dtype=float),
        species=np.array(species),
        masses=np.array([element.mass._value for element in elements]),
        bonds=np.array(bonds, dtype=np.int64).reshape(-1, 2),
        box_vectors=box_vectors,
    )


class SpringEngine(nn.Module):
    """E = k/2 (d - d0)^2 over every pair of a copy; NaN beyond `breaks_at`, if given.

    `breaks_copy` says which copy may break; the others are sound. With `raises_at` it raises where
    a pair of any copy is longer than so many times its length at rest.
    """

    def __init__(
        self,
        system,
        n_copies=1,
        stiffness=STIFFNESS,
        breaks_at=0.0,
        breaks_copy=0,
        force_scale=1.0,
        rest_scale=1.0,
        raises_at=0.0,
    ):
        super().__init__()
        i, j = np.triu_indices(system.n_atoms, k=1)
        rest = np.linalg.norm(system.positions[j] - system.positions[i], axis=1)
        self.n_copies = n_copies
        self.stiffness = stiffness
        self.breaks_at = breaks_at
        self.breaks_copy = breaks_copy
        self.force_scale = force_scale
        self.raises_at = raises_at
        self.register_buffer("i", torch.from_numpy(i))
        self.register_buffer("j", torch.from_numpy(j))
        self.register_buffer("rest", torch.from_numpy(rest_scale * rest))

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = positions.view(self.n_copies, -1, 3)
        r = x[:, self.j] - x[:, self.i]
        d = (r * r).sum(-1).sqrt()
        if self.raises_at > 0.0 and bool((d > self.raises_at * self.rest).any()):
            raise ValueError("a pair is too long")
        energies = 0.5 * self.stiffness * ((d - self.rest) ** 2).sum(1)
        pull = self.stiffness * (d - self.rest).unsqueeze(-1) * r / d.unsqueeze(-1)
        forces = (
            torch.zeros_like(x, dtype=pull.dtype)
            .index_add(1, self.i, pull)
            .index_add(1, self.j, -pull)
        )
        may_break = self.breaks_at > 0.0 and self.breaks_copy < self.n_copies
        if may_break and bool((d[self.breaks_copy] > self.breaks_at).any()):
            energies = energies.clone()
            energies[self.breaks_copy] = float("nan")
            forces[self.breaks_copy] = float("nan")
        return energies, self.force_scale * forces.reshape(positions.shape)


def context_of(force, system, n_copies=1, platform="Reference", properties=None):
    """Copies of a molecule under one Force, every bond three percent too long, at rest."""
    openmm_system = openmm.System()
    for mass in np.tile(system.masses, n_copies):
        openmm_system.addParticle(float(mass))
    openmm_system.addForce(force)
    context = openmm.Context(
        openmm_system,
        openmm.VerletIntegrator(0.0005),
        openmm.Platform.getPlatformByName(platform),
        properties or {},
    )
    stretched = np.tile(system.positions * 1.03, (n_copies, 1))
    context.setPositions(stretched)
    context.setVelocities(np.zeros_like(stretched))
    return context


class SpringPotential:
    """Tapped, with replicas, like a student."""

    spec = "springs"
    backend = "auto"
    repeatable = False

    def __init__(self, dtype: str = "float64", **engine_options) -> None:
        self.card = PotentialCard("springs", "tests", None, None, dtype)
        self.engine_options = engine_options

    def unsupported(self, system):
        return None

    def capabilities(self, system):
        return Capabilities(
            tap=True, max_replicas=64, repeatable=self.repeatable, force="torchforce"
        )

    def add_to(self, openmm_system, system, *, n_replicas=1, tap: Tap | None = None):
        engine = SpringEngine(system, n_replicas, **self.engine_options)
        openmm_system.addForce(make_force(engine, periodic=False, tap=tap, backend=self.backend))
        return built_as(self.backend)

    def energies_and_forces(self, positions, system):
        engine = SpringEngine(system, len(positions), **self.engine_options)
        energies, forces = engine(torch.from_numpy(np.array(positions)).reshape(-1, 3))
        return energies.numpy(), forces.numpy().reshape(np.shape(positions))

    def reference_energy(self, system):
        return 0.0


class CalledSpringPotential(SpringPotential):
    """The same springs as a function of copies in plain Python, as of another program.

    `objects(frame)` may return an exception to raise for a copy; without `tapped` it is recorded
    the ordinary way, one copy in a System.
    """

    spec = "called-springs"

    def __init__(self, tapped=True, objects=None, dtype="float64", **engine_options) -> None:
        super().__init__(dtype, **engine_options)
        self.card = PotentialCard(self.spec, "tests", None, None, dtype)
        self.tapped = tapped
        self.objects = objects

    def capabilities(self, system):
        return Capabilities(
            tap=self.tapped, max_replicas=64 if self.tapped else 1, force="pythonforce"
        )

    def add_to(self, openmm_system, system, *, n_replicas=1, tap: Tap | None = None):
        openmm_system.addForce(
            make_python_force(
                lambda frames, box: self.energies_and_forces(frames, system),
                n_replicas=n_replicas,
                n_atoms=system.n_atoms,
                periodic=False,
                tap=tap,
            )
        )
        return Built("pythonforce")

    def energies_and_forces(self, positions, system):
        for frame in positions if self.objects is not None else ():
            error = self.objects(frame)
            if error is not None:
                raise error
        return super().energies_and_forces(positions, system)


class NativeSpringPotential:
    """The same energy from OpenMM's own HarmonicBondForce: another program, without a tap."""

    spec = "native-springs"
    card = PotentialCard("native-springs", "tests", None, None, "float64")

    def unsupported(self, system):
        return None

    def capabilities(self, system):
        return Capabilities()

    def add_to(self, openmm_system, system, *, n_replicas=1, tap=None):
        force = openmm.HarmonicBondForce()
        i, j = np.triu_indices(system.n_atoms, k=1)
        for a, b in zip(i, j, strict=True):
            d = float(np.linalg.norm(system.positions[a] - system.positions[b]))
            force.addBond(int(a), int(b), d, STIFFNESS)
        openmm_system.addForce(force)
        return Built("openmm")

    def energies_and_forces(self, positions, system):
        return None

    def reference_energy(self, system):
        return 0.0
