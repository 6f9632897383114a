"""The command `models` shows what the cards say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from omm_mlff.cli.main import main
from omm_mlff.students.checkpoint import save_student
from omm_mlff.students.student import Student, StudentConfig

TRAINING = {
    "training_domain": {"temperature_K": [200.0, 1500.0]},
    "held_out": [
        {"system": "water", "stratum": "cold", "force_rmse_eV_per_angstrom": 0.0213},
        {"system": "water", "stratum": "stretched", "force_rmse_eV_per_angstrom": 0.9},
        {"system": "methane", "stratum": "cold", "force_rmse_eV_per_angstrom": 0.0342},
    ],
}


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small students in the place of the shipped ones."""
    torch.manual_seed(0)
    for name, features in (("small", 8), ("large", 16)):
        student = Student(StudentConfig(name, features, 1, 4, 8, cutoff_angstrom=4.5))
        save_student(tmp_path / name, student, {**TRAINING, "teacher": "ANI-1ccx", "seed": 7})
    monkeypatch.setattr("omm_mlff.students.checkpoint.data_folder", lambda kind: tmp_path)
    monkeypatch.setattr(
        "omm_mlff.students.checkpoint.shipped_names", lambda kind, marker: ["large", "small"]
    )
    return tmp_path


def test_the_list_starts_with_the_largest(
    shipped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("large") < shown.index("small")
    assert "H C N O" in shown
    assert "4.5" in shown
    assert "ANI-1ccx" in shown
    assert "0.021-0.034" in shown
    assert "200-1500" in shown


def test_the_cards_are_printed_whole_as_json(
    shipped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "--json"]) == 0
    cards = json.loads(capsys.readouterr().out)
    on_disk = [
        json.loads((shipped / name / "card.json").read_text()) for name in ("large", "small")
    ]
    assert cards == on_disk


def test_one_model_is_shown_by_name_or_folder(
    shipped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "small"]) == 0
    by_name = capsys.readouterr().out
    assert main(["models", str(shipped / "small")]) == 0
    assert capsys.readouterr().out == by_name
    assert "seed: 7" in by_name.splitlines()
    assert "  length: angstrom" in by_name.splitlines()
    assert "  system methane, stratum cold, force_rmse_eV_per_angstrom 0.0342" in by_name


def test_an_unknown_model_ends_in_2_with_the_nearest_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models", "orignal"]) == 2
    assert "did you mean original?" in capsys.readouterr().err


def test_the_list_names_every_other_form_of_a_model(
    shipped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    for form in ("native:", "ase:", "openmm-ml:", ".pt", "teacher:ANI-1ccx"):
        assert form in shown


def test_a_model_that_is_no_student_shows_what_it_says_of_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models", "native:amber14", "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["source"] == "native"
    assert card["knows_atoms_by"] == "bond"
