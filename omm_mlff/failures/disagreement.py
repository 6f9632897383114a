"""The model's forces beside the teacher's, in the last femtoseconds before a failure.

The teacher is itself to be believed only near equilibrium: each frame says whether all bonds are
within 0.8 to 1.35 of their length at rest (DESIGN, section 6), and how far its networks disagree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from omm_mlff.errors import MissingPackageError
from omm_mlff.failures.moments import Moment
from omm_mlff.geometry.distances import bond_lengths
from omm_mlff.schema import MolecularSystem
from omm_mlff.teachers.ani import TEACHER_NAME, TEACHER_SPECIES
from omm_mlff.units import ANGSTROM_PER_NM, EV_ANGSTROM_PER_KJMOL_NM

if TYPE_CHECKING:
    from omm_mlff.teachers.ani import Teacher

N_COMPARED = 21
N_LISTED = 5
TRUSTED = (0.8, 1.35)
_MOST_WRONG = 2  # atoms at fault where nobody has named any


def usable_teacher(
    system: MolecularSystem, teacher: Teacher | Literal["auto"] | None
) -> tuple[Teacher | None, str]:
    """The teacher for a system, or None with the reason."""
    unknown = sorted(set(system.species.tolist()) - set(TEACHER_SPECIES))
    if teacher is None:
        return None, "no teacher was given"
    if unknown:
        return None, f"{TEACHER_NAME} knows H, C, N and O, not atomic numbers {unknown}"
    if system.charge:
        return None, f"{TEACHER_NAME} is for neutral molecules, this has charge {system.charge:+d}"
    if system.periodic:
        return None, f"{TEACHER_NAME} is asked in vacuum only, this is a periodic box"
    if teacher != "auto":
        return teacher, ""
    from omm_mlff.teachers.ani import Teacher

    try:
        return Teacher(), ""
    except MissingPackageError as error:
        return None, str(error)


def compared_forces(
    system: MolecularSystem,
    frames: Moment,
    atoms: tuple[int, ...],
    names: tuple[str, ...],
    teacher: Teacher | None,
    why_not: str,
) -> dict[str, Any]:
    """Forces on the atoms at fault, and how the error of all forces developed.

    Parameters
    ----------
    frames : up to the failure
    atoms : at fault; if none are named, those whose forces change or err most at the end
    names : of all atoms
    teacher, why_not : see `usable_teacher`

    Returns
    -------
    as JSON; forces in eV/angstrom. `rmse` is over the components of one frame's forces.
    """
    chosen = frames.spread(N_COMPARED)
    positions = frames.positions[chosen]
    model = frames.forces[chosen] * EV_ANGSTROM_PER_KJMOL_NM
    theirs = spread = None
    if teacher is not None:
        _, theirs, spread = teacher.label(system.species, positions * ANGSTROM_PER_NM)
    at_fault = atoms or _most_at_fault(model, theirs)
    shown: dict[str, Any] = {
        "unit": "eV/angstrom",
        "atoms": [names[atom] for atom in at_fault],
        "frames": _listed(frames.time[chosen], model, theirs, at_fault),
    }
    if theirs is None or spread is None:
        return {**shown, "reference": None, "reference_absent": why_not}
    error = model - theirs
    return {
        **shown,
        "reference": TEACHER_NAME,
        "course": {
            "time_ps": frames.time[chosen].tolist(),
            "rmse": np.sqrt((error**2).mean(axis=(1, 2))).tolist(),
            "rmse_at_fault": np.sqrt((error[:, at_fault] ** 2).mean(axis=(1, 2))).tolist(),
            "reference_spread_eV": spread.tolist(),
            "reference_trusted": _trusted(system, positions).tolist(),
        },
    }


def _listed(
    time: NDArray[np.float64],
    model: NDArray[np.float64],
    theirs: NDArray[np.float64] | None,
    atoms: tuple[int, ...],
) -> list[dict[str, Any]]:
    """The last frames, with the forces on some atoms."""
    rows = []
    for k in range(max(0, len(time) - N_LISTED), len(time)):
        row = {"time_ps": float(time[k]), "model": model[k, atoms].tolist()}
        if theirs is not None:
            row["reference"] = theirs[k, atoms].tolist()
        rows.append(row)
    return rows


def _most_at_fault(
    model: NDArray[np.float64], theirs: NDArray[np.float64] | None
) -> tuple[int, ...]:
    """Atoms whose last force errs most; without a reference, changes most."""
    if theirs is not None:
        wrong = model[-1] - theirs[-1]
    else:
        wrong = model[-1] - model[max(0, len(model) - 2)]
    order = np.argsort(-(wrong**2).sum(axis=1), kind="stable")
    return tuple(int(atom) for atom in order[:_MOST_WRONG])


def _trusted(system: MolecularSystem, positions: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether every bond of a frame is where the teacher is to be believed, shape (n_frames,)."""
    ratio = bond_lengths(system, positions) / bond_lengths(system, system.positions)
    return np.asarray(((ratio >= TRUSTED[0]) & (ratio <= TRUSTED[1])).all(axis=1))
