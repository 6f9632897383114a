"""Errors of students on frames that none of them saw, and the checkpoints that say so."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from omm_mlff.distill.fast import LOG_FILE, FastPlan
from omm_mlff.distill.frames import Frames
from omm_mlff.distill.library import embed
from omm_mlff.distill.packed import GRID, PackedFrames
from omm_mlff.distill.release import plot_training, release, trained_student
from omm_mlff.distill.surface import student_function
from omm_mlff.distill.transfer import transfer_errors, transfer_table
from omm_mlff.errors import InputError
from omm_mlff.students.checkpoint import load_card, load_student
from omm_mlff.students.student import STUDENT_CONFIGS, Student


def untrained():
    torch.manual_seed(1)
    return Student(STUDENT_CONFIGS["ultra-tiny"])


@pytest.fixture(scope="module")
def own_frames():
    """Frames of ethylene glycol, labelled by the untrained student itself."""
    molecule = embed("OCCO", 8, seed=1)
    x = molecule.positions - molecule.positions.mean(1, keepdims=True)
    x = np.round(x / GRID) * GRID
    energies, forces = student_function(untrained(), molecule.species, references=True)(x)
    frames = Frames(
        "OCCO",
        molecule.species,
        molecule.bonds,
        molecule.lengths,
        x,
        np.full(8, "thermal"),
        np.arange(8),
        np.repeat([300.0, 500.0], 4),
    )
    nothing = np.full(x.shape[:2], np.nan)
    return PackedFrames.of_molecule(frames, energies, forces, nothing, np.full(8, "teacher"))


def test_a_student_that_made_the_labels_makes_no_error(own_frames):
    rows = [r for r in transfer_errors(untrained(), own_frames) if r.system == "OCCO"]
    assert [(r.temperature_K, r.n_frames, r.known) for r in rows] == [
        (300.0, 4, False),
        (500.0, 4, False),
    ]
    for row in rows:
        assert row.force < 3e-3  # forces are packed to 11 bits
        assert row.energy < 1e-2


def test_another_student_makes_its_own(own_frames):
    torch.manual_seed(2)
    other = Student(STUDENT_CONFIGS["ultra-tiny"])
    rows = transfer_errors(other, own_frames)
    assert all(row.force > 0.01 for row in rows)
    assert {row.system for row in rows if row.known} >= {"water", "alanine-dipeptide", "benzene"}
    table = transfer_table({"one": rows, "two": rows})
    assert "| `OCCO` | 300 | 4 |" in table
    assert table.splitlines()[0] == "| system | K | frames | one | two |"


def test_what_a_training_left_becomes_a_checkpoint_with_its_errors(own_frames, tmp_path):
    save_file(untrained().state_dict(), tmp_path / "ultra-tiny.safetensors")
    log = {
        "data_hash": "abc",
        "device": "cpu",
        "date": "2026-11-27",
        "training_domain": {"molecules": ["water"], "temperature_K": [200.0, 900.0]},
        "students": {
            "ultra-tiny": {
                "plan": vars(FastPlan("ultra-tiny")),
                "n_steps": 7,
                "history": [{"seconds": 3.0}],
            }
        },
    }
    (tmp_path / LOG_FILE).write_text(json.dumps(log))
    errors = release(tmp_path, "ultra-tiny", tmp_path / "checkpoint", own_frames)
    student = load_student(tmp_path / "checkpoint")
    assert torch.equal(student.network.readout_mix.weight, untrained().network.readout_mix.weight)
    card = load_card(tmp_path / "checkpoint")
    assert card["training"]["n_steps"] == 7
    assert card["training"]["date"] == "2026-11-27"
    by_stratum = {r["stratum"]: r for r in card["held_out"] if r["system"] == "OCCO"}
    assert set(by_stratum) == {"cold", "300 K", "500 K"}
    assert by_stratum["cold"]["n_frames"] == 8
    assert not by_stratum["cold"]["trained_on"]
    assert len(errors) == len({r["system"] for r in card["held_out"]}) * 2


def test_the_held_out_errors_of_a_training_are_drawn_student_by_student(tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    history = [
        {"step": step, "heldout_cold": 1.0 / step, "heldout_unseen": 2.0 / step}
        for step in (10, 20, 30)
    ]
    log = {"students": {"tiny": {"history": history}, "ultra-tiny": {"history": history[:2]}}}
    (tmp_path / LOG_FILE).write_text(json.dumps(log))
    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    plot_training(tmp_path, tmp_path / "learning.png")
    assert (tmp_path / "learning.png").read_bytes().startswith(b"\x89PNG")
    cold, unseen = drawn[0].axes
    monkeypatch.undo()
    pyplot.close(drawn[0])
    assert [line.get_label() for line in cold.lines] == ["tiny", "ultra-tiny"]
    assert cold.lines[0].get_xydata().tolist() == [[10, 0.1], [20, 0.05], [30, 1 / 30]]
    assert unseen.lines[1].get_xydata().tolist() == [[10, 0.2], [20, 0.1]]
    with pytest.raises(InputError, match="train again"):
        plot_training(tmp_path / "elsewhere", tmp_path / "learning.png")


def test_a_missing_student_and_a_missing_log_are_bad_input(own_frames, tmp_path):
    with pytest.raises(InputError, match="train tiny again"):
        trained_student(tmp_path, "tiny")
    save_file(untrained().state_dict(), tmp_path / "ultra-tiny.safetensors")
    with pytest.raises(InputError, match="train again"):
        release(tmp_path, "ultra-tiny", tmp_path / "out", own_frames)
