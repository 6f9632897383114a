"""How often the judge errs: intervals and verdicts on made-up data whose truth is known.

*Coverage*: series with a known drift and coloured noise go through the slope and the interval that
the drift check uses; the share of intervals that hold the truth must be the level.

*Decisions*: a real validation serves as the design: which measurements there are, with which
standard errors, degrees of freedom and criteria. Its sampled values are drawn anew around a truth
that is chosen, replica by replica, and judged by the judge itself, with the campaign's three
looks: a run that is undecided is doubled, and what is measured on it is drawn from the longer
series of which the shorter one is the beginning. So

- the false-failure rate of a criterion is how often it fails although the truth lies inside;
- its power is how often it fails where the truth is twice the bound;
- a sound model is one whose every truth lies inside its bounds.

An interval is drawn as Student's, over as many replicas as its degrees of freedom say. What
selecting the largest of many, or a jackknife, does to an interval is not in these figures.

Deterministic measurements are the same at every repetition, and are left as they are found; so are
medians, whose order-statistic intervals need not be symmetric (their checks' tests draw them).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.drift import slope
from omm_mlff.schema import MAX_LOOKS, Criterion, Measurement, Verdict
from omm_mlff.statistics.intervals import Estimate, mean_over_replicas
from omm_mlff.verdict.judge import bound_in_words, combine, error_exponent, judge, undecided_runs
from omm_mlff.verdict.measurement_file import MeasurementFile
from omm_mlff.verdict.policies import Policy, load_policy

_POINTS = 32
"""Points of the series behind one replica's value, at the first look."""

SOUND = 0.5
"""Where a sound model is taken to lie, as a part of the bound, if its design lies further out."""


@dataclass(frozen=True)
class Noise:
    """Coloured noise: white, plus a first-order autoregressive part.

    Attributes
    ----------
    white, red : standard deviations
    memory : frames over which the red part is correlated
    """

    white: float
    red: float = 0.0
    memory: float = 1.0

    def series(
        self, random: np.random.Generator, n_series: int, n_frames: int
    ) -> NDArray[np.float64]:
        """Stationary noise, shape (n_series, n_frames)."""
        from scipy.signal import lfilter

        noise = self.white * random.normal(size=(n_series, n_frames))
        if self.red:
            kept = np.exp(-1.0 / self.memory)
            kicks = random.normal(size=(n_series, n_frames)) * np.sqrt(1.0 - kept**2)
            kicks[:, 0] /= np.sqrt(1.0 - kept**2)  # stationary from the first frame on
            noise += self.red * lfilter([1.0], [1.0, -kept], kicks, axis=1)
        return np.asarray(noise, dtype=np.float64)


def drift_coverage(
    noise: Noise,
    *,
    drift: float,
    n_replicas: int,
    n_frames: int,
    n_sets: int,
    confidence: float,
    seed: int,
) -> float:
    """Share of intervals of the drift that hold the true one.

    Parameters
    ----------
    drift : true slope of every series, per frame
    n_sets : how many sets of replicas are drawn
    confidence : level of the intervals
    """
    random = np.random.default_rng(seed)
    time = np.arange(n_frames, dtype=np.float64)
    held = 0
    for _ in range(n_sets):
        series = drift * time + noise.series(random, n_replicas, n_frames)
        slopes = np.array([slope(time, one) for one in series])
        estimate = mean_over_replicas(slopes, confidence)
        held += estimate.ci_low <= drift <= estimate.ci_high
    return held / n_sets


class Design:
    """A validation that was done, as the plan of validations that are drawn.

    Parameters
    ----------
    measured : what it left
    policy : such as "strict"
    """

    def __init__(self, measured: MeasurementFile, policy: str = "strict") -> None:
        self.measured = measured
        self.policy: Policy = load_policy(policy, measured.declarations, measured.default_criteria)
        bounded: dict[str, list[Criterion]] = {}
        for criterion in self.policy.criteria:
            if criterion.severity != "info":
                bounded.setdefault(criterion.measurement, []).append(criterion)
        self.criteria = bounded
        self.drawn = [
            index
            for index, row in enumerate(measured.measurements)
            if row.kind == "sampled"
            and row.name in bounded
            and row.value is not None
            and row.standard_error is not None
            and np.isfinite(row.standard_error)
            and _is_student(row)
        ]

    def sound(self) -> dict[int, float]:
        """A truth inside every bound, by index of the measurement."""
        return {index: self._inside(self.measured.measurements[index]) for index in self.drawn}

    def _inside(self, row: Measurement) -> float:
        assert row.value is not None
        value = row.value
        for criterion in self.criteria[row.name]:
            low, high = criterion.low, criterion.high
            centre = 0.5 * (low + high) if low is not None and high is not None else 0.0
            if high is not None and value > centre + SOUND * (high - centre):
                value = centre + SOUND * (high - centre)
            if low is not None and value < centre + SOUND * (low - centre):
                # With a low bound only (R2), "half way" is toward one.
                value = centre + SOUND * (low - centre) if high is not None else 0.5 * (1.0 + low)
        return value

    def verdicts(
        self, truth: Mapping[int, float], n_trials: int, seed: int
    ) -> Iterator[tuple[Verdict, frozenset[str]]]:
        """Verdicts with three looks, and the criteria that failed at any of them."""
        random = np.random.default_rng(seed)
        for _ in range(n_trials):
            series = {index: self._series(index, random) for index in self.drawn}
            doubled: Counter[str] = Counter()
            failed: set[str] = set()
            for look in range(MAX_LOOKS):
                rows = list(self.measured.measurements)
                for index in self.drawn:
                    times = doubled[rows[index].where.run or ""]
                    rows[index] = self._redrawn(index, truth[index], series[index], times)
                verdict = judge(
                    self.policy,
                    rows,
                    self.measured.scope,
                    planned=self.measured.planned,
                    dtype=self.measured.card.dtype,
                )
                verdict = self._without_the_rest(verdict)
                failed |= {f.criterion for f in verdict.findings if f.status == "fail"}
                longer = undecided_runs([verdict])
                if not longer or look == MAX_LOOKS - 1:
                    break
                doubled.update(longer)
            yield verdict, frozenset(failed)

    def _without_the_rest(self, verdict: Verdict) -> Verdict:
        """Only what was drawn decides: failures of the design itself are not what is asked."""
        names = {self.measured.measurements[index].name for index in self.drawn}
        findings = tuple(f for f in verdict.findings if f.measurement in names)
        return Verdict(verdict.policy, combine(findings), findings)

    def _series(self, index: int, random: np.random.Generator) -> NDArray[np.float64]:
        """Unit white noise for every replica, long enough for the last look."""
        n_points = _POINTS * 2 ** (MAX_LOOKS - 1)
        return random.normal(size=(self._n_replicas(index), n_points))

    def _n_replicas(self, index: int) -> int:
        dof = self.measured.measurements[index].dof
        return int(np.clip(round(dof) + 1 if dof and np.isfinite(dof) else 1000, 2, 1000))

    def _redrawn(
        self, index: int, truth: float, series: NDArray[np.float64], times: int
    ) -> Measurement:
        """A measurement as it would have come out, with the run doubled some times."""
        row = self.measured.measurements[index]
        assert row.standard_error is not None
        n_replicas = self._n_replicas(index)
        exponent = error_exponent(self.policy.declared[row.name]) if row.where.run else 0.0
        n_points = _POINTS * 2**times
        if exponent >= 1.0:  # a slope over time, in units of its error at the first look
            time = np.arange(n_points) - 0.5 * (n_points - 1)
            first = np.arange(_POINTS) - 0.5 * (_POINTS - 1)
            values = series[:, :n_points] @ time / (time @ time) * np.sqrt(first @ first)
        elif exponent > 0.0:
            values = series[:, :n_points].mean(axis=1) * np.sqrt(_POINTS)
        else:  # a longer run gives another value, not a sharper one
            values = series[:, n_points - _POINTS : n_points].mean(axis=1) * np.sqrt(_POINTS)
        spread = row.standard_error * np.sqrt(n_replicas)
        estimate: Estimate = mean_over_replicas(truth + spread * values)
        return dataclasses.replace(
            row,
            value=estimate.value,
            ci_low=estimate.ci_low,
            ci_high=estimate.ci_high,
            standard_error=estimate.standard_error,
            dof=estimate.dof,
        )


def _is_student(row: Measurement) -> bool:
    """Whether a value stands in the middle of its interval, as Student's does."""
    if row.value is None or row.ci_low is None or row.ci_high is None:
        return False
    middle, half = 0.5 * (row.ci_low + row.ci_high), 0.5 * (row.ci_high - row.ci_low)
    return abs(middle - row.value) <= 1.0e-6 * half


@dataclass(frozen=True)
class VerdictRates:
    """What becomes of a sound model, as shares of `n_trials` verdicts."""

    n_trials: int
    approved: float
    not_recommended: float
    rejected: float
    undecided: float


@dataclass(frozen=True)
class CriterionRates:
    """How often a criterion errs.

    Attributes
    ----------
    false_failure : share of verdicts on a sound model in which it failed at any look
    at_bound : the same where one truth lies on the bound: the most that the test may err
    power : share of verdicts in which it failed, where one truth is twice the bound
    n_measured : measurements that it bounds in one verdict
    """

    criterion: str
    severity: str
    bound: str
    n_measured: int
    false_failure: float
    at_bound: float
    power: float


def verdict_rates(design: Design, n_trials: int, seed: int = 0) -> VerdictRates:
    """The verdicts on a sound model, three looks included."""
    counts = Counter(verdict.name for verdict, _ in design.verdicts(design.sound(), n_trials, seed))
    return VerdictRates(
        n_trials,
        *(
            counts[name] / n_trials
            for name in ("APPROVED", "NOT RECOMMENDED", "REJECTED", "UNDECIDED")
        ),
    )


def criterion_rates(
    design: Design, n_sound: int, n_trials: int, seed: int = 0
) -> list[CriterionRates]:
    """How often each sampled criterion errs.

    Parameters
    ----------
    n_sound : verdicts drawn on the sound model, shared by all criteria
    n_trials : verdicts drawn for each criterion with a truth on, and beyond, its bound
    """
    sound = design.sound()
    failed = Counter(name for _, names in design.verdicts(sound, n_sound, seed) for name in names)
    rows = []
    for criteria in design.criteria.values():
        for criterion in criteria:
            places = [
                index
                for index in design.drawn
                if design.measured.measurements[index].name == criterion.measurement
            ]
            dtype = design.measured.card.dtype
            if not places or (criterion.dtypes and dtype not in criterion.dtypes):
                continue
            shares = []
            for factor in (1.0, 2.0):
                truth = {**sound, places[0]: _beyond(criterion, factor)}
                hits = sum(
                    criterion.name in names
                    for _, names in design.verdicts(truth, n_trials, seed + 1)
                )
                shares.append(hits / n_trials)
            rows.append(
                CriterionRates(
                    criterion.name,
                    criterion.severity,
                    _in_words(criterion),
                    len(places),
                    failed[criterion.name] / n_sound,
                    shares[0],
                    shares[1],
                )
            )
    return rows


def _beyond(criterion: Criterion, factor: float) -> float:
    """The truth at a bound (1), or at twice it (2); about 1 for a quantity that is 1 when right."""
    low, high = criterion.low, criterion.high
    if low is not None and high is not None:
        centre = 0.5 * (low + high)
        return centre + factor * (high - centre)
    if high is not None:
        return factor * high
    assert low is not None
    return 1.0 - factor * (1.0 - low) if 0.0 < low < 1.0 else low / factor


def _in_words(criterion: Criterion) -> str:
    unit = "" if criterion.unit == "1" else f" {criterion.unit}"
    return f"{bound_in_words(criterion.low, criterion.high)}{unit}"
