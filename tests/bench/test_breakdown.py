"""Where a step's time goes: parts that add up, and none where there is nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from omm_mlff.bench.breakdown import breakdown
from omm_mlff.students.engine import build_engine
from omm_mlff.students.student import STUDENT_CONFIGS, Student
from omm_mlff.systems import load_system


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return Student(STUDENT_CONFIGS["ultra-tiny"]).eval()


def parts_of(student, name, engine, n_replicas=1, unrecorded_s=1.0, recorded_s=1.5):
    return breakdown(
        student,
        load_system(name),
        "Reference",
        engine=engine,
        n_replicas=n_replicas,
        unrecorded_s=unrecorded_s,
        recorded_s=recorded_s,
    )


@pytest.mark.timed
@pytest.mark.parametrize("engine", ["scripted", "auto"])
@pytest.mark.parametrize(("name", "n_replicas"), [("water", 4), ("water-box:40", 1)])
def test_the_parts_add_up_to_a_recorded_step(student, name, n_replicas, engine):
    parts = parts_of(student, name, engine, n_replicas)
    values = dataclasses.asdict(parts)
    assert sum(values.values()) == pytest.approx(1.5, rel=1e-12)
    assert parts.recording == pytest.approx(0.5)
    assert min(parts.model, parts.integrator, parts.python) > 0.0
    assert parts.model > parts.integrator
    assert (parts.pairs > 0.0) == (name == "water-box:40")


def test_no_part_is_below_zero_where_the_noise_would_have_it(student):
    parts = parts_of(student, "water", "scripted", unrecorded_s=1e-9, recorded_s=0.9e-9)
    assert (parts.python, parts.recording) == (0.0, 0.0)


def test_a_scripted_model_is_timed_as_torchscript(student, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "omm_mlff.bench.breakdown._seconds",
        lambda call, device: seen.append(call.__closure__) or 1.0,
    )
    parts_of(student, "water", "scripted")
    inside = [cell.cell_contents for closure in seen for cell in closure or ()]
    assert any(isinstance(thing, torch.jit.ScriptModule) for thing in inside)
    eager = build_engine(student, torch.tensor([8, 1, 1]), periodic=False)
    assert not any(type(thing) is type(eager) for thing in inside)
