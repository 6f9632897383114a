"""Survival where it begins: events at the very time, replicas watched for none, exact products."""

from __future__ import annotations

import numpy as np
import pytest

from omm_mlff.errors import AnalysisError
from omm_mlff.statistics.kaplan_meier import _Beta, replicas_needed, survival_at

ONE, ZERO = _Beta(1.0, 0.0), _Beta(0.0, 1.0)


@pytest.mark.parametrize("other", [_Beta(3.0, 1.0), _Beta(1.0, 4.0), _Beta(2.5, 0.5), ONE, ZERO])
def test_a_product_with_the_point_one_or_zero_is_the_other_or_zero(other: _Beta) -> None:
    assert (ONE.times(other), other.times(ONE)) == (other, other)
    for product in (ZERO.times(other), other.times(ZERO)):
        assert (product.quantile(0.1), product.quantile(0.9)) == (0.0, 0.0)


@pytest.mark.parametrize("one", [_Beta(3.0, 1.0), _Beta(1.0, 1.0), _Beta(2.5, 0.5)])
@pytest.mark.parametrize("other", [_Beta(5.0, 1.0), _Beta(1.0, 4.0), _Beta(4.0, 2.0)])
def test_a_product_has_the_mean_and_the_mean_square_of_independent_factors(
    one: _Beta, other: _Beta
) -> None:
    product = one.times(other)
    assert product.mean == pytest.approx(one.mean * other.mean)
    assert product.square == pytest.approx(one.square * other.square)


def test_the_moments_are_those_of_uniform_numbers() -> None:
    """The largest of n uniform numbers is Beta(n, 1): its mean is n/(n+1), its square n/(n+2)."""
    largest = _Beta(4.0, 1.0)
    assert (largest.mean, largest.square) == pytest.approx((4 / 5, 4 / 6))
    assert largest.quantile(0.3) == pytest.approx(0.3 ** (1 / 4))
    assert (ONE.quantile(0.01), ZERO.quantile(0.99)) == (1.0, 0.0)


def test_an_event_at_the_very_time_counts_and_is_at_risk_no_more() -> None:
    found = survival_at(
        2.0, np.array([1.0, 2.0, 2.0, 2.0, 3.0]), np.array([True, True, True, False, True])
    )
    assert found.probability == pytest.approx((4 / 5) * (2 / 4))
    assert (found.n_events, found.n_at_risk) == (3, 2)
    before = survival_at(
        1.999, np.array([1.0, 2.0, 2.0, 2.0, 3.0]), np.array([True, True, True, False, True])
    )
    assert (before.n_events, before.n_at_risk) == (1, 4)
    assert before.probability == pytest.approx(4 / 5)


def test_a_replica_may_be_watched_for_no_time_and_not_for_less() -> None:
    found = survival_at(0.0, np.array([0.0, 1.0]), np.array([True, False]))
    assert (found.probability, found.n_events, found.n_at_risk) == (0.5, 1, 1)
    for times in ([], [-0.1, 1.0], [np.nan, 1.0], [np.inf]):
        with pytest.raises(AnalysisError, match="each from 0 on"):
            survival_at(1.0, np.array(times), np.zeros(len(times), dtype=bool))


def test_the_numbers_that_quality_control_quotes() -> None:
    """59 successes claim 95% with a confidence of 95%, 22 claim 90% with 90% (success runs)."""
    assert replicas_needed(0.95, 0.95) == 59
    assert replicas_needed(0.90, 0.90) == 22
