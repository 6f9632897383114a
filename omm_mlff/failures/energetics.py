r"""Symptoms in the energy and the motion: jump, drift, heating, cooling, frozen, errors.

*Jump*: within 10 fs, one period of the fastest vibration, the energy changes by more than 0.1 eV
(four kT at 300 K) and by more than ten times what it changes in 10 fs as a rule, and stays there.

*Drift*: the slope of the energy, over means of 50 fs, is beyond 0.1 meV/atom/ps (the reject bound
of `nve.drift`) and beyond six of its standard errors, and by the end of the record it has changed
the molecule's harmonic heat, 3 k T an atom, by a hundredth; less explains nothing. It began at the
start; its onset is told as the time when that change is a tenth (the limit of
`nve.temperature_error`), since before nothing else can follow from it. A slope that never gets so
far is told at the end.

*Heating* and *cooling*: the mean kinetic temperature of 50 fs (five O-H periods, one and a half of
a C-C stretch) leaves the band from 0.5 to 1.5 of the target, or of the mean until then where that
is further out. A replica starts at rest with the kinetic energy n_dof k T, twice its mean; as long
as the energy is conserved and no well is deeper than the one it started in, the kinetic energy
cannot leave the band from 0 to 2. The bounds stand midway between these ends and the mean. The
first 100 fs, in which the start is forgotten, are left out. Under a thermostat the energy comes and
goes: there the band is that of the chi-squared distribution of n_dof squares, but for one in 10^9
on either side, and there is neither jump nor drift.

*Frozen*: over 50 fs the kinetic temperature, or that of the atoms' motion from frame to frame, is
below a hundredth of the target. In that time a free particle of the target's temperature moves, and
a bound one turns.

*Raised* and *nan*: the potential's own code has raised, with its message, or its energy or forces
are no numbers. What is seen before may have led there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from omm_mlff.checks.frames import AFTERMATH_PS
from omm_mlff.failures.course import Course
from omm_mlff.failures.symptoms import Symptom
from omm_mlff.units import BOLTZMANN, EV_PER_KJMOL, PS_PER_FS

if TYPE_CHECKING:
    from omm_mlff.record.rundir import RunRecord
    from omm_mlff.schema import Event

PERIOD_PS = 10.0 * PS_PER_FS
WINDOW_PS = 50.0 * PS_PER_FS
SETTLED_PS = 100.0 * PS_PER_FS

JUMP_EV = 0.1
JUMP_OVER_USUAL = 10.0
DRIFT_MEV = 0.1  # per atom and ps
DRIFT_SIGMAS = 6.0
DRIFT_OF_HEAT, DRIFT_NOTICED = 0.1, 0.01
HOT, COLD, FROZEN = 1.5, 0.5, 0.01
_MIN_BLOCKS = 8
_RARE = 1.0e-9


def energetic_symptoms(run: RunRecord, course: Course, event: Event | None) -> list[Symptom]:
    """Everything that energies and temperatures show of one replica.

    Parameters
    ----------
    event : why the simulation stopped it, if it did
    """
    found = []
    conserves = run.spec.ensemble == "nve"
    jump = _jump(run, course) if conserves else None
    quiet_until = course.time[-1] if len(course.time) else 0.0
    if event is not None:
        quiet_until = event.time_ps - AFTERMATH_PS
    if jump is not None:
        found.append(jump)
        quiet_until = min(quiet_until, jump.time_ps - AFTERMATH_PS)
    drift = _drift(run, course, quiet_until) if conserves else None
    if drift is not None:
        found.append(drift)
    found += _temperature(run, course)
    if event is not None and event.kind == "energy" and jump is None and drift is None:
        found.append(
            Symptom("jump", event.time_ps, event.atoms, event.value, event.unit, event.detail)
        )
    if event is not None and event.kind in ("raised", "nan"):
        found.append(
            Symptom(event.kind, event.time_ps, event.atoms, event.value, event.unit, event.detail)
        )
    elif course.broken_ps is not None:
        sentence = "the record holds a number that is not finite"
        found.append(Symptom("nan", course.broken_ps, (), float("nan"), "1", sentence))
    return found


def _n_frames(run: RunRecord, duration_ps: float) -> int:
    return max(1, round(duration_ps / run.dt_ps))


def _jump(run: RunRecord, course: Course) -> Symptom | None:
    energy = course.energy
    lag = _n_frames(run, PERIOD_PS)
    change = energy[lag:] - energy[:-lag]
    if not len(change):
        return None
    limit = max(JUMP_EV, JUMP_OVER_USUAL * float(np.median(np.abs(change))))
    for start in np.flatnonzero(np.abs(change) > limit).tolist():
        before = float(np.median(energy[max(0, start - lag) : start + 1]))
        # Where the record ends first, what is left of it has to do.
        later = energy[start + lag : start + 2 * lag + 1]
        height = float(np.median(later)) - before
        if abs(height) <= limit:
            continue
        steps = np.abs(np.diff(energy[start : start + lag + 1]))
        frame = start + 1 + int(steps.argmax())
        sentence = (
            f"the energy changes by {height:+.3g} eV within {PERIOD_PS / PS_PER_FS:g} fs "
            f"(as a rule {float(np.median(np.abs(change))):.2g} eV)"
        )
        return Symptom("jump", float(course.time[frame]), (), height, "eV", sentence)
    return None


def _drift(run: RunRecord, course: Course, until_ps: float) -> Symptom | None:
    size = _n_frames(run, WINDOW_PS)
    kept = np.flatnonzero((course.time >= SETTLED_PS) & (course.time <= until_ps))
    n_blocks = len(kept) // size
    if n_blocks < _MIN_BLOCKS:
        return None
    kept = kept[: n_blocks * size]
    time = course.time[kept].reshape(n_blocks, size).mean(axis=1)
    energy = course.energy[kept].reshape(n_blocks, size).mean(axis=1)
    slope, error = _slope(time, energy)
    per_atom = slope / len(run.masses)
    if abs(per_atom) <= DRIFT_MEV * 1e-3 or abs(slope) <= DRIFT_SIGMAS * error:
        return None
    heat = 3.0 * BOLTZMANN * EV_PER_KJMOL * run.spec.temperature_K
    if abs(per_atom) * float(course.time[-1]) < DRIFT_NOTICED * heat:
        return None
    onset = min(DRIFT_OF_HEAT * heat / abs(per_atom), float(course.time[-1]))
    sentence = (
        f"the energy drifts by {1e3 * per_atom:+.3g} meV/atom/ps from the start on; told when it "
        f"has changed the heat by {DRIFT_OF_HEAT:.0%}, or at the end"
    )
    return Symptom("drift", onset, (), 1e3 * per_atom, "meV/atom/ps", sentence)


def _slope(time: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[float, float]:
    """Least-squares slope and its standard error."""
    centred = time - time.mean()
    square = float(centred @ centred)
    slope = float(centred @ values) / square
    rest = values - values.mean() - slope * centred
    return slope, float(np.sqrt(rest @ rest / (len(time) - 2) / square))


def _temperature(run: RunRecord, course: Course) -> list[Symptom]:
    """At most one each of heating, and of cooling or frozen."""
    target = run.spec.temperature_K
    size = _n_frames(run, WINDOW_PS)
    if len(course.time) < size:
        return []
    kinetic, moved = _window_means(course.kinetic_K, size), _window_means(course.moved_K, size)
    found = []
    still = np.flatnonzero(np.minimum(kinetic, moved) < FROZEN * target)
    frozen_from = int(still[0]) if len(still) else None
    settled = int(np.searchsorted(course.time, SETTLED_PS))
    until_then = _mean_before(course.kinetic_K, settled, size, target, len(kinetic))
    low, high = COLD, HOT
    if run.spec.ensemble != "nve":
        low, high = (float(chdtri(run.n_dof, p)) / run.n_dof for p in (1.0 - _RARE, _RARE))
    hot = kinetic > high * np.maximum(target, until_then)
    cold = kinetic < low * np.minimum(target, until_then)
    hot[:settled] = cold[:settled] = False
    for kind, flags in (("heating", hot), ("cooling", cold)):
        if not flags.any():
            continue
        first = int(np.argmax(flags))
        if kind == "cooling" and frozen_from is not None and frozen_from <= first + size:
            continue
        sentence = (
            f"the kinetic temperature of {WINDOW_PS / PS_PER_FS:g} fs is {kinetic[first]:.4g} K "
            f"(target {target:g} K, {until_then[first]:.4g} K until then)"
        )
        # The window's last frame: before it nothing can be known.
        onset = float(course.time[first + size - 1])
        found.append(Symptom(kind, onset, (), float(kinetic[first]), "K", sentence))
    if frozen_from is not None:
        value = float(min(kinetic[frozen_from], moved[frozen_from]))
        what = "atoms do not move" if moved[frozen_from] < kinetic[frozen_from] else "no motion"
        sentence = f"{what}: {value:.2g} K over {WINDOW_PS / PS_PER_FS:g} fs, target {target:g} K"
        onset = float(course.time[frozen_from])
        found.append(Symptom("frozen", onset, (), value, "K", sentence))
    return found


def _window_means(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Mean of `size` values from each on, shape (n - size + 1,)."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    return (sums[size:] - sums[:-size]) / size


def _mean_before(
    values: NDArray[np.float64], settled: int, size: int, target: float, n: int
) -> NDArray[np.float64]:
    """Mean of the values from `settled` up to each window; the target where these are too few."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    first = np.arange(n)
    count = first - settled
    means = np.full(n, target)
    enough = count >= size
    means[enough] = (sums[first[enough]] - sums[settled]) / count[enough]
    return means
