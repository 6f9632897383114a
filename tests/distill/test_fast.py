"""The fast trainer on a CPU: its step, its draws, its files, and its ways out."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from omm_mlff.distill import fast
from omm_mlff.distill.fast import LOG_FILE, FastPlan, FastTraining, Probe, Run, train_all
from omm_mlff.distill.frames import Frames
from omm_mlff.distill.library import library
from omm_mlff.distill.packed import GRID, PackedFrames, PackedScale, joined, save_packed
from omm_mlff.distill.padded import (
    draw_probability,
    draw_table,
    groups,
    padded,
    roles,
    size_limits,
)
from omm_mlff.students.student import STUDENT_CONFIGS, Student

CPU = torch.device("cpu")
FREE = np.zeros(9)
FREE[[1, 6, 7, 8]] = -13.6, -1028.0, -1484.0, -2041.0
SCALE = PackedScale(FREE, FREE + 0.25)
PLAN = FastPlan("ultra-tiny", seed=3, batch_size=8)

WATER = ("water", [8, 1, 1], [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
METHANE = (
    "methane",
    [6, 1, 1, 1, 1],
    (0.63 * np.array([[0, 0, 0], [1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]])).tolist(),
)
WATCHED = next(e.smiles for e in library() if e.role == "validation")


def springs(name, species, rest, seed, n_frames=48):
    """Frames on a closed-form surface: a spring between every two atoms."""
    rng = np.random.default_rng(seed)
    species, rest = np.array(species), np.array(rest)
    n = len(species)
    x = np.round((rest + 0.05 * rng.standard_normal((n_frames, n, 3))) / GRID) * GRID
    i, j = np.triu_indices(n, 1)
    offset = x[:, j] - x[:, i]
    d = np.linalg.norm(offset, axis=-1)
    stretch = d - np.linalg.norm(rest[j] - rest[i], axis=-1)
    pull = (20.0 * stretch / d)[..., None] * offset
    forces = np.zeros_like(x)
    for k in range(len(i)):
        forces[:, i[k]] += pull[:, k]
        forces[:, j[k]] -= pull[:, k]
    energies = 10.0 * (stretch**2).sum(1) + FREE[species].sum() - 4.0 * (n - 1)
    frames = Frames(
        name,
        species,
        np.array([[0, 1]]),
        np.array([1.0]),
        x,
        np.full(n_frames, "thermal"),
        np.arange(n_frames) // 2,
        np.full(n_frames, 300.0),
    )
    shares = np.zeros((n_frames, n)) + ((energies - (FREE + 0.25)[species].sum()) / n)[:, None]
    return PackedFrames.of_molecule(frames, energies, forces, shares, np.full(n_frames, "teacher"))


@pytest.fixture(scope="module")
def frames():
    return joined([springs(*WATER, 1), springs(*METHANE, 2)])


def prepared(frames, plan=PLAN):
    student = fast.new_student(plan.student, FREE)
    rows = np.arange(frames.n_frames)
    classes = padded(frames, rows, [3, 6], student, SCALE, CPU)
    probability = np.full(frames.n_frames, 1.0 / frames.n_frames)
    return FastTraining(plan, classes, probability, FREE, CPU)


def test_targets_are_the_labels_less_the_prior_and_the_references(frames):
    student = fast.new_student("ultra-tiny", FREE)
    (water, methane) = padded(frames, np.arange(frames.n_frames), [3, 6], student, SCALE, CPU)
    assert (water.n_frames, methane.n_frames) == (48, 48)
    from omm_mlff.distill.batches import prior_labels

    x = frames.positions[: 48 * 3].reshape(48, 3, 3) * GRID
    energy, forces = prior_labels(student, np.array([8, 1, 1]), x)
    np.testing.assert_allclose(
        water.forces.numpy(),
        frames.forces[: 48 * 3].reshape(48, 3, 3).astype(float) - forces,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        water.energies.numpy(),
        frames.energies[:48] - energy - (FREE[8] + 2 * FREE[1]),
        atol=1e-4,
    )
    # The atoms' shares add up to the energy, within float16 of each.
    np.testing.assert_allclose(water.atomic.sum(1).numpy(), water.energies.numpy(), atol=2e-2)
    assert not methane.real[:, 5].any()
    assert (methane.forces[:, 5] == 0.0).all()


def test_a_step_is_clipped_adamw_on_the_loss(frames):
    training = prepared(frames)
    training.set_phase(0.2)
    twin = prepared(frames)
    optimizer = torch.optim.AdamW(
        [torch.nn.Parameter(p.detach().clone()) for p in training.parameters],
        lr=PLAN.rate(0.2),
        weight_decay=PLAN.weight_decay,
    )
    twin.set_phase(0.2)
    for _ in range(4):
        drawn = [
            table[(twin.counter * n + torch.arange(n)) % len(table)]
            for table, n in zip(twin._tables, twin.counts.tolist(), strict=True)
        ]
        gradients = torch.autograd.grad(twin._loss(drawn), twin.parameters)
        for parameter, gradient in zip(optimizer.param_groups[0]["params"], gradients, strict=True):
            parameter.grad = gradient.detach().clone()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], PLAN.clip_norm)
        optimizer.step()
        training.step()
        twin.restore(training.state())
    for mine, theirs in zip(training.parameters, optimizer.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=2e-6)


def test_a_gradient_that_is_no_number_changes_no_parameter_but_by_decay(frames):
    training = prepared(frames)
    training.set_phase(0.2)
    before = training.flat.clone()
    with torch.no_grad():
        training._descend(torch.full_like(training.flat, math.nan))
    torch.testing.assert_close(training.flat, before, rtol=1e-5, atol=0.0)
    assert torch.isfinite(training.square).all()


def test_training_learns_the_surface(frames):
    training = prepared(frames, dataclasses.replace(PLAN, batch_size=16))
    probe = Probe(frames, training.classes, np.zeros(frames.n_frames, dtype=bool))
    mirror = fast.new_student("ultra-tiny", FREE).network
    first = probe.score(training, mirror)
    for step in range(120):
        training.set_phase(step / 120)
        training.step()
    last = probe.score(training, mirror)
    assert last.cold < 0.35 * first.cold
    assert last.energy < 40.0


def test_the_same_seed_trains_the_same_student(frames):
    ends = []
    for _ in range(2):
        training = prepared(frames)
        training.set_phase(0.3)
        for _ in range(3):
            training.step()
        ends.append(training.averaged.clone())
    assert torch.equal(*ends)


def test_frames_are_drawn_as_often_as_their_probability_says():
    probability = np.array([0.5, 0.25, 0.2, 0.05, 0.0])
    table = draw_table(probability, 1000, seed=1)
    counts = np.bincount(table, minlength=5)
    assert np.abs(counts - 1000 * probability).max() <= 1.0
    assert counts[4] == 0
    assert not np.array_equal(table, np.sort(table))


def test_sizes_are_parted_where_padding_costs_least():
    sizes = np.array([3] * 10 + [4] * 10 + [20] * 10 + [21] * 10)
    assert size_limits(sizes, np.ones(40), 2) == [4, 21]
    assert size_limits(sizes, np.ones(40), 9) == [3, 4, 20, 21]


def test_molecules_held_out_whole_are_not_trained_on_and_test_molecules_not_even_packed(frames):
    watched = springs(WATCHED, *METHANE[1:], 3)
    whole = joined([frames, watched])
    aside, unseen = roles(whole, seed=0)
    names = whole.names[whole.molecule]
    assert (unseen == (names == WATCHED)).all()
    assert not (aside & unseen).any()
    # By whole trajectories.
    for name in ("water", "methane"):
        for number in range(24):
            assert len(set(aside[(names == name) & (whole.trajectory == number)])) == 1
    test = next(e.smiles for e in library() if e.role == "test")
    with pytest.raises(ValueError, match="held out"):
        roles(joined([frames, springs(test, *METHANE[1:], 4)]), seed=0)


def test_every_group_gets_its_share_of_the_draws(frames):
    single = springs("CCO", *METHANE[1:], 5)
    pair = springs("O.C", *METHANE[1:], 6)
    drops = springs("2*O", *METHANE[1:], 7)
    wall = springs("C", *METHANE[1:], 8)
    wall = dataclasses.replace(wall, stratum=np.full(wall.n_frames, 2, dtype=np.int8))
    whole = joined([frames, single, pair, drops, wall])
    group = groups(whole)
    assert set(group) == {"main", "single", "pair", "cluster", "wall"}
    probability = draw_probability(whole, np.ones(whole.n_frames, dtype=bool))
    share = {name: probability[group == name].sum() for name in set(group)}
    assert share["single"] / share["main"] == pytest.approx(0.34 / 0.26)
    assert share["wall"] / share["main"] == pytest.approx(0.10 / 0.26)


def test_a_training_leaves_weights_and_a_log_for_each_student(frames, tmp_path):
    lines = []
    plans = [dataclasses.replace(PLAN, student=name) for name in ("tiny", "ultra-tiny")]
    train_all(
        frames,
        SCALE,
        tmp_path,
        plans,
        device=CPU,
        time_limit_s=4.0,
        say=lines.append,
        look_every_s=0.5,
        save_every_s=1.0,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "tiny.safetensors",
        LOG_FILE,
        "ultra-tiny.safetensors",
    ]
    log = json.loads((tmp_path / LOG_FILE).read_text())
    assert log["training_domain"]["molecules"] == ["methane", "water"]
    for name in ("tiny", "ultra-tiny"):
        student = Student(STUDENT_CONFIGS[name])
        student.load_state_dict(load_file(tmp_path / f"{name}.safetensors"))
        assert float(student.reference_energies[0]) == -13.6
        assert log["students"][name]["n_steps"] > 0
        assert log["students"][name]["history"][-1]["phase"] == 1.0
    assert lines[-1].endswith("done")


def test_the_command_reads_packs_and_goes_on_from_weights(frames, tmp_path, capsys):
    save_packed(tmp_path / "pack.npz.xz", frames, SCALE)
    common = ["--data", str(tmp_path / "pack.npz.xz"), "--device", "cpu", "--batch-size", "8"]
    common += ["--student", "ultra-tiny", "--time-limit-s", "2"]
    assert fast.main([*common, "--out", str(tmp_path / "one")]) == 0
    again = ["--out", str(tmp_path / "two"), "--start", str(tmp_path / "one")]
    assert fast.main([*common, *again]) == 0
    first = json.loads((tmp_path / "one" / LOG_FILE).read_text())["students"]["ultra-tiny"]
    second = json.loads((tmp_path / "two" / LOG_FILE).read_text())["students"]["ultra-tiny"]
    assert second["history"][-1]["score"] < 1.2 * first["history"][-1]["score"]
    assert "prepared" in capsys.readouterr().out


def test_where_sampling_fails_the_frames_at_hand_are_trained_on(frames, tmp_path, capsys):
    save_packed(tmp_path / "pack.npz.xz", frames, SCALE)
    (tmp_path / "starts.npz").write_bytes(b"no structures")
    arguments = ["--data", tmp_path / "pack.npz.xz", "--device", "cpu", "--batch-size", 8]
    arguments += ["--student", "ultra-tiny", "--time-limit-s", 2, "--out", tmp_path / "out"]
    arguments += ["--starts", tmp_path / "starts.npz", "--teacher", tmp_path / "teacher"]
    assert fast.main([str(a) for a in arguments]) == 0
    said = capsys.readouterr().out
    assert "make it again" in said
    assert "96 frames of 2 molecules" in said
    assert (tmp_path / "out" / "ultra-tiny.safetensors").exists()


class Event:
    """As of a device that is done at once."""

    def record(self, stream):
        pass

    def query(self):
        return True


@pytest.fixture
def pretended_gpu(monkeypatch):
    """What the trainer calls of torch.cuda, without a device."""

    class Stream:
        def synchronize(self):
            pass

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    class Graph:
        def replay(self):
            self.step()

        def pool(self):
            return "pool"

    @contextlib.contextmanager
    def record(graph, pool, stream):
        assert stream is not None
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    return Graph


def new_run(training, frames, tmp_path, lines, **options):
    probe = Probe(frames, training.classes, np.zeros(frames.n_frames, dtype=bool))
    about = {"free_atoms_eV": FREE.tolist()}
    return Run(training, probe, tmp_path, about, lines.append, on_gpu=True, **options)


def test_recording_a_step_leaves_the_training_as_it_was(frames, pretended_gpu):
    training = prepared(frames)
    training.set_phase(0.5)
    before = training.state()
    _, pool = fast.recorded(training, "stream", None)
    assert pool == "pool"
    for now, then in zip(training.state(), before, strict=True):
        assert torch.equal(now, then)


def test_where_recording_fails_the_same_steps_are_launched(frames, tmp_path, pretended_gpu):
    def refuse(training, stream, pool):
        raise RuntimeError("operation not permitted when stream is capturing")

    lines, training, twin = [], prepared(frames), prepared(frames)
    run = new_run(training, frames, tmp_path, lines, record=refuse)
    assert "no graph (operation not permitted" in lines[0]
    for _ in range(3):
        assert run.ready()
        run.advance(0.3)
        twin.set_phase(0.3)
        twin.step()
    assert torch.equal(training.flat, twin.flat)
    assert "step      3" in run.look(1.0, 0.3)
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_last_part_of_a_training_is_in_full_precision(frames, tmp_path, pretended_gpu):
    taken = []

    def record(training, stream, pool):
        precision = torch.get_float32_matmul_precision()
        return (lambda: taken.append(precision)), "pool"

    run = new_run(prepared(frames), frames, tmp_path, [], record=record)
    for phase in (0.1, 0.79, 0.81, 1.0):
        run.advance(phase)
    assert taken == ["high", "high", "highest", "highest"]


def test_a_training_that_runs_away_goes_back_to_its_best(frames, tmp_path):
    training = prepared(frames)
    probe = Probe(frames, training.classes, np.zeros(frames.n_frames, dtype=bool))
    run = Run(training, probe, tmp_path, {"free_atoms_eV": FREE.tolist()}, lambda line: None)
    run.look(1.0, 0.2)
    best = training.averaged.clone()
    training.averaged.fill_(math.nan)
    assert "ran away" in run.look(2.0, 0.3)
    assert torch.equal(training.averaged, best)
    assert run.slower == 0.5
