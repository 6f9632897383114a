"""Attribution: each way to drift is named by the experiment that takes it away."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from checks.fakes import FakeEvaluator, FakeReplica, FakeRun, by_name, card, water
from springs import SpringEngine, SpringPotential, triatomic
from torch import Tensor, nn

from omm_mlff.checks import attribution
from omm_mlff.checks.attribution import Findings, named
from omm_mlff.checks.base import Evidence
from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.dynamics.simulate import simulate
from omm_mlff.forces.making import make_force
from omm_mlff.forces.plugin import built_as
from omm_mlff.schema import RunSpec

CLEAR = Findings(1.0, 1.1, None, 1e-8, 1e-6, 0.9, False, "the largest step is 1 meV")


class SpoiltEngine(nn.Module):
    """Springs whose forces are spoilt: a curl, few digits, or a crease at a length of O0-H1."""

    def __init__(self, system, n_copies, curl=0.0, grain=0.0, crease=0.0):
        super().__init__()
        self.springs = SpringEngine(system, n_copies)
        self.n_copies, self.curl, self.grain, self.crease = n_copies, curl, grain, crease

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        energies, forces = self.springs(positions, box)
        x = positions.view(self.n_copies, -1, 3)
        f = forces.view(self.n_copies, -1, 3)
        if self.curl != 0.0:
            # around the bond from atom 0 to atom 1, on atom 2
            axis = x[:, 1] - x[:, 0]
            turn = self.curl * torch.linalg.cross(axis, x[:, 2] - x[:, 0])
            f = f + torch.stack([-turn, torch.zeros_like(turn), turn], dim=1)
        if self.crease != 0.0:
            r = x[:, 1] - x[:, 0]
            d = (r * r).sum(-1, keepdim=True).sqrt()
            beyond = d > 0.0963
            energies = energies + self.crease * ((d - 0.0963) * beyond).sum(1)
            pull = self.crease * beyond * r / d
            f = f + torch.stack([pull, -pull, torch.zeros_like(pull)], dim=1)
        if self.grain != 0.0:
            f = self.grain * torch.round(f / self.grain)
        return energies, f.reshape(positions.shape).contiguous()


class SpoiltPotential(SpringPotential):
    """The same as a potential; `dtype` is what its card says."""

    def add_to(self, openmm_system, system, *, n_replicas=1, tap=None):
        engine = SpoiltEngine(system, n_replicas, **self.engine_options)
        openmm_system.addForce(make_force(engine, periodic=False, tap=tap, backend=self.backend))
        return built_as(self.backend)

    def capabilities(self, system):
        twin = None if self.card.dtype == "float64" else self.in_float64
        return dataclasses.replace(super().capabilities(system), float64_twin=twin)

    def in_float64(self):
        return SpoiltPotential(**{**self.engine_options, "grain": 0.0})


def run_of(folder, potential, *, timestep_fs=0.5, length_ps=0.2, n_replicas=8):
    system = triatomic()
    spec = RunSpec(
        "springs",
        system.name,
        length_ps,
        300.0,
        n_replicas,
        seed=3,
        timestep_fs=timestep_fs,
        platform="Reference",
    )
    return simulate(spec, potential, system, folder / "run")


def measured(folder, potential, **options):
    run = run_of(folder, potential, **options)
    with Evaluator(potential, triatomic(), "Reference") as evaluator:
        evidence = Evidence(triatomic(), potential.card, (run,), evaluator, 1)
        return by_name(attribution.CHECK.measure(evidence))


def test_a_sound_run_is_not_experimented_with(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(attribution, "_repeated_slopes", None)
    found = measured(tmp_path, SpringPotential())
    assert all("inside its bound" in row.not_applicable for row in found.values())


def test_a_timestep_that_is_too_long_is_named(tmp_path) -> None:
    found = measured(tmp_path, SpringPotential(), timestep_fs=1.25, n_replicas=16)
    row = found["attribution.half_timestep"]
    assert row.value < 0.25
    assert row.cause.startswith("timestep: at half of it")
    assert found["attribution.gradient_error"].value < 1e-6
    assert "as it is" in found["attribution.float64"].not_applicable
    assert "no choice of precision" in found["attribution.precision"].not_applicable


def test_a_curl_is_named_and_costs_no_more_than_twice_the_run(tmp_path, monkeypatch) -> None:
    steps = []
    repeat = attribution._repeated_slopes

    def counted(spec, potential, evidence):
        steps.append(spec.n_steps * spec.n_replicas)
        return repeat(spec, potential, evidence)

    monkeypatch.setattr(attribution, "_repeated_slopes", counted)
    found = measured(tmp_path, SpoiltPotential("float32", curl=400.0))
    row = found["attribution.gradient_error"]
    assert row.value > 1e-3
    assert row.cause.startswith("non-conservative force: ")
    assert found["attribution.half_timestep"].value == pytest.approx(1.0, abs=0.3)
    assert found["attribution.float64"].value == pytest.approx(1.0, abs=0.1)
    # a step in float64 costs about twice a step in float32
    assert steps[0] + 2 * steps[1] <= 2 * 400 * 8


def test_lost_digits_are_named(tmp_path) -> None:
    found = measured(tmp_path, SpoiltPotential("float32", grain=1000.0))
    row = found["attribution.float64"]
    assert row.value < 0.25
    assert row.cause.startswith("rounding: with the model in float64")


def test_a_crease_is_named_a_discontinuity(tmp_path) -> None:
    found = measured(tmp_path, SpoiltPotential(crease=3.0e3), n_replicas=16)
    row = found["attribution.steps"]
    assert row.value < 0.25
    assert row.cause.startswith("discontinuity: the potential jumps; the largest step of the ")
    assert "of replica" in row.cause


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "unexplained"),
        ({"half_timestep": 0.1}, "timestep"),
        ({"half_timestep": 0.5}, "unexplained"),
        ({"float64": 0.01}, "rounding"),
        ({"float64": None, "precision": 0.2}, "rounding"),
        ({"gradient_error": 0.02}, "non-conservative force"),
        ({"gradient_error": math.inf}, "non-conservative force"),
        ({"steps": 0.1}, "discontinuity"),
        ({"steps": 0.1, "gradient_error": 0.02}, "non-conservative force"),
        ({"steps": 0.1, "half_timestep": 0.1}, "timestep"),
        ({"steps": 0.1, "jumps_there": True, "half_timestep": 0.1}, "discontinuity"),
        ({"half_timestep": 0.1, "gradient_error": 0.02}, "timestep"),
    ],
)
def test_the_cause_is_one_word_first(changes, word: str) -> None:
    assert named(dataclasses.replace(CLEAR, **changes)).startswith(f"{word}: ")


def test_a_run_too_short_for_a_repetition_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(attribution, "_repeated_slopes", None)
    monkeypatch.setattr(attribution, "REPRESENTATIVE", 1.0)
    found = measured(tmp_path, SpoiltPotential(curl=20.0))
    assert "too short to show" in found["attribution.half_timestep"].not_applicable
    assert found["attribution.gradient_error"].cause.startswith("non-conservative force: ")


def test_one_replica_has_no_drift_that_is_surely_outside() -> None:
    leaking = FakeReplica(3, 5e-4, potential_energy=np.linspace(0.0, 50.0, 200))
    for replicas, reason in (([leaking], "not surely outside"), ([], "no replica")):
        run = FakeRun(replicas or [leaking], [1.0] * 3)
        run.n_replicas = len(replicas)
        evidence = Evidence(water(), card(), (run,), FakeEvaluator(None, water()))
        found = attribution.CHECK.measure(evidence)
        assert all(reason in row.not_applicable for row in found)


def test_a_record_with_gaps_says_so() -> None:
    run = FakeRun([FakeReplica(3, 1e-3, time=np.zeros(100))], [1.0] * 3, stride=2)
    evidence = Evidence(water(), card(), (run,), FakeEvaluator(None, water()))
    assert all("stride" in row.not_applicable for row in attribution.CHECK.measure(evidence))


def test_a_gpus_precision_is_raised_and_double_stays(monkeypatch) -> None:
    run = FakeRun([FakeReplica(3, 5e-4, time=np.zeros(8))], [1.0] * 3)
    evaluator = FakeEvaluator(None, water())
    monkeypatch.setattr(attribution, "_platform", lambda run: "CUDA")
    assert "as it is" in attribution._precision(run, evaluator, None)
    run.spec = dataclasses.replace(run.spec, precision="mixed")
    change, potential = attribution._precision(run, evaluator, None)
    assert change(run.spec).precision == "double"
    assert potential is evaluator.potential
