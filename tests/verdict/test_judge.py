"""The judge keeps the rules of DESIGN section 4, and its error rates."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from omm_mlff.errors import AnalysisError, InputError, PolicyError
from omm_mlff.schema import (
    CONFIDENCE,
    SIGNIFICANCE,
    Criterion,
    Declaration,
    Finding,
    Measurement,
    Verdict,
    Where,
)
from omm_mlff.verdict.judge import (
    LOOK_SIGNIFICANCE,
    combine,
    exit_code,
    extension_needed,
    holm,
    judge,
    judge_all,
    outside_p_value,
    undecided_runs,
)
from omm_mlff.verdict.measurement_file import MeasurementFile, Planned
from omm_mlff.verdict.policies import Policy
from omm_mlff.verdict.profiles import Scope
from tests.judged_models import broken, count, replaced, sampled, sound, unclear

SCOPE = Scope("quick")
RUN = "water-nve-300K-0.5fs-2ps-x8"
WATER = Where(system="water", run=RUN, temperature_K=300.0, length_ps=2.0)
UNITS = {"mean": "%", "slope": "meV/atom/ps", "exact": "1", "events": "1", "note": "MiB"}
KINDS = {
    "mean": "sampled",
    "slope": "sampled",
    "exact": "deterministic",
    "events": "count",
    "note": "info",
}


def policy(*criteria: Criterion) -> Policy:
    declared = {
        name: Declaration(name, kind, UNITS[name], "", "c")  # type: ignore[arg-type]
        for name, kind in KINDS.items()
    }
    return Policy("p", "", criteria, declared)


def criterion(
    measurement: str,
    severity: str = "reject",
    low: float | None = None,
    high: float | None = None,
    **extra: object,
) -> Criterion:
    name = str(extra.pop("name", f"{measurement}-{severity}"))
    return Criterion(
        name,
        measurement,
        low,
        high,
        UNITS[measurement],
        severity,
        "s",
        **extra,  # type: ignore
    )


def from_sample(sample: np.ndarray, name: str = "mean", where: Where = WATER) -> Measurement:
    """Student's interval for the mean of independent samples."""
    n = len(sample)
    error = float(sample.std(ddof=1) / math.sqrt(n))
    half = float(scipy.stats.t.ppf(0.5 * (1 + CONFIDENCE), n - 1)) * error
    mean = float(sample.mean())
    return Measurement(
        name, "sampled", mean, UNITS[name], mean - half, mean + half, n, where, error, float(n - 1)
    )


def normal(value: float, error: float, name: str = "mean", where: Where = WATER) -> Measurement:
    half = float(scipy.stats.norm.ppf(0.5 * (1 + CONFIDENCE))) * error
    return Measurement(
        name, "sampled", value, UNITS[name], value - half, value + half, 8, where, error, math.inf
    )


def exact(value: float, where: Where = WATER) -> Measurement:
    return Measurement.exact("exact", value, "1", where, 32)


def events(n: float) -> Measurement:
    return Measurement("events", "count", n, "1", 0.0, 4.09, 8, WATER, exposure_ps=16.0)


def one(verdict: Verdict) -> Finding:
    (finding,) = verdict.findings
    return finding


def status(criterion_: Criterion, *measurements: Measurement) -> str:
    return one(judge(policy(criterion_), measurements, SCOPE, dtype="float32")).status


# ---------------------------------------------------------------- statistics


def test_holm_agrees_with_a_published_example() -> None:
    """Four hypotheses: Wikipedia, "Holm-Bonferroni method", Example.

    At 0.05 the first and the last are rejected. By hand: sorted 0.005, 0.01, 0.03, 0.04, times 4,
    3, 2, 1 is 0.02, 0.03, 0.06, 0.04, of which the running maximum is 0.02, 0.03, 0.06, 0.06.
    """
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        p = rng.uniform(size=rng.integers(1, 12)) ** 4
        if rng.uniform() < 0.3:
            p = np.round(p, 2)  # ties
        alpha = rng.uniform(0.01, 0.2)
        rejected = np.zeros(len(p), dtype=bool)
        for step, index in enumerate(np.argsort(p, kind="stable")):
            if p[index] * (len(p) - step) >= alpha:
                break
            rejected[index] = True
        adjusted = holm(p)
        assert ((adjusted < alpha) == rejected).all()
        assert (adjusted >= p).all()
        assert (adjusted <= 1.0).all()
        shuffle = rng.permutation(len(p))
        assert holm(p[shuffle]) == pytest.approx(adjusted[shuffle])


def test_holm_of_nothing_is_nothing() -> None:
    assert len(holm([])) == 0


@pytest.mark.parametrize(("high", "low"), [(0.4, None), (None, 1.6)])
def test_p_value_is_that_of_students_one_sided_test(high: float | None, low: float | None) -> None:
    sample = np.random.default_rng(2).normal(1.0, 1.0, 9)
    bound, side = (high, "greater") if high is not None else (low, "less")
    expected = scipy.stats.ttest_1samp(sample, bound, alternative=side).pvalue
    m = from_sample(sample)
    assert m.standard_error is not None
    p = outside_p_value(float(sample.mean()), m.standard_error, 8.0, low, high)
    assert p == pytest.approx(expected, rel=1e-12)


def test_p_value_of_a_bound_without_width_is_the_two_sided_one() -> None:
    sample = np.random.default_rng(3).normal(0.5, 1.0, 9)
    m = from_sample(sample)
    assert m.standard_error is not None
    p = outside_p_value(float(sample.mean()), m.standard_error, 8.0, 0.0, 0.0)
    assert p == pytest.approx(scipy.stats.ttest_1samp(sample, 0.0).pvalue, rel=1e-12)


def test_p_value_without_spread_is_certain() -> None:
    assert outside_p_value(1.1, 0.0, 7.0, None, 1.0) == 0.0
    assert outside_p_value(1.0, 0.0, 7.0, None, 1.0) == 1.0
    assert outside_p_value(9.0, math.inf, math.inf, None, 1.0) == pytest.approx(0.5)


def test_error_of_a_slope_falls_with_the_power_three_halves_of_time() -> None:
    def error(n: int) -> float:
        time = np.arange(n) * 0.0005
        return float(1.0 / np.sqrt(((time - time.mean()) ** 2).sum()))

    assert error(8000) / error(4000) == pytest.approx(2.0**-1.5, rel=1e-3)


@pytest.mark.parametrize("name", ["mean", "slope"])
@pytest.mark.parametrize("value", [0.7, 1.4])
def test_a_run_as_long_as_was_said_decides(name: str, value: float) -> None:
    rows = criterion(name, high=1.0)
    found = one(judge(policy(rows), [normal(value, 0.5, name)], SCOPE, dtype="float32"))
    assert found.status == "undecided"
    assert found.more_ps is not None
    power = 1.5 if name == "slope" else 0.5
    for factor, decided in ((1.01, True), (0.99, False)):
        length = 2.0 + found.more_ps * factor
        error = 0.5 * (2.0 / length) ** power
        then = status(rows, normal(value, error, name))
        assert (then != "undecided") is decided
        if decided:
            assert then == ("pass" if value < 1.0 else "fail")


def test_a_value_on_its_bound_needs_infinitely_long() -> None:
    assert math.isinf(extension_needed(1.0, 0.1, 7.0, None, 1.0, n_criteria=1, exponent=0.5))
    found = one(
        judge(policy(criterion("mean", high=1.0)), [normal(1.0, 0.1)], SCOPE, dtype="float32")
    )
    assert found.more_ps is None
    assert "lies on the bound" in found.cause


def test_what_no_run_can_decide_asks_for_samples() -> None:
    frames = normal(0.9, 0.1, where=Where(system="water"))
    found = one(judge(policy(criterion("mean", high=1.0)), [frames], SCOPE, dtype="float32"))
    assert found.more_ps is None
    assert found.more_samples == math.ceil(8 * (2.3939797998 * 0.1 / 0.1) ** 2 - 8)


def test_one_sample_more_is_one_sample() -> None:
    nearly = normal(0.9, 0.043, where=Where(system="water"))
    found = one(judge(policy(criterion("mean", high=1.0)), [nearly], SCOPE, dtype="float32"))
    assert found.more_samples == 1
    assert found.cause.endswith("; 1 more sample would decide")


def test_what_a_longer_run_does_not_sharpen_asks_for_replicas() -> None:
    rows = policy(criterion("mean", high=1.0))
    fixed = dataclasses.replace(rows.declared["mean"], error_exponent=0.0)
    ends = dataclasses.replace(rows, declared={**rows.declared, "mean": fixed})
    verdict = judge(ends, [normal(0.9, 0.1)], SCOPE, dtype="float32")
    assert one(verdict).more_ps is None
    assert one(verdict).more_samples == math.ceil(8 * 2.3939797998**2 - 8)
    assert "more replicas would decide" in one(verdict).cause
    assert undecided_runs([verdict]) == frozenset()
    assert undecided_runs([judge(rows, [normal(0.9, 0.1)], SCOPE, dtype="float32")]) == {RUN}


def test_the_longer_side_of_a_skewed_interval_is_what_must_shrink() -> None:
    skewed = dataclasses.replace(normal(0.5, 0.1), ci_high=1.5)
    found = one(judge(policy(criterion("mean", high=1.0)), [skewed], SCOPE, dtype="float32"))
    assert found.status == "undecided"
    assert found.more_ps == pytest.approx(2.0 * 2.0**2 - 2.0, rel=1e-6)  # half as wide: 4 x


# --------------------------------------------------------------- calibration


def verdict_rates(true: float, n_seeds: int, n_criteria: int = 5) -> dict[str, float]:
    rng = np.random.default_rng(4)
    rows = policy(*(criterion("mean", high=1.0, name=f"c{k}") for k in range(n_criteria)))
    rows = dataclasses.replace(
        rows,
        criteria=tuple(
            dataclasses.replace(c, systems=(f"s{k}",)) for k, c in enumerate(rows.criteria)
        ),
    )
    names: list[str] = []
    for _ in range(n_seeds):
        measurements = [
            from_sample(rng.normal(true, 0.5, 8), where=Where(system=f"s{k}"))
            for k in range(n_criteria)
        ]
        names.append(judge(rows, measurements, SCOPE, dtype="float32").name)
    return {name: names.count(name) / n_seeds for name in set(names)}


def test_a_model_on_its_bound_is_rejected_as_rarely_as_promised() -> None:
    """Five true values exactly on their bounds: the family errs in `LOOK_SIGNIFICANCE`.

    800 seeds: binomial, 3.5 sigma above; and at least once, or the test could not notice a judge
    that never rejects (chance of none: 1e-6).
    """
    rates = verdict_rates(1.0, 800)
    sigma = math.sqrt(LOOK_SIGNIFICANCE * (1 - LOOK_SIGNIFICANCE) / 800)
    assert 0.0 < rates.get("REJECTED", 0.0) < LOOK_SIGNIFICANCE + 3.5 * sigma
    assert rates.get("APPROVED", 0.0) == 0.0


def test_a_model_well_inside_is_approved() -> None:
    rates = verdict_rates(-0.5, 200)
    assert rates.get("REJECTED", 0.0) == 0.0
    assert rates["APPROVED"] > 0.95


def test_a_model_well_beyond_is_rejected() -> None:
    assert verdict_rates(2.5, 200)["REJECTED"] > 0.98


def test_three_looks_err_no_more_than_one_verdict_may() -> None:
    """A true value on the bound, looked at with 8, 16 and 32 samples (3.5 sigma above 5 %)."""
    rng = np.random.default_rng(5)
    rows = policy(criterion("mean", high=1.0))
    rejected = 0
    n_seeds = 600
    for _ in range(n_seeds):
        sample = rng.normal(1.0, 0.5, 32)
        rejected += any(
            judge(rows, [from_sample(sample[:n])], SCOPE, dtype="float32").name == "REJECTED"
            for n in (8, 16, 32)
        )
    rate = rejected / n_seeds
    assert rate < SIGNIFICANCE + 3.5 * math.sqrt(SIGNIFICANCE * (1 - SIGNIFICANCE) / n_seeds)
    assert rejected > 0


def test_a_sampled_finding_is_never_both_and_never_contradicts_its_interval() -> None:
    rng = np.random.default_rng(6)
    for _ in range(300):
        low, high = sorted(rng.normal(size=2))
        m = normal(rng.normal(), abs(rng.normal()) * 0.3)
        assert m.ci_low is not None
        assert m.ci_high is not None
        bounds = [(low, high), (None, high), (low, None)][rng.integers(3)]
        found = status(criterion("mean", low=bounds[0], high=bounds[1]), m)
        inside = (bounds[0] is None or bounds[0] <= m.ci_low) and (
            bounds[1] is None or m.ci_high <= bounds[1]
        )
        assert (found == "pass") is bool(inside)
        if found == "fail":
            assert m.value is not None
            assert (bounds[1] is not None and m.value > bounds[1]) or (
                bounds[0] is not None and m.value < bounds[0]
            )


def test_families_of_reject_and_limit_are_adjusted_apart() -> None:
    """One reject criterion among nine limits: p = 0.01 is significant alone, not among ten."""
    limits = [criterion("mean", "limit", high=1.0, name=f"l{k}", systems=("b",)) for k in range(9)]
    reject = criterion("mean", high=1.0, systems=("a",))
    value = 1.0 + float(scipy.stats.norm.isf(0.01)) * 0.1
    measurements = [
        normal(value, 0.1, where=Where(system="a")),
        normal(value, 0.1, where=Where(system="b")),
    ]
    found = judge(policy(reject, *limits), measurements, SCOPE, dtype="float32").findings
    assert found[0].status == "fail"
    assert found[0].p_value == pytest.approx(0.01)
    assert {f.status for f in found[1:]} == {"undecided"}
    assert found[1].p_value == pytest.approx(0.09)
    assert found[1].cause.startswith("the interval reaches across the bound")
    surer = normal(1.0 + float(scipy.stats.norm.isf(0.005)) * 0.1, 0.1, where=Where(system="b"))
    found = judge(policy(*limits), [surer], SCOPE, dtype="float32").findings
    assert {f.status for f in found} == {"undecided"}
    assert found[0].cause.startswith("beyond the bound, but not surely so among 9 criteria")


# --------------------------------------------------------------------- kinds


def test_a_deterministic_value_is_in_its_closed_bound_or_not() -> None:
    rows = criterion("exact", low=-1.0, high=1.0)
    assert status(rows, exact(1.0)) == "pass"
    assert status(rows, exact(-1.0)) == "pass"
    assert status(rows, exact(np.nextafter(1.0, 2.0))) == "fail"
    assert status(rows, exact(-1.5)) == "fail"


def test_a_count_fails_at_the_first_event_and_shows_its_exposure() -> None:
    rows = criterion("events", high=0.0)
    assert status(rows, events(1.0)) == "fail"
    found = one(judge(policy(rows), [events(0.0)], SCOPE, dtype="float32"))
    assert found.status == "pass"
    assert found.exposure_ps == 16.0
    assert found.ci_high == 4.09
    assert found.cause == "none in 16 ps: fewer than 2.6e+02 per ns"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("severity", ["reject", "limit"])
def test_a_value_that_is_not_finite_fails_with_its_cause(value: float, severity: str) -> None:
    for m in (
        dataclasses.replace(exact(value), cause="forces overflow"),
        dataclasses.replace(normal(value, 0.1), cause="forces overflow"),
        dataclasses.replace(events(value), cause="forces overflow"),
    ):
        high = 0.0 if m.kind == "count" else 1.0
        rows = criterion(m.name, severity, high=high)
        found = one(judge(policy(rows), [m], SCOPE, dtype="float32"))
        assert found.status == "fail"
        assert found.cause == f"the value is {value}: forces overflow"


@pytest.mark.parametrize(
    "broken_interval",
    [
        {"ci_low": None, "ci_high": None, "standard_error": None, "dof": None},
        {"ci_low": math.nan, "ci_high": math.nan, "standard_error": math.nan, "dof": 0.0},
    ],
)
@pytest.mark.parametrize("value", [0.5, 50.0])
def test_a_sample_without_an_interval_decides_nothing(
    broken_interval: dict[str, float | None], value: float
) -> None:
    m = dataclasses.replace(normal(value, 0.1), **broken_interval)  # type: ignore[arg-type]
    assert status(criterion("mean", high=1.0), m) == "undecided"


def test_an_interval_without_a_standard_error_is_judged_by_its_width() -> None:
    """The interval of a median: its half-width is taken for that of a normal mean."""
    whole = normal(1.5, 0.1)
    bare = dataclasses.replace(whole, standard_error=None, dof=None)
    rows = policy(criterion("mean", high=1.0))
    p_values = [one(judge(rows, [m], SCOPE, dtype="float32")).p_value for m in (whole, bare)]
    assert p_values[0] == pytest.approx(p_values[1], rel=1e-6)


def test_info_never_changes_the_verdict() -> None:
    good = judge(policy(criterion("exact", high=1.0)), [exact(0.5)], SCOPE, dtype="float32")
    note = Measurement("note", "info", 1e9, "MiB", None, None, 1, WATER)
    rows = policy(
        criterion("exact", high=1.0),
        criterion("note", "info", high=1.0),
        criterion("mean", "info", high=1.0),
        criterion("slope", "info", high=1.0),
        criterion("events", "info"),
    )
    bad = judge(rows, [exact(0.5), note, normal(99.0, 0.1)], SCOPE, dtype="float32")
    assert [f.status for f in bad.findings] == [
        "pass",
        "fail",
        "fail",
        "not-measured",
        "not-measured",
    ]
    assert bad.name == good.name == "APPROVED"


# ------------------------------------------------------------------- verdict


def finding(severity: str, status: str) -> Finding:
    return Finding(
        "p", "c", "m", None, None, None, status, None, None, "1", None, None, "", severity, "",  # type: ignore
        Where(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("findings", "verdict", "code"),
    [
        ([("reject", "pass"), ("limit", "pass")], "APPROVED", 0),
        ([("reject", "pass"), ("limit", "not-applicable"), ("info", "fail")], "APPROVED", 0),
        ([("reject", "fail"), ("limit", "fail"), ("limit", "undecided")], "REJECTED", 1),
        ([("reject", "undecided"), ("limit", "fail")], "NOT RECOMMENDED", 1),
        ([("reject", "pass"), ("limit", "undecided")], "UNDECIDED", 3),
        ([("reject", "not-measured"), ("limit", "pass")], "UNDECIDED", 3),
        ([("reject", "not-applicable")], "UNDECIDED", 3),
        ([("info", "pass")], "UNDECIDED", 3),
        ([], "UNDECIDED", 3),
    ],
)
def test_verdict_and_exit_code_follow_the_rules(
    findings: list[tuple[str, str]], verdict: str, code: int
) -> None:
    found = combine(finding(*item) for item in findings)
    assert found == verdict
    assert exit_code(found) == code


def test_a_criterion_without_a_measurement_is_not_measured() -> None:
    verdict = judge(policy(criterion("exact", high=1.0)), [], SCOPE, dtype="float32")
    assert one(verdict).status == "not-measured"
    assert one(verdict).kind == "deterministic"
    assert verdict.name == "UNDECIDED"


def test_what_was_planned_for_one_system_and_is_missing_there_is_not_measured() -> None:
    methane = Where(system="methane")
    planned = [Planned("exact", Where(system="water")), Planned("exact", methane)]
    rows = policy(criterion("exact", high=1.0))
    verdict = judge(rows, [exact(0.5)], SCOPE, planned=planned, dtype="float32")
    assert [(f.system, f.status) for f in verdict.findings] == [
        ("water", "pass"),
        ("methane", "not-measured"),
    ]
    assert verdict.name == "UNDECIDED"
    both = [exact(0.5), exact(0.5, dataclasses.replace(methane, frame=3, atoms=(1,)))]
    assert judge(rows, both, SCOPE, planned=planned, dtype="float32").name == "APPROVED"


def test_a_planned_run_that_was_not_measured_is_found_beside_one_that_was() -> None:
    other = dataclasses.replace(WATER, run="water-nve-500K-0.5fs-2ps-x8", temperature_K=500.0)
    rows = policy(criterion("events", high=0.0))
    planned = [Planned("events", WATER), Planned("events", other)]
    verdict = judge(rows, [events(0.0)], SCOPE, planned=planned, dtype="float32")
    assert [f.status for f in verdict.findings] == ["pass", "not-measured"]
    assert verdict.findings[1].run == other.run


def test_a_measurement_without_meaning_is_not_applicable_with_its_reason() -> None:
    none = Measurement.inapplicable("mean", "sampled", "%", Where(system="x"), "no labels")
    rows = policy(criterion("mean", high=1.0), criterion("exact", high=1.0))
    planned = [Planned("mean", Where(system="x"))]
    verdict = judge(rows, [none, exact(0.0)], SCOPE, planned=planned, dtype="float32")
    assert verdict.findings[0].status == "not-applicable"
    assert verdict.findings[0].cause == "no labels"
    assert verdict.name == "APPROVED"


def test_a_bound_for_another_dtype_or_system_is_not_applicable() -> None:
    rows = policy(
        criterion("exact", high=1.0, name="32", dtypes=("float32",)),
        criterion("exact", high=0.1, name="64", dtypes=("float64",)),
        criterion("exact", high=0.1, name="ice", systems=("ice",)),
    )
    verdict = judge(rows, [exact(0.5)], SCOPE, dtype="float32")
    assert [f.status for f in verdict.findings] == ["pass", "not-applicable", "not-applicable"]
    assert verdict.findings[1].cause == "for float64 potentials; this one is float32"
    assert judge(rows, [exact(0.5)], SCOPE, dtype="float64").name == "REJECTED"


def test_a_bound_for_long_runs_looks_at_long_runs_only() -> None:
    rows = policy(criterion("events", high=0.0, min_length_ps=10.0))
    short = judge(rows, [events(1.0)], SCOPE, dtype="float32")
    assert one(short).status == "not-measured"
    assert one(short).cause == "no run of 10 ps or longer"
    long = dataclasses.replace(WATER, run="long", length_ps=10.0)
    crash = dataclasses.replace(events(1.0), where=long)
    assert judge(rows, [crash, events(0.0)], SCOPE, dtype="float32").name == "REJECTED"
    nameless = dataclasses.replace(
        events(1.0), where=dataclasses.replace(WATER, run="r", length_ps=None)
    )
    with pytest.raises(AnalysisError, match="nothing tells the length of run 'r'"):
        judge(rows, [nameless], SCOPE, dtype="float32")


def test_a_temperature_series_needs_every_temperature() -> None:
    rows = policy(criterion("events", high=0.0, temperatures_K=(100.0, 300.0)))
    assert [
        (f.temperature_K, f.status)
        for f in judge(rows, [events(0.0)], SCOPE, dtype="float32").findings
    ] == [(300.0, "pass"), (100.0, "not-measured")]
    cold = dataclasses.replace(events(0.0), where=dataclasses.replace(WATER, temperature_K=100.0))
    assert judge(rows, [events(0.0), cold], SCOPE, dtype="float32").name == "APPROVED"


def test_a_gap_that_was_planned_is_told_once() -> None:
    hot = dataclasses.replace(WATER, run="water-nve-500K-0.5fs-2ps-x8", temperature_K=500.0)
    rows = policy(criterion("events", high=0.0, temperatures_K=(300.0, 500.0), min_systems=3))
    planned = [Planned("events", WATER), Planned("events", hot)]
    verdict = judge(rows, [events(0.0)], SCOPE, planned=planned, dtype="float32")
    assert [(f.temperature_K, f.status) for f in verdict.findings] == [
        (300.0, "pass"),
        (500.0, "not-measured"),
    ]


def test_three_molecules_are_asked_for_unless_the_user_chose() -> None:
    rows = policy(criterion("events", high=0.0, min_systems=3))
    assert judge(rows, [events(0.0)], SCOPE, dtype="float32").name == "UNDECIDED"
    chosen = Scope("quick", chosen_systems=("water",))
    verdict = judge(rows, [events(0.0)], chosen, dtype="float32")
    assert verdict.name == "APPROVED"
    assert "chosen by hand: water" in verdict.findings[1].cause


def test_what_the_profile_excludes_is_not_applicable_and_says_so() -> None:
    rows = policy(criterion("exact", high=1.0), criterion("events", high=0.0, name="long"))
    scope = Scope("quick", {"p": {"long": "the longest run is 2 ps"}})
    verdict = judge(rows, [exact(0.0)], scope, dtype="float32")
    assert verdict.name == "APPROVED"
    assert verdict.findings[1].cause == "out of the scope of profile quick: the longest run is 2 ps"
    with pytest.raises(PolicyError, match="puts absent out of scope"):
        judge(rows, [], Scope("quick", {"p": {"absent": "x"}}), dtype="float32")


def test_a_measurement_unlike_its_declaration_is_a_broken_check() -> None:
    rows = policy(criterion("exact", high=1.0))
    for wrong in ({"unit": "eV"}, {"kind": "sampled"}):
        with pytest.raises(AnalysisError, match="mend the check"):
            judge(rows, [dataclasses.replace(exact(0.0), **wrong)], SCOPE, dtype="float32")  # type: ignore


def test_runs_to_extend_are_the_undecided_ones() -> None:
    verdicts = judge_all(unclear())
    assert undecided_runs(verdicts.values()) == {"alanine-nve-300K-0.5fs-2ps-x8"}
    assert undecided_runs(judge_all(sound()).values()) == frozenset()
    rejected = replaced(unclear(), count("stability.crashes", 1, WATER))
    assert undecided_runs(judge_all(rejected).values()) == frozenset()


# ------------------------------------------------------------ whole campaigns


def test_three_made_up_models_get_their_verdicts() -> None:
    assert {k: v.name for k, v in judge_all(sound()).items()} == {
        "strict": "APPROVED",
        "m6": "APPROVED",
    }
    assert judge_all(broken())["strict"].name == "REJECTED"
    assert judge_all(unclear())["strict"].name == "UNDECIDED"
    assert judge_all(sound("standard"))["m6"].name == "APPROVED"
    slow = replaced(sound(), sampled("cost.step_time", 14.0, 0.1, Where(system="water")))
    assert judge_all(slow)["m6"].name == "NOT RECOMMENDED"
    assert judge_all(slow)["strict"].name == "APPROVED"


def test_standard_under_m6_misses_its_series_when_a_temperature_is_left_out() -> None:
    file = sound("standard")
    without = tuple(m for m in file.measurements if m.where.temperature_K != 500.0)
    planned = tuple(p for p in file.planned if p.where.temperature_K != 500.0)
    verdict = judge_all(dataclasses.replace(file, measurements=without, planned=planned))["m6"]
    assert verdict.name == "UNDECIDED"
    open_ = [f for f in verdict.findings if f.status == "not-measured"]
    assert [(f.criterion, f.cause) for f in open_] == [("temperature-series", "no run at 500 K")]


def test_one_finding_or_more_for_every_criterion() -> None:
    for file in (sound(), broken(), unclear()):
        for verdict in judge_all(file).values():
            found = {f.criterion for f in verdict.findings}
            assert found == {f.criterion for f in judge_all(sound())[verdict.policy].findings}


def test_measurements_survive_their_file_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "measurements.json"
    for file in (sound(), broken(), unclear()):
        file.write(path)
        json.loads(path.read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity
        again = MeasurementFile.read(path)
        assert json.dumps(again.to_json()) == json.dumps(file.to_json())
        assert repr(judge_all(again)) == repr(judge_all(file))


def test_a_file_without_a_scope_is_judged_in_its_profiles_scope(tmp_path: Path) -> None:
    path = tmp_path / "measurements.json"
    content = sound().to_json()
    del content["scope"]
    path.write_text(json.dumps(content))
    assert MeasurementFile.read(path).scope == sound().scope


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1}'])
def test_a_file_that_holds_no_measurements_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "measurements.json"
    path.write_text(text)
    with pytest.raises(InputError, match="is no measurement file of schema 1"):
        MeasurementFile.read(path)
    with pytest.raises(InputError, match="no measurements at"):
        MeasurementFile.read(tmp_path / "absent.json")


def test_a_users_policy_may_not_take_the_name_of_another(tmp_path: Path) -> None:
    path = tmp_path / "m6.toml"
    path.write_text("include_defaults = true")
    with pytest.raises(PolicyError, match="two policies are named 'm6'"):
        judge_all(sound(), ["strict", "m6", path])


def test_judging_and_reporting_need_neither_torch_nor_openmm(tmp_path: Path) -> None:
    broken().write(tmp_path / "measurements.json")
    program = f"""
import sys
from pathlib import Path

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"torch", "openmm", "openmmtorch", "mdtraj", "rdkit"}}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from omm_mlff.verdict.judge import judge_all
from omm_mlff.verdict.measurement_file import MeasurementFile
from omm_mlff.report import Judged, write_reports
from omm_mlff.report.console import show

folder = Path({str(tmp_path)!r})
file = MeasurementFile.read(folder / "measurements.json")
judged = Judged(file.card, file.scope.profile, "strict", judge_all(file), file.provenance)
show(judged, write_reports(judged, folder))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "REJECTED  tiny" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "findings.csv",
        "junit.xml",
        "measurements.json",
        "report.md",
        "verdict.json",
    ]
