"""`omm-mlff bench`: what a step costs, and what everything else costs beside it."""

from __future__ import annotations

import itertools
from pathlib import Path

import click

from omm_mlff.cli.arguments import allow_fallback_option, device_option


def _counts(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...]:
    """Numbers of atoms, separated by commas."""
    try:
        sizes = tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError:
        raise click.BadParameter(f"wanted numbers such as 300,1000,3000; got {text!r}") from None
    if any(size < 100 for size in sizes) or len(set(sizes)) < len(sizes):
        raise click.BadParameter(f"wanted different numbers of 100 or more; got {text!r}")
    return sizes


@click.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    required=True,
    metavar="SPEC",
    help="What is timed, as `omm-mlff validate --model` takes it. May be repeated.",
)
@click.option(
    "--system",
    "systems",
    multiple=True,
    metavar="NAME|FILE",
    help="On what, as `omm-mlff validate --system` takes it. May be repeated.  [default: water, "
    "alanine]",
)
@click.option(
    "--against",
    multiple=True,
    metavar="SPEC",
    help="Timed beside the models, where it serves the system: native:amber14, openmm-ml:..., "
    "ase:..., another student. May be repeated.",
)
@click.option("--replicas", default=16, show_default=True, type=click.IntRange(min=2))
@click.option(
    "--sizes",
    callback=_counts,
    metavar="N,N,...",
    help="Also measure growth with the size, on periodic boxes of water of so many atoms.",
)
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
    "--threads",
    type=click.IntRange(min=1),
    help="Of the compiled engine.  [default: OMP_NUM_THREADS, else every core]",
)
@click.option("--quick", is_flag=True, help="Fewer and shorter rounds: wider intervals.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for bench.json and its pictures.  [default: a fresh one under runs/]",
)
@click.option(
    "--compare",
    "earlier",
    type=click.Path(path_type=Path, exists=True),
    help="An earlier bench.json, to hold this one against.",
)
def bench(
    models: tuple[str, ...],
    systems: tuple[str, ...],
    against: tuple[str, ...],
    replicas: int,
    sizes: tuple[int, ...],
    platform: str,
    device: int | None,
    allow_fallback: bool,
    precision: str,
    threads: int | None,
    quick: bool,
    out: Path | None,
    earlier: Path | None,
) -> int:
    """Time models on systems, against the ways that people run them by hand.

    Ways are timed in rounds, a block of each in every round, and compared within a round. The
    yardstick is a plain script: the model as TorchScript in a TorchForce, an openmm.app.Simulation,
    and a reporter that takes everything at every step.

    Exit codes: 0 done; with --compare 1 something got slower beyond the noise of both, 3 nothing
    did but a spread is too wide to tell; 2 bad input.
    """
    from omm_mlff.bench.bench import QUICK, Effort, run_bench
    from omm_mlff.bench.compare import compare, require_common
    from omm_mlff.bench.console import show, show_comparison
    from omm_mlff.bench.document import read, write
    from omm_mlff.bench.picture import save_all
    from omm_mlff.cli.progress import shown_progress
    from omm_mlff.errors import MissingPackageError, OutputExistsError
    from omm_mlff.forces.platforms import on_device
    from omm_mlff.potentials.registry import load_potential
    from omm_mlff.systems import load_system

    systems = systems or ("water", "alanine")
    old = read(earlier) if earlier is not None else None
    if old is not None:
        specs = [load_potential(spec).spec for spec in models]
        names = [load_system(name).name for name in systems]
        require_common(old, itertools.product(specs, names))
    folder = out if out is not None else _fresh_folder()
    if (folder / "bench.json").exists():
        raise OutputExistsError(f"{folder} holds a benchmark; take another --out")
    with shown_progress() as progress, on_device(platform, device):
        document = run_bench(
            models,
            systems,
            against=against,
            n_replicas=replicas,
            sizes=sizes,
            platform=platform,
            precision=precision,  # type: ignore[arg-type]  # click has checked the choice
            n_threads=threads,
            allow_fallback=allow_fallback,
            effort=QUICK if quick else Effort(),
            progress=progress,
        )
    path = write(document, folder)
    show(document)
    try:
        pictures = save_all(document, folder)
    except MissingPackageError as error:
        pictures = []
        click.echo(f"no pictures: {error}", err=True)
    click.echo(f"Written to {folder}: {', '.join(file.name for file in (path, *pictures))}")
    if old is None:
        return 0
    comparison = compare(old, document)
    show_comparison(comparison)
    return comparison.exit_code


def _fresh_folder() -> Path:
    import datetime

    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"bench-{stamp}"
