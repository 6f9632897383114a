"""The systems of the proving ground, with labels from the sound potential.

Labels are frames of Langevin dynamics under the sound field itself, so that a sound potential has
no error at all and a fault is the only difference.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from openmm import unit
from openmm.app import Element, Topology
from torch import nn

from omm_mlff.forces.scripting import script
from omm_mlff.proving.field import PairEngine, sound_terms
from omm_mlff.proving.potential import ProvingPotential
from omm_mlff.schema import Identity, MolecularSystem, ReferenceLabels
from omm_mlff.units import BOLTZMANN, PS_PER_FS

_FOLDER = Path(__file__).resolve().parent
METHOD = "the sound potential itself"
N_TRAJECTORIES = 8
N_FRAMES = 16  # of each trajectory
_FRICTION_PER_PS = 5.0
_EQUILIBRATION = 2000  # steps
_BETWEEN_FRAMES = 500  # steps


@dataclass(frozen=True)
class Ground:
    """One system, the sound potential on it, and how it is validated.

    Attributes
    ----------
    cutoff_nm : of what does not follow bonds
    harmonic : springs in the place of Morse bonds
    temperature_K, timestep_fs : of the labels' dynamics
    """

    name: str
    cutoff_nm: float
    harmonic: bool
    temperature_K: float
    timestep_fs: float
    profile: Path
    structure: Callable[[], MolecularSystem]

    def engine(self, system: MolecularSystem, n_copies: int) -> nn.Module:
        """The sound engine on this ground's system, or on two copies of it."""
        return PairEngine(system, n_copies, sound_terms(system, self.cutoff_nm, self.harmonic))

    @property
    def knows_atoms_by(self) -> Identity:
        """Of the card of a potential on this ground."""
        return "bond" if len(self.structure().bonds) else "element"

    def system(self) -> MolecularSystem:
        """The system at its minimum, with labels; made once in a process."""
        return _labelled(self)

    def sound_potential(self) -> ProvingPotential:
        """The potential that made the labels."""
        return ProvingPotential(
            f"sound {self.name}",
            self.engine,
            cutoff_nm=self.cutoff_nm,
            knows_atoms_by=self.knows_atoms_by,
        )


def _make(
    name: str,
    species: list[int],
    positions: NDArray[np.float64],
    bonds: list[tuple[int, int]],
    box_nm: float | None = None,
) -> MolecularSystem:
    topology = Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    elements = [Element.getByAtomicNumber(z) for z in species]
    atoms = [
        topology.addAtom(f"{element.symbol}{i}", element, residue)
        for i, element in enumerate(elements)
    ]
    for i, j in bonds:
        topology.addBond(atoms[i], atoms[j])
    box = None if box_nm is None else box_nm * np.eye(3)
    if box is not None:
        topology.setPeriodicBoxVectors(box * unit.nanometer)
    return MolecularSystem(
        name=name,
        source="the proving ground",
        topology=topology,
        positions=np.ascontiguousarray(positions, dtype=np.float64),
        species=np.array(species),
        masses=np.array([element.mass.value_in_unit(unit.dalton) for element in elements]),
        bonds=np.array(sorted(bonds), dtype=np.int64).reshape(-1, 2),
        box_vectors=box,
    )


def _methanol() -> MolecularSystem:
    """C, O, three hydrogens of the carbon, one of the oxygen; staggered."""
    rise, radius = 0.109 * math.cos(math.radians(109.47)), 0.109 * math.sin(math.radians(109.47))
    turn = [math.radians(angle) for angle in (60.0, 180.0, 300.0)]
    methyl = [[radius * math.cos(a), radius * math.sin(a), rise] for a in turn]
    tilt = math.radians(104.5)
    hydroxyl = [0.096 * math.sin(tilt), 0.0, 0.141 - 0.096 * math.cos(tilt)]
    positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.141], *methyl, hydroxyl])
    bonds = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 5)]
    return _make("methanol", [6, 8, 1, 1, 1, 1], positions, bonds)


def _chain() -> MolecularSystem:
    """H-O-O-H, twisted."""
    angle, half = math.radians(104.5), math.radians(0.5 * 111.5)
    out = 0.096 * math.sin(angle)
    along = 0.096 * math.cos(angle)
    first = [out * math.cos(half), out * math.sin(half), along]
    last = [out * math.cos(half), -out * math.sin(half), 0.1475 - along]
    positions = np.array([first, [0.0, 0.0, 0.0], [0.0, 0.0, 0.1475], last])
    return _make("chain", [1, 8, 8, 1], positions, [(0, 1), (1, 2), (2, 3)])


def _cluster() -> MolecularSystem:
    """Thirteen argon atoms: an icosahedron about one."""
    golden = 0.5 * (1.0 + math.sqrt(5.0))
    corners = [(0.0, a, b * golden) for a in (1.0, -1.0) for b in (1.0, -1.0)]
    shell = np.array([np.roll(corner, k) for corner in corners for k in range(3)])
    shell *= 0.37 / np.linalg.norm(shell[0])
    return _make("argon-cluster", [18] * 13, np.concatenate((np.zeros((1, 3)), shell)), [])


def _four() -> MolecularSystem:
    """Four neon atoms, a tetrahedron: its corners can be reached from outside."""
    corners = np.array([[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
    return _make("neon-four", [10] * 4, 0.0754 * corners, [])


def _box() -> MolecularSystem:
    """Solid argon, 32 atoms; a periodic cube."""
    edge = 0.53
    cell = np.array([[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
    corners = np.array([[a, b, c] for a in range(2) for b in range(2) for c in range(2)])
    positions = edge * (corners[:, None] + cell[None]).reshape(-1, 3)
    return _make("argon-box", [18] * len(positions), positions, [], 2 * edge)


@functools.cache
def _labelled(ground: Ground) -> MolecularSystem:
    """The structure at its minimum, with frames of Langevin dynamics for labels."""
    bare = ground.structure()
    rest = _minimum(ground, bare)
    positions = _langevin(ground, bare, rest)
    n_frames = len(positions)
    box = None if bare.box_vectors is None else torch.from_numpy(bare.box_vectors)
    energies, forces = ground.engine(bare, n_frames)(
        torch.from_numpy(positions).reshape(-1, 3), box
    )
    labels = ReferenceLabels(
        positions=positions,
        energies=energies.numpy(),
        forces=forces.numpy().reshape(positions.shape),
        trajectory=np.tile(np.arange(N_TRAJECTORIES), N_FRAMES),
        temperature_K=np.full(n_frames, ground.temperature_K),
        method=METHOD,
    )
    values = {**vars(bare), "positions": rest, "reference": labels}
    return MolecularSystem(**values)


def _minimum(ground: Ground, system: MolecularSystem) -> NDArray[np.float64]:
    from scipy.optimize import minimize

    engine = ground.engine(system, 1)
    box = None if system.box_vectors is None else torch.from_numpy(system.box_vectors)

    def downhill(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        energy, forces = engine(torch.from_numpy(x.reshape(-1, 3).copy()), box)
        return float(energy), -forces.numpy().ravel()

    found = minimize(downhill, system.positions.ravel(), jac=True, method="L-BFGS-B", tol=1.0e-12)
    rest: NDArray[np.float64] = found.x.reshape(-1, 3)
    return rest


def _langevin(
    ground: Ground, system: MolecularSystem, rest: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Frames of every trajectory, shape (N_FRAMES * N_TRAJECTORIES, n_atoms, 3), nm.

    References
    ----------
    Leimkuhler & Matthews, Appl. Math. Res. Express 2013, 34 (2013): the scheme BAOAB.
    """
    engine = script(ground.engine(system, N_TRAJECTORIES))
    box = None if system.box_vectors is None else torch.from_numpy(system.box_vectors)
    generator = torch.Generator().manual_seed(len(ground.name))
    x = torch.from_numpy(np.tile(rest, (N_TRAJECTORIES, 1)))
    mass = torch.from_numpy(np.tile(system.masses, N_TRAJECTORIES)).unsqueeze(1)
    dt = ground.timestep_fs * PS_PER_FS
    thermal = torch.sqrt(BOLTZMANN * ground.temperature_K / mass)
    keep = math.exp(-_FRICTION_PER_PS * dt)
    add = math.sqrt(1.0 - keep * keep)

    def gaussian() -> torch.Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float64)

    v = thermal * gaussian()
    frames = []
    with torch.no_grad():
        forces = engine(x, box)[1]
        for step in range(1, _EQUILIBRATION + N_FRAMES * _BETWEEN_FRAMES + 1):
            v = v + (0.5 * dt) * forces / mass
            x = x + (0.5 * dt) * v
            v = keep * v + add * thermal * gaussian()
            x = x + (0.5 * dt) * v
            forces = engine(x, box)[1]
            v = v + (0.5 * dt) * forces / mass
            if step > _EQUILIBRATION and (step - _EQUILIBRATION) % _BETWEEN_FRAMES == 0:
                frames.append(x.numpy().reshape(N_TRAJECTORIES, -1, 3).copy())
    return np.concatenate(frames)


METHANOL = Ground("methanol", 0.6, False, 300.0, 0.5, _FOLDER / "molecule.toml", _methanol)
LONG_METHANOL = Ground("methanol", 0.6, False, 300.0, 0.5, _FOLDER / "soak.toml", _methanol)
SLOW_METHANOL = Ground("methanol", 0.6, False, 300.0, 0.5, _FOLDER / "slow.toml", _methanol)
CHAIN = Ground("chain", 0.6, True, 300.0, 0.5, _FOLDER / "molecule.toml", _chain)
CLUSTER = Ground("argon-cluster", 0.85, False, 10.0, 5.0, _FOLDER / "argon.toml", _cluster)
FOUR = Ground("neon-four", 0.6, False, 10.0, 5.0, _FOLDER / "argon.toml", _four)
BOX = Ground("argon-box", 0.52, False, 15.0, 5.0, _FOLDER / "box.toml", _box)
