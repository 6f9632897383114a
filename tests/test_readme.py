"""Every example in the README runs, as it stands."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def run(words: str) -> None:
    """Run the one example that holds these words."""
    (example,) = (text for text in EXAMPLES if words in text)
    exec(compile(example, str(README), "exec"), {"__name__": "__main__"})


def test_the_table_of_checks_is_the_one_that_the_command_makes():
    from omm_mlff.checks.registry import all_checks
    from omm_mlff.cli.checks import as_markdown, with_table

    assert with_table(README, as_markdown(all_checks())) == TEXT, (
        "run: omm-mlff checks --into README.md"
    )


def test_a_student_added_by_hand_leaves_a_trajectory(tmp_path, monkeypatch, capsys):
    import mdtraj

    monkeypatch.chdir(tmp_path)
    run('TrajectoryReporter("ethanol.h5"')
    trajectory = mdtraj.load("ethanol.h5")
    assert trajectory.n_frames == 20
    # Whole after 100 fs: no bond longer than 1.3 times its first length.
    bonds = [(a.index, b.index) for a, b in trajectory.topology.bonds]
    lengths = mdtraj.compute_distances(trajectory, bonds)
    assert (lengths / lengths[0]).max() < 1.3
    capsys.readouterr()
    run('read_record("ethanol.h5")')
    told = capsys.readouterr().out
    assert "('C', 'C', 'O', 'H', 'H', 'H', 'H', 'H', 'H') (20, 9, 3)" in told
    assert "potential_energy_kJ_mol" in told


def test_a_validation_from_python_prints_its_verdict(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run('validate("ultra-tiny"')
    out = capsys.readouterr().out
    assert re.match(r"(APPROVED|NOT RECOMMENDED|REJECTED|UNDECIDED) [013]\n", out)
    assert "meV/atom/ps" in out
    assert (tmp_path / "water-validation" / "verdict.json").is_file()


def test_the_student_is_closer_to_its_teacher_than_amber(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run('"native:amber14"')
    errors = dict(re.findall(r"(\S+): ([0-9.]+) eV/angstrom", capsys.readouterr().out))
    assert set(errors) == {"tiny", "native:amber14"}
    assert float(errors["tiny"]) < float(errors["native:amber14"]) < 3.0
    assert float(errors["tiny"]) == pytest.approx(0.1, abs=0.1)


def test_openmm_ml_puts_the_student_on_some_of_the_atoms(tmp_path, monkeypatch, capsys):
    pytest.importorskip("openmmml")
    monkeypatch.chdir(tmp_path)
    run('MLPotential("omm-mlff-tiny")')
    n_particles = int(capsys.readouterr().out.split()[0])
    assert n_particles > 22
    assert (n_particles - 22) % 3 == 0


def test_ase_relaxes_a_molecule_with_a_student(capsys):
    pytest.importorskip("ase")
    run("BFGS(ethanol")
    # The teacher's ethanol, coupled cluster with its atomic energies, is near -4215 eV.
    assert float(capsys.readouterr().out.split()[0]) == pytest.approx(-4215.0, abs=5.0)


def test_a_sound_run_is_watched_in_silence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("watch.events")
    assert capsys.readouterr().out == "0 events\n"


def test_a_periodic_box_is_the_systems_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("water-box:32")
    # 32 molecules at 0.997 g/cm^3: 32 x 18.015 / (0.997 x 602.2) nm^3
    assert float(capsys.readouterr().out.split()[0]) == pytest.approx(0.9602, abs=1e-3)


def test_every_example_is_run_by_one_test_here():
    here = Path(__file__).read_text(encoding="utf-8")
    chosen = [ast.literal_eval(words) for words in re.findall(r"^    run\((.+)\)$", here, re.M)]
    holders = [[text for text in EXAMPLES if words in text] for words in chosen]
    assert sorted(text for texts in holders for text in texts) == sorted(EXAMPLES)
