"""The command line: sample, label, train, on one small molecule."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from omm_mlff.cli.distill import distill
from omm_mlff.distill.broad import Job, pack_folder
from omm_mlff.distill.label import REFERENCES_FILE
from omm_mlff.distill.packed import GRID, load_training_pack
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


def test_broad_frames_are_packed_and_a_second_call_adds_nothing(teacher, tmp_path, monkeypatch):
    references = {"shifts_eV": {"1": 0.0, "8": 0.0}, "free_atoms_eV": {"1": -13.6, "8": -2041.0}}
    (tmp_path / "broad").mkdir()
    (tmp_path / "broad" / REFERENCES_FILE).write_text(json.dumps(references))
    monkeypatch.setattr(
        "omm_mlff.distill.broad.jobs", lambda turn, seed: [Job("single", turn, 0, ("O",))]
    )
    common = ("broad", "--work", tmp_path, "--seed", 2, "--turns", 1)
    assert invoke(*common).exit_code == 0
    frames, scale = load_training_pack(tmp_path / "frames.npz.xz")
    assert frames.names.tolist() == ["O"]
    assert scale.free_atoms[8] == -2041.0
    x = frames.positions[:3][None] * GRID
    energies, forces, _ = teacher.label(frames.species[:3].astype(int), x)
    assert frames.energies[0] == pytest.approx(energies[0], abs=1e-4)
    np.testing.assert_allclose(frames.forces[:3], forces[0], atol=5e-3)
    before = (tmp_path / "broad" / "00-single-000.npz").stat().st_mtime_ns
    assert invoke(*common).exit_code == 0
    assert (tmp_path / "broad" / "00-single-000.npz").stat().st_mtime_ns == before


def test_packing_nothing_says_what_to_run(tmp_path):
    with pytest.raises(InputError, match="distill broad"):
        pack_folder(tmp_path)


def test_students_stand_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setattr("omm_mlff.distill.transfer.MAIN", ("water", "methane"))
    found = tmp_path / "errors.json"
    result = invoke("errors", "--student", "tiny", "--student", "ultra-tiny", "--json", found)
    assert "| system | K | frames | tiny | ultra-tiny |" in result.output
    rows = json.loads(found.read_text())["tiny"]
    water = [row for row in rows if row["system"] == "water"]
    assert [row["temperature_K"] for row in water] == [300.0, 500.0]
    assert 0.0 < water[0]["force"] < 0.1
    assert sum(not row["known"] for row in rows) == 2 * 25
