"""`omm-mlff simulate`: recorded dynamics, without a verdict."""

from __future__ import annotations

from pathlib import Path

import click

from omm_mlff.cli.arguments import (
    allow_fallback_option,
    device_option,
    model_option,
    system_options,
)

NONE_CAME_THROUGH = 4


@click.command()
@model_option
@click.option("--system", required=True, metavar="NAME|FILE", help="What is simulated.")
@system_options
@click.option("--length-ps", default=1.0, show_default=True, type=click.FloatRange(min=0))
@click.option("--temperature", "temperature_K", default=300.0, show_default=True, help="K.")
@click.option(
    "--ensemble",
    default="nve",
    show_default=True,
    type=click.Choice(["nve", "nvt"]),
    help="nve: Verlet from the structure at rest; nvt: LangevinMiddle.",
)
@click.option("--timestep-fs", default=0.5, show_default=True, type=click.FloatRange(min=1e-3))
@click.option("--replicas", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--stride", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True)
@click.option("--platform", default="auto", show_default=True)
@device_option
@allow_fallback_option
@click.option(
    "--precision",
    default="double",
    show_default=True,
    type=click.Choice(["single", "mixed", "double"]),
    help="Of the platforms that have a choice: CUDA and OpenCL.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="A new folder for the run.",
)
@click.option(
    "--resume", is_flag=True, help="Go on with the run in --out; a longer one extends it."
)
def simulate(
    model: str,
    system: str,
    frame: int | None,
    charge: int | None,
    spin: int | None,
    length_ps: float,
    temperature_K: float,
    ensemble: str,
    timestep_fs: float,
    replicas: int,
    stride: int,
    seed: int,
    platform: str,
    device: int | None,
    allow_fallback: bool,
    precision: str,
    out: Path,
    resume: bool,
) -> int:
    """Run dynamics with a model and record energies and forces at every step.

    Exit codes: 0 done, 2 bad input, 4 no replica came through (or the simulation itself failed),
    130 interrupted.
    """
    from omm_mlff.cli.output import models_print_to_stderr
    from omm_mlff.cli.progress import shown_progress
    from omm_mlff.dynamics.simulate import simulate as run
    from omm_mlff.forces.platforms import on_device
    from omm_mlff.potentials.registry import load_potential
    from omm_mlff.schema import RunSpec
    from omm_mlff.systems import load_system, with_options

    system = with_options(system, frame=frame, charge=charge, spin=spin)
    spec = RunSpec(
        potential=model,
        system=system,
        length_ps=length_ps,
        temperature_K=temperature_K,
        n_replicas=replicas,
        seed=seed,
        timestep_fs=timestep_fs,
        platform=platform,
        precision=precision,  # type: ignore[arg-type]  # click has checked the choice
        record_stride=stride,
        ensemble=ensemble,
        purpose="thermostat" if ensemble == "nvt" else "production",
    )
    with models_print_to_stderr(), shown_progress() as progress, on_device(platform, device):
        potential, molecular_system = load_potential(model), load_system(system)
        record = run(
            spec,
            potential,
            molecular_system,
            out,
            resume=resume,
            allow_fallback=allow_fallback,
            progress=lambda done, total: progress(spec.name, done, total),
        )
    for replica, event in sorted(record.events.items()):
        click.echo(f"replica {replica} stopped at {event.time_ps:g} ps: {event.detail}")
    for notice in record.provenance.notices:
        click.echo(f"notice: {notice}")
    whole = record.n_replicas - len(record.events)
    click.echo(f"{whole} of {record.n_replicas} replicas ran to {spec.length_ps:g} ps; see {out}")
    return 0 if whole else NONE_CAME_THROUGH
