"""Whether a graph is used: every way in which one can be wrong, played by a fake Context."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from springs import SpringPotential, triatomic
from torch import Tensor, nn

from omm_mlff.dynamics import graphs
from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.dynamics.graphs import Case, disagreement, in_process_of_its_own, open_context
from omm_mlff.errors import InputError
from omm_mlff.forces.built import Built
from omm_mlff.forces.plugin import load_plugin
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials.base import Capabilities, system_and_built
from omm_mlff.potentials.registry import load_potential
from omm_mlff.potentials.torchscript import wrap
from omm_mlff.systems import load_system

SYSTEM = triatomic()


class Springs(SpringPotential):
    """Springs that do the same work at every call, and say so."""

    def capabilities(self, system: Any) -> Capabilities:
        return Capabilities(tap=True, max_replicas=64, graphs=True, force="torchforce")


class FakeTap:
    """As much of a tap as a decision looks at."""

    def __init__(self, n_copies: int) -> None:
        self.alive = torch.ones(n_copies, dtype=torch.bool)
        self.n_calls = self.n_launches = 0
        self.numbers: Any = None

    def read(self) -> Any:
        return self.numbers


class FakeContext:
    """A Context that replays from its third evaluation on, and goes wrong in one way."""

    def __init__(self, system: openmm.System, case: Case, tap: FakeTap, wrong: str) -> None:
        self.graph = properties(system)["useCUDAGraphs"] == "true"
        self.case, self.tap, self.wrong = case, tap, wrong if self.graph else ""

    def setPositions(self, positions: Any) -> None:
        self.frames = positions.reshape(self.case.n_copies, -1, 3)

    def getState(self, **what: bool) -> None:
        if self.wrong == "raises":
            raise openmm.OpenMMException("CUDA error: operation not permitted when stream captures")
        self.tap.n_calls += 1 if self.wrong != "counted twice" else 2
        if not self.graph or self.tap.n_calls < 3 or self.wrong == "launched":
            self.tap.n_launches += 1
        energies, forces = self.case.potential.energies_and_forces(self.frames, self.case.system)
        if self.wrong == "stale" and self.tap.numbers is not None:
            return
        if self.wrong == "off":
            forces = forces.copy()
            forces[-1] *= 1.01
        if self.wrong == "not a number":
            energies = energies * np.nan
        if self.wrong == "another copy's":
            energies, forces = energies[::-1].copy(), forces[::-1].copy()
        self.tap.numbers = energies, forces


def properties(system: openmm.System) -> dict[str, str]:
    return dict(load_plugin().TorchForce.cast(system.getForce(0)).getProperties())


@pytest.fixture(autouse=True)
def undecided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither this process nor one before has tried anything."""
    monkeypatch.setattr(graphs, "cache_folder", lambda: tmp_path / "cache")
    graphs.forget_decisions()


class Machine:
    """A device: what its Contexts do wrong, what a trial finds, and how often each was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wrong: str = "", trial: str = "") -> None:
        self.trials = 0
        self.made: list[FakeContext] = []

        def tried(case: Case) -> str:
            self.trials += 1
            return trial

        def made(system: openmm.System, integrator: Any, case: Case) -> FakeContext:
            assert integrator not in self.integrators  # one serves one Context
            self.integrators.append(integrator)
            self.made.append(FakeContext(system, case, self.tap, wrong))
            return self.made[-1]

        self.integrators: list[Any] = []
        monkeypatch.setattr(graphs, "in_process_of_its_own", tried)
        monkeypatch.setattr(graphs, "new_context", made)

    def open(
        self, potential: Any = None, n_copies: int = 3, platform: str = "CUDA", **built: Any
    ) -> Built:
        case = Case(potential or Springs(), SYSTEM, platform, "mixed", n_copies)
        system, said = system_and_built(case.potential, SYSTEM, n_replicas=n_copies)
        self.tap = FakeTap(n_copies)
        tap: Any = self.tap
        said = Built(**{**said.__dict__, **built})
        context, found = open_context(system, said, openmm.VerletIntegrator(1e-3), case, tap)
        assert context is self.made[-1]
        assert self.made[-1].graph == found.graph
        assert self.tap.alive.all()
        return found


def test_a_graph_that_is_right_is_used_and_tried_once(monkeypatch):
    machine = Machine(monkeypatch)
    found = [machine.open(n_copies=n) for n in (1, 3, 3, 3)]
    assert all(built.graph for built in found)
    assert "agree with launches in a process of their own" in found[0].graph_reason
    assert machine.trials == 1
    assert len(machine.made) == 4  # none but those that were asked for


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("stale", "replays are off by"),
        ("off", "replays are off by"),
        ("not a number", "replays are off by nan"),
        ("another copy's", "replays are off by"),
        ("launched", "its evaluations are no replays"),
        ("counted twice", "its evaluations are no replays"),
        ("raises", "a replay failed: CUDA error: operation not permitted"),
    ],
)
def test_a_graph_that_is_wrong_is_not_used_and_the_reason_kept(wrong, reason, monkeypatch):
    machine = Machine(monkeypatch, wrong)
    first, second = machine.open(), machine.open()
    assert (first.graph, second.graph) == (False, False)
    assert first.graph_reason.startswith(reason)
    assert second.graph_reason == first.graph_reason
    assert [context.graph for context in machine.made] == [True, False, False]
    # Other numbers of copies are another question.
    assert not machine.open(n_copies=2).graph
    assert machine.trials == 1


def test_what_fails_in_a_process_of_its_own_is_never_tried_here(monkeypatch):
    machine = Machine(monkeypatch, trial="a capture ended its process with code -11: no word")
    for n_copies in (1, 4):
        built = machine.open(n_copies=n_copies)
        assert not built.graph
        assert built.graph_reason == "a capture ended its process with code -11: no word"
    assert [context.graph for context in machine.made] == [False, False]


def test_what_passed_once_is_tried_in_no_other_process_and_what_failed_is(monkeypatch):
    seen = []
    for trial in ("no device", "", "no device"):
        graphs.forget_decisions()  # as a new process
        machine = Machine(monkeypatch, trial=trial)
        seen.append((machine.open().graph, machine.trials))
    assert seen == [(False, 1), (True, 1), (True, 0)]


def test_what_replays_wrongly_here_is_launched_though_it_passed_elsewhere(monkeypatch):
    assert Machine(monkeypatch).open().graph
    graphs.forget_decisions()
    machine = Machine(monkeypatch, "stale")
    assert not machine.open().graph
    assert machine.trials == 0


def test_the_kernel_of_the_package_needs_no_process(monkeypatch):
    machine = Machine(monkeypatch)
    built = machine.open(engines={"cuda": "compiled"})
    assert built.graph
    assert machine.trials == 0
    assert not Machine(monkeypatch, "stale").open(n_copies=2, engines={"cuda": "compiled"}).graph


def test_nothing_is_tried_where_it_is_not_wanted(monkeypatch):
    machine = Machine(monkeypatch)
    assert not machine.open(platform="Reference").graph
    assert not machine.open(SpringPotential()).graph  # does not say that its work is the same
    assert not machine.open(force="pythonforce").graph
    assert machine.trials == 0


def test_what_cannot_be_sent_to_a_process_is_launched(monkeypatch):
    potential = Springs()
    potential.something = lambda: None
    machine = Machine(monkeypatch)
    built = machine.open(potential)
    assert not built.graph
    assert built.graph_reason.startswith("no trial in a process of its own: ")


def test_another_models_decision_is_another(monkeypatch):
    machine = Machine(monkeypatch)
    machine.open(Springs())
    machine.open(Springs(stiffness=1e5))
    assert machine.trials == 2


@pytest.mark.parametrize("spec", ["tiny", "tiny?cuda_graphs=auto", "tiny?cuda_graphs=False"])
def test_a_student_says_whether_it_wants_to_be_tried(spec):
    potential, water = load_potential(spec), load_system("water")
    wanted = "False" not in spec
    assert potential.capabilities(water).graphs == wanted
    built = system_and_built(potential, water)[1]
    assert (built.graph, built.graph_reason) == (False, "" if wanted else "turned off")


def test_a_student_that_was_asked_for_a_graph_has_one_untried(monkeypatch):
    built = Machine(monkeypatch).open(load_potential("tiny?cuda_graphs=True"))
    assert (built.graph, built.graph_reason) == (True, "asked for")


class Well(nn.Module):
    """Every atom in a well, by openmm-torch's convention."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Parameter(torch.tensor(100.0, dtype=torch.float64))

    def forward(self, positions: Tensor, k: Tensor) -> Tensor:
        return self.depth * k * (positions**2).sum()


class PlainWell(nn.Module):
    def forward(self, positions: Tensor) -> Tensor:
        return 100.0 * (positions**2).sum()


def test_a_file_is_tried_unless_it_has_parameters_or_a_box_or_was_told(tmp_path):
    path = tmp_path / "well.pt"
    torch.jit.script(PlainWell()).save(str(path))
    for options, wanted in (
        ("", (True, False, "")),
        ("?cuda_graphs=auto", (True, False, "")),
        ("?cuda_graphs=False", (False, False, "turned off")),
        ("?cuda_graphs=True", (True, True, "asked for")),
    ):
        potential = load_potential(f"{path}{options}")
        system, built = system_and_built(potential, SYSTEM)
        tried = potential.capabilities(SYSTEM).graphs
        assert (tried, built.graph, built.graph_reason) == wanted
        assert (properties(system)["useCUDAGraphs"] == "true") == built.graph
    with_parameters = wrap_with(k=2.0)
    assert not with_parameters.capabilities(SYSTEM).graphs
    assert "parameters" in system_and_built(with_parameters, SYSTEM)[1].graph_reason
    with pytest.raises(InputError, match="wanted cuda_graphs auto, True or False, got 'yes'"):
        load_potential(f"{path}?cuda_graphs=yes")


def test_a_torchscript_potential_travels_to_another_process():
    potential = wrap_with(k=2.0)
    again = pickle.loads(pickle.dumps(potential))
    assert again.card == potential.card
    assert again.cuda_graphs == "auto"
    for one, other in zip(
        potential.energies_and_forces(SYSTEM.positions[None], SYSTEM),
        again.energies_and_forces(SYSTEM.positions[None], SYSTEM),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def wrap_with(**parameters: float) -> Any:
    from omm_mlff.potentials.torchscript import TorchScriptPotential

    module = torch.jit.script(Well())
    return TorchScriptPotential(module, spec="well", name="well", parameters=parameters)


class Ends:
    """Ends the process that unpickles it, as a poisoned device may."""

    def __reduce__(self) -> Any:
        return os._exit, (7,)


def test_a_process_that_dies_is_a_reason():
    case: Any = Case(Springs(), SYSTEM, "Reference", "mixed", 2)
    case.potential.card = Ends()
    reason = in_process_of_its_own(case)
    assert reason == "a capture ended its process with code 7: no word"


def test_where_nothing_is_replayed_a_process_of_its_own_says_so():
    """The Reference platform knows no graphs: all of the way there and back, and an honest no."""
    reason = in_process_of_its_own(Case(wrap_with(k=2.0), SYSTEM, "Reference", "mixed", 1))
    assert reason == "its evaluations are no replays: Python was called for them"


def test_rounding_is_no_disagreement_and_a_thousandth_more_is_one():
    rng = np.random.default_rng(0)
    energies = -1e6 + rng.normal(size=(3, 2))
    forces = rng.normal(scale=1e3, size=(3, 2, 4, 3))
    single = energies.astype(np.float32).astype(float), forces.astype(np.float32).astype(float)
    assert disagreement(single, (energies, forces)) == ""
    assert disagreement((energies + 1.0, forces), (energies, forces)).startswith("replays are off")
    assert disagreement((energies, 1.01 * forces), (energies, forces)).startswith("replays are off")


class Waits(nn.Module):
    """Looks at a value in between, which no graph can."""

    def forward(self, positions: Tensor) -> Tensor:
        energy = (positions**2).sum()
        if bool(energy > 1e9):
            energy = energy * 0.0
        return energy


@pytest.mark.cuda
def test_on_cuda_a_module_that_waits_for_the_device_is_launched_and_still_computes():
    with Evaluator(wrap(Waits()), SYSTEM, "CUDA", "mixed") as evaluator:
        assert not evaluator.built.graph
        assert evaluator.built.graph_reason.startswith(("it cannot be captured", "a capture"))
        energies, _ = evaluator.evaluate(SYSTEM.positions[None])
    assert energies == pytest.approx([(SYSTEM.positions**2).sum()], rel=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("what", ["tiny", "file"])
def test_on_cuda_what_does_the_same_work_is_replayed(what):
    system = load_system("alanine") if what == "tiny" else SYSTEM
    potential = load_potential("tiny") if what == "tiny" else wrap(PlainWell())
    frames = graphs.structures(system)
    wanted = potential.energies_and_forces(frames, system)
    with Evaluator(potential, system, "CUDA", "mixed") as evaluator:
        assert (evaluator.built.graph, "agree" in evaluator.built.graph_reason) == (True, True)
        tap = evaluator.tap
        assert isinstance(tap, Tap)
        launches = tap.n_launches
        got = evaluator.evaluate(frames, batched=False)
        assert tap.n_launches - launches <= 1  # the first may still warm up
    assert (
        disagreement((got[0][:, None], got[1][:, None]), (wanted[0][:, None], wanted[1][:, None]))
        == ""
    )
