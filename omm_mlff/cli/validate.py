"""`omm-mlff validate`: a verdict on a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from omm_mlff.cli.arguments import (
    allow_fallback_option,
    device_option,
    label_options,
    model_option,
    system_options,
)


@click.command()
@model_option
@click.option(
    "--system",
    "systems",
    multiple=True,
    metavar="NAME|FILE",
    help="In place of the profile's systems: a shipped name, a structure file (PDB, mmCIF, SDF, "
    "MOL2, XYZ, GRO, prmtop+inpcrd, psf+crd), smiles:STRING, or water-box:N. May be repeated.",
)
@system_options
@click.option(
    "--profile",
    default="quick",
    show_default=True,
    metavar="NAME|FILE",
    help="What is run: quick, standard, full, or a TOML file.",
)
@click.option(
    "--policy",
    default="strict",
    show_default=True,
    metavar="NAME|FILE",
    help="Whose verdict counts: strict, m6, or a TOML file. Both shipped ones are always judged.",
)
@click.option(
    "--platform",
    default="auto",
    show_default=True,
    help="OpenMM platform; auto takes the fastest that is there: CUDA, OpenCL, CPU or Reference.",
)
@device_option
@allow_fallback_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="A new folder for runs and reports.  [default: a fresh one under runs/]",
)
@click.option("--resume", is_flag=True, help="Go on with the validation that --out holds.")
@label_options
@click.option("--seed", default=0, show_default=True, help="Of velocities and random choices.")
@click.option("--json", "as_json", is_flag=True, help="Print verdict.json instead of the table.")
def validate(
    model: str,
    systems: tuple[str, ...],
    frame: int | None,
    charge: int | None,
    spin: int | None,
    profile: str,
    policy: str,
    platform: str,
    device: int | None,
    allow_fallback: bool,
    out: Path | None,
    resume: bool,
    seed: int,
    as_json: bool,
    **said: str | None,
) -> int:
    """Run a model in OpenMM and judge whether it is safe to use.

    Exit codes: 0 APPROVED, 1 REJECTED or NOT RECOMMENDED, 2 bad input, 3 UNDECIDED, 4 the
    validation itself failed, 130 interrupted.
    """
    if resume and out is None:
        raise click.UsageError("--resume needs --out: the folder to go on with")

    from omm_mlff.cli.output import models_print_to_stderr
    from omm_mlff.cli.progress import shown_progress
    from omm_mlff.forces.platforms import on_device
    from omm_mlff.report.console import show
    from omm_mlff.systems import with_options
    from omm_mlff.systems.labels import LabelOptions
    from omm_mlff.validation import validate as run

    labels, teacher = said.pop("labels"), said.pop("teacher")
    of_labels: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
    if not systems and labels is not None and frame is None:
        of_labels |= {"charge": charge, "spin_multiplicity": spin}
    elif (frame, charge, spin) != (None, None, None) and not systems:
        raise click.UsageError("--frame, --charge and --spin are of a --system: name one")
    systems = tuple(with_options(s, frame=frame, charge=charge, spin=spin) for s in systems)

    with models_print_to_stderr(), shown_progress() as progress, on_device(platform, device):
        result = run(
            model,
            systems=systems,
            profile=profile,
            policy=policy,
            platform=platform,
            allow_fallback=allow_fallback,
            out=out,
            resume=resume,
            seed=seed,
            labels=labels,
            label_options=LabelOptions(**of_labels),
            teacher=teacher,
            progress=progress,
        )
    if as_json:
        click.echo((result.folder / "verdict.json").read_text(encoding="utf-8"), nl=False)
    else:
        show(result.judged, result.reports)
    return result.exit_code
