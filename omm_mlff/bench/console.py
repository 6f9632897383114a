"""Prints a benchmark, and what changed since an earlier one."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from omm_mlff.bench.compare import BenchComparison


def show(document: dict[str, Any], console: Console | None = None) -> None:
    """Tables of what a step costs, the ratios that matter, and what was left out."""
    out = console or Console(emoji=False)
    origin = document["provenance"]
    threads = origin["threads"]
    out.print(
        f"{origin['processor']}, {origin['cores']} cores; platform {origin['platform']}; "
        f"threads: torch {threads['torch']}, compiled engine {threads['compiled engine']}; "
        f"medians of {origin['rounds']} rounds",
        highlight=False,
    )
    for notice in origin.get("notices", []):
        out.print(f"notice: {notice}", highlight=False)
    for result in document["results"]:
        _result(result, out)
    for growth in document["scaling"]:
        _growth(growth, out)
    if document["pareto"]:
        _pareto(document["pareto"], out)
    for reason in document["reasons"]:
        out.print(f"NOT CONCLUSIVE: {reason}", style="magenta", highlight=False)


def show_comparison(comparison: BenchComparison, console: Console | None = None) -> None:
    """What got slower, what got faster."""
    out = console or Console(emoji=False)
    table = Table("model", "system", "way", "before", "now", "factor", "", box=SIMPLE_HEAD)
    for row in comparison.rows:
        table.add_row(
            row.model,
            row.system,
            row.way,
            f"{row.before:.4g}",
            f"{row.after:.4g}",
            f"{row.factor:.2f}",
            row.change if row.change != "slower" else "SLOWER",
        )
    out.print(f"Compared: {comparison.measure}; more is slower.", highlight=False)
    out.print(table)
    if comparison.missing:
        out.print(f"Only in one of them: {'; '.join(comparison.missing)}", highlight=False)


def _result(result: dict[str, Any], out: Console) -> None:
    table = Table(
        "way",
        "replicas",
        "ms/step",
        "95% interval",
        "ns/day",
        "replica-steps/s",
        "spread",
        title=f"{result['model']} on {result['system']}, {result['n_atoms']} atoms",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for row in result["ways"]:
        step = row["ms_per_step"]
        table.add_row(
            row["way"],
            str(row["n_replicas"]),
            f"{step['value']:.4g}",
            f"{step['low']:.4g} to {step['high']:.4g}",
            f"{row['ns_per_day']:.3g}",
            f"{row['replica_steps_per_s']:.4g}",
            f"{row['spread']:.0%}",
        )
    out.print(table)
    for ratio in result["ratios"]:
        out.print(
            f"  {ratio['fast']} takes {ratio['value']:.3g} times the replica-steps a second of "
            f"{ratio['slow']} ({ratio['low']:.3g} to {ratio['high']:.3g})",
            highlight=False,
        )
    if "breakdown_ms" in result:
        parts = ", ".join(f"{name} {ms:.3g}" for name, ms in result["breakdown_ms"].items())
        out.print(f"  where a recorded step goes, ms: {parts}", highlight=False)
    if "floor" in result:
        least = result["floor"]
        out.print(
            f"  floor {least['ms']:.3g} ms ({least['multiply_adds'] / 1e6:.3g} million "
            f"multiply-adds at {least['multiply_adds_per_s'] / 1e9:.3g} billion a second); one "
            f"replica takes {least['ratio']:.2g} times that",
            highlight=False,
        )
    analysis = result.get("analysis", {})
    if "ratio" in analysis:
        ratio = analysis["ratio"]
        out.print(
            f"  a recorded run of {analysis['n_steps']} steps is measured {ratio['value']:.3g} "
            f"times faster than it went ({ratio['low']:.3g} to {ratio['high']:.3g})",
            highlight=False,
        )
    elif "reason" in analysis:
        out.print(f"  analysis not timed: {analysis['reason']}", highlight=False)
    memory = result["memory"]
    if "host_MiB" in memory:
        device = (
            "" if memory["device_MiB"] is None else f", {memory['device_MiB']:.0f} on the device"
        )
        out.print(
            f"  peak memory {memory['host_MiB']:.0f} MiB, of which "
            f"{memory['imported_MiB']:.0f} are the program{device}",
            highlight=False,
        )
    for row in result["skipped"]:
        out.print(f"  not timed: {row['way']}: {row['reason']}", highlight=False)


def _growth(growth: dict[str, Any], out: Console) -> None:
    table = Table(
        "atoms",
        "ms/step",
        "microseconds/atom",
        "peak MiB",
        "spread",
        title=f"{growth['model']} in boxes of water",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    for column in table.columns:
        column.justify = "right"
    for row in growth["sizes"]:
        step = row["ms_per_step"]["value"]
        held = row["memory"].get("host_MiB")
        table.add_row(
            str(row["n_atoms"]),
            f"{step:.4g}",
            f"{1000.0 * step / row['n_atoms']:.3g}",
            "-" if held is None else f"{held:.0f}",
            f"{row['spread']:.0%}",
        )
    out.print(table)
    fit = growth.get("time_exponent")
    if fit is not None:
        ends = "" if fit["low"] is None else f" ({fit['low']:.3f} to {fit['high']:.3f})"
        memory = growth.get("KiB_per_atom")
        more = "" if memory is None else f"; {memory:.3g} KiB more for each atom"
        out.print(f"  time grows as N^{fit['value']:.3f}{ends}{more}", highlight=False)


def _pareto(points: list[dict[str, Any]], out: Console) -> None:
    table = Table(
        "system",
        "potential",
        "force RMSE, eV/angstrom",
        "ms/step",
        "both better",
        title="Accuracy against cost",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    for row in sorted(points, key=lambda row: (row["system"], row["step_ms"])):
        table.add_row(
            row["system"],
            row["potential"],
            f"{row['force_rmse_eV_angstrom']:.3g}",
            f"{row['step_ms']:.3g}",
            ", ".join(row["dominated_by"]),
        )
    out.print(table)
