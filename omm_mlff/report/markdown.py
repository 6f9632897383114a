"""Writes `report.md`: the verdict with all of its evidence, for a release page or a review."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omm_mlff.report.judged import Judged
from omm_mlff.report.markdown_table import markdown_cell, markdown_table
from omm_mlff.report.wording import (
    bound,
    exact_place,
    happened,
    in_sentence,
    interval,
    named,
    needed_by_run,
    not_applicable,
    number,
    place,
    reason,
    repeat_command,
    urgency,
)
from omm_mlff.schema import CONFIDENCE, Finding, Verdict

FILE_NAME = "report.md"


def as_markdown(judged: Judged) -> str:
    """The whole report."""
    lines = [
        f"# {judged.verdict.name}: {markdown_cell(judged.model.name)}",
        "",
        f"Profile `{judged.profile}`, policy `{judged.policy}`: {reason(judged.verdict)}",
        "",
        *markdown_table(
            ("policy", "verdict", "why"),
            [(name, v.name, reason(v)) for name, v in judged.verdicts.items()],
        ),
    ]
    if judged.diagnosis:
        lines += ["", "## Diagnosis", ""]
        lines += [f"{rank}. {named(cause)}" for rank, cause in enumerate(judged.diagnosis, start=1)]
    if judged.failures:
        lines += ["", "## What happened in the runs", ""]
        lines += [f"- {happened(failure)}" for failure in judged.failures]
    for verdict in (judged.verdict, *judged.others):
        lines += _policy(verdict)
    lines += ["", "## Model", "", *_mapping(dataclasses.asdict(judged.model))]
    lines += ["", "## Provenance", "", *_mapping(judged.provenance.to_json())]
    command = repeat_command(
        judged.model.name,
        judged.profile,
        judged.policy,
        judged.provenance.command,
    )
    lines += [
        "",
        "## How to repeat",
        "",
        "```",
        command,
        "```",
        "",
        f"Intervals are at {100 * CONFIDENCE:.2f} %, so that three looks at growing runs err in "
        "5 % of verdicts at most. A sampled criterion fails when its Holm-adjusted p-value is "
        "below that look's share; it passes when its whole interval lies in the bound.",
    ]
    return "\n".join(lines) + "\n"


def write(judged: Judged, path: Path) -> None:
    """Writes the file."""
    path.write_text(as_markdown(judged), encoding="utf-8")


def _policy(verdict: Verdict) -> list[str]:
    lines = ["", f"## Policy {verdict.policy}: {verdict.name}"]
    deciding = [f for f in verdict.findings if f.severity != "info"]
    failed = sorted((f for f in deciding if f.status == "fail"), key=urgency)
    if failed:
        lines += ["", "### What failed", ""]
        lines += [_explained(finding) for finding in failed]
    unresolved = [f for f in deciding if f.status in ("undecided", "not-measured")]
    if unresolved:
        lines += ["", "### What is open", ""]
        lines += [
            f"- **{f.criterion}** {in_sentence(f)}: {f.status}; {f.cause}." for f in unresolved
        ]
        lines += [
            f"- To decide all of run `{run}`: {more_ps:.3g} ps more in each replica."
            for run, more_ps in needed_by_run(unresolved).items()
        ]
    measured = [f for f in verdict.findings if f.status != "not-applicable"]
    for system in dict.fromkeys(finding.system for finding in measured):
        lines += ["", f"### {system or 'The model as a whole'}", ""]
        lines += markdown_table(
            ("status", "criterion", "measurement", "where", "value", "interval", "bound", "note"),
            [
                (
                    f.status if f.severity != "info" else f"{f.status} (info)",
                    f.criterion,
                    f"`{f.measurement}`",
                    place(f).removeprefix(f.system or "").strip() or "-",
                    _with_unit(f),
                    interval(f) or "-",
                    bound(f) or "-",
                    f.cause if f.status in ("pass", "not-measured") else "",
                )
                for f in sorted((f for f in measured if f.system == system), key=urgency)
            ],
        )
    left_out = [f for f in verdict.findings if f.status == "not-applicable"]
    if left_out:
        lines += ["", f"### Not applicable: {len(left_out)}", ""]
        for text, count in not_applicable(left_out):
            names = dict.fromkeys(f.criterion for f in left_out if f.cause == text)
            lines.append(f"- {count} x {text}: {', '.join(names)}")
    return lines


def _explained(finding: Finding) -> str:
    text = (
        f"- **{finding.criterion}** ({finding.severity}) {in_sentence(finding)}: {finding.cause}. "
        f"Measured `{finding.measurement}` = {_with_unit(finding)}"
    )
    if interval(finding):
        text += f" {interval(finding)}"
    text += f", bound {bound(finding)}"
    if finding.p_value is not None:
        text += f", adjusted p = {finding.p_value:.2g}"
    if exact_place(finding):
        text += f"; {exact_place(finding)}"
    return f"{text}. Bound from: {finding.source}."


def _with_unit(finding: Finding) -> str:
    unit = "" if finding.unit == "1" or finding.value is None else f" {finding.unit}"
    return f"{number(finding.value)}{unit}"


def _mapping(values: Mapping[str, Any]) -> list[str]:
    rows = []
    for key, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        rows.append((key, f"`{text}`" if text else "-"))
    return markdown_table(("what", "value"), rows)
