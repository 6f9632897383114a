"""How far students are from the teacher, on molecules that they know and on those they never saw.

The frames are not of the sampler that students learn from: other seeds, another network of the
teacher under the dynamics, half the timestep, a tenth of the friction, and labels in float64 by the
teacher itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omm_mlff.distill.dynamics import langevin
from omm_mlff.distill.frames import Frames
from omm_mlff.distill.library import TEST, embed, library
from omm_mlff.distill.packed import GRID, PackedFrames, joined
from omm_mlff.distill.placing import MAIN
from omm_mlff.distill.surface import student_function
from omm_mlff.students.student import Student
from omm_mlff.systems.shipped import load_shipped
from omm_mlff.teachers.ani import Teacher
from omm_mlff.teachers.mixed import MixedTeacher
from omm_mlff.units import (
    ANGSTROM_PER_NM,
    EV_ANGSTROM_PER_KJMOL_NM,
    EV_PER_KJMOL,
)

Float = NDArray[np.float64]

TEMPERATURES_K = (300.0, 500.0)


@dataclass(frozen=True)
class UnseenPlan:
    """How the frames of molecules that were held out whole are sampled."""

    n_trajectories: int = 6  # at each temperature, each from a conformer of its own
    n_frames: int = 4
    equilibration_fs: float = 300.0
    stride_fs: float = 75.0
    timestep_fs: float = 0.5
    friction_per_ps: float = 0.5
    seed: int = 20264


@dataclass(frozen=True)
class TransferError:
    """A student's errors on frames of one molecule at one temperature.

    Attributes
    ----------
    force : RMSE over all components, eV/angstrom
    energy : RMSE in meV/atom, after the mean difference is taken off
    """

    system: str
    known: bool
    temperature_K: float
    n_frames: int
    force: float
    energy: float


def sample_unseen(plan: UnseenPlan, progress: Callable[[str], None]) -> PackedFrames:
    """Labelled frames of the library's test molecules."""
    surface, teacher = MixedTeacher((3,)), Teacher()
    parts = []
    for entry in library():
        if entry.role != TEST:
            continue
        seed = zlib.crc32(f"{plan.seed}/{entry.smiles}".encode())
        rng = np.random.default_rng(seed)
        kelvin = np.repeat(TEMPERATURES_K, plan.n_trajectories)
        molecule = embed(entry.smiles, len(kelvin), seed)
        species = np.tile(molecule.species, (len(kelvin), 1))

        def function(x: Float, species: NDArray[np.int64] = species) -> tuple[Float, Float]:
            labels = surface.label(species, x)
            return labels.energies, labels.forces

        def run(
            x: Float, v: Float | None, fs: float, every: float, friction: float
        ) -> tuple[Float, Float]:
            result = langevin(
                function,
                x,
                molecule.masses,  # noqa: B023 (called in this turn of the loop alone)
                kelvin,  # noqa: B023
                timestep_fs=plan.timestep_fs,
                n_steps=round(fs / plan.timestep_fs),
                stride=round(every / plan.timestep_fs),
                rng=rng,  # noqa: B023
                friction_per_ps=friction,
                velocities=v,
            )
            return result.positions, result.velocities

        x, v = run(molecule.positions, None, plan.equilibration_fs, plan.equilibration_fs, 20.0)
        length = plan.n_frames * plan.stride_fs
        x, _ = run(x[-1], v[-1], length, plan.stride_fs, plan.friction_per_ps)
        flat = x.reshape(-1, molecule.n_atoms, 3)
        flat = np.round((flat - flat.mean(1, keepdims=True)) / GRID) * GRID
        energies, forces, _ = teacher.label(molecule.species, flat)
        frames = Frames(
            entry.smiles,
            molecule.species,
            molecule.bonds,
            molecule.lengths,
            flat,
            np.full(len(flat), "thermal"),
            np.tile(np.arange(len(kelvin)), plan.n_frames),
            np.tile(kelvin, plan.n_frames),
        )
        parts.append(
            PackedFrames.of_molecule(
                frames,
                energies,
                forces,
                np.full(flat.shape[:2], np.nan),
                np.full(len(flat), "teacher"),
            )
        )
        progress(entry.smiles)
    return joined(parts)


def transfer_errors(student: Student, unseen: PackedFrames) -> list[TransferError]:
    """Errors on the shipped systems' reference frames, then on molecules held out whole."""
    rows = []
    for name in MAIN:
        system = load_shipped(name)
        labels = system.reference
        if labels is None:
            continue
        for kelvin in TEMPERATURES_K:
            mine = labels.temperature_K == kelvin
            rows.append(
                _errors(
                    student,
                    name,
                    True,
                    kelvin,
                    system.species,
                    labels.positions[mine] * ANGSTROM_PER_NM,
                    labels.energies[mine] * EV_PER_KJMOL,
                    labels.forces[mine] * EV_ANGSTROM_PER_KJMOL_NM,
                )
            )
    first = np.cumsum(unseen.n_atoms, dtype=np.int64) - unseen.n_atoms
    for number, name in enumerate(unseen.names.tolist()):
        for kelvin in TEMPERATURES_K:
            chosen = np.flatnonzero((unseen.molecule == number) & (unseen.temperature_K == kelvin))
            if not len(chosen):
                continue
            n = int(unseen.n_atoms[chosen[0]])
            atoms = first[chosen][:, None] + np.arange(n)
            rows.append(
                _errors(
                    student,
                    str(name),
                    False,
                    kelvin,
                    unseen.species[atoms[0]].astype(np.int64),
                    unseen.positions[atoms] * GRID,
                    unseen.energies[chosen],
                    unseen.forces[atoms].astype(np.float64),
                )
            )
    return rows


def transfer_table(errors: dict[str, list[TransferError]]) -> str:
    """Students side by side, in Markdown: a row a system, then the means the issue asks for."""
    names = list(errors)
    lines = [
        "| system | K | frames | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for rows in zip(*errors.values(), strict=True):
        one = rows[0]
        values = " | ".join(f"{row.force:.3f}" for row in rows)
        lines.append(f"| `{one.system}` | {one.temperature_K:.0f} | {one.n_frames} | {values} |")
    for known, text in ((True, "known, mean"), (False, "never seen, mean")):
        for kelvin in TEMPERATURES_K:
            chosen = [
                [r.force for r in rows if r.known is known and r.temperature_K == kelvin]
                for rows in errors.values()
            ]
            values = " | ".join(f"**{np.mean(c):.3f}**" if c else "" for c in chosen)
            lines.append(f"| {text} | {kelvin:.0f} | | {values} |")
    return "\n".join(lines) + "\n"


def as_json(errors: dict[str, list[TransferError]]) -> dict[str, Any]:
    """The same as plain data."""
    return {name: [vars(row) for row in rows] for name, rows in errors.items()}


def _errors(
    student: Student,
    system: str,
    known: bool,
    kelvin: float,
    species: NDArray[np.int64],
    positions: Float,
    energies: Float,
    forces: Float,
) -> TransferError:
    function = student_function(student, species, references=True)
    parts = [function(positions[k : k + 32]) for k in range(0, len(positions), 32)]
    off = np.concatenate([e for e, _ in parts]) - energies
    error = np.concatenate([f for _, f in parts]) - forces
    return TransferError(
        system,
        known,
        kelvin,
        len(positions),
        float(np.sqrt((error**2).mean())),
        1000.0 * float(np.std(off)) / len(species),
    )
