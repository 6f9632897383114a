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
from omm_mlff.distill.release import release, trained_student
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
    by_stratum = {r["stratum"]: r for r in card["held_out"] if r["system"] == "OCCO"}
    assert set(by_stratum) == {"cold", "300 K", "500 K"}
    assert by_stratum["cold"]["n_frames"] == 8
    assert not by_stratum["cold"]["trained_on"]
    assert len(errors) == len({r["system"] for r in card["held_out"]}) * 2


def test_a_missing_student_and_a_missing_log_are_bad_input(own_frames, tmp_path):
    with pytest.raises(InputError, match="train tiny again"):
        trained_student(tmp_path, "tiny")
    save_file(untrained().state_dict(), tmp_path / "ultra-tiny.safetensors")
    with pytest.raises(InputError, match="train again"):
        release(tmp_path, "ultra-tiny", tmp_path / "out", own_frames)
