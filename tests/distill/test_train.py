"""Training on real data that needs no teacher: a closed-form surface stands in for it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from omm_mlff.distill.batches import FrameStore, prior_labels
from omm_mlff.distill.frames import Frames, LabelledFrames
from omm_mlff.distill.surface import student_function
from omm_mlff.distill.train import (
    HISTORY_FILE,
    Training,
    TrainingPlan,
    held_out,
    held_out_errors,
    plot_history,
)
from omm_mlff.errors import InputError, OutputExistsError, UnknownNameError
from omm_mlff.students.checkpoint import load_student
from omm_mlff.students.student import STUDENT_CONFIGS, Student

REFERENCES = {1: -13.6, 6: -1028.0, 7: -1484.0, 8: -2041.0}
PLAN = TrainingPlan("ultra-tiny", n_steps=30, seed=3, batch_size=8, warmup=5)

WATER = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
METHANE = 0.63 * np.array([[0, 0, 0], [1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]], float)


def labelled_molecule(name, species, rest, seed):
    """Springs between all atoms: forces and energies by their closed form."""
    rng = np.random.default_rng(seed)
    species = np.array(species)
    n_atoms = len(species)
    positions = rest + 0.06 * rng.standard_normal((96, n_atoms, 3))
    i, j = np.triu_indices(n_atoms, 1)
    offset = positions[:, j] - positions[:, i]
    d = np.linalg.norm(offset, axis=-1)
    stretch = d - np.linalg.norm(rest[j] - rest[i], axis=-1)
    stiffness = np.where((i == 0), 30.0, 4.0)
    forces = np.zeros_like(positions)
    pull = (stiffness * stretch / d)[..., None] * offset
    for pair in range(len(i)):
        forces[:, i[pair]] += pull[:, pair]
        forces[:, j[pair]] -= pull[:, pair]
    frames = Frames(
        name,
        species,
        np.array([[0, k] for k in range(1, n_atoms)]),
        np.linalg.norm(rest[1:] - rest[0], axis=1),
        positions,
        np.full(96, "thermal"),
        np.repeat(np.arange(12), 8),
        np.repeat(np.tile([300.0, 1000.0], 6), 8),
    )
    reference = sum(REFERENCES[int(z)] for z in species)
    energies = 0.5 * (stiffness * stretch**2).sum(1) + reference - 4.0 * (n_atoms - 1)
    return LabelledFrames(
        frames, energies, forces, np.zeros(96), np.full(96, "teacher"), n_dropped=0
    )


@pytest.fixture(scope="module")
def data():
    return [
        labelled_molecule("water", [8, 1, 1], WATER, 1),
        labelled_molecule("methane", [6, 1, 1, 1, 1], METHANE, 2),
    ]


def parameters(training):
    return {k: v.clone() for k, v in training.averaged.state_dict().items()}


def test_a_trajectory_is_never_on_both_sides(data):
    for item in data:
        mask = held_out(item.frames, seed=3)
        inside, outside = (set(item.frames.trajectory[m].tolist()) for m in (mask, ~mask))
        assert inside
        assert outside
        assert not inside & outside


def test_every_temperature_with_enough_trajectories_is_held_out(data):
    frames = data[0].frames
    mask = held_out(frames, seed=3)
    assert set(frames.temperature_K[mask].tolist()) == {300.0, 1000.0}


def test_thirty_steps_reduce_the_loss(data, tmp_path):
    training = Training(PLAN, data, REFERENCES, tmp_path)
    training.run(report_every=5)
    losses = [row[2] for row in training.history]
    assert losses[-1] < 0.7 * losses[0]


def test_a_training_killed_and_resumed_ends_bit_for_bit_the_same(data, tmp_path):
    whole = Training(PLAN, data, REFERENCES, tmp_path / "whole")
    whole.run(report_every=10)
    first = Training(PLAN, data, REFERENCES, tmp_path / "killed")
    first.run(report_every=10, until=10)
    for _ in range(3):  # past the last save, then killed: these steps are lost
        first._advance()
    second = Training(PLAN, data, REFERENCES, tmp_path / "killed")
    second.run(report_every=10, resume=True)
    for name, value in parameters(whole).items():
        assert torch.equal(value, parameters(second)[name]), name
    histories = [(tmp_path / name / HISTORY_FILE).read_text() for name in ("whole", "killed")]
    assert histories[0] == histories[1]


def test_another_seed_gives_another_student(data, tmp_path):
    runs = []
    for seed in (3, 4):
        training = Training(
            dataclasses.replace(PLAN, seed=seed, n_steps=3), data, REFERENCES, tmp_path / str(seed)
        )
        training.run()
        runs.append(parameters(training)["readout.0.weight"])
    assert not torch.equal(*runs)


def test_resuming_with_another_plan_is_refused(data, tmp_path):
    Training(PLAN, data, REFERENCES, tmp_path).run(until=1, report_every=1)
    with pytest.raises(OutputExistsError, match="--resume"):
        Training(PLAN, data, REFERENCES, tmp_path).run()
    longer = dataclasses.replace(PLAN, n_steps=31)
    with pytest.raises(InputError, match="another plan"):
        Training(longer, data, REFERENCES, tmp_path).run(resume=True)
    with pytest.raises(InputError, match="other data"):
        Training(PLAN, data[:1], REFERENCES, tmp_path).run(resume=True)


def test_an_unknown_student_gets_the_nearest_name(data, tmp_path):
    plan = dataclasses.replace(PLAN, student="tiney")
    with pytest.raises(UnknownNameError, match="tiny"):
        Training(plan, data, REFERENCES, tmp_path)


def test_the_release_says_what_it_was_trained_on(data, tmp_path):
    training = Training(dataclasses.replace(PLAN, n_steps=2), data, REFERENCES, tmp_path / "work")
    training.run()
    training.release(tmp_path / "out")
    student = load_student(tmp_path / "out")
    card = training.card()
    assert card["training_domain"]["molecules"] == ["methane", "water"]
    assert card["training_domain"]["temperature_K"] == [300.0, 1000.0]
    held = sum(int(held_out(item.frames, PLAN.seed).sum()) for item in data)
    assert card["training_domain"]["n_frames"] == 192 - held
    assert student.reference_energies.tolist() == [REFERENCES[z] for z in (1, 6, 7, 8)]
    assert {row["stratum"] for row in card["held_out"]} == {"thermal", "cold"}


def test_held_out_errors_are_root_mean_squares(data):
    student = Student(STUDENT_CONFIGS["ultra-tiny"]).double().eval()
    item = data[0]
    energies, forces = student_function(student, item.frames.species, references=True)(
        item.frames.positions
    )
    shifted = dataclasses.replace(item, energies=energies + 0.003, forces=forces + 0.05)
    rows = {row["stratum"]: row for row in held_out_errors(student, [shifted])}
    assert rows["thermal"]["force_rmse_eV_per_angstrom"] == pytest.approx(0.05)
    assert rows["thermal"]["energy_rmse_meV_per_atom"] == pytest.approx(1.0)
    assert rows["cold"]["n_frames"] == 48


def test_prior_forces_are_the_negative_gradient(data):
    student = Student(STUDENT_CONFIGS["ultra-tiny"])
    frames = data[1].frames
    x = frames.positions[:1]
    direction = np.random.default_rng(0).standard_normal(x.shape)
    _, forces = prior_labels(student, frames.species, x)
    ahead, _ = prior_labels(student, frames.species, x + 1e-4 * direction)
    behind, _ = prior_labels(student, frames.species, x - 1e-4 * direction)
    assert np.isclose(-(ahead - behind)[0] / 2e-4, (forces * direction).sum(), rtol=1e-7)


def test_a_mixed_batch_gives_what_the_student_gives(data):
    """The batched path of training against the student's own path, molecule by molecule."""
    torch.manual_seed(0)
    student = Student(STUDENT_CONFIGS["ultra-tiny"])
    for row, number in enumerate(student.config.species):
        student.reference_energies[row] = REFERENCES[number]
    store = FrameStore(student, data)
    rows = torch.tensor([3, 100, 40])
    batch = store.batch(rows)
    x = batch.positions
    r_ij = x[batch.idx_j] - x[batch.idx_i]
    atomic = student.network(
        batch.species_index, batch.idx_i, batch.idx_j, r_ij, torch.linalg.vector_norm(r_ij, dim=1)
    )
    network = torch.zeros(3).index_add(0, batch.frame, atomic).detach().double()
    for k, (item, frame) in enumerate([(data[0], 3), (data[1], 4), (data[0], 40)]):
        total, _ = student_function(student, item.frames.species, references=True)(
            item.frames.positions[frame : frame + 1]
        )
        error = float(network[k] - batch.energies[k])
        assert error == pytest.approx(total[0] - item.energies[frame], abs=2e-4)


def test_the_loss_curve_is_drawn(data, tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need the extra 'report'")
    training = Training(PLAN, data, REFERENCES, tmp_path)
    training.run(report_every=6)
    plot_history(tmp_path / HISTORY_FILE, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"
