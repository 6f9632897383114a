"""Writes a comparison as a study that a person reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

from omm_mlff.comparison.advice import Failure, advise, failures
from omm_mlff.comparison.compare import Comparison, folder_name
from omm_mlff.comparison.finished import FINDINGS_FILE, VERDICT_FILE, Finished
from omm_mlff.comparison.forecast import outcome
from omm_mlff.comparison.rows import (
    N_PARAMETERS,
    NS_PER_DAY,
    THROUGHPUT,
    Row,
)
from omm_mlff.report.markdown_table import markdown_table
from omm_mlff.report.wording import (
    bound,
    exact_place,
    in_sentence,
    interval,
    number,
    reason,
    repeat_command,
)
from omm_mlff.schema import CONFIDENCE, Finding, Reason

MOST_PLACES = 4
"""Places of one failure that are told one by one; the rest is counted."""

ACCURACY = (
    ("accuracy.force_rmse", "force RMSE, eV/angstrom"),
    ("accuracy.force_mae", "force MAE, eV/angstrom"),
    ("accuracy.force_r2", "force R2"),
    ("accuracy.force_angle", "angular error, degree"),
    ("accuracy.energy_rmse", "energy RMSE, meV/atom"),
    ("accuracy.energy_mae", "energy MAE, meV/atom"),
)
CONSERVATION = (
    ("nve.drift", "drift, meV/atom/ps"),
    ("nve.drift_temperature", "drift, K/ns"),
    ("nve.energy_change", "energy change, %"),
    ("nve.temperature", "mean temperature, K"),
    ("nve.temperature_error", "temperature error, %"),
)
STABILITY = (
    ("stability.crashes", "crashes"),
    ("stability.broken_bonds", "broken bonds"),
    ("stability.new_bonds", "new bonds"),
)
COST = (
    ("cost.step_time", "ms a step"),
    (NS_PER_DAY, "ns a day"),
)


def as_markdown(comparison: Comparison, picture: str | None, repeat: Sequence[str]) -> str:
    """The whole study.

    Parameters
    ----------
    picture : name of its file, beside the study; None where there is none
    repeat : the commands that repeat it
    """
    forecast = comparison.forecast
    title = forecast.title if forecast and forecast.title else "Validations compared"
    lines = [f"# {title}", "", *_decisions(comparison)]
    lines += ["", *_differences(comparison)]
    if picture:
        lines += ["", f"![accuracy against cost, temperature, drift]({picture})"]
    lines += ["", "## Accuracy", "", *_accuracy(comparison)]
    lines += ["", "## Energy and temperature", "", *_conservation(comparison)]
    lines += ["", "## Whole or broken", "", *_stability(comparison)]
    lines += ["", "## Cost", "", *_cost(comparison)]
    for label, finished in comparison.models.items():
        lines += ["", f"## {label}", "", *_model(comparison, label, finished)]
    lines += ["", "## Forecast against measured", "", *_forecast(comparison)]
    lines += ["", "## How to repeat", "", *_repeat(comparison, repeat)]
    return "\n".join(lines) + "\n"


def commands(comparison: Comparison, out: str, forecast: str | None) -> list[str]:
    """What to type to repeat a comparison: each validation as it was asked for, then this."""
    lines = []
    names = {label: f"runs/{folder_name(label)}" for label in comparison.models}
    for label, finished in comparison.models.items():
        command = repeat_command(
            finished.model, finished.profile, finished.policy, finished.provenance.command
        )
        lines.append(f"{command} --out {names[label]}")
    words = ["omm-mlff compare", *names.values(), f"--out {out}"]
    lines.append(" ".join([*words, f"--forecast {forecast}"] if forecast else words))
    return lines


def shown(row: Row | None) -> str:
    """A value with its interval, in the shortest form that is true; a dash for nothing."""
    if row is None or row.value is None:
        return "-"
    low, high = row.ci_low, row.ci_high
    if row.kind == "count":
        limit = f", <= {high:.2g}" if high is not None and math.isfinite(high) else ""
        return f"{row.value:g} in {row.exposure_ps:.4g} ps{limit}" if row.exposure_ps else "-"
    if low is None or high is None or low == high or not math.isfinite(high - low):
        return number(row.value)
    half = 0.5 * (high - low)
    if abs(0.5 * (low + high) - row.value) < 0.01 * half:
        return f"{number(row.value)} ± {half:.2g}"
    return f"{number(row.value)} [{number(low)}, {number(high)}]"


def run_in_words(comparison: Comparison, planned: str) -> str:
    """A run for a person: "alanine 300 K, 10 ps x 4"; its name where nothing more is known."""
    spec = comparison.planned_run(planned)
    if spec is None:
        return planned
    text = f"{spec.system} {spec.temperature_K:g} K, {spec.length_ps:g} ps x {spec.n_replicas}"
    if spec.purpose != "production":
        text += f", {spec.purpose}"
    return text if spec.timestep_fs == 0.5 else f"{text}, {spec.timestep_fs:g} fs"


def _decisions(comparison: Comparison) -> list[str]:
    policies = comparison.policies
    forecast = comparison.forecast
    header = ["model", "parameters", *(f"policy {name}" for name in policies)]
    if forecast:
        header += [f"forecast ({forecast.policy})", "outcome"]
    rows = []
    for label, finished in comparison.models.items():
        row = [f"[{label}](#{_anchor(label)})", _parameters(comparison, label)]
        row += [_verdict(finished, name) for name in policies]
        if forecast:
            expected = forecast.verdicts.get(finished.model)
            verdict = finished.verdicts.get(forecast.policy)
            row += [expected or "-"]
            row += [outcome(expected, verdict.name if verdict else None) if expected else "-"]
        rows.append(row)
    return markdown_table(header, rows)


def _verdict(finished: Finished, policy: str) -> str:
    verdict = finished.verdicts.get(policy)
    return f"**{verdict.name}**" if verdict else "not judged"


def _parameters(comparison: Comparison, label: str) -> str:
    rows = comparison.select(N_PARAMETERS, label)
    return f"{rows[0].value:,.0f}" if rows and rows[0].value is not None else "-"


def _differences(comparison: Comparison) -> list[str]:
    lines = []
    if comparison.differences:
        lines += ["**These validations differ in more than the model:**", ""]
        lines += markdown_table(
            ("what", *comparison.models),
            [(item.what, *item.values.values()) for item in comparison.differences],
        )
    elif len(comparison.models) > 1:
        lines.append("The validations differ in the model only.")
    first = next(iter(comparison.models.values()))
    provenance = first.provenance
    versions = provenance.versions
    said = [f"profile `{first.profile}`", f"seed {provenance.seed}"]
    said += [f"OpenMM platform {provenance.platform}"] if provenance.platform else []
    said += [f"precision {provenance.precision}"] if provenance.precision else []
    said += [f"{name} {versions[name]}" for name in ("openmm", "torch") if name in versions]
    whose = f" (of {next(iter(comparison.models))})" if comparison.differences else ""
    lines += [
        *([""] if lines else []),
        f"Conditions{whose}: {', '.join(said)}. Intervals are at {100 * CONFIDENCE:.2f} %, so "
        "that three looks at growing runs err in 5 % of verdicts at most.",
    ]
    return lines


def _accuracy(comparison: Comparison) -> list[str]:
    methods = {
        method for finished in comparison.models.values() for method in finished.provenance.methods
    }
    against = " and ".join(sorted(methods)) or "the reference labels"
    return [
        f"Against {against}, on frames of dynamics at 500 K or below that trained no model; a "
        "constant per molecule is taken out of the energies.",
        "",
        *_by_system(comparison, ACCURACY),
    ]


def _conservation(comparison: Comparison) -> list[str]:
    return [
        "Drift is the slope of Verlet's shadow energy, mean over the replicas; energy change is "
        "M6's |E_end - E_0| / |E_0|, without atomic reference energies; temperature is the mean "
        "over the second half.",
        "",
        *_by_run(comparison, CONSERVATION),
    ]


def _stability(comparison: Comparison) -> list[str]:
    return [
        "Events in the time watched, over all replicas, with the upper limit of what is to be "
        "expected in as much time again.",
        "",
        *_by_run(comparison, STABILITY),
    ]


def _cost(comparison: Comparison) -> list[str]:
    memory = []
    for label in comparison.models:
        peaks = [row.value for row in comparison.select("cost.peak_memory", label) if row.value]
        if peaks:
            memory.append(f"{label} {max(peaks):.0f} MiB")
    lines = [
        "One replica, one step at a time. Timings of different validations are not comparable: "
        "each is of its own machine, time and other load. "
        f"{side_by_side(comparison)}.",
        "",
        *_by_system(comparison, COST),
    ]
    if comparison.select(THROUGHPUT):
        lines += [
            "",
            "Replicas together, in one call a step, recording every step included:",
            "",
            *_by_run(
                comparison,
                ((THROUGHPUT, "replica-steps a second"),),
            ),
        ]
    if memory:
        lines += ["", f"Largest resident set of the whole process: {', '.join(memory)}."]
    return lines


def side_by_side(comparison: Comparison) -> str:
    """What to type to learn which model is faster."""
    models = list(dict.fromkeys(finished.model for finished in comparison.models.values()))
    first, *others = models
    words = [f"omm-mlff bench --model {first}", *(f"--against {name}" for name in others)]
    return f"Side by side they are timed by `{' '.join(words)}`"


def _by_system(comparison: Comparison, columns: Sequence[tuple[str, str]]) -> list[str]:
    systems = dict.fromkeys(row.system for row in comparison.rows if row.system)
    rows = []
    for system in systems:
        for label in comparison.models:
            cells = [
                next(
                    (
                        row
                        for row in comparison.select(name, label)
                        if row.system == system and row.element is None
                    ),
                    None,
                )
                for name, _ in columns
            ]
            if any(cells):
                rows.append((system, label, *map(shown, cells)))
    return markdown_table(("system", "model", *(title for _, title in columns)), rows)


def _by_run(comparison: Comparison, columns: Sequence[tuple[str, str]]) -> list[str]:
    runs = dict.fromkeys(row.planned for row in comparison.rows if row.planned)
    rows = []
    for planned in runs:
        for label, finished in comparison.models.items():
            cells = [
                next((r for r in comparison.select(name, label) if r.planned == planned), None)
                for name, _ in columns
            ]
            if not any(cells):
                continue
            where = run_in_words(comparison, planned)
            run = next(cell.run for cell in cells if cell is not None)
            length = finished.length_ps(run) if run else None
            if run != planned and length is not None:
                where += f" (extended to {length:g} ps)"
            rows.append((where, label, *map(shown, cells)))
    return markdown_table(("run", "model", *(title for _, title in columns)), rows)


def _model(comparison: Comparison, label: str, finished: Finished) -> list[str]:
    lines = []
    for policy in comparison.policies:
        verdict = finished.verdicts.get(policy)
        if verdict:
            lines.append(f"- {policy}: **{verdict.name}**. {reason(verdict)}")
    lines += ["", "**Failure modes**", ""]
    failed = failures(finished)
    lines += [_failure(item) for item in failed] or ["None: no criterion failed."]
    lines += ["", "**Recommendation**", "", *_advice(finished)]
    folder = folder_name(label)
    lines += ["", f"Evidence: [{VERDICT_FILE}]({folder}/{VERDICT_FILE}), "]
    lines[-1] += f"[{FINDINGS_FILE}]({folder}/{FINDINGS_FILE})."
    return lines


def _failure(failure: Failure) -> str:
    told = [_told(finding) for finding in failure.findings[:MOST_PLACES]]
    rest = len(failure.findings) - len(told)
    if rest:
        told.append(f"and at {rest} more place{'s' if rest > 1 else ''}, in {FINDINGS_FILE}")
    name = failure.name[0].upper() + failure.name[1:]
    return f"- {name} (`{failure.measurement}`; {', '.join(failure.criteria)}): {'; '.join(told)}."


def _told(finding: Finding) -> str:
    where = exact_place(finding)
    value = f"{number(finding.value)} {finding.unit if finding.unit != '1' else ''}".rstrip()
    if interval(finding):
        value += f" {interval(finding)}"
    # A cause may repeat the value against its bound, which is said here already.
    cause = finding.note if Reason.BEYOND_BOUND in finding.reasons else finding.cause
    parts = [f"{in_sentence(finding)} {value}, wanted {bound(finding)}", cause]
    if finding.where.atoms or finding.where.replica is not None:
        parts.append(where)
    return ", ".join(part for part in parts if part)


def _advice(finished: Finished) -> list[str]:
    advice = advise(finished)
    rejected = any(verdict.name == "REJECTED" for verdict in finished.verdicts.values())
    lines = [f"- {line}" for line in advice.summary]
    for title, rows in (
        ("What held, though it is rejected" if rejected else "Good for", advice.good),
        ("Within limits", advice.limited),
        ("Not for", advice.bad),
        ("Not known", advice.open),
    ):
        if rows:
            lines.append(f"- {title}:")
            lines += [f"  - {row}" for row in rows]
    lines.append(f"- Rests on: {advice.evidence}.")
    return lines


def _forecast(comparison: Comparison) -> list[str]:
    forecast = comparison.forecast
    if forecast is None:
        return ["No forecast was given."]
    lines = [f"{forecast.source.rstrip('.')}.", ""] if forecast.source else []
    rows = []
    for model, expected in forecast.verdicts.items():
        labels = [label for label, found in comparison.models.items() if found.model == model]
        for label in labels or [model]:
            finished = comparison.models.get(label)
            verdict = finished.verdicts.get(forecast.policy) if finished else None
            why = reason(verdict) if verdict else ""
            measured = verdict.name if verdict else None
            rows.append((label, expected, measured or "-", outcome(expected, measured), why))
    header = ("model", f"forecast ({forecast.policy})", "measured", "outcome", "why")
    return [*lines, *markdown_table(header, rows)]


def _repeat(comparison: Comparison, repeat: Sequence[str]) -> list[str]:
    lines = []
    if comparison.forecast and comparison.forecast.repeat:
        lines += ["```", comparison.forecast.repeat, "```", "", "which runs:", ""]
    return [
        *lines,
        "```",
        *repeat,
        "```",
        "",
        "This page and everything beside it but the forecast was written by the last command. "
        "`comparison.csv` has one line for every number, `comparison.json` the same with verdicts, "
        "failures and recommendations.",
    ]


def _anchor(title: str) -> str:
    """As GitHub makes it from a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")
