"""The command `doctor`: the start-up check, line by line."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the diagnoses as JSON.")
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path(),
    help="Folder in which runs would be written.  [default: the current one]",
)
def doctor(as_json: bool, folder: Path) -> int:
    """Check that this installation can run what it is asked to.

    Versions and whether they fit each other, platforms, GPU, a TorchForce that computes a force
    whose value is known, checkpoints, systems, disk. Ends in 0 if nothing failed, else in 4.
    """
    from omm_mlff.doctor import examine, exit_code, overall

    diagnoses = []
    for diagnosis in examine(folder):
        diagnoses.append(diagnosis)
        if not as_json:
            mark = click.style(f"{diagnosis.status:<8}", fg=COLOURS[diagnosis.status])
            click.echo(f"{mark} {diagnosis.subject}: {diagnosis.detail}")
            if diagnosis.remedy:
                click.echo(f"         -> {diagnosis.remedy}")
    status = overall(diagnoses)
    if as_json:
        rows = [asdict(diagnosis) for diagnosis in diagnoses]
        click.echo(json.dumps({"schema": 1, "status": status, "diagnoses": rows}, indent=2))
    else:
        counts = [sum(row.status == name for row in diagnoses) for name in COLOURS]
        summary = ", ".join(f"{count} {name}" for count, name in zip(counts, COLOURS, strict=True))
        click.echo(click.style(summary, fg=COLOURS[status], bold=True))
    return exit_code(diagnoses)
