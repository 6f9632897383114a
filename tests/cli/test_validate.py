"""`omm-mlff validate` and `simulate` as a person types them, wrong input included."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from omm_mlff.cli.main import main
from omm_mlff.data import data_folder
from omm_mlff.record.rundir import RunRecord

SHORT = """
title = "short"
static_systems = ["water"]

[[run]]
system = "water"
length_ps = 0.05
n_replicas = 2
temperature_K = 300
"""


@pytest.fixture
def short(tmp_path):
    path = tmp_path / "short.toml"
    path.write_text(SHORT)
    return str(path)


def copy_of(student, tmp_path):
    return shutil.copytree(data_folder("checkpoints") / student, tmp_path / "copy")


def structure(tmp_path, text, name="mine.xyz"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def refused(capsys, *words):
    """The one line on the error stream of a command that ends in 2."""
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_a_verdict_ends_in_its_exit_code_and_its_files(short, tmp_path, capsys):
    out = tmp_path / "out"
    code = main(["validate", "--model", "ultra-tiny", "--profile", short, "--out", str(out)])
    verdict = json.loads((out / "verdict.json").read_text())
    expected = {"APPROVED": 0, "NOT RECOMMENDED": 1, "REJECTED": 1, "UNDECIDED": 3}
    assert code == expected[verdict["verdict"]]
    assert capsys.readouterr().out.strip().startswith(verdict["verdict"])
    assert verdict["model"]["name"] == "ultra-tiny"
    assert verdict["policy"] == "strict"


def test_json_prints_the_verdict_file_and_nothing_else(short, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["validate", "--model", "ultra-tiny", "--profile", short, "--policy", "m6"]
    main([*words, "--out", str(out), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "verdict.json").read_text())
    assert printed["policy"] == "m6"


def test_an_unknown_model_names_its_neighbours(capsys):
    line = refused(capsys, "validate", "--model", "tny")
    assert "unknown model 'tny'; did you mean tiny" in line


def test_an_unknown_system_names_its_neighbours(capsys):
    line = refused(capsys, "validate", "--model", "tiny", "--system", "watr")
    assert "unknown system 'watr'; did you mean water" in line


def test_an_unknown_profile_and_policy_name_what_there_is(capsys, tmp_path):
    assert "quick" in refused(capsys, "validate", "--model", "tiny", "--profile", "qick")
    line = refused(
        capsys, "validate", "--model", "tiny", "--policy", "strct", "--out", str(tmp_path / "out")
    )
    assert "strict" in line
    assert not (tmp_path / "out").exists()


def test_a_species_that_was_never_seen_is_named(capsys, tmp_path):
    path = structure(tmp_path, "2\nHCl\nCl 0 0 0\nH 1.27 0 0\n")
    line = refused(capsys, "validate", "--model", "tiny", "--system", path)
    assert "never trained on Cl" in line


def test_a_corrupt_checkpoint_is_named(capsys, tmp_path):
    folder = copy_of("ultra-tiny", tmp_path)
    (folder / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{broken}")
    line = refused(capsys, "validate", "--model", str(folder))
    assert "corrupt or was replaced" in line


def test_a_truncated_checkpoint_is_named(capsys, tmp_path):
    folder = copy_of("ultra-tiny", tmp_path)
    payload = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(payload[: len(payload) // 2])
    assert "sha256" in refused(capsys, "validate", "--model", str(folder))


def test_a_card_with_another_hash_is_named(capsys, tmp_path):
    folder = copy_of("ultra-tiny", tmp_path)
    card = json.loads((folder / "card.json").read_text())
    card["sha256"] = "0" * 64
    (folder / "card.json").write_text(json.dumps(card))
    assert "its card says 000000000000" in refused(capsys, "validate", "--model", str(folder))


def test_nan_in_a_structure_is_named(capsys, tmp_path):
    path = structure(tmp_path, "3\nwater\nO 0 0 nan\nH 0.96 0 0\nH -0.24 0.93 0\n")
    line = refused(capsys, "validate", "--model", "tiny", "--system", path)
    assert "mine.xyz" in line


def test_two_atoms_at_one_place_are_named(capsys, tmp_path):
    path = structure(tmp_path, "3\nwater\nO 0 0 0\nH 0.96 0 0\nH 0.96 0 0\n")
    line = refused(capsys, "validate", "--model", "tiny", "--system", path)
    assert "mine.xyz" in line


def test_a_missing_platform_lists_what_is_there(capsys, tmp_path):
    line = refused(capsys, "validate", "--model", "tiny", "--platform", "Metal")
    assert "'Metal' is not available here: OpenMM has loaded no such platform" in line
    assert line.count("use ") == 1
    assert "Reference" in line


def test_a_negative_seed_is_refused_before_anything_runs(capsys, tmp_path):
    out = tmp_path / "out"
    asked = ("--model", "tiny", "--system", "water", "--seed", "-1", "--out", str(out))
    for command in ("validate", "simulate"):
        assert "needs a seed of 0 or more; got -1" in refused(capsys, command, *asked)
        assert not out.exists()


def test_a_folder_with_another_run_is_refused(capsys, short, tmp_path):
    out = tmp_path / "out"
    (out / "old").mkdir(parents=True)
    words = ("validate", "--model", "ultra-tiny", "--profile", short, "--out", str(out))
    assert "not empty" in refused(capsys, *words)


def test_resume_needs_a_folder(capsys):
    assert main(["validate", "--model", "tiny", "--resume"]) == 2
    assert "--out" in capsys.readouterr().err


def test_simulate_leaves_a_run_directory(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["simulate", "--model", "ultra-tiny", "--system", "water", "--out", str(out)]
    assert main([*words, "--length-ps", "0.05", "--replicas", "2", "--seed", "3"]) == 0
    record = RunRecord.open(out)
    assert record.replica(1).n_frames == 100
    assert "2 of 2 replicas ran to 0.05 ps" in capsys.readouterr().out
    assert main([*words, "--length-ps", "0.05", "--replicas", "2", "--seed", "3"]) == 2
    more = ["--length-ps", "0.1", "--replicas", "2", "--seed", "3", "--resume"]
    assert main([*words, *more]) == 0
    assert RunRecord.open(out).replica(0).n_frames == 200


def test_a_full_disk_ends_in_4(tmp_path, capsys, monkeypatch, short):
    import errno

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("omm_mlff.dynamics.checkpoint.np.savez", full)
    words = ["validate", "--model", "ultra-tiny", "--profile", short, "--out", str(tmp_path / "o")]
    assert main(words) == 4
    assert "the disk is full" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_in_130_and_resume_goes_on(tmp_path):
    """The real thing: a process of its own, a real SIGINT, then --resume."""
    profile = tmp_path / "long.toml"
    profile.write_text(SHORT.replace("0.05", "10000.0"))
    out = tmp_path / "out"
    words = [
        sys.executable,
        "-c",
        "import sys; from omm_mlff.cli.main import main; sys.exit(main())",
    ]
    words += ["validate", "--model", "ultra-tiny", "--profile", str(profile), "--out", str(out)]

    def started_and_interrupted_after(segment: int, words: list[str]) -> str:
        """What it wrote on standard error; it is interrupted once so many segments are closed."""
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        try:
            while process.poll() is None and not list(out.rglob(f"{segment:05d}.h5")):
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate()
        finally:
            process.kill()
        assert process.returncode == 130, errors
        return errors

    assert "Traceback" not in started_and_interrupted_after(0, words)
    (run,) = (out / "runs").iterdir()
    kept = RunRecord.open(run).replica(0).n_frames
    assert kept > 0
    closed = len(list((run / "replica_000").glob("*.h5")))
    started_and_interrupted_after(closed, [*words, "--resume"])
    times = RunRecord.open(run).replica(0).time
    assert len(times) > kept
    assert times[kept] - times[kept - 1] == pytest.approx(0.0005)


CHATTY = """
import ctypes

from ase.calculators.emt import EMT


class Chatty(EMT):
    def calculate(self, *args, **keywords):
        print("chatter")
        ctypes.CDLL(None).puts(b"chatter of a library")
        super().calculate(*args, **keywords)
"""


def test_what_a_model_prints_goes_to_stderr(tmp_path):
    (tmp_path / "chatty.py").write_text(CHATTY)
    (tmp_path / "short.toml").write_text(SHORT)
    words = [sys.executable, "-c", "import sys; from omm_mlff.cli.main import main; main()"]
    words += ["validate", "--json", "--model", "ase:chatty.py:Chatty", "--profile", "short.toml"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    document = json.loads(done.stdout)
    assert document["model"]["source"] == "ase"
    assert done.stderr.count("chatter") > 2
    assert "chatter of a library" in done.stderr


def test_options_of_a_file_belong_to_a_system(capsys):
    assert main(["validate", "--model", "tiny", "--charge", "1"]) == 2
    assert "name one" in capsys.readouterr().err


def test_a_radical_is_refused_in_one_line(tmp_path, capsys):
    rows = "C 0 0 0\nH 1.079 0 0\nH -0.5395 0.9344 0\nH -0.5395 -0.9344 0\n"
    path = structure(tmp_path, "4\n\n" + rows)
    words = ("validate", "--model", "tiny", "--system", path, "--out", str(tmp_path / "o"))
    line = refused(capsys, *words, "--spin", "2")
    assert "it is for closed shells (singlets), this one has spin multiplicity 2" in line
