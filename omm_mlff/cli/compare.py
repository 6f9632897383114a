"""`omm-mlff compare`: finished validations side by side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from omm_mlff.comparison import Comparison

_WORST = (
    (("accuracy.force_rmse",), "force RMSE\neV/angstrom"),
    (("nve.drift",), "drift\nmeV/atom/ps"),
    (("stability.crashes", "stability.broken_bonds", "stability.new_bonds"), "events"),
    (("cost.step_time",), "ms\na step"),
)
"""Of a measurement the worst is shown for each system and model; of counts the sum."""


@click.command()
@click.argument(
    "folders", nargs=-1, required=True, metavar="FOLDER...", type=click.Path(path_type=Path)
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the study: README.md, comparison.csv, .json and .png, and every verdict.",
)
@click.option(
    "--forecast",
    "forecast_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="TOML file with the verdicts that were expected.",
)
@click.option("--no-picture", is_flag=True, help="Without comparison.png, which needs matplotlib.")
@click.option("--json", "as_data", is_flag=True, help="Print comparison.json instead of the table.")
def compare(
    folders: tuple[Path, ...],
    out: Path | None,
    forecast_file: Path | None,
    no_picture: bool,
    as_data: bool,
) -> None:
    """Put finished validations side by side.

    FOLDER is what `omm-mlff validate --out` wrote. Exit codes: 0 done, 2 bad input.
    """
    import json

    from omm_mlff import comparison as comparisons
    from omm_mlff.comparison.write import as_json

    forecast = comparisons.read_forecast(forecast_file) if forecast_file else None
    compared = comparisons.compare(folders, forecast)
    files = []
    if out is not None:
        files = comparisons.write_comparison(
            compared, out, picture=not no_picture, forecast_file=forecast_file
        )
    if as_data:
        click.echo(json.dumps(as_json(compared), indent=2, allow_nan=False))
        return
    show(compared)
    if out is not None:
        click.echo(f"Written to {out}: {', '.join(str(path.relative_to(out)) for path in files)}")


def show(comparison: Comparison) -> None:
    """Print verdicts, a row for each system and model, what else differs, and every reason."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from omm_mlff.comparison.forecast import outcome
    from omm_mlff.comparison.study import side_by_side
    from omm_mlff.report.wording import reason

    console = Console(highlight=False)
    look = box.SIMPLE_HEAD if console.encoding.startswith("utf") else box.ASCII2
    verdicts = Table(box=look, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    verdicts.add_column("model", no_wrap=True)
    for policy in comparison.policies:
        verdicts.add_column(policy)
    for label, finished in comparison.models.items():
        found = [finished.verdicts.get(policy) for policy in comparison.policies]
        verdicts.add_row(label, *(verdict.name if verdict else "-" for verdict in found))
    grid = Table(box=look, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("system", "model"):
        grid.add_column(title, no_wrap=True)
    for _, title in _WORST:
        grid.add_column(title, justify="right", no_wrap=True)
    left_out = []
    for system, labels in comparison.systems.items():
        if len(labels) < len(comparison.models):
            left_out.append(f"{system} ({', '.join(labels)})")
            continue
        for label in labels:
            grid.add_row(
                system, label, *(_worst(comparison, names, system, label) for names, _ in _WORST)
            )
        grid.add_section()
    console.print()
    console.print(verdicts)
    console.print()
    console.print(grid)
    click.echo("\nThe worst over runs; events are crashes, broken and new bonds.")
    if left_out:
        click.echo(f"Not asked of every model, and left out: {', '.join(left_out)}")
    if len(comparison.models) > 1:
        click.echo(
            "Times of different validations are not comparable: each is of its own time and load. "
            f"{side_by_side(comparison)}."
        )
    for difference in comparison.differences:
        listed = "; ".join(f"{label}: {value}" for label, value in difference.values.items())
        click.echo(f"Not alike in {difference.what}: {listed}")
    forecast = comparison.forecast
    for label, finished in comparison.models.items():
        expected = forecast.verdicts.get(finished.model) if forecast else None
        for policy in comparison.policies:
            verdict = finished.verdicts.get(policy)
            if verdict and forecast and expected and policy == forecast.policy:
                words = f"{outcome(expected, verdict.name)} ({expected})"
                click.echo(f"{label}, {policy}: {verdict.name}, {words}. {reason(verdict)}")
            elif verdict:
                click.echo(f"{label}, {policy}: {verdict.name}. {reason(verdict)}")


def _worst(comparison: Comparison, names: tuple[str, ...], system: str, label: str) -> str:
    from omm_mlff.report.wording import number

    rows = [r for name in names for r in comparison.select(name, label) if r.system == system]
    values = [r.value for r in rows if r.value is not None]
    if rows and rows[0].kind == "count":
        return f"{sum(values):g}"
    broken = [value for value in values if not math.isfinite(value)]
    return number(max(broken or values, key=abs, default=None))
