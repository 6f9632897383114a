"""Intervals where they begin: none, one or two samples, and numbers done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from omm_mlff.errors import AnalysisError
from omm_mlff.schema import CONFIDENCE
from omm_mlff.statistics.intervals import (
    MIN_BLOCKS,
    Estimate,
    blocks_of_frames,
    garwood,
    jackknife,
    mean_over_replicas,
    median,
    t_estimate,
)

UNKNOWN = (math.inf, 1.0, -math.inf, math.inf)


def interval(found: Estimate) -> tuple[float, float, float, float]:
    return found.standard_error, found.dof, found.ci_low, found.ci_high


def test_a_scaled_estimate_is_that_of_the_scaled_quantity() -> None:
    found = Estimate(2.0, 0.5, 7.0, 1.0, 4.0, 8)
    assert found.scaled(3.0) == Estimate(6.0, 1.5, 7.0, 3.0, 12.0, 8)
    assert found.scaled(-3.0, 1.0) == Estimate(-5.0, 1.5, 7.0, -11.0, -2.0, 8)


def test_students_interval_is_the_tables() -> None:
    """The 97.5% quantile of Student's t with 4 degrees of freedom is 2.776 (any table)."""
    found = t_estimate(10.0, 2.0, 4.0, 5, confidence=0.95)
    assert (found.ci_low, found.ci_high) == pytest.approx((10 - 5.553, 10 + 5.553), abs=2e-3)
    assert (found.value, found.standard_error, found.dof, found.n_samples) == (10.0, 2.0, 4.0, 5)


@pytest.mark.parametrize("n_samples", [0, 1])
def test_what_was_not_repeated_has_no_interval(n_samples: int) -> None:
    found = t_estimate(3.0, 0.1, 9.0, n_samples)
    assert (found.value, found.n_samples) == (3.0, n_samples)
    assert interval(found) == UNKNOWN


def test_two_samples_have_an_interval_and_one_has_none() -> None:
    two = mean_over_replicas(np.array([1.0, 3.0]), confidence=0.5)
    # One degree of freedom is Cauchy's distribution, whose quartile is 1.
    assert (two.value, two.standard_error, two.dof) == pytest.approx((2.0, 1.0, 1.0))
    assert (two.ci_low, two.ci_high) == pytest.approx((1.0, 3.0))
    one = mean_over_replicas(np.array([3.0]))
    assert (one.value, one.n_samples) == (3.0, 1)
    assert interval(one) == UNKNOWN


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [math.inf, 1.0, 2.0]])
def test_a_mean_or_median_of_what_is_no_number_is_refused(samples: list[float]) -> None:
    with pytest.raises(AnalysisError, match="a mean needs finite samples"):
        mean_over_replicas(np.array(samples))
    with pytest.raises(AnalysisError, match="a median needs finite samples"):
        median(np.array(samples))


@pytest.mark.parametrize(("n_trajectories", "n_blocks"), [(1, 4), (2, 4), (3, 6), (4, 4), (5, 5)])
def test_trajectories_are_cut_only_where_there_are_fewer_than_four(
    n_trajectories: int, n_blocks: int
) -> None:
    assert MIN_BLOCKS == 4
    trajectory = np.repeat(np.arange(n_trajectories), 12)
    blocks = blocks_of_frames(trajectory)
    assert len(blocks) == n_blocks
    np.testing.assert_array_equal(np.concatenate(blocks), np.arange(len(trajectory)))
    assert all(len(set(trajectory[block])) == 1 for block in blocks)


def test_no_block_is_empty_and_no_frames_make_no_blocks() -> None:
    assert [block.tolist() for block in blocks_of_frames(np.array([0, 0]))] == [[0], [1]]
    assert blocks_of_frames(np.array([], dtype=np.int64)) == []


def test_the_jackknife_of_a_mean_is_students_own() -> None:
    """For the mean of equal blocks both have the standard error s / sqrt(n)."""
    samples = np.array([1.0, 4.0, 4.0, 9.0, 2.0])
    blocks = [np.array([i]) for i in range(5)]
    found = jackknife(lambda frames: float(samples[frames].mean()), blocks, 0.9)
    want = mean_over_replicas(samples, 0.9)
    for one, other in zip(
        (found.value, *interval(found)), (want.value, *interval(want)), strict=True
    ):
        assert one == pytest.approx(other)
    assert found.n_samples == 5


def test_the_jackknife_of_two_blocks_has_an_interval_and_of_one_has_none() -> None:
    def mean(frames: np.ndarray) -> float:
        return float(frames.mean())

    two = jackknife(mean, [np.array([0]), np.array([1])])
    assert (two.value, two.dof, two.standard_error) == pytest.approx((0.5, 1.0, 0.5))
    one = jackknife(mean, [np.array([3, 5])])
    assert (one.value, one.n_samples) == (4.0, 1)
    assert interval(one) == UNKNOWN
    with pytest.raises(AnalysisError, match="at least one block"):
        jackknife(mean, [])


def test_unequal_blocks_are_weighed_as_busing_meijer_and_van_der_leeden_do() -> None:
    """Their equations for three blocks of 1, 2 and 3 frames, with fractions by hand."""
    x = np.array([6.0, 0.0, 3.0, 1.0, 1.0, 1.0])
    blocks = [np.array([0]), np.array([1, 2]), np.array([3, 4, 5])]
    whole, h = 2.0, np.array([6.0, 3.0, 2.0])
    out = np.array([6 / 5, 9 / 4, 9 / 3])
    centre = 3 * whole - ((1 - 1 / h) * out).sum()
    pseudo = h * whole - (h - 1) * out
    variance = ((pseudo - centre) ** 2 / (h - 1)).sum() / 3
    found = jackknife(lambda frames: float(x[frames].mean()), blocks)
    assert (found.value, found.dof) == (whole, 2.0)
    assert found.standard_error == pytest.approx(math.sqrt(variance))


@pytest.mark.parametrize("n_events", [0, 1, 4])
def test_a_count_is_as_rare_at_the_ends_of_its_interval_as_the_level_says(n_events: int) -> None:
    low, high = garwood(n_events, confidence=0.9)
    assert stats.poisson.cdf(n_events, high) == pytest.approx(0.05)
    if n_events:
        assert stats.poisson.sf(n_events - 1, low) == pytest.approx(0.05)
    else:
        assert low == 0.0
    assert garwood(n_events) == garwood(n_events, CONFIDENCE)


@pytest.mark.parametrize(("n", "rank"), [(5, 0), (6, 1), (8, 1), (9, 2), (20, 6), (21, 6)])
def test_the_ends_for_a_median_are_the_ranks_that_the_tables_give(n: int, rank: int) -> None:
    """Conover, Practical Nonparametric Statistics, table A3; at 95%."""
    random = np.random.default_rng(n)
    samples = random.permutation(np.arange(1.0, n + 1.0) ** 2)
    found = median(samples, confidence=0.95)
    assert found.value == np.median(samples)
    assert found.n_samples == n
    if rank == 0:
        assert interval(found) == UNKNOWN
        return
    assert (found.ci_low, found.ci_high) == (rank**2, (n + 1 - rank) ** 2)
    assert found.dof == n - 1
    wider = max(found.ci_high - found.value, found.value - found.ci_low)
    assert found.standard_error == pytest.approx(wider / stats.t.ppf(0.975, n - 1))
