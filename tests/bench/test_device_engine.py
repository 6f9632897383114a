"""The bench of the device kernel, as far as it goes without a device."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from omm_mlff.bench import device_engine
from omm_mlff.bench.ptxas import Usage, variant
from omm_mlff.students.kernel.device import Device
from omm_mlff.students.kernel.layout import choices, cluster_sizes

TIMES = {"launched_ms": 0.05, "replayed_ms": 0.04, "replayed_is_launched": True, "peak_MB": 1.5}
ROW = {
    "student": "original",
    "molecule": "alanine",
    "n_copies": 1,
    "cluster": 16,
    "group": 1,
    "n_blocks": 16,
    "kernel": TIMES,
    "kernel_by_cluster_ms": {"16": 0.04},
    "scripted": TIMES | {"replayed_ms": "no graph: because", "replayed_is_launched": False},
    "off_eV_per_atom": 1e-7,
    "off_eV_per_angstrom": 1e-6,
}


def test_table_shows_every_row_failures_included() -> None:
    failed = {"student": "tiny", "molecule": "water", "n_copies": 256, "error": "no room"}
    shown = device_engine.table([ROW, failed])
    assert "0.0500 /    0.0400" in shown
    assert "no graph: because (differs)" in shown
    assert "by cluster: {'16': 0.04}" in shown
    assert shown.splitlines()[-1].endswith("256  no room")


def test_subject_has_copies_none_like_another() -> None:
    case = device_engine.subject("tiny", "water", 3)
    copies = case.positions.reshape(3, 3, 3)
    assert case.species.tolist() == [8, 1, 1]
    assert not torch.equal(copies[0], copies[1])
    assert float((copies[0] - copies[1]).abs().max()) < 0.03


def test_without_a_device_it_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise RuntimeError("no driver\nat all")

    monkeypatch.setattr(torch.cuda, "get_device_name", none)
    ended = CliRunner().invoke(device_engine.main, ["--out", str(tmp_path)])
    assert ended.exit_code == 2
    assert "error: CUDA cannot be used: no driver\n" in ended.output


def test_rows_are_written_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    here = Device(0, 90, 132, 232_448, 233_472)
    monkeypatch.setattr(device_engine, "device_of", lambda index: here)
    monkeypatch.setattr(device_engine, "compiled_kernel", lambda architecture, variant: b"")
    monkeypatch.setattr(device_engine, "measure", lambda case, with_scripted: ROW)
    monkeypatch.setattr(device_engine, "profile", lambda case: {"forces": 1.0})
    arguments = ["--out", str(tmp_path), "--students", "tiny", "--copies", "1,16"]
    ended = CliRunner().invoke(device_engine.main, arguments)
    assert ended.exit_code == 0, ended.output
    written = json.loads((tmp_path / device_engine.FILE_NAME).read_text())
    assert written["device"] == "a card"
    assert len(written["rows"]) == 4
    assert len(written["profiles"]) == 4


def test_usage_is_read_from_the_assemblers_log() -> None:
    log = (
        "ptxas info    : Function properties for f\n"
        "ptxas         .     528 bytes stack frame, 392 bytes spill stores, 184 bytes spill loads\n"
        "ptxas info    : Used 128 registers, used 1 barriers, 528 bytes cumulative stack size\n"
        "ptxas         .     0 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads\n"
    )
    assert Usage.read(log) == Usage(128, 528, 400, 200)
    with pytest.raises(ValueError, match="no registers"):
        Usage.read("nothing")


def test_variant_of_a_shipped_student_has_its_shape() -> None:
    assert variant("tiny", False, 4).slice == 16


def test_sweep_tries_only_what_the_kernel_can_be_and_compares_each_with_the_rules() -> None:
    for (name, molecule, n_copies), tried in device_engine.TRIALS.items():
        case = device_engine.subject(name, molecule, 1)
        config = case.student.config
        usual = choices(config.n_features, len(case.species), n_copies, 132)[0]
        assert usual in tried
        assert {choice.cluster for choice in tried} <= set(cluster_sizes(config.n_features))
        assert all(c.cluster == 1 or c.cluster * n_copies <= 132 for c in tried)
        assert len(set(tried)) == len(tried)
    assert sum(map(len, device_engine.TRIALS.values())) <= 40


def test_sweep_table_marks_the_quickest_way_that_is_right() -> None:
    row = {"student": "tiny", "molecule": "water", "n_copies": 1, "cluster": 1, "threads": 256}
    row |= {"blocks": 2, "group": 1, "n_blocks": 1, "shared_KB": 9.0, "right": True}
    row |= {"off_eV_per_atom": 1e-8, "off_eV_per_angstrom": 1e-6}
    wrong = row | {"replayed_ms": 0.1, "right": False}
    missing = {k: row[k] for k in ("student", "molecule", "n_copies", "cluster", "threads")}
    missing |= {"blocks": 3, "group": None, "error": "not compiled"}
    shown = device_engine.sweep_table(
        [row | {"replayed_ms": 0.3}, row | {"replayed_ms": 0.2}, wrong, missing]
    ).splitlines()[1:]
    assert [line.endswith(" *") for line in shown] == [False, True, False, False]
    assert shown[2].endswith("WRONG")
    assert shown[3].endswith("not compiled")


def test_sweep_without_a_device_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise RuntimeError("no driver\nat all")

    monkeypatch.setattr(torch.cuda, "get_device_name", none)
    ended = CliRunner().invoke(device_engine.main, ["--sweep", "--out", str(tmp_path)])
    assert ended.exit_code == 2
    assert "error: CUDA cannot be used: no driver\n" in ended.output
