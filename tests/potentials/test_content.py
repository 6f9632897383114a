"""A model given as an object is known by what it holds, and by nothing else."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import subprocess
import sys

import numpy as np
import openmm
import pytest
import torch
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from openmm import app
from springs import NativeSpringPotential, SpringEngine, SpringPotential, triatomic

from omm_mlff import validate
from omm_mlff.dynamics.simulate import simulate
from omm_mlff.errors import OutputExistsError
from omm_mlff.forces.scripting import script
from omm_mlff.potentials.bound_to_systems import bound
from omm_mlff.potentials.content import content_digest
from omm_mlff.potentials.registry import as_potential, content_hash, load_potential
from omm_mlff.record.rundir import RunRecord
from omm_mlff.schema import RunSpec
from omm_mlff.students.checkpoint import load_student

SYSTEM = triatomic()


def scaled(by):
    return lambda x: by * x


class Total(torch.nn.Module):
    """Springs as the plugin wants them: a total energy."""

    def __init__(self, **options):
        super().__init__()
        self.engine = SpringEngine(SYSTEM, **options)

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return self.engine(positions, None)[0].sum()


def scripted(**options):
    return script(Total(**options))


def nudged_student():
    student = copy.deepcopy(load_student("ultra-tiny"))
    with torch.no_grad():
        weight = next(student.network.parameters())
        weight.view(-1)[0] += 1e-6
    return student


def system_with(stiffness):
    system = openmm.System()
    force = openmm.HarmonicBondForce()
    for _ in range(2):
        system.addParticle(1.0)
    force.addBond(0, 1, 0.1, stiffness)
    system.addForce(force)
    return system


class Weighted(Calculator):
    """A calculator that keeps its numbers to itself."""

    implemented_properties = ("energy", "forces")

    def __init__(self, weights):
        super().__init__()
        self.weights = weights


PAIRS = {
    "stiffness": lambda: (SpringPotential(), SpringPotential(stiffness=2.0e5)),
    "a closure": lambda: (SpringPotential(f=scaled(1.0)), SpringPotential(f=scaled(2.0))),
    "code": lambda: (SpringPotential(f=lambda x: x + 1), SpringPotential(f=lambda x: x - 1)),
    "an argument": lambda: (
        SpringPotential(f=functools.partial(scaled, 1)),
        SpringPotential(f=functools.partial(scaled, 2)),
    ),
    "a set": lambda: (SpringPotential(f={1, 2, 3}), SpringPotential(f={1, 2, 4})),
    "a key": lambda: (SpringPotential(f={(1, 2): 0}), SpringPotential(f={(1, 3): 0})),
    "their class": lambda: (SpringPotential(), NativeSpringPotential()),
    "a buffer": lambda: (
        SpringPotential(f=SpringEngine(SYSTEM)),
        SpringPotential(f=SpringEngine(SYSTEM, rest_scale=1.01)),
    ),
    "an array": lambda: (SpringPotential(f=np.zeros(3)), SpringPotential(f=np.eye(3)[0])),
    "a student's weight": lambda: (load_student("ultra-tiny"), nudged_student()),
    "TorchScript's buffer": lambda: (scripted(), scripted(rest_scale=1.01)),
    "TorchScript's number": lambda: (scripted(), scripted(stiffness=2.0e5)),
    "a System's parameter": lambda: (system_with(1.0), system_with(2.0)),
    "a ForceField's file": lambda: (
        app.ForceField("amber14/tip3p.xml"),
        app.ForceField("amber14/spce.xml"),
    ),
    "a calculator's class": lambda: (EMT(), LennardJones()),
    "a calculator's parameter": lambda: (LennardJones(), LennardJones(sigma=1.1)),
    "a calculator's weights": lambda: (
        Weighted([torch.nn.Linear(2, 2)]),
        Weighted([torch.nn.Linear(2, 2)]),
    ),
}


@pytest.mark.parametrize("difference", PAIRS)
def test_two_models_of_one_name_are_told_apart_by(difference) -> None:
    one, other = PAIRS[difference]()
    first, again, second = (as_potential(thing) for thing in (one, one, other))
    assert content_hash(first) == content_hash(again)
    assert content_hash(first) != content_hash(second)


def test_a_copy_is_the_same_model() -> None:
    for thing in (SpringPotential(f=np.arange(3)), LennardJones(sigma=2.0), system_with(3.0)):
        one, other = as_potential(thing), as_potential(copy.deepcopy(thing))
        assert content_hash(one) == content_hash(other)


def test_what_a_calculator_has_computed_is_no_part_of_it() -> None:
    calculator = LennardJones()
    before = content_hash(as_potential(calculator))
    calculator.results = {"energy": 1.0}
    assert content_hash(as_potential(calculator)) == before


def test_what_refers_to_itself_is_read_once() -> None:
    ring = SpringPotential()
    ring.me = [ring]
    assert content_digest(ring) == content_digest(ring)
    assert content_digest(ring) != content_digest(SpringPotential())


def test_what_a_spec_names_needs_no_other_name() -> None:
    named = load_potential("ase:ase.calculators.lj:LennardJones")
    assert content_hash(named) is None
    assert content_hash(bound(named, [SYSTEM])) is None
    assert content_hash(as_potential(LennardJones())) is not None
    tiny = load_potential("tiny")
    assert content_hash(tiny) == tiny.card.sha256


def test_a_potential_held_to_its_systems_is_the_same_model() -> None:
    springs = SpringPotential()
    springs.card = dataclasses.replace(springs.card, knows_atoms_by="index")
    assert content_hash(bound(springs, [SYSTEM])) == content_hash(springs)


PROGRAM = """
import sys
sys.path[:0] = ["tests"]
from potentials.test_content import *
for _ in range(int(sys.argv[1])):
    scripted(stiffness=7.0)  # TorchScript counts the classes of one name
things = (scripted(), SpringPotential(f={"a", "b", "c"}, g=scaled(2.0)), LennardJones())
force_field = app.ForceField("amber14/tip3p.xml")
print(*(content_hash(as_potential(thing)) for thing in (*things, force_field)))
"""


def test_the_hash_is_that_of_another_process() -> None:
    said = []
    for n in (0, 3):
        environment = {**os.environ, "PYTHONHASHSEED": str(n)}
        words = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(n)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.split())
    assert len(said[0]) == 4
    assert said[0] == said[1]


SPEC = RunSpec("springs", "springs", 0.02, 300.0, 2, 1, platform="Reference")


def test_a_run_of_one_model_does_not_go_on_under_another_of_its_class(tmp_path) -> None:
    folder = tmp_path / "run"
    simulate(SPEC, SpringPotential(), SYSTEM, folder)
    longer = dataclasses.replace(SPEC, length_ps=0.04)
    other = SpringPotential(stiffness=2.0e5)
    with pytest.raises(OutputExistsError, match="another model named springs"):
        simulate(longer, other, SYSTEM, folder, resume=True)
    assert RunRecord.open(folder).spec.length_ps == 0.02
    simulate(longer, SpringPotential(), SYSTEM, folder, resume=True)
    assert RunRecord.open(folder).spec.length_ps == 0.04


PROFILE = """
title = "as short as can be"
static_systems = []

[[run]]
system = ["water"]
length_ps = 0.02
n_replicas = 2
temperature_K = 300

[[out_of_scope]]
policy = "m6"
criterion = "complete-10ps"
reason = "short"

[[out_of_scope]]
policy = "m6"
criterion = "temperature-series"
reason = "short"
"""


def test_a_validation_of_one_model_does_not_go_on_under_another_of_its_class(tmp_path) -> None:
    profile = tmp_path / "short.toml"
    profile.write_text(PROFILE)

    def go(potential, *, resume):
        validate(
            potential,
            systems=[SYSTEM],
            profile=profile,
            platform="Reference",
            out=tmp_path / "out",
            resume=resume,
        )

    go(SpringPotential(), resume=False)
    with pytest.raises(OutputExistsError, match="different: sha256"):
        go(SpringPotential(stiffness=2.0e5), resume=True)
    go(SpringPotential(), resume=True)
