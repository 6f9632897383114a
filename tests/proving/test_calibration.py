"""The intervals hold the truth as often as they say, and the judge errs as rarely as it says."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from omm_mlff.proving import calibration
from omm_mlff.proving.calibration import Design, Noise, drift_coverage, verdict_rates
from omm_mlff.verdict.judge import LOOK_SIGNIFICANCE
from tests.judged_models import sound

# A sampled drift of 1e-3 per frame beside noise of 1: from invisible to 50 sigma.
NOISES = {
    "white": Noise(1.0),
    "white and red": Noise(0.5, 0.5, 30.0),
    "red": Noise(0.0, 1.0, 100.0),
    "slower than the run": Noise(0.1, 1.0, 2000.0),
}


@pytest.mark.parametrize("drift", [0.0, 1.0e-3])
@pytest.mark.parametrize(("n_replicas", "n_frames"), [(8, 200), (8, 2000), (16, 500)])
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_intervals_at_95_percent_hold_the_drift_in_93_to_97_percent(
    noise: Noise, n_replicas: int, n_frames: int, drift: float
) -> None:
    # 1,000 sets: one sigma is 0.7%, so the band is 2.9 sigma; the seed is fixed.
    covered = drift_coverage(
        noise,
        drift=drift,
        n_replicas=n_replicas,
        n_frames=n_frames,
        n_sets=1000,
        confidence=0.95,
        seed=20261123,
    )
    assert 0.93 <= covered <= 0.97


def test_the_interval_of_one_series_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of least squares takes red noise for white: its intervals are far too narrow."""
    from scipy.special import stdtrit

    def one_series(slopes, confidence):
        # The same sets with the textbook error of a fitted slope of unit noise, over all frames.
        error = math.sqrt(12.0 / 500.0**3 / len(slopes))
        half = float(stdtrit(np.inf, 0.5 + 0.5 * confidence)) * error
        mean = slopes.mean()
        return dataclasses.make_dataclass("E", ["ci_low", "ci_high"])(mean - half, mean + half)

    monkeypatch.setattr(calibration, "mean_over_replicas", one_series)
    covered = drift_coverage(
        NOISES["red"],
        drift=0.0,
        n_replicas=8,
        n_frames=500,
        n_sets=200,
        confidence=0.95,
        seed=1,
    )
    assert covered < 0.5


def test_red_noise_has_the_memory_and_the_size_that_it_says() -> None:
    series = Noise(0.0, 2.0, 50.0).series(np.random.default_rng(3), 4000, 60)
    assert series.std() == pytest.approx(2.0, rel=0.02)
    at_50 = (series[:, 0] * series[:, 50]).mean() / 4.0
    assert at_50 == pytest.approx(math.exp(-1.0), abs=0.05)  # 3 sigma of 4,000 products


def test_a_sound_model_is_approved_and_never_rejected() -> None:
    rates = verdict_rates(Design(sound()), n_trials=100)
    assert rates.approved > 0.95
    assert rates.rejected == 0.0


def test_a_truth_on_the_bound_fails_as_rarely_as_the_level_says() -> None:
    design = Design(sound())
    index = next(i for i in design.drawn if design.measured.measurements[i].name == "nve.drift")
    truth = {**design.sound(), index: 0.01}
    hits = sum(
        "nve.drift-limit" in names for _, names in design.verdicts(truth, n_trials=400, seed=5)
    )
    # At most one look's share each look; 400 trials: 3 sigma above 5% is 8.3%.
    assert hits / 400 <= 3 * LOOK_SIGNIFICANCE + 0.033


def test_a_truth_at_twice_the_bound_fails() -> None:
    design = Design(sound())
    index = next(i for i in design.drawn if design.measured.measurements[i].name == "nve.drift")
    truth = {**design.sound(), index: 0.2}
    verdicts = [v.name for v, _ in design.verdicts(truth, n_trials=50, seed=5)]
    assert verdicts.count("REJECTED") >= 48


def test_a_longer_look_begins_with_the_shorter_one() -> None:
    design = Design(sound())
    index = next(i for i in design.drawn if design.measured.measurements[i].name == "nve.drift")
    series = design._series(index, np.random.default_rng(1))
    errors = [design._redrawn(index, 0.0, series, k).standard_error for k in range(3)]
    many = [
        [
            design._redrawn(index, 0.0, design._series(index, random), k).value
            for random in map(np.random.default_rng, range(300))
        ]
        for k in range(2)
    ]
    # A slope's error falls with the length to the power 3/2; the two looks share their beginning.
    assert np.std(many[0]) / np.std(many[1]) == pytest.approx(2.0**1.5, rel=0.15)
    assert 0.1 < np.corrcoef(many)[0, 1] < 0.9
    assert len(set(errors)) == 3
