"""`omm-mlff convert` as a person types it."""

from __future__ import annotations

import numpy as np
import pytest
from run_documents import write_documents

from omm_mlff.cli.main import main
from omm_mlff.record.rundir import FrameFile, mdtraj_topology
from omm_mlff.schema import RunSpec


@pytest.fixture
def file(tmp_path):
    """Five frames of two atoms."""
    topology = mdtraj_topology(["H1", "H2"], ["H", "H"], [("HYD", 0)] * 2, np.array([[0, 1]]))
    frames = {
        "time": 0.5 * np.arange(5),
        **{name: np.zeros(5) for name in ("potential_energy", "kinetic_energy")},
        **{name: np.zeros((5, 2, 3)) for name in ("positions", "velocities", "forces")},
    }
    made = FrameFile(tmp_path / "pair.h5", topology, 2)
    made.append(frames)
    made.close()
    return tmp_path / "pair.h5"


def test_the_folder_is_named_after_the_run_and_the_format(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "pair.h5", "--to", "dcd", "--stride", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "1 trajectory, 3 frames; see pair-dcd\n"
    assert captured.err == "pair\n"  # the progress of what has no terminal
    assert sorted(p.name for p in (tmp_path / "pair-dcd").iterdir()) == ["pair.dcd", "topology.pdb"]
    assert main(["convert", "pair.h5", "--to", "dcd"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: pair-dcd/pair.dcd is already there; use --force or another --out"
    assert main(["convert", "pair.h5", "--to", "dcd", "--force"]) == 0
    assert "5 frames" in capsys.readouterr().out


def test_why_a_trajectory_ends_early_is_said(file, tmp_path, capsys):
    import tables

    with tables.open_file(str(file), "a") as handle:
        handle.root.coordinates[3] = np.nan
    assert main(["convert", str(file), "--to", "xtc", "--out", str(tmp_path / "out")]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.endswith(
        "pair.xtc ends at 1 ps: positions at 1.5 ps are not finite, or beyond 1 mm"
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["absent", "--to", "dcd"], "absent does not exist"),
        (["pair.h5", "--to", "dcd", "--replica", "0"], "leave out --replica"),
        (["pair.h5", "--to", "dcd", "--out", "pair.h5"], "is a file"),
        (["pair.h5", "--to", "dcd", "--out", "pair.h5/in"], "cannot make the folder"),
        (["pair.h5", "--to", "pdb"], "'pdb' is not one of"),
        (["pair.h5", "--to", "dcd", "--stride", "0"], "--stride"),
        (["pair.h5"], "Missing option '--to'"),
        (["."], "Missing option '--to'"),
        ([".", "--to", "xtc"], "is not a run"),
    ],
)
def test_wrong_input_ends_in_2(file, tmp_path, monkeypatch, capsys, words, complaint):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(["convert", *words]) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert sorted(tmp_path.iterdir()) == before


def test_a_replica_that_is_not_there_is_refused(tmp_path, capsys):
    run = tmp_path / "run"
    write_documents(run, RunSpec("tiny", "water", 1.0, 300.0, 2, seed=0))
    assert main(["convert", str(run), "--to", "dcd", "--replica", "5"]) == 2
    assert "has replicas 0 to 1; there is no replica 5" in capsys.readouterr().err


def test_help_says_what_the_formats_hold(capsys):
    assert main(["convert", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "float32" in shown
    assert "0.001 nm" in shown
