"""What one replica did, as numbers a frame: energy and two temperatures.

The energy is Verlet's shadow energy where every step was recorded (see `checks.drift`), which takes
the algorithm's own bounded oscillation out; else the total energy. One temperature is that of the
recorded kinetic energies, the other that of the distances the atoms moved between frames: they
differ where a record holds velocities that move nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.drift import shadow_energy
from omm_mlff.checks.frames import Sample, stretches
from omm_mlff.checks.temperature import kinetic_temperature
from omm_mlff.geometry.distances import minimum_image
from omm_mlff.record.frame_fields import FIELDS
from omm_mlff.schema import MolecularSystem
from omm_mlff.units import EV_PER_KJMOL, PS_PER_FS

if TYPE_CHECKING:
    from omm_mlff.record.rundir import RunRecord

_NUMBERS_AT_ONCE = 1_000_000  # of one vector field; four pieces' worth is read at a time


@dataclass(frozen=True, eq=False)
class Course:
    """Numbers of one replica, up to the first frame that is not finite.

    Attributes
    ----------
    time : shape (n,), ps
    energy : shape (n,), eV, from the first frame's
    kinetic_K : shape (n,), temperature of the kinetic energy
    moved_K : shape (n,), temperature of the motion since the frame before; the first repeats the
        second
    broken_ps : time of the first frame that is not finite; None where all are
    """

    time: NDArray[np.float64]
    energy: NDArray[np.float64]
    kinetic_K: NDArray[np.float64]
    moved_K: NDArray[np.float64]
    broken_ps: float | None


def course_of(run: RunRecord, system: MolecularSystem, index: int) -> Course:
    """The course of one replica, read piece by piece."""
    times, totals, corrections, kinetics, moved = [], [], [], [], []
    broken_ps = None
    for number, piece in enumerate(_pieces(run, system, index)):
        n_finite = _n_finite(piece)
        if n_finite < len(piece["time"]):
            broken_ps = float(piece["time"][n_finite])
        piece = {name: array[:n_finite] for name, array in piece.items()}
        fresh = slice(0 if number == 0 else 2, None)
        total = piece["potential_energy"] + piece["kinetic_energy"]
        times.append(piece["time"][fresh])
        totals.append(total[fresh])
        kinetics.append(piece["kinetic_energy"][fresh])
        steps = _moved_kinetic(piece["positions"], run, system)
        moved.append(steps if number == 0 else steps[1:])
        corrections.append(_correction(run, piece, total))
        if broken_ps is not None:
            break
    time = _joined(times)
    energy = _joined(totals)
    if len(energy):
        # The ends have no central difference; they take their neighbours' correction.
        correction = _joined(corrections)
        if len(correction):
            energy = energy - np.concatenate((correction[:1], correction, correction[-1:]))
        energy = (energy - energy[0]) * EV_PER_KJMOL
    return Course(
        time,
        energy,
        kinetic_temperature(_joined(kinetics), run.n_dof),
        kinetic_temperature(_padded(_joined(moved), len(time)), run.n_dof),
        broken_ps,
    )


def _pieces(
    run: RunRecord, system: MolecularSystem, index: int
) -> Iterator[dict[str, NDArray[np.float64]]]:
    replica = run.replica(index)
    size = max(16, _NUMBERS_AT_ONCE // (3 * system.n_atoms))
    sample = Sample(index, replica, replica.n_frames)
    return stretches(sample, size, FIELDS, overlap=2)


def _n_finite(piece: dict[str, NDArray[np.float64]]) -> int:
    finite = np.ones(len(piece["time"]), dtype=np.bool_)
    for array in piece.values():
        finite &= np.isfinite(array).reshape(len(array), -1).all(axis=1)
    return int(np.argmin(finite)) if not finite.all() else len(finite)


def _moved_kinetic(
    positions: NDArray[np.float64], run: RunRecord, system: MolecularSystem
) -> NDArray[np.float64]:
    """Kinetic energy, kJ/mol, of the mean velocity between frames, shape (n_frames - 1,)."""
    step = np.diff(positions, axis=0)
    if system.box_vectors is not None:
        step = minimum_image(step, system.box_vectors)
    kinetic: NDArray[np.float64] = np.einsum("fax,fax,a->f", step, step, 0.5 * run.masses)
    return kinetic / run.dt_ps**2


def _correction(
    run: RunRecord, piece: dict[str, NDArray[np.float64]], total: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Total less shadow energy of all frames but the first and last; empty for a coarse record."""
    if run.spec.record_stride != 1 or len(total) < 3:
        return np.empty(0)
    dt = run.spec.timestep_fs * PS_PER_FS
    return total[1:-1] - shadow_energy(total, piece["velocities"], piece["forces"], run.masses, dt)


def _joined(parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate(parts) if parts else np.empty(0)


def _padded(values: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Values between n frames as values of n frames."""
    if len(values) == n:
        return values
    return np.concatenate((values[:1], values)) if len(values) else np.zeros(n)
