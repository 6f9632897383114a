"""Draws a comparison: accuracy against cost, temperature, drift."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omm_mlff.comparison.compare import Comparison
from omm_mlff.comparison.rows import Row
from omm_mlff.comparison.study import run_in_words
from omm_mlff.errors import MissingPackageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito, Color Universal Design (2008): told apart with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#555555"
_WIDTH, _HEIGHT, _DPI = 11.0, 8.6, 130


def require_matplotlib() -> None:
    """Complain where there is nothing to draw with.

    Raises
    ------
    MissingPackageError
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "matplotlib",
            "the picture of a comparison",
            "pip install 'omm-mlff[report]' (or leave it out: --no-picture)",
        ) from error


def draw(comparison: Comparison) -> Figure:
    """The picture; nothing global is touched.

    Raises
    ------
    MissingPackageError : matplotlib is not installed
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1.0, 1.05))
    _accuracy_against_cost(figure.add_subplot(grid[0, 0]), comparison)
    _temperature(figure.add_subplot(grid[0, 1]), comparison)
    _drift(figure.add_subplot(grid[1, :]), comparison)
    _legend(figure, comparison)
    return figure


def save(comparison: Comparison, path: Path) -> None:
    """Draw it into a PNG file that is the same for the same data."""
    draw(comparison).savefig(path, dpi=_DPI, metadata={"Software": None})


def _styles(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Colour and line of every model."""
    return {
        label: (COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)])
        for i, label in enumerate(comparison.models)
    }


def _markers(comparison: Comparison) -> dict[str, str]:
    systems = dict.fromkeys(row.system for row in comparison.rows if row.system)
    return {system: MARKERS[i % len(MARKERS)] for i, system in enumerate(systems)}


def _accuracy_against_cost(axes: Axes, comparison: Comparison) -> None:
    markers = _markers(comparison)
    drawn: list[float] = []
    for label, (colour, dashes) in _styles(comparison).items():
        times = {r.system: r for r in comparison.select("cost.step_time", label) if _drawable(r)}
        errors = {
            r.system: r for r in comparison.select("accuracy.force_rmse", label) if _drawable(r)
        }
        shared = [system for system in markers if system in times and system in errors]
        xs = [float(times[system].value or 0.0) for system in shared]
        ys = [float(errors[system].value or 0.0) for system in shared]
        drawn += xs
        axes.plot(xs, ys, dashes, color=colour, alpha=0.5, linewidth=1.2)
        for system, x, y in zip(shared, xs, ys, strict=True):
            axes.errorbar(
                x,
                y,
                xerr=_bars(times[system]),
                yerr=_bars(errors[system]),
                fmt=markers[system],
                color=colour,
                markeredgecolor="white",
                markersize=8,
                capsize=3,
                linewidth=1.2,
            )
    if drawn:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.margins(0.1)
    else:
        _nothing(axes, "no force errors with step times")
    _bound_lines(axes, comparison, "accuracy.force_rmse", horizontal=True)
    _bound_lines(axes, comparison, "cost.step_time", horizontal=False)
    _plain_ticks(axes)
    axes.set_xlabel("time a step, one replica, of each validation (ms)")
    axes.set_ylabel("force RMSE (eV/Å)")
    axes.set_title("Accuracy against cost", loc="left", fontsize=11)
    axes.grid(alpha=0.25, which="both", linewidth=0.5)


def _temperature(axes: Axes, comparison: Comparison) -> None:
    markers = _markers(comparison)
    styles = _styles(comparison)
    drawn = [row for row in comparison.select("nve.temperature_error") if _finite(row)]
    temperatures = sorted({row.temperature_K for row in drawn if row.temperature_K})
    gap = min((b - a for a, b in itertools.pairwise(temperatures)), default=100.0)
    # Runs that differ in their temperature only are one series. At each temperature the points lie
    # side by side, models in the order of the legend, so that nothing hides anything.
    series: dict[tuple[str, str], list[Row]] = {}
    for label in styles:
        for row in (row for row in drawn if row.model == label and row.temperature_K):
            series.setdefault((label, _without_temperature(row)), []).append(row)
    present = {
        temperature: [
            key for key, rows in series.items() if temperature in {r.temperature_K for r in rows}
        ]
        for temperature in temperatures
    }
    width = min(0.07, 0.85 / max(map(len, present.values()), default=1)) * gap
    for (label, name), rows in series.items():
        colour, dashes = styles[label]
        rows.sort(key=lambda row: row.temperature_K or 0.0)
        xs = []
        for row in rows:
            temperature = row.temperature_K or 0.0
            slots = present[temperature]
            middle = 0.5 * (len(slots) - 1)
            xs.append(temperature + width * (slots.index((label, name)) - middle))
        axes.errorbar(
            xs,
            [float(row.value or 0.0) for row in rows],
            yerr=_columns(rows),
            fmt=markers[rows[0].system or ""],
            linestyle=dashes if len(rows) > 1 else "none",
            color=colour,
            markeredgecolor="white",
            markersize=7,
            capsize=2.5,
            linewidth=1.1,
        )
    if not drawn:
        _nothing(axes, "no temperatures")
    axes.axhline(0.0, color=GREY, linewidth=0.8)
    _bound_lines(axes, comparison, "nve.temperature_error", horizontal=True)
    if temperatures:
        axes.set_xticks(temperatures, [f"{item:g}" for item in temperatures])
        axes.set_xlim(temperatures[0] - 0.45 * gap, temperatures[-1] + 0.45 * gap)
    axes.set_xlabel("target temperature (K), models side by side")
    axes.set_ylabel("mean temperature, off target by (%)")
    axes.set_title("Temperature series, second half of each run", loc="left", fontsize=11)
    axes.grid(alpha=0.25, axis="y", linewidth=0.5)


def _drift(axes: Axes, comparison: Comparison) -> None:
    markers = _markers(comparison)
    styles = _styles(comparison)
    rows = [row for row in comparison.select("nve.drift") if row.planned]
    runs = list(dict.fromkeys(row.planned for row in rows if row.planned))
    for i, (label, (colour, _)) in enumerate(styles.items()):
        for row in rows:
            if row.model != label or row.planned is None:
                continue
            x = runs.index(row.planned) + 0.7 * ((i + 0.5) / len(styles) - 0.5)
            if not _finite(row):
                axes.annotate(
                    "no value",
                    (x, 0.5),
                    xycoords=("data", "axes fraction"),
                    color=colour,
                    rotation=90,
                    fontsize=8,
                    ha="center",
                    va="center",
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
                )
                continue
            axes.errorbar(
                x,
                float(row.value or 0.0),
                yerr=_bars(row),
                fmt=markers[row.system or ""],
                color=colour,
                markeredgecolor="white",
                markersize=8,
                capsize=3.5,
                linewidth=1.4,
            )
    for edge in range(1, len(runs)):
        axes.axvline(edge - 0.5, color="#dddddd", linewidth=0.8)
    if runs:
        axes.set_xlim(-0.5, len(runs) - 0.5)
        axes.set_xticks(
            range(len(runs)), [_two_lines(run_in_words(comparison, run)) for run in runs]
        )
    else:
        _nothing(axes, "no drift was measured")
    lines = _bound_lines(axes, comparison, "nve.drift", horizontal=True)
    linear = min((abs(line) for line in lines if line), default=0.01) / 10.0
    axes.set_yscale("symlog", linthresh=linear)
    ends = [end for row in rows for end in (row.value, row.ci_low, row.ci_high)]
    drawn = [abs(end) for end in ends if end is not None and math.isfinite(end)]
    farthest = 2.0 * max([*drawn, *map(abs, lines), 10.0 * linear])
    axes.set_ylim(-farthest, farthest)
    axes.axhline(0.0, color=GREY, linewidth=0.8)
    axes.set_ylabel("drift (meV/atom/ps)")
    axes.set_title(
        f"Energy drift with its interval (linear within ±{linear:g}, logarithmic beyond)",
        loc="left",
        fontsize=11,
    )
    axes.grid(alpha=0.25, axis="y", linewidth=0.5)


def _bound_lines(
    axes: Axes, comparison: Comparison, measurement: str, *, horizontal: bool
) -> list[float]:
    """Draw the bounds that were judged by; each once, named after policy and severity."""
    bounds: dict[float, list[str]] = {}
    for finished in comparison.models.values():
        for verdict in finished.verdicts.values():
            for finding in verdict.findings:
                if finding.measurement != measurement or finding.severity == "info":
                    continue
                for value in (finding.low, finding.high):
                    if value is not None:
                        names = bounds.setdefault(value, [])
                        name = f"{verdict.policy} {finding.severity}"
                        if name not in names:
                            names.append(name)
    if measurement == "nve.temperature_error":
        # What is rejected lies far outside of what is worth showing.
        bounds = {value: names for value, names in bounds.items() if abs(value) <= 20.0}
    for value, names in bounds.items():
        reject = all("reject" in name for name in names)
        style: dict[str, Any] = {
            "color": GREY,
            "linewidth": 1.0,
            "linestyle": (0, (1, 2)) if reject else (0, (5, 3)),
            "zorder": 0,
        }
        text = ", ".join(names)
        if horizontal:
            axes.axhline(value, **style)
            axes.annotate(
                text,
                (0.995, value),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2 if value > 0 else -2),
                textcoords="offset points",
                ha="right",
                va="bottom" if value > 0 else "top",
                fontsize=7.5,
                color=GREY,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
                zorder=0.5,
            )
        else:
            axes.axvline(value, **style)
            axes.annotate(
                text,
                (value, 0.01),
                xycoords=("data", "axes fraction"),
                xytext=(-2, 0),
                textcoords="offset points",
                ha="right",
                va="bottom",
                rotation=90,
                fontsize=7.5,
                color=GREY,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
                zorder=0.5,
            )
    return list(bounds)


def _legend(figure: Figure, comparison: Comparison) -> None:
    from matplotlib.lines import Line2D

    policy = comparison.forecast.policy if comparison.forecast else None
    handles = []
    for label, (colour, dashes) in _styles(comparison).items():
        finished = comparison.models[label]
        verdict = finished.verdicts.get(policy or finished.policy)
        words = f"{label}: {verdict.name} ({verdict.policy})" if verdict else label
        handles.append(Line2D([], [], color=colour, linestyle=dashes, linewidth=3, label=words))
    for system, marker in _markers(comparison).items():
        handles.append(
            Line2D([], [], color=GREY, marker=marker, linestyle="none", markersize=7, label=system)
        )
    n_models = len(comparison.models)
    figure.legend(
        handles=_by_columns(handles[:n_models], handles[n_models:]),
        loc="outside lower center",
        ncols=max(n_models, len(handles) - n_models, 1),
        frameon=False,
        fontsize=9.5,
    )


def _by_columns(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """Two rows of a legend, in the order that matplotlib fills it: column by column."""
    from matplotlib.lines import Line2D

    blank = Line2D([], [], linestyle="none", label=" ")
    width = max(len(first), len(second))
    rows = [[*row, *[blank] * (width - len(row))] for row in (first, second)]
    return [row[i] for i in range(width) for row in rows]


def _without_temperature(row: Row) -> str:
    """What runs have in common that differ in their temperature only."""
    name = row.planned or row.system or ""
    return re.sub(r"-[0-9.e+-]+K-", "-", name, count=1)


def _plain_ticks(axes: Axes) -> None:
    """Decades and what is between them as plain numbers, not as powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if scale == "log":
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())


def _nothing(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=GREY)


def _two_lines(words: str) -> str:
    return words.replace(", ", "\n", 1)


def _bars(row: Row) -> list[list[float]] | None:
    """Lengths of an error bar below and above the value; None where there is none."""
    if row.value is None or not _real(row.ci_low) or not _real(row.ci_high):
        return None
    assert row.ci_low is not None
    assert row.ci_high is not None
    return [[max(row.value - row.ci_low, 0.0)], [max(row.ci_high - row.value, 0.0)]]


def _columns(rows: Iterable[Row]) -> list[list[float]]:
    bars = [_bars(row) or [[0.0], [0.0]] for row in rows]
    return [[bar[0][0] for bar in bars], [bar[1][0] for bar in bars]]


def _finite(row: Row) -> bool:
    return _real(row.value)


def _drawable(row: Row) -> bool:
    """On a logarithmic axis."""
    return row.value is not None and _real(row.value) and row.value > 0.0


def _real(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
