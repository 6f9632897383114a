"""Samples many molecules, pairs and clusters for students that must serve molecules at large.

The work is a list of jobs in passes: every pass visits everything with seeds of its own, so that
what has been done when the time is up is balanced, however little it is. A job writes one file,
and what is already there is kept.

Structures of different molecules share a batch. Dynamics runs on one network of the teacher, the
labels are the whole ensemble's. Positions are put on a grid of `GRID` before they are labelled, so
that they can be packed without loss. Frames of dynamics outside the teacher's range are dropped;
walls, and bonds pulled apart, have jobs of their own, labelled as `label` does it.
"""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omm_mlff.distill.dynamics import ACCELERATION, BOLTZMANN_EV, langevin
from omm_mlff.distill.frames import Frames, load_frames
from omm_mlff.distill.label import in_range, label_folder, label_frames, load_references
from omm_mlff.distill.library import TEST, embed, library
from omm_mlff.distill.molecules import molecule_names
from omm_mlff.distill.packed import (
    GRID,
    PackedFrames,
    PackedScale,
    joined,
    load_packed,
    save_packed,
)
from omm_mlff.distill.placing import (
    MAIN,
    MONOMERS,
    Body,
    approach,
    cluster,
    merged,
    padded_species,
    single_body,
    stretched,
    temperatures,
    twisted,
    varied,
)
from omm_mlff.distill.sample import Sampler, needs_xtb, plan_for
from omm_mlff.errors import InputError
from omm_mlff.teachers.ani import TEACHER_SPECIES, Teacher
from omm_mlff.teachers.mixed import MixedTeacher

Float = NDArray[np.float64]
Int = NDArray[np.int64]

STRONGEST = 25.0
"""eV/angstrom: a frame with a larger force is dropped."""


@dataclass(frozen=True)
class Job:
    """One file of frames: its name says everything, its seed included."""

    kind: str
    turn: int
    part: int
    members: tuple[str, ...] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.turn:02d}-{self.kind}-{self.part:03d}"


def jobs(turn: int, seed: int, per_job: int = 10) -> list[Job]:
    """The jobs of one pass, kinds interleaved in an order that follows from the seed."""
    names = [entry.smiles for entry in library() if entry.role != TEST]
    sizes = {name: embed_size(name) for name in names}
    names.sort(key=lambda name: (sizes[name], name))
    made = [Job("main", turn, k, (name,)) for k, name in enumerate(MAIN)]
    singles = [tuple(names[k : k + per_job]) for k in range(0, len(names), per_job)]
    made += [Job("single", turn, k, members) for k, members in enumerate(singles)]
    pairs = [f"{a}.{b}" for i, a in enumerate(MONOMERS) for b in MONOMERS[i:]]
    rng = np.random.default_rng((seed, turn))
    rng.shuffle(pairs)
    groups = [tuple(pairs[k : k + per_job]) for k in range(0, len(pairs), per_job)]
    made += [Job("pair", turn, k, members) for k, members in enumerate(groups)]
    for k, sizes_ in enumerate(((2, 3, 4, 5), (6, 7, 8), (9, 10, 12), (14, 16), (18, 20))):
        made.append(Job("cluster", turn, k, tuple(f"{n}*O" for n in sizes_)))
    made.append(Job("cluster", turn, 5, ("2*CO", "3*CO", "4*CO", "5*CO")))
    made.append(Job("cluster", turn, 6, ("6*CO", "8*CO")))
    for k in range(4):
        chosen = rng.choice(MONOMERS[1:], 5, replace=False).tolist()
        members = tuple(f"{name}+{int(rng.integers(2, 8))}*O" for name in chosen)
        made.append(Job("cluster", turn, 7 + k, members))
    for k in range(6):
        chosen = rng.choice(names, 8, replace=False).tolist()
        made.append(Job("wall", turn, k, (*chosen, *pairs[6 * k : 6 * k + 6])))
    if turn == 0:
        made += [Job("shipped", turn, k, (name,)) for k, name in enumerate(molecule_names())]
    return [made[k] for k in rng.permutation(len(made))]


def embed_size(smiles: str) -> int:
    """Atoms of a molecule, hydrogens counted."""
    from rdkit import Chem

    return int(Chem.AddHs(Chem.MolFromSmiles(smiles)).GetNumAtoms())


class BroadSampler:
    """Runs jobs; every frame follows from the job's name and the seed.

    Parameters
    ----------
    seed : of the whole data set
    shifts : teacher minus xTB per atom by atomic number, eV; see `label.element_shifts`
    excursions : folder with frames of a student's own dynamics, as `sample` made them
    """

    def __init__(self, seed: int, shifts: dict[int, float], excursions: Path | None = None) -> None:
        self.seed = seed
        self.shifts = shifts
        self.excursions = excursions
        self._reference = Teacher()
        self._teacher = MixedTeacher()
        self._dynamics = MixedTeacher((0,))

    def run(self, job: Job) -> PackedFrames:
        """All frames of a job, labelled."""
        rng = np.random.default_rng(zlib.crc32(f"{self.seed}/{job.name}".encode()))
        parts: list[PackedFrames] = []
        if job.kind == "main":
            parts += self._singles(list(job.members), 0, rng)
        elif job.kind == "single":
            parts += self._singles(list(job.members), 5, rng)
        elif job.kind == "pair":
            parts += self._pairs(list(job.members), rng)
        elif job.kind == "wall":
            parts += self._walls(list(job.members), rng)
        elif job.kind == "shipped":
            parts += self._shipped(job.members[0])
        else:
            parts += self._clusters(list(job.members), rng)
        return joined(parts)

    def _singles(self, names: list[str], n_copies: int, rng: np.random.Generator) -> list[Any]:
        bodies, molecules = [], []
        for name in names:
            smiles, n = MAIN.get(name, (name, n_copies))
            try:
                molecule = embed(smiles, max(2, n // 2), int(rng.integers(2**31)))
            except ValueError:  # a strained ring now and then: another pass has another seed
                continue
            starts = np.stack([twisted(molecule, k, rng) for k in range(n)])
            main = name in MAIN
            temperature = temperatures(n, rng, cold=0.75 if main else 0.6)
            bodies.append(single_body(name, molecule, starts, temperature))
            molecules.append(molecule)
        if not bodies:
            return []
        runs = self._dynamics_of(bodies, rng, warm=40, stride=14, n_frames=10)
        parts = []
        for body, molecule, frames in zip(bodies, molecules, runs, strict=True):
            n_frames, n, _, _ = frames.shape
            flat = frames.reshape(-1, body.n_atoms, 3)
            trajectory = np.tile(np.arange(n), n_frames)
            kelvin = np.tile(body.temperature_K, n_frames)
            parts.append(("thermal", body, flat, trajectory, kelvin))
            share = max(6, len(flat) // 8)
            rows = rng.integers(len(flat), size=share)
            changed = np.stack([varied(flat[row], body, molecule, rng) for row in rows])
            parts.append(("varied", body, changed, trajectory[rows], kelvin[rows] * 0.0))
        return self._labelled(parts)

    def _pairs(self, names: list[str], rng: np.random.Generator) -> list[Any]:
        paths, bodies = [], []
        for name in names:
            first, second = (
                embed(smiles, 3, int(rng.integers(2**31))) for smiles in name.split(".")
            )
            shape = merged(name, [first, second])
            orientation = 3 if first.rings and second.rings else 2
            for kind in range(orientation):
                path = approach(first, second, kind, rng)
                path = path + 0.02 * rng.standard_normal((1, *path.shape[1:]))
                paths.append(("approach", shape(path, np.zeros(len(path))), path, kind))
            starts = np.stack(
                [
                    approach(first, second, k % orientation, rng, np.array([f]))[0]
                    for k, f in enumerate(rng.uniform(0.8, 1.15, 3))
                ]
            )
            bodies.append(shape(starts, rng.uniform(150.0, 600.0, 3)))
        parts = [
            (stratum, body, path, np.full(len(path), 100 + kind), np.zeros(len(path)))
            for stratum, body, path, kind in paths
        ]
        runs = self._dynamics_of(bodies, rng, warm=40, stride=15, n_frames=5, held=1.5)
        for body, frames in zip(bodies, runs, strict=True):
            n_frames, n, _, _ = frames.shape
            flat = frames.reshape(-1, body.n_atoms, 3)
            kelvin = np.tile(body.temperature_K, n_frames)
            parts.append(("thermal", body, flat, np.tile(np.arange(n), n_frames), kelvin))
        return self._labelled(parts)

    def _clusters(self, names: list[str], rng: np.random.Generator) -> list[Any]:
        bodies = [cluster(name, 10, rng) for name in names]
        runs = self._dynamics_of(bodies, rng, warm=80, stride=15, n_frames=8, held=0.3)
        parts = []
        for body, frames in zip(bodies, runs, strict=True):
            n_frames, n, _, _ = frames.shape
            flat = frames.reshape(-1, body.n_atoms, 3)
            kelvin = np.tile(body.temperature_K, n_frames)
            parts.append(("thermal", body, flat, np.tile(np.arange(n), n_frames), kelvin))
        return self._labelled(parts)

    def _walls(self, names: list[str], rng: np.random.Generator) -> list[Any]:
        """Bonds pulled apart and pushed in, molecules driven into each other, by two methods."""
        parts = []
        for name in names:
            try:
                members = [embed(s, 2, int(rng.integers(2**31))) for s in name.split(".")]
            except ValueError:
                continue
            build = merged(name, members)
            if len(members) == 2:
                factors = np.geomspace(1.1, 0.3, 14)
                path = approach(members[0], members[1], int(rng.integers(2)), rng, factors)
                paths, stratum = (
                    [path + 0.02 * rng.standard_normal((1, *path.shape[1:]))],
                    "approach",
                )
            else:
                stratum, paths = "bond", []
                for _ in range(3):
                    base = twisted(members[0], int(rng.integers(2)), rng)
                    base = base + 0.03 * rng.standard_normal(base.shape)
                    row = int(rng.integers(len(members[0].bonds)))
                    for ratios in (np.linspace(1.05, 2.4, 10), np.linspace(0.97, 0.5, 7)):
                        paths.append(stretched(base, members[0], row, ratios))
            body = build(np.concatenate(paths), np.zeros(sum(len(p) for p in paths)))
            parts.append(
                Frames(
                    name,
                    body.species,
                    body.bonds,
                    body.lengths,
                    body.positions,
                    np.full(len(body.positions), stratum, dtype="<U12"),
                    np.repeat(np.arange(len(paths)), [len(p) for p in paths]),
                    body.temperature_K,
                )
            )
        return [self._by_two_methods(frames) for frames in parts]

    def _shipped(self, name: str) -> list[Any]:
        """The strata of `sample` but dynamics, for a molecule that it knows."""
        sampler = Sampler(self._reference, name, plan_for(name), self.seed)
        parts = [sampler.bonds()] if sampler.plan.n_bond_paths else []
        if sampler.plan.n_modes:
            parts.append(sampler.modes())
        several = sampler.molecule.n_fragments > 1
        parts.append(sampler.approaches() if several else sampler.twists())
        if needs_xtb(sampler.molecule.species, sampler.molecule.bonds):
            parts.append(sampler.thermal())
        if self.excursions is not None and (self.excursions / f"{name}.npz").exists():
            parts.append(load_frames(self.excursions / f"{name}.npz"))
        return [self._by_two_methods(frames) for frames in parts if frames.n_frames]

    def _by_two_methods(self, frames: Frames) -> PackedFrames:
        x = frames.positions - frames.positions.mean(1, keepdims=True)
        x = np.round(x / GRID) * GRID
        inside = np.abs(x).max((1, 2)) < 15.9
        gridded = dataclasses.replace(frames, positions=x).select(inside)
        labelled = label_frames(gridded, self._reference, self.shifts)
        good = np.linalg.norm(labelled.forces, axis=-1).max(1) < 1000.0
        labels = self._teacher.label(
            padded_species(frames.species, frames.n_atoms, labelled.frames.n_frames),
            labelled.frames.positions,
        )
        atomic = np.where((labelled.source == "teacher")[:, None], labels.atomic, np.nan)
        return PackedFrames.of_molecule(
            labelled.frames.select(good),
            labelled.energies[good],
            labelled.forces[good],
            atomic[good],
            labelled.source[good],
        )

    def _dynamics_of(
        self,
        bodies: list[Body],
        rng: np.random.Generator,
        *,
        warm: int,
        stride: int,
        n_frames: int,
        held: float | None = None,
    ) -> list[Float]:
        """Frames (n_frames, n_copies, n_atoms, 3) of each body; 1 fs a step.

        `held` keeps clusters together: atoms that many angstrom outside their first radius are
        pulled back.
        """
        n_max = max(body.n_atoms for body in bodies)
        species = np.concatenate(
            [padded_species(body.species, n_max, len(body.positions)) for body in bodies]
        )
        x = np.concatenate(
            [np.pad(b.positions, ((0, 0), (0, n_max - b.n_atoms), (0, 0))) for b in bodies]
        )
        real = species > 0
        # Padding is heavy and at rest.
        masses = np.concatenate(
            [
                np.tile(
                    np.pad(b.masses, (0, n_max - b.n_atoms), constant_values=1e12),
                    (len(b.positions), 1),
                )
                for b in bodies
            ]
        )
        temperature = np.concatenate([b.temperature_K for b in bodies])
        weight = real / real.sum(1, keepdims=True)
        centre = (weight[..., None] * x).sum(1, keepdims=True)
        reach = np.where(real, np.linalg.norm(x - centre, axis=-1), 0.0).max(1) + (held or 0.0)

        def function(where: Float) -> tuple[Float, Float]:
            labels = self._dynamics.label(species, where)
            forces = labels.forces
            if held is not None:
                offset = where - (weight[..., None] * where).sum(1, keepdims=True)
                distance = np.linalg.norm(offset, axis=-1)
                excess = np.where(real, np.maximum(distance - reach[:, None], 0.0), 0.0)
                forces = forces - 0.5 * (excess / np.maximum(distance, 1e-9))[..., None] * offset
            strength = np.linalg.norm(forces, axis=-1, keepdims=True)
            return labels.energies, forces * np.minimum(1.0, 20.0 / np.maximum(strength, 1e-9))

        # Started at rest, half of the kinetic energy flows into the potential.
        velocities = rng.standard_normal(x.shape) * np.sqrt(
            2.0 * BOLTZMANN_EV * temperature[:, None, None] * ACCELERATION / masses[..., None]
        )
        first = langevin(
            function,
            x,
            masses,
            temperature,
            timestep_fs=1.0,
            n_steps=warm,
            stride=warm,
            rng=rng,
            friction_per_ps=25.0,
            velocities=velocities,
        )
        then = langevin(
            function,
            first.positions[-1],
            masses,
            temperature,
            timestep_fs=1.0,
            n_steps=n_frames * stride,
            stride=stride,
            rng=rng,
            friction_per_ps=5.0,
            velocities=first.velocities[-1],
        )
        out, row = [], 0
        for body in bodies:
            n = len(body.positions)
            out.append(then.positions[:, row : row + n, : body.n_atoms])
            row += n
        return out

    def _labelled(self, parts: list[tuple[str, Body, Float, Int, Float]]) -> list[PackedFrames]:
        """Put on the grid, drop what the teacher is not believed on, label."""
        kept = []
        for stratum, body, x, trajectory, kelvin in parts:
            x = np.round((x - x.mean(1, keepdims=True)) / GRID) * GRID
            frames = Frames(
                body.name,
                body.species,
                body.bonds,
                body.lengths,
                x,
                np.full(len(x), stratum, dtype="<U12"),
                trajectory,
                kelvin,
            )
            good = in_range(frames) & np.isfinite(x).all((1, 2)) & (np.abs(x).max((1, 2)) < 15.9)
            if good.any():
                kept.append((frames.select(good), body))
        if not kept:
            return []
        n_max = max(frames.n_atoms for frames, _ in kept)
        species = np.concatenate([padded_species(f.species, n_max, f.n_frames) for f, _ in kept])
        x = np.concatenate(
            [np.pad(f.positions, ((0, 0), (0, n_max - f.n_atoms), (0, 0))) for f, _ in kept]
        )
        labels = self._teacher.label(species, x)
        out, row = [], 0
        for frames, body in kept:
            rows = slice(row, row + frames.n_frames)
            row += frames.n_frames
            forces = labels.forces[rows, : body.n_atoms]
            fine = np.linalg.norm(forces, axis=-1).max(1) < STRONGEST
            out.append(
                PackedFrames.of_molecule(
                    frames.select(fine),
                    labels.energies[rows][fine],
                    forces[fine],
                    labels.atomic[rows, : body.n_atoms][fine],
                    np.full(int(fine.sum()), "teacher"),
                )
            )
        return out


def sample_broad(
    folder: Path, *, seed: int, turns: int, seconds: float, excursions: Path | None = None
) -> None:
    """Run jobs into `folder`, one file each, until the passes or the time are used up."""
    import time

    begin = time.monotonic()
    sampler: BroadSampler | None = None
    for turn in range(turns):
        for job in jobs(turn, seed):
            path = folder / f"{job.name}.npz"
            if path.exists():
                continue
            if time.monotonic() - begin > seconds:
                return
            if sampler is None:
                label_folder(folder / "none", folder)  # its reference energies alone
                shifts = load_references(folder, "shifts_eV")
                sampler = BroadSampler(seed, shifts, excursions)
            save_packed(path, sampler.run(job))


def pack_folder(folder: Path) -> tuple[PackedFrames, PackedScale]:
    """Everything that jobs have left in a folder, to train on.

    Raises
    ------
    InputError : nothing is there
    """
    parts = [load_packed(path) for path in sorted(folder.glob("*.npz"))]
    parts = [part for part in parts if part.n_frames]
    if not parts:
        raise InputError(f"{folder} holds no frames; run: omm-mlff distill broad")
    free_atoms = np.zeros(max(TEACHER_SPECIES) + 1)
    for number, energy in load_references(folder).items():
        free_atoms[number] = energy
    return joined(parts), PackedScale(free_atoms, MixedTeacher((0,)).self_energies)
