"""Samples the frames that students learn from: thermal, modes, bonds, approaches, excursions."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omm_mlff.campaign.workers import spread
from omm_mlff.distill.dynamics import (
    BOLTZMANN_EV,
    EnergyFunction,
    langevin,
    minimise,
)
from omm_mlff.distill.frames import Frames, concatenate, save_frames
from omm_mlff.distill.molecules import (
    CLUSTERS,
    build_molecule,
    molecule_names,
    random_rotation,
)
from omm_mlff.teachers.ani import Teacher
from omm_mlff.teachers.xtb import xtb_labels

Float = NDArray[np.float64]
Progress = Callable[[str, int, int], None]

MAIN = frozenset({"water", "methane", "ethanol", "alanine", "alanine-dipeptide"})
"""Sampled most: they are what the shipped students are first asked to serve."""


@dataclass(frozen=True)
class SamplingPlan:
    """How much is sampled of one molecule."""

    temperatures_K: tuple[float, ...]
    n_trajectories: int  # at each temperature
    n_frames: int  # of each trajectory
    n_modes: int
    n_bond_paths: int  # of each bond type, stretched as well as compressed
    n_approaches: int
    n_excursions: int
    excursion_steps: int = 3000
    stride: int = 80
    equilibration: int = 480
    timestep_fs: float = 0.5


def plan_for(name: str, scale: float = 1.0) -> SamplingPlan:
    """The sampling plan of a training molecule.

    Parameters
    ----------
    scale : multiplies the counts; 1 gives about 30,000 frames over all molecules
    """

    def count(n: int) -> int:
        return max(1, round(n * scale))

    hot = (200.0, 300.0, 400.0, 500.0, 700.0, 1000.0, 1500.0)
    if name in CLUSTERS:
        water = set(CLUSTERS[name]) == {"water"}
        temperatures = (200.0, 300.0, 500.0, 1000.0)
        n_trajectories = count(4 if water else 2)
        return SamplingPlan(temperatures, n_trajectories, count(30), 0, 0, count(16), count(12))
    if name in MAIN:
        return SamplingPlan(hot, count(6), count(40), count(80), count(4), count(16), count(12))
    return SamplingPlan(hot, count(2), count(30), count(50), count(3), count(8), count(12))


def needs_xtb(species: NDArray[np.int64], bonds: NDArray[np.int64]) -> bool:
    """Whether a molecule holds H2, whose bond the teacher gets wrong altogether."""
    return any(species[i] == 1 and species[j] == 1 for i, j in bonds)


class Sampler:
    """Samples one molecule; everything follows from its name, plan and seed.

    Parameters
    ----------
    teacher : loaded once and shared between molecules
    seed : of the whole data set
    """

    def __init__(self, teacher: Teacher, name: str, plan: SamplingPlan, seed: int) -> None:
        self.name = name
        self.plan = plan
        self.seed = seed
        self.teacher = teacher
        start = build_molecule(name, self._stream("build"))
        self.function: EnergyFunction
        if needs_xtb(start.species, start.bonds):
            self.function = lambda positions: xtb_labels(start.species, positions)
        else:
            self.function = teacher.sampling_function(start.species)
        self.molecule = start
        self.minimum = minimise(self.function, start.positions)
        first, second = start.bonds.T
        self.lengths = np.linalg.norm(self.minimum[first] - self.minimum[second], axis=1)

    def sample(self) -> Frames:
        """All strata but the excursions, which need a student."""
        parts = [self.thermal()]
        if self.plan.n_modes:
            parts.append(self.modes())
        if self.plan.n_bond_paths:
            parts.append(self.bonds())
        if self.plan.n_approaches:
            parts.append(self.approaches() if self.molecule.n_fragments > 1 else self.twists())
        return concatenate(parts)

    def thermal(self) -> Frames:
        """Langevin dynamics, every trajectory from a conformer of its own."""
        plan = self.plan
        temperature = np.repeat(plan.temperatures_K, plan.n_trajectories)
        starts = self._starts(len(temperature), "conformer")
        run = langevin(
            self.function,
            starts,
            self.molecule.masses,
            temperature,
            timestep_fs=plan.timestep_fs,
            n_steps=plan.equilibration + plan.n_frames * plan.stride,
            stride=plan.stride,
            rng=self._rng("thermal"),
            friction_per_ps=5.0,
            container_angstrom=None if self.molecule.n_fragments == 1 else 4.0,
            stop=lambda x: self._broken(x, 0.6, 1.6),
        )
        skip = plan.equilibration // plan.stride
        kept = [
            (replica, run.positions[skip : run.length[replica], replica])
            for replica in range(len(temperature))
        ]
        return self._frames("thermal", [(x, temperature[replica]) for replica, x in kept])

    def modes(self) -> Frames:
        """Displacements along normal modes, classically populated; every frame is independent."""
        rng = self._rng("modes")
        temperature = rng.uniform(200.0, 1500.0, self.plan.n_modes)
        frames = self._displaced(temperature, rng)
        return self._frames(
            "modes", [(x[None], t) for x, t in zip(frames, temperature, strict=True)]
        )

    def bonds(self) -> Frames:
        """Every type of bond stretched, and compressed, from its equilibrium outwards."""
        rng = self._rng("bonds")
        molecule = self.molecule
        degree = np.bincount(molecule.bonds.ravel(), minlength=molecule.n_atoms)
        kinds: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for row, (i, j) in enumerate(molecule.bonds):
            ends = sorted((int(molecule.species[a]), int(degree[a])) for a in (i, j))
            kinds.setdefault(tuple(ends), []).append(row)
        paths: list[tuple[Float, float]] = []
        for rows in kinds.values():
            for _ in range(self.plan.n_bond_paths):
                row = int(rng.choice(rows))
                i, j = molecule.bonds[row]
                side = _side_of(molecule.bonds, int(i), int(j), molecule.n_atoms)
                base = self._displaced(np.array([300.0]), rng)[0]
                axis = base[j] - base[i]
                now = float(np.linalg.norm(axis))
                for factors in (np.linspace(1.05, 2.6, 16), np.linspace(0.97, 0.4, 12)):
                    path = np.repeat(base[None], len(factors), 0)
                    shift = (factors * self.lengths[row] - now)[:, None] * axis / now
                    path[:, side] += shift[:, None, :]
                    paths.append((path, 0.0))
        return self._frames("bond", paths)

    def approaches(self) -> Frames:
        """The molecules of a cluster driven together, each time by another pair of atoms."""
        rng = self._rng("approaches")
        molecule = self.molecule
        pairs = self._species_pairs()
        paths: list[tuple[Float, float]] = []
        for turn in range(self.plan.n_approaches):
            candidates = pairs[turn % len(pairs)]
            a, b = candidates[int(rng.integers(len(candidates)))]
            base = self._displaced_parts(rng)
            left = molecule.fragment == molecule.fragment[a]
            right = molecule.fragment == molecule.fragment[b]
            kept = left | right
            x = base.copy()
            x[left] = _facing(base[left] - base[a], np.array([1.0, 0.0, 0.0]), rng)
            x[right] = _facing(base[right] - base[b], np.array([-1.0, 0.0, 0.0]), rng)
            light = sum(int(molecule.species[k] == 1) for k in (a, b))
            closest = (0.75, 0.45, 0.3)[light]
            distance = np.geomspace(4.5, closest, 22)
            path = np.repeat(x[None], len(distance), 0)
            path[:, right, 0] += distance[:, None]
            # Further members of a cluster are set aside, out of every cutoff.
            for count, other in enumerate(np.unique(molecule.fragment[~kept])):
                path[:, molecule.fragment == other] = base[molecule.fragment == other] + [
                    0.0,
                    0.0,
                    12.0 * (count + 1),
                ]
            paths.append((path, 0.0))
        return self._frames("approach", paths)

    def twists(self) -> Frames:
        """Parts of one molecule driven together, by turning and bending it at a random bond."""
        rng = self._rng("twists")
        molecule = self.molecule
        inner = [
            (int(i), int(j))
            for i, j in molecule.bonds
            if (molecule.bonds == i).sum() > 1 or (molecule.bonds == j).sum() > 1
        ]
        paths: list[tuple[Float, float]] = []
        for _ in range(self.plan.n_approaches if inner else 0):
            i, j = inner[int(rng.integers(len(inner)))]
            if (molecule.bonds == j).sum() > 1 and rng.random() < 0.5:
                i, j = j, i
            side = _side_of(molecule.bonds, i, j, molecule.n_atoms)
            base = self._displaced(np.array([300.0]), rng)[0]
            bond = base[j] - base[i]
            # Turned about an axis between "along the bond" (torsion) and "across" (bending).
            axis = bond / np.linalg.norm(bond) + rng.uniform(0.0, 1.5) * rng.standard_normal(3)
            path = np.stack(
                [
                    np.where(
                        side[:, None],
                        (base - base[i]) @ _rotation(axis, angle).T + base[i],
                        base,
                    )
                    for angle in np.linspace(0.15, 2.6, 14)
                ]
            )
            paths.append((path, 0.0))
        return self._frames("approach", paths)

    def excursions(self, student: EnergyFunction, round_: int = 1) -> Frames:
        """Where the student itself goes, up to and past the point where it breaks the molecule."""
        plan = self.plan
        rng = self._rng(f"excursions-{round_}")
        temperature = rng.choice([300.0, 500.0, 700.0, 1000.0], plan.n_excursions)
        starts = self._starts(plan.n_excursions, f"excursion-{round_}")
        run = langevin(
            student,
            starts,
            self.molecule.masses,
            temperature,
            timestep_fs=0.5,
            n_steps=plan.excursion_steps,
            stride=20,
            rng=rng,
            friction_per_ps=2.0,
            container_angstrom=None if self.molecule.n_fragments == 1 else 4.0,
            stop=lambda x: self._broken(x, 0.4, 2.5),
        )
        n_frames = len(run.positions)
        paths: list[tuple[Float, float]] = []
        for replica in range(plan.n_excursions):
            length = int(run.length[replica])
            rows = set(range(10, length, 20))
            if length < n_frames:  # it broke: the last frames before are worth most
                rows |= set(range(max(0, length - 8), length))
            paths.append((run.positions[sorted(rows), replica], float(temperature[replica])))
        return self._frames("excursion", paths)

    def _starts(self, n: int, purpose: str) -> Float:
        starts = []
        for index in range(n):
            built = build_molecule(self.name, self._stream(f"{purpose}-{index}"))
            # A force field's conformer is not the teacher's: the worst of it is relaxed away.
            starts.append(minimise(self.function, built.positions, tolerance=0.1))
        return np.stack(starts)

    def _displaced(self, temperature: Float, rng: np.random.Generator) -> Float:
        values, vectors = self._normal_modes()
        amplitude = np.sqrt(BOLTZMANN_EV * temperature[:, None] / values)
        mass_weighted = (amplitude * rng.standard_normal(amplitude.shape)) @ vectors.T
        shift = mass_weighted.reshape(len(temperature), -1, 3)
        return self.minimum + shift / np.sqrt(self.molecule.masses)[None, :, None]

    def _displaced_parts(self, rng: np.random.Generator) -> Float:
        """A cluster whose molecules are each a little displaced: bonds of independent noise."""
        noise = rng.standard_normal(self.minimum.shape) * 0.02
        return np.asarray(self.minimum + noise)

    def _normal_modes(self) -> tuple[Float, Float]:
        """Curvatures in eV/angstrom^2/dalton and mass-weighted modes, by central differences."""
        if not hasattr(self, "_modes"):
            n = self.minimum.size
            step = 0.01
            shifts = step * np.eye(n).reshape(n, -1, 3)
            _, plus = self.function(self.minimum + shifts)
            _, minus = self.function(self.minimum - shifts)
            hessian = -(plus - minus).reshape(n, n) / (2.0 * step)
            weight = 1.0 / np.sqrt(np.repeat(self.molecule.masses, 3))
            hessian = 0.5 * (hessian + hessian.T) * np.outer(weight, weight)
            values, vectors = np.linalg.eigh(hessian)
            external = 6 if self.molecule.n_atoms > 2 else 5
            order = np.argsort(np.abs(values))[external:]
            # A floor near 200 cm^-1: soft torsions are left to dynamics.
            self._modes = (np.maximum(np.abs(values[order]), 0.15), vectors[:, order])
        return self._modes

    def _species_pairs(self) -> list[list[tuple[int, int]]]:
        """Atoms of different molecules, one list for every pair of elements."""
        molecule = self.molecule
        groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for a in range(molecule.n_atoms):
            for b in range(molecule.n_atoms):
                if molecule.fragment[a] < molecule.fragment[b]:
                    key = sorted((int(molecule.species[a]), int(molecule.species[b])))
                    groups.setdefault((key[0], key[1]), []).append((a, b))
        return [groups[key] for key in sorted(groups)]

    def _broken(self, positions: Float, low: float, high: float) -> NDArray[np.bool_]:
        first, second = self.molecule.bonds.T
        ratio = np.linalg.norm(positions[:, first] - positions[:, second], axis=-1) / self.lengths
        return np.asarray(((ratio < low) | (ratio > high)).any(1))

    def _frames(self, stratum: str, paths: list[tuple[Float, float]]) -> Frames:
        counts = [len(x) for x, _ in paths]
        n_frames = sum(counts)
        positions = [x for x, _ in paths] or [np.empty((0, self.molecule.n_atoms, 3))]
        return Frames(
            self.name,
            self.molecule.species,
            self.molecule.bonds,
            self.lengths,
            np.concatenate(positions),
            np.full(n_frames, stratum, dtype="<U12"),
            np.repeat(np.arange(len(paths)), counts),
            np.repeat(np.array([t for _, t in paths], dtype=np.float64), counts),
        )

    def _stream(self, purpose: str) -> int:
        """A seed of its own for every purpose, the same wherever and in whatever order it runs."""
        return zlib.crc32(f"{self.seed}/{self.name}/{purpose}".encode())

    def _rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(self._stream(purpose))


def sample_molecules(
    folder: Path,
    *,
    seed: int,
    names: Iterable[str] | None = None,
    scale: float = 1.0,
    jobs: int = 1,
    student_folder: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Sample molecules into `folder`, one file each; what is already there is kept.

    Parameters
    ----------
    folder : gets `<molecule>.npz`
    names : all training molecules where None
    scale : multiplies the number of frames
    jobs : processes, each with one thread; the frames do not depend on it
    student_folder : a checkpoint; given, its excursions are sampled, not the other strata
    progress : called with molecule, how many are done, and of how many
    """
    wanted = list(names) if names is not None else molecule_names()
    tasks = [
        (name, folder / f"{name}.npz", seed, scale, student_folder)
        for name in sorted(wanted, key=_cost, reverse=True)
        if not (folder / f"{name}.npz").exists()
    ]
    done = len(wanted) - len(tasks)
    for name in spread(_sample_one, tasks, jobs):
        done += 1
        if progress is not None:
            progress(name, done, len(wanted))


_Task = tuple[str, Path, int, float, Path | None]


def _sample_one(task: _Task) -> str:
    import torch

    name, path, seed, scale, student_folder = task
    torch.set_num_threads(1)
    sampler = Sampler(Teacher(), name, plan_for(name, scale), seed)
    if student_folder is None:
        frames = sampler.sample()
    else:
        from omm_mlff.distill.surface import student_function
        from omm_mlff.students.checkpoint import load_student

        student = load_student(student_folder)
        frames = sampler.excursions(student_function(student, sampler.molecule.species))
    save_frames(path, frames)
    return name


def _cost(name: str) -> float:
    plan = plan_for(name)
    n_atoms = build_molecule(name, 0).n_atoms
    return float(n_atoms**1.5) * plan.n_trajectories * len(plan.temperatures_K) * plan.n_frames


def _side_of(bonds: NDArray[np.int64], i: int, j: int, n_atoms: int) -> NDArray[np.bool_]:
    """Atoms that stay with j when the bond i-j is cut: shape (n_atoms,), mask."""
    side = np.zeros(n_atoms, dtype=bool)
    side[j] = True
    while True:
        grown = side.copy()
        for a, b in bonds:
            if {int(a), int(b)} != {i, j} and (side[a] or side[b]):
                grown[[a, b]] = True
        if (grown == side).all():
            return side
        side = grown


def _facing(x: Float, direction: Float, rng: np.random.Generator) -> Float:
    """Turn atoms about the origin so that the origin's atom is ahead, within a random wobble."""
    x = x @ random_rotation(rng).T
    outward = -x.mean(0)
    length = float(np.linalg.norm(outward))
    if length < 1e-6:
        return np.asarray(x)
    target = direction + 0.3 * rng.standard_normal(3)
    target = target / np.linalg.norm(target)
    u = outward / length
    axis = np.cross(u, target)
    sine = float(np.linalg.norm(axis))
    if sine < 1e-9:
        return np.asarray(x)
    return np.asarray(x @ _rotation(axis, float(np.arctan2(sine, u @ target))).T)


def _rotation(axis: Float, angle: float) -> Float:
    """Rotation matrix about an axis (Rodrigues)."""
    x, y, z = axis / np.linalg.norm(axis)
    k = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.asarray(np.eye(3) + np.sin(angle) * k + (1.0 - np.cos(angle)) * (k @ k))
