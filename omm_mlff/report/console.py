"""Prints a verdict that a person reads in ten seconds.

Everything is said in words; colour only repeats it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich.box import ASCII2, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from omm_mlff.report.judged import Judged
from omm_mlff.report.wording import (
    bound,
    exact_place,
    excess,
    first_of_each_run,
    happened,
    in_sentence,
    label,
    named,
    needed_by_run,
    not_applicable,
    place,
    reason,
    urgency,
    with_error,
    worst_by_criterion,
)
from omm_mlff.schema import Finding, Verdict

MOST_FAILURES = 6
"""Failures explained one by one; the rest is counted."""

LONGEST_NAME = 22
"""A longer name of a criterion takes two lines of the table."""

_STYLES = {
    "APPROVED": "bold green",
    "NOT RECOMMENDED": "bold yellow",
    "REJECTED": "bold red",
    "UNDECIDED": "bold magenta",
}
_WORDS = {
    "fail": ("FAIL", "red"),
    "undecided": ("UNDECIDED", "magenta"),
    "not-measured": ("UNMEASURED", "magenta"),
    "pass": ("pass", "green"),
}


def show(judged: Judged, files: Sequence[Path] = (), console: Console | None = None) -> None:
    """Prints the verdict, its reason, a row for each criterion, and what to do next.

    Parameters
    ----------
    files : what was written, named at the end
    """
    console = console or Console(highlight=False)
    verdict = judged.verdict
    head = Text.assemble(
        (verdict.name, _STYLES[verdict.name]),
        f"  {judged.model['name']}, profile {judged.profile}, policy {judged.policy}",
    )
    console.print()
    console.print(head)
    console.print(Text(reason(verdict)))
    for other in judged.others:
        console.print()
        console.print(
            Text.assemble(
                f"Policy {other.policy}: ", (other.name, _STYLES[other.name]), f". {reason(other)}"
            )
        )
    _diagnosis(judged, console)
    _table(verdict, console)
    _failures(verdict, console)
    _open_questions(verdict, console)
    _left_out(verdict, console)
    for notice in judged.provenance.get("notices", []):
        console.print(Text(f"notice: {notice}"), soft_wrap=True)
    if files:
        names = ", ".join(path.name for path in files)
        console.print(Text(f"Written to {files[0].parent}: {names}"), soft_wrap=True)


def _diagnosis(judged: Judged, console: Console) -> None:
    if not judged.diagnosis:
        return
    console.print()
    console.print(Text("Diagnosis", style="bold"))
    _bullets(console, [named(cause) for cause in judged.diagnosis])
    _bullets(console, [happened(failure) for failure in first_of_each_run(judged.failures)])


def _table(verdict: Verdict, console: Console) -> None:
    rows, beside = _one_pass_a_check(_worth_a_row(verdict))
    if not rows:
        return
    unicode = console.encoding.startswith("utf")
    table = Table(
        box=SIMPLE_HEAD if unicode else ASCII2,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    table.add_column("criterion", no_wrap=True)
    table.add_column("worst value", no_wrap=True)
    table.add_column("bound", overflow="fold", min_width=len("eV/angstrom"))
    table.add_column("where", overflow="fold")
    for row in rows:
        word, style = _WORDS[row.status]
        if row.severity == "info":
            word, style = ("info", "dim") if row.status == "pass" else ("note", "dim")
        name = _broken(label(row))
        if beside.get(id(row)):
            name += f"\n  and {beside[id(row)]} more"
        cells = [name, with_error(row), _short_bound(row), place(row)]
        if not unicode:
            cells = [cell.replace("±", "+-") for cell in cells]
        table.add_row(Text(word, style=style), *map(Text, cells))
    console.print()
    console.print(table)
    console.print()


def _worth_a_row(verdict: Verdict) -> list[Finding]:
    """One row for all bounds on one measurement: the worst that is not met, else the tightest."""
    rows = [row for row in worst_by_criterion(verdict) if row.status != "not-applicable"]
    chosen: dict[str, Finding] = {}
    for row in rows:  # failures first, and reject before limit before info
        known = chosen.get(label(row))
        met_both = known is not None and known.status == row.status == "pass"
        if known is None or (met_both and row.severity == "limit"):
            chosen[label(row)] = row
    return list(chosen.values())


def _one_pass_a_check(rows: Sequence[Finding]) -> tuple[list[Finding], dict[int, int]]:
    """Of the passes of a check, the one that is nearest to its bound; all rows of other kinds.

    Returns
    -------
    the rows in their order, and by id: how many more passes of its check a row stands for
    """
    tightest: dict[str, Finding] = {}
    beside: dict[int, int] = {}
    passes = [row for row in rows if row.status == "pass" and row.severity != "info"]
    for row in passes:
        check = row.measurement.partition(".")[0]
        known = tightest.get(check)
        if known is None or excess(row) > excess(known):
            tightest[check] = row
    for check, row in tightest.items():
        alike = [other for other in passes if other.measurement.partition(".")[0] == check]
        beside[id(row)] = len(alike) - 1
    kept = {id(row) for row in tightest.values()}
    shown = [row for row in rows if id(row) in kept or row.status != "pass"]
    return shown + [row for row in rows if row.status == "pass" and row.severity == "info"], beside


def _once(findings: Sequence[Finding]) -> list[Finding]:
    """Without a limit where the reject bound on the same measurement says the same."""
    return list({(label(f), f.where): f for f in reversed(findings)}.values())[::-1]


def _broken(name: str) -> str:
    """A long name on two lines, broken behind its dot or an underscore."""
    if len(name) <= LONGEST_NAME:
        return name
    cut = max(name.rfind(mark, 0, LONGEST_NAME) for mark in ".-_") + 1 or LONGEST_NAME
    return f"{name[:cut]}\n  {name[cut:]}"


def _short_bound(finding: Finding) -> str:
    low, high = finding.low, finding.high
    if low is None or high is None or low != -high:
        return bound(finding)
    return f"±{high:g}" if finding.unit == "1" else f"±{high:g} {finding.unit}"


def _failures(verdict: Verdict, console: Console) -> None:
    failed = [f for f in verdict.findings if f.status == "fail" and f.severity != "info"]
    worst = {id(row) for row in worst_by_criterion(verdict)}
    failed.sort(key=lambda f: (id(f) not in worst, *urgency(f)))
    failed = _once(failed)
    if not failed:
        return
    console.print(Text("What failed", style="bold"))
    _bullets(console, [_explained(finding) for finding in failed[:MOST_FAILURES]])
    if len(failed) > MOST_FAILURES:
        console.print(Text(f"  and {len(failed) - MOST_FAILURES} more, all in report.md"))
    console.print()


def _explained(finding: Finding) -> str:
    exact = exact_place(finding)
    text = f"{label(finding)} ({finding.severity}) {in_sentence(finding)}: {finding.cause}"
    return f"{text} ({exact})" if exact else text


def _open_questions(verdict: Verdict, console: Console) -> None:
    findings = sorted((f for f in verdict.findings if f.severity != "info"), key=urgency)
    unmeasured = [f for f in findings if f.status == "not-measured"]
    undecided = [f for f in findings if f.status == "undecided"]
    if not unmeasured and not undecided:
        return
    console.print(Text("What would decide", style="bold"))
    lines = []
    for run, more_ps in needed_by_run(undecided).items():
        names = sorted({label(f) for f in undecided if f.run == run})
        lines.append(f"{more_ps:.3g} ps more of {run}: {', '.join(names)}")
    for finding in _once([f for f in undecided if f.more_ps is None] + unmeasured):
        lines.append(f"{label(finding)} {in_sentence(finding)}: {finding.cause}")
    _bullets(console, lines)
    console.print()


def _left_out(verdict: Verdict, console: Console) -> None:
    reasons = not_applicable(verdict.findings)
    if not reasons:
        return
    total = sum(count for _, count in reasons)
    verb = "finding is" if total == 1 else "findings are"
    console.print(Text(f"{total} {verb} not applicable", style="bold"))
    _bullets(console, [f"{count} x {text}" for text, count in reasons])
    console.print()


def _bullets(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        text = textwrap.fill(
            line, console.width, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
        )
        console.print(Text(text), soft_wrap=True)
