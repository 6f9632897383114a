"""Trains a student on labelled frames."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import math
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omm_mlff.distill.batches import Batch, FrameStore
from omm_mlff.distill.frames import Frames, LabelledFrames, data_hash, load_labels
from omm_mlff.distill.label import load_references
from omm_mlff.distill.sample import MAIN
from omm_mlff.distill.surface import student_function
from omm_mlff.errors import InputError, OutputExistsError, UnknownNameError
from omm_mlff.students.checkpoint import save_student
from omm_mlff.students.student import STUDENT_CONFIGS, Student
from omm_mlff.teachers.ani import TEACHER_NAME
from omm_mlff.teachers.xtb import XTB_NAME

STATE_FILE = "state.pt"
HISTORY_FILE = "history.csv"
CURVE_FILE = "loss.png"
HISTORY_COLUMNS = ("step", "learning_rate", "loss", "force_mae", "energy_mae", "heldout_force_rmse")

# Shares of all draws. Inside a stratum a molecule's share goes with the root of its frames, times
# its weight: few frames of stretched bonds are not drowned by many, and small molecules are learnt
# long before the larger ones.
_STRATUM_SHARE = {"thermal": 0.52, "modes": 0.03, "bond": 0.20, "approach": 0.15, "excursion": 0.10}
_MOLECULE_WEIGHT = {"alanine": 3.0, "alanine-dipeptide": 2.5, "ethanol": 1.5, "glycine": 1.5}

COLD_K = (200.0, 500.0)
"""The range of temperatures that the first targets are stated for."""


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that, with the data, decides what a training ends in."""

    student: str
    n_steps: int
    seed: int
    batch_size: int = 32
    learning_rate: float = 2e-3
    final_learning_rate: float = 1e-5
    warmup: int = 100
    weight_decay: float = 1e-4
    clip_norm: float = 5.0
    averaging: float = 0.999
    energy_weight: float = 0.5
    force_softness: float = 0.02  # eV/angstrom: smaller errors of a frame count squared
    energy_softness: float = 0.002  # eV/atom
    force_scale: float = 10.0  # eV/angstrom, see FrameStore

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, then a half cosine."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        phase = (step - self.warmup) / max(1, self.n_steps - self.warmup)
        span = self.learning_rate - self.final_learning_rate
        return self.final_learning_rate + 0.5 * span * (1.0 + math.cos(math.pi * phase))


@dataclass(frozen=True)
class Report:
    """What a training tells while it runs."""

    step: int
    n_steps: int
    loss: float
    force_mae: float
    energy_mae: float
    heldout_force_rmse: float | None


def held_out(frames: Frames, seed: int) -> NDArray[np.bool_]:
    """Frames that no training sees: whole trajectories and paths, never single frames.

    One in six of a molecule's trajectories at each temperature where there are four or more, else
    one in eight of a stratum's; none of a stratum with fewer than four.

    Returns
    -------
    shape (n_frames,), mask
    """
    rng = np.random.default_rng(zlib.crc32(f"{seed}/{frames.molecule}/split".encode()))
    chosen: list[int] = []
    for stratum in sorted(set(frames.stratum.tolist())):
        rows = np.flatnonzero(frames.stratum == stratum)
        numbers, first = np.unique(frames.trajectory[rows], return_index=True)
        temperature = frames.temperature_K[rows[first]]
        groups = [numbers[temperature == t] for t in np.unique(temperature)]
        if min(len(group) for group in groups) < 4:
            groups = [numbers]
        for group in groups:
            if len(group) >= 4:
                share = 6 if len(groups) > 1 else 8
                chosen += rng.choice(group, max(1, len(group) // share), replace=False).tolist()
    return np.isin(frames.trajectory, chosen)


def select(labelled: LabelledFrames, rows: NDArray[np.bool_]) -> LabelledFrames:
    """Some of the labelled frames of a molecule."""
    return LabelledFrames(
        labelled.frames.select(rows),
        labelled.energies[rows],
        labelled.forces[rows],
        labelled.spread[rows],
        labelled.source[rows],
        labelled.n_dropped,
    )


def load_folders(folders: list[Path]) -> tuple[list[LabelledFrames], dict[int, float]]:
    """Labelled frames of one or more folders, and the reference energies of the first.

    Raises
    ------
    InputError : a folder without labels
    """
    labelled: list[LabelledFrames] = []
    for folder in folders:
        files = sorted(folder.glob("*.npz"))
        if not files:
            raise InputError(f"{folder} holds no labelled frames; run: omm-mlff distill label")
        labelled += [load_labels(file) for file in files]
    return labelled, load_references(folders[0])


class Training:
    """One training, step by step; resumed from its folder it continues bit for bit.

    Parameters
    ----------
    plan : what to train, and how long
    labelled : all frames; what is held out is set apart here
    references : atomic reference energies, eV, by atomic number
    folder : gets the state, the history and the loss curve

    Raises
    ------
    UnknownNameError : no student of that name
    """

    def __init__(
        self,
        plan: TrainingPlan,
        labelled: list[LabelledFrames],
        references: dict[int, float],
        folder: Path,
    ) -> None:
        if plan.student not in STUDENT_CONFIGS:
            raise UnknownNameError("student", plan.student, STUDENT_CONFIGS)
        self.plan = plan
        self.folder = folder
        self.data_hash = data_hash(labelled)
        torch.manual_seed(plan.seed)
        self.student = Student(STUDENT_CONFIGS[plan.student])
        for row, number in enumerate(self.student.config.species):
            self.student.reference_energies[row] = references[number]
        masks = [held_out(item.frames, plan.seed) for item in labelled]
        self.trained_on = [select(i, ~m) for i, m in zip(labelled, masks, strict=True)]
        self.tested_on = [select(i, m) for i, m in zip(labelled, masks, strict=True)]
        self.store = FrameStore(self.student, self.trained_on, plan.force_scale)
        self.probability = _draw_probability(self.trained_on)
        self._probe = self._build_probe()
        self._start_from_mean_energy()
        self.network = self.student.network
        self.averaged = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay
        )
        self.step = 0
        self.history: list[tuple[float, ...]] = []

    def run(
        self,
        *,
        resume: bool = False,
        until: int | None = None,
        report_every: int = 100,
        progress: Callable[[Report], None] | None = None,
    ) -> None:
        """Train to the end, or to step `until`, saving every so many steps.

        Raises
        ------
        OutputExistsError : the folder holds a training, and `resume` was not asked for
        InputError : the training in the folder was begun with another plan or other data
        """
        state_file = self.folder / STATE_FILE
        if state_file.exists():
            if not resume:
                raise OutputExistsError(
                    f"{self.folder} holds a training; continue it with --resume or name another"
                )
            self._load(state_file)
        self.folder.mkdir(parents=True, exist_ok=True)
        last = self.plan.n_steps if until is None else min(until, self.plan.n_steps)
        sums = np.zeros(4)
        while self.step < last:
            sums += (*self._advance(), 1.0)
            if self.step % report_every == 0 or self.step == last:
                loss, force_mae, energy_mae = (sums[:3] / sums[3]).tolist()
                sums[:] = 0.0
                rmse = self._probe_rmse() if self.step % (5 * report_every) == 0 else None
                self.history.append(
                    (
                        self.step,
                        self.plan.rate(self.step - 1),
                        loss,
                        force_mae,
                        energy_mae,
                        math.nan if rmse is None else rmse,
                    )
                )
                self._save(state_file)
                if progress is not None:
                    progress(
                        Report(self.step, self.plan.n_steps, loss, force_mae, energy_mae, rmse)
                    )

    def finished_student(self) -> Student:
        """The student with averaged weights, as it is released."""
        student = copy.deepcopy(self.student)
        student.network.load_state_dict(self.averaged.state_dict())
        student.eval()
        student.requires_grad_(False)
        return student

    def card(self) -> dict[str, Any]:
        """What the checkpoint says of its training, held-out errors included."""
        counts: dict[str, int] = {}
        sources: dict[str, int] = {}
        for item in self.trained_on:
            for stratum, n in zip(*np.unique(item.frames.stratum, return_counts=True), strict=True):
                counts[str(stratum)] = counts.get(str(stratum), 0) + int(n)
            for source, n in zip(*np.unique(item.source, return_counts=True), strict=True):
                sources[str(source)] = sources.get(str(source), 0) + int(n)
        temperatures = np.concatenate([i.frames.temperature_K for i in self.trained_on])
        temperatures = temperatures[temperatures > 0]
        return {
            "teacher": TEACHER_NAME,
            "teacher_outside_its_range": f"{XTB_NAME}, aligned at the join",
            "seed": self.plan.seed,
            "data_hash": self.data_hash,
            "training": dataclasses.asdict(self.plan),
            "reference_energies": (
                "free atoms on the teacher's scale: the energy without them is minus the energy "
                "of atomisation"
            ),
            "training_domain": {
                "molecules": sorted({i.frames.molecule for i in self.trained_on}),
                "charge": 0,
                "temperature_K": [float(temperatures.min()), float(temperatures.max())]
                if len(temperatures)
                else None,
                "n_frames": int(sum(counts.values())),
                "strata": counts,
                "labels": sources,
                "n_dropped": int(sum(i.n_dropped for i in self.trained_on)),
            },
            "held_out": held_out_errors(self.finished_student(), self.tested_on),
        }

    def release(self, folder: Path) -> None:
        """Write the checkpoint: safetensors and card."""
        save_student(folder, self.finished_student(), self.card())

    def _advance(self) -> tuple[float, float, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(self.step)
        # The draw follows from seed and step alone: nothing to save, nothing to lose.
        rng = np.random.default_rng((self.plan.seed, self.step))
        rows = rng.choice(self.store.n_frames, self.plan.batch_size, p=self.probability)
        batch = self.store.batch(torch.from_numpy(rows))
        self.optimizer.zero_grad(set_to_none=True)
        loss, force_mae, energy_mae = _loss(self.student, batch, self.plan)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.clip_norm)
        self.optimizer.step()
        self.step += 1
        keep = min(self.plan.averaging, (1.0 + self.step) / (10.0 + self.step))
        with torch.no_grad():
            for mean, now in zip(
                self.averaged.parameters(), self.network.parameters(), strict=True
            ):
                mean.lerp_(now, 1.0 - keep)
        return float(loss.detach()), force_mae, energy_mae

    def _start_from_mean_energy(self) -> None:
        mean = float((self.store.energies / self.store.n_atoms).mean())
        with torch.no_grad():
            for name, parameter in self.student.network.named_parameters():
                if name.startswith("readout") and parameter.shape == (1,):  # the last bias
                    parameter.fill_(mean)

    def _build_probe(self) -> list[LabelledFrames]:
        """A few cold held-out frames of what matters most, to watch while training."""
        probe = []
        for item in self.tested_on:
            if item.frames.molecule in MAIN:
                rows = np.flatnonzero(cold(item.frames) & (item.source == "teacher"))
                mask = np.zeros(item.frames.n_frames, dtype=bool)
                mask[rows[:: max(1, len(rows) // 24)]] = True
                probe.append(select(item, mask))
        return probe

    def _probe_rmse(self) -> float | None:
        errors = held_out_errors(self.finished_student(), self._probe)
        values = [row["force_rmse_eV_per_angstrom"] for row in errors if row["stratum"] == "cold"]
        return float(np.mean(values)) if values else None

    def _save(self, path: Path) -> None:
        _atomically(
            path,
            lambda partial: torch.save(
                {
                    "plan": json.dumps(dataclasses.asdict(self.plan)),
                    "data_hash": self.data_hash,
                    "step": self.step,
                    "network": self.network.state_dict(),
                    "averaged": self.averaged.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "history": torch.tensor(self.history, dtype=torch.float64),
                },
                partial,
            ),
        )
        _atomically(self.folder / HISTORY_FILE, self._write_history)

    def _load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        if state["plan"] != json.dumps(dataclasses.asdict(self.plan)):
            raise InputError(
                f"{self.folder} holds a training with another plan ({state['plan']}); "
                "repeat its options or name another folder"
            )
        if state["data_hash"] != self.data_hash:
            raise InputError(f"{self.folder} holds a training on other data; name another folder")
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = [tuple(row) for row in state["history"].tolist()]

    def _write_history(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(HISTORY_COLUMNS)
            writer.writerows(
                (int(row[0]), *(f"{value:.6g}" for value in row[1:])) for row in self.history
            )


def cold(frames: Frames) -> NDArray[np.bool_]:
    """Frames of dynamics within `COLD_K`: shape (n_frames,), mask."""
    t = frames.temperature_K
    return np.asarray((frames.stratum == "thermal") & (t >= COLD_K[0]) & (t <= COLD_K[1]))


def held_out_errors(student: Student, labelled: list[LabelledFrames]) -> list[dict[str, Any]]:
    """Errors of a student by molecule and stratum; "cold" is the part of "thermal" at 200 to 500 K.

    Returns
    -------
    a row each: system, stratum, n_frames, force RMSE in eV/angstrom, energy RMSE in meV/atom
    """
    rows: list[dict[str, Any]] = []
    merged: dict[tuple[str, str], list[tuple[NDArray[Any], NDArray[Any]]]] = {}
    for item in labelled:
        frames = item.frames
        if frames.n_frames == 0:
            continue
        function = student_function(student, frames.species, references=True)
        parts = [
            function(frames.positions[start : start + 64])
            for start in range(0, frames.n_frames, 64)
        ]
        energy_error = np.concatenate([energies for energies, _ in parts]) - item.energies
        force_error = np.concatenate([forces for _, forces in parts]) - item.forces
        masks = {s: frames.stratum == s for s in sorted(set(frames.stratum.tolist()))}
        masks["cold"] = cold(frames)
        for stratum, mask in masks.items():
            if mask.any():
                merged.setdefault((frames.molecule, stratum), []).append(
                    (force_error[mask], energy_error[mask] / frames.n_atoms)
                )
    for (molecule, stratum), found in sorted(merged.items()):
        force = np.concatenate([f for f, _ in found])
        energy = np.concatenate([e for _, e in found])
        rows.append(
            {
                "system": molecule,
                "stratum": stratum,
                "n_frames": len(energy),
                "force_rmse_eV_per_angstrom": _rounded(np.sqrt((force**2).mean())),
                "energy_rmse_meV_per_atom": _rounded(1000.0 * np.sqrt((energy**2).mean())),
            }
        )
    return rows


def plot_history(history_file: Path, picture: Path) -> None:
    """Draw the loss curve; needs the extra `report`.

    Raises
    ------
    MissingPackageError : matplotlib is not installed
    """
    try:
        import matplotlib
    except ImportError as error:
        from omm_mlff.errors import MissingPackageError

        raise MissingPackageError(
            "matplotlib", "the loss curve", "pip install 'omm-mlff[report]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    table = np.genfromtxt(history_file, delimiter=",", names=True)
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for column, name in (
        ("loss", "training loss"),
        ("force_mae", "force error of a batch, mean, eV/Å"),
        ("heldout_force_rmse", "held-out force RMSE at 200 to 500 K, eV/Å"),
    ):
        rows = np.isfinite(np.atleast_1d(table[column]))
        axes.semilogy(
            np.atleast_1d(table["step"])[rows], np.atleast_1d(table[column])[rows], label=name
        )
    axes.set_xlabel("step")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


def _loss(student: Student, batch: Batch, plan: TrainingPlan) -> tuple[Tensor, float, float]:
    x = batch.positions.requires_grad_(True)
    r_ij = x[batch.idx_j] - x[batch.idx_i]
    d_ij = torch.sqrt((r_ij * r_ij).sum(-1))
    atomic = student.network(batch.species_index, batch.idx_i, batch.idx_j, r_ij, d_ij)
    n_frames = len(batch.energies)
    energy = torch.zeros(n_frames).index_add(0, batch.frame, atomic)
    (gradient,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
    force_error = ((-gradient - batch.forces) ** 2).sum(-1)
    mean_square = torch.zeros(n_frames).index_add(0, batch.frame, force_error) / batch.n_atoms_of
    # Linear between frames, so that one wild frame cannot take over a step; squared inside a frame,
    # so that the two atoms of a stretched bond are not outvoted by the ten that are at rest.
    per_frame = torch.sqrt(mean_square + plan.force_softness**2) - plan.force_softness
    energy_error = (energy - batch.energies) / batch.n_atoms_of
    soft_energy = torch.sqrt(energy_error**2 + plan.energy_softness**2) - plan.energy_softness
    loss = (batch.weights * (per_frame + plan.energy_weight * soft_energy)).mean()
    return (
        loss,
        float(force_error.detach().sqrt().mean()),
        float(energy_error.detach().abs().mean()),
    )


def _draw_probability(labelled: list[LabelledFrames]) -> NDArray[np.float64]:
    """Shape (n_frames,), in the order of the frame store."""
    molecule = np.concatenate([np.full(i.frames.n_frames, i.frames.molecule) for i in labelled])
    stratum = np.concatenate([i.frames.stratum for i in labelled])
    probability = np.zeros(len(stratum))
    for name, share in _STRATUM_SHARE.items():
        rows = stratum == name
        molecules, which, counts = np.unique(
            molecule[rows], return_inverse=True, return_counts=True
        )
        weight = np.array([_MOLECULE_WEIGHT.get(m, 1.0) for m in molecules.tolist()])
        each = weight * np.sqrt(counts) / counts
        if len(each):
            probability[rows] = share * each[which] / (each * counts).sum()
    return np.asarray(probability / probability.sum(), dtype=np.float64)


def _atomically(path: Path, write: Callable[[Path], None]) -> None:
    partial = path.with_name(path.name + ".partial")
    write(partial)
    os.replace(partial, path)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
