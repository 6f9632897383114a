"""Frames in batches against frames one by one, and Contexts that are shared."""

from __future__ import annotations

import dataclasses

import numpy as np
import openmm
import pytest
from springs import CalledSpringPotential, SpringPotential, diatomic, triatomic

from omm_mlff.campaign import campaign as campaigns
from omm_mlff.checks.base import Evidence
from omm_mlff.checks.registry import all_checks
from omm_mlff.dynamics import contexts as contexts_module
from omm_mlff.dynamics.contexts import Contexts, Wanted
from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.errors import UnsupportedSystemError
from omm_mlff.forces import tap as tap_module
from omm_mlff.potentials.student import StudentPotential
from omm_mlff.students.checkpoint import student_names
from omm_mlff.students.engine import is_compiled_here
from omm_mlff.systems import load_system
from omm_mlff.verdict.profiles import load_profile

needs_tiny = pytest.mark.skipif("tiny" not in student_names(), reason="no shipped student")
needs_kernel = pytest.mark.skipif(not is_compiled_here(), reason="no C++ compiler")


def thermal(system, n_frames, seed=0):
    noise = np.random.default_rng(seed).normal(scale=0.004, size=(n_frames, system.n_atoms, 3))
    return system.positions + noise


def one_by_one(potential, frames, system=None):
    with Evaluator(potential, system or triatomic(), "Reference") as evaluator:
        return evaluator.evaluate(frames, batched=False)


class SpringsOnADevice(Evaluator):
    """Evaluates as on a device, where every batch is filled up, on the host."""

    _on_host = False


@pytest.fixture
def calls(monkeypatch):
    """Counts Contexts that are made and evaluations that they are asked for."""
    counted = {"contexts": 0, "evaluations": 0}
    make, ask = openmm.Context.__init__, openmm.Context.getState

    def made(self, *arguments):
        counted["contexts"] += 1
        make(self, *arguments)

    def asked(self, *arguments, **options):
        if options.get("energy") or options.get("forces"):
            counted["evaluations"] += 1
        return ask(self, *arguments, **options)

    monkeypatch.setattr(openmm.Context, "__init__", made)
    monkeypatch.setattr(openmm.Context, "getState", asked)
    return counted


@pytest.mark.parametrize("kind", [Evaluator, SpringsOnADevice])
@pytest.mark.parametrize("n_frames", [0, 1, 2, 41, 42, 43, 64, 65, 130])
def test_frames_have_their_own_results_however_many_come_together(kind, n_frames) -> None:
    frames = thermal(triatomic(), n_frames)
    with kind(SpringPotential(), triatomic(), "Reference") as evaluator:
        energies, forces = evaluator.evaluate(frames)
        assert evaluator.energies(frames) == pytest.approx(energies, rel=1e-15)
        assert evaluator.tally.n_frames == 2 * n_frames
    own_energies, own_forces = one_by_one(SpringPotential(), frames)
    np.testing.assert_allclose(energies, own_energies, rtol=1e-12)
    np.testing.assert_allclose(forces, own_forces, rtol=1e-9, atol=1e-9)


def too_long(frame):
    return ValueError("too long") if np.ptp(frame) > 0.16 else None


@pytest.mark.parametrize(
    "potential",
    [SpringPotential(raises_at=1.3), CalledSpringPotential(objects=too_long)],
    ids=["whole batch", "copy by copy"],
)
@pytest.mark.parametrize("kind", [Evaluator, SpringsOnADevice])
def test_the_frame_that_raises_is_named_beside_one_that_is_no_number(kind, potential) -> None:
    frames = thermal(triatomic(), 130)
    frames[3, 1] = np.nan
    frames[7] = frames[100] = 1.5 * triatomic().positions
    with kind(potential, triatomic(), "Reference") as evaluator:
        energies, forces = evaluator.evaluate(frames)
        raised = evaluator.raised
    own_energies, own_forces = one_by_one(SpringPotential(), frames)
    lost = [3, 7, 100]
    assert sorted(raised) == [7, 100]
    assert np.flatnonzero(np.isnan(energies)).tolist() == lost
    assert np.flatnonzero(np.isnan(forces).any(axis=(1, 2))).tolist() == lost
    kept = np.setdiff1d(np.arange(130), lost)
    np.testing.assert_allclose(energies[kept], own_energies[kept], rtol=1e-12)
    np.testing.assert_allclose(forces[kept], own_forces[kept], rtol=1e-9, atol=1e-9)


def test_a_device_is_asked_once_for_all_frames_that_fit(calls) -> None:
    with SpringsOnADevice(SpringPotential(), triatomic(), "Reference") as evaluator:
        evaluator.evaluate(thermal(triatomic(), 130))  # makes the Context for many
        calls["evaluations"] = 0
        evaluator.evaluate(thermal(triatomic(), 130))
        assert calls["evaluations"] == 3  # 64 of the springs fit
        evaluator.evaluate(thermal(triatomic(), 1))
        assert calls["evaluations"] == 4
    assert calls["contexts"] == 2


@pytest.mark.parametrize(("n_frames", "n_copies"), [(2, 16), (16, 16), (17, 64), (64, 64)])
def test_a_context_on_a_device_has_no_more_copies_than_its_frames_are_worth(
    n_frames, n_copies, monkeypatch
) -> None:
    asked = []
    make = contexts_module.context_and_built

    def spied(*arguments, **options):
        asked.append(options["n_copies"])
        return make(*arguments, **options)

    monkeypatch.setattr(contexts_module, "context_and_built", spied)
    with SpringsOnADevice(SpringPotential(), triatomic(), "Reference") as evaluator:
        evaluator.evaluate(thermal(triatomic(), n_frames))
        evaluator.evaluate(thermal(triatomic(), n_frames))
    assert asked == [1, n_copies]


@needs_tiny
@needs_kernel
@pytest.mark.parametrize("n_frames", [1, 17, 300])
def test_a_compiled_student_gives_the_same_bits_in_a_batch_and_computes_what_is_wanted(
    n_frames, monkeypatch
) -> None:
    system = load_system("methane")
    frames = thermal(system, n_frames)
    given = []
    for name in ("evaluate_molecules", "energies_of_molecules"):
        plain = getattr(tap_module, name)

        def spied(handle, positions, *more, plain=plain):
            given.append(len(positions) // system.n_atoms)
            return plain(handle, positions, *more)

        monkeypatch.setattr(tap_module, name, spied)
    with Evaluator(StudentPotential("tiny"), system, "Reference") as evaluator:
        evaluator.evaluate(thermal(system, 60))  # makes the Context for many
        given.clear()
        energies, forces = evaluator.evaluate(frames)
        assert sum(given) == n_frames
        given.clear()
        alone = evaluator.energies(frames)
        assert sum(given) == n_frames
    own_energies, own_forces = one_by_one(StudentPotential("tiny"), frames, system)
    assert (energies == own_energies).all()
    assert (alone == own_energies).all()
    assert (forces == own_forces).all()


@needs_tiny
def test_a_scripted_student_fills_its_batches_and_agrees_to_rounding() -> None:
    system = load_system("methane")
    frames = thermal(system, 37)  # a batch of 25, and 12 more
    potential = StudentPotential("tiny", engine="scripted")
    with Evaluator(potential, system, "Reference") as evaluator:
        energies, forces = evaluator.evaluate(frames)
    own_energies, own_forces = one_by_one(potential, frames, system)
    np.testing.assert_allclose(energies - own_energies, 0.0, atol=1e-2)
    np.testing.assert_allclose(forces, own_forces, atol=0.1)


def test_evaluators_that_are_given_contexts_share_them(calls) -> None:
    potential = SpringPotential()
    moved = dataclasses.replace(triatomic(), positions=2.0 * triatomic().positions, name="moved")
    with Contexts() as contexts:
        first = Evaluator(potential, triatomic(), "Reference", contexts=contexts)
        second = Evaluator(potential, moved, "Reference", contexts=contexts)
        assert first.context is second.context
        first.close()
        second.evaluate(thermal(triatomic(), 1))  # closing the first has taken nothing away
        assert calls["contexts"] == 1
        others = [
            Evaluator(potential, diatomic(), "Reference", contexts=contexts),
            Evaluator(SpringPotential(), triatomic(), "Reference", contexts=contexts),
            Evaluator(potential, triatomic(), "Reference", timestep_fs=1.0, contexts=contexts),
            Evaluator(potential, triatomic(), "CPU", contexts=contexts),
        ]
        assert len({id(one.context) for one in (first, *others)}) == 5


def test_a_context_is_of_one_device() -> None:
    def key(device):
        return Wanted(potential, triatomic(), "CUDA", "double", 0.5, device=device).key()

    potential = SpringPotential()
    assert key(0) == key(0)
    assert key(None) != key(0) != key(1)


def test_an_evaluator_of_the_same_system_has_a_context_that_nobody_has_used(calls) -> None:
    with Evaluator(SpringPotential(), triatomic(), "Reference") as evaluator:
        evaluator.context.setTime(1.0)
        new = evaluator.for_system(evaluator.system)
        assert new.context.getTime()._value == 0.0
        assert new.context is not evaluator.context
        another = evaluator.another()
        assert another.context is new.context
        new.context.setTime(1.0)
        newer = evaluator.for_system(evaluator.system)
        assert newer.context.getTime()._value == 0.0
    assert calls["contexts"] == 3


def test_a_context_that_cannot_be_made_is_not_kept(monkeypatch, calls) -> None:
    def refuse(*arguments, **options):
        raise UnsupportedSystemError("no")

    with Contexts() as contexts:
        with monkeypatch.context() as patched:
            patched.setattr(contexts_module, "context_and_built", refuse)
            with pytest.raises(UnsupportedSystemError):
                Evaluator(SpringPotential(), triatomic(), "Reference", contexts=contexts)
        n_taps = len(tap_module._taps)
        Evaluator(SpringPotential(), triatomic(), "Reference", contexts=contexts)
        assert len(tap_module._taps) == n_taps + 1
    assert len(tap_module._taps) == n_taps


def test_what_a_former_user_left_is_put_back() -> None:
    """A box, a replica that was masked, velocities and a clock: the next answer is the same."""
    frames = thermal(triatomic(), 3)
    boxed = dataclasses.replace(triatomic(), box_vectors=2.0 * np.eye(3))

    class InABox(SpringPotential):
        def capabilities(self, system):
            return dataclasses.replace(super().capabilities(system), reads_box=True)

    for system in (triatomic(), boxed):
        with Evaluator(InABox(), system, "Reference") as evaluator:
            want = evaluator.evaluate(frames)
            evaluator.context.setPeriodicBoxVectors(*(3.0 * np.eye(3)))
            evaluator.context.setVelocities(np.ones((3, 3)))
            evaluator.context.setTime(5.0)
            evaluator.tap.freeze(0)
            found = evaluator.evaluate(frames)
            assert (found[0] == want[0]).all()
            assert (found[1] == want[1]).all()
            if system is boxed:
                box = evaluator.context.getState().getPeriodicBoxVectors(asNumpy=True)._value
                assert (box == boxed.box_vectors).all()


STATIC = [check for check in all_checks() if not check.needs & {"runs"} and check.name != "cost"]


@needs_tiny
@needs_kernel
@pytest.mark.parametrize("seed", range(3))
def test_checks_give_the_same_measurements_in_any_order(seed, reference_order) -> None:
    """Nothing of what one check leaves in a shared Context reaches another."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(STATIC))
    found = measured([STATIC[k] for k in order])
    for name, rows in reference_order.items():
        assert found[name] == rows, name


@pytest.fixture(scope="module")
def reference_order():
    return {
        check.name: measured([check])[check.name]  # alone, in Contexts of its own
        for check in STATIC
    }


def measured(checks):
    potential, system = StudentPotential("tiny"), load_system("water")
    with (
        Contexts() as contexts,
        Evaluator(potential, system, "Reference", contexts=contexts) as evaluator,
    ):
        evaluator.time_steps(2, 1)  # velocities are left, as by `cost`
        evidence = Evidence(system, potential.card, (), evaluator, seed=5)
        return {check.name: check.measure(evidence) for check in checks}


@needs_tiny
@needs_kernel
def test_quick_makes_few_contexts_and_asks_each_of_them_seldom(tmp_path, calls) -> None:
    """Five for each molecule: of its run, of one copy, of many, of two, and one unused before.

    Frame by frame it would be 13,000 evaluations, and 39 Contexts without sharing.
    """
    profile = load_profile("quick")
    short = tuple(dataclasses.replace(run, length_ps=0.02) for run in profile.runs)
    potential = StudentPotential("tiny")
    campaign = campaigns.plan(
        potential,
        dataclasses.replace(profile, runs=short),
        seed=1,
        platform="Reference",
        folder=tmp_path / "out",
        resume=False,
    )
    calls["contexts"] = calls["evaluations"] = 0
    campaigns.execute(campaign)
    assert calls["contexts"] == 15
    assert calls["evaluations"] <= 1200
