"""Explanations: what is written for a failed replica, and that nothing is for a sound one."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch
from checks.fakes import FakeReplica, FakeRun
from springs import SpringPotential, molecule, triatomic

import omm_mlff
from omm_mlff.dynamics.simulate import simulate
from omm_mlff.errors import MissingPackageError
from omm_mlff.failures import disagreement
from omm_mlff.failures.explain import MAX_REPLICAS, Explanation, explain
from omm_mlff.potentials.student import StudentPotential
from omm_mlff.record.rundir import RunRecord
from omm_mlff.schema import Event, RunSpec
from omm_mlff.students.checkpoint import save_student
from omm_mlff.students.student import STUDENT_CONFIGS, Student
from omm_mlff.systems import load_system
from omm_mlff.teachers import ani
from omm_mlff.units import BOLTZMANN, EV_ANGSTROM_PER_KJMOL_NM


class OffsetTeacher:
    """Agrees with a run's own forces but for 0.3 eV/angstrom along x."""

    def __init__(self, run) -> None:
        replica = run.replica(0)
        self.positions, self.forces = replica.positions, replica.forces

    def label(self, species, positions):
        frames = [int(np.abs(self.positions * 10.0 - x).sum((1, 2)).argmin()) for x in positions]
        forces = self.forces[frames] * EV_ANGSTROM_PER_KJMOL_NM
        forces = forces - np.array([0.3, 0.0, 0.0])
        return np.zeros(len(positions)), forces, np.full(len(positions), 0.01)


@pytest.fixture(scope="module")
def springs_run(tmp_path_factory) -> RunRecord:
    """Springs of which one copy is not a number once a pair is 5% too long."""
    spec = RunSpec("springs", "water", 0.3, 300.0, 2, seed=2, platform="Reference")
    run = simulate(spec, BRITTLE, equilateral(), tmp_path_factory.mktemp("springs") / "run")
    assert set(run.events) == {0}
    assert run.replica(0).n_frames > 20
    return run


BRITTLE = SpringPotential(breaks_at=0.101)


def equilateral():
    """Water with all distances alike."""
    corners = [[0.0, 0.0, 0.0], [0.096, 0.0, 0.0], [0.048, 0.0831384, 0.0]]
    return dataclasses.replace(molecule([8, 1, 1], corners, [[0, 1], [0, 2]]), name="water")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> tuple[RunRecord, list[Explanation]]:
    """A student that was never trained, on water: a checkpoint that anybody can load."""
    folder = tmp_path_factory.mktemp("untrained")
    torch.manual_seed(2)
    student = Student(STUDENT_CONFIGS["ultra-tiny"])
    student.network.double()
    save_student(folder / "model", student, {})
    potential, system = StudentPotential(str(folder / "model")), load_system("water")
    spec = RunSpec(potential.spec, "water", 0.15, 3000.0, 3, seed=4, platform="Reference")
    run = simulate(spec, potential, system, folder / "run")
    return run, explain(run, system, potential, folder / "failures", teacher=None)


def report(made: Explanation) -> dict:
    return json.loads((made.folder / "failure.json").read_text())


def test_a_failed_replica_is_written_down_with_its_symptoms_in_order(untrained) -> None:
    run, made = untrained
    assert run.events
    assert 1 <= len(made) <= MAX_REPLICAS
    first = made[0]
    found = report(first)
    assert found["schema"] == 1
    assert found["diagnosis"] == first.diagnosis == first.symptoms[0].kind
    times = [item["time_ps"] for item in found["symptoms"]]
    assert times == sorted(times)
    assert found["symptoms"][0]["sentence"] in found["sentence"] == first.sentence
    assert found["n_failed"] == first.n_failed <= found["n_replicas"] == 3
    assert [item.symptoms[0].time_ps for item in made] == sorted(
        item.symptoms[0].time_ps for item in made
    )


def test_the_frames_before_and_after_open_in_mdtraj(untrained) -> None:
    run, made = untrained
    for one in made:
        frames = report(one)["frames"]
        before = mdtraj.load(str(one.folder / "before.pdb"))
        assert (before.n_frames, before.n_atoms) == (frames["before"]["n_written"], 3)
        replica = run.replica(one.replica)
        last = int(np.abs(replica.time - frames["before"]["time_ps"][-1]).argmin())
        assert before.xyz[-1] == pytest.approx(replica.positions[last], abs=1e-4)
        assert frames["before"]["time_ps"][-1] <= one.symptoms[0].time_ps + run.dt_ps
        if frames["after"]["n_written"]:
            after = mdtraj.load(str(one.folder / "after.pdb"))
            assert after.n_frames == frames["after"]["n_written"]
            assert frames["after"]["time_ps"][0] > frames["before"]["time_ps"][-1]


def test_the_script_replays_what_was_recorded(untrained) -> None:
    """Alone in its folder, in a process of its own: every energy of the record comes again."""
    run, made = untrained
    script = made[0].folder / "replay.py"
    code = [line for line in script.read_text().splitlines() if line and line[0] not in "\"'#"]
    assert len(code) <= 20
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(Path(omm_mlff.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    replica = run.replica(made[0].replica)
    lines = [line.split() for line in done.stdout.splitlines()]
    times = np.array([float(words[0]) for words in lines])
    potential, kinetic = (np.array([float(words[k]) for words in lines]) for k in (2, 3))
    first = int(np.abs(replica.time - times[0]).argmin())
    n = min(len(times), replica.n_frames - first)
    assert n >= 2
    recorded = slice(first, first + n)
    scale = replica.kinetic_energy[recorded].max()
    assert times[:n] == pytest.approx(replica.time[recorded], abs=1e-4)
    assert potential[:n] == pytest.approx(replica.potential_energy[recorded], abs=1e-6 * scale)
    assert kinetic[:n] == pytest.approx(replica.kinetic_energy[recorded], abs=1e-6 * scale)


def test_a_nan_is_found_and_what_follows_is_said_not_to_be_finite(
    springs_run: RunRecord, tmp_path: Path
) -> None:
    (one,) = explain(springs_run, equilateral(), BRITTLE, tmp_path, teacher=None)
    assert one.diagnosis == "nan"
    assert one.sentence.startswith("nan at ")
    assert report(one)["symptoms"][0]["value"] == "nan"
    after = report(one)["frames"]["after"]
    assert "not finite 2 steps after the last recorded frame" in after["note"]
    assert (after["n_written"], (one.folder / "after.pdb").exists()) == (0, False)


def test_of_many_replicas_the_first_to_fail_are_written(tmp_path: Path) -> None:
    system = triatomic()
    replicas = []
    for first in (300, 100, 400, 200, 50):
        positions = np.tile(system.positions, (450, 1, 1))
        positions[first:, 1, 0] += 0.08
        kinetic = np.full(450, 1.5 * BOLTZMANN * 300.0)
        moving = positions + 0.01 * np.random.default_rng(first).normal(size=positions.shape)
        replicas.append(FakeReplica(3, 5e-4, positions=moving, kinetic_energy=kinetic))
    run = FakeRun(replicas, system.masses)
    made = explain(run, system, SpringPotential(), tmp_path, teacher=None)
    assert [one.replica for one in made] == [4, 1, 3]
    assert len(made) == MAX_REPLICAS
    assert {one.n_failed for one in made} == {5}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "replica_001",
        "replica_003",
        "replica_004",
    ]
    after = report(made[0])["frames"]["after"]
    assert after["note"] == "as recorded"
    assert after["time_ps"][-1] == pytest.approx(50 * 5e-4 + 0.05)


def test_a_script_that_cannot_know_the_potential_says_so(
    springs_run: RunRecord, tmp_path: Path
) -> None:
    (one, *_) = explain(springs_run, equilateral(), BRITTLE, tmp_path, teacher=None)
    text = (one.folder / "replay.py").read_text()
    assert "# 'springs' is no model spec that load_potential reads" in text
    compile(text, "replay.py", "exec")
    with np.load(one.folder / "state.npz") as state:
        assert np.isfinite(state["positions"]).all()
        assert np.isfinite(state["velocities"]).all()


def test_the_teachers_forces_stand_beside_the_models(
    springs_run: RunRecord, tmp_path: Path
) -> None:
    """A teacher off by 0.3 eV/angstrom in one of three components: rmse 0.3 / sqrt(3)."""
    one_replica = FakeRun(
        [_copy(springs_run, 0)], springs_run.masses, events={0: springs_run.events[0]}
    )
    teacher = OffsetTeacher(one_replica)
    (one,) = explain(one_replica, equilateral(), BRITTLE, tmp_path, teacher)
    forces = report(one)["forces"]
    assert forces["reference"] == ani.TEACHER_NAME
    course = forces["course"]
    assert course["rmse"] == pytest.approx([0.3 / math.sqrt(3.0)] * len(course["time_ps"]))
    assert course["rmse_at_fault"] == pytest.approx(course["rmse"])
    assert all(course["reference_trusted"])
    assert len(course["time_ps"]) <= 21
    assert course["time_ps"][-1] - course["time_ps"][0] <= 0.0501
    assert forces["atoms"] == ["O0", "H1"] or forces["atoms"] == ["O0", "H2"]
    last = forces["frames"][-1]
    difference = np.array(last["model"]) - np.array(last["reference"])
    assert difference == pytest.approx(np.tile([0.3, 0.0, 0.0], (2, 1)))


def _copy(run: RunRecord, index: int) -> FakeReplica:
    replica = run.replica(index)
    names = ("potential_energy", "kinetic_energy", "positions", "velocities", "forces")
    return FakeReplica(3, run.dt_ps, **{name: getattr(replica, name) for name in names})


def test_a_teacher_that_does_not_apply_is_absent_with_the_reason(monkeypatch) -> None:
    sulphur = molecule([16, 1, 1], triatomic().positions, triatomic().bonds)
    charged = dataclasses.replace(triatomic(), charge=1)
    boxed = dataclasses.replace(triatomic(), box_vectors=np.eye(3))
    assert disagreement.usable_teacher(triatomic(), None) == (None, "no teacher was given")
    assert "not atomic numbers [16]" in disagreement.usable_teacher(sulphur, "auto")[1]
    assert "charge +1" in disagreement.usable_teacher(charged, "auto")[1]
    assert "periodic box" in disagreement.usable_teacher(boxed, "auto")[1]

    def lacking() -> None:
        raise MissingPackageError("torchani", "the teacher ANI-1ccx", "pip install it")

    monkeypatch.setattr(ani, "Teacher", lacking)
    assert "pip install it" in disagreement.usable_teacher(triatomic(), "auto")[1]


def test_a_replica_without_a_frame_is_explained_without_frames(tmp_path: Path) -> None:
    nothing = FakeReplica(3, 5e-4, positions=np.zeros((0, 3, 3)))
    event = Event("nan", 0, 0.0, (0, 1), math.nan, "kJ/mol", "energy or forces are not finite")
    run = FakeRun([nothing], triatomic().masses, events={0: event})
    (one,) = explain(run, triatomic(), SpringPotential(), tmp_path, teacher=None)
    assert one.diagnosis == "nan"
    assert "failed at its first evaluation" in report(one)["frames_absent"]
