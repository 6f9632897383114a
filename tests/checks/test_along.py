"""The teacher along a run: forces that are its own, forces that go wrong, runs that stop."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from checks.fakes import FakeEvaluator, FakeReplica, FakeRun, by_name, card, water, with_labels

from omm_mlff.checks import along
from omm_mlff.checks.base import Evidence
from omm_mlff.errors import MissingPackageError
from omm_mlff.schema import Event, ReferenceLabels
from omm_mlff.units import ANGSTROM_PER_NM, KJMOL_NM_PER_EV_ANGSTROM

DT_PS = 5e-4
N_FRAMES = 400


class FakeTeacher:
    """Pulls every atom to the origin with 1 eV/angstrom^2; counts what it is asked."""

    def __init__(self) -> None:
        self.n_frames = 0

    def label(self, species, positions):
        self.n_frames += len(positions)
        return np.zeros(len(positions)), -positions, np.zeros(len(positions))


@pytest.fixture
def pulling(monkeypatch) -> FakeTeacher:
    fake = FakeTeacher()
    monkeypatch.setattr(along, "_teacher", lambda: fake)
    return fake


def pull(positions_nm: np.ndarray) -> np.ndarray:
    """The fake teacher's forces in kJ/mol/nm."""
    return -positions_nm * ANGSTROM_PER_NM * KJMOL_NM_PER_EV_ANGSTROM


def replica(seed: int, error: np.ndarray | float = 0.0, n_frames: int = N_FRAMES) -> FakeReplica:
    """A replica whose force components are off by `error` (eV/angstrom), frame by frame."""
    random = np.random.default_rng(seed)
    positions = water().positions + 0.003 * random.normal(size=(n_frames, 3, 3))
    sign = random.choice([-1.0, 1.0], size=positions.shape)
    off = np.broadcast_to(np.reshape(error, (-1, 1, 1)), positions.shape)
    forces = pull(positions) + sign * off * KJMOL_NM_PER_EV_ANGSTROM
    return FakeReplica(3, DT_PS, positions=positions, forces=forces)


def labelled(error: float, method: str = "ANI-1ccx"):
    """Water with labels from which an evaluator of the plain pull is off by `error`."""
    random = np.random.default_rng(9)
    positions = water().positions + 0.003 * random.normal(size=(40, 3, 3))
    sign = random.choice([-1.0, 1.0], size=positions.shape)
    forces = pull(positions) + sign * error * KJMOL_NM_PER_EV_ANGSTROM
    reference = ReferenceLabels(
        positions, np.zeros(40), forces, np.repeat(np.arange(8), 5), np.full(40, 300.0), method
    )
    return with_labels(water(), reference)


def measured(replicas, system, events=None, live: bool = True, target_K: float = 300.0):
    run = FakeRun(replicas, system.masses, events=events, target_K=target_K)
    evaluator = FakeEvaluator(lambda x, _: (0.0, pull(x)), system) if live else None
    return by_name(along.CHECK.measure(Evidence(system, card(), (run,), evaluator)))


def stopped(step: int) -> Event:
    return Event("bond", step, step * DT_PS, (0, 1), 0.15, "nm", "bond O0-H1 is 0.150 nm long")


def test_the_error_along_the_run_is_what_was_put_in(pulling) -> None:
    found = measured([replica(k, 0.1) for k in range(4)], labelled(0.05))
    row = found["along.force_rmse"]
    assert row.value == pytest.approx(0.1, rel=1e-9)
    assert row.n_samples == 4
    assert found["along.excursion"].value == pytest.approx(2.0, rel=1e-9)
    assert (
        "0.1 eV/angstrom against 0.05 on labelled frames at 300 K" in found["along.excursion"].cause
    )
    assert found["along.force_rmse_before_failure"].not_applicable == "no replica was stopped"


def test_a_run_that_stays_where_it_was_measured_passes_and_one_that_strays_fails(pulling) -> None:
    (limit,) = [row for row in along.CHECK.criteria if row.measurement == "along.excursion"]
    at_home = measured([replica(k, 0.05) for k in range(8)], labelled(0.05))["along.excursion"]
    assert at_home.ci_high < limit.high
    growing = np.linspace(0.05, 0.5, N_FRAMES)
    astray = measured([replica(k, growing) for k in range(8)], labelled(0.05))["along.excursion"]
    assert astray.ci_low > limit.high


def test_errors_that_do_not_matter_make_no_ratio(pulling) -> None:
    found = measured([replica(k, 1e-6) for k in range(4)], labelled(1e-9))
    assert found["along.excursion"].value == pytest.approx(1.0)


def test_frames_are_spread_over_replicas_and_time(pulling) -> None:
    run = FakeRun([replica(k) for k in range(8)], water().masses)
    visited = along.visited_frames(run, 3)
    assert np.bincount(visited.replica).tolist() == [8] * 8
    first = visited.time_ps[visited.replica == 0] / DT_PS
    assert first.tolist() == [25, 75, 125, 175, 225, 275, 325, 375]


def test_a_large_molecule_or_many_replicas_do_not_cost_more(pulling) -> None:
    run = FakeRun([replica(k, n_frames=20) for k in range(100)], water().masses)
    assert len(along.visited_frames(run, 3).time_ps) <= along.N_FRAMES
    alone = FakeRun([replica(0)], water().masses)
    assert len(along.visited_frames(alone, 3).time_ps) == 64
    big = np.zeros((N_FRAMES, 200, 3))
    heavy = FakeRun([FakeReplica(200, DT_PS, positions=big, forces=big)], np.ones(200))
    assert len(along.visited_frames(heavy, 200).time_ps) == along.ATOM_FRAMES // 200


def test_the_course_before_a_stop_is_told(pulling) -> None:
    step = 300
    course = np.full(step + 1, 0.08)
    course[step - 40 :] = 0.3  # the last 20 fs
    course[step:] = 5.1
    replicas = [replica(0, course, step + 1), replica(1, 0.08)]
    found = measured(replicas, labelled(0.08), events={0: stopped(step)})
    row = found["along.force_rmse_before_failure"]
    assert row.cause.startswith(
        "0.08, 0.08, 0.08, 0.3, 0.3, 5.1 eV/angstrom at 50, 40, 30, 20, 10, 0 fs before the stop"
    )
    assert "1 of 1 replicas that were stopped" in row.cause
    assert "bond O0-H1 is 0.150 nm long" in row.cause
    expected = np.sqrt(np.mean(np.square([0.08, 0.08, 0.08, 0.3, 0.3, 5.1])))
    assert row.value == pytest.approx(expected, rel=1e-9)
    # What comes before the aftermath is all that counts for the run itself.
    assert found["along.force_rmse"].value == pytest.approx(0.08, rel=1e-9)


def test_a_run_that_stopped_at_once_still_says_how(pulling) -> None:
    found = measured([replica(0, 2.0, 11)], labelled(0.08), events={0: stopped(10)})
    assert "first 20 fs" in found["along.force_rmse"].not_applicable
    row = found["along.force_rmse_before_failure"]
    assert row.value == pytest.approx(2.0)
    assert row.cause.startswith("2 eV/angstrom at 0 fs before the stop")


def test_labels_of_another_temperature_promise_nothing(pulling) -> None:
    near = measured([replica(0, 0.1), replica(1, 0.1)], labelled(0.1), target_K=280.0)
    assert near["along.excursion"].value == pytest.approx(1.0)
    far = measured([replica(0, 0.1), replica(1, 0.1)], labelled(0.1), target_K=1000.0)
    assert "no labelled frame is near 1000 K" in far["along.excursion"].not_applicable


def test_a_replica_that_left_no_frame_is_no_trouble(pulling) -> None:
    empty = FakeReplica(3, DT_PS, positions=np.zeros((0, 3, 3)), forces=np.zeros((0, 3, 3)))
    found = measured([empty, replica(1, 0.1)], labelled(0.1), events={0: stopped(0)})
    assert found["along.force_rmse"].value == pytest.approx(0.1)
    assert "left no frame" in found["along.force_rmse_before_failure"].not_applicable


def test_only_what_should_agree_with_the_teacher_is_compared(pulling) -> None:
    replicas = [replica(0), replica(1)]
    for system, reason in (
        (water(), "has no labels"),
        (labelled(0.1, "GFN2-xTB"), "labels by GFN2-xTB"),
        (dataclasses.replace(labelled(0.1), charge=1), "neutral molecules"),
        (dataclasses.replace(labelled(0.1), box_vectors=np.eye(3)), "in vacuum"),
        (dataclasses.replace(labelled(0.1), species=np.array([16, 1, 1])), "H, C, N and O"),
    ):
        found = measured(replicas, system)
        assert all(reason in row.not_applicable for row in found.values())
    assert pulling.n_frames == 0


def test_without_the_teachers_package_it_says_what_to_install(monkeypatch) -> None:
    def missing():
        raise MissingPackageError("torchani", "the teacher", "pip install 'omm-mlff[teacher]'")

    monkeypatch.setattr(along, "_teacher", missing)
    found = measured([replica(0)], labelled(0.1))
    assert all("pip install" in row.not_applicable for row in found.values())


def test_without_the_potential_the_run_alone_is_measured(pulling) -> None:
    found = measured([replica(0, 0.1), replica(1, 0.1)], labelled(0.1), live=False)
    assert found["along.force_rmse"].value == pytest.approx(0.1)
    assert "not loaded" in found["along.excursion"].not_applicable


def test_the_real_teachers_own_forces_have_no_error(teacher, monkeypatch) -> None:
    """Units and the order of atoms, end to end."""
    monkeypatch.setattr(along, "_teacher", lambda: teacher)
    system = labelled(0.05)
    replicas = []
    for seed in range(2):
        noise = np.random.default_rng(seed).normal(size=(32, 3, 3))
        positions = system.positions + 0.003 * noise
        _, forces, _ = teacher.label(system.species, positions * ANGSTROM_PER_NM)
        kept = forces * KJMOL_NM_PER_EV_ANGSTROM
        replicas.append(FakeReplica(3, DT_PS, positions=positions, forces=kept))
    row = measured(replicas, system)["along.force_rmse"]
    assert row.value < 1e-9
    assert re.fullmatch(r"largest on [OH][012], .* eV/angstrom in replica [01] at .* ps", row.cause)


class NamedMethod:
    """A reference method that a user names: pulls as the fake teacher does."""

    name = "pull"

    def __init__(self, refuses: str | None = None) -> None:
        self.refuses = refuses

    def unsupported(self, system):
        return self.refuses

    def evaluate(self, system, positions):
        return np.zeros(len(positions)), pull(positions)


def test_a_method_that_the_user_names_is_asked_whatever_the_labels_are_by():
    run = FakeRun([replica(k, 0.2) for k in range(4)], water().masses)
    unlabelled = Evidence(water(), card(), runs=(run,), teacher=NamedMethod())
    found = by_name(along.CHECK.measure(unlabelled))
    assert found["along.force_rmse"].value == pytest.approx(0.2)
    assert found["along.excursion"].value is None
    system = labelled(0.05, method="another")
    evidence = Evidence(
        system,
        card(),
        runs=(run,),
        evaluator=FakeEvaluator(lambda x, _: (0.0, pull(x)), system),
        teacher=NamedMethod(),
    )
    assert by_name(along.CHECK.measure(evidence))["along.excursion"].value == pytest.approx(4.0)
    refusing = dataclasses.replace(evidence, teacher=NamedMethod("it knows no oxygen"))
    row = by_name(along.CHECK.measure(refusing))["along.force_rmse"]
    assert row.not_applicable == "it knows no oxygen"


def test_labels_that_do_not_say_their_temperature_are_compared_with_any_run():
    system = labelled(0.05)
    reference = dataclasses.replace(
        system.reference, temperature_K=np.full(system.reference.n_frames, np.nan)
    )
    system = dataclasses.replace(system, reference=reference)
    evidence = Evidence(
        system,
        card(),
        runs=(FakeRun([replica(k, 0.1) for k in range(4)], system.masses),),
        evaluator=FakeEvaluator(lambda x, _: (0.0, pull(x)), system),
        teacher=NamedMethod(),
    )
    row = by_name(along.CHECK.measure(evidence))["along.excursion"]
    assert row.value == pytest.approx(2.0)
    assert "a temperature not known" in row.cause
