"""Intervals for replicas, correlated frames, counts, and timings.

Independent repetition is what an interval is made of: replicas of a run, trajectories of reference
frames, blocks of timed steps. Frames of one trajectory are correlated, so they are never counted
as if each were a repetition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, stdtrit

from omm_mlff.errors import AnalysisError
from omm_mlff.schema import CONFIDENCE

MIN_BLOCKS = 4
"""Fewer trajectories than this are cut, each into consecutive parts, before they are compared."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval at `CONFIDENCE`.

    Attributes
    ----------
    standard_error : infinite where nothing was repeated
    dof : of Student's t
    n_samples : independent samples behind the interval
    """

    value: float
    standard_error: float
    dof: float
    ci_low: float
    ci_high: float
    n_samples: int

    def scaled(self, factor: float, shift: float = 0.0) -> Estimate:
        """The estimate of `factor * x + shift`, of which this is that of x."""
        ends = sorted((self.ci_low * factor + shift, self.ci_high * factor + shift))
        return Estimate(
            self.value * factor + shift,
            self.standard_error * abs(factor),
            self.dof,
            ends[0],
            ends[1],
            self.n_samples,
        )


def t_estimate(
    value: float, standard_error: float, dof: float, n_samples: int, confidence: float = CONFIDENCE
) -> Estimate:
    """An estimate with Student's interval around it.

    A value that was not repeated (`n_samples` below 2) gets an infinite interval: a criterion on
    it is undecided, never passed.
    """
    if n_samples < 2:
        return Estimate(value, math.inf, 1.0, -math.inf, math.inf, n_samples)
    half_width = float(stdtrit(dof, 0.5 + 0.5 * confidence)) * standard_error
    return Estimate(value, standard_error, dof, value - half_width, value + half_width, n_samples)


def mean_over_replicas(samples: NDArray[np.float64], confidence: float = CONFIDENCE) -> Estimate:
    """Mean of independent samples, with Student's t interval.

    Parameters
    ----------
    samples : shape (n_samples,), one number per replica

    Raises
    ------
    AnalysisError : no sample, or one that is not finite

    References
    ----------
    "Student", Biometrika 6, 1 (1908).
    """
    samples = np.asarray(samples, dtype=np.float64)
    if len(samples) == 0 or not np.isfinite(samples).all():
        raise AnalysisError(f"a mean needs finite samples, got {samples.tolist()}")
    n = len(samples)
    error = float(samples.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return t_estimate(float(samples.mean()), error, max(n - 1.0, 1.0), n, confidence)


def blocks_of_frames(trajectory: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Frames grouped so that the groups are close to independent.

    A trajectory is a block. Where there are fewer than `MIN_BLOCKS`, each is cut into consecutive
    parts of equal length, as few as make up the number: correlation across a cut is left in, within
    a part it is not.

    Parameters
    ----------
    trajectory : shape (n_frames,), the trajectory that each frame comes from, in time order

    Returns
    -------
    frame indices of each block, at most n_frames blocks
    """
    groups = [np.flatnonzero(trajectory == label) for label in np.unique(trajectory)]
    if not groups or len(groups) >= MIN_BLOCKS:
        return groups
    n_parts = math.ceil(MIN_BLOCKS / len(groups))
    parts = [part for group in groups for part in np.array_split(group, n_parts)]
    return [part for part in parts if len(part)]


def jackknife(
    statistic: Callable[[NDArray[np.int64]], float],
    blocks: list[NDArray[np.int64]],
    confidence: float = CONFIDENCE,
) -> Estimate:
    """A statistic of all frames, its error from leaving out one block at a time.

    The value is that of all frames, uncorrected. Smooth statistics only (means, their ratios and
    roots); for those it agrees with the delta method and needs no derivative.

    Parameters
    ----------
    statistic : of the frames whose indices it is given
    blocks : frame indices of each independent block, see `blocks_of_frames`

    References
    ----------
    Tukey, Ann. Math. Stat. 29, 614 (1958); for blocks of a correlated series: Kuensch, Ann.
    Stat. 17, 1217 (1989). Unequal blocks: Busing, Meijer & van der Leeden, Stat. Comput. 9, 3
    (1999), whose pseudovalues are used.
    """
    if not blocks:
        raise AnalysisError("a statistic needs at least one block of frames")
    frames = np.concatenate(blocks)
    value = statistic(frames)
    n_blocks = len(blocks)
    if n_blocks < 2:
        return t_estimate(value, math.inf, 1.0, n_blocks, confidence)
    weights = len(frames) / np.array([len(block) for block in blocks], dtype=np.float64)
    left_out = np.array(
        [
            statistic(np.concatenate([b for k, b in enumerate(blocks) if k != out]))
            for out in range(n_blocks)
        ]
    )
    pseudovalues = weights * value - (weights - 1.0) * left_out
    centre = n_blocks * value - float(((1.0 - 1.0 / weights) * left_out).sum())
    variance = float(((pseudovalues - centre) ** 2 / (weights - 1.0)).mean())
    return t_estimate(value, math.sqrt(variance), n_blocks - 1.0, n_blocks, confidence)


def garwood(n_events: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Exact interval of the expectation of a Poisson count.

    Parameters
    ----------
    n_events : seen

    References
    ----------
    Garwood, Biometrika 28, 437 (1936).
    """
    tail = 0.5 * (1.0 - confidence)
    low = float(gammaincinv(n_events, tail)) if n_events else 0.0
    return low, float(gammaincinv(n_events + 1, 1.0 - tail))


def median(samples: NDArray[np.float64], confidence: float = CONFIDENCE) -> Estimate:
    """Median of independent samples, with the interval of its order statistics.

    Timings have a long upper tail, which moves their mean and not their median. The interval is
    free of any distribution; the standard error is that of a Student interval of the same width.
    Fewer samples than the level needs (seven, at `CONFIDENCE`) give an infinite interval.

    Parameters
    ----------
    samples : shape (n_samples,)

    References
    ----------
    Hahn & Meeker, Statistical Intervals, Wiley (1991), section 5.2.
    """
    from scipy.stats import quantile_test  # here: half a second that only timings need

    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    n = len(ordered)
    if n == 0 or not np.isfinite(ordered).all():
        raise AnalysisError(f"a median needs finite samples, got {ordered.tolist()}")
    value = float(np.median(ordered))
    found = quantile_test(ordered, q=value, p=0.5).confidence_interval(confidence)
    low, high = float(found.low), float(found.high)
    if math.isnan(low):
        return Estimate(value, math.inf, 1.0, -math.inf, math.inf, n)
    quantile = float(stdtrit(n - 1.0, 0.5 + 0.5 * confidence))
    return Estimate(value, max(high - value, value - low) / quantile, n - 1.0, low, high, n)
