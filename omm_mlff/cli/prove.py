"""`omm-mlff prove`: potentials whose truth is known, put through validation."""

from __future__ import annotations

import json
from pathlib import Path

import click

_SHOWN_STEPS = 99


@click.command()
@click.option(
    "--short",
    is_flag=True,
    help="Two strengths of each kind and few seeds: under ten minutes on two cores.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the matrix as JSON.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder for prove.json and prove.md.",
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    metavar="NAME",
    help="Only this kind, or this known-good potential. May be repeated.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    help="Of each known-good potential.  [default: 200 of the cheap ones, 5 of the others]",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes of one thread each.  [default: one for each processor]",
)
def prove(
    short: bool,
    as_json: bool,
    out: Path | None,
    kinds: tuple[str, ...],
    seeds: int | None,
    workers: int | None,
) -> int:
    """Try validation on potentials whose truth is known.

    Known-bad ones, from gross to subtle, should be caught and the right cause named; known-good
    ones should not be rejected.

    Exit codes: 0 every gross fault is REJECTED with the right cause named and nothing good is
    REJECTED, 1 otherwise, 2 bad input.
    """
    from rich.console import Console

    from omm_mlff.cli.progress import shown_progress
    from omm_mlff.proving import report
    from omm_mlff.proving.matrix import prove as run

    with shown_progress() as progress:
        matrix = run(short=short, names=kinds, seeds=seeds, workers=workers, progress=progress)
    written = report.write(matrix, out) if out is not None else []
    if as_json:
        click.echo(json.dumps(report.as_json(matrix), indent=1))
    else:
        console = Console()
        for table in report.as_tables(matrix):
            console.print(table)
        for path in written:
            click.echo(f"written: {path}")
    return 0 if matrix.passed else 1
