"""Kaplan-Meier with the beta product interval: exact relatives, a textbook, coverage counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq

from omm_mlff.errors import AnalysisError
from omm_mlff.schema import CONFIDENCE
from omm_mlff.statistics.kaplan_meier import replicas_needed, survival_at

# Remission of leukaemia under 6-mercaptopurine, weeks. Freireich et al., Blood 21, 699 (1963), the
# example of many textbooks.
RELAPSES = [6, 6, 6, 7, 10, 13, 16, 22, 23]
CENSORED = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
WEEKS = np.array(RELAPSES + CENSORED, dtype=float)
RELAPSED = np.arange(len(WEEKS)) < len(RELAPSES)


def test_the_estimate_is_the_textbooks() -> None:
    # such as Cox & Oakes, Analysis of Survival Data, 1984
    table = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
    for week, expected in table.items():
        assert survival_at(week, WEEKS, RELAPSED).probability == pytest.approx(expected, abs=5e-4)
    assert survival_at(5.9, WEEKS, RELAPSED).probability == 1.0


@pytest.mark.parametrize("n", [2, 8, 16])
def test_without_censoring_the_interval_is_clopper_and_pearsons(n: int) -> None:
    times = np.arange(1.0, n + 1.0)
    for n_events in range(n + 1):
        ours = survival_at(n_events + 0.5, times, np.ones(n, dtype=bool))
        theirs = stats.binomtest(n - n_events, n).proportion_ci(CONFIDENCE, method="exact")
        assert ours.probability == pytest.approx((n - n_events) / n)
        assert (ours.ci_low, ours.ci_high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


def test_events_at_one_time_count_like_events_one_after_another() -> None:
    apart = np.array([1.0, 1.1, 1.2, 5.0, 5.0, 5.0])
    together = np.array([1.0, 1.0, 1.0, 5.0, 5.0, 5.0])
    had = np.array([True] * 3 + [False] * 3)
    a, b = survival_at(2.0, apart, had), survival_at(2.0, together, had)
    assert (a.ci_low, a.ci_high) == pytest.approx((b.ci_low, b.ci_high), rel=1e-9)


def test_where_nothing_happened_the_interval_is_not_empty() -> None:
    at_end = survival_at(10.0, np.full(8, 10.0), np.zeros(8, dtype=bool))
    tail = (1.0 - CONFIDENCE) / 2.0
    assert (at_end.probability, at_end.ci_high) == (1.0, 1.0)
    assert at_end.ci_low == pytest.approx(tail ** (1.0 / 8.0), rel=1e-12)
    assert (at_end.n_at_risk, at_end.n_events) == (8, 0)


def test_nothing_is_claimed_beyond_the_watch() -> None:
    beyond = survival_at(10.1, np.full(8, 10.0), np.zeros(8, dtype=bool))
    assert (beyond.ci_low, beyond.ci_high) == (0.0, 1.0)


def test_replicas_that_left_early_lower_what_can_be_claimed() -> None:
    until = np.array([10.0, 10.0, 10.0, 4.0, 4.0])
    assert survival_at(10.0, until, np.zeros(5, dtype=bool)).ci_low == pytest.approx(
        survival_at(10.0, until[:3], np.zeros(3, dtype=bool)).ci_low
    )


def product_quantile(at_risk: np.ndarray, probability: float) -> float:
    """Quantile of a product of Beta(n_j, 1), all n_j different, in closed form.

    -log of a Beta(n, 1) is exponential with rate n; their sum is hypoexponential, with
    P(sum > x) = sum_j exp(-n_j x) prod_{k != j} n_k / (n_k - n_j).
    """
    n = np.asarray(at_risk, dtype=float)
    weights = [np.prod([b / (b - a) for k, b in enumerate(n) if k != j]) for j, a in enumerate(n)]

    def below(x: float) -> float:
        return float(np.dot(weights, np.exp(-n * x))) - probability

    return math.exp(-brentq(below, 1e-9, 60.0))


def test_with_censoring_the_moments_come_within_a_hundredth_of_the_exact_product() -> None:
    until = np.array([1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 9.0, 9.0, 9.0])
    had = np.array([True, False] * 4 + [False] * 3)
    tail = (1.0 - CONFIDENCE) / 2.0
    ours = survival_at(5.0, until, had)
    at_risk = np.array([11, 9, 7, 5])
    assert ours.probability == pytest.approx(10 / 11 * 8 / 9 * 6 / 7 * 4 / 5)
    assert ours.ci_high == pytest.approx(product_quantile(at_risk, 1.0 - tail), abs=0.01)
    assert ours.ci_low == pytest.approx(product_quantile(np.append(at_risk, 3), tail), abs=0.01)


def test_the_exact_product_is_clopper_and_pearsons_too() -> None:
    theirs = stats.binomtest(6, 10).proportion_ci(CONFIDENCE, method="exact")
    tail = (1.0 - CONFIDENCE) / 2.0
    assert product_quantile(np.arange(10, 6, -1), 1.0 - tail) == pytest.approx(theirs.high)
    assert product_quantile(np.arange(10, 5, -1), tail) == pytest.approx(theirs.low)


@pytest.mark.parametrize(("n", "rate"), [(8, 0.1), (8, 1.0), (16, 0.3)])
def test_the_interval_covers_at_least_at_its_level(n: int, rate: float) -> None:
    """600 sets of exponential times, censored at random; one seed, three sigma below the level."""
    random = np.random.default_rng(5)
    n_trials, time = 600, 1.0
    covered = 0
    for _ in range(n_trials):
        events = random.exponential(1.0 / rate, n)
        ends = np.where(random.random(n) < 0.3, random.uniform(0.2, 1.5, n), 1.5)
        found = survival_at(time, np.minimum(events, ends), events <= ends)
        covered += found.ci_low <= math.exp(-rate * time) <= found.ci_high
    sigma = math.sqrt(CONFIDENCE * (1.0 - CONFIDENCE) / n_trials)
    assert covered / n_trials >= CONFIDENCE - 3.0 * sigma


def test_a_claim_of_95_percent_takes_59_replicas() -> None:
    assert replicas_needed(0.95, 0.95) == 59
    assert 0.05 ** (1.0 / 59.0) >= 0.95 > 0.05 ** (1.0 / 58.0)


@pytest.mark.parametrize("times", [[], [1.0, np.nan], [-1.0]])
def test_times_that_are_none_are_refused(times: list[float]) -> None:
    with pytest.raises(AnalysisError, match="from 0 on"):
        survival_at(1.0, np.array(times), np.zeros(len(times), dtype=bool))
