"""Says what a model is good for, from its findings.

A use of a force field rests on some measurements, and at each place (a system, a temperature) the
findings on them decide it, under all policies that were judged: a failed `reject` criterion means
that it is not to be used so; a failed `limit` criterion, within a limit; an open one, that nobody
knows; all passed, that it is good for it. Nothing is said that no finding says. Which use a
measurement stands for, and what its failure is called, is declared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from omm_mlff.comparison.finished import Finished
from omm_mlff.report.wording import bound, number, place, urgency
from omm_mlff.schema import Declaration, Finding, VerdictName

Level = Literal["bad", "limited", "open", "good"]

SUMMARIES: dict[VerdictName, str] = {
    "APPROVED": "suitable, for what was measured and no further",
    "NOT RECOMMENDED": "usable only where its limits, named below, do not matter",
    "REJECTED": "not suitable for dynamics: something failed that makes a trajectory worthless",
    "UNDECIDED": "not decided: measure more before it is used",
}


@dataclass(frozen=True)
class Failure:
    """All failed findings on one measurement.

    Attributes
    ----------
    name : plainly
    criteria : as "m6: force-rmse (limit)"
    findings : one for each place, the most urgent first
    """

    name: str
    measurement: str
    criteria: tuple[str, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Advice:
    """What to do with a model; each line names the use and the places it is about.

    Attributes
    ----------
    summary : one line for each policy, or one for all where they agree
    good, limited, bad, open : see the levels at the top of this file
    evidence : what all of it rests on, and where it ends
    """

    summary: tuple[str, ...]
    good: tuple[str, ...]
    limited: tuple[str, ...]
    bad: tuple[str, ...]
    open: tuple[str, ...]
    evidence: str


def failures(finished: Finished) -> tuple[Failure, ...]:
    """What failed, by measurement, the gravest first; `info` criteria do not count."""
    failed = [f for f in _deciding(finished) if f.status == "fail"]
    failed.sort(key=lambda f: (urgency(f), -_excess(f)))
    found = []
    for measurement in dict.fromkeys(f.measurement for f in failed):
        rows = [f for f in failed if f.measurement == measurement]
        criteria = dict.fromkeys(f"{f.policy}: {f.criterion} ({f.severity})" for f in rows)
        places = {f.where: f for f in reversed(rows)}
        ordered = [f for f in rows if places[f.where] is f]
        declared = _declared(finished).get(measurement)
        name = declared.plainly if declared else measurement
        found.append(Failure(name, measurement, tuple(criteria), tuple(ordered)))
    return tuple(found)


def advise(finished: Finished) -> Advice:
    """What a model is good for and what not, by the rules at the top of this file."""
    findings = [f for f in _deciding(finished) if f.status != "not-applicable"]
    lines: dict[Level, list[str]] = {"good": [], "limited": [], "bad": [], "open": []}
    for use, names in _uses(finished, findings).items():
        by_place: dict[str, list[Finding]] = {}
        for finding in findings:
            if finding.measurement in names:
                by_place.setdefault(place(finding), []).append(finding)
        levels = {where: _level(rows) for where, rows in by_place.items()}
        for level, collected in lines.items():
            places = [where for where in by_place if levels[where] == level]
            if not places:
                continue
            if level == "good":
                collected.append(f"{use}: {_listed(places)}")
            else:
                details = [_why(level, where, by_place[where]) for where in places]
                collected.append(f"{use}: {'; '.join(details)}")
    return Advice(
        summary=_summary(finished),
        good=tuple(lines["good"]),
        limited=tuple(lines["limited"]),
        bad=tuple(lines["bad"]),
        open=tuple(lines["open"]),
        evidence=_evidence(finished),
    )


def _deciding(finished: Finished) -> list[Finding]:
    """The findings that count, those of the policy that was asked for first."""
    verdicts = [finished.verdicts[name] for name in _policies(finished)]
    return [f for verdict in verdicts for f in verdict.findings if f.severity != "info"]


def _level(findings: Sequence[Finding]) -> Level:
    seen = {(f.status, f.severity) for f in findings}
    statuses = {status for status, _ in seen}
    if ("fail", "reject") in seen:
        return "bad"
    if "fail" in statuses:
        return "limited"
    return "good" if statuses == {"pass"} else "open"


def _why(level: Level, where: str, findings: Sequence[Finding]) -> str:
    """Such as "alanine (force_rmse 0.31 eV/angstrom, strict wants <= 0.0434)"."""
    if level == "open":
        rows = [f for f in findings if f.status in ("undecided", "not-measured")]
    else:
        severity = "reject" if level == "bad" else "limit"
        rows = [f for f in findings if f.status == "fail" and f.severity == severity]
    worst = {f.measurement: f for f in sorted(rows, key=_excess)}
    words = []
    for measurement, finding in sorted(worst.items()):
        name = measurement.split(".")[-1].replace("_", " ")
        unit = "" if finding.unit == "1" else f" {finding.unit}"
        if finding.value is None:
            words.append(f"{name}: {finding.cause}")
            continue
        text = f"{name} {number(finding.value)}{unit}, {finding.policy} wants {bound(finding)}"
        words.append(f"{text}: {finding.cause}" if level == "open" else text)
    return f"{where or 'the model as a whole'} ({'; '.join(words)})"


def _summary(finished: Finished) -> tuple[str, ...]:
    names = _policies(finished)
    verdicts = {name: finished.verdicts[name].name for name in names}
    if len(set(verdicts.values())) == 1:
        verdict = verdicts[names[0]]
        return (f"{verdict} under {_joined(names)}: {SUMMARIES[verdict]}.",)
    return tuple(f"{v} under {name}: {SUMMARIES[v]}." for name, v in verdicts.items())


def _policies(finished: Finished) -> list[str]:
    """The policy that was asked for, then the others."""
    return list(dict.fromkeys([finished.policy, *finished.verdicts]))


def _evidence(finished: Finished) -> str:
    measurements = finished.measured.measurements
    systems = list(dict.fromkeys(m.where.system for m in measurements if m.where.system))
    parts = [_joined(systems) or "no system"]
    temperatures = sorted({m.where.temperature_K for m in measurements if m.where.temperature_K})
    if temperatures:
        parts.append(f"{_joined([f'{item:g}' for item in temperatures])} K")
    lengths = [m.where.length_ps for m in measurements if m.where.length_ps is not None]
    watched = [m.exposure_ps for m in measurements if m.name == "stability.crashes"]
    if lengths:
        parts.append(f"runs of up to {max(lengths):g} ps a replica")
    if any(watched):
        parts.append(f"{sum(item for item in watched if item):.4g} ps watched in all")
    if finished.provenance.methods:
        parts.append(f"labels of {_joined(finished.provenance.methods)}")
    return (
        f"{', '.join(parts)}. Nothing here speaks of other molecules, of other conditions or of "
        "longer runs"
    )


def _uses(finished: Finished, findings: Sequence[Finding]) -> dict[str, list[str]]:
    """What a force field is used for, by the measurements that each use rests on.

    A measurement that no use is declared for is a use of its own.
    """
    uses: dict[str, list[str]] = {}
    declared = _declared(finished)
    for row in declared.values():
        if row.use:
            uses.setdefault(row.use, []).append(row.name)
    known = {name for names in uses.values() for name in names}
    for name in dict.fromkeys(f.measurement for f in findings if f.measurement not in known):
        meaning = declared[name].meaning if name in declared else ""
        uses[f"{name} ({meaning})" if meaning else name] = [name]
    return uses


def _declared(finished: Finished) -> dict[str, Declaration]:
    return {row.name: row for row in finished.measured.declarations}


def _excess(finding: Finding) -> float:
    """How far beyond its bound, in widths of the bound; what has no value comes last."""
    value, low, high = finding.value, finding.low, finding.high
    if value is None:
        return -1.0
    if value != value:
        return float("inf")
    beyond = max(
        value - high if high is not None else 0.0, low - value if low is not None else 0.0, 0.0
    )
    width = abs(high) if high else abs(low) if low else 1.0
    return beyond / (width or 1.0)


def _listed(places: Sequence[str]) -> str:
    """Places with what they share said once: "methane 100, 300 and 500 K"."""
    grouped: dict[str, list[str]] = {}
    for where in places:
        head, _, tail = where.removesuffix(" K").rpartition(" ")
        if where.endswith(" K") and head:
            grouped.setdefault(head, []).append(tail)
        else:
            grouped.setdefault(where or "the model as a whole", [])
    return ", ".join(
        f"{head} {_joined(sorted(temperatures, key=float))} K" if temperatures else head
        for head, temperatures in grouped.items()
    )


def _joined(items: Sequence[str]) -> str:
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"
