"""Judges measurements under a policy.

How a criterion is decided depends on the kind of its measurement (DESIGN, section 4):

deterministic : the value lies in the bound, or not.
count : failed at the first event, passed at none.
sampled : passed when the whole interval lies in the bound; failed when the p-value of lying
    outside it, adjusted by Holm's method over all sampled criteria of its severity in this
    verdict, is below `LOOK_SIGNIFICANCE`; else undecided. The p-value is that of Student's t,
    one-sided, toward the bound that is violated.

A value that is not finite lies in no bound. A criterion in the profile's scope with no
measurement behind it is `not-measured`, never passed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from omm_mlff.errors import AnalysisError, PolicyError
from omm_mlff.schema import (
    CONFIDENCE,
    MAX_LOOKS,
    SIGNIFICANCE,
    Criterion,
    Declaration,
    Finding,
    FindingStatus,
    Measurement,
    Reason,
    Verdict,
    VerdictName,
    Where,
)
from omm_mlff.verdict.measurement_file import MeasurementFile, Planned
from omm_mlff.verdict.policies import Policy, load_policies
from omm_mlff.verdict.profiles import Scope

LOOK_SIGNIFICANCE = SIGNIFICANCE / MAX_LOOKS
"""Significance of one look: three looks share the family-wise error of the verdict."""

POLICIES = ("strict", "m6")
"""Both are always judged."""

_EXIT_CODES: Mapping[VerdictName, int] = {
    "APPROVED": 0,
    "NOT RECOMMENDED": 1,
    "REJECTED": 1,
    "UNDECIDED": 3,
}


def judge_all(
    measured: MeasurementFile, policies: Iterable[str | Path | Policy] = POLICIES
) -> dict[str, Verdict]:
    """The verdicts by name of the policy, in the order given.

    Parameters
    ----------
    policies : loaded ones are taken as they are; others are read from their files

    Raises
    ------
    PolicyError : a policy contradicts itself or the measurements, or two have one name
    """
    loaded = load_policies(policies, measured.declarations, measured.default_criteria)
    return {
        policy.name: judge(
            policy,
            measured.measurements,
            measured.scope,
            planned=measured.planned,
            dtype=measured.card.dtype,
        )
        for policy in loaded
    }


def judge(
    policy: Policy,
    measurements: Sequence[Measurement],
    scope: Scope,
    *,
    planned: Sequence[Planned] = (),
    dtype: str,
) -> Verdict:
    """The verdict on a potential under one policy.

    Parameters
    ----------
    scope : what of the policy the profile can decide
    planned : what the campaign expected; whatever of it is missing is a finding
    dtype : of the potential

    Raises
    ------
    PolicyError : the profile excludes a criterion that the policy does not have
    AnalysisError : a measurement differs from its declaration in unit or kind
    """
    check_scope(policy, scope)
    findings: list[Finding] = []
    sampled: list[tuple[int, Measurement, Criterion]] = []
    for criterion in policy.criteria:
        excluded = scope.excluded.get(policy.name, {}).get(criterion.name)
        if excluded:
            reason = f"out of the scope of profile {scope.profile}: {excluded}"
            absent = _absent(policy, criterion, "not-applicable", reason, Reason.OUT_OF_SCOPE)
            findings.append(absent)
            continue
        if criterion.dtypes and dtype not in criterion.dtypes:
            reason = f"for {' and '.join(criterion.dtypes)} potentials; this one is {dtype}"
            absent = _absent(policy, criterion, "not-applicable", reason, Reason.OTHER_DTYPE)
            findings.append(absent)
            continue
        for measurement in _concerning(policy, criterion, measurements):
            if _needs_statistics(measurement):
                sampled.append((len(findings), measurement, criterion))
            findings.append(_exact(policy, criterion, measurement))
        findings += _gaps(policy, criterion, measurements, planned, scope)

    for severity in ("reject", "limit", "info"):
        family = [item for item in sampled if item[2].severity == severity]
        p_values = [outside_p_value(*_bounded(m, c)) for _, m, c in family]
        adjusted = holm(p_values) if severity != "info" else np.array(p_values)
        for (index, measurement, criterion), p_value in zip(family, adjusted, strict=True):
            findings[index] = _decided(
                findings[index],
                measurement,
                criterion,
                p_value=float(p_value),
                n_family=len(family),
                exponent=error_exponent(policy.declared[measurement.name]),
            )
    return Verdict(policy.name, combine(findings), tuple(findings))


def combine(findings: Iterable[Finding]) -> VerdictName:
    """The verdict that a set of findings amounts to.

    Without a single criterion passed there is nothing to approve: UNDECIDED.
    """
    deciding = {(f.severity, f.status) for f in findings if f.severity != "info"}
    if ("reject", "fail") in deciding:
        return "REJECTED"
    if ("limit", "fail") in deciding:
        return "NOT RECOMMENDED"
    statuses = {status for _, status in deciding}
    if statuses & {"undecided", "not-measured"} or "pass" not in statuses:
        return "UNDECIDED"
    return "APPROVED"


def exit_code(verdict: VerdictName) -> int:
    """0 for APPROVED, 1 for REJECTED and NOT RECOMMENDED, 3 for UNDECIDED."""
    return _EXIT_CODES[verdict]


def undecided_runs(verdicts: Iterable[Verdict]) -> frozenset[str]:
    """Names of the runs that a longer trajectory could decide.

    None of a verdict that is REJECTED, which no longer run can change, and none for a value that
    a longer run does not sharpen or that has no interval.
    """
    return frozenset(
        finding.run
        for verdict in verdicts
        if verdict.name != "REJECTED"
        for finding in verdict.findings
        if finding.status == "undecided"
        and finding.severity != "info"
        and finding.run is not None
        and finding.more_ps is not None
    )


def check_scope(policy: Policy, scope: Scope) -> None:
    """Refuses a profile that excludes a criterion which the policy does not have.

    Raises
    ------
    PolicyError
    """
    known = {criterion.name for criterion in policy.criteria}
    unknown = sorted(set(scope.excluded.get(policy.name, {})) - known)
    if unknown:
        raise PolicyError(
            f"profile {scope.profile} puts {', '.join(unknown)} out of scope, which policy "
            f"{policy.name} does not have (it has: {', '.join(sorted(known))})"
        )


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's adjusted p-values, in the order given.

    Parameters
    ----------
    p_values : shape (n,), each in [0, 1]

    Returns
    -------
    shape (n,): below alpha where Holm's step-down procedure rejects at alpha

    References
    ----------
    Holm, Scand. J. Statist. 6, 65 (1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def outside_p_value(
    value: float, standard_error: float, dof: float, low: float | None, high: float | None
) -> float:
    """Probability of a value this far outside a bound, if the true one lies inside it.

    Student's t toward the violated bound, for a true value on that bound. Where both sides are
    bounded, the chance of leaving by the other side as far is added: it matters only to a bound
    as narrow as the standard error, and without it the test would err too often there.

    Returns
    -------
    1 for a value inside the bound
    """
    above = value - high if high is not None else -math.inf
    below = low - value if low is not None else -math.inf
    distance = max(above, below)
    if distance <= 0.0:
        return 1.0
    if standard_error == 0.0:
        return 0.0
    t = distance / standard_error
    p = stdtr(dof, -t)
    if low is not None and high is not None:
        p += stdtr(dof, -(t + (high - low) / standard_error))
    return float(min(p, 1.0))


def extension_needed(
    value: float,
    standard_error: float,
    dof: float,
    low: float | None,
    high: float | None,
    *,
    n_criteria: int,
    exponent: float,
) -> float:
    """How many times the present sample would decide, were the value to stay where it is.

    The standard error falls with the sample's size N as N^-exponent: 1/2 for a mean, 3/2 for a
    slope over time (the variance of a fitted slope is 12 sigma^2 / (n T^2), with n ~ T). The
    error that decides is d / q, with d the distance to the nearest bound and q the quantile of
    Student's t: of the interval for a value inside the bound; of `LOOK_SIGNIFICANCE` over
    `n_criteria` (the strictest step of Holm's method) for one outside. Hence

        N' / N = (q s / d)^(1 / exponent)

    Returns
    -------
    1 or more; infinity for a value on the bound
    """
    distances = [abs(value - bound) for bound in (low, high) if bound is not None]
    distance = min(distances)
    if distance == 0.0:
        return math.inf
    inside = (low is None or low <= value) and (high is None or value <= high)
    tail = 0.5 * (1.0 - CONFIDENCE) if inside else LOOK_SIGNIFICANCE / n_criteria
    quantile = -float(stdtrit(dof, tail))
    return float(max(1.0, (quantile * standard_error / distance) ** (1.0 / exponent)))


def bound_in_words(low: float | None, high: float | None) -> str:
    """A bound for a person, such as "<= 0.2"; empty where there is none."""
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    if high is not None:
        return f"<= {high:g}"
    return f">= {low:g}" if low is not None else ""


def _concerning(
    policy: Policy, criterion: Criterion, measurements: Iterable[Measurement]
) -> list[Measurement]:
    declaration = policy.declared[criterion.measurement]
    found = []
    for measurement in measurements:
        if measurement.name != criterion.measurement or not _applies(criterion, measurement.where):
            continue
        if (measurement.unit, measurement.kind) != (declaration.unit, declaration.kind):
            raise AnalysisError(
                f"check {declaration.check} declares {declaration.name} as {declaration.kind} in "
                f"{declaration.unit!r} and measured it as {measurement.kind} in "
                f"{measurement.unit!r}; mend the check"
            )
        found.append(measurement)
    return found


def _applies(criterion: Criterion, where: Where) -> bool:
    if criterion.systems and where.system not in criterion.systems:
        return False
    if criterion.temperatures_K and not any(
        _at(where, temperature) for temperature in criterion.temperatures_K
    ):
        return False
    if criterion.min_length_ps is None:
        return True
    if where.run is None:
        return False
    if where.length_ps is None:
        raise AnalysisError(f"nothing tells the length of run {where.run!r}; mend the check")
    return where.length_ps >= criterion.min_length_ps * (1.0 - 1e-9)


def _at(where: Where, temperature_K: float) -> bool:
    return where.temperature_K is not None and math.isclose(
        where.temperature_K, temperature_K, rel_tol=1e-6
    )


def _gaps(
    policy: Policy,
    criterion: Criterion,
    measurements: Sequence[Measurement],
    planned: Sequence[Planned],
    scope: Scope,
) -> list[Finding]:
    """Findings for what a criterion asks for and nobody measured."""
    there = [
        m for m in measurements if m.name == criterion.measurement and _applies(criterion, m.where)
    ]
    wanted = [
        p
        for p in planned
        if p.measurement == criterion.measurement and _applies(criterion, p.where)
    ]
    gaps = [
        _absent(
            policy,
            criterion,
            "not-measured",
            "it was planned and no check measured it",
            Reason.MISSING,
            item.where,
        )
        for item in wanted
        if not any(item.covers(measurement) for measurement in there)
    ]
    if gaps:
        return gaps
    if not there:
        return [_absent(policy, criterion, *_why_absent(criterion, measurements, planned, scope))]
    for temperature in criterion.temperatures_K:
        if not any(_at(m.where, temperature) for m in there):
            reason = f"no run at {temperature:g} K"
            where = Where(temperature_K=temperature)
            gaps.append(_absent(policy, criterion, "not-measured", reason, Reason.NO_RUN, where))
    n_systems = len({m.where.system for m in there if m.value is not None})
    if criterion.min_systems and n_systems < criterion.min_systems:
        reason = f"measured on {n_systems} of the {criterion.min_systems} systems it asks for"
        status: FindingStatus = "not-measured"
        if scope.chosen_systems:
            status = "not-applicable"
            reason += f"; the systems were chosen by hand: {', '.join(scope.chosen_systems)}"
        gaps.append(_absent(policy, criterion, status, reason, Reason.TOO_FEW_SYSTEMS))
    return gaps


def _why_absent(
    criterion: Criterion,
    measurements: Sequence[Measurement],
    planned: Sequence[Planned],
    scope: Scope,
) -> tuple[FindingStatus, str, Reason]:
    if criterion.systems:
        present = {m.where.system for m in measurements} | {p.where.system for p in planned}
        if not present & set(criterion.systems):
            wanted = ", ".join(criterion.systems)
            reason = f"for {wanted} only, which is not validated here"
            return "not-applicable", reason, Reason.OTHER_SYSTEM
    if any(m.name == criterion.measurement for m in measurements):
        if criterion.min_length_ps is not None:
            reason = f"no run of {criterion.min_length_ps:g} ps or longer"
            return "not-measured", reason, Reason.NO_RUN
        if criterion.temperatures_K:
            listed = ", ".join(f"{item:g}" for item in criterion.temperatures_K)
            return "not-measured", f"no run at {listed} K", Reason.NO_RUN
        reason = f"not measured for {', '.join(criterion.systems)}"
        return "not-measured", reason, Reason.MISSING
    return "not-measured", f"no check measured {criterion.measurement}", Reason.MISSING


def _absent(
    policy: Policy,
    criterion: Criterion,
    status: FindingStatus,
    cause: str,
    reason: Reason,
    where: Where | None = None,
) -> Finding:
    where = where or Where()
    declaration = policy.declared[criterion.measurement]
    return Finding(
        policy=policy.name,
        criterion=criterion.name,
        measurement=criterion.measurement,
        system=where.system,
        run=where.run,
        temperature_K=where.temperature_K,
        status=status,
        kind=declaration.kind,
        value=None,
        unit=criterion.unit,
        ci_low=None,
        ci_high=None,
        bound=bound_in_words(criterion.low, criterion.high),
        severity=criterion.severity,
        cause=cause,
        where=where,
        low=criterion.low,
        high=criterion.high,
        source=criterion.source,
        check=declaration.check,
        reasons=(reason,),
    )


def _exact(policy: Policy, criterion: Criterion, measurement: Measurement) -> Finding:
    """The finding by the value alone; a sampled one is decided once its family is known."""
    value = measurement.value
    status: FindingStatus
    cause, reasons = measurement.cause, measurement.reasons
    if value is None:
        status, cause = "not-applicable", measurement.not_applicable
    elif not math.isfinite(value):
        status = "fail"
        if math.isnan(value) and Reason.NOT_FINITE not in reasons:
            reasons = (*reasons, Reason.NOT_FINITE)
        cause = f"the value is {value}" + (f": {cause}" if cause else ", which no bound admits")
    elif measurement.kind == "count":
        failed = value > 0 and bool(bound_in_words(criterion.low, criterion.high))
        status = "fail" if failed else "pass"
        cause = (cause or f"{value:g} events") if failed else _exposure(measurement)
    elif _within(value, value, criterion):
        status = "pass"
    else:
        status, cause = "fail", _beyond(measurement, criterion)
        reasons = (*reasons, Reason.BEYOND_BOUND)
    return Finding(
        policy=policy.name,
        criterion=criterion.name,
        measurement=measurement.name,
        system=measurement.where.system,
        run=measurement.where.run,
        temperature_K=measurement.where.temperature_K,
        status=status,
        kind=measurement.kind,
        value=value,
        unit=measurement.unit,
        ci_low=measurement.ci_low,
        ci_high=measurement.ci_high,
        bound=bound_in_words(criterion.low, criterion.high),
        severity=criterion.severity,
        cause=cause,
        where=measurement.where,
        low=criterion.low,
        high=criterion.high,
        source=criterion.source,
        n_samples=measurement.n_samples,
        exposure_ps=measurement.exposure_ps,
        check=policy.declared[measurement.name].check,
        reasons=reasons,
        note=measurement.cause,
    )


def _decided(
    finding: Finding,
    measurement: Measurement,
    criterion: Criterion,
    *,
    p_value: float,
    n_family: int,
    exponent: float,
) -> Finding:
    """The finding of a sampled measurement, its adjusted p-value being known."""
    assert measurement.value is not None
    low, high = measurement.ci_low, measurement.ci_high
    value, error, dof, lowest, highest = _bounded(measurement, criterion)
    if (
        low is not None and high is not None and _within(low, high, criterion)
    ) or not finding.bound:
        return dataclasses.replace(
            finding,
            status="pass",
            cause=measurement.cause,
            p_value=p_value,
            reasons=measurement.reasons,
        )
    if p_value < LOOK_SIGNIFICANCE:
        cause = _beyond(measurement, criterion)
        reasons = (*measurement.reasons, Reason.BEYOND_BOUND)
        return dataclasses.replace(
            finding, status="fail", cause=cause, p_value=p_value, reasons=reasons
        )
    if not math.isfinite(error):
        cause = "it has no interval" + (f": {measurement.cause}" if measurement.cause else "")
        reasons = (*measurement.reasons, Reason.NO_INTERVAL)
        return dataclasses.replace(finding, status="undecided", cause=cause, reasons=reasons)
    if outside_p_value(value, error, dof, lowest, highest) < 0.5 * (1.0 - CONFIDENCE):
        reason = Reason.NOT_SURELY
        uncertain = f"beyond the bound, but not surely so among {n_family} criteria"
    else:
        reason = Reason.ACROSS_BOUND
        uncertain = "the interval reaches across the bound"
    if _within(value, value, criterion) and low is not None and high is not None:
        # An interval need not be symmetric: what counts is its longer side.
        widest = max(high - value, value - low)
        error = max(error, widest / float(stdtrit(dof, 0.5 * (1.0 + CONFIDENCE))))
    run = measurement.where.run
    length = measurement.where.length_ps if run else None
    longer_helps = length is not None and exponent > 0.0
    factor = extension_needed(
        value,
        error,
        dof,
        lowest,
        highest,
        n_criteria=n_family,
        exponent=exponent if longer_helps else 0.5,
    )
    more_ps: float | None = None
    more_samples: int | None = None
    if not math.isfinite(factor):
        needed = "the value lies on the bound"
    elif longer_helps and length is not None:
        more_ps = (factor - 1.0) * length
        needed = f"{more_ps:.3g} ps more in each replica would decide"
    else:
        more_samples = math.ceil((factor - 1.0) * measurement.n_samples)
        what = ("replica" if run else "sample") + ("s" if more_samples > 1 else "")
        needed = f"{more_samples} more {what} would decide"
    return dataclasses.replace(
        finding,
        status="undecided",
        cause=f"{uncertain}; {needed}",
        p_value=p_value,
        more_ps=more_ps,
        more_samples=more_samples,
        reasons=(*measurement.reasons, reason),
    )


def error_exponent(declaration: Declaration) -> float:
    """The power of a run's length with which a measurement's standard error falls."""
    if declaration.error_exponent is not None:
        return declaration.error_exponent
    return 1.5 if declaration.unit.endswith(("/ps", "/ns")) else 0.5


def _needs_statistics(measurement: Measurement) -> bool:
    return (
        measurement.kind == "sampled"
        and measurement.value is not None
        and math.isfinite(measurement.value)
    )


def _bounded(
    measurement: Measurement, criterion: Criterion
) -> tuple[float, float, float, float | None, float | None]:
    """Value, standard error, degrees of freedom and bounds.

    A check whose interval rests on no standard error (that of a median) leaves it out: then the
    error is the half-width over the normal quantile of `CONFIDENCE`. Infinite where there is no
    interval either, so that nothing can be decided.
    """
    assert measurement.value is not None
    error, dof = measurement.standard_error, measurement.dof
    if error is None or dof is None:
        dof = math.inf
        error = math.inf
        if measurement.ci_low is not None and measurement.ci_high is not None:
            half_width = 0.5 * (measurement.ci_high - measurement.ci_low)
            error = half_width / float(stdtrit(math.inf, 0.5 * (1.0 + CONFIDENCE)))
    if not (math.isfinite(error) and error >= 0.0 and dof > 0.0):
        error, dof = math.inf, math.inf
    return measurement.value, error, dof, criterion.low, criterion.high


def _within(low: float, high: float, criterion: Criterion) -> bool:
    return (criterion.low is None or criterion.low <= low) and (
        criterion.high is None or high <= criterion.high
    )


def _beyond(measurement: Measurement, criterion: Criterion) -> str:
    assert measurement.value is not None
    unit = f" {measurement.unit}" if measurement.unit != "1" else ""
    if criterion.high is not None and measurement.value > criterion.high:
        text = f"{measurement.value:.3g}{unit} is above {criterion.high:g}"
    else:
        text = f"{measurement.value:.3g}{unit} is below {criterion.low:g}"
    return f"{text}; {measurement.cause}" if measurement.cause else text


def _exposure(measurement: Measurement) -> str:
    if measurement.exposure_ps is None or measurement.value:
        return measurement.cause
    limit = measurement.ci_high
    if limit is None:
        limit = -math.log1p(-CONFIDENCE)  # Poisson: no event seen of this many expected
    per_ns = 1000.0 * limit / measurement.exposure_ps if measurement.exposure_ps else math.inf
    return f"none in {measurement.exposure_ps:.4g} ps: fewer than {per_ns:.2g} per ns"
