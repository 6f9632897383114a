"""A sound run has nothing to explain, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from springs import SpringPotential, triatomic

from omm_mlff.dynamics.simulate import simulate
from omm_mlff.failures.explain import explain
from omm_mlff.potentials.student import StudentPotential
from omm_mlff.schema import RunSpec
from omm_mlff.students.checkpoint import student_names
from omm_mlff.systems import load_system


def test_sound_springs_leave_nothing_behind(tmp_path: Path) -> None:
    spec = RunSpec("springs", "springs", 0.3, 300.0, 4, seed=2, platform="Reference")
    run = simulate(spec, SpringPotential(), triatomic(), tmp_path / "run")
    folder = tmp_path / "failures"
    assert explain(run, triatomic(), SpringPotential(), folder) == []
    assert not folder.exists()


@pytest.mark.parametrize("name", student_names())
def test_sound_students_leave_nothing_behind(name: str, tmp_path: Path) -> None:
    potential, system = StudentPotential(name), load_system("water")
    spec = RunSpec(name, "water", 0.18, 300.0, 2, seed=1, platform="Reference")
    run = simulate(spec, potential, system, tmp_path / "run")
    assert explain(run, system, potential, tmp_path / "failures") == []
