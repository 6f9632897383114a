"""Tasks come back whole, from this process or from others, and no more of these than are needed."""

from __future__ import annotations

import os

import pytest

from omm_mlff.campaign import workers
from omm_mlff.campaign.workers import spread

PREPARED = "TESTS_PREPARED"


def square(number: int) -> tuple[int, int, str]:
    """The number, its square's process, and what that process was prepared with."""
    if number < 0:
        raise ValueError("it is below zero")
    return number**2, os.getpid(), os.environ.get(PREPARED, "")


def prepare() -> None:
    os.environ[PREPARED] = "yes"


@pytest.fixture(autouse=True)
def _unprepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREPARED, "no")  # and put back afterwards


def test_one_job_stays_in_this_process_and_in_order() -> None:
    here = os.getpid()
    assert list(spread(square, [3, 1, 2], 1)) == [(9, here, "no"), (1, here, "no"), (4, here, "no")]
    assert list(spread(square, [3], 8, prepare=prepare)) == [(9, here, "yes")]


def test_nothing_to_do_prepares_nothing() -> None:
    assert list(spread(square, [], 4, prepare=prepare)) == []
    assert os.environ[PREPARED] == "no"


def test_several_jobs_are_other_processes_each_of_them_prepared() -> None:
    found = list(spread(square, [1, 2, 3, 4], 2, prepare=prepare))
    assert sorted(number for number, _, _ in found) == [1, 4, 9, 16]
    assert os.getpid() not in {process for _, process, _ in found}
    assert {prepared for _, _, prepared in found} == {"yes"}
    assert os.environ[PREPARED] == "no"


def test_no_more_processes_are_begun_than_there_are_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def pool(jobs: int, **_: object) -> object:
        asked.append(jobs)
        raise InterruptedError

    monkeypatch.setattr(workers, "ProcessPoolExecutor", pool)
    with pytest.raises(InterruptedError):
        next(spread(square, [1, 2, 3], 64))
    assert asked == [3]


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_a_task_raises_comes_out(jobs: int) -> None:
    with pytest.raises(ValueError, match="below zero"):
        list(spread(square, [-1, -2], jobs))
