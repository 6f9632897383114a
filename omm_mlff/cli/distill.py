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

_UNSEEN = click.option(
    "--unseen",
    "unseen_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=Path("analysis/distill/unseen.npz.xz"),
    show_default=True,
    help="Frames of molecules that no student saw, of `unseen`.",
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


@distill.command()
@_WORK
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--turns",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Passes over all molecules, pairs and clusters; each gives about 55,000 frames.",
)
@click.option("--minutes", type=click.FloatRange(min=0.0), default=60.0, show_default=True)
@click.option(
    "--excursions",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Frames of a student's own dynamics, of `sample --student`, to be labelled too.",
)
def broad(work: Path, seed: int, turns: int, minutes: float, excursions: Path | None) -> None:
    """Sample and label hundreds of molecules, into WORK/broad, then pack them.

    Continues where it was interrupted; WORK/frames.npz.xz is what `omm_mlff.distill.fast` reads.
    """
    import torch

    from omm_mlff.distill.broad import pack_folder, sample_broad
    from omm_mlff.distill.packed import save_packed

    torch.set_num_threads(1)
    folder = work / "broad"
    sample_broad(folder, seed=seed, turns=turns, seconds=60.0 * minutes, excursions=excursions)
    frames, scale = pack_folder(folder)
    target = work / "frames.npz.xz"
    save_packed(target, frames, scale)
    click.echo(f"{frames.n_frames} frames of {len(frames.names)} molecules: {target}")


@distill.command()
@_WORK
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--copies",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Of each molecule; pairs and clusters in proportion.",
)
def starts(work: Path, seed: int, copies: int) -> None:
    """Write what a GPU samples from: WORK/starts.npz, and the teacher, WORK/teacher.safetensors."""
    from safetensors.torch import save_file

    from omm_mlff.distill.starts import make_starts, save_starts
    from omm_mlff.teachers.mixed import teacher_tensors

    made = make_starts(seed, copies)
    save_starts(work / "starts.npz", made)
    save_file(teacher_tensors(), str(work / "teacher.safetensors"))
    click.echo(f"{made.n_structures} structures: {work / 'starts.npz'}")


@distill.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
def unseen(out: Path) -> None:
    """Sample and label the molecules that are held out whole."""
    import torch

    from omm_mlff.distill.packed import save_packed
    from omm_mlff.distill.transfer import UnseenPlan, sample_unseen

    torch.set_num_threads(1)
    frames = sample_unseen(UnseenPlan(), click.echo)
    save_packed(out, frames)
    click.echo(f"{frames.n_frames} frames: {out}")


@distill.command()
@click.option("--student", "students", multiple=True, required=True, help="Name or folder.")
@_UNSEEN
@click.option("--json", "as_file", type=click.Path(dir_okay=False, path_type=Path))
def errors(students: tuple[str, ...], unseen_file: Path, as_file: Path | None) -> None:
    """Force errors of students side by side, at 300 and 500 K, molecules never seen included."""
    import json

    from omm_mlff.distill.packed import load_packed
    from omm_mlff.distill.transfer import as_json, transfer_errors, transfer_table
    from omm_mlff.students.checkpoint import load_student

    frames = load_packed(unseen_file)
    found = {name: transfer_errors(load_student(name), frames) for name in students}
    click.echo(transfer_table(found), nl=False)
    if as_file is not None:
        as_file.write_text(json.dumps(as_json(found), indent=1) + "\n", encoding="utf-8")


@distill.command()
@click.option("--trained", type=_FOLDER, required=True, help="What a fast training left.")
@click.option("--out", type=_FOLDER, required=True, help="Gets a checkpoint of each student.")
@_UNSEEN
def release(trained: Path, out: Path, unseen_file: Path) -> None:
    """Make checkpoints, cards included, of what `omm_mlff.distill.fast` left."""
    from omm_mlff.distill.packed import load_packed
    from omm_mlff.distill.release import release as write
    from omm_mlff.distill.transfer import transfer_table
    from omm_mlff.students.student import STUDENT_CONFIGS

    frames = load_packed(unseen_file)
    there = [n for n in STUDENT_CONFIGS if (trained / f"{n}.safetensors").exists()]
    found = {name: write(trained, name, out / name, frames) for name in there}
    if found:
        click.echo(transfer_table(found), nl=False)


def _labels_of(stage: str) -> str:
    return "labels" if stage == "frames" else f"labels-{stage}"


def _say_molecule(
    say: Callable[[str, int, int], None], verb: str, name: str, done: int, total: int
) -> None:
    say(f"{verb}: {name}", done, total)
