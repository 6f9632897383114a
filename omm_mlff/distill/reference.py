"""Reference frames of a shipped system: sampled by dynamics of their own, labelled by the teacher.

Every trajectory has its own seed and starts from one of several conformers, so that no frame
comes from a trajectory that trained a student.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omm_mlff.distill.dynamics import EnergyFunction, langevin, minimise
from omm_mlff.schema import MolecularSystem, ReferenceLabels
from omm_mlff.systems.shipped import CARD, LABELS, STRUCTURE, load_shipped, read_card
from omm_mlff.units import (
    ANGSTROM_PER_NM,
    KJMOL_NM_PER_EV_ANGSTROM,
    KJMOL_PER_EV,
    NM_PER_ANGSTROM,
    PS_PER_FS,
)

if TYPE_CHECKING:
    from omm_mlff.teachers.ani import Teacher

Float = NDArray[np.float64]


@dataclass(frozen=True)
class ReferencePlan:
    """How many frames are taken, and from which dynamics.

    Attributes
    ----------
    trajectories : temperature in K -> independent trajectories at it
    frames : taken from each trajectory
    stride_ps : between the frames of a trajectory
    equilibration_ps : before the first frame
    """

    trajectories: tuple[tuple[float, int], ...] = (
        (100.0, 8),
        (200.0, 8),
        (300.0, 8),
        (400.0, 8),
        (500.0, 8),
        (700.0, 3),
        (1000.0, 3),
    )
    frames: int = 8
    stride_ps: float = 0.25
    equilibration_ps: float = 1.0
    timestep_fs: float = 1.0
    friction_per_ps: float = 5.0
    n_conformers: int = 4
    seed: int = 20261123


def sample_reference(name: str, teacher: Teacher, plan: ReferencePlan) -> ReferenceLabels:
    """Labelled frames of a shipped system.

    The dynamics run on a single float32 network of the teacher; the labels are the whole
    ensemble's, in float64, at positions that are stored to the last bit.

    Parameters
    ----------
    name : of a shipped system

    Raises
    ------
    UnknownNameError : no such system is shipped
    UnsupportedSystemError : an element that the teacher does not know
    RuntimeError : the dynamics broke; take a shorter timestep
    """
    system = load_shipped(name)
    # crc32, because Python's own hash of a string differs from run to run
    rng = np.random.default_rng([plan.seed, zlib.crc32(name.encode())])
    temperature = np.repeat(
        [kelvin for kelvin, _ in plan.trajectories], [n for _, n in plan.trajectories]
    ).astype(np.float64)
    function = teacher.sampling_function(system.species)
    starts = _conformers(system, function, plan)
    equilibration = round(plan.equilibration_ps / (plan.timestep_fs * PS_PER_FS))
    stride = round(plan.stride_ps / (plan.timestep_fs * PS_PER_FS))

    def run(positions: Float, velocities: Float | None, n_steps: int, every: int) -> Any:
        result = langevin(
            function,
            positions,
            system.masses,
            temperature,
            timestep_fs=plan.timestep_fs,
            n_steps=n_steps,
            stride=every,
            rng=rng,
            friction_per_ps=plan.friction_per_ps,
            velocities=velocities,
        )
        if (result.length < n_steps // every).any():
            raise RuntimeError(f"the dynamics of {name} broke; take a shorter timestep")
        return result

    first = starts[np.arange(len(temperature)) % len(starts)]
    warm = run(first, None, equilibration, equilibration)
    sampled = run(warm.positions[-1], warm.velocities[-1], plan.frames * stride, stride)
    # (n_frames, n_trajectories, ...) -> one trajectory after the other
    stacked = sampled.positions.swapaxes(0, 1).reshape(-1, system.n_atoms, 3)
    positions = stacked * NM_PER_ANGSTROM
    energies, forces, _ = teacher.label(system.species, positions * ANGSTROM_PER_NM)
    return ReferenceLabels(
        positions=positions,
        energies=energies * KJMOL_PER_EV,
        forces=forces * KJMOL_NM_PER_EV_ANGSTROM,
        trajectory=np.repeat(np.arange(len(temperature)), plan.frames),
        temperature_K=np.repeat(temperature, plan.frames),
        method=teacher.name,
    )


def make_reference(name: str, teacher: Teacher, plan: ReferencePlan) -> Path:
    """Sample, label, then write `reference.npz` beside the structure; the card records its hash.

    The same seed on the same machine gives the same file, byte for byte.
    """
    labels = sample_reference(name, teacher, plan)
    folder = read_card(name).folder
    buffer = io.BytesIO()
    np.savez(
        buffer,
        positions=labels.positions,
        energies=labels.energies,
        forces=labels.forces,
        trajectory=labels.trajectory,
        temperature_K=labels.temperature_K,
    )
    path = folder / LABELS
    path.write_bytes(buffer.getvalue())
    card = folder / CARD
    kept = card.read_text(encoding="utf-8").partition("\n[reference]\n")[0].rstrip("\n")
    card.write_text(
        kept + "\n\n" + _reference_table(labels, plan, buffer.getvalue()), encoding="utf-8"
    )
    return path


def _reference_table(labels: ReferenceLabels, plan: ReferencePlan, content: bytes) -> str:
    kelvins = ", ".join(f"{kelvin:.1f}" for kelvin, _ in plan.trajectories)
    dynamics = (
        f"Langevin on one float32 network of {labels.method}: {plan.timestep_fs:g} fs, friction "
        f"{plan.friction_per_ps:g}/ps, {plan.equilibration_ps:g} ps discarded, a frame every "
        f"{plan.stride_ps:g} ps, seed {plan.seed}"
    )
    return (
        "[reference]\n"
        f'method = "{labels.method}"\n'
        f'sha256 = "{hashlib.sha256(content).hexdigest()}"\n'
        f"n_frames = {labels.n_frames}\n"
        f"n_trajectories = {len(np.unique(labels.trajectory))}\n"
        f"temperatures_K = [{kelvins}]\n"
        f'dynamics = "{dynamics}"\n'
    )


def _conformers(system: MolecularSystem, function: EnergyFunction, plan: ReferencePlan) -> Float:
    """Minima to start from: shape (n, n_atoms, 3), angstrom; the shipped structure is the first."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import AllChem, rdDistGeom

    card = read_card(system.name)
    molecule = Chem.MolFromPDBFile(str(card.folder / STRUCTURE), removeHs=False)
    template = Chem.AddHs(Chem.MolFromSmiles(card.smiles))
    with rdBase.BlockLogs():  # it notes that a symmetric molecule matches in several ways
        molecule = AllChem.AssignBondOrdersFromTemplate(template, molecule)  # type: ignore[no-untyped-call]
    Chem.AssignStereochemistryFrom3D(molecule)
    rdDistGeom.EmbedMultipleConfs(molecule, plan.n_conformers - 1, randomSeed=plan.seed)
    starts = [system.positions * ANGSTROM_PER_NM]
    starts += [np.array(conformer.GetPositions()) for conformer in molecule.GetConformers()]
    return np.stack([minimise(function, start, tolerance=0.01) for start in starts])
