"""`omm-mlff distill`: sample, label, train."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import click

from omm_mlff.cli.progress import shown_progress

_FOLDER = click.Path(file_okay=False, path_type=Path)
_WORK = click.option(
    "--work",
    type=_FOLDER,
    default=Path("distill-work"),
    show_default=True,
    help="Folder for everything between the stages.",
)
_JOBS = click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes of one thread each; the result does not depend on it.",
)


@click.group()
def distill() -> None:
    """Make a student from the teacher: sample, label, train.

    Every stage continues where it was interrupted.
    """


@distill.command()
@_WORK
@click.option("--seed", type=int, default=0, show_default=True)
@_JOBS
@click.option(
    "--scale",
    type=click.FloatRange(min=0.0, min_open=True),
    default=1.0,
    show_default=True,
    help="Multiplies the number of frames; 1 gives about 33,000.",
)
@click.option("--molecule", "molecules", multiple=True, help="Only these; all by default.")
@click.option(
    "--student",
    type=click.Path(path_type=Path),
    help="A checkpoint, name or folder: sample where its own dynamics goes, instead.",
)
def sample(
    work: Path,
    seed: int,
    jobs: int,
    scale: float,
    molecules: tuple[str, ...],
    student: Path | None,
) -> None:
    """Sample frames, into WORK/frames (WORK/excursions with --student)."""
    from omm_mlff.distill.sample import sample_molecules

    with shown_progress(one_line=True) as say:
        sample_molecules(
            work / ("frames" if student is None else "excursions"),
            seed=seed,
            names=molecules or None,
            scale=scale,
            jobs=jobs,
            student_folder=student,
            progress=functools.partial(_say_molecule, say, "sampling"),
        )


@distill.command()
@_WORK
@_JOBS
def label(work: Path, jobs: int) -> None:
    """Label the frames: the teacher in its range, GFN2-xTB outside."""
    from omm_mlff.distill.label import label_folder
    from omm_mlff.errors import InputError

    stages = [name for name in ("frames", "excursions") if (work / name).is_dir()]
    if not stages:
        raise InputError(f"{work} holds no frames; run: omm-mlff distill sample --work {work}")
    for stage in stages:
        with shown_progress(one_line=True) as say:
            label_folder(
                work / stage,
                work / _labels_of(stage),
                jobs=jobs,
                progress=functools.partial(_say_molecule, say, f"labelling {stage}"),
            )


@distill.command()
@_WORK
@click.option("--student", required=True, help="original, tiny or ultra-tiny.")
@click.option("--out", type=_FOLDER, help="Checkpoint; WORK/checkpoints/STUDENT if not given.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=8000, show_default=True)
@click.option("--resume", is_flag=True, help="Continue a training that was interrupted.")
def train(work: Path, student: str, out: Path | None, seed: int, steps: int, resume: bool) -> None:
    """Train a student on the labels; one thread, so that one seed gives one checkpoint."""
    import torch

    from omm_mlff.distill.train import (
        CURVE_FILE,
        HISTORY_FILE,
        Report,
        Training,
        TrainingPlan,
        load_folders,
        plot_history,
    )
    from omm_mlff.errors import MissingPackageError

    torch.set_num_threads(1)
    folders = [work / _labels_of("frames")]
    if (work / _labels_of("excursions")).is_dir():
        folders.append(work / _labels_of("excursions"))
    labelled, references = load_folders(folders)
    folder = work / "training" / student
    training = Training(TrainingPlan(student, steps, seed), labelled, references, folder)
    with shown_progress(one_line=True) as say:

        def show(report: Report) -> None:
            held = report.heldout_force_rmse
            suffix = "" if held is None else f", held out {held:.3f} eV/Å"
            words = f"training {student}: force {report.force_mae:.3f} eV/Å{suffix}"
            say(words, report.step, steps)

        training.run(resume=resume, progress=show)
    target = out or work / "checkpoints" / student
    training.release(target)
    click.echo(f"checkpoint: {target}")
    try:
        plot_history(folder / HISTORY_FILE, folder / CURVE_FILE)
    except MissingPackageError as error:
        click.echo(f"no picture of the loss: {error}", err=True)


def _labels_of(stage: str) -> str:
    return "labels" if stage == "frames" else f"labels-{stage}"


def _say_molecule(
    say: Callable[[str, int, int], None], verb: str, name: str, done: int, total: int
) -> None:
    say(f"{verb}: {name}", done, total)
