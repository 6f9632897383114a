"""Trains students on a pack within a limit of time: on a GPU all of them at once, in minutes.

    python -m omm_mlff.distill.fast --data PACK --out FOLDER --time-limit-s 320 \\
        --starts STARTS --teacher TEACHER --sample-s 40

With the last three it first samples and labels frames itself, and trains on both; these frames are
left in the folder as well.

A step (drawing frames, forces, their gradient, clipping, AdamW, averaged weights) has fixed shapes
and never waits for the device: on CUDA it is recorded once and replayed as a graph, every student
on a stream of its own. Where recording fails, and on a CPU, the same step runs as it stands. Needs
torch, numpy and safetensors; `release` makes a checkpoint of what it leaves.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import hashlib
import json
import math
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor

from omm_mlff.distill.dense import Slab, atomic_energies, by_slab
from omm_mlff.distill.library import library
from omm_mlff.distill.on_device import DeviceSampler
from omm_mlff.distill.packed import (
    SOURCES,
    STRATA,
    PackedFrames,
    PackedScale,
    content_hash,
    joined,
    load_training_pack,
    save_packed,
    selected,
)
from omm_mlff.distill.padded import (
    MAIN_SHARE,
    SizeClass,
    draw_probability,
    draw_table,
    padded,
    roles,
    size_limits,
)
from omm_mlff.distill.starts import load_starts
from omm_mlff.record.replacing import replaced
from omm_mlff.students.student import STUDENT_CONFIGS, Student

Float = NDArray[np.float64]

TARGETS = {"original": (0.025, 0.07), "tiny": (0.035, 0.10), "ultra-tiny": (0.043, 0.15)}
"""Force RMSE in eV/angstrom that is wanted: of what is served first, and of unseen molecules."""

SHARES = {"original": 0.55, "tiny": 0.25, "ultra-tiny": 0.20}
"""Of the time where students take turns."""

PACE = {"original": 1.0, "tiny": 1.2, "ultra-tiny": 1.5}
"""Steps in the same time where they run side by side, so that the small ones leave room."""

LEARNING_RATES = {"original": 2e-3, "tiny": 3e-3, "ultra-tiny": 4e-3}

LOG_FILE = "training.json"

_N_CLASSES = 6
_TABLE_STEPS = 4000
_PROBE_FRAMES = 2400
_QUEUE = 2
"""Steps of a student that wait on its stream: enough to keep it busy, few enough to keep time."""

_AHEAD = 12
"""Of the others while one of them is looked at."""


@dataclass(frozen=True)
class FastPlan:
    """Everything that, with data, device and time, decides what a training ends in."""

    student: str
    seed: int = 1
    batch_size: int = 512
    learning_rate: float = 2e-3
    final_learning_rate: float = 2e-6
    warmup: float = 0.01  # of the time
    weight_decay: float = 1e-4
    clip_norm: float = 5.0
    averaging: float = 0.999
    energy_weight: float = 3.0
    atomic_weight: float = 0.3
    atomic_until: float = 0.5  # of the time: then the shares of atoms are the student's own affair
    force_softness: float = 0.01  # eV/angstrom: smaller errors of a frame count squared
    energy_softness: float = 0.001  # eV/atom
    exact_from: float = 0.8  # of the time: before, matrix products on CUDA round to TF32

    def rate(self, phase: float) -> float:
        """Learning rate at a share of the time: linear warm-up, then a half cosine."""
        if phase < self.warmup:
            return self.learning_rate * max(phase / self.warmup, 0.02)
        phase = min(1.0, (phase - self.warmup) / (1.0 - self.warmup))
        span = self.learning_rate - self.final_learning_rate
        return self.final_learning_rate + 0.5 * span * (1.0 + math.cos(math.pi * phase))

    def atomic(self, phase: float) -> float:
        """Weight of the atoms' own energies at a share of the time."""
        return self.atomic_weight * max(0.0, 1.0 - phase / self.atomic_until)


@dataclass(frozen=True)
class Score:
    """Held-out errors of one moment.

    Attributes
    ----------
    cold, unseen : force RMSE in eV/angstrom, frames of dynamics up to 600 K: mean over what is
        served first, and over molecules held out whole
    by_molecule : the first of the two for each
    energy : RMSE in meV/atom of all held-out frames, after a constant for each molecule
    """

    cold: float
    unseen: float
    by_molecule: dict[str, float]
    energy: float

    def against(self, student: str) -> float:
        """One number: the mean of both errors over what is wanted."""
        cold, unseen = TARGETS[student]
        values = [v for v in (self.cold / cold, self.unseen / unseen) if not math.isnan(v)]
        return float(np.mean(values)) if values else math.nan


class FastTraining:
    """One student's training, step by step, in tensors that never move.

    Parameters
    ----------
    classes : frames to train on
    probability : shape (n_frames,), how often each frame of the pack is drawn
    references : of the free atoms, eV, by atomic number
    device : of everything
    """

    def __init__(
        self,
        plan: FastPlan,
        classes: list[SizeClass],
        probability: Float,
        references: Float,
        device: torch.device,
    ) -> None:
        self.plan = plan
        self.device = device
        torch.manual_seed(plan.seed)
        self.student = new_student(plan.student, references)
        self.network = self.student.network
        self._start_from_mean_energy(classes, probability)
        self.student.to(device)
        self.classes = [c for c in classes if c.n_frames and probability[c.row].sum() > 0.0]
        mass = np.array([probability[c.row].sum() for c in self.classes])
        self.counts = np.maximum(1, np.round(plan.batch_size * mass / mass.sum())).astype(int)
        # A class's share of the batch is a whole number: its weight makes up for that.
        self._emphasis = (mass / mass.sum() * self.counts.sum() / self.counts).tolist()
        self.slabs = [
            Slab(int(n), c.n_atoms) for n, c in zip(self.counts, self.classes, strict=True)
        ]
        self._tables = [
            torch.from_numpy(
                draw_table(probability[c.row], int(n) * _TABLE_STEPS, plan.seed + k)
            ).to(device)
            for k, (n, c) in enumerate(zip(self.counts, self.classes, strict=True))
        ]
        self.parameters = [p for _, p in sorted(self.network.named_parameters())]
        self.flat = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        self.mean = torch.zeros_like(self.flat)
        self.square = torch.zeros_like(self.flat)
        self.averaged = self.flat.clone()
        first = 0
        for p in self.parameters:
            p.data = self.flat[first : first + p.numel()].view(p.shape)
            first += p.numel()
        self.counter = torch.zeros((), dtype=torch.int64, device=device)
        self.rate = torch.zeros((), device=device)
        self.atomic_weight = torch.zeros((), device=device)
        self.sums = torch.zeros(4, device=device)

    def state(self) -> list[Tensor]:
        """Copies of all that a step changes."""
        return [t.clone() for t in self._state()]

    def restore(self, state: list[Tensor]) -> None:
        """Go back to what `state` gave."""
        for mine, kept in zip(self._state(), state, strict=True):
            mine.copy_(kept)

    def _state(self) -> list[Tensor]:
        return [self.flat, self.mean, self.square, self.averaged, self.counter, self.sums]

    def set_phase(self, phase: float, slower: float = 1.0) -> None:
        """Set what depends on the share of the time that is used up."""
        self.rate.fill_(self.plan.rate(phase) * slower)
        self.atomic_weight.fill_(self.plan.atomic(phase))

    def step(self) -> None:
        """One step; nothing in it depends on a number that the host would have to know."""
        drawn = [
            table[(self.counter * n + torch.arange(n, device=self.device)) % len(table)]
            for table, n in zip(self._tables, self.counts.tolist(), strict=True)
        ]
        loss = self._loss(drawn)
        gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            self._descend(torch.cat([g.reshape(-1) for g in gradients]))

    def _loss(self, drawn: list[Tensor]) -> Tensor:
        picked = list(zip(self.classes, drawn, strict=True))
        x = torch.cat([c.positions[rows].flatten(0, 1) for c, rows in picked])
        x.requires_grad_(True)
        real = torch.cat([c.real[rows].flatten() for c, rows in picked])
        index = torch.cat([c.species_index[rows].flatten() for c, rows in picked])
        atomic = atomic_energies(self.network, index, x, real, self.slabs)
        (gradient,) = torch.autograd.grad(atomic.sum(), x, create_graph=True)
        plan = self.plan
        total = torch.zeros((), device=self.device)
        n_all = float(self.counts.sum())
        force_sum = torch.zeros((), device=self.device)
        energy_sum = torch.zeros((), device=self.device)
        for slope, mine, (c, rows), emphasis in zip(
            by_slab(gradient, self.slabs),
            by_slab(atomic, self.slabs),
            picked,
            self._emphasis,
            strict=True,
        ):
            present = c.real[rows].to(x.dtype)
            n_atoms = present.sum(1)
            force_error = ((slope + c.forces[rows]) ** 2).sum(-1)
            mean_square = (force_error * present).sum(1) / n_atoms
            # Linear between frames, squared inside one: see `train`.
            softness = plan.force_softness
            force = torch.sqrt(mean_square + softness**2) - softness
            energy_error = (mine.sum(1) - c.energies[rows]) / n_atoms
            softness = plan.energy_softness
            energy = torch.sqrt(energy_error**2 + softness**2) - softness
            share_error = ((mine - c.atomic[rows]).abs() * present).sum(1) / n_atoms
            per_frame = force + plan.energy_weight * energy
            per_frame = per_frame + self.atomic_weight * c.has_atomic[rows] * share_error
            total = total + (emphasis / n_all) * (c.weights[rows] * per_frame).sum()
            force_sum = force_sum + (emphasis / n_all) * force.detach().sum()
            energy_sum = energy_sum + (emphasis / n_all) * energy_error.detach().abs().sum()
        with torch.no_grad():
            self.sums += torch.stack(
                [total.detach(), force_sum, energy_sum, torch.ones_like(force_sum)]
            )
        return total

    def _descend(self, gradient: Tensor) -> None:
        """Clipped AdamW and the average, each a few operations on all parameters at once."""
        plan = self.plan
        norm = torch.linalg.vector_norm(gradient)
        # A step whose gradient is no number is not taken.
        sound = torch.isfinite(norm)
        factor = torch.nan_to_num(torch.clamp(plan.clip_norm / (norm + 1e-6), max=1.0)) * sound
        gradient = torch.nan_to_num(gradient, posinf=0.0, neginf=0.0) * factor
        self.counter += 1
        t = self.counter.to(gradient.dtype)
        self.mean.lerp_(gradient, 0.1)
        self.square.mul_(0.999).add_(0.001 * gradient * gradient)
        corrected = torch.sqrt(self.square / -torch.expm1(t * math.log(0.999))) + 1e-8
        update = self.mean / -torch.expm1(t * math.log(0.9)) / corrected
        self.flat.mul_(1.0 - self.rate * plan.weight_decay).sub_(self.rate * update)
        keep = torch.clamp((1.0 + t) / (10.0 + t), max=plan.averaging)
        self.averaged.add_((self.flat - self.averaged) * (1.0 - keep))

    def _start_from_mean_energy(self, classes: list[SizeClass], probability: Float) -> None:
        kept = [c for c in classes if c.n_frames]
        total = sum(
            float((c.energies.cpu() / c.real.cpu().sum(1)).double().numpy() @ probability[c.row])
            for c in kept
        )
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                if name.startswith("readout") and parameter.shape == (1,):  # the last bias
                    parameter.fill_(total / sum(float(probability[c.row].sum()) for c in kept))


class Probe:
    """Held-out frames, and a student's errors on them.

    Parameters
    ----------
    frames : the pack
    classes : its held-out frames
    unseen : shape (n_frames of the pack,), mask of molecules held out whole
    """

    def __init__(
        self, frames: PackedFrames, classes: list[SizeClass], unseen: NDArray[np.bool_]
    ) -> None:
        self.classes = [c for c in classes if c.n_frames]
        rows = np.concatenate([c.row for c in self.classes] or [np.zeros(0, dtype=np.int64)])
        self._names = frames.names[frames.molecule[rows]]
        thermal = frames.stratum[rows] == STRATA.index("thermal")
        self._cold = thermal & (frames.temperature_K[rows] <= 600.0)
        self._unseen = unseen[rows]
        self._n_atoms = frames.n_atoms[rows].astype(np.float64)

    def score(self, training: FastTraining, network: torch.nn.Module) -> Score:
        """Errors with the averaged weights, which `network` is given."""
        first = 0
        with torch.no_grad():
            for _, p in sorted(network.named_parameters()):
                p.copy_(training.averaged[first : first + p.numel()].view(p.shape))
                first += p.numel()
        squares: list[Tensor] = []
        energies: list[Tensor] = []
        for c in self.classes:
            many = 500_000 if c.positions.is_cuda else 25_000
            step = max(1, many // c.n_atoms**2)
            for start in range(0, c.n_frames, step):
                part = slice(start, start + step)
                for found, kept in zip(_errors(network, c, part), (squares, energies), strict=True):
                    kept.append(found)
        if not squares:
            return Score(math.nan, math.nan, {}, math.nan)
        square: Float = torch.cat(squares).double().cpu().numpy()
        off: Float = torch.cat(energies).double().cpu().numpy()
        by_molecule = {}
        for name in MAIN_SHARE:
            mine = self._cold & (self._names == name)
            if mine.any():
                by_molecule[name] = _rmse(square[mine], self._n_atoms[mine])
        unseen = self._cold & self._unseen
        for name in np.unique(self._names):
            off[self._names == name] -= np.median(off[self._names == name])
        usual = square / self._n_atoms < 25.0  # walls are no measure of an energy
        return Score(
            float(np.mean(list(by_molecule.values()))) if by_molecule else math.nan,
            _rmse(square[unseen], self._n_atoms[unseen]) if unseen.any() else math.nan,
            by_molecule,
            1000.0 * float(np.sqrt(((off / self._n_atoms)[usual] ** 2).mean()))
            if usual.any()
            else math.nan,
        )


def _rmse(square: Float, n_atoms: Float) -> float:
    return float(np.sqrt(square.sum() / (3.0 * n_atoms.sum())))


def _errors(network: Any, c: SizeClass, part: slice) -> tuple[Tensor, Tensor]:
    """Summed squares of force errors and energy errors of some frames of a class."""
    x = c.positions[part].flatten(0, 1).detach().requires_grad_(True)
    real, n_frames = c.real[part], len(c.positions[part])
    slabs = [Slab(n_frames, c.n_atoms)]
    atomic = atomic_energies(network, c.species_index[part].flatten(), x, real.flatten(), slabs)
    (gradient,) = torch.autograd.grad(atomic.sum(), x)
    error = -gradient.view(n_frames, c.n_atoms, 3) - c.forces[part]
    square = ((error**2).sum(-1) * real).sum(1)
    return square, atomic.detach().view(n_frames, c.n_atoms).sum(1) - c.energies[part]


def new_student(name: str, references: Float) -> Student:
    """An untrained student with its reference energies set."""
    student = Student(STUDENT_CONFIGS[name])
    for row, number in enumerate(student.config.species):
        student.reference_energies[row] = float(references[number])
    return student


def recorded(training: FastTraining, stream: Any, pool: Any) -> tuple[Callable[[], None], Any]:
    """The training's step as a CUDA graph: what replays it, and the graph's memory pool.

    The state is as before when this returns, the precision of products as it is set now.

    Raises
    ------
    RuntimeError : the step cannot be recorded
    """
    state = training.state()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(3):
            training.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        training.step()
    torch.cuda.synchronize()
    training.restore(state)
    torch.cuda.synchronize()
    return graph.replay, graph.pool()


class Run:
    """A training with what it needs to go on beside others: its stream, graphs, log and files."""

    def __init__(
        self,
        training: FastTraining,
        probe: Probe,
        folder: Path,
        about: dict[str, Any],
        say: Callable[[str], None],
        record: Callable[..., tuple[Callable[[], None], Any]] = recorded,
        on_gpu: bool | None = None,
    ) -> None:
        self.training = training
        self.name = training.plan.student
        self.probe = probe
        self.folder = folder
        self.about = about
        self.used = 0.0
        self.n_taken = 0
        self.history: list[dict[str, Any]] = []
        self.best: tuple[float, Tensor] | None = None
        self.slower = 1.0
        self.n_resets = 0
        self._hash = ""
        self._best_state = training.state()
        self._mirror = new_student(self.name, np.zeros(9)).network.to(training.device)
        self._cuda = training.device.type == "cuda" if on_gpu is None else on_gpu
        self._stream: Any = torch.cuda.Stream() if self._cuda else None  # type: ignore[no-untyped-call]
        self._waiting: deque[Any] = deque()
        self._quick = self._exact = training.step
        if self._cuda:
            try:
                _round_to_tf32(True)
                self._quick, pool = record(training, self._stream, None)
                _round_to_tf32(False)
                self._exact, _ = record(training, self._stream, pool)
            except RuntimeError as error:  # the plain step still works
                say(f"{self.name}: no graph ({str(error).splitlines()[0]}); every step is launched")
                with contextlib.suppress(RuntimeError):  # of the recording that failed
                    torch.cuda.synchronize()
                self._quick = self._exact = training.step
            _round_to_tf32(False)

    @property
    def progress(self) -> float:
        """Steps taken, on the scale on which students that keep their pace are level."""
        return self.n_taken / PACE.get(self.name, 1.0)

    def ready(self, n_waiting: int = _QUEUE) -> bool:
        """Whether fewer steps than this wait on its stream."""
        while self._waiting and self._waiting[0].query():
            self._waiting.popleft()
        return len(self._waiting) < n_waiting

    def advance(self, phase: float) -> None:
        """Enqueue a step, or take it where there is no stream."""
        self.n_taken += 1
        step = self._quick if phase < self.training.plan.exact_from else self._exact
        if not self._cuda:
            begin = time.perf_counter()
            self.training.set_phase(phase, self.slower)
            step()
            self.used += time.perf_counter() - begin
            return
        with torch.cuda.stream(self._stream):
            self.training.set_phase(phase, self.slower)
            step()
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
        self._waiting.append(event)

    def look(self, seconds: float, phase: float) -> str:
        """Measure, remember the best, go back from a training that has run away; one line."""
        # On its own stream, or what is read here would be half a step old and half a step new.
        with torch.cuda.stream(self._stream) if self._cuda else contextlib.nullcontext():
            line = self._look(seconds, phase)
        if self._cuda:
            self._stream.synchronize()
        return line

    def _look(self, seconds: float, phase: float) -> str:
        score = self.probe.score(self.training, self._mirror)
        loss, force, energy, n = self.training.sums.double().cpu().tolist()
        self.training.sums.zero_()
        steps = int(self.training.counter.item())
        value = score.against(self.name)
        row = {
            "seconds": round(seconds, 1),
            "phase": round(phase, 4),
            "step": steps,
            "rate": self.training.plan.rate(phase) * self.slower,
            "loss": loss / max(n, 1.0),
            "force_error": force / max(n, 1.0),
            "energy_error": energy / max(n, 1.0),
            "heldout_cold": score.cold,
            "heldout_unseen": score.unseen,
            "heldout_energy_meV_atom": score.energy,
            "by_molecule": score.by_molecule,
            "score": value,
        }
        self.history.append(row)
        note = ""
        if self.best is None or value < self.best[0]:
            self.best = (value, self.training.averaged.clone())
            self._best_state = self.training.state()
        elif not math.isfinite(value) or (phase > 0.1 and value > 3.0 * self.best[0]):
            self.training.restore(self._best_state)
            self.slower *= 0.5
            self.n_resets += 1
            note = "  ran away: back to its best, half as fast"
        return (
            f"{seconds:6.1f} s  {self.name:10s} step {steps:6d}  loss {row['loss']:.4f}  held out: "
            f"cold {score.cold:.4f}  unseen {score.unseen:.4f}  energy {score.energy:.2f} meV/atom"
            f"{note}"
        )

    def save(self) -> None:
        """Write the best weights so far."""
        if self.best is None:
            return
        student = new_student(self.name, np.array(self.about["free_atoms_eV"]))
        first, flat = 0, self.best[1].cpu()
        with torch.no_grad():
            for _, p in sorted(student.network.named_parameters()):
                p.copy_(flat[first : first + p.numel()].view(p.shape))
                first += p.numel()
        tensors = {name: tensor.contiguous() for name, tensor in student.state_dict().items()}
        payload = save(tensors)
        _replace(self.folder / f"{self.name}.safetensors", payload)
        self._hash = hashlib.sha256(payload).hexdigest()

    def log(self) -> dict[str, Any]:
        """What there is to say of it."""
        return {
            "plan": dataclasses.asdict(self.training.plan),
            "sha256": self._hash,
            "n_steps": int(self.training.counter.item()),
            "batch_size": int(self.training.counts.sum()),
            "n_resets": self.n_resets,
            "history": self.history,
        }


def train_all(
    frames: PackedFrames,
    scale: PackedScale,
    folder: Path,
    plans: list[FastPlan],
    *,
    device: torch.device,
    time_limit_s: float,
    say: Callable[[str], None],
    start: Path | None = None,
    look_every_s: float = 5.0,
    save_every_s: float = 20.0,
    began: float | None = None,
) -> None:
    """Train every student until the time is up; the best weights and the log are in `folder`.

    Parameters
    ----------
    time_limit_s : for everything, from `began` on
    start : a folder that an earlier training left: its weights are started from
    began : `time.monotonic()` when the time began to count; now where None
    """
    began = time.monotonic() if began is None else began

    def spent() -> float:
        return time.monotonic() - began

    def keep() -> None:
        for run in runs:
            run.save()
        log = {**about, "students": {run.name: run.log() for run in runs}}
        _replace(folder / LOG_FILE, (json.dumps(log, indent=1) + "\n").encode())

    folder.mkdir(parents=True, exist_ok=True)
    trainings, probe, about = _prepared(frames, scale, plans, device, start)
    runs = [Run(training, probe, folder, about, say) for training in trainings]
    say(f"{spent():6.1f} s  prepared; batches of {[int(r.training.counts.sum()) for r in runs]}")
    reserve = min(6.0, 0.05 * time_limit_s)
    first = spent()
    last_look, last_save, looked_for = first, first, 0.0
    while (now := spent()) < time_limit_s - reserve:
        phase = (now - first) / max(1e-9, time_limit_s - reserve - first)
        if device.type == "cuda":
            slowest = min(run.progress for run in runs)
            ready = [run for run in runs if run.progress <= slowest + 2.0 and run.ready()]
            for run in ready:
                run.advance(phase)
            if not ready:
                time.sleep(5e-5)
        else:
            min(runs, key=lambda r: r.used / SHARES.get(r.name, 0.2)).advance(phase)
        if now - last_look >= max(look_every_s, 10.0 * looked_for):
            last_look = now
            for run in runs:
                for other in runs:
                    while device.type == "cuda" and other is not run and other.ready(_AHEAD):
                        other.advance(phase)
                say(run.look(spent(), phase))
            looked_for = spent() - now
        if now - last_save >= save_every_s:
            last_save = now
            keep()
    if device.type == "cuda":
        torch.cuda.synchronize()
    for run in runs:
        say(run.look(spent(), 1.0))
    keep()
    say(f"{spent():6.1f} s  done")


def _prepared(
    frames: PackedFrames,
    scale: PackedScale,
    plans: list[FastPlan],
    device: torch.device,
    start: Path | None,
) -> tuple[list[FastTraining], Probe, dict[str, Any]]:
    aside, unseen = roles(frames, seed=0)
    trained = ~(aside | unseen)
    probability = draw_probability(frames, trained)
    limits = size_limits(frames.n_atoms.astype(np.int64), probability, _N_CLASSES)
    any_student = new_student(plans[0].student, scale.free_atoms)
    classes = padded(frames, np.flatnonzero(trained), limits, any_student, scale, device)
    probe_rows = _probe_rows(frames, aside, unseen)
    probe = Probe(frames, padded(frames, probe_rows, limits, any_student, scale, device), unseen)
    about = {
        "data_hash": content_hash(frames),
        "n_frames": int(trained.sum()),
        "n_held_out": int((~trained).sum()),
        "size_classes": limits,
        "training_domain": _domain(frames, trained),
        "free_atoms_eV": scale.free_atoms.tolist(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": torch.__version__,
    }
    prepared = []
    for plan in plans:
        training = FastTraining(plan, classes, probability, scale.free_atoms, device)
        if start is not None and (start / f"{plan.student}.safetensors").exists():
            tensors = load_file(start / f"{plan.student}.safetensors")
            names = [name for name, _ in sorted(training.network.named_parameters())]
            flat = torch.cat([tensors[f"network.{name}"].reshape(-1) for name in names])
            training.flat.copy_(flat)
            training.averaged.copy_(flat)
        prepared.append(training)
    return prepared, probe, about


def _domain(frames: PackedFrames, trained: NDArray[np.bool_]) -> dict[str, Any]:
    """What a card says of the frames that were trained on."""
    names = frames.names[np.unique(frames.molecule[trained])].tolist()
    kelvin = frames.temperature_K[trained]
    kelvin = kelvin[kelvin > 0.0]
    single = {entry.smiles for entry in library()} | set(MAIN_SHARE)

    def counts(rows: NDArray[np.int8], of: tuple[str, ...]) -> dict[str, int]:
        numbers = np.bincount(rows[trained], minlength=len(of)).tolist()
        return {name: n for name, n in zip(of, numbers, strict=True) if n}

    return {
        "molecules": sorted(name for name in names if name in single),
        "n_pairs_and_clusters": sum(name not in single for name in names),
        "charge": 0,
        "temperature_K": [float(kelvin.min()), float(kelvin.max())] if len(kelvin) else None,
        "n_frames": int(trained.sum()),
        "strata": counts(frames.stratum, STRATA),
        "labels": counts(frames.source, SOURCES),
    }


def _probe_rows(
    frames: PackedFrames, aside: NDArray[np.bool_], unseen: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Some of the held-out frames: a third each of what is served first, unseen, and all else."""
    main = np.isin(frames.names, list(MAIN_SHARE))[frames.molecule]
    rng = np.random.default_rng(0)
    chosen = []
    for mask in (aside & main, unseen, aside & ~main):
        rows = np.flatnonzero(mask)
        chosen.append(rng.permutation(rows)[: _PROBE_FRAMES // 3])
    return np.sort(np.concatenate(chosen))


def _round_to_tf32(allowed: bool) -> None:
    torch.set_float32_matmul_precision("high" if allowed else "highest")


def _replace(path: Path, payload: bytes) -> None:
    with replaced(path) as partial:
        partial.write_bytes(payload)


def keep_frames(
    frames: PackedFrames, scale: PackedScale, folder: Path, n_files: int
) -> list[Thread]:
    """Write frames to files of like size, each by a thread that xz does not keep from training."""
    owner = np.arange(frames.n_frames) * n_files // max(1, frames.n_frames)
    threads = []
    for k in range(n_files):
        part = selected(frames, owner == k)
        path = folder / f"frames-{k}.npz.xz"
        threads.append(Thread(target=save_packed, args=(path, part, scale), daemon=True))
        threads[-1].start()
    return threads


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="omm_mlff.distill.fast")
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--time-limit-s", type=float, default=320.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--student", action="append", choices=list(STUDENT_CONFIGS))
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=Path, help="weights of an earlier training to go on from")
    parser.add_argument("--starts", type=Path, help="structures to sample from")
    parser.add_argument("--teacher", type=Path, help="the teacher's tensors")
    parser.add_argument("--sample-s", type=float, default=40.0)
    parser.add_argument("--sample-frames", type=int, default=300_000)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    plans = [
        FastPlan(name, options.seed, options.batch_size, LEARNING_RATES[name])
        for name in options.student or list(STUDENT_CONFIGS)
    ]

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    packs = [load_training_pack(path) for path in options.data]
    frames, scale = joined([pack for pack, _ in packs]), packs[0][1]
    say(f"{time.monotonic() - began:6.1f} s  {frames.n_frames} frames read")
    writing: list[Thread] = []
    if options.starts is not None and options.teacher is not None:
        more: PackedFrames | None = None
        try:
            sampler = DeviceSampler(
                load_starts(options.starts), load_file(options.teacher), device, options.seed
            )
            more = sampler.run(options.sample_s, options.sample_frames, say)
        except Exception:  # the command line's edge: there are other frames to train on
            say(traceback.format_exc() + "no frames are sampled; those of --data remain")
        if more is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            # 11 bytes an atom when packed; files of no more than 15 MB.
            n_files = min(4, 1 + 11 * len(more.species) // 15_000_000)
            writing = keep_frames(more, scale, options.out, n_files)
            frames = joined([frames, more])
    say(
        f"{time.monotonic() - began:6.1f} s  {frames.n_frames} frames of {len(frames.names)} "
        f"molecules, {frames.n_atoms.mean():.1f} atoms each"
    )
    train_all(
        frames,
        scale,
        options.out,
        plans,
        device=device,
        time_limit_s=options.time_limit_s,
        say=say,
        start=options.start,
        began=began,
    )
    for thread in writing:
        thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
