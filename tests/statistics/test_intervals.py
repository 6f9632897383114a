"""Intervals: closed forms, other programs, and coverage counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from omm_mlff.checks.drift import slope
from omm_mlff.errors import AnalysisError
from omm_mlff.schema import CONFIDENCE
from omm_mlff.statistics.intervals import (
    MIN_BLOCKS,
    blocks_of_frames,
    garwood,
    jackknife,
    mean_over_replicas,
    median,
)


def test_mean_over_replicas_is_students_interval_of_scipy() -> None:
    samples = np.random.default_rng(1).normal(3.0, 2.0, size=9)
    ours = mean_over_replicas(samples)
    theirs = stats.ttest_1samp(samples, 0.0).confidence_interval(CONFIDENCE)
    assert (ours.ci_low, ours.ci_high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)
    assert ours.dof == 8
    assert ours.standard_error == pytest.approx(stats.sem(samples), rel=1e-12)


def test_what_was_not_repeated_has_an_infinite_interval() -> None:
    one = mean_over_replicas(np.array([1.5]))
    assert one.value == 1.5
    assert (one.ci_low, one.ci_high) == (-math.inf, math.inf)
    assert math.isinf(one.standard_error)


@pytest.mark.parametrize("samples", [[], [1.0, np.nan], [np.inf, 0.0]])
def test_a_mean_of_nothing_or_of_nan_is_refused(samples: list[float]) -> None:
    with pytest.raises(AnalysisError, match="finite"):
        mean_over_replicas(np.array(samples))


def test_scaling_an_estimate_by_a_negative_factor_keeps_its_interval_in_order() -> None:
    plain = mean_over_replicas(np.array([1.0, 2.0, 4.0]))
    scaled = plain.scaled(-2.0, 1.0)
    assert scaled.value == pytest.approx(1.0 - 2.0 * plain.value)
    assert scaled.ci_low == pytest.approx(1.0 - 2.0 * plain.ci_high)
    assert scaled.ci_low < scaled.value < scaled.ci_high
    assert scaled.standard_error == pytest.approx(2.0 * plain.standard_error)


def test_garwood_agrees_with_the_published_table() -> None:
    # Garwood (1936) as tabulated in Johnson, Kemp & Kotz, Univariate Discrete Distributions, 95%
    assert garwood(0, 0.95) == pytest.approx((0.0, 3.689), abs=5e-4)
    assert garwood(1, 0.95) == pytest.approx((0.0253, 5.572), abs=5e-4)
    assert garwood(10, 0.95) == pytest.approx((4.795, 18.390), abs=5e-4)


def test_garwood_of_no_event_is_the_closed_form() -> None:
    assert garwood(0)[1] == pytest.approx(-math.log((1.0 - CONFIDENCE) / 2.0), rel=1e-12)


def test_trajectories_are_blocks_and_few_are_cut_into_parts() -> None:
    many = np.repeat(np.arange(6), 5)
    assert [len(block) for block in blocks_of_frames(many)] == [5] * 6
    one = np.zeros(20, dtype=np.int64)
    parts = blocks_of_frames(one)
    assert len(parts) == MIN_BLOCKS
    assert all((np.diff(part) == 1).all() for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(20))
    assert len(blocks_of_frames(np.array([7]))) == 1


def test_jackknife_of_a_mean_over_single_frames_is_students_interval() -> None:
    values = np.random.default_rng(2).normal(size=12)
    blocks = [np.array([k]) for k in range(12)]
    ours = jackknife(lambda frames: float(values[frames].mean()), blocks)
    theirs = mean_over_replicas(values)
    assert vars(ours) == pytest.approx(vars(theirs), rel=1e-10)


def test_jackknife_of_a_root_agrees_with_the_delta_method() -> None:
    random = np.random.default_rng(3)
    squares = random.chisquare(40, size=(200, 5)).mean(axis=1)
    blocks = [np.array([k]) for k in range(200)]
    ours = jackknife(lambda frames: math.sqrt(squares[frames].mean()), blocks)
    root = math.sqrt(squares.mean())
    delta = squares.std(ddof=1) / math.sqrt(200) / (2.0 * root)
    assert ours.standard_error == pytest.approx(delta, rel=0.01)


def test_median_interval_holds_the_level_for_every_count() -> None:
    for n in range(1, 60):
        ours = median(np.arange(n, dtype=float))
        if math.isinf(ours.ci_low):
            assert 2.0 * 0.5**n > 1.0 - CONFIDENCE
            continue
        rank = round(ours.ci_low) + 1  # the samples are their own ranks, from 0
        assert ours.ci_high == n - rank
        assert 2.0 * stats.binom.cdf(rank - 1, n, 0.5) <= 1.0 - CONFIDENCE
        assert 2.0 * stats.binom.cdf(rank, n, 0.5) > 1.0 - CONFIDENCE  # no wider than need be


def test_median_ignores_the_long_tail_of_timings() -> None:
    timings = np.full(20, 2.0)
    timings[3] = 500.0
    assert median(timings).value == 2.0
    assert median(timings).ci_high == 2.0


def coloured(random: np.random.Generator, shape: tuple[int, ...], memory: float) -> np.ndarray:
    """Gaussian noise whose last axis forgets by `memory` a step, of variance one."""
    noise = random.normal(size=shape)
    for k in range(1, shape[-1]):
        fresh = math.sqrt(1.0 - memory**2) * noise[..., k]
        noise[..., k] = memory * noise[..., k - 1] + fresh
    return noise


def within_sigmas(n_covered: int, n_trials: int, n_sigmas: float) -> bool:
    expected = CONFIDENCE * n_trials
    sigma = math.sqrt(expected * (1.0 - CONFIDENCE))
    return abs(n_covered - expected) <= n_sigmas * sigma


def test_drift_intervals_cover_the_true_slope_at_their_level() -> None:
    """1000 runs of 8 replicas with strongly coloured noise, one seed, four sigma."""
    random = np.random.default_rng(11)
    n_trials, n_replicas, n_frames, true = 1000, 8, 128, 0.3
    time = np.arange(n_frames) * 0.01
    series = true * time + coloured(random, (n_trials, n_replicas, n_frames), 0.95)
    covered = 0
    for trial in series:
        estimate = mean_over_replicas(np.array([slope(time, replica) for replica in trial]))
        covered += estimate.ci_low <= true <= estimate.ci_high
    assert within_sigmas(covered, n_trials, 4.0)


@pytest.mark.parametrize(("n_trajectories", "lowest"), [(40, 0.96), (8, 0.93)])
def test_rmse_intervals_cover_the_true_error(n_trajectories: int, lowest: float) -> None:
    """Frames of a trajectory share most of their error; treated as independent, 60% would do."""
    random = np.random.default_rng(12)
    n_trials, n_frames, n_components = 600, 8, 9
    trajectory = np.repeat(np.arange(n_trajectories), n_frames)
    blocks = blocks_of_frames(trajectory)
    single = [np.array([k]) for k in range(len(trajectory))]
    covered = naive = 0
    for _ in range(n_trials):
        shape = (n_components, n_trajectories, n_frames)
        square = (coloured(random, shape, 0.95) ** 2).mean(axis=0).ravel()

        def rmse(frames: np.ndarray, square: np.ndarray = square) -> float:
            return math.sqrt(square[frames].mean())

        estimate = jackknife(rmse, blocks)
        covered += estimate.ci_low <= 1.0 <= estimate.ci_high
        if n_trajectories == 8:
            careless = jackknife(rmse, single)
            naive += careless.ci_low <= 1.0 <= careless.ci_high
    assert lowest <= covered / n_trials <= 0.995
    if n_trajectories == 8:
        assert naive / n_trials < 0.8
