"""What the matrix makes of attempts, and one attempt of each sort for real."""

from __future__ import annotations

import dataclasses
import json

import pytest

from omm_mlff.errors import InputError, UnknownNameError
from omm_mlff.proving import matrix as module
from omm_mlff.proving.attempt import Alarm, Attempt, Task, attempt
from omm_mlff.proving.good import KNOWN_GOOD, good_names
from omm_mlff.proving.kinds import KINDS, kind_names
from omm_mlff.proving.matrix import Matrix, prove
from omm_mlff.proving.report import JSON_FILE, MARKDOWN_FILE, as_json, as_markdown, write

CAUSE = {kind.name: kind.cause for kind in KINDS}
STRENGTHS = {kind.name: kind.strengths for kind in KINDS}
CURL = STRENGTHS["curl"]


def as_it_should_be(task: Task) -> Attempt:
    """Gross is rejected, the next two are named, the rest slips through; the good are approved."""
    if task.strength is None:
        return Attempt(task, "APPROVED", (), "", (), (), 1.0, 1.0)
    place = STRENGTHS[task.name].index(task.strength)
    if place > 2:
        return Attempt(task, "APPROVED", (), "", (), (), 1.0, 1.0)
    verdict = "REJECTED" if place == 0 else "NOT RECOMMENDED"
    alarm = Alarm("it-reject", "gradient.error", "reject", 0.5, "<= 0.1", "1", "methanol")
    return Attempt(task, verdict, (CAUSE[task.name],), "so", ("gradient",), (alarm,), 1.0, 1.0)


@pytest.fixture
def proved(monkeypatch: pytest.MonkeyPatch):
    """`prove` with attempts that are made up; a function of the task may change them."""

    def run(change=None, **options) -> Matrix:
        def made_up(task: Task) -> Attempt:
            found = as_it_should_be(task)
            return change(found) if change else found

        monkeypatch.setattr(module, "attempt", made_up)
        return prove(workers=1, **options)

    return run


def test_every_kind_is_tried_at_every_strength_and_every_good_one_with_its_seeds(proved) -> None:
    matrix = proved()
    assert [(row.kind.name, row.strength) for row in matrix.bad] == [
        (kind.name, strength) for kind in KINDS for strength in kind.strengths
    ]
    seeds = {row.good.name: len(row.attempts) for row in matrix.good}
    assert seeds == {good.name: good.seeds for good in KNOWN_GOOD}
    assert seeds["harmonic-chain"] == seeds["lennard-jones"] == 200
    assert seeds["teacher"] == 5
    assert matrix.passed


def test_the_short_form_has_gross_and_one_more_of_each_kind_and_no_teacher(proved) -> None:
    matrix = proved(short=True)
    assert [row.kind.name for row in matrix.bad if row.gross] == kind_names()
    assert len(matrix.bad) == 2 * len(KINDS)
    assert all(len(reach.tried) == 2 for reach in matrix.reach)
    assert "teacher" not in [row.good.name for row in matrix.good]


def test_a_chosen_name_is_tried_alone(proved) -> None:
    matrix = proved(names=["curl"])
    assert {row.kind.name for row in matrix.bad} == {"curl"}
    assert not matrix.good
    matrix = proved(names=["teacher"], short=True, seeds=2)
    assert [len(row.attempts) for row in matrix.good] == [2]


def test_the_smallest_strength_that_is_caught_is_told_apart_from_the_rejected(proved) -> None:
    (reach,) = proved(names=["curl"]).reach
    assert reach.tried == CURL
    assert reach.caught == CURL[2]
    assert reach.rejected == CURL[0]
    (reach,) = proved(
        lambda found: dataclasses.replace(found, verdict="UNDECIDED"), names=["curl"]
    ).reach
    assert reach.caught is reach.rejected is None


@pytest.mark.parametrize(
    "change",
    [{"verdict": "NOT RECOMMENDED"}, {"causes": ("jump", "curl")}, {"causes": ()}],
    ids=["not rejected", "another cause first", "no cause"],
)
def test_a_gross_fault_must_be_rejected_with_its_cause_first(proved, change) -> None:
    def worsened(found: Attempt) -> Attempt:
        return dataclasses.replace(found, **change) if found.task.strength == CURL[0] else found

    assert not proved(worsened, names=["curl"]).passed


def test_a_subtle_fault_may_slip_through_or_be_named_wrongly(proved) -> None:
    def worsened(found: Attempt) -> Attempt:
        if found.task.strength == CURL[1]:
            return dataclasses.replace(found, causes=("jump",))
        return found

    matrix = proved(worsened, names=["curl"])
    assert [row.cause_right for row in matrix.bad] == [True, False, True, None]
    assert matrix.passed


@pytest.mark.parametrize("verdict", ["REJECTED", "FAILED"])
def test_one_false_rejection_fails_the_whole(proved, verdict: str) -> None:
    def worsened(found: Attempt) -> Attempt:
        return dataclasses.replace(found, verdict=verdict) if found.task.seed == 1 else found

    matrix = proved(worsened, names=["lennard-jones"], seeds=3)
    (row,) = matrix.good
    assert row.n_rejected == 1
    assert row.verdicts == {"APPROVED": 2, verdict: 1}
    assert not matrix.passed


def test_false_alarms_are_counted_by_criterion_in_seeds(proved) -> None:
    alarm = Alarm("a-limit", "a", "limit", 1.0, "<= 0.5", "1", "x")
    worse = dataclasses.replace(alarm, criterion="b-reject", severity="reject")

    def worsened(found: Attempt) -> Attempt:
        alarms = (alarm, alarm, worse) if found.task.seed == 0 else (alarm,)
        return dataclasses.replace(found, alarms=alarms)

    (row,) = proved(worsened, names=["methanol"], seeds=3).good
    assert row.alarms == {("reject", "b-reject"): 1, ("limit", "a-limit"): 3}


def test_the_json_has_the_keys_that_are_promised(proved) -> None:
    data = as_json(proved(names=["curl", "methanol"], seeds=2))
    assert set(data["kinds"][0]) >= {
        "kind",
        "strength",
        "verdict",
        "caught_by",
        "cause",
        "cause_right",
    }
    assert data["kinds"][0]["caught_by"] == ["gradient"]
    assert data["known_good"][0]["seeds"] == 2
    assert data["known_good"][0]["false_alarms"] == []
    assert data["passed"] is True
    json.dumps(data, allow_nan=False)


def test_the_markdown_tabulates_what_was_tried(proved, tmp_path) -> None:
    matrix = proved(names=["curl", "methanol"], seeds=2)
    text = as_markdown(matrix)
    assert "| curl | 0.1 (gross) | REJECTED | gradient | curl | yes |" in text
    assert "| curl | of a bond's stiffness | 0.001 | 0.1 | 0.1, 0.01, 0.001, 0.0001 |" in text
    assert "| methanol | 2 | 2 APPROVED | 0 |  |" in text
    assert {path.name for path in write(matrix, tmp_path / "new")} == {JSON_FILE, MARKDOWN_FILE}


def test_progress_tells_every_attempt(proved) -> None:
    seen: list[tuple[str, int, int]] = []
    proved(names=["curl"], progress=lambda *told: seen.append(told))
    assert seen[0] == ("curl 0.1: REJECTED", 1, 4)
    assert [done for _, done, _ in seen] == [1, 2, 3, 4]


def test_an_unknown_name_is_met_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean"):
        prove(names=["curls"])


def test_no_worker_and_no_seed_are_refused() -> None:
    with pytest.raises(InputError, match="workers must be 1 or more"):
        prove(workers=0)
    with pytest.raises(InputError, match="seeds must be 1 or more"):
        prove(seeds=0)


def test_names_are_unique() -> None:
    names = [*kind_names(), *good_names()]
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_gross_forces_are_rejected_for_what_they_are() -> None:
    found = attempt(Task("forces-scaled", 0.5, 0))
    assert found.verdict == "REJECTED"
    assert found.cause == "force-scale"
    assert found.caught_by[0] == "gradient"


@pytest.mark.slow
def test_sound_methanol_is_not_rejected() -> None:
    found = attempt(Task("methanol", None, 1))
    assert found.verdict != "REJECTED"
    assert not [alarm for alarm in found.alarms if alarm.severity == "reject"]


def test_a_validation_that_breaks_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args, **options):
        raise InputError("no such thing")

    monkeypatch.setattr("omm_mlff.proving.attempt.validate", broken)
    found = attempt(Task("curl", 0.1, 0))
    assert found.verdict == "FAILED"
    assert found.error == "InputError: no such thing"
    assert not found.caught
