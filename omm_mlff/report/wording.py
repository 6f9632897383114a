"""Says findings in words, the same ones in every report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from omm_mlff.schema import Cause, ExplainedFailure, Finding, Reason, Verdict

_URGENCY = {"fail": 0, "not-measured": 1, "undecided": 2, "pass": 3, "not-applicable": 4}
_WEIGHT = {"reject": 0, "limit": 1, "info": 2}
_PLAINNESS = {"count": 0, "deterministic": 1, "sampled": 2, "info": 3, None: 4}


def named(cause: Cause) -> str:
    """A cause in one line, with what shows it."""
    on = f" on {cause.system}" if cause.system else ""
    text = (
        f"{cause.slug} ({cause.severity}): {cause.sentence}; shown by {', '.join(cause.evidence)}"
    )
    return f"{text}{on}"


def happened(failure: ExplainedFailure) -> str:
    """What happened to a replica, and where it can be seen again."""
    also = f" ({failure.n_failed} replicas have symptoms)" if failure.n_failed > 1 else ""
    where = f"replay it with {failure.replay}" if failure.replay else f"see {failure.folder}"
    return f"{failure.run}, replica {failure.replica}: {failure.sentence}{also}; {where}"


def first_of_each_run(failures: Iterable[ExplainedFailure]) -> list[ExplainedFailure]:
    """The replica that failed first, of every run."""
    first: dict[str, ExplainedFailure] = {}
    for failure in failures:
        first.setdefault(failure.run, failure)
    return list(first.values())


def reason(verdict: Verdict) -> str:
    """One sentence: why the verdict is what it is."""
    if verdict.name in ("REJECTED", "NOT RECOMMENDED"):
        severity = "reject" if verdict.name == "REJECTED" else "limit"
        failed = [
            row
            for row in worst_by_criterion(verdict)
            if row.status == "fail" and row.severity == severity
        ]
        text = f"{label(failed[0])} fails {in_sentence(failed[0])}: {failed[0].cause}"
        if len(failed) > 1:
            verb = "fail" if len(failed) > 2 else "fails"
            text += f"; {', '.join(map(label, failed[1:]))} {verb} as well"
        return f"{text.rstrip('.')}."
    rows = [row for row in worst_by_criterion(verdict) if row.severity != "info"]
    if verdict.name == "APPROVED":
        passed = sum(row.status == "pass" for row in rows)
        excluded = [row.criterion for row in rows if out_of_scope(row)]
        text = f"All {passed} criteria that apply are met"
        if excluded:
            text += f"; not in this profile's scope: {', '.join(excluded)}"
        return f"{text}."
    open_rows = [row for row in rows if row.status in ("undecided", "not-measured")]
    if not open_rows:
        return "No criterion applies here, so nothing was decided."
    first = open_rows[0]
    state = "is undecided" if first.status == "undecided" else "is not measured"
    text = f"{label(first)} {state} {in_sentence(first)}: {first.cause}"
    others = list(dict.fromkeys(label(row) for row in open_rows if label(row) != label(first)))
    if others:
        text += f"; open as well: {', '.join(others)}"
    return f"{text.rstrip('.')}."


def worst_by_criterion(verdict: Verdict) -> list[Finding]:
    """One finding for each criterion: the worst; the most urgent criterion first."""
    worst: dict[str, Finding] = {}
    for finding in verdict.findings:
        known = worst.get(finding.criterion)
        if known is None or _badness(finding) < _badness(known):
            worst[finding.criterion] = finding
    return sorted(worst.values(), key=lambda f: (f.severity == "info", *urgency(f)))


def label(finding: Finding) -> str:
    """What a criterion is called beside its severity: its name, or what it measures."""
    named_after = finding.criterion.startswith(f"{finding.measurement}-")
    return finding.measurement if named_after else finding.criterion


def urgency(finding: Finding) -> tuple[int, int, int]:
    """Sorts failures before open questions before passes, reject before limit, events first."""
    return _URGENCY[finding.status], _WEIGHT[finding.severity], _PLAINNESS[finding.kind]


def out_of_scope(finding: Finding) -> bool:
    """Whether it was the profile that left the criterion out."""
    return finding.status == "not-applicable" and Reason.OUT_OF_SCOPE in finding.reasons


def not_applicable(findings: Iterable[Finding]) -> list[tuple[str, int]]:
    """The reasons why criteria do not apply, the most frequent first, with their counts."""
    return Counter(f.cause for f in findings if f.status == "not-applicable").most_common()


def place(finding: Finding) -> str:
    """Where the finding was made, such as "water 300 K"; empty for the model as a whole."""
    parts = [finding.system or ""]
    if finding.where.element:
        parts.append(finding.where.element)
    if finding.temperature_K is not None:
        parts.append(f"{finding.temperature_K:g} K")
    return " ".join(part for part in parts if part)


def exact_place(finding: Finding) -> str:
    """Where exactly, such as "run water-nve-..., replica 3, frame 120, atoms 0-1"."""
    where = finding.where
    parts = []
    if where.run is not None:
        parts.append(f"run {where.run}")
    if where.replica is not None:
        parts.append(f"replica {where.replica}")
    if where.frame is not None:
        parts.append(f"frame {where.frame}")
    if where.atoms:
        parts.append(f"atoms {'-'.join(map(str, where.atoms))}")
    return ", ".join(parts)


def in_sentence(finding: Finding) -> str:
    """The place as part of a sentence."""
    if not place(finding):
        return "for the model"
    if finding.system is None or finding.temperature_K is None:
        return f"for {place(finding)}"
    words = f"for {finding.system} at {finding.temperature_K:g} K"
    return f"{words} ({finding.where.element})" if finding.where.element else words


def number(value: float | None) -> str:
    """Three significant digits; a dash for nothing."""
    if value is None:
        return "-"
    if math.isfinite(value) and 1e3 <= abs(value) < 1e5:
        return f"{value:.0f}"
    return f"{value:.3g}"


def interval(finding: Finding) -> str:
    """The interval of a finding; of a count its upper limit; empty where the value is exact."""
    low, high = finding.ci_low, finding.ci_high
    if finding.kind == "count":
        if not finding.exposure_ps:
            return ""
        limit = f", <= {high:.2g}" if high is not None and math.isfinite(high) else ""
        return f"in {finding.exposure_ps:.4g} ps{limit}"
    if low is None or high is None or low == high or not math.isfinite(high - low):
        return ""
    return f"[{number(low)}, {number(high)}]"


def with_error(finding: Finding) -> str:
    """The value with its interval, in the shortest form that is true; without its unit."""
    text = interval(finding)
    if finding.kind == "count" and finding.value is not None:
        return f"{finding.value:g} {text}".rstrip()
    if text and finding.ci_low is not None and finding.ci_high is not None:
        half = 0.5 * (finding.ci_high - finding.ci_low)
        middle = 0.5 * (finding.ci_high + finding.ci_low)
        if finding.value is not None and abs(middle - finding.value) < 0.01 * half:
            text = f"± {half:.2g}"
    return f"{number(finding.value)} {text}".rstrip()


def bound(finding: Finding) -> str:
    """The bound with its unit."""
    unit = "" if finding.unit == "1" else f" {finding.unit}"
    return f"{finding.bound}{unit}" if finding.bound else ""


def needed_by_run(findings: Iterable[Finding]) -> dict[str, float]:
    """By run: the picoseconds more that would decide all that is undecided there."""
    needed: dict[str, float] = {}
    for finding in findings:
        if finding.more_ps is not None and finding.run and finding.severity != "info":
            needed[finding.run] = max(needed.get(finding.run, 0.0), finding.more_ps)
    return needed


def repeat_command(model: str, profile: str, policy: str, recorded: str | None) -> str:
    """The command that repeats a validation: the recorded one, where there is one."""
    if recorded:
        return recorded
    return f"omm-mlff validate --model {model} --profile {profile} --policy {policy}"


def _badness(finding: Finding) -> tuple[int, float]:
    return _URGENCY[finding.status], -excess(finding)


def excess(finding: Finding) -> float:
    """How far the value lies toward or beyond its bound, in widths of the bound."""
    value, low, high = finding.value, finding.low, finding.high
    if value is None:
        return 0.0
    if not math.isfinite(value):
        return math.inf
    if low is not None and high is not None:
        half_width = 0.5 * (high - low)
        return abs(value - 0.5 * (high + low)) / (half_width or 1.0)
    if high is not None:
        return value / (abs(high) or 1.0)
    if low is not None:
        return -value / (abs(low) or 1.0)
    return abs(value)
