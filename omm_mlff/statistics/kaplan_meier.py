r"""Survival from replicas that were watched for different times, with an interval that holds.

The estimate is Kaplan's and Meier's product over the times of events,

    S(t) = prod_{t_j <= t} (n_j - d_j) / n_j

with n_j replicas at risk just before t_j and d_j events there. The interval is the *beta product
confidence procedure*: between one event and the next the true survival falls by a factor that is
distributed as Beta(n, 1), the largest of n uniform numbers, with n the replicas at risk. Hence

    W+ = prod_{t_j <= t} Beta(n_j - d_j + 1, d_j)      S(t) lies below its upper quantile
    W- = W+ Beta(n_t, 1)                               and above the lower quantile of this one

where n_t replicas are still at risk at t. Of both products the quantiles are taken from the beta
distribution that has their mean and variance (the paper's method of moments). Without censoring
this is Clopper and Pearson's interval exactly; where nothing has happened it is (tail^(1/n), 1),
where Greenwood's variance is zero and his interval is empty.

A replica whose watch ends at t was still alive at t, so it is at risk there.

References: Kaplan & Meier, J. Am. Stat. Assoc. 53, 457 (1958); Fay, Brittain & Proschan,
Biostatistics 14, 723 (2013); Clopper & Pearson, Biometrika 26, 404 (1934); for the moments of a
product of betas Fan, Comm. Stat. Theory Meth. 20, 4043 (1991).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from omm_mlff.errors import AnalysisError
from omm_mlff.schema import CONFIDENCE


@dataclass(frozen=True)
class Survival:
    """Probability of being without an event at one time.

    Attributes
    ----------
    n_at_risk : replicas still watched at that time, without an event
    n_events : up to and at that time
    """

    time: float
    probability: float
    ci_low: float
    ci_high: float
    n_at_risk: int
    n_events: int


@dataclass(frozen=True)
class _Beta:
    """A beta distribution, or one point: a = 0 is the point 0, b = 0 the point 1."""

    a: float
    b: float

    def quantile(self, probability: float) -> float:
        if self.b == 0.0:
            return 1.0
        if self.a == 0.0:
            return 0.0
        return float(betaincinv(self.a, self.b, probability))

    def times(self, other: _Beta) -> _Beta:
        """The beta distribution with mean and variance of the product of both."""
        if self.b == 0.0 or other.b == 0.0:
            return other if self.b == 0.0 else self
        if self.a == 0.0 or other.a == 0.0:
            return _Beta(0.0, 1.0)
        mean = self.mean * other.mean
        square = self.square * other.square
        scale = (mean - square) / (square - mean**2)
        return _Beta(mean * scale, (1.0 - mean) * scale)

    @property
    def mean(self) -> float:
        return self.a / (self.a + self.b)

    @property
    def square(self) -> float:
        """Mean of the square."""
        n = self.a + self.b
        return self.a * (self.a + 1.0) / (n * (n + 1.0))


def survival_at(
    time: float,
    watched_until: NDArray[np.float64],
    had_event: NDArray[np.bool_],
    confidence: float = CONFIDENCE,
) -> Survival:
    """Kaplan-Meier estimate at one time, with the beta product interval.

    Parameters
    ----------
    time : chosen beforehand, not by what happened
    watched_until : shape (n_replicas,), time of the first event, or of the end of the watch
    had_event : shape (n_replicas,), which of the two it is

    Raises
    ------
    AnalysisError : no replica, or a time that is not a finite number from 0 on

    References
    ----------
    Fay, Brittain & Proschan, Biostatistics 14, 723 (2013).
    """
    watched_until = np.asarray(watched_until, dtype=np.float64)
    had_event = np.asarray(had_event, dtype=np.bool_)
    if not len(watched_until) or not (np.isfinite(watched_until) & (watched_until >= 0.0)).all():
        raise AnalysisError(
            f"survival needs the times of one replica or more, each from 0 on; got "
            f"{watched_until.tolist()}"
        )
    estimate = 1.0
    product = _Beta(1.0, 0.0)
    for moment in np.unique(watched_until[had_event & (watched_until <= time)]):
        n = int((watched_until >= moment).sum())
        d = int((had_event & (watched_until == moment)).sum())
        estimate *= (n - d) / n
        product = product.times(_Beta(n - d + 1.0, float(d)))
    n_events = int((had_event & (watched_until <= time)).sum())
    at_risk = int((watched_until >= time).sum() - (had_event & (watched_until == time)).sum())
    tail = 0.5 * (1.0 - confidence)
    return Survival(
        time,
        estimate,
        product.times(_Beta(float(at_risk), 1.0)).quantile(tail),
        product.quantile(1.0 - tail),
        at_risk,
        n_events,
    )


def replicas_needed(survival: float, confidence: float) -> int:
    """How many replicas must come through, all of them, to claim a survival with a confidence.

    One-sided: n replicas without an event have a lower limit of (1 - confidence)^(1/n).
    """
    return math.ceil(math.log(1.0 - confidence) / math.log(survival))
