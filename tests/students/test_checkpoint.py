"""Checkpoints: what is written is what is read, and damage is named."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from omm_mlff.errors import CheckpointError, UnknownNameError
from omm_mlff.students.checkpoint import load_card, load_student, save_student, student_names
from omm_mlff.students.student import STUDENT_CONFIGS, Student


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(1)
    student = Student(STUDENT_CONFIGS["ultra-tiny"])
    student.reference_energies += torch.arange(4.0, dtype=torch.float64) - 1e3
    save_student(tmp_path / "student", student, {"teacher": "none", "seed": 1})
    return tmp_path / "student"


def test_a_student_is_read_as_it_was_written(folder):
    torch.manual_seed(1)
    written = Student(STUDENT_CONFIGS["ultra-tiny"])
    read = load_student(folder)
    for name, tensor in written.network.state_dict().items():
        assert torch.equal(read.network.state_dict()[name], tensor)
    assert read.reference_energies.dtype == torch.float64
    assert float(read.reference_energies[3]) == -997.0
    assert not any(p.requires_grad for p in read.parameters())
    card = load_card(folder)
    assert card["n_parameters"] == read.n_parameters
    assert card["teacher"] == "none"
    assert card["units"] == {"length": "angstrom", "energy": "eV"}


def test_a_flipped_bit_is_noticed(folder):
    path = folder / "model.safetensors"
    payload = bytearray(path.read_bytes())
    payload[-5] ^= 1
    path.write_bytes(bytes(payload))
    with pytest.raises(CheckpointError, match="corrupt or was replaced"):
        load_student(folder)


def test_a_truncated_file_is_noticed(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="corrupt"):
        load_student(folder)


def test_a_card_of_another_size_is_noticed(folder):
    card = json.loads((folder / "card.json").read_text())
    card["config"]["n_features"] = 32
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="does not fit its card"):
        load_student(folder)


def test_a_wrong_parameter_count_is_noticed(folder):
    card = json.loads((folder / "card.json").read_text())
    card["n_parameters"] = 5
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="its card says 5"):
        load_student(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object"),
        ('{"name": "x"}', "lacks"),
        ("\x00\xff", "not valid JSON"),
    ],
)
def test_a_damaged_card_is_named(folder, content, message):
    (folder / "card.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=message):
        load_student(folder)


def test_a_folder_without_a_card_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_student(tmp_path)


def test_a_missing_model_file_is_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="incomplete"):
        load_student(folder)


def test_an_unknown_name_is_met_with_the_nearest(monkeypatch):
    with pytest.raises(UnknownNameError, match="unknown student 'tinny'; did you mean tiny"):
        load_student("tinny")


def test_the_three_students_ship():
    assert {"original", "tiny", "ultra-tiny"} <= set(student_names())
    for name in student_names():
        card = load_card(name)
        assert load_student(name).n_parameters == card["n_parameters"]
        for field in ("teacher", "training_domain", "seed", "data_hash", "held_out"):
            assert card[field], f"{name}'s card lacks {field}"


def pickled(folder, content):
    """The same checkpoint with a pickle in the place of its safetensors."""
    torch.save(content, folder / "model.pt")
    (folder / "model.safetensors").unlink()
    card = json.loads((folder / "card.json").read_text())
    card["sha256"] = hashlib.sha256((folder / "model.pt").read_bytes()).hexdigest()
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def test_a_pickled_state_dict_is_read_like_safetensors(folder):
    as_written = load_student(folder)
    read = load_student(pickled(folder, as_written.state_dict()))
    for name, tensor in as_written.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor)


class Intruder:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_would_run_code_is_refused_and_runs_none(folder, tmp_path):
    left = tmp_path / "was-here"
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        load_student(pickled(folder, {"network": Intruder(left)}))
    assert not left.exists()


def test_a_pickle_of_something_else_does_not_fit_its_card(folder):
    with pytest.raises(CheckpointError, match="wanted a state_dict, got a list"):
        load_student(pickled(folder, [torch.zeros(1)]))
