"""The command line: sample, label, train, on one small molecule."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from omm_mlff.cli.distill import distill
from omm_mlff.distill.sample import SamplingPlan
from omm_mlff.errors import InputError, OutputExistsError
from omm_mlff.students.checkpoint import load_student


def invoke(*arguments):
    return CliRunner().invoke(distill, [str(a) for a in arguments], catch_exceptions=False)


@pytest.mark.slow
def test_three_commands_make_a_student(teacher, tmp_path, monkeypatch):
    plan = SamplingPlan((300.0, 600.0), 1, 4, 4, 1, 2, 2, 600, stride=10, equilibration=20)
    monkeypatch.setattr("omm_mlff.distill.sample.plan_for", lambda name, scale=1.0: plan)
    pytest.importorskip("tblite", reason="GFN2-xTB needs the extra 'xtb'")
    work = ("--work", tmp_path)
    small = ("--molecule", "water")
    assert invoke("sample", *work, "--seed", 2, *small).exit_code == 0
    assert invoke("label", *work).exit_code == 0
    common = ("train", *work, "--student", "ultra-tiny", "--seed", 2)
    assert invoke(*common, "--steps", 3).exit_code == 0
    student = load_student(tmp_path / "checkpoints" / "ultra-tiny")
    assert student.config.name == "ultra-tiny"
    card = json.loads((tmp_path / "checkpoints" / "ultra-tiny" / "card.json").read_text())
    domain = card["training_domain"]
    assert domain["molecules"] == ["water"]
    assert set(domain["labels"]) == {"teacher", "xtb"}
    assert sum(domain["labels"].values()) == domain["n_frames"]
    with pytest.raises(OutputExistsError):
        invoke(*common, "--steps", 3)
    # The student's own excursions become a second source of frames.
    folder = tmp_path / "checkpoints" / "ultra-tiny"
    assert invoke("sample", *work, "--seed", 2, *small, "--student", folder).exit_code == 0
    assert invoke("label", *work).exit_code == 0
    assert (tmp_path / "labels-excursions" / "water.npz").exists()


def test_labelling_nothing_says_what_to_run(tmp_path):
    with pytest.raises(InputError, match="distill sample"):
        invoke("label", "--work", tmp_path)


def test_training_on_nothing_says_what_to_run(tmp_path):
    with pytest.raises(InputError, match="distill label"):
        invoke("train", "--work", tmp_path, "--student", "tiny")
