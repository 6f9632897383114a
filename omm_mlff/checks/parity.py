"""Is what OpenMM computes what the model computes?

The same frames go through the potential alone (for a student: plain torch) and through an OpenMM
Context on the platform of the runs. The largest difference is reported, of the energy per atom and
of any Cartesian component of a force. It finds wrong units, swapped atoms, lost digits, forces
that OpenMM reads from memory that is no longer theirs.

The bounds follow from rounding. A float32 network sums its terms in another order on each side:
about 1e-5 of a force of 10 eV/angstrom, and 1e-7 of an atomic energy of some 20 eV. In float64
nine digits less.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import (
    IN_OPENMM,
    SPOILS_EVALUATION,
    Check,
    Evidence,
    absent,
    bounds,
    exact,
    worst,
)
from omm_mlff.checks.frames import static_frames
from omm_mlff.forces.potential_errors import own_error
from omm_mlff.schema import Declaration, Measurement, Where
from omm_mlff.units import EV_ANGSTROM_PER_KJMOL_NM, MEV_PER_KJMOL

if TYPE_CHECKING:
    from omm_mlff.dynamics.evaluator import Evaluator

N_FRAMES = 16

ENERGY = Declaration(
    "parity.energy",
    "deterministic",
    "meV/atom",
    "largest difference of the energy",
    "parity",
    failure="OpenMM computes another energy than the network",
)
FORCE = Declaration(
    "parity.force",
    "deterministic",
    "eV/angstrom",
    "largest difference of a component",
    "parity",
    failure="OpenMM computes other forces than the network",
)


def take(evidence: Evidence) -> list[Measurement]:
    """Largest difference between the potential alone and in OpenMM."""
    system, evaluator = evidence.system, evidence.live
    where = Where(system=system.name)
    positions = static_frames(evidence, CHECK.name, N_FRAMES)
    direct = _directly(evaluator, positions)
    if direct is None:
        reason = f"{evidence.card.name} cannot be evaluated other than by OpenMM"
        return [absent(row, where, reason) for row in CHECK.declares]
    energies, forces = evaluator.evaluate(positions, batched=False)
    energy, frame = worst(np.abs(energies - direct[0]) * (MEV_PER_KJMOL / system.n_atoms))
    difference = np.abs(forces - direct[1]) * EV_ANGSTROM_PER_KJMOL_NM
    force, place = worst(difference.ravel())
    at_frame, atom, _ = np.unravel_index(place, difference.shape)
    return [
        exact(ENERGY, energy, dataclasses.replace(where, frame=frame), len(positions)),
        exact(
            FORCE,
            force,
            dataclasses.replace(where, frame=int(at_frame), atoms=(int(atom),)),
            len(positions),
        ),
    ]


def _directly(
    evaluator: Evaluator, positions: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The potential without OpenMM; NaN for frames on which its own code raises."""
    potential, system = evaluator.potential, evaluator.system
    try:
        return potential.energies_and_forces(positions, system)
    except Exception as error:  # somebody else's code
        first = own_error(error, potential.card)
    energies, forces = np.full(len(positions), np.nan), np.full(positions.shape, np.nan)
    messages = []
    for i, frame in enumerate(positions):
        try:
            alone = potential.energies_and_forces(frame[None], system)
        except Exception as error:
            messages.append(own_error(error, potential.card))
            continue
        if alone is not None:
            energies[i], forces[i] = alone[0][0], alone[1][0]
    evaluator.tally.add(len(positions), messages or [first])
    return energies, forces


_ROUNDING = "rounding of sums in another order (derived in omm_mlff/checks/parity.py)"

CHECK = Check(
    name="parity",
    question="Is what OpenMM computes what the model computes?",
    formula="max |E_OpenMM - E_direct| / n_atoms; max |F_OpenMM - F_direct|",
    source="DESIGN section 6",
    declares=(ENERGY, FORCE),
    criteria=(
        *bounds(ENERGY, _ROUNDING, dtypes=("float64",), high=(1.0e-6, 1.0e-3)),
        *bounds(ENERGY, _ROUNDING, dtypes=("float32",), high=(0.01, 1.0)),
        *bounds(FORCE, _ROUNDING, dtypes=("float64",), high=(1.0e-6, 1.0e-3)),
        *bounds(FORCE, _ROUNDING, dtypes=("float32",), high=(1.0e-3, 0.05)),
    ),
    needs=frozenset({"evaluator"}),
    take=take,
    use=IN_OPENMM,
    explained_by=SPOILS_EVALUATION,
)
