"""Progress: a line a task on a terminal, one plain line a finished task elsewhere."""

from __future__ import annotations

import pytest
import rich.console
import rich.progress

from omm_mlff.cli.progress import shown_progress


def test_elsewhere_a_finished_task_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress() as say:
        for done in range(5):
            say("water: checks", min(done, 3), 3)
        say("methane: checks", 1, 3)
    said = capsys.readouterr()
    assert said.err == "water: checks\n"
    assert said.out == ""


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[rich.progress.Progress]:
    """The bars of a terminal, kept when they are gone."""
    kept = []

    class Kept(rich.progress.Progress):
        def __init__(self, *columns, **options):
            super().__init__(*columns, **options)
            kept.append(self)

    monkeypatch.setattr(rich.console.Console, "is_terminal", True)
    monkeypatch.setattr(rich.progress, "Progress", Kept)
    return kept


def test_on_a_terminal_a_run_has_a_line_and_the_checks_of_a_system_share_one(bars) -> None:
    with shown_progress() as say:
        for label in ("water: 8 x 2 ps at 300 K", "water: 8 x 2 ps at 500 K"):
            say(label, 100, 4000)
        for done, label in enumerate(("water: drift", "water: gradient", "methane: drift")):
            say(label, done, 30)
    (bar,) = bars
    told = [(task.description, task.completed, task.total) for task in bar.tasks]
    assert told == [
        ("water: 8 x 2 ps at 300 K", 100, 4000),
        ("water: 8 x 2 ps at 500 K", 100, 4000),
        ("water: gradient", 1, 30),
        ("methane: drift", 2, 30),
    ]


def test_what_is_all_one_task_has_one_line_however_it_is_called(bars) -> None:
    with shown_progress(one_line=True) as say:
        say("training tiny: force 0.110 eV/Å", 100, 8000)
        say("training tiny: force 0.030 eV/Å", 200, 8000)
    (bar,) = bars
    (task,) = bar.tasks
    assert (task.description, task.completed) == ("training tiny: force 0.030 eV/Å", 200)
