"""A model, its labels and its reference method, all of them a user's, in one validation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read as ase_read
from ase.io import write as ase_write

from omm_mlff import load_potential, load_system, validate
from omm_mlff.cli.main import main
from omm_mlff.errors import InputError
from omm_mlff.systems.labels import LabelOptions

EV = 96.48533212331  # kJ/mol, CODATA 2018

PROFILE = """
title = "a short look"
static_systems = ["water"]

[[run]]
system = "water"
length_ps = 0.1
n_replicas = 4
temperature_K = 300
"""


@pytest.fixture(scope="module")
def methanol(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with frames of methanol that tiny has labelled."""
    folder = tmp_path_factory.mktemp("methanol")
    system, tiny = load_system("smiles:CO"), load_potential("tiny")
    random = np.random.default_rng(2)
    positions = system.positions + 0.004 * random.normal(size=(40, system.n_atoms, 3))
    energies, forces = tiny.energies_and_forces(positions, system)
    frames = []
    for x, energy, force in zip(positions, energies, forces, strict=True):
        atoms = Atoms(numbers=system.species, positions=x * 10.0)
        atoms.calc = SinglePointCalculator(atoms, energy=energy / EV, forces=force / EV / 10.0)
        frames.append(atoms)
    ase_write(folder / "frames.xyz", frames, format="extxyz")
    (folder / "short.toml").write_text(PROFILE)
    return folder


COMPARED = (
    *("accuracy.force_rmse", "accuracy.energy_rmse", "along.force_rmse", "along.excursion"),
    *("torsions.map_rmse", "torsions.barrier", "vibrations.frequency_rmse"),
)


def measured(result) -> dict[str, list]:
    found: dict[str, list] = {}
    for row in result.measured.measurements:
        found.setdefault(row.name, []).append(row)
    return found


@pytest.fixture(scope="module")
def like_itself(methanol: Path):
    return validate(
        "tiny",
        labels=methanol / "frames.xyz",
        label_options=LabelOptions(held_out="no"),
        teacher="tiny?engine=scripted",
        profile=methanol / "short.toml",
        out=methanol / "itself",
    )


@pytest.mark.slow
def test_a_model_agrees_with_itself_in_everything_that_is_compared(like_itself) -> None:
    rows = measured(like_itself)
    for name in COMPARED:
        for row in rows[name]:
            assert row.not_applicable == "", name
            # float32 through another engine; the excursion of two small errors is 1
            assert row.value == pytest.approx(1.0 if name.endswith("excursion") else 0.0, abs=0.2)
    assert rows["accuracy.force_rmse"][0].value < 1e-4
    assert rows["along.force_rmse"][0].value < 1e-4
    assert rows["torsions.map_rmse"][0].value < 0.1


@pytest.mark.slow
def test_the_report_says_whose_labels_these_are(like_itself, methanol: Path) -> None:
    verdict = json.loads((like_itself.folder / "verdict.json").read_text())
    (labels,) = verdict["provenance"]["labels"].values()
    assert labels["held_out"] == "no (the user's word)"
    assert len(labels["sha256"]) == 64
    assert labels["units"] == "eV, angstrom, eV/angstrom"
    assert verdict["provenance"]["teacher"]["spec"] == "tiny?engine=scripted"
    assert verdict["provenance"]["teacher"]["labels_differ_from_it_by"]["CH4O"] < 1e-4
    command = verdict["provenance"]["command"]
    assert (
        f"--labels {methanol}/frames.xyz --labels-held-out no --teacher 'tiny?engine=scripted'"
        in command
    )
    assert "--system" not in command
    text = (like_itself.folder / "report.md").read_text()
    assert "no (the user's word)" in text


@pytest.mark.slow
def test_without_a_method_what_needs_one_is_not_applicable(methanol: Path, tmp_path: Path) -> None:
    result = validate(
        "tiny",
        labels=methanol / "frames.xyz",
        profile=methanol / "short.toml",
        out=tmp_path / "out",
    )
    rows = measured(result)
    assert rows["accuracy.force_rmse"][0].value < 1e-4
    for name in ("along.force_rmse", "torsions.map_rmse", "vibrations.frequency_rmse"):
        assert "--teacher" in rows[name][0].not_applicable
    cause = rows["accuracy.force_rmse"][0].cause
    assert "frames.xyz (whether the model was trained on them, nobody has said)" in cause
    assert "is removed from the energies" in cause


@pytest.mark.slow
def test_labels_of_another_method_are_told_from_the_named_one(
    methanol: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = ase_read(methanol / "frames.xyz", index=":")
    result = validate(
        "tiny",
        systems=["smiles:CO"],
        labels={
            "species": frames[0].numbers,
            "positions": np.array([atoms.positions for atoms in frames]),
            "energies": 1.25 * np.array([atoms.get_potential_energy() for atoms in frames]),
            "forces": 1.25 * np.array([atoms.get_forces() for atoms in frames]),
        },
        teacher="ultra-tiny",
        profile=methanol / "short.toml",
        out=tmp_path / "out",
    )
    # A quarter of the forces, give or take what the two students differ by themselves.
    (percent,) = re.findall(r"differ from ultra-tiny by (\d+)%", caplog.text)
    assert int(percent) == pytest.approx(25, abs=10)
    assert "they are not by one method" in caplog.text
    rows = measured(result)
    assert rows["accuracy.force_scale"][0].value == pytest.approx(0.8, abs=1e-3)
    assert 0.005 < rows["along.force_rmse"][0].value < 0.3
    assert rows["torsions.map_rmse"][0].value > 0.1
    kept = list((tmp_path / "out" / "references").iterdir())
    assert len(kept) == 1


def test_words_on_labels_without_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name their file with --labels"):
        validate(
            "tiny",
            systems=["water"],
            label_options=LabelOptions(energy_unit="eV"),
            out=tmp_path / "out",
        )


def test_bad_labels_end_in_one_line(
    methanol: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["validate", "--model", "tiny", "--labels", str(methanol / "frames.xyz")]
    assert main([*words, "--energy-key", "REF", "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no energy under 'REF'" in line
    assert "--energy-key" in line
