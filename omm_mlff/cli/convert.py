"""`omm-mlff convert`: recorded trajectories for other programs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--to",
    required=True,
    type=click.Choice(["dcd", "xtc", "extxyz"]),
    help="The format of the trajectories.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for what is written.  [default: NAME-FORMAT in the current folder]",
)
@click.option(
    "--replica",
    "replicas",
    multiple=True,
    type=click.IntRange(min=0),
    metavar="N",
    help="Only this replica, counted from 0. May be repeated.",
)
@click.option(
    "--stride",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Only every Nth recorded frame.",
)
@click.option("--force", is_flag=True, help="Replace outputs that are there.")
def convert(
    run: Path,
    to: str,
    out: Path | None,
    replicas: tuple[int, ...],
    stride: int,
    force: bool,
) -> None:
    """Write recorded trajectories as DCD, XTC or extended XYZ.

    RUN is a run directory, the folder of a validation (each of its runs gets a folder), the folder
    of one replica, or an .h5 file of TrajectoryReporter. A replica that stopped early is written up
    to where it came.

    \b
    dcd     float32, angstrom; with topology.pdb
    xtc     to 0.001 nm (float32 below ten atoms), times in float32; with topology.pdb
    extxyz  eight decimals; energies and forces (eV, angstrom), momenta, masses, cell, time;
            needs the extra ase

    The record itself is float64 in MDTraj's HDF5 layout: mdtraj.load reads a segment as it is.

    Exit codes: 0 done, 2 bad input, 4 the disk is full or not writable.
    """
    from omm_mlff.adapters.convert import convert as run_conversion
    from omm_mlff.cli.progress import shown_progress

    folder = out if out is not None else Path(f"{_name(run)}-{to}")
    with shown_progress() as progress:
        rows = run_conversion(
            run,
            to,  # type: ignore[arg-type]  # click has checked the choice
            folder,
            replicas=replicas,
            stride=stride,
            force=force,
            progress=progress,
        )
    for row in rows:
        if row.stopped:
            where = row.path if row.path is not None else row.name
            click.echo(f"{where} ends at {row.end_ps:g} ps: {row.stopped}")
    n_frames = sum(row.n_frames for row in rows)
    n_files = sum(row.path is not None for row in rows)
    trajectories = "trajectory" if n_files == 1 else "trajectories"
    click.echo(f"{n_files} {trajectories}, {n_frames} frames; see {folder}")


def _name(run: Path) -> str:
    path = run.resolve()
    return path.name.removesuffix(".parts").removesuffix(".h5")
