"""The judge's arithmetic, with numbers by hand and by scipy."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from judged_models import judged, replaced, sampled, sound, unclear
from scipy import stats

from omm_mlff.errors import PolicyError
from omm_mlff.schema import CONFIDENCE, Declaration, Finding, Where
from omm_mlff.verdict.judge import (
    LOOK_SIGNIFICANCE,
    bound_in_words,
    combine,
    error_exponent,
    exit_code,
    extension_needed,
    holm,
    judge_all,
    outside_p_value,
)


def test_holms_adjustment_is_his_own_example() -> None:
    """Holm (1979): the k-th smallest of n is multiplied by n - k + 1, and never falls back."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == pytest.approx([0.2])
    assert holm([]).shape == (0,)
    p = np.random.default_rng(0).random(9) ** 3
    assert holm(p[::-1]) == pytest.approx(holm(p)[::-1])


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_holms_adjusted_values_reject_what_his_procedure_rejects(alpha: float) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        p = rng.random(6) ** 4
        rejected = np.zeros(6, dtype=bool)
        for k, index in enumerate(np.argsort(p)):
            if p[index] * (6 - k) >= alpha:
                break
            rejected[index] = True
        assert (holm(p) < alpha).tolist() == rejected.tolist()


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [(0.5, None, 1.0), (1.0, None, 1.0), (2.0, 1.0, None), (1.5, 1.0, 2.0)],
)
def test_a_value_inside_its_bound_is_beyond_it_by_nothing(
    value: float, low: float | None, high: float | None
) -> None:
    assert outside_p_value(value, 0.1, 7.0, low, high) == 1.0


@pytest.mark.parametrize(("value", "low", "high"), [(1.3, None, 1.0), (0.7, 1.0, None)])
def test_beyond_one_bound_it_is_students_tail(
    value: float, low: float | None, high: float | None
) -> None:
    found = outside_p_value(value, 0.1, 7.0, low, high)
    assert found == pytest.approx(stats.t.sf(3.0, 7.0))


@pytest.mark.parametrize("value", [1.3, -0.3])
def test_beyond_one_of_two_bounds_the_other_ones_tail_is_added(value: float) -> None:
    found = outside_p_value(value, 0.5, 7.0, 0.0, 1.0)
    assert found == pytest.approx(stats.t.sf(0.6, 7.0) + stats.t.sf(2.6, 7.0))
    assert outside_p_value(0.0 + 1e-9, 50.0, 7.0, 0.0, 0.0) == pytest.approx(1.0)


def test_a_value_without_error_is_beyond_for_certain() -> None:
    assert outside_p_value(1.1, 0.0, 7.0, None, 1.0) == 0.0
    assert outside_p_value(1.1, 0.0, 7.0, 1.0, None) == 1.0


@pytest.mark.parametrize("exponent", [0.5, 1.5])
def test_a_sample_so_much_larger_has_an_interval_that_ends_on_the_bound(exponent: float) -> None:
    """Inside: with the error of the larger sample, value plus half-width is the bound."""
    factor = extension_needed(0.7, 0.4, 9.0, None, 1.0, n_criteria=5, exponent=exponent)
    error = 0.4 * factor**-exponent
    assert 0.7 + stats.t.ppf(0.5 + 0.5 * CONFIDENCE, 9.0) * error == pytest.approx(1.0)
    below = extension_needed(1.3, 0.4, 9.0, 1.0, None, n_criteria=5, exponent=exponent)
    assert below == pytest.approx(factor)


@pytest.mark.parametrize("n_criteria", [1, 8])
def test_outside_it_is_the_sample_whose_p_value_is_the_strictest_of_holms(n_criteria: int) -> None:
    factor = extension_needed(1.2, 0.4, 9.0, None, 1.0, n_criteria=n_criteria, exponent=0.5)
    p_value = outside_p_value(1.2, 0.4 * factor**-0.5, 9.0, None, 1.0)
    assert n_criteria * p_value == pytest.approx(LOOK_SIGNIFICANCE)


def test_no_smaller_sample_is_asked_for_and_none_decides_a_value_on_the_bound() -> None:
    assert extension_needed(0.0, 0.01, 9.0, None, 1.0, n_criteria=1, exponent=0.5) == 1.0
    for low, high in ((None, 1.0), (1.0, None), (0.0, 1.0), (1.0, 2.0)):
        assert extension_needed(1.0, 0.1, 9.0, low, high, n_criteria=1, exponent=0.5) == math.inf


def test_the_nearer_of_two_bounds_counts() -> None:
    near = extension_needed(0.9, 0.4, 9.0, 0.0, 1.0, n_criteria=1, exponent=0.5)
    assert near == extension_needed(0.9, 0.4, 9.0, None, 1.0, n_criteria=1, exponent=0.5)
    assert near > extension_needed(0.6, 0.4, 9.0, 0.0, 1.0, n_criteria=1, exponent=0.5)


def test_bounds_in_words() -> None:
    assert bound_in_words(0.1, 2.0) == "0.1 to 2"
    assert bound_in_words(None, 0.2) == "<= 0.2"
    assert bound_in_words(300.0, None) == ">= 300"
    assert bound_in_words(0.0, None) == ">= 0"
    assert bound_in_words(None, 0.0) == "<= 0"
    assert bound_in_words(None, None) == ""


@pytest.mark.parametrize(
    ("unit", "own", "exponent"),
    [
        ("meV/atom/ps", None, 1.5),
        ("K/ns", None, 1.5),
        ("eV/angstrom", None, 0.5),
        ("ps", None, 0.5),
        ("meV/atom/ps", 0.0, 0.0),
        ("%", 1.0, 1.0),
    ],
)
def test_slopes_sharpen_with_the_power_three_halves_unless_declared_otherwise(
    unit: str, own: float | None, exponent: float
) -> None:
    row = Declaration("a.b", "sampled", unit, "m", "a", error_exponent=own)
    assert error_exponent(row) == exponent


def finding(severity: str, status: str) -> Finding:
    return Finding(
        policy="p",
        criterion="c",
        measurement="a.b",
        system=None,
        run=None,
        temperature_K=None,
        status=status,  # type: ignore[arg-type]
        kind="sampled",
        value=1.0,
        unit="1",
        ci_low=None,
        ci_high=None,
        bound="<= 1",
        severity=severity,  # type: ignore[arg-type]
        cause="",
        where=Where(),
    )


ROWS = list(
    product(
        ("reject", "limit", "info"),
        ("pass", "fail", "undecided", "not-measured", "not-applicable"),
    )
)


def by_the_book(rows: tuple[tuple[str, str], ...]) -> str:
    """DESIGN, section 4, read as it stands."""
    if ("reject", "fail") in rows:
        return "REJECTED"
    if ("limit", "fail") in rows:
        return "NOT RECOMMENDED"
    counting = [status for severity, status in rows if severity != "info"]
    if "undecided" in counting or "not-measured" in counting or "pass" not in counting:
        return "UNDECIDED"
    return "APPROVED"


def test_a_verdict_is_the_one_of_the_book_for_every_three_findings() -> None:
    for rows in product(ROWS, repeat=3):
        assert combine(finding(*row) for row in rows) == by_the_book(rows), rows
    assert combine([]) == "UNDECIDED"


def test_exit_codes_are_those_of_design() -> None:
    codes = {"APPROVED": 0, "REJECTED": 1, "NOT RECOMMENDED": 1, "UNDECIDED": 3}
    for name, code in codes.items():
        assert exit_code(name) == code  # type: ignore[arg-type]


def test_one_policy_that_is_named_twice_is_judged_once_and_two_of_one_name_are_refused(
    tmp_path,
) -> None:
    assert list(judge_all(sound(), ["strict", "strict"])) == ["strict"]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.toml").write_text(
            'title = "mine"\ninclude_defaults = false\n\n[[criterion]]\nname = "drift"\n'
            'measurement = "nve.drift"\nhigh = 1.0\nunit = "meV/atom/ps"\nseverity = "limit"\n'
            'source = "a test"\n'
        )
    with pytest.raises(PolicyError, match="two policies are named 'mine'"):
        judge_all(sound(), [tmp_path / "a" / "mine.toml", tmp_path / "b" / "mine.toml"])


def test_the_p_values_of_a_family_are_adjusted_together_and_those_of_info_are_not() -> None:
    """A drift of 0.15 +- 0.01 meV/atom/ps lies 5 standard errors beyond the reject bound of 0.1."""
    where = Where(system="water", run="water-nve-300K-0.5fs-2ps-x8", temperature_K=300.0)
    result = judged(replaced(sound(), sampled("nve.drift", 0.15, 0.01, where)))
    rows = {
        row.severity: row
        for row in result.verdict.findings
        if row.criterion.startswith("nve.drift-") and row.run == where.run
    }
    assert rows["reject"].status == "fail"
    family = [
        row
        for row in result.verdict.findings
        if row.severity == "reject" and row.kind == "sampled" and row.p_value is not None
    ]
    assert len(family) >= 1
    plain = outside_p_value(0.15, 0.01, 7.0, -0.1, 0.1)
    assert rows["reject"].p_value == pytest.approx(min(1.0, len(family) * plain), rel=1e-6)
    info = outside_p_value(0.15, 0.01, 7.0, -0.001, 0.001)
    assert rows["info"].p_value == pytest.approx(info, rel=1e-6)


def test_a_run_as_much_longer_as_is_said_would_decide() -> None:
    """`unclear` has runs whose interval reaches across a bound: what is missing decides them."""
    found = 0
    for row in judged(unclear()).verdict.findings:
        if row.status == "undecided" and row.more_ps is not None:
            found += 1
            assert row.more_ps > 0.0
            assert f"{row.more_ps:.3g} ps more" in row.cause
    assert found > 0
