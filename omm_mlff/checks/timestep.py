r"""Does the energy's fluctuation fall with the square of the timestep?

Verlet's energy E fluctuates about its shadow energy by a term of order dt^2 that the record holds
(see `drift`). If that term is all that moves E, then over replicas and timesteps dt

    rms(E) / rms(E - E_shadow) = 1      with rms about a straight line in time

and *exponent* is 2 plus the least-squares slope of the logarithm of the left side against ln dt:
the power with which E fluctuates, each replica being measured against what its own trajectory must
show. That takes out which vibrations its velocities happen to excite (a quarter of the rms from
one replica to the next), so runs of different seeds compare, and the error of the exponent is a
hundredth and not a tenth. Forces that are not the gradient of the energy, steps in the energy and
lost digits do not shrink with dt: they pull the exponent down, the more the smaller dt is. For one
oscillator the left side is 1 / (1 - (w dt)^2 / 6), which adds 0.01 for O-H at 0.5 fs.

*Largest safe* is the largest timestep of those run up to which the same power, taken from one
timestep to the next, is at most 2.5, no replica was stopped, and the drift is inside its limit. For
one oscillator the power passes 2.5 at w dt = 1.1; Verlet is unstable from 2 on. The exponent is
taken up to 0.5 fs: beyond, sound models too leave the power law.

Runs at one temperature are compared. Of several temperatures the worst is reported.

Bounds: the three shipped students have 2.008 to 2.013 on water, methane and alanine (8 or 4
replicas of 0.5 to 1 ps, half-width of the interval 0.003 at most). Were their forces off by 0.05%,
the same runs would be off 2 by 0.04 to 0.3, off by 0.5% by 0.4 to 1.4: a wrong part that outweighs
Verlet's own at the smallest timestep is rejected.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks import drift
from omm_mlff.checks.base import (
    CONSTANT_ENERGY,
    SPOILS_DYNAMICS,
    SPOILS_EVALUATION,
    Check,
    Evidence,
    absent,
    bounds,
    sampled,
)
from omm_mlff.checks.frames import in_words, usable_replicas
from omm_mlff.schema import Declaration, Fault, Measurement, RunSpec, Symptom, Where
from omm_mlff.statistics.intervals import Estimate, mean_over_replicas, t_estimate
from omm_mlff.units import MEV_PER_KJMOL

if TYPE_CHECKING:
    from omm_mlff.record.rundir import RunRecord

VERLET = 2.0
LARGEST_FITTED_FS = 0.5
LARGEST_LOCAL_EXPONENT = 2.5

EXPONENT = Declaration(
    "timestep.exponent",
    "sampled",
    "1",
    "power of the timestep with which the total energy fluctuates",
    "timestep",
    failure="the energy does not fluctuate as the timestep squared",
)
LARGEST_SAFE = Declaration(
    "timestep.largest_safe",
    "info",
    "fs",
    "largest timestep of those run at which the integration is sound",
    "timestep",
)


@dataclass
class Rung:
    """What the runs at one timestep and temperature show, one number a replica.

    Attributes
    ----------
    spec : of the first of these runs
    log_ratio : logarithm of the rms of the total energy about its line over the rms of what
        Verlet's shadow energy accounts for
    drifts : slope of the shadow energy, meV/atom/ps
    n_stopped : replicas that an event stopped
    """

    timestep_fs: float
    spec: RunSpec
    log_ratio: list[float] = field(default_factory=list)
    drifts: list[float] = field(default_factory=list)
    n_stopped: int = 0


def exponent(timesteps: Sequence[float], log_ratios: Sequence[NDArray[np.float64]]) -> Estimate:
    """2 plus the slope of the log ratio on the log timestep, least squares over all replicas.

    Replicas of different timesteps are independent samples with a spread of their own: the error
    is made of each timestep's variance, the degrees of freedom are Welch and Satterthwaite's.

    Parameters
    ----------
    timesteps : two or more, different
    log_ratios : for each timestep, shape (n_replicas,)
    """
    x = np.log(np.array(timesteps))
    n = np.array([len(values) for values in log_ratios], dtype=np.float64)
    means = np.array([values.mean() for values in log_ratios])
    centred = x - np.average(x, weights=n)
    weights = n * centred / (n * centred**2).sum()
    value = VERLET + float(weights @ means)
    if n.min() < 2:
        return t_estimate(value, math.inf, 1.0, 1)
    parts = weights**2 * np.array([values.var(ddof=1) for values in log_ratios]) / n
    total = float(parts.sum())
    dof = total**2 / float((parts**2 / (n - 1.0)).sum()) if total > 0.0 else float(n.sum()) - 2.0
    return t_estimate(value, math.sqrt(total), dof, int(n.sum()))


def take(evidence: Evidence) -> list[Measurement]:
    """The exponent and the largest safe timestep of a system."""
    where = Where(system=evidence.system.name)
    ladders, left_out = _ladders(evidence.runs)
    if not ladders:
        runs = ", ".join(run.spec.name for run in evidence.runs)
        reason = (
            f"needs runs at two timesteps or more at one temperature, recorded at every step, got "
            f"{runs}"
        )
        if left_out:
            reason += f"; {in_words(left_out)}"
        return [absent(row, where, reason) for row in CHECK.declares]
    return [_exponent(ladders, left_out, where), _largest_safe(ladders, where)]


def _ladders(runs: Sequence[RunRecord]) -> tuple[dict[float, list[Rung]], list[str]]:
    """Rungs by temperature, smallest timestep first; and who could not be used.

    A rung at which every replica was stopped early is kept: it is a timestep that is not safe.
    """
    by_temperature: dict[float, dict[float, Rung]] = {}
    all_left_out: list[str] = []
    for run in runs:
        if run.spec.record_stride != 1:
            continue
        rungs = by_temperature.setdefault(run.spec.temperature_K, {})
        rung = rungs.setdefault(run.spec.timestep_fs, Rung(run.spec.timestep_fs, run.spec))
        rung.n_stopped += len(run.events)
        samples, left_out = usable_replicas(run)
        all_left_out += left_out
        for sample in samples:
            record = drift.energies(run, sample)
            rms = _rms_about_line(record.time, record.total)
            expected = _rms_about_line(record.time, record.total - record.shadow)
            if rms > 0.0 and expected > 0.0:
                rung.log_ratio.append(math.log(rms / expected))
            per_atom = MEV_PER_KJMOL / len(run.masses)
            rung.drifts.append(drift.slope(record.time, record.shadow) * per_atom)
    ladders = {
        temperature: [rungs[timestep] for timestep in sorted(rungs)]
        for temperature, rungs in by_temperature.items()
        if sum(bool(rung.log_ratio) for rung in rungs.values()) > 1
    }
    return ladders, all_left_out


def _rms_about_line(time: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    rest = values - values.mean() - drift.slope(time, values) * (time - time.mean())
    return float(np.sqrt((rest**2).mean()))


def _exponent(ladders: dict[float, list[Rung]], left_out: list[str], where: Where) -> Measurement:
    """The exponent at the temperature at which it is furthest from Verlet's."""
    found: list[tuple[float, Estimate, list[Rung]]] = []
    for temperature, rungs in ladders.items():
        fitted = [r for r in rungs if r.log_ratio and r.timestep_fs <= LARGEST_FITTED_FS]
        if len({rung.timestep_fs for rung in fitted}) > 1:
            ratios = [np.array(rung.log_ratio) for rung in fitted]
            estimate = exponent([rung.timestep_fs for rung in fitted], ratios)
            found.append((temperature, estimate, fitted))
    if not found:
        reason = f"fewer than two timesteps up to {LARGEST_FITTED_FS:g} fs were run"
        return absent(EXPONENT, where, reason)
    temperature, estimate, fitted = max(found, key=lambda item: abs(item[1].value - VERLET))
    unaccounted = ", ".join(
        f"{np.exp(np.mean(rung.log_ratio)):.4g} at {rung.timestep_fs:g} fs" for rung in fitted
    )
    cause = (
        f"at {temperature:g} K the energy fluctuates by this times what the timestep accounts for: "
        f"{unaccounted}"
    )
    if estimate.value < VERLET:
        cause += "; what does not shrink with the timestep is a wrong force, a step or rounding"
    if left_out:
        cause += f"; {in_words(left_out)}"
    spec = fitted[0].spec
    where = dataclasses.replace(where, run=spec.name, length_ps=spec.length_ps)
    return sampled(EXPONENT, estimate, where, cause)


def _largest_safe(ladders: dict[float, list[Rung]], where: Where) -> Measurement:
    """The largest timestep that is safe at every temperature that was run."""
    least: tuple[float, bool, str] | None = None
    n_runs = sum(len(rungs) for rungs in ladders.values())
    for temperature, rungs in ladders.items():
        safe, obstacle = 0.0, ""
        for number, rung in enumerate(rungs):
            obstacle = _obstacle(rung, rungs[number - 1] if number else None)
            if obstacle:
                obstacle = f"{rung.timestep_fs:g} fs at {temperature:g} K: {obstacle}"
                break
            safe = rung.timestep_fs
        if least is None or safe < least[0]:
            least = (safe, not obstacle, obstacle)
    assert least is not None
    value, open_above, obstacle = least
    cause = obstacle or f">= {value:g} fs: every timestep that was run is safe"
    high = math.inf if open_above else value
    return sampled(LARGEST_SAFE, Estimate(value, math.inf, 1.0, value, high, n_runs), where, cause)


def _obstacle(rung: Rung, smaller: Rung | None) -> str:
    """Why a timestep is not safe; empty where it is."""
    if rung.n_stopped:
        return f"{rung.n_stopped} replicas were stopped"
    if not rung.drifts:
        return "no replica lasted long enough"
    slope = mean_over_replicas(np.array(rung.drifts)).value
    if abs(slope) > drift.LIMIT:
        return f"the drift is {slope:.2g} {drift.DRIFT.unit}"
    if smaller is not None and smaller.log_ratio and rung.log_ratio:
        growth = float(np.mean(rung.log_ratio) - np.mean(smaller.log_ratio))
        power = VERLET + growth / math.log(rung.timestep_fs / smaller.timestep_fs)
        if power > LARGEST_LOCAL_EXPONENT:
            return f"the fluctuation grows with the power {power:.3g} of the timestep"
    return ""


_BOUNDS = (
    "closed form: 2 for Verlet with forces that are the gradient (Hairer, Lubich & Wanner, Acta "
    "Numerica 12, 399 (2003)); DESIGN section 6: 0.2 with forces off by 0.5%"
)

CHECK = Check(
    name="timestep",
    question="Does the energy's fluctuation fall with the square of the timestep?",
    formula="2 + slope of ln[rms(E) / rms(E - E_shadow)] against ln(dt), up to 0.5 fs",
    source="Hairer, Lubich & Wanner, Acta Numerica 12, 399 (2003)",
    declares=(EXPONENT, LARGEST_SAFE),
    criteria=bounds(EXPONENT, _BOUNDS, low=(1.95, 1.5), high=(2.05, 2.5)),
    needs=frozenset({"runs"}),
    take=take,
    reads=frozenset({"production", "timestep"}),
    joint=True,
    use=CONSTANT_ENERGY,
    explained_by=(
        *SPOILS_EVALUATION,
        *SPOILS_DYNAMICS,
        Fault.CUTOFF,
        Fault.ATTRIBUTED,
    ),
    symptom=Symptom.DRIFT,
)
