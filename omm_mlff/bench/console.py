"""Prints a benchmark, and what changed since an earlier one."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from omm_mlff.bench.compare import BenchComparison
from omm_mlff.bench.rows import (
    AnalysisRow,
    BenchDocument,
    PointRow,
    RatioRow,
    ResultRow,
    ScalingRow,
)

_NARROW = (0, 1, 0, 0)
_USUAL_FS = {"native": 2.0}
"""The timestep that people use, by source: of a fixed-charge force field with its bonds to hydrogen
constrained; of everything else the one that was timed."""
_OWN = {
    "single": "{}",
    "unrecorded": "{}, many",
    "recorded": "{}, many, recorded",
    "yardstick": "{} by a plain script",
    "plain TorchScript": "{} as TorchScript",
    "ASE": "{} in ASE",
    "ASE, compiled engine": "{} in ASE, compiled",
    "torch-sim": "{} in torch-sim, many",
}
"""What the ways of running the model itself are called for a person."""


def in_plain_words(document: BenchDocument) -> list[str]:
    """How the models compare with what was timed beside them; else what a step of each costs."""
    lines = []
    timed_fs = document.provenance.timestep_fs
    for result in document.results:
        beside = [r for r in result.ratios if r.slow == "single" and r.fast not in _OWN]
        lines += [_compared(result, ratio, timed_fs) for ratio in beside]
        single = next((row for row in result.ways if row.way == "single"), None)
        if not beside and single is not None:
            lines.append(
                f"{result.model} on {result.system}: {single.ms_per_step.value:.3g} ms a step, "
                f"{single.ns_per_day:.3g} ns/day at {timed_fs:g} fs"
            )
    return lines


def _compared(result: ResultRow, ratio: RatioRow, timed_fs: float) -> str:
    """Such as "amber14 : tiny = 33.5 on water, at 0.5 fs"; the faster one stands first."""
    names, value = [ratio.fast, result.model], ratio.value
    ends = [ratio.low, ratio.high]
    usual = [_usual_fs(name, timed_fs) for name in names]
    in_use = value * usual[0] / usual[1]
    if value < 1.0:
        names, value, in_use = names[::-1], 1.0 / value, 1.0 / in_use
        ends, usual = [1.0 / end for end in ends[::-1]], usual[::-1]
    first, second = (name.removeprefix("native:") for name in names)
    text = (
        f"{first} : {second} = {value:.3g} ({ends[0]:.3g} to {ends[1]:.3g}) on {result.system}, "
        f"at {timed_fs:g} fs"
    )
    if usual[0] != usual[1]:
        text += f"; at the timesteps people use ({usual[0]:g} fs, {usual[1]:g} fs): {in_use:.3g}"
    return text


def _usual_fs(spec: str, timed_fs: float) -> float:
    return _USUAL_FS.get(spec.partition(":")[0], timed_fs)


def _called(way: str, model: str) -> str:
    return _OWN.get(way, way).format(model)


def show(document: BenchDocument, console: Console | None = None) -> None:
    """Tables of what a step costs, the ratios that matter, and what was left out."""
    out = console or Console(emoji=False)
    origin = document.provenance
    threads = origin.threads
    for line in in_plain_words(document):
        out.print(line, highlight=False)
    out.print(
        f"{origin.processor}, {origin.cores} cores; platform {origin.platform}; "
        f"threads: torch {threads['torch']}, compiled engine {threads['compiled engine']}; "
        f"medians of {origin.rounds} rounds",
        highlight=False,
    )
    for notice in origin.notices:
        out.print(f"notice: {notice}", highlight=False)
    for result in document.results:
        _result(result, out, origin.timestep_fs)
    for growth in document.scaling:
        _growth(growth, out)
    if document.pareto:
        _pareto(document.pareto, out)
    for reason in document.reasons:
        out.print(f"NOT CONCLUSIVE: {reason}", style="magenta", highlight=False)


def show_comparison(comparison: BenchComparison, console: Console | None = None) -> None:
    """What got slower, what got faster."""
    out = console or Console(emoji=False)
    table = Table(
        *("model", "system", "way", "before", "now", "factor", ""), box=SIMPLE_HEAD, padding=_NARROW
    )
    _never_cut(table, 3)
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


def _never_cut(table: Table, n_texts: int) -> None:
    """Texts, which come first, are folded in a narrow terminal; numbers keep their place."""
    for i, column in enumerate(table.columns):
        column.overflow = "fold"
        column.no_wrap = i >= n_texts


def _result(result: ResultRow, out: Console, timestep_fs: float) -> None:
    table = Table(
        "what",
        "replicas",
        "ms/step",
        "95% interval",
        f"ns/day\nat {timestep_fs:g} fs",
        "replica-\nsteps/s",
        "spread",
        title=f"{result.model} on {result.system}, {result.n_atoms} atoms",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=_NARROW,
    )
    _never_cut(table, 1)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in result.ways:
        step = row.ms_per_step
        table.add_row(
            _called(row.way, result.model),
            str(row.n_replicas),
            f"{step.value:.4g}",
            f"{step.low:.4g} to {step.high:.4g}",
            f"{row.ns_per_day:.3g}",
            f"{row.replica_steps_per_s:.4g}",
            f"{row.spread:.0%}",
        )
    out.print(table)
    for ratio in result.ratios:
        out.print(
            f"  {_called(ratio.fast, result.model)}: {ratio.value:.3g} times the replica-steps a "
            f"second of {_called(ratio.slow, result.model)} ({ratio.low:.3g} to {ratio.high:.3g})",
            highlight=False,
        )
    if result.breakdown_ms is not None:
        parts = ", ".join(f"{name} {ms:.3g}" for name, ms in vars(result.breakdown_ms).items())
        out.print(f"  where a recorded step goes, ms: {parts}", highlight=False)
    if result.floor is not None:
        least = result.floor
        out.print(
            f"  floor {least.ms:.3g} ms ({least.multiply_adds / 1e6:.3g} million "
            f"multiply-adds at {least.multiply_adds_per_s / 1e9:.3g} billion a second); one "
            f"replica takes {least.ratio:.2g} times that",
            highlight=False,
        )
    analysis = result.analysis or AnalysisRow()
    if analysis.ratio is not None:
        faster = analysis.ratio
        out.print(
            f"  to measure a recorded run of {analysis.n_steps} steps takes "
            f"{1.0 / faster.value:.2g} of the time that it ran "
            f"({1.0 / faster.high:.2g} to {1.0 / faster.low:.2g})",
            highlight=False,
        )
    elif analysis.reason:
        out.print(f"  analysis not timed: {analysis.reason}", highlight=False)
    memory = result.memory
    if memory.host_MiB is not None and memory.imported_MiB is not None:
        device = "" if memory.device_MiB is None else f", {memory.device_MiB:.0f} on the device"
        out.print(
            f"  peak memory {memory.host_MiB:.0f} MiB, of which "
            f"{memory.imported_MiB:.0f} are the program{device}",
            highlight=False,
        )
    for left_out in result.skipped:
        out.print(f"  not timed: {left_out.way}: {left_out.reason}", highlight=False)


def _growth(growth: ScalingRow, out: Console) -> None:
    table = Table(
        "atoms",
        "ms/step",
        "microseconds/atom",
        "peak MiB",
        "spread",
        title=f"{growth.model} in boxes of water",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    for column in table.columns:
        column.justify = "right"
    for row in growth.sizes:
        step = row.ms_per_step.value
        held = row.memory.host_MiB
        table.add_row(
            str(row.n_atoms),
            f"{step:.4g}",
            f"{1000.0 * step / row.n_atoms:.3g}",
            "-" if held is None else f"{held:.0f}",
            f"{row.spread:.0%}",
        )
    out.print(table)
    fit = growth.time_exponent
    if fit is not None:
        ends = "" if fit.low is None else f" ({fit.low:.3f} to {fit.high:.3f})"
        memory = growth.KiB_per_atom
        more = "" if memory is None else f"; {memory:.3g} KiB more for each atom"
        out.print(f"  time grows as N^{fit.value:.3f}{ends}{more}", highlight=False)


def _pareto(points: Sequence[PointRow], out: Console) -> None:
    table = Table(
        "system",
        "potential",
        "force RMSE,\neV/angstrom",
        "ms/step",
        "both better",
        title="Accuracy against cost",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=_NARROW,
    )
    _never_cut(table, 2)
    table.columns[4].no_wrap = False
    for row in sorted(points, key=lambda row: (row.system, row.step_ms)):
        table.add_row(
            row.system,
            row.potential,
            f"{row.force_rmse_eV_angstrom:.3g}",
            f"{row.step_ms:.3g}",
            ", ".join(row.dominated_by),
        )
    out.print(table)
