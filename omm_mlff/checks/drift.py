r"""Does the energy stay where it was?

Verlet's algorithm does not conserve the energy E but, for forces that are a gradient, a shadow
energy close to it. To second order in the timestep (Hairer, Lubich & Wanner, Acta Numerica 12,
399 (2003); for molecular dynamics Engle, Skeel & Drees, J. Comput. Phys. 206, 432 (2005))

    E_shadow = E + dt^2 sum_i [ -(v_i . dF_i/dt) / 12 - |F_i|^2 / (24 m_i) ]

with v_i on the step. All of it is in the record; dF/dt is the central difference over two steps,
whose error is of the order of what the expansion leaves out. What E_shadow still does over time is
real: forces that are no gradient, jumps at a cutoff, lost digits.

*Drift* is the slope of E_shadow against time by least squares, per replica and atom; the interval
is Student's over the replicas' slopes. *Drift as a temperature* divides it by 3 k, the harmonic
heat capacity of an atom (half of the energy goes to the potential): 0.001 meV/atom/ps are
3.9 K/ns. *Energy change* is M6's |E_end - E_0| / |E_0| in percent, with the atomic reference
energies taken out of E_0: it depends on an arbitrary zero and is reported beside the sound
measures, not instead of them. *Fluctuation* is the rms deviation of E from its own straight line.

Least squares it is, and no tapered weights: what is left in E_shadow of a float32 student is mostly
rounding, which is white. All replicas start at the rest structure, so what it leaves out (of the
order dt^4) starts in phase in all of them: a bias common to them, which falls with the square of
the length; three O-H-like oscillators over 1 ps show 5e-5 meV/atom/ps.

A replica that was stopped counts up to 20 fs before its event where that is at least half of the
run, else it is left out and named in the cause. Fewer than two replicas give a value without an
interval, which decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import (
    CONSTANT_ENERGY,
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
    MIN_FRAMES,
    Sample,
    in_words,
    none_lasted,
    stretches,
    usable_replicas,
)
from omm_mlff.errors import AnalysisError
from omm_mlff.schema import Criterion, Declaration, Fault, Measurement, Symptom
from omm_mlff.statistics.intervals import mean_over_replicas
from omm_mlff.units import KELVIN_PER_EV_PER_ATOM, MEV_PER_KJMOL, PS_PER_FS

if TYPE_CHECKING:
    from omm_mlff.record.rundir import RunRecord

_PIECE = 4096
_BYTES_PER_NUMBER = 8

DRIFT = Declaration(
    "nve.drift",
    "sampled",
    "meV/atom/ps",
    "slope of Verlet's shadow energy, mean",
    "drift",
    failure="energy is not conserved",
)
DRIFT_TEMPERATURE = Declaration(
    "nve.drift_temperature", "info", "K/ns", "the drift over the harmonic heat capacity 3k", "drift"
)
ENERGY_CHANGE = Declaration(
    "nve.energy_change",
    "sampled",
    "%",
    "|E_end - E_0| / |E_0|, E_0 without atomic reference energies",
    "drift",
    error_exponent=0.0,
    failure="the energy at the end is not that of the start",
)
FLUCTUATION = Declaration(
    "nve.fluctuation", "info", "meV/atom", "rms of the detrended total energy", "drift"
)

LIMIT = 0.01
"""meV/atom/ps, either way: 39 K/ns."""

KELVIN_PER_NS = KELVIN_PER_EV_PER_ATOM / 2.0
"""K/ns in one meV/atom/ps: per eV with 3 k an atom, twice the kinetic 3/2 k; 1e-3 eV, 1e3 ps."""


@dataclass(frozen=True)
class EnergyRecord:
    """Energies of one replica; the ends are missing, for want of a central difference.

    Attributes
    ----------
    time : shape (n,), ps
    total, shadow : shape (n,), kJ/mol
    first, last : total energy of the first and the last frame, kJ/mol
    """

    time: NDArray[np.float64]
    total: NDArray[np.float64]
    shadow: NDArray[np.float64]
    first: float
    last: float


def shadow_energy(
    total_energy: NDArray[np.float64],
    velocities: NDArray[np.float64],
    forces: NDArray[np.float64],
    masses: NDArray[np.float64],
    timestep_ps: float,
) -> NDArray[np.float64]:
    """Verlet's conserved energy to second order, for all frames but the first and the last.

    Parameters
    ----------
    total_energy : shape (n_frames,), kJ/mol, consecutive steps
    velocities : shape (n_frames, n_atoms, 3), nm/ps, on the step
    forces : shape (n_frames, n_atoms, 3), kJ/mol/nm
    masses : shape (n_atoms,), dalton

    Returns
    -------
    shape (n_frames - 2,), kJ/mol

    References
    ----------
    Engle, Skeel & Drees, J. Comput. Phys. 206, 432 (2005).
    """
    # dt^2 dF/dt = dt (F(t + dt) - F(t - dt)) / 2
    change = (forces[2:] - forces[:-2]) * (0.5 * timestep_ps)
    turn = np.einsum("fax,fax->f", velocities[1:-1], change) / 12.0
    square = np.einsum("fax,fax,a->f", forces[1:-1], forces[1:-1], 1.0 / masses)
    shadow: NDArray[np.float64] = total_energy[1:-1] - turn - square * timestep_ps**2 / 24.0
    return shadow


def slope(time: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Least-squares slope of values against time.

    Raises
    ------
    AnalysisError : fewer than 16 frames, or a value that is not finite
    """
    if len(time) < MIN_FRAMES - 2:
        raise AnalysisError(f"a slope needs {MIN_FRAMES} frames, got {len(time) + 2}")
    if not np.isfinite(values).all():
        raise AnalysisError("a slope needs finite energies; the record holds NaN or infinity")
    centred = time - time.mean()
    return float(centred @ (values - values.mean()) / (centred @ centred))


def energies(run: RunRecord, sample: Sample) -> EnergyRecord:
    """Total and shadow energy of one replica; several checks ask for them."""
    numbers = 3 * _BYTES_PER_NUMBER * sample.n_frames
    key = ("energies", sample.index, sample.n_frames)
    return run.kept.of(key, numbers, lambda: _energies(run, sample))


def _energies(run: RunRecord, sample: Sample) -> EnergyRecord:
    """Total and shadow energy of one replica, read piece by piece."""
    fields = ("time", "potential_energy", "kinetic_energy", "velocities", "forces")
    times, totals, shadows = [], [], []
    first = last = float("nan")
    dt = run.spec.timestep_fs * PS_PER_FS
    for number, piece in enumerate(stretches(sample, _PIECE, fields, overlap=2)):
        total = piece["potential_energy"] + piece["kinetic_energy"]
        if number == 0:
            first = float(total[0])
        last = float(total[-1])
        if len(total) < 3:
            continue
        shadows.append(shadow_energy(total, piece["velocities"], piece["forces"], run.masses, dt))
        times.append(piece["time"][1:-1])
        totals.append(total[1:-1])
    series = [np.concatenate(parts) for parts in (times, totals, shadows)]
    for array in series:
        array.flags.writeable = False
    return EnergyRecord(series[0], series[1], series[2], first, last)


def _of_run(evidence: Evidence, run: RunRecord) -> list[Measurement]:
    """Drift, energy change and fluctuation of one run."""
    where = run_where(evidence, run)
    samples, left_out = usable_replicas(run)
    if not samples:
        reason = none_lasted(left_out)
        return [absent(row, where, reason) for row in CHECK.declares]
    cause = in_words(left_out)
    records = [energies(run, sample) for sample in samples]
    n_atoms = len(run.masses)
    per_atom = MEV_PER_KJMOL / n_atoms
    found = []
    if run.spec.record_stride == 1:
        slopes = np.array([slope(record.time, record.shadow) for record in records])
        drift = mean_over_replicas(slopes * per_atom)
        found.append(sampled(DRIFT, drift, where, cause))
        found.append(sampled(DRIFT_TEMPERATURE, drift.scaled(KELVIN_PER_NS), where, cause))
    else:
        reason = (
            f"the shadow energy needs every step, this run recorded every "
            f"{run.spec.record_stride}th; run with a record stride of 1"
        )
        found += [absent(row, where, reason) for row in (DRIFT, DRIFT_TEMPERATURE)]
    zero = evidence.reference_energy_kjmol
    start = np.array([record.first - (zero or 0.0) for record in records])
    if zero is None:
        reason = f"{evidence.card.name} does not say what part of its energy belongs to free atoms"
        found.append(absent(ENERGY_CHANGE, where, reason))
    elif start.all():
        change = np.array([record.last - record.first for record in records])
        percent = mean_over_replicas(100.0 * np.abs(change / start))
        found.append(sampled(ENERGY_CHANGE, percent, where, cause))
    else:
        reason = "a replica starts at an energy of exactly 0, of which nothing is a percentage"
        found.append(absent(ENERGY_CHANGE, where, reason))
    rms = np.array([_detrended_rms(record.time, record.total) for record in records])
    found.append(sampled(FLUCTUATION, mean_over_replicas(rms * per_atom), where, cause))
    return found


def _detrended_rms(time: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    rest = values - values.mean() - slope(time, values) * (time - time.mean())
    return float(np.sqrt((rest**2).mean()))


_SECTION_6 = (
    "DESIGN section 6: conservative models published have 0.0003 to 0.002, one with direct forces "
    "22; GROMACS' default buffer tolerance is 0.05 meV/atom/ps"
)

CHECK = Check(
    name="drift",
    question="Does the energy stay where it was?",
    formula="slope of E + dt^2 [-(v . dF/dt) / 12 - |F|^2 / (24 m)] against time",
    source="Engle, Skeel & Drees, J. Comput. Phys. 206, 432 (2005)",
    declares=(DRIFT, DRIFT_TEMPERATURE, ENERGY_CHANGE, FLUCTUATION),
    criteria=(
        *bounds(DRIFT, _SECTION_6, low=(-LIMIT, -0.1), high=(LIMIT, 0.1)),
        Criterion(
            "nve.drift-info",
            DRIFT.name,
            -0.001,
            0.001,
            DRIFT.unit,
            "info",
            "DESIGN section 6: what a conservative model of today reaches (3.9 K/ns)",
        ),
    ),
    needs=frozenset({"runs"}),
    take=for_each_run(_of_run),
    use=CONSTANT_ENERGY,
    explained_by=(
        *SPOILS_EVALUATION,
        *SPOILS_DYNAMICS,
        Fault.CUTOFF,
        Fault.ATTRIBUTED,
    ),
    symptom=Symptom.DRIFT,
)
