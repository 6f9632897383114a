r"""What makes the energy drift?

Asked only of a run whose drift (see `drift`) lies surely outside its limit: its whole interval
does. One thing at a time is then changed in a short repetition of the run, from the same
structure with the same velocities, and the drift is compared with that of the run's own first
part of the same length. The size of a drift is the rms of the replicas' slopes.

- *half timestep*: size at half the timestep over size. What Verlet's expansion leaves out falls
  with dt^4 (a factor of 16); a wrong force, a step or rounding does not care.
- *float64*: the same with the model's numbers in float64, where the potential offers that.
- *precision*: the same with the platform in double precision, where it has a choice.
- *gradient error*: rms(dE/du + F . u) / rms(F . u) along frames of this run, in the directions of
  its velocities and in random ones (five-point stencil, best of three steps, see `gradient`); of
  the model in float64 where that is offered, since 7e-5 of a force, which float32 rounding hides,
  heat water by 0.03 meV/atom/ps if they always push the same way.
- *steps*: size without the single steps of the shadow energy (changes between two frames
  more than ten robust standard deviations from the median) over size.

The cause is the first that holds of: *discontinuity* (without its steps the drift is a quarter or
less, and the potential jumps at the largest one when it is looked into, see `jumps`), *timestep*
(at half of it a quarter or less), *rounding* (in float64 or double precision a quarter or less),
*non-conservative force* (gradient error beyond its bound), *discontinuity* (the steps alone).
Where none holds it says so. A quarter lies between a half, which noise reaches in a short
repetition, and the sixteenth that a timestep gives.

Each repetition lasts 1 ps, or less where the whole would cost more than twice the run itself. In a
very short one the bounded swing of the energy outweighs its drift, and falls with the timestep as
no drift does: where the size in the first part is not within a factor of 3 of that in the
whole run, nothing is repeated.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks import drift, gradient, jumps
from omm_mlff.checks.base import Check, Evidence, absent, for_each_run, run_where, sampled
from omm_mlff.checks.frames import MIN_FRAMES, Sample, none_lasted, stretches, usable_replicas
from omm_mlff.errors import InputError
from omm_mlff.schema import Declaration, Measurement, RunSpec, Where
from omm_mlff.statistics.intervals import Estimate, mean_over_replicas
from omm_mlff.units import (
    EV_ANGSTROM_PER_KJMOL_NM,
    MEV_PER_KJMOL,
    NM_PER_ANGSTROM,
)

if TYPE_CHECKING:
    from omm_mlff.dynamics.evaluator import Evaluator
    from omm_mlff.potentials.base import Potential
    from omm_mlff.record.rundir import RunRecord

LONGEST_PS = 1.0
SHARE_OF_RUN = 0.4
"""Half the timestep costs 2 for its length, float64 about 2, double precision 1: 5 x 0.4 = 2."""

FALLS_TO = 0.25
REPRESENTATIVE = 3.0
OUTLIER = 10.0
GRADIENT_BOUNDS = {"float64": 1.0e-6, "float32": 5.0e-4}
N_FRAMES = 8
_NORMAL_PER_MAD = 1.4826

HALF_TIMESTEP = Declaration(
    "attribution.half_timestep",
    "info",
    "1",
    "size of the drift at half the timestep over its size",
    "attribution",
)
FLOAT64 = Declaration(
    "attribution.float64",
    "info",
    "1",
    "size of the drift with the model in float64 over its size",
    "attribution",
)
PRECISION = Declaration(
    "attribution.precision",
    "info",
    "1",
    "size of the drift with the platform in double precision over its size",
    "attribution",
)
GRADIENT_ERROR = Declaration(
    "attribution.gradient_error",
    "info",
    "1",
    "rms of dE/du + F.u over rms of F.u along the run, best of three steps",
    "attribution",
)
STEPS = Declaration(
    "attribution.steps",
    "info",
    "1",
    "size of the drift without the single steps of the shadow energy over its size",
    "attribution",
)


@dataclass(frozen=True)
class LargestStep:
    """The largest single change of the shadow energy in a run.

    Attributes
    ----------
    energy : kJ/mol
    sample : the replica
    frame : it happens between this one and the next
    """

    energy: float
    sample: Sample
    frame: int


@dataclass(frozen=True)
class Findings:
    """What the experiments gave; None where one was not to be had.

    Attributes
    ----------
    half_timestep, float64, precision, steps : ratios of sizes of drift
    gradient_error : relative; infinite where it is not a number
    gradient_bound : of a sound potential of this dtype
    jumps_there : whether the potential jumps at the largest step
    largest_step : in words
    """

    half_timestep: float | None
    float64: float | None
    precision: float | None
    gradient_error: float
    gradient_bound: float
    steps: float | None
    jumps_there: bool
    largest_step: str


def named(found: Findings) -> str:
    """The cause of a drift, its slug first, with the numbers that show it."""

    def falls(ratio: float | None) -> bool:
        return ratio is not None and ratio <= FALLS_TO

    without = (
        f"{found.largest_step}; without such steps the drift is {found.steps or 0.0:.2g} of it"
    )
    if falls(found.steps) and found.jumps_there:
        return f"discontinuity: the potential jumps; {without}"
    if falls(found.half_timestep):
        return f"timestep: at half of it the drift is {found.half_timestep:.2g} of what it is"
    if falls(found.float64):
        return f"rounding: with the model in float64 the drift is {found.float64:.2g} of what it is"
    if falls(found.precision):
        return f"rounding: in double precision the drift is {found.precision:.2g} of what it is"
    if not found.gradient_error <= found.gradient_bound:
        return (
            f"non-conservative force: along the run F and -dE/dx differ by "
            f"{found.gradient_error:.2g} of F (sound: {found.gradient_bound:g})"
        )
    if falls(found.steps):
        return f"discontinuity: {without}"
    tried = {
        "half the timestep": found.half_timestep,
        "float64": found.float64,
        "double precision": found.precision,
        "no steps": found.steps,
    }
    numbers = ", ".join(f"{name} {ratio:.2g}" for name, ratio in tried.items() if ratio is not None)
    return (
        f"unexplained: the drift does not fall to a quarter by anything that was tried ({numbers})"
    )


def _of_run(evidence: Evidence, run: RunRecord) -> list[Measurement]:
    """Every experiment on one run, if its drift calls for them."""
    where = run_where(evidence, run)

    def none(reason: str) -> list[Measurement]:
        return [absent(row, where, reason) for row in CHECK.declares]

    if run.spec.record_stride != 1:
        return none("the shadow energy needs a run with a record stride of 1")
    samples, left_out = usable_replicas(run)
    if not samples:
        return none(none_lasted(left_out))
    records = [drift.energies(run, sample) for sample in samples]
    per_atom = MEV_PER_KJMOL / len(run.masses)
    slopes = np.array([drift.slope(record.time, record.shadow) for record in records]) * per_atom
    if not np.isfinite(slopes).all():
        return none("the drift is not a number; see stability.*")
    estimate = mean_over_replicas(slopes)
    if estimate.ci_low <= drift.LIMIT and estimate.ci_high >= -drift.LIMIT:
        return none("drift is inside its bound, or not surely outside")

    evaluator = evidence.live
    length_ps = min(LONGEST_PS, SHARE_OF_RUN * run.spec.length_ps)
    shorter = [_first_part(record, length_ps) for record in records]
    size = _rms([s for record in shorter if (s := _slope(record)) is not None])

    whole = _rms(list(slopes / per_atom))
    too_short = ""
    if not whole / REPRESENTATIVE <= size <= whole * REPRESENTATIVE:
        too_short = (
            f"a repetition of {length_ps:.3g} ps is too short to show the drift of this run; "
            f"make the run longer"
        )

    def ratio(change: Callable[[RunSpec], RunSpec], potential: Potential) -> float:
        spec = dataclasses.replace(change(run.spec), length_ps=length_ps, purpose="production")
        repeated = _repeated_slopes(spec, potential, evidence)
        return _rms(repeated) / size if repeated and size > 0.0 else math.inf

    reasons: dict[str, str] = {}
    values: dict[str, float | None] = {}
    for row, experiment in (
        (HALF_TIMESTEP, _half_timestep),
        (FLOAT64, _float64),
        (PRECISION, _precision),
    ):
        changed = too_short or experiment(run, evaluator, evidence)
        if isinstance(changed, str):
            values[row.name], reasons[row.name] = None, changed
            continue
        try:
            values[row.name] = ratio(*changed)
        except InputError as error:
            values[row.name], reasons[row.name] = None, f"the repetition cannot be run: {error}"
    rest, largest = _without_steps(samples, records)
    values[STEPS.name] = rest
    wrong, bound = _gradient_error_and_bound(evaluator, samples, evidence)
    values[GRADIENT_ERROR.name] = wrong
    jumps_there = rest is not None and rest <= FALLS_TO and _jumps_at(evaluator, run, largest)
    cause = named(
        Findings(
            values[HALF_TIMESTEP.name],
            values[FLOAT64.name],
            values[PRECISION.name],
            wrong,
            bound,
            rest,
            jumps_there,
            f"the largest step of the shadow energy is {largest.energy * MEV_PER_KJMOL:.2g} meV, "
            f"between frames {largest.frame} and {largest.frame + 1} of replica "
            f"{largest.sample.index}",
        )
    )
    return [
        _row(row, values[row.name], reasons.get(row.name, ""), cause, len(samples), where)
        for row in CHECK.declares
    ]


def _row(
    row: Declaration,
    value: float | None,
    reason: str,
    cause: str,
    n_samples: int,
    where: Where,
) -> Measurement:
    if value is None:
        return absent(row, where, reason or "there is nothing to take it from")
    only = Estimate(value, math.inf, 1.0, -math.inf, math.inf, n_samples)
    return sampled(row, only, where, cause)


Changed = tuple[Callable[[RunSpec], RunSpec], "Potential"]


def _half_timestep(run: RunRecord, evaluator: Evaluator, evidence: Evidence) -> Changed | str:
    half_fs = 0.5 * run.spec.timestep_fs
    return lambda spec: dataclasses.replace(spec, timestep_fs=half_fs), evaluator.potential


def _float64(run: RunRecord, evaluator: Evaluator, evidence: Evidence) -> Changed | str:
    if evidence.card.dtype == "float64":
        return "the model is in float64 as it is"
    twin = evaluator.potential.capabilities(evaluator.system).float64_twin
    if twin is None:
        return "the potential does not offer itself in float64"
    return lambda spec: spec, twin()


def _precision(run: RunRecord, evaluator: Evaluator, evidence: Evidence) -> Changed | str:
    from omm_mlff.forces.platforms import platform_properties

    if not platform_properties(_platform(run), "double"):
        return f"platform {_platform(run)} has no choice of precision"
    if run.spec.precision == "double":
        return "the run was in double precision as it is"
    return lambda spec: dataclasses.replace(spec, precision="double"), evaluator.potential


def _platform(run: RunRecord) -> str:
    return str(run.provenance["platform"])


def _repeated_slopes(spec: RunSpec, potential: Potential, evidence: Evidence) -> list[float]:
    """Slopes of the shadow energy in a run made for the purpose and thrown away, kJ/mol/ps."""
    from omm_mlff.dynamics.simulate import simulate

    with tempfile.TemporaryDirectory(prefix="omm-mlff-attribution-") as folder:
        run = simulate(spec, potential, evidence.system, Path(folder) / "run", allow_fallback=True)
        samples, _ = usable_replicas(run)
        slopes = [_slope(drift.energies(run, sample)) for sample in samples]
    return [slope for slope in slopes if slope is not None]


def _first_part(record: drift.EnergyRecord, length_ps: float) -> drift.EnergyRecord:
    n = int(np.searchsorted(record.time, length_ps))
    return dataclasses.replace(
        record, time=record.time[:n], total=record.total[:n], shadow=record.shadow[:n]
    )


def _slope(record: drift.EnergyRecord) -> float | None:
    if len(record.time) < MIN_FRAMES or not np.isfinite(record.shadow).all():
        return None
    return drift.slope(record.time, record.shadow)


def _rms(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else 0.0


def _without_steps(
    samples: Sequence[Sample], records: Sequence[drift.EnergyRecord]
) -> tuple[float | None, LargestStep]:
    """Size of the drift with the outlying changes of the shadow energy taken out, over its size."""
    with_steps, without = [], []
    largest = LargestStep(0.0, samples[0], 0)
    for sample, record in zip(samples, records, strict=True):
        change = np.diff(record.shadow)
        centre = float(np.median(change))
        spread = _NORMAL_PER_MAD * float(np.median(np.abs(change - centre)))
        outlying = np.abs(change - centre) > OUTLIER * spread
        smooth = np.concatenate(([0.0], np.cumsum(np.where(outlying, centre, change))))
        with_steps.append(drift.slope(record.time, record.shadow))
        without.append(drift.slope(record.time, smooth))
        k = int(np.abs(change - centre).argmax())
        if abs(change[k] - centre) > abs(largest.energy):
            # the shadow energy's first frame is the record's second
            largest = LargestStep(float(change[k] - centre), sample, k + 1)
    size = _rms(with_steps)
    return (_rms(without) / size if size > 0.0 else None), largest


def _jumps_at(evaluator: Evaluator, run: RunRecord, largest: LargestStep) -> bool:
    """Whether the potential itself jumps where the shadow energy has its largest step.

    The shadow energy takes dF/dt from three frames: the jump may be an interval off.
    """
    x = _positions(largest.sample, max(0, largest.frame - 1), 4)
    segments = [
        jumps.Segment(kind, 1.0, start, end, "")
        for start, end in itertools.pairwise(x)
        for kind in jumps.KINDS
    ]
    moving = [segment for segment in segments if segment.length_nm > 0.0]
    steps, hole = jumps.zoom(evaluator, moving) if moving else ([], "")
    return bool(hole) or any(
        step.energy * MEV_PER_KJMOL > jumps.ENERGY_LIMIT
        or max(step.force, step.kink) * EV_ANGSTROM_PER_KJMOL_NM > jumps.FORCE_LIMIT
        for step in steps
    )


def _positions(sample: Sample, first: int, n_frames: int) -> NDArray[np.float64]:
    """Some consecutive frames, shape (at most n_frames, n_atoms, 3), nm."""
    found, seen = [], 0
    for piece in stretches(sample, 2048, ("positions",)):
        x = piece["positions"]
        found.append(x[max(0, first - seen) : max(0, first + n_frames - seen)])
        seen += len(x)
        if seen >= first + n_frames:
            break
    return np.concatenate(found)


def _gradient_error_and_bound(
    evaluator: Evaluator, samples: Sequence[Sample], evidence: Evidence
) -> tuple[float, float]:
    """The gradient error as exactly as it is to be had, and what a sound potential has."""
    from omm_mlff.dynamics.evaluator import Evaluator

    dtype = evidence.card.dtype
    twin = evaluator.potential.capabilities(evaluator.system).float64_twin
    if twin is None or dtype == "float64":
        bound = GRADIENT_BOUNDS.get(dtype, GRADIENT_BOUNDS["float32"])
        return gradient_error(evaluator, samples, evidence), bound
    with Evaluator(twin(), evidence.system, evaluator.platform_name, evaluator.precision) as exact:
        return gradient_error(exact, samples, evidence), GRADIENT_BOUNDS["float64"]


def gradient_error(evaluator: Evaluator, samples: Sequence[Sample], evidence: Evidence) -> float:
    """rms(dE/du + F . u) / rms(F . u) along a run, the least over the steps of the stencil.

    At frames spread over the replicas and their time, each along its velocity and along a random
    direction.
    """
    random = evidence.random(CHECK.name)
    positions, velocities = [], []
    for k in range(N_FRAMES):
        sample = samples[k % len(samples)]
        frame = round((k + 0.5) / N_FRAMES * (sample.n_frames - 1))
        x = _positions(sample, frame, 2)
        positions.append(x[0])
        velocities.append(x[-1] - x[0])
    at = np.concatenate((positions, positions))
    directions = np.concatenate((velocities, random.normal(size=np.shape(positions))))
    lengths = np.sqrt((directions**2).sum(axis=(1, 2), keepdims=True))
    directions = np.where(lengths > 0.0, directions / np.where(lengths > 0.0, lengths, 1.0), 0.0)
    _, forces = evaluator.evaluate(at)
    along = (forces * directions).sum(axis=(1, 2))
    size = _rms(list(along))
    least = math.inf
    for step in gradient.STEPS_ANGSTROM:
        derivative = gradient.directional_derivatives(
            evaluator, at, directions, step * NM_PER_ANGSTROM
        )
        off = _rms(list(derivative + along))
        ratio = off / size if size > 0.0 else math.inf
        least = min(least, ratio) if math.isfinite(ratio) else least
    return least


CHECK = Check(
    name="attribution",
    question="What makes the energy drift?",
    formula="size of the drift with one thing changed, over its size",
    source="one factor at a time, from the same start; dt^4: Hairer, Lubich & Wanner (2003)",
    declares=(HALF_TIMESTEP, FLOAT64, PRECISION, GRADIENT_ERROR, STEPS),
    criteria=(),
    needs=frozenset({"evaluator", "runs"}),
    take=for_each_run(_of_run),
)
