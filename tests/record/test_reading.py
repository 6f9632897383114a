"""What was recorded is read wherever it lies, to the last bit."""

from __future__ import annotations

import os
import shutil

import mdtraj
import numpy as np
import pytest
import tables
from run_documents import PROVENANCE

from omm_mlff import RunRecord, read_record
from omm_mlff.errors import InputError, RunDirectoryError
from omm_mlff.record.documents import write_document
from omm_mlff.record.rundir import FrameFile, SegmentWriter, create, mdtraj_topology
from omm_mlff.record.status import RunStatus
from omm_mlff.schema import RunSpec

TOPOLOGY = mdtraj_topology(
    ["O", "H1", "H2"], ["O", "H", "H"], [("HOH", 0)] * 3, np.array([[0, 1], [0, 2]])
)
NAMES = {
    "time": "time_ps",
    "potential_energy": "potential_energy_kJ_mol",
    "kinetic_energy": "kinetic_energy_kJ_mol",
    "positions": "positions_nm",
    "velocities": "velocities_nm_ps",
    "forces": "forces_kJ_mol_nm",
}


def frames(n, first=0):
    rng = np.random.default_rng(first)
    energies = {"potential_energy": rng.normal(size=n) - 2.0e5, "kinetic_energy": rng.random(n)}
    of_atoms = {name: rng.normal(size=(n, 3, 3)) for name in ("positions", "velocities", "forces")}
    return {"time": (first + np.arange(n)) * 0.0005, **energies, **of_atoms}


def a_run(folder, first=0, topology=TOPOLOGY):
    """Two replicas: 5 + 3 frames, and 4."""
    create(folder, RunSpec("m", "water", 1.0, 300.0, 2, seed=0), PROVENANCE, resume=False)
    write_document(folder / "status.json", RunStatus("complete", 0, {}, {}))
    for replica, lengths in enumerate(([5, 3], [4])):
        writer = SegmentWriter(folder / f"replica_{replica:03d}", topology, 3, None, 0)
        for i, length in enumerate(lengths):
            writer.append(frames(length, first + 100 * replica + 5 * i))
            writer.close_segment()
    return folder


def holds(record, *blocks):
    for name, ours in NAMES.items():
        want = np.concatenate([block[name] for block in blocks])
        np.testing.assert_array_equal(getattr(record, ours), want)
    assert record.n_frames == len(record.time_ps)


def test_a_run_directory_has_its_replicas_one_after_another(tmp_path):
    record = read_record(a_run(tmp_path / "run"))
    holds(record, frames(5), frames(3, 5), frames(4, 100))
    assert record.replica.tolist() == [0] * 8 + [1] * 4
    assert record.elements == ("O", "H", "H")
    assert record.cell_lengths_nm is None
    assert repr(record) == f"<Recording {tmp_path / 'run'}: 12 frames of run>"


def test_a_replicas_folder_is_read_by_itself(tmp_path):
    record = read_record(str(a_run(tmp_path / "run") / "replica_001"))
    holds(record, frames(4, 100))
    assert set(record.run) == {"run"}
    assert set(record.replica) == {1}


def test_a_validation_has_all_its_runs(tmp_path):
    a_run(tmp_path / "v" / "runs" / "a")
    a_run(tmp_path / "v" / "runs" / "b", first=1000)
    record = read_record(tmp_path / "v")
    blocks = [frames(n, i) for o in (0, 1000) for n, i in ((5, o), (3, o + 5), (4, o + 100))]
    holds(record, *blocks)
    table = record.to_dataframe()
    assert list(table.columns) == ["run", "replica", *list(NAMES.values())[:3]]
    assert table.groupby(["run", "replica"]).size().tolist() == [8, 4, 8, 4]
    np.testing.assert_array_equal(
        table["potential_energy_kJ_mol"], np.concatenate([b["potential_energy"] for b in blocks])
    )


def test_atoms_of_different_molecules_make_no_one_array_but_a_table(tmp_path):
    a_run(tmp_path / "v" / "runs" / "a")
    other = TOPOLOGY.replace('"element": "O"', '"element": "S"')
    a_run(tmp_path / "v" / "runs" / "b", topology=other)
    record = read_record(tmp_path / "v")
    assert len(record.to_dataframe()) == 24
    with pytest.raises(InputError, match=r"different molecules \(a, b\)"):
        _ = record.positions_nm


def test_what_a_kill_left_is_read_with_the_segment_that_was_open(tmp_path):
    writer = SegmentWriter(tmp_path / "f.h5.parts", TOPOLOGY, 3, None, 0)
    writer.append(frames(5))
    writer.close_segment()
    partial = FrameFile(tmp_path / "open.h5", TOPOLOGY, 3)
    partial.append(frames(3, 5))
    shutil.copyfile(partial.partial, tmp_path / "f.h5.parts" / "00001.h5.partial")
    partial.close()
    os.replace(tmp_path / "open.h5", tmp_path / "f.h5.parts" / "00001.h5.partial")
    for name in ("f.h5", "f.h5.parts"):
        record = read_record(tmp_path / name)
        holds(record, frames(5), frames(3, 5))
        assert record.left_out == ()
    holds(read_record(tmp_path / "f.h5.parts" / "00001.h5.partial"), frames(3, 5))


def test_of_a_frame_that_was_half_written_nothing_is_read(tmp_path):
    file = FrameFile(tmp_path / "f.h5", TOPOLOGY, 3)
    file.append(frames(5))
    file.close()
    with tables.open_file(str(tmp_path / "f.h5"), "a") as handle:
        handle.root.forces.truncate(4)
    record = read_record(tmp_path / "f.h5")
    holds(record, {name: values[:4] for name, values in frames(5).items()})


def test_an_open_segment_that_cannot_be_read_is_named(tmp_path):
    run = a_run(tmp_path / "run")
    torn = run / "replica_001" / "00001.h5.partial"
    torn.write_bytes(b"\x89HDF\r\n\x1a\n and no more")
    record = read_record(run)
    holds(record, frames(5), frames(3, 5), frames(4, 100))
    assert record.left_out == (torn,)
    with pytest.raises(InputError, match=r"00001\.h5\.partial cannot be read"):
        read_record(torn)
    torn.rename(run / "replica_001" / "00001.h5")
    with pytest.raises(InputError, match=r"00001\.h5 cannot be read"):
        read_record(run)


def test_what_is_still_being_written_is_said_to_be(tmp_path):
    (tmp_path / "f.h5.parts").mkdir()
    file = FrameFile(tmp_path / "f.h5.parts" / "00000.h5", TOPOLOGY, 3)
    file.append(frames(2))
    with pytest.raises(InputError, match=r"00000\.h5\.partial is still being written"):
        read_record(tmp_path / "f.h5")
    file.close()
    holds(read_record(tmp_path / "f.h5"), frames(2))


def test_the_box_of_every_frame_is_read(tmp_path):
    file = FrameFile(tmp_path / "b.h5", TOPOLOGY, 3, np.diag([2.0, 3.0, 4.0]))
    file.append(frames(2))
    file.close()
    record = read_record(tmp_path / "b.h5")
    np.testing.assert_allclose(record.cell_lengths_nm, [[2.0, 3.0, 4.0]] * 2, rtol=1e-15)
    np.testing.assert_allclose(record.cell_angles_degrees, 90.0, rtol=1e-15)


def test_a_file_that_mdtraj_wrote_has_what_it_has(tmp_path):
    file = FrameFile(tmp_path / "ours.h5", TOPOLOGY, 3)
    file.append(frames(4))
    file.close()
    mdtraj.load(str(tmp_path / "ours.h5")).save_hdf5(str(tmp_path / "theirs.h5"))
    record = read_record(tmp_path / "theirs.h5")
    np.testing.assert_allclose(record.positions_nm, frames(4)["positions"], atol=1e-6)
    assert record.elements == ("O", "H", "H")
    assert record.forces_kJ_mol_nm is None
    assert list(record.to_dataframe().columns) == ["run", "replica", "time_ps"]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("absent", "absent does not exist"),
        ("text.txt", "text.txt is no recorded trajectory"),
        ("text.h5", r"text\.h5 cannot be read"),
        ("empty", "empty holds no recorded frame"),
    ],
)
def test_what_is_no_record_is_refused_by_its_name(tmp_path, name, complaint):
    (tmp_path / "empty").mkdir()
    for text in ("text.txt", "text.h5"):
        (tmp_path / text).write_text("frames")
    with pytest.raises(InputError, match=complaint) as caught:
        read_record(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["f.h5", "f.h5.parts"])
def test_a_run_record_of_a_trajectory_says_what_reads_it(tmp_path, name):
    file = FrameFile(tmp_path / "f.h5", TOPOLOGY, 3)
    file.append(frames(1))
    file.close()
    (tmp_path / "f.h5.parts").mkdir()
    shutil.copyfile(tmp_path / "f.h5", tmp_path / "f.h5.parts" / "00000.h5")
    with pytest.raises(RunDirectoryError, match=rf"{name} is no run directory.*read_record"):
        RunRecord(tmp_path / name)
    assert read_record(tmp_path / name).n_frames == 1
