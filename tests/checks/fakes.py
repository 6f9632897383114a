"""Evidence made by hand: runs out of arrays, potentials out of functions."""

from __future__ import annotations

import numpy as np
from run_documents import PROVENANCE
from springs import molecule

from omm_mlff.forces.potential_errors import Tally
from omm_mlff.potentials.base import Capabilities
from omm_mlff.record.frame_cache import Kept
from omm_mlff.record.rundir import FIELDS
from omm_mlff.schema import (
    Measurement,
    MolecularSystem,
    PotentialCard,
    ReferenceLabels,
    RunSpec,
)

WATER = [[0.0, 0.0, 0.0], [0.096, 0.0, 0.0], [-0.024, 0.093, 0.0]]


def water(**changes) -> MolecularSystem:
    """A water molecule."""
    system = molecule([8, 1, 1], WATER, [[0, 1], [0, 2]])
    return _with(system, name="water", **changes)


def _with(system: MolecularSystem, **changes) -> MolecularSystem:
    return MolecularSystem(**{**vars(system), **changes})


def card(dtype: str = "float64", cutoff_nm: float | None = None) -> PotentialCard:
    return PotentialCard("fake", "tests", None, cutoff_nm, dtype)


class FakeReplica:
    """A replica out of arrays; what is not given is zero."""

    def __init__(self, n_atoms: int, dt_ps: float, **arrays) -> None:
        n_frames = len(next(iter(arrays.values())))
        shapes = {
            "potential_energy": (n_frames,),
            "kinetic_energy": (n_frames,),
            "positions": (n_frames, n_atoms, 3),
            "velocities": (n_frames, n_atoms, 3),
            "forces": (n_frames, n_atoms, 3),
        }
        self.arrays = {name: np.zeros(shape) for name, shape in shapes.items()}
        self.arrays["time"] = np.arange(n_frames) * dt_ps
        self.arrays.update(arrays)
        self.n_frames = n_frames

    def __getattr__(self, name: str):
        return self.arrays[name]

    def chunks(self, n_frames: int, fields=FIELDS):
        for start in range(0, self.n_frames, n_frames):
            yield {name: self.arrays[name][start : start + n_frames] for name in fields}

    def frames(self, indices, fields=FIELDS):
        return {name: self.arrays[name][list(indices)] for name in fields}


class FakeRun:
    """A run out of replicas."""

    def __init__(
        self, replicas, masses, *, events=None, timestep_fs=0.5, stride=1, target_K=300.0, n_dof=3
    ):
        self._replicas = replicas
        self.masses = np.asarray(masses, dtype=float)
        self.events = events or {}
        self.n_replicas = len(replicas)
        self.n_dof = n_dof
        n_frames = max(replica.n_frames for replica in replicas)
        self.spec = RunSpec(
            "fake",
            "water",
            n_frames * timestep_fs * stride * 1e-3,
            target_K,
            len(replicas),
            seed=1,
            timestep_fs=timestep_fs,
            record_stride=stride,
        )
        self.dt_ps = timestep_fs * stride * 1e-3
        self.kept = Kept()
        self.provenance = PROVENANCE

    def replica(self, index: int):
        return self._replicas[index]


class FakePotential:
    """A potential out of a function of positions (nm) to energy and forces."""

    def __init__(self, function, refuses: str | None = None) -> None:
        self.function = function
        self.refuses = refuses

    def unsupported(self, system):
        return self.refuses

    def capabilities(self, system):
        return Capabilities()

    def energies_and_forces(self, positions, system):
        return None


class FakeEvaluator:
    """Evaluates `function(positions (n_atoms, 3), system) -> energy, forces` frame by frame."""

    def __init__(self, function, system, seconds=None, **options) -> None:
        self.function = function
        self.system = system
        self.potential = FakePotential(function, **options)
        self.seconds = seconds
        self.n_evaluations = 0
        self.closed = False
        self.raised: dict[int, str] = {}
        self.tally = Tally()

    def evaluate(self, positions, box_vectors=None, *, batched=True):
        self.n_evaluations += len(positions)
        pairs = [self.function(frame, self.system) for frame in positions]
        return np.array([e for e, _ in pairs]), np.array([f for _, f in pairs])

    def energies(self, positions):
        return self.evaluate(positions)[0]

    def for_system(self, system):
        other = FakeEvaluator(self.function, system)
        other.potential = self.potential
        return other

    def time_steps(self, n_steps, n_blocks):
        return np.resize(self.seconds, n_blocks)

    def close(self):
        self.closed = True


class Pairs:
    """Lennard-Jones between all pairs, kJ/mol and nm, cut off plainly or switched off smoothly.

    Parameters
    ----------
    cutoff : nm; None is no cutoff
    switch : nm; from here on OpenMM's quintic brings the energy to zero at the cutoff
    """

    def __init__(self, epsilon=1.0, sigma=0.15, cutoff=None, switch=None) -> None:
        self.epsilon, self.sigma, self.cutoff, self.switch = epsilon, sigma, cutoff, switch

    def pair(self, d):
        """Energy and dE/dd of a distance."""
        s6 = (self.sigma / d) ** 6
        energy = 4.0 * self.epsilon * (s6**2 - s6)
        slope = 4.0 * self.epsilon * (6.0 * s6 - 12.0 * s6**2) / d
        if self.switch is not None:
            width = self.cutoff - self.switch
            x = np.clip((d - self.switch) / width, 0.0, 1.0)
            factor = 1.0 - 10.0 * x**3 + 15.0 * x**4 - 6.0 * x**5
            change = (-30.0 * x**2 + 60.0 * x**3 - 30.0 * x**4) / width
            slope = slope * factor + energy * change
            energy = energy * factor
        if self.cutoff is not None:
            inside = d < self.cutoff
            energy, slope = energy * inside, slope * inside
        return energy, slope

    def __call__(self, positions, system):
        i, j = np.triu_indices(len(positions), k=1)
        r = positions[j] - positions[i]
        d = np.sqrt((r**2).sum(axis=1))
        energy, slope = self.pair(d)
        pull = (slope / d)[:, None] * r
        forces = np.zeros_like(positions)
        np.add.at(forces, i, pull)
        np.add.at(forces, j, -pull)
        return float(energy.sum()), forces


def labels(function, system, *, temperature_K, trajectory, seed=3, spread=0.003) -> ReferenceLabels:
    """Displaced frames with a function's own energies and forces as their labels."""
    random = np.random.default_rng(seed)
    n_frames = len(trajectory)
    noise = random.normal(size=(n_frames, system.n_atoms, 3)) * spread
    positions = system.positions + noise
    pairs = [function(frame, system) for frame in positions]
    return ReferenceLabels(
        positions,
        np.array([e for e, _ in pairs]),
        np.array([f for _, f in pairs]),
        np.asarray(trajectory),
        np.asarray(temperature_K, dtype=float),
        "itself",
    )


def with_labels(system: MolecularSystem, reference: ReferenceLabels) -> MolecularSystem:
    return _with(system, reference=reference)


def by_name(measurements: list[Measurement]) -> dict[str, Measurement]:
    """Measurements by name; the last of each."""
    return {row.name: row for row in measurements}
