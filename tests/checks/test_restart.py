"""A restart goes on bit by bit, or says what was lost."""

from __future__ import annotations

import dataclasses

import numpy as np
import openmm
import pytest
from checks.fakes import by_name
from springs import NativeSpringPotential, SpringPotential, triatomic

from omm_mlff.checks import restart
from omm_mlff.checks.base import Evidence
from omm_mlff.checks.restart import CHECK
from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.potentials.student import StudentPotential
from omm_mlff.students.checkpoint import student_names
from omm_mlff.systems import load_system


def measured(potential, system=None, **changes):
    system = dataclasses.replace(system or triatomic(), **changes)
    with Evaluator(potential, system, "Reference") as evaluator:
        return by_name(CHECK.measure(Evidence(system, potential.card, (), evaluator)))


class PushedSprings(NativeSpringPotential):
    """Springs under a push that depends on what a restart file does not hold, or not all of it.

    `time` : the push grows with the Context's clock, which a State with time and a checkpoint hold
    `calls` : with the number of evaluations, which nothing holds
    """

    def __init__(self, push):
        self.push = push
        self.n_calls = 0

    def add_to(self, openmm_system, system, *, n_replicas=1, tap=None):
        built = super().add_to(openmm_system, system)

        def compute(state):
            self.n_calls += 1
            grown = {"time": 1e3 * state.getTime()._value, "calls": float(self.n_calls)}
            forces = np.zeros((system.n_atoms, 3))
            forces[0] = 50.0 * grown[self.push]
            return 0.0, forces

        openmm_system.addForce(openmm.PythonForce(compute))
        return built


@pytest.mark.parametrize("potential", [SpringPotential(), NativeSpringPotential()])
def test_springs_go_on_bit_by_bit(potential) -> None:
    found = measured(potential)
    for name in ("restart.state", "restart.checkpoint"):
        assert found[name].value == 0.0
        assert found[name].n_samples == 2


@pytest.mark.parametrize("name", [n for n in ("tiny", "ultra-tiny") if n in student_names()])
def test_a_shipped_student_goes_on_bit_by_bit(name) -> None:
    found = measured(StudentPotential(name), load_system("water"), reference=None)
    assert found["restart.state"].value < 1e-6
    assert found["restart.checkpoint"].value < 1e-6


def test_a_force_that_knows_its_past_is_not_the_same_run() -> None:
    found = measured(PushedSprings("calls"))
    for name in ("restart.state", "restart.checkpoint"):
        assert found[name].value > 0.01
        assert "of the way travelled" in found[name].cause
        assert "O0 is off" in found[name].cause


def test_a_checkpoint_and_a_state_hold_the_clock() -> None:
    found = measured(PushedSprings("time"))
    assert found["restart.state"].value == 0.0
    assert found["restart.checkpoint"].value == 0.0


def test_velocities_that_are_lost_are_another_run(monkeypatch) -> None:
    """A restart file with positions alone: the departure is as large as the way."""
    kept = openmm.Context.setState

    def without_velocities(context, state):
        kept(context, state)
        context.setVelocities(np.zeros((3, 3)))

    monkeypatch.setattr(openmm.Context, "setState", without_velocities)
    found = measured(SpringPotential())
    assert found["restart.state"].value > 0.5
    assert "a State in" in found["restart.state"].cause
    assert found["restart.checkpoint"].value == 0.0


def test_a_checkpoint_that_does_not_load_fails_and_says_so(monkeypatch) -> None:
    def refuse(context, checkpoint):
        raise openmm.OpenMMException("loadCheckpoint: no such thing")

    monkeypatch.setattr(openmm.Context, "loadCheckpoint", refuse)
    found = measured(SpringPotential())
    assert np.isinf(found["restart.checkpoint"].value)
    assert "no such thing" in found["restart.checkpoint"].cause
    assert found["restart.state"].value == 0.0


def test_a_run_that_dies_by_itself_says_nothing_of_restarts() -> None:
    found = measured(SpringPotential(breaks_at=0.01))
    assert "does not last 20 steps" in found["restart.state"].not_applicable


def test_a_large_system_makes_fewer_steps(monkeypatch) -> None:
    monkeypatch.setattr(restart, "MANY_ATOMS", 2)
    found = measured(PushedSprings("calls"))
    assert found["restart.state"].cause.startswith("2 steps after")
