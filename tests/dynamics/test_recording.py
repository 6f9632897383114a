"""Frames go to the replica they are of, and a status is what it was when it is read again."""

from __future__ import annotations

import json
from pathlib import Path

import mdtraj
import numpy as np
import pytest

from omm_mlff.dynamics.frames import Frames
from omm_mlff.dynamics.recording import BatchLog, Recorder, StatusLog, topology_json
from omm_mlff.record.rundir import FIELDS, SegmentWriter
from omm_mlff.schema import Event, RunSpec
from omm_mlff.systems import load_system

N_REPLICAS, N_ATOMS, SIZE = 2, 3, 8
SPEC = RunSpec("m", "water", 1.0, 300.0, N_REPLICAS, seed=0)


class Collector:
    """A writer that keeps what it is given."""

    def __init__(self):
        self.frames, self.n_closed = [], 0

    def append(self, frames):
        self.frames.append({name: array.copy() for name, array in frames.items()})

    def close_segment(self):
        self.n_closed += 1

    def all(self, name):
        return np.concatenate([frames[name] for frames in self.frames])


def frame(k, rng):
    vectors = [rng.normal(size=(N_REPLICAS, N_ATOMS, 3)) for _ in range(3)]
    energies = [rng.normal(size=N_REPLICAS) for _ in range(2)]
    return 0.5e-3 * k, *vectors, *energies


def add(recorder, frames, recorded):
    """Frames one by one; as many at once they are the same, which a test below says."""
    for row in frames:
        recorder.add(together([row]), np.array(recorded))


def together(frames):
    return Frames(*(np.array(column) for column in zip(*frames, strict=True)))


@pytest.fixture
def recorder():
    return Recorder([Collector(), Collector()], (N_REPLICAS, N_ATOMS, 3), SIZE)


def test_each_replica_gets_its_own_frames_in_order(recorder):
    rng = np.random.default_rng(0)
    frames = [frame(k, rng) for k in range(5)]
    add(recorder, frames, [True, True])
    recorder.flush()
    names = ("time", "positions", "velocities", "forces", "potential_energy", "kinetic_energy")
    assert set(names) == set(FIELDS)
    for replica, writer in enumerate(recorder.writers):
        np.testing.assert_array_equal(writer.all("time"), [row[0] for row in frames])
        for column, name in enumerate(names[1:], start=1):
            np.testing.assert_array_equal(
                writer.all(name), [row[column][replica] for row in frames]
            )


def test_many_frames_at_once_are_the_frames_one_by_one(recorder):
    rng = np.random.default_rng(1)
    frames = [frame(k, rng) for k in range(6)]
    recorded = np.array([True, False])
    add(recorder, frames, recorded)
    recorder.flush()
    other = Recorder([Collector(), Collector()], (N_REPLICAS, N_ATOMS, 3), SIZE)
    add(other, frames[:1], recorded)
    other.add(together(frames[1:]), recorded)
    other.flush()
    for one, two in zip(recorder.writers, other.writers, strict=True):
        for name in FIELDS:
            np.testing.assert_array_equal(one.all(name), two.all(name))


def test_a_replica_that_is_not_recorded_leaves_no_frame(recorder):
    rng = np.random.default_rng(2)
    for k in range(4):
        add(recorder, [frame(k, rng)], [True, k < 2])
    recorder.flush()
    assert [len(writer.all("time")) for writer in recorder.writers] == [4, 2]


def test_room_and_fullness_count_down_to_the_flush(recorder):
    rng = np.random.default_rng(3)
    for k in range(SIZE):
        assert (recorder.room, recorder.full) == (SIZE - k, False)
        add(recorder, [frame(k, rng)], [True, True])
    assert (recorder.room, recorder.full) == (0, True)
    recorder.flush()
    assert (recorder.room, recorder.full, recorder.n_in_segment) == (SIZE, False, SIZE)


def test_closing_a_segment_writes_what_is_held_first(recorder):
    rng = np.random.default_rng(4)
    add(recorder, [frame(0, rng)], [True, True])
    recorder.close_segment()
    assert recorder.n_in_segment == 0
    for writer in recorder.writers:
        assert (len(writer.all("time")), writer.n_closed) == (1, 1)


def test_a_status_is_read_again_as_it_was(tmp_path):
    log = StatusLog(tmp_path, SPEC)
    log.events[1] = Event("bond", 7, 0.0035, (0, 2), 0.153, "nm", "bond O0-H2 is 0.153 nm long")
    log.events[0] = Event("nan", 9, 0.0045, (), float("nan"), "kJ/mol", "not finite")
    log.batches[0] = BatchLog((0, 1), 2.5, pace=[(0, 256, 0.1, 1.0)])
    log.write("interrupted")
    written = json.loads((tmp_path / "status.json").read_text())
    assert (written["state"], written["n_steps"]) == ("interrupted", SPEC.n_steps)
    again = StatusLog(tmp_path, SPEC)
    assert again.batches == log.batches
    assert again.events[1] == log.events[1]
    assert again.events[0].kind == "nan"
    assert np.isnan(again.events[0].value)


def test_a_folder_without_a_status_begins_with_none(tmp_path):
    log = StatusLog(tmp_path, SPEC)
    assert (log.events, log.batches) == ({}, {})
    log.write("running")
    assert json.loads((tmp_path / "status.json").read_text())["events"] == {}


def test_the_topology_is_the_one_that_mdtraj_reads(tmp_path: Path):
    system = load_system("ethanol")
    writer = SegmentWriter(tmp_path, topology_json(system), system.n_atoms, None, 0)
    rest = {name: np.zeros((1, system.n_atoms, 3)) for name in ("velocities", "forces")}
    energies = {name: np.zeros(1) for name in ("time", "potential_energy", "kinetic_energy")}
    writer.append({**rest, **energies, "positions": system.positions[None]})
    writer.close_segment()
    topology = mdtraj.load(tmp_path / "00000.h5").topology
    assert [atom.element.atomic_number for atom in topology.atoms] == system.species.tolist()
    assert [atom.name for atom in topology.atoms] == [a.name for a in system.topology.atoms()]
    found = sorted(tuple(sorted((a.index, b.index))) for a, b in topology.bonds)
    assert found == [tuple(pair) for pair in system.bonds.tolist()]
