"""Does the molecule keep its shape?

MDTraj superposes and measures the frames that are looked at. *RMSD*: from the system's structure
after the best superposition, all atoms, mean over the second half; for information, since a
flexible molecule is right to move. *Bond shift*: over all bonds, the largest difference between a
bond's mean length in the run and in the reference frames taken at the nearest temperature. *Bond
spread*: the largest standard deviation of a bond's length over the frames.

The interval of a bond's shift adds in quadrature the error over replicas and the error over the
blocks of reference frames. The bond is chosen as the largest, which biases a shift made of noise
alone upward, by less than its interval.

Its bound: displacing one bond by d costs k d^2 / 2. With k of about 30 eV/angstrom^2 (C-C and C-H
stretches, 4.5 to 5 mdyn/angstrom: Wilson, Decius & Cross, Molecular Vibrations, 1955) a shift of
0.03 angstrom costs kT/2 at 300 K: as much as thermal motion moves the bond. Ten times that, 0.3
angstrom, is a bond on its way to another molecule.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import (
    GEOMETRY,
    SPOILS_DYNAMICS,
    SPOILS_EVALUATION,
    Check,
    Evidence,
    absent,
    bounds,
    for_each_run,
    run_where,
    sampled,
)
from omm_mlff.checks.frames import (
    Sample,
    in_words,
    nearest_in_temperature,
    none_lasted,
    stretches,
    usable_replicas,
)
from omm_mlff.geometry.distances import pair_lengths
from omm_mlff.schema import Declaration, Measurement, MolecularSystem, ReferenceLabels, Symptom
from omm_mlff.statistics.intervals import (
    Estimate,
    blocks_of_frames,
    jackknife,
    mean_over_replicas,
    t_estimate,
)
from omm_mlff.units import ANGSTROM_PER_NM, PS_PER_FS

if TYPE_CHECKING:
    from omm_mlff.record.rundir import RunRecord

_LOOK_PS = 5.0 * PS_PER_FS  # lengths and shapes are correlated over this; fewer frames to read
_PIECE_NUMBERS = 400_000  # atoms in the frames that are read at a time

RMSD = Declaration(
    "structure.rmsd", "info", "angstrom", "from the system's structure, second half", "structure"
)
BOND_SHIFT = Declaration(
    "structure.bond_shift",
    "sampled",
    "angstrom",
    "largest shift of a bond's mean length from the reference frames'",
    "structure",
    failure="bonds have another mean length",
)
BOND_SPREAD = Declaration(
    "structure.bond_spread",
    "info",
    "angstrom",
    "largest standard deviation of a bond's length",
    "structure",
)


def _of_run(evidence: Evidence, run: RunRecord) -> list[Measurement]:
    """Shape and bond lengths of one run."""
    where = run_where(evidence, run)
    system = evidence.system
    samples, left_out = usable_replicas(run)
    if not samples:
        reason = none_lasted(left_out)
        return [absent(row, where, reason) for row in CHECK.declares]
    cause = in_words(left_out)
    every = max(1, round(_LOOK_PS / run.dt_ps))
    rmsd, means, spreads = [], [], []
    for sample in samples:
        shape = _shape(sample, every, system)
        rmsd.append(shape.rmsd[len(shape.rmsd) // 2 :].mean() * ANGSTROM_PER_NM)
        means.append(shape.bond_means)
        spreads.append(shape.bond_spreads)
    found = [sampled(RMSD, mean_over_replicas(np.array(rmsd)), where, cause)]
    if not len(system.bonds):
        reason = f"system {system.name!r} has no bonds"
        return found + [absent(row, where, reason) for row in (BOND_SHIFT, BOND_SPREAD)]
    spread = np.array(spreads)
    widest = int(spread.mean(axis=0).argmax())
    at_widest = dataclasses.replace(where, atoms=_atoms(system, widest))
    found.append(sampled(BOND_SPREAD, mean_over_replicas(spread[:, widest]), at_widest, cause))
    if system.reference is None or not system.reference.n_frames:
        reason = f"system {system.name!r} has no reference frames"
        found.append(absent(BOND_SHIFT, where, reason))
        return found
    shift, bond = bond_shift(np.array(means), system, system.reference, run.spec.temperature_K)
    at_bond = dataclasses.replace(where, atoms=_atoms(system, bond))
    found.append(sampled(BOND_SHIFT, shift, at_bond, cause))
    return found


def bond_shift(
    means: NDArray[np.float64],
    system: MolecularSystem,
    reference: ReferenceLabels,
    temperature_K: float,
) -> tuple[Estimate, int]:
    """Largest shift of a bond's mean length from that of the reference frames.

    Parameters
    ----------
    means : shape (n_replicas, n_bonds), angstrom
    temperature_K : the reference frames nearest to it are compared with

    Returns
    -------
    the shift in angstrom, never negative, and the bond's index
    """
    nearest = nearest_in_temperature(reference, temperature_K)
    lengths = pair_lengths(reference.positions[nearest], system.bonds, system.box_vectors)
    lengths *= ANGSTROM_PER_NM
    shifts = means.mean(axis=0) - lengths.mean(axis=0)
    bond = int(np.abs(shifts).argmax())
    ours = mean_over_replicas(means[:, bond])
    theirs = jackknife(
        lambda frames: float(lengths[frames, bond].mean()),
        blocks_of_frames(reference.trajectory[nearest]),
    )
    error = math.hypot(ours.standard_error, theirs.standard_error)
    # Welch & Satterthwaite: degrees of freedom of a difference with unequal errors
    parts = ((ours.standard_error, ours.dof), (theirs.standard_error, theirs.dof))
    dof = min(ours.dof, theirs.dof)
    if 0.0 < error < math.inf:
        dof = error**4 / sum(one**4 / n for one, n in parts)
    n_samples = min(ours.n_samples, theirs.n_samples)
    return t_estimate(abs(float(shifts[bond])), error, dof, n_samples), bond


@dataclass(frozen=True, eq=False)
class _Shape:
    """One replica.

    Attributes
    ----------
    rmsd : shape (n_looks,), nm
    bond_means, bond_spreads : shape (n_bonds,), angstrom
    """

    rmsd: NDArray[np.float64]
    bond_means: NDArray[np.float64]
    bond_spreads: NDArray[np.float64]


def _shape(sample: Sample, every: int, system: MolecularSystem) -> _Shape:
    """Shape and bond lengths of one replica, a piece of it in memory at a time."""
    import mdtraj

    target = mdtraj.Trajectory(system.positions[None], None)
    rmsd = []
    mean, square = np.zeros(len(system.bonds)), np.zeros(len(system.bonds))
    seen = n_looks = 0
    for piece in stretches(sample, max(every, _PIECE_NUMBERS // system.n_atoms), ("positions",)):
        positions = piece["positions"][(-seen) % every :: every]
        seen += len(piece["positions"])
        n = len(positions)
        if not n:
            continue
        trajectory = mdtraj.Trajectory(positions, None)
        trajectory.unitcell_vectors = _repeated(system.box_vectors, n)
        rmsd.append(mdtraj.rmsd(trajectory, target).astype(np.float64))
        if len(system.bonds):
            lengths = _bond_lengths(trajectory, system)
            here = lengths.mean(axis=0)
            # Chan, Golub & LeVeque, Am. Stat. 37, 242 (1983): variances of two parts joined
            part = n / (n_looks + n)
            square += ((lengths - here) ** 2).sum(axis=0) + (here - mean) ** 2 * n_looks * part
            mean += (here - mean) * part
        n_looks += n
    return _Shape(np.concatenate(rmsd), mean, np.sqrt(square / n_looks))


def _repeated(box_vectors: NDArray[np.float64] | None, n: int) -> NDArray[np.float64] | None:
    return None if box_vectors is None else np.tile(box_vectors, (n, 1, 1))


def _bond_lengths(trajectory: Any, system: MolecularSystem) -> NDArray[np.float64]:
    """Shape (n_frames, n_bonds), angstrom."""
    import mdtraj

    lengths = mdtraj.compute_distances(trajectory, system.bonds, periodic=system.periodic)
    return np.asarray(lengths, dtype=np.float64) * ANGSTROM_PER_NM


def _atoms(system: MolecularSystem, bond: int) -> tuple[int, ...]:
    return (int(system.bonds[bond, 0]), int(system.bonds[bond, 1]))


CHECK = Check(
    name="structure",
    question="Does the molecule keep its shape?",
    formula="RMSD; largest |<d>_run - <d>_reference|; largest standard deviation of d",
    source="MDTraj: McGibbon et al., Biophys. J. 109, 1528 (2015)",
    declares=(RMSD, BOND_SHIFT, BOND_SPREAD),
    criteria=bounds(
        BOND_SHIFT,
        "0.03 angstrom off costs kT/2 at 300 K for a stretch of 30 eV/angstrom^2; ten times that "
        "is no longer the same bond",
        high=(0.03, 0.3),
    ),
    needs=frozenset({"runs"}),
    take=for_each_run(_of_run),
    use=GEOMETRY,
    explained_by=(
        *SPOILS_EVALUATION,
        *SPOILS_DYNAMICS,
    ),
    symptom=Symptom.ACCURACY,
)
