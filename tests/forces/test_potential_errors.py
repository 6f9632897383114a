"""A potential that raises is data: its replica ends, its frames have no number, others go on."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import openmm
import pytest
from checks.fakes import by_name
from springs import CalledSpringPotential, NativeSpringPotential, SpringPotential, triatomic

from omm_mlff import validate
from omm_mlff.checks import cost, cutoff, determinism, extensivity, parity, restart
from omm_mlff.checks.base import Evidence
from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.dynamics.initial_state import minimized
from omm_mlff.dynamics.simulate import simulate
from omm_mlff.errors import (
    AnalysisError,
    RunDirectoryError,
    UnsupportedSystemError,
    ValidationFailure,
)
from omm_mlff.failures.explain import explain
from omm_mlff.forces import tap
from omm_mlff.forces.built import Built
from omm_mlff.forces.potential_errors import Tally, is_not_a_number, own_error
from omm_mlff.record.rundir import RunRecord
from omm_mlff.schema import PotentialCard, RunSpec

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = dataclasses.replace(triatomic(), name="water")
CARD = PotentialCard("foreign", "torchscript", None, None, "float32")
SPEC = RunSpec("springs", "water", 0.1, 300.0, 4, seed=5, platform="Reference")
TOO_LONG = "ValueError: a pair is too long"


def ratios(positions):
    """The longest pair over its length at rest, of frames of shape (..., n_atoms, 3)."""
    i, j = np.triu_indices(3, k=1)
    rest = np.linalg.norm(SYSTEM.positions[j] - SYSTEM.positions[i], axis=1)
    return (np.linalg.norm(positions[..., j, :] - positions[..., i, :], axis=-1) / rest).max(-1)


def run(folder, potential, **changes):
    return simulate(dataclasses.replace(SPEC, **changes), potential, SYSTEM, folder)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> RunRecord:
    """Four replicas of springs that never raise."""
    return run(tmp_path_factory.mktemp("sound") / "run", SpringPotential())


@pytest.fixture(scope="module")
def limit(sound) -> tuple[float, int, int]:
    """A length that one replica alone comes to: the ratio, the replica, and the step."""
    longest = np.array([ratios(replica.positions) for _, replica in sound.replicas()])
    first, second = np.argsort(-longest.max(axis=1))[:2]
    at = 0.5 * (longest[first].max() + longest[second].max())
    return float(at), int(first), int(np.argmax(longest[first] > at))


def raising(kind, at):
    """Springs that raise beyond a length: TorchScript, a function with a tap, one without."""
    if kind == "torchscript":
        return SpringPotential(raises_at=at)
    return CalledSpringPotential(kind == "function", raises_at=at)


KINDS = ["torchscript", "function", "untapped"]


def same(record, other, index, n_frames=None):
    for name in ("time", "potential_energy", "kinetic_energy", "positions", "velocities", "forces"):
        one, two = (getattr(of.replica(index), name) for of in (record, other))
        np.testing.assert_array_equal(one[:n_frames], two[:n_frames], err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_replica_at_fault_ends_and_the_others_go_on_bit_by_bit(kind, sound, limit, tmp_path):
    at, replica, step = limit
    record = run(tmp_path / "run", raising(kind, at))
    assert record.status["state"] == "complete"
    assert list(record.events) == [replica]
    event = record.events[replica]
    assert (event.kind, event.step) == ("raised", step)
    assert event.time_ps == pytest.approx(step * 0.0005)
    assert event.detail == f"the potential raised {TOO_LONG}"
    assert 0 < record.replica(replica).n_frames == step < 200
    same(record, sound, replica, step)
    for other in {0, 1, 2, 3} - {replica}:
        assert record.replica(other).n_frames == 200
        same(record, sound, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_raised_is_extended_for_the_others(kind, limit, tmp_path):
    at, replica, step = limit
    folder = tmp_path / "run"
    run(folder, raising(kind, at))
    longer = dataclasses.replace(SPEC, length_ps=0.12)
    record = simulate(longer, raising(kind, at), SYSTEM, folder, resume=True)
    assert record.events[replica].step == step
    assert record.replica(replica).n_frames == step
    for other in set(range(4)) - set(record.events):
        assert record.replica(other).n_frames == 240


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_one_that_raises_at_the_start_is_an_event_at_step_0(kind, ensemble, tmp_path):
    record = run(tmp_path / "run", raising(kind, 0.9), ensemble=ensemble, n_replicas=2)
    assert record.status["state"] == "complete"
    assert [(e.kind, e.step) for e in record.events.values()] == [("raised", 0)] * 2
    assert record.provenance["start"] == f"structure as given: the potential raised {TOO_LONG}"
    assert all(replica.n_frames == 0 for _, replica in record.replicas())
    longer = dataclasses.replace(record.spec, length_ps=0.2)
    again = simulate(longer, raising(kind, 0.9), SYSTEM, tmp_path / "run", resume=True)
    assert (again.status["state"], len(again.events)) == ("complete", 2)
    # The dead are not simulated any longer.
    for number, batch in again.status["batches"].items():
        assert batch["n_steps"] == record.status["batches"][number]["n_steps"]


def test_a_function_is_asked_no_more_about_the_frame_on_which_it_raised(limit, tmp_path):
    at = limit[0]
    asked = []
    potential = CalledSpringPotential(objects=lambda frame: asked.append(ratios(frame)))
    potential.engine_options["raises_at"] = at
    run(tmp_path / "run", potential)
    # In the step itself together with the others, then alone.
    assert np.count_nonzero(np.array(asked) > at) == 2


def test_a_thermostat_moves_a_dead_replica_to_where_it_raises_and_the_others_go_on(tmp_path):
    """Under noise and no force it falls apart, 0.1 nm in 1 ps; it must never count again."""
    sound = run(tmp_path / "sound", SpringPotential(), ensemble="nvt", length_ps=1.0)
    longest = np.array([ratios(replica.positions) for _, replica in sound.replicas()])
    order = np.argsort(-longest.max(axis=1))
    at = 0.5 * (longest[order[0]].max() + longest[order[1]].max())
    record = run(tmp_path / "run", SpringPotential(raises_at=at), ensemble="nvt", length_ps=1.0)
    assert list(record.events) == [order[0]]
    assert record.events[int(order[0])].step == int(np.argmax(longest[order[0]] > at))
    for other in order[1:]:
        same(record, sound, int(other))


def every_nth_call(n, error):
    calls = iter(range(10**9))
    return lambda frame: error if next(calls) % n == n - 1 else None


def test_where_nobody_raises_alone_all_that_share_the_evaluation_end(tmp_path):
    class Moody(SpringPotential):
        """Raises at the 50th evaluation of four copies, and never for one."""

        def add_to(self, openmm_system, system, *, n_replicas=1, tap=None):
            built = super().add_to(openmm_system, system, n_replicas=n_replicas, tap=tap)
            calls = iter(range(10**9))

            def compute(state):
                if n_replicas == 4 and next(calls) >= 50:
                    raise RuntimeError("out of luck")
                return 0.0, np.zeros((system.n_atoms * n_replicas, 3))

            openmm_system.addForce(openmm.PythonForce(compute))
            return built

    record = run(tmp_path / "run", Moody())
    assert sorted(record.events) == [0, 1, 2, 3]
    assert {event.step for event in record.events.values()} == {47}  # after three calls to warm up
    assert record.events[2].detail == (
        "the potential raised out of luck (for one of 4 copies, for none of them when alone)"
    )


@pytest.mark.parametrize("tapped", [True, False])
def test_an_error_that_does_not_come_back_ends_its_replicas_all_the_same(tapped, tmp_path):
    potential = CalledSpringPotential(tapped, objects=every_nth_call(300, OSError("no answer")))
    record = run(tmp_path / "run", potential)
    assert record.status["state"] == "complete"
    together = " (for one of 4 copies, for none of them when alone)" if tapped else ""
    details = {event.detail for event in record.events.values()}
    assert details == {f"the potential raised OSError: no answer{together}"}
    assert len(record.events) == 4
    assert sum(replica.n_frames for _, replica in record.replicas()) > 100
    with Evaluator(potential, SYSTEM, "Reference") as evaluator:
        energies, _ = evaluator.evaluate(np.tile(SYSTEM.positions, (1000, 1, 1)))
        assert np.isnan(energies).sum() == len(evaluator.raised) > 0


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: device lost")])
@pytest.mark.parametrize("tapped", [True, False])
def test_a_machine_that_fails_is_no_event(error, tapped, tmp_path):
    potential = CalledSpringPotential(tapped, objects=every_nth_call(300, error))
    with pytest.raises(ValidationFailure, match="the machine failed while called-springs"):
        run(tmp_path / "run", potential)
    assert not RunRecord.open(tmp_path / "run").events
    with Evaluator(potential, SYSTEM, "Reference") as evaluator:
        potential.objects = lambda frame: error
        with pytest.raises(ValidationFailure, match="the machine failed"):
            evaluator.evaluate(SYSTEM.positions[None])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "without a message"),
        ("CUDA out of memory. Tried to allocate 20 MiB", "the machine failed"),
        ("DefaultCPUAllocator: not enough memory: you tried to allocate 8", "the machine failed"),
        ("Unable to allocate 7.28 TiB for an array", "the machine failed"),
        ("std::bad_alloc", "the machine failed"),
        ("Error downloading array: CUDA_ERROR_ILLEGAL_ADDRESS (700)", "the machine failed"),
        ("CUDA error: device-side assert triggered", "the machine failed"),
    ],
)
def test_what_is_not_the_potentials_is_a_failure_of_the_validation(text, match):
    with pytest.raises(ValidationFailure, match=match) as caught:
        own_error(openmm.OpenMMException(text), CARD)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "text",
    [
        "Expected all tensors to be on the same device, but found cuda:0 and cpu!",
        "SCF not converged",
        "The periodic box size has decreased to less than twice the nonbonded cutoff.",
        "index 9 is out of bounds for dimension 0 with size 9",
    ],
)
def test_what_is_the_potentials_is_handed_on(text):
    assert own_error(openmm.OpenMMException(text), CARD) == text


def test_a_python_exception_without_a_text_has_its_kind():
    assert own_error(AssertionError(), CARD) == "AssertionError"
    for error in (MemoryError(), MemoryError("2 GiB"), "MemoryError: 2 GiB"):
        with pytest.raises(ValidationFailure, match="the machine failed"):
            own_error(error, CARD)


def test_an_error_in_a_students_code_is_ours():
    student = dataclasses.replace(CARD, source="student")
    with pytest.raises(ValidationFailure, match="omm-mlff's own code for foreign"):
        own_error(openmm.OpenMMException("shape mismatch"), student)


def test_openmm_names_a_nan_itself(tmp_path):
    """The CPU platform raises where Reference computes on; the event is the same."""
    assert is_not_a_number(openmm.OpenMMException("Particle coordinate is NaN.  For more"))
    assert not is_not_a_number(openmm.OpenMMException("ValueError: SCF gave NaN"))

    class Broken(CalledSpringPotential):
        def energies_and_forces(self, positions, system):
            energies, forces = super().energies_and_forces(positions, system)
            lost = ratios(positions) > 1.05
            return np.where(lost, np.nan, energies), np.where(lost[:, None, None], np.nan, forces)

    events = []
    for platform in ("Reference", "CPU"):
        record = run(tmp_path / platform, Broken(tapped=False), platform=platform, n_replicas=1)
        events.append(record.events[0])
    assert [event.kind for event in events] == ["nan", "nan"]
    assert events[0].step == events[1].step > 0


@pytest.mark.parametrize("tapped", [True, False])
def test_ctrl_c_inside_a_function_is_ctrl_c(tapped, tmp_path):
    """OpenMM would make an error without a message of it."""
    pressed = []

    def press(frame):
        pressed.append(frame)
        if len(pressed) == 100:
            os.kill(os.getpid(), signal.SIGINT)

    potential = CalledSpringPotential(tapped, objects=press)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", potential, n_replicas=1)
    record = RunRecord.open(tmp_path / "run")
    assert (record.status["state"], record.events) == ("interrupted", {})
    again = simulate(record.spec, potential, SYSTEM, tmp_path / "run", resume=True)
    assert again.replica(0).n_frames == 200
    with Evaluator(potential, SYSTEM, "Reference") as evaluator:
        pressed.clear()
        with pytest.raises(KeyboardInterrupt):
            evaluator.evaluate(np.tile(SYSTEM.positions, (500, 1, 1)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batched", [True, False])
def test_a_frame_that_raises_has_no_number_and_the_context_goes_on(kind, batched):
    frames = SYSTEM.positions * np.array([1.0, 1.2, 1.01, 1.3, 1.0])[:, None, None]
    frames = np.tile(frames, (20, 1, 1))
    with (
        Evaluator(raising(kind, 1.1), SYSTEM, "Reference") as evaluator,
        Evaluator(SpringPotential(), SYSTEM, "Reference") as other,
    ):
        energies, forces = evaluator.evaluate(frames, batched=batched)
        want = other.evaluate(frames, batched=batched)
        lost = np.arange(100) % 5 % 2 == 1
        assert np.isnan(energies[lost]).all()
        assert np.isnan(forces[lost]).all()
        np.testing.assert_allclose(energies[~lost], want[0][~lost], rtol=1e-12)
        np.testing.assert_allclose(forces[~lost], want[1][~lost], rtol=1e-9)
        assert evaluator.raised == dict.fromkeys(np.flatnonzero(lost).tolist(), TOO_LONG)
        assert (
            evaluator.tally.since((0, 0)) == f"the potential raised on 40 of 100 frames: {TOO_LONG}"
        )
        evaluator.evaluate(frames[:1])
        assert evaluator.raised == {}


@pytest.mark.parametrize("batched", [True, False])
def test_nobody_is_blamed_for_raising_where_positions_are_no_numbers(batched):
    def picky(frame):
        return None if np.isfinite(frame).all() else ValueError("non-finite coordinate")

    frames = np.tile(SYSTEM.positions, (100, 1, 1))
    frames[7, 1] = np.nan
    with Evaluator(CalledSpringPotential(objects=picky), SYSTEM, "Reference") as evaluator:
        energies, forces = evaluator.evaluate(frames, batched=batched)
        assert evaluator.raised == {}
    assert np.flatnonzero(np.isnan(energies)).tolist() == [7]
    assert np.isnan(forces[7]).all()


def test_a_replica_that_is_nowhere_is_not_a_number_whoever_raises(tmp_path):
    """A force beyond all bounds throws it there in one step; the code then raises at NaN."""

    class Slingshot(CalledSpringPotential):
        def energies_and_forces(self, positions, system):
            if not np.isfinite(positions).all():
                raise ValueError("non-finite coordinate")
            energies, forces = super().energies_and_forces(positions, system)
            thrown = ratios(positions) > 1.03
            return energies, np.where(thrown[:, None, None], 1e308, forces)

    record = run(tmp_path / "run", Slingshot(tapped=False), n_replicas=1)
    event = record.events[0]
    assert event.kind == "nan"
    assert record.replica(0).n_frames == event.step > 0


def test_evaluators_for_other_systems_count_together():
    with Evaluator(SpringPotential(raises_at=1.1), SYSTEM, "Reference") as evaluator:
        mark = evaluator.tally.mark()
        with evaluator.for_system(SYSTEM) as other:
            other.evaluate(1.2 * SYSTEM.positions[None])
        evaluator.evaluate(SYSTEM.positions[None])
        assert evaluator.tally.since(mark) == f"the potential raised on 1 of 2 frames: {TOO_LONG}"
        assert evaluator.tally.since(evaluator.tally.mark()) == ""
    assert Tally().since((0, 0)) == ""


def test_steps_that_raise_have_no_time():
    for kind in KINDS:
        with Evaluator(raising(kind, 0.9), SYSTEM, "Reference") as evaluator:
            assert np.isnan(evaluator.time_steps(2, 3)).all()
            assert TOO_LONG in evaluator.tally.since((0, 0))


def test_steps_with_a_replica_that_was_not_there_have_no_time():
    """It raises in the first block alone; masked, it stands still from then on."""
    calls = []

    def once(frame):
        calls.append(1)
        return ValueError("now") if len(calls) == 12 else None

    with Evaluator(CalledSpringPotential(objects=once), SYSTEM, "Reference") as evaluator:
        assert np.isnan(evaluator.time_steps(4, 5)).all()


def test_a_minimiser_that_comes_to_where_it_raises_leaves_the_structure_as_given():
    """Rest lengths 5% longer than the structure's: on the way there it passes 1.02."""
    for kind in KINDS:
        potential = raising(kind, 0.97)  # of the longer length at rest
        potential.engine_options["rest_scale"] = 1.05
        with Evaluator(potential, SYSTEM, "Reference") as evaluator:
            rest = minimized(evaluator)
        assert rest.kind.startswith("structure as given: ")
        assert "raised" in rest.kind or "an error" in rest.kind
        np.testing.assert_array_equal(rest.positions, SYSTEM.positions)


def test_a_context_that_cannot_be_made_leaves_no_tap_behind(tmp_path):
    class Unfit(SpringPotential):
        def add_to(self, openmm_system, system, *, n_replicas=1, tap=None):
            built = super().add_to(openmm_system, system, n_replicas=n_replicas, tap=tap)
            if n_replicas > self.most:
                openmm_system.addForce(openmm.HarmonicBondForce())
                openmm_system.getForce(1).addBond(0, 10**6, 0.1, 1.0)
            return built

    taps = set(tap._taps)
    potential = Unfit()
    potential.most = 0
    with pytest.raises(UnsupportedSystemError):
        Evaluator(potential, SYSTEM, "Reference")
    potential.most = 1
    with (
        Evaluator(potential, SYSTEM, "Reference") as evaluator,
        pytest.raises(UnsupportedSystemError),
    ):
        evaluator.evaluate(np.stack([SYSTEM.positions] * 1000))
    with pytest.raises(UnsupportedSystemError, match="makes no Context of it"):
        run(tmp_path / "run", potential)
    assert set(tap._taps) == taps


def test_a_second_context_that_cannot_be_made_is_a_failure_of_the_validation():
    class OnlyOnce(SpringPotential):
        n_built = 0

        def add_to(self, openmm_system, system, *, n_replicas=1, tap=None):
            self.n_built += 1
            if self.n_built > 1:
                raise UnsupportedSystemError("I can be built once")
            return super().add_to(openmm_system, system, n_replicas=n_replicas, tap=tap)

    with (
        Evaluator(OnlyOnce(), SYSTEM, "Reference") as evaluator,
        pytest.raises(AnalysisError, match="a second Context could not be made: I can be built"),
    ):
        evaluator.for_system(SYSTEM)


def test_code_that_means_to_end_the_process_ends_its_replica(limit, tmp_path):
    at, replica, step = limit
    longer = CalledSpringPotential(
        objects=lambda frame: SystemExit(1) if ratios(frame) > at else None
    )
    record = run(tmp_path / "run", longer)
    assert {r: event.step for r, event in record.events.items()} == {replica: step}
    assert record.events[replica].detail == "the potential raised SystemExit: 1"


def test_a_damaged_state_is_named(sound, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(sound.folder, folder)
    state = folder / "batch_000.npz"
    state.write_bytes(state.read_bytes()[:200])
    longer = dataclasses.replace(SPEC, length_ps=0.12)
    with pytest.raises(RunDirectoryError, match=r"batch_000.npz is damaged"):
        simulate(longer, SpringPotential(), SYSTEM, folder, resume=True)


def test_a_system_of_which_openmm_makes_no_context_is_refused():
    class Impossible(SpringPotential):
        def add_to(self, openmm_system, system, *, n_replicas=1, tap=None):
            force = openmm.CustomBondForce("nonsense(r)")
            force.addBond(0, 1, [])
            openmm_system.addForce(force)
            return Built("openmm")

    with pytest.raises(UnsupportedSystemError, match=r"makes no Context of it: .*nonsense"):
        Evaluator(Impossible(), SYSTEM, "Reference")


def measured(check, potential, system=SYSTEM):
    with Evaluator(potential, system, "Reference") as evaluator:
        return by_name(check.measure(Evidence(system, potential.card, (), evaluator)))


def foreign(objects=None, tapped=True, **changes):
    """Springs as a function, whose card says otherwise."""
    potential = CalledSpringPotential(tapped, objects=objects)
    potential.card = dataclasses.replace(potential.card, **changes)
    return potential


def on_two_copies(frame):
    return ValueError("made for three atoms") if len(frame) > 3 else None


@pytest.mark.parametrize("tapped", [True, False])
def test_a_potential_that_raises_on_two_copies_is_not_asked_to_be_extensive(tapped):
    potential = foreign(on_two_copies, tapped, cutoff_nm=0.5)
    for row in measured(extensivity.CHECK, potential).values():
        assert row.not_applicable.startswith(
            "it fails on two copies of the molecule; the potential"
        )
        assert "raised on 8 of 8 frames: ValueError: made for three atoms" in row.not_applicable


class Refusing(SpringPotential):
    """Refuses atoms on top of each other, as a potential does that is tried beforehand."""

    def unsupported(self, system):
        i, j = np.triu_indices(system.n_atoms, k=1)
        closest = np.linalg.norm(system.positions[j] - system.positions[i], axis=1).min()
        return "atoms are on top of each other" if closest < 0.05 else None


@pytest.mark.parametrize("check", [extensivity.CHECK, cutoff.CHECK])
def test_a_potential_is_asked_about_two_copies_that_are_apart(check):
    potential = Refusing()
    potential.card = dataclasses.replace(potential.card, cutoff_nm=0.5)
    assert all(row.value is not None for row in measured(check, potential).values())


def test_a_potential_that_raises_where_no_atom_has_a_neighbour_is_still_deterministic():
    def far(frame):
        i, j = np.triu_indices(len(frame), k=1)
        alone = np.linalg.norm(frame[j] - frame[i], axis=1).min() > 0.3
        return ValueError("no neighbours") if alone else None

    found = measured(determinism.CHECK, foreign(far, cutoff_nm=0.4))
    assert [row.value for row in found.values()] == [0.0, 0.0, 0.0]


def test_a_frame_that_raises_does_not_hide_the_noise_of_the_others():
    random = np.random.default_rng(2)

    class Noisy(CalledSpringPotential):
        def energies_and_forces(self, positions, system):
            energies, forces = super().energies_and_forces(positions, system)
            return energies, forces * (1.0 + 0.01 * random.normal(size=forces.shape))

    potential = Noisy(raises_at=1.06)
    found = measured(determinism.CHECK, potential)
    assert 1e-3 < found["determinism.force"].value < 1.0


def test_the_direct_way_may_raise_too():
    found = measured(parity.CHECK, CalledSpringPotential(raises_at=1.02))
    for row in found.values():
        assert math.isnan(row.value)
        assert "the potential raised on " in row.cause
        assert TOO_LONG in row.cause

    class OnlyDirectly(SpringPotential):
        def energies_and_forces(self, positions, system):
            raise ValueError("no such device")

    row = measured(parity.CHECK, OnlyDirectly())["parity.energy"]
    assert math.isnan(row.value)
    assert row.cause.endswith("raised on 16 of 32 frames: ValueError: no such device")


@pytest.mark.parametrize("kind", KINDS)
def test_steps_that_cannot_be_taken_have_no_cost_and_no_restart(kind):
    potential = raising(kind, 0.9)
    row = measured(cost.CHECK, potential)["cost.step_time"]
    assert row.not_applicable.startswith("its steps from the structure at rest come to no end")
    row = measured(restart.CHECK, potential)["restart.state"]
    assert f"the run itself does not last 20 steps (the potential raised {TOO_LONG})" in (
        row.not_applicable
    )


def test_a_check_that_makes_what_cannot_be_served_is_absent_with_the_reason():
    def take(evidence):
        raise UnsupportedSystemError("it cannot serve two of water: no template")

    check = dataclasses.replace(cost.CHECK, take=take)
    rows = measured(check, SpringPotential()).values()
    assert [row.not_applicable for row in rows] == ["it cannot serve two of water: no template"] * 2


def test_a_record_says_what_computed_it(tmp_path):
    kinds = {
        "torchforce": SpringPotential(),
        "pythonforce": CalledSpringPotential(),
        "openmm": NativeSpringPotential(),
    }
    for name, potential in kinds.items():
        record = run(tmp_path / name, potential, length_ps=0.001)
        assert record.provenance["force"] == name


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_is_explained_with_the_message_and_replayed_up_to_it(kind, limit, tmp_path):
    at, replica, step = limit
    record = run(tmp_path / "run", raising(kind, at))
    (one,) = explain(record, SYSTEM, raising(kind, at), tmp_path / "failures", teacher=None)
    assert (one.replica, one.diagnosis) == (replica, "raised")
    assert one.sentence == f"raised at {step * 0.0005:.4g} ps: the potential raised {TOO_LONG}"
    report = json.loads((one.folder / "failure.json").read_text())
    after = report["frames"]["after"]
    if kind == "function":
        assert "replayed" in after["note"] or "taken" in after["note"]
    else:
        note = f"after the last recorded frame cannot be taken: {TOO_LONG}"
        assert after["note"].endswith(note)


def test_a_script_that_replays_prints_the_error_and_stops(limit, tmp_path):
    record = run(tmp_path / "run", SpringPotential(raises_at=limit[0]))
    (one,) = explain(record, SYSTEM, SpringPotential(), tmp_path / "failures", teacher=None)
    text = (one.folder / "replay.py").read_text()
    wanted = f"load_potential({record.spec.potential!r}), system"
    assert wanted in text
    text = text.replace(wanted, f"SpringPotential(raises_at={limit[0]!r}), system")
    (system_line,) = (line for line in text.splitlines() if line.startswith("system, start"))
    text = text.replace(system_line, "system, start = triatomic(), np.load('state.npz')")
    (one.folder / "mine.py").write_text(f"from springs import SpringPotential, triatomic\n{text}")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "mine.py"],
        cwd=one.folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    at_ps = limit[2] * 0.0005
    assert done.stderr.strip().splitlines()[0].startswith(f"{at_ps:.4f} ps: ")
    assert "ValueError: a pair is too long" in done.stderr
    assert "Traceback (most recent call last):\n  File" not in done.stderr.partition("ps:")[0]
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith(f"{at_ps - 0.0005:.4f} ps")


PROFILE = """
title = "a short look at water"
static_systems = ["water"]

[[run]]
system = "water"
length_ps = 0.1
n_replicas = 3
temperature_K = 300

[[run]]
system = "water"
purpose = "survival"
length_ps = 0.02
n_replicas = 2
temperature_K = 100
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_validation_of_a_potential_that_raises_reaches_a_verdict(kind, tmp_path):
    (tmp_path / "short.toml").write_text(PROFILE)
    potential = raising(kind, 1.05)
    result = validate(potential, profile=tmp_path / "short.toml", out=tmp_path / "out")
    assert (result.verdict.name, result.exit_code) == ("REJECTED", 1)
    assert result.diagnosis[0].slug == "raises"
    assert TOO_LONG in result.diagnosis[0].detail
    crashes = [f for f in result.verdict.findings if f.measurement == "stability.crashes"]
    assert crashes[0].status == "fail"
    assert f"the potential raised {TOO_LONG}, replica " in crashes[0].cause
    states = {record.status["state"] for record in records(tmp_path / "out")}
    assert states == {"complete"}
    (failure, *_) = sorted((tmp_path / "out" / "failures").rglob("failure.json"))
    explained = json.loads(failure.read_text())
    assert "raised" in {symptom["kind"] for symptom in explained["symptoms"]}


def records(folder):
    return [RunRecord.open(path) for path in sorted((folder / "runs").iterdir())]


@pytest.mark.parametrize("kind", KINDS)
def test_a_validation_of_a_potential_that_always_raises_reaches_a_verdict(kind, tmp_path):
    (tmp_path / "short.toml").write_text(PROFILE)
    result = validate(raising(kind, 0.5), profile=tmp_path / "short.toml", out=tmp_path / "out")
    assert result.verdict.name == "REJECTED"
    assert [cause.slug for cause in result.diagnosis] == ["raises"]
    assert all(
        replica.n_frames == 0 for r in records(tmp_path / "out") for _, replica in r.replicas()
    )


def test_errors_now_and_then_are_no_nondeterminism(tmp_path):
    (tmp_path / "short.toml").write_text(PROFILE)
    potential = CalledSpringPotential(False, objects=every_nth_call(97, KeyError("frame")))
    result = validate(potential, profile=tmp_path / "short.toml", out=tmp_path / "out")
    assert result.verdict.name == "REJECTED"
    assert result.diagnosis[0].slug == "raises"
    assert "KeyError: 'frame'" in result.diagnosis[0].detail
