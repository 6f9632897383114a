"""Do two molecules far apart have the energy of one and one?

Two copies of the molecule are one molecular system, the second copy turned at random and carried
away beyond every cutoff. Nothing acts between them, so

    E(a and b) = E(a) + E(b)            F(a and b) = F(a), F(b)

where E(a), E(b) are those of each copy alone, at the very place and in the very orientation that it
has in the pair: how a potential takes to being turned or moved is asked elsewhere. Energy per atom,
forces as rms(F(a and b) - F) / rms(F); the largest over pairs of thermal frames.

A network that divides by the number of atoms, normalises over a whole molecule, or adds a constant
a molecule fails. Absent for a box, for a force field that knows its atoms by their bonds, and for
a potential that names no cutoff: it may act at any distance.

Bounds follow from rounding, as those of invariance: a sum over twice as many atoms is rounded
elsewhere. The shipped students in float32, on water, methane and alanine: 4e-4 meV/atom and 2e-6 of
the force at most; tiny in float64 1e-10 and 1.5e-15.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import (
    MEETING,
    SPOILS_EVALUATION,
    Check,
    Evidence,
    absent,
    bounds,
    exact,
    worst,
)
from omm_mlff.checks.frames import static_frames
from omm_mlff.geometry.pulled_apart import two_copies
from omm_mlff.schema import Declaration, Fault, Measurement, MolecularSystem, Where
from omm_mlff.units import ANGSTROM_PER_NM, MEV_PER_KJMOL

if TYPE_CHECKING:
    from omm_mlff.dynamics.evaluator import Evaluator

N_PAIRS = 8
APART_NM = 3.0
"""Between the outermost atoms, or twice the cutoff where that is more."""

ENERGY = Declaration(
    "extensivity.energy",
    "deterministic",
    "meV/atom",
    "largest |E(a and b) - E(a) - E(b)|",
    "extensivity",
    failure="the energies of distant molecules do not add up",
)
FORCE = Declaration(
    "extensivity.force",
    "deterministic",
    "1",
    "largest relative change of the forces by a copy far away",
    "extensivity",
    failure="distant molecules feel each other",
)


@np.errstate(all="ignore")  # a broken potential is measured, not warned of
def take(evidence: Evidence) -> list[Measurement]:
    """Energy and forces of two copies far apart, against those of each alone."""
    where = Where(system=evidence.system.name)

    def none(reason: str) -> list[Measurement]:
        return [absent(row, where, reason) for row in CHECK.declares]

    obstacle = _obstacle(evidence)
    if obstacle:
        return none(obstacle)
    random = evidence.random(CHECK.name)
    pair = two_copies(evidence.system, random).system
    frames = static_frames(evidence, CHECK.name, N_PAIRS)
    first, second = far_apart(frames, _apart(evidence), random)
    n_atoms = pair.n_atoms
    # It is asked about the copies where they will be, not on top of each other.
    pair = dataclasses.replace(pair, positions=np.concatenate((first[0], second[0])))
    refusal = evidence.live.potential.unsupported(pair)
    if refusal:
        return none(f"it cannot serve two copies of the molecule: {refusal}")
    together = _together(evidence.live, pair, np.concatenate((first, second), axis=1))
    if together is None:
        return none("it fails on two copies of the molecule")
    energies, forces = _alone(evidence.live, first, second)
    energy, at_energy = worst(np.abs(together[0] - energies) * (MEV_PER_KJMOL / n_atoms))
    size = np.sqrt((forces**2).mean())
    change = np.sqrt(((together[1] - forces) ** 2).mean(axis=(1, 2)))
    force, at_force = worst(np.where(change == 0.0, 0.0, change / size))
    apart = f"two copies {_apart(evidence) * ANGSTROM_PER_NM:g} angstrom apart"
    return [
        exact(
            ENERGY,
            energy,
            dataclasses.replace(where, frame=at_energy),
            len(frames),
            f"{apart} have {_signed(together[0], energies, at_energy)} meV more energy than one "
            "and one",
        ),
        exact(
            FORCE,
            force,
            dataclasses.replace(where, frame=at_force),
            len(frames),
            f"{apart} change each other's forces by {force:.2g} of their rms",
        ),
    ]


def far_apart(
    frames: NDArray[np.float64], apart_nm: float, random: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each frame beside another one, which is turned at random.

    Parameters
    ----------
    frames : shape (n_frames, n_atoms, 3), nm
    apart_nm : the least distance between atoms of different copies

    Returns
    -------
    first, second : shape of `frames`, nm
    """
    from scipy.spatial.transform import Rotation

    first = frames - frames.mean(axis=1, keepdims=True)
    matrices = Rotation.random(len(frames), rng=random).as_matrix()
    second = np.einsum("fxy,fay->fax", matrices, np.roll(first, 1, axis=0))
    second[:, :, 0] += 2.0 * float(np.linalg.norm(first, axis=2).max()) + apart_nm
    return first, second


def _together(
    evaluator: Evaluator, pair: MolecularSystem, frames: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Energies and forces of two copies; None where the potential raises for them."""
    other = evaluator.for_system(pair)
    try:
        found = other.evaluate(frames)
        return None if other.raised else found
    finally:
        other.close()


def _alone(
    evaluator: Evaluator, first: NDArray[np.float64], second: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of the copies' energies, and their forces one after the other."""
    energies, forces = evaluator.evaluate(np.concatenate((first, second)))
    n = len(first)
    return energies[:n] + energies[n:], np.concatenate((forces[:n], forces[n:]), axis=1)


def _apart(evidence: Evidence) -> float:
    return max(APART_NM, 2.0 * (evidence.card.cutoff_nm or 0.0))


def _signed(together: NDArray[np.float64], alone: NDArray[np.float64], frame: int) -> str:
    return f"{(together[frame] - alone[frame]) * MEV_PER_KJMOL:.3g}"


def _obstacle(evidence: Evidence) -> str:
    if evidence.system.periodic:
        return "in a periodic box no copy is far away"
    if evidence.card.knows_atoms_by != "element":
        return f"{evidence.card.name} knows its atoms by {evidence.card.knows_atoms_by}"
    if evidence.card.cutoff_nm is None:
        return f"{evidence.card.name} names no cutoff: it may act at any distance"
    return ""


_ROUNDING = "rounding, as in invariance (derived in omm_mlff/checks/extensivity.py)"

CHECK = Check(
    name="extensivity",
    question="Do two molecules far apart have the energy of one and one?",
    formula="|E(a and b) - E(a) - E(b)| / n_atoms; rms(F(a and b) - F) / rms(F)",
    source="Bartlett, Annu. Rev. Phys. Chem. 32, 359 (1981), for size consistency",
    declares=(ENERGY, FORCE),
    criteria=(
        *bounds(ENERGY, _ROUNDING, dtypes=("float64",), high=(1.0e-6, 1.0)),
        *bounds(ENERGY, _ROUNDING, dtypes=("float32",), high=(0.01, 1.0)),
        *bounds(FORCE, _ROUNDING, dtypes=("float64",), high=(1.0e-8, 1.0e-2)),
        *bounds(FORCE, _ROUNDING, dtypes=("float32",), high=(1.0e-4, 1.0e-2)),
    ),
    needs=frozenset({"evaluator"}),
    take=take,
    use=MEETING,
    explained_by=(
        *SPOILS_EVALUATION,
        Fault.UNITS,
        Fault.ORIENTATION,
        Fault.BOX,
        Fault.CUTOFF,
    ),
)
