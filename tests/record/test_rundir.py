"""Run directories: what is written is what is read, and damage is named."""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import mdtraj
import numpy as np
import pytest
import tables
from run_documents import PROVENANCE

from omm_mlff.errors import InputError, OutputExistsError, RunDirectoryError, StorageError
from omm_mlff.record import rundir
from omm_mlff.record.documents import write_document
from omm_mlff.record.frame_cache import Kept, Room
from omm_mlff.record.rundir import (
    FrameFile,
    RunRecord,
    SegmentWriter,
    mdtraj_topology,
    storage_errors,
)
from omm_mlff.record.status import RunStatus
from omm_mlff.schema import RunSpec

SPEC = RunSpec("m", "water", 1.0, 300.0, 1, seed=0)
TOPOLOGY = mdtraj_topology(
    ["O", "H1", "H2"], ["O", "H", "H"], [("HOH", 0)] * 3, np.array([[0, 1], [0, 2]])
)


def frames(n, first=0):
    rng = np.random.default_rng(first)
    return {
        "time": (first + np.arange(n)) * 0.0005,
        "potential_energy": rng.normal(size=n) - 2.0e5,
        "kinetic_energy": rng.random(n),
        "positions": rng.normal(size=(n, 3, 3)),
        "velocities": rng.normal(size=(n, 3, 3)),
        "forces": rng.normal(size=(n, 3, 3)),
    }


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "run"
    rundir.create(folder, SPEC, PROVENANCE, resume=False)
    write_document(folder / "status.json", RunStatus("complete", 0, {}, {}))
    writer = SegmentWriter(folder / "replica_000", TOPOLOGY, 3, None, 0)
    writer.append(frames(5))
    writer.append(frames(3, 5))
    writer.close_segment()
    writer.append(frames(4, 8))
    writer.close_segment()
    return folder


def test_segments_are_read_as_one_record_to_the_last_bit(folder):
    record = RunRecord.open(folder)
    replica = record.replica(0)
    assert [path.name for path in replica.files] == ["00000.h5", "00001.h5"]
    for name in frames(1):
        want = np.concatenate([frames(5)[name], frames(3, 5)[name], frames(4, 8)[name]])
        np.testing.assert_array_equal(getattr(replica, name), want)
    assert record.bonds.tolist() == [[0, 1], [0, 2]]
    assert record.n_dof == 3


def test_chunks_bound_the_memory_and_leave_nothing_out(folder):
    chunks = list(RunRecord.open(folder).replica(0).chunks(3))
    assert [len(chunk["time"]) for chunk in chunks] == [3, 3, 2, 3, 1]
    times = np.concatenate([chunk["time"] for chunk in chunks])
    np.testing.assert_array_equal(times, np.arange(12) * 0.0005)


@pytest.fixture(params=["with room", "without room"])
def reader(request, folder):
    record = RunRecord.open(folder)
    if request.param == "without room":
        record.kept = Kept(Room(0))
    return record.replica(0)


def test_a_frame_reads_the_same_whether_segments_are_kept_or_not(reader):
    whole = {
        name: np.concatenate([frames(5)[name], frames(3, 5)[name], frames(4, 8)[name]])
        for name in frames(1)
    }
    assert reader.n_frames == 12
    picked = reader.frames([0, 4, 7, 8, 11], ("time", "forces"))
    assert list(picked) == ["time", "forces"]
    for name, array in picked.items():
        np.testing.assert_array_equal(array, whole[name][[0, 4, 7, 8, 11]])
    for _ in range(2):
        chunks = list(reader.chunks(5, ("velocities",)))
        assert [list(chunk) for chunk in chunks] == [["velocities"]] * 3
        together = np.concatenate([chunk["velocities"] for chunk in chunks])
        np.testing.assert_array_equal(together, whole["velocities"])
    assert reader.frames([], ("positions",))["positions"].shape[0] == 0


def test_a_segment_is_opened_once_for_all_who_read_it(folder, monkeypatch):
    opened = []
    original = tables.open_file
    monkeypatch.setattr(
        tables, "open_file", lambda path, **more: opened.append(path) or original(path, **more)
    )
    record = RunRecord.open(folder)
    for _ in range(3):
        assert record.replica(0).n_frames == 12
        assert len(record.replica(0).positions) == 12
    assert len(opened) == 2


def test_a_segment_that_was_written_anew_is_read_anew(folder):
    record = RunRecord.open(folder)
    assert record.replica(0).n_frames == 12
    writer = SegmentWriter(folder / "replica_000", TOPOLOGY, 3, None, 1)
    writer.append(frames(40, 8))
    writer.close_segment()
    assert record.replica(0).n_frames == 48


def test_frames_that_are_kept_cannot_be_written_to(folder):
    chunk = next(iter(RunRecord.open(folder).replica(0).chunks(3)))
    with pytest.raises(ValueError, match="read-only"):
        chunk["positions"] += 1.0


def test_energies_keep_what_float32_would_lose(folder):
    energies = RunRecord.open(folder).replica(0).potential_energy
    assert energies.dtype == np.float64
    assert np.abs(energies - energies.astype(np.float32)).max() > 1e-3


def test_reading_needs_neither_torch_nor_openmm(folder):
    script = f"""
import sys
for name in ("torch", "openmm", "mdtraj"):
    sys.modules[name] = None
from omm_mlff.record.rundir import RunRecord
print(RunRecord.open({str(folder)!r}).replica(0).n_frames)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "12"


def test_a_box_is_written_as_lengths_and_angles(tmp_path):
    box = np.array([[2.0, 0, 0], [0.5, 2.0, 0], [0.3, -0.4, 2.5]])
    file = FrameFile(tmp_path / "box.h5", TOPOLOGY, 3, box)
    file.append(frames(2))
    file.close()
    trajectory = mdtraj.load(str(tmp_path / "box.h5"))
    np.testing.assert_allclose(trajectory.unitcell_vectors[1], box, atol=1e-6)


def test_an_open_segment_is_no_segment(tmp_path):
    writer = SegmentWriter(tmp_path, TOPOLOGY, 3, None, 0)
    writer.append(frames(2))
    assert [path.name for path in tmp_path.iterdir()] == ["00000.h5.partial"]
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    (tmp_path / "00000.h5.partial").write_bytes(b"half")
    SegmentWriter(tmp_path, TOPOLOGY, 3, None, 0)
    assert list(tmp_path.iterdir()) == []


def test_segments_beyond_where_a_run_goes_on_are_removed(folder):
    SegmentWriter(folder / "replica_000", TOPOLOGY, 3, None, 1)
    assert RunRecord.open(folder).replica(0).n_frames == 8


def test_a_missing_file_is_named(folder):
    (folder / "status.json").unlink()
    with pytest.raises(RunDirectoryError, match=r"status\.json is missing"):
        RunRecord.open(folder)


def test_damaged_files_are_named(folder):
    path = folder / "replica_000" / "00001.h5"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(RunDirectoryError, match=r"00001\.h5 is damaged"):
        _ = RunRecord.open(folder).replica(0).time
    (folder / "spec.json").write_text("{")
    with pytest.raises(RunDirectoryError, match=r"spec\.json is damaged"):
        RunRecord.open(folder)


def test_a_run_is_taken_up_only_by_its_own_spec(folder):
    with pytest.raises(OutputExistsError, match="--resume"):
        rundir.create(folder, SPEC, PROVENANCE, resume=False)
    longer = RunSpec("m", "water", 2.0, 300.0, 1, seed=0)
    assert rundir.create(folder, longer, PROVENANCE, resume=True)
    assert json.loads((folder / "spec.json").read_text())["length_ps"] == 2.0
    other = RunSpec("m", "water", 2.0, 300.0, 1, seed=1)
    with pytest.raises(OutputExistsError, match="another run"):
        rundir.create(folder, other, PROVENANCE, resume=True)


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "cannot write"), (errno.EACCES, "cannot write")],
)
def test_storage_errors_say_what_to_do(tmp_path, number, message):
    with pytest.raises(StorageError, match=message), storage_errors(tmp_path / "x"):
        raise OSError(number, "said by the system")


def test_other_errors_pass_through_unchanged(tmp_path):
    with pytest.raises(IsADirectoryError), storage_errors(tmp_path / "x"):
        raise IsADirectoryError(errno.EISDIR, "a folder")


def test_a_written_file_is_flushed_in_mdtrajs_layout(folder):
    with tables.open_file(str(folder / "replica_000" / "00000.h5")) as handle:
        assert handle.root._v_attrs.conventions == "Pande"
        assert handle.root.coordinates._v_attrs.units == "nanometers"


def test_a_place_where_no_folder_can_be_is_bad_input(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot make the folder .*Not a directory"):
        rundir.create(tmp_path / "file" / "run", SPEC, PROVENANCE, resume=False)
