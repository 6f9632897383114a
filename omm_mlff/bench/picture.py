"""Draws a benchmark: ways against each other, where a step goes, growth, accuracy against cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omm_mlff.bench.rows import BenchDocument, BreakdownRow, PointRow, ResultRow, ScalingRow
from omm_mlff.comparison.picture import COLOURS, GREY, MARKERS, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 130
_LEAST_ERROR = 1.0e-3  # eV/angstrom
_PARTS = ("model", "pairs", "python", "integrator", "recording")


def save_all(document: BenchDocument, folder: Path) -> list[Path]:
    """Every picture that the document has data for, as PNG; the same for the same data.

    Raises
    ------
    MissingPackageError : matplotlib is not installed
    """
    require_matplotlib()
    paths = []
    for name, figure in _figures(document):
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=_DPI, metadata={"Software": None})
        paths.append(path)
    return paths


def _figures(document: BenchDocument) -> Iterator[tuple[str, Figure]]:
    results = document.results
    yield "speed", _speed(results)
    parts = [(row, row.breakdown_ms) for row in results if row.breakdown_ms is not None]
    if parts:
        yield "breakdown", _breakdown(parts)
    if document.scaling:
        yield "scaling", _scaling(document.scaling)
    if document.pareto:
        yield "pareto", _pareto(document.pareto)


def _empty(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _speed(results: Sequence[ResultRow]) -> Figure:
    """Replica-steps a second of every way, the yardstick's marked."""
    rows = max(len(result.ways) for result in results)
    figure = _empty(9.0, len(results) * (0.34 * rows + 0.9))
    for axes, result in zip(
        figure.subplots(len(results), 1, squeeze=False)[:, 0], results, strict=True
    ):
        ways = sorted(result.ways, key=lambda row: float(row.replica_steps_per_s))
        for k, row in enumerate(ways):
            step, n = row.ms_per_step, row.n_replicas
            rate = row.replica_steps_per_s
            ends = [1000.0 * n / step.high, 1000.0 * n / step.low]
            colour = COLOURS[1] if row.way == "yardstick" else COLOURS[0]
            axes.barh(k, rate, color=colour, height=0.62)
            axes.plot(ends, [k, k], color="black", linewidth=1.2)
            axes.text(ends[1] * 1.08, k, f"{rate:,.0f}", va="center", fontsize=8)
        names = [f"{row.way}, {row.n_replicas}" for row in ways]
        axes.set_yticks(range(len(ways)), names, fontsize=8)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xlim(low, high * 2.2)
        axes.set_title(
            f"{result.model} on {result.system} ({result.n_atoms} atoms)",
            loc="left",
            fontsize=10,
        )
        axes.set_xlabel("replica-steps a second (bar: median, line: 95% interval)", fontsize=8)
        _tidy(axes)
    return figure


def _breakdown(results: Sequence[tuple[ResultRow, BreakdownRow]]) -> Figure:
    """Parts of a recorded step, as shares of it."""
    figure = _empty(9.0, 1.6 + 0.5 * len(results))
    axes = figure.subplots()
    for k, (_, row) in enumerate(results):
        parts: dict[str, float] = vars(row)
        whole, left = sum(parts.values()), 0.0
        for colour, part in zip(COLOURS, _PARTS, strict=False):
            share = parts[part] / whole
            axes.barh(k, share, left=left, color=colour, height=0.6, label=part if k == 0 else None)
            if share > 0.06:
                axes.text(
                    left + share / 2,
                    k,
                    f"{parts[part]:.2g}",
                    ha="center",
                    va="center",
                    color="white",
                    fontsize=8,
                )
            left += share
        axes.text(1.01, k, f"{whole:.3g} ms", va="center", fontsize=8, color=GREY)
    axes.set_yticks(
        range(len(results)), [f"{r.model}\non {r.system}" for r, _ in results], fontsize=8
    )
    axes.set_xlim(0.0, 1.12)
    axes.set_xlabel("share of a recorded step of all replicas (numbers: ms)")
    axes.legend(ncol=len(_PARTS), loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False)
    _tidy(axes)
    return figure


def _scaling(scaling: Sequence[ScalingRow]) -> Figure:
    """Time and memory against the number of atoms, both logarithmic."""
    figure = _empty(10.0, 4.4)
    time, memory = figure.subplots(1, 2)
    for colour, marker, growth in zip(COLOURS, MARKERS, scaling, strict=False):
        sizes = [row.n_atoms for row in growth.sizes]
        steps = [row.ms_per_step.value for row in growth.sizes]
        fit = growth.time_exponent
        label = growth.model + (f": $N^{{{fit.value:.3f}}}$" if fit else "")
        time.loglog(sizes, steps, marker=marker, color=colour, label=label)
        held = [row.memory.host_MiB for row in growth.sizes]
        if None not in held:
            memory.plot(sizes, held, marker=marker, color=colour, label=growth.model)
    time.set_ylabel("ms a step")
    memory.set_ylabel("peak memory of the process, MiB")
    memory.set_ylim(bottom=0.0)
    for axes in (time, memory):
        axes.set_xlabel("atoms in a periodic box of water")
        if axes.has_data():
            axes.legend(frameon=False)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _pareto(points: Sequence[PointRow]) -> Figure:
    """Force error against ms a step, one panel a system, with the front.

    The method that made the labels has no error but rounding: it is drawn at the least error that
    is worth drawing.
    """
    systems = list(dict.fromkeys(row.system for row in points))
    names = list(dict.fromkeys(row.potential for row in points))
    width = max(6.4, 4.8 * min(3, len(systems)))
    figure = _empty(width, 4.2 * -(-len(systems) // 3) + 0.25 * -(-len(names) // 4) + 0.2)
    grid = figure.subplots(-(-len(systems) // 3), min(3, len(systems)), squeeze=False)
    for axes, system in zip(grid.flat, systems, strict=False):
        rows = sorted(
            (row for row in points if row.system == system), key=lambda r: float(r.step_ms)
        )
        front = [row for row in rows if not row.dominated_by]
        axes.step(
            [row.step_ms for row in front],
            [_error(row) for row in front],
            where="post",
            color=GREY,
            linewidth=1.0,
            linestyle="--",
        )
        for row in rows:
            i = names.index(row.potential)
            axes.plot(
                row.step_ms,
                _error(row),
                marker=MARKERS[i % len(MARKERS)],
                color=COLOURS[i % len(COLOURS)],
                markersize=8,
                linestyle="none",
                label=row.potential,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.margins(0.25)
        axes.set_title(system, loc="left", fontsize=10)
        axes.set_xlabel("ms a step, one replica")
        axes.set_ylabel("force RMSE, eV/angstrom")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(grid.flat)[len(systems) :]:
        axes.set_visible(False)
    named: dict[str, Any] = {}
    for axes in grid.flat:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    figure.legend(
        [named[name] for name in names],
        names,
        loc="outside lower center",
        ncol=min(4, len(names)),
        frameon=False,
        fontsize=9,
    )
    return figure


def _error(row: PointRow) -> float:
    return max(_LEAST_ERROR, float(row.force_rmse_eV_angstrom))
