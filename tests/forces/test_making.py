"""The tap and the two Forces that carry an engine."""

from __future__ import annotations

import numpy as np
import openmm
import pytest
import torch
from springs import SpringEngine, SpringPotential, context_of, diatomic, triatomic

from omm_mlff.errors import InputError, MissingPackageError
from omm_mlff.forces.faults import one_line
from omm_mlff.forces.making import make_force
from omm_mlff.forces.plugin import load_plugin, resolve_backend
from omm_mlff.forces.python_force import make_python_force
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials.base import build_system


def test_a_recorded_step_costs_one_evaluation():
    system = triatomic()
    tap = Tap(4, system.n_atoms)
    context = context_of(make_force(SpringEngine(system, 4), periodic=False, tap=tap), system, 4)
    before = tap.n_calls
    context.getIntegrator().step(25)
    assert tap.n_calls - before == 25
    context.getState(positions=True, velocities=True)
    assert tap.n_calls - before == 25


def test_asking_the_context_for_energies_evaluates_again():
    """What the tap is for: without it each recorded step costs two evaluations."""
    system = triatomic()
    tap = Tap(1, system.n_atoms)
    context = context_of(make_force(SpringEngine(system), periodic=False, tap=tap), system)
    before = tap.n_calls
    for _ in range(10):
        context.getIntegrator().step(1)
        context.getState(energy=True, forces=True)
    assert tap.n_calls - before == 20


@pytest.mark.parametrize("backend", ["torchforce", "pythonforce"])
@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_the_tap_hands_over_what_openmm_gets(backend, platform):
    system = triatomic()
    tap = Tap(2, system.n_atoms)
    force = make_force(SpringEngine(system, 2), periodic=False, tap=tap, backend=backend)
    context = context_of(force, system, 2, platform)
    state = context.getState(energy=True, forces=True)
    energies, forces = tap.read()
    assert energies.sum() == pytest.approx(state.getPotentialEnergy()._value, rel=1e-12)
    np.testing.assert_allclose(
        forces.reshape(-1, 3), state.getForces(asNumpy=True)._value, rtol=1e-6, atol=1e-6
    )
    assert energies[0] == pytest.approx(energies[1], rel=1e-12)
    assert energies[0] > 1.0


def test_torchforce_and_pythonforce_and_openmm_agree():
    from springs import NativeSpringPotential

    system = triatomic()
    native = context_of_native(NativeSpringPotential(), system)
    want = native.getState(energy=True, forces=True)
    for backend in ("torchforce", "pythonforce"):
        force = make_force(SpringEngine(system), periodic=False, backend=backend)
        state = context_of(force, system).getState(energy=True, forces=True)
        assert state.getPotentialEnergy()._value == pytest.approx(
            want.getPotentialEnergy()._value, rel=1e-12
        )
        np.testing.assert_allclose(
            state.getForces(asNumpy=True)._value,
            want.getForces(asNumpy=True)._value,
            rtol=1e-10,
            atol=1e-8,
        )


def context_of_native(potential, system):
    context = openmm.Context(
        build_system(potential, system),
        openmm.VerletIntegrator(0.0005),
        openmm.Platform.getPlatformByName("Reference"),
    )
    context.setPositions(system.positions * 1.03)
    return context


def test_a_nan_in_one_copy_never_reaches_openmm():
    system = diatomic()
    tap = Tap(3, system.n_atoms)
    engine = SpringEngine(system, 3, breaks_at=0.09, breaks_copy=1)
    context = context_of(make_force(engine, periodic=False, tap=tap), system, 3)
    state = context.getState(energy=True, forces=True)
    assert np.isfinite(state.getPotentialEnergy()._value)
    forces = state.getForces(asNumpy=True)._value.reshape(3, 2, 3)
    assert np.all(forces[1] == 0.0)
    assert np.all(forces[[0, 2], :, 0] != 0.0)
    energies, raw = tap.read()
    assert np.isnan(energies[1])
    assert np.isnan(raw[1]).all()
    assert tap.alive.tolist() == [True, False, True]


def test_a_frozen_copy_feels_no_force_while_the_others_do():
    system = diatomic()
    tap = Tap(2, system.n_atoms)
    context = context_of(make_force(SpringEngine(system, 2), periodic=False, tap=tap), system, 2)
    tap.freeze(0)
    forces = context.getState(forces=True).getForces(asNumpy=True)._value.reshape(2, 2, 3)
    assert np.all(forces[0] == 0.0)
    assert np.all(forces[1, :, 0] != 0.0)


def springs_of(frames, raises_at=np.inf):
    """Springs along x between two atoms of every copy, as somebody else's program might be."""
    d = frames[:, 1, 0] - frames[:, 0, 0]
    if (d > raises_at).any():
        raise ValueError("SCF not converged\nafter 100 steps")
    forces = np.zeros(frames.shape)
    forces[:, 0, 0], forces[:, 1, 0] = d - 0.1, 0.1 - d
    return 0.5 * (d - 0.1) ** 2, forces


def called(n_copies, tap, evaluate):
    """Copies of two atoms 0.11, 0.12, ... nm apart, in a Context."""
    force = make_python_force(evaluate, n_replicas=n_copies, n_atoms=2, periodic=False, tap=tap)
    system = openmm.System()
    for _ in range(2 * n_copies):
        system.addParticle(1.0)
    system.addForce(force)
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName("Reference")
    )
    positions = np.zeros((n_copies, 2, 3))
    positions[:, 1, 0] = 0.11 + 0.01 * np.arange(n_copies)
    context.setPositions(positions.reshape(-1, 3))
    return context, positions


def test_a_function_of_copies_is_a_force_with_a_tap():
    tap = Tap(3, 2)
    context, positions = called(3, tap, lambda frames, box: springs_of(frames))
    state = context.getState(energy=True, forces=True)
    want = springs_of(positions)
    energies, forces = tap.read()
    np.testing.assert_array_equal(energies, want[0])
    np.testing.assert_array_equal(forces, want[1])
    assert state.getPotentialEnergy()._value == pytest.approx(want[0].sum(), rel=1e-12)
    assert tap.positions.numpy().reshape(3, 2, 3).tolist() == positions.tolist()
    assert (tap.raised, tap.alive.tolist()) == ({}, [True] * 3)


def test_the_copy_for_which_a_function_raises_is_masked_and_its_message_kept():
    tap = Tap(4, 2)
    context, positions = called(4, tap, lambda frames, box: springs_of(frames, 0.125))
    state = context.getState(energy=True, forces=True)
    energies, forces = tap.read()
    assert np.isnan(energies).tolist() == [False, False, True, True]
    assert np.isnan(forces).all((1, 2)).tolist() == [False, False, True, True]
    assert tap.raised == dict.fromkeys((2, 3), "ValueError: SCF not converged")
    assert tap.alive.tolist() == [True, True, False, False]
    want = springs_of(positions[:2])
    assert state.getPotentialEnergy()._value == pytest.approx(want[0].sum(), rel=1e-12)
    got = state.getForces(asNumpy=True)._value.reshape(4, 2, 3)
    np.testing.assert_allclose(got[:2], want[1])
    assert not got[2:].any()
    positions[2:] = positions[:2]
    context.setPositions(positions.reshape(-1, 3))
    context.getState(energy=True)
    assert tap.raised == {}  # of the last evaluation
    assert tap.alive.tolist() == [True, True, False, False]  # for good


def test_a_function_that_raises_for_copies_together_and_for_none_alone_fails_for_all():
    def together(frames, box):
        if len(frames) > 1:
            raise OSError("one at a time")
        return springs_of(frames)

    tap = Tap(2, 2)
    context, _ = called(2, tap, together)
    context.getState(energy=True)
    message = "OSError: one at a time (for one of 2 copies, for none of them when alone)"
    assert tap.raised == {0: message, 1: message}
    assert np.isnan(tap.read()[0]).all()


@pytest.mark.parametrize("error", [ValueError("SCF"), MemoryError(), KeyError("x")])
def test_without_a_tap_openmm_raises_with_the_kind_of_exception(error):
    def fail(frames, box):
        raise error

    context, _ = called(1, None, fail)
    with pytest.raises(openmm.OpenMMException, match=f"^{type(error).__name__}"):
        context.getState(energy=True)


TRACEBACK = """The following operation failed in the TorchScript interpreter.
Traceback of TorchScript (most recent call last):
  File "model.py", line 9, in forward
        if bool(d > 1): raise ValueError("far")
                        ~~~~~~~~~~~~~~~~~~ <--- HERE
"""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("SCF"), "ValueError: SCF"),
        (ValueError("first\nError: second"), "ValueError: first"),
        (MemoryError(), "MemoryError"),
        (KeyError("a"), "KeyError: 'a'"),
        (openmm.OpenMMException("Particle coordinate is NaN"), "Particle coordinate is NaN"),
        (openmm.OpenMMException(f"{TRACEBACK}builtins.ValueError: far"), "ValueError: far"),
        (
            openmm.OpenMMException(f"{TRACEBACK}RuntimeError: CUDA error: x\nCompile with"),
            "RuntimeError: CUDA error: x",
        ),
    ],
)
def test_an_error_in_one_line(error, line):
    assert one_line(error) == line


def test_pythonforce_takes_over_where_the_plugin_is_absent(monkeypatch):
    def absent():
        raise MissingPackageError("openmm-torch", "TorchForce", "pip install 'omm-mlff[cpu]'")

    monkeypatch.setattr("omm_mlff.forces.plugin.load_plugin", absent)
    assert resolve_backend("auto") == "pythonforce"
    with pytest.raises(MissingPackageError, match="pip install"):
        resolve_backend("torchforce")
    system = diatomic()
    potential = SpringPotential()
    force = build_system(potential, system).getForce(0)
    assert isinstance(force, openmm.PythonForce)


def test_an_unknown_backend_is_refused():
    with pytest.raises(InputError, match="unknown backend 'torch'; known: auto, torchforce"):
        resolve_backend("torch")


def test_torchforce_is_the_default():
    assert resolve_backend("auto") == "torchforce"
    force = make_force(SpringEngine(diatomic()), periodic=False)
    assert isinstance(force, load_plugin().TorchForce)
    assert force.getOutputsForces()


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["single", "mixed", "double"])
def test_the_tap_works_on_cuda(precision):
    from omm_mlff.forces.platforms import platform_properties

    system = triatomic()
    tap = Tap(2, system.n_atoms)
    openmm_system = openmm.System()
    for mass in np.tile(system.masses, 2):
        openmm_system.addParticle(float(mass))
    openmm_system.addForce(make_force(SpringEngine(system, 2), periodic=False, tap=tap))
    context = openmm.Context(
        openmm_system,
        openmm.VerletIntegrator(0.0005),
        openmm.Platform.getPlatformByName("CUDA"),
        platform_properties("CUDA", precision),
    )
    context.setPositions(np.tile(system.positions * 1.03, (2, 1)))
    state = context.getState(energy=True, forces=True)
    energies, forces = tap.read()
    assert tap.kept is not None
    assert tap.kept.device.type == "cuda"
    assert energies.sum() == pytest.approx(state.getPotentialEnergy()._value, rel=1e-4)
    np.testing.assert_allclose(
        forces.reshape(-1, 3), state.getForces(asNumpy=True)._value, rtol=1e-3, atol=1.0
    )


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["mixed", "double"])
def test_a_cuda_graph_is_replayed_and_gives_what_the_launches_give(precision):
    """Evaluations are counted on the device; Python is called for those that are no replay."""
    from omm_mlff.forces.platforms import platform_properties
    from omm_mlff.potentials.base import build_system
    from omm_mlff.potentials.student import StudentPotential
    from omm_mlff.systems import load_system

    system, n_steps, last = load_system("ethanol"), 200, []
    for cuda_graphs in (False, True):
        tap = Tap(4, system.n_atoms)
        potential = StudentPotential("tiny", cuda_graphs=cuda_graphs)
        context = openmm.Context(
            build_system(potential, system, n_replicas=4, tap=tap),
            openmm.VerletIntegrator(0.0005),
            openmm.Platform.getPlatformByName("CUDA"),
            platform_properties("CUDA", precision),
        )
        context.setPositions(np.tile(system.positions, (4, 1)))
        before, launches = tap.n_calls, tap.n_launches
        context.getIntegrator().step(n_steps)
        assert tap.n_calls - before >= n_steps
        assert (tap.n_launches - launches < n_steps // 2) == cuda_graphs
        last.append(tap.read())
    np.testing.assert_allclose(last[0][0], last[1][0], atol=0.5)
    np.testing.assert_allclose(last[0][1], last[1][1], atol=50.0)


def test_cuda_graphs_are_refused_where_the_work_changes_from_call_to_call():
    engine = SpringEngine(diatomic())
    with pytest.raises(InputError, match="CUDA graphs are for molecules in vacuum"):
        make_force(engine, periodic=True, cuda_graphs=True)
    with pytest.raises(InputError, match="through TorchForce alone"):
        make_force(engine, periodic=False, backend="pythonforce", cuda_graphs=True)
    force = make_force(engine, periodic=False, cuda_graphs=True)
    assert dict(force.getProperties())["useCUDAGraphs"] == "true"


@pytest.mark.parametrize("periodic", [False, True])
def test_every_tensor_of_a_scripted_student_moves_with_it(periodic):
    """The plugin moves the module to the Context's device: no constant may be left behind."""
    from omm_mlff.forces.making import _Tapped
    from omm_mlff.forces.scripting import script
    from omm_mlff.students.engine import build_engine
    from omm_mlff.students.student import STUDENT_CONFIGS, Student

    student = Student(STUDENT_CONFIGS["ultra-tiny"]).eval().requires_grad_(False)
    engine = build_engine(student, torch.tensor([8, 1, 1]), periodic=periodic)
    scripted = script(_Tapped(engine, 0).eval())
    graph = scripted.inlined_graph
    constants = [
        node
        for node in graph.findAllNodes("prim::Constant")
        if node.output().type().isSubtypeOf(torch._C.TensorType.get())
    ]
    assert constants == []
    held = [*scripted.parameters(), *scripted.buffers()]
    assert len(held) > 20
    assert {tensor.device.type for tensor in scripted.to("meta").parameters()} == {"meta"}


@pytest.mark.parametrize("engine", ["compiled", "scripted"])
def test_students_compute_where_a_device_is_at_hand_and_the_host_is_asked_for(engine, monkeypatch):
    """Only then is the branch for a device scripted; a machine without one never meets it."""
    from omm_mlff.dynamics.evaluator import Evaluator
    from omm_mlff.potentials.student import StudentPotential
    from omm_mlff.systems import load_system

    water = load_system("water")
    frames = np.repeat(water.positions[None], 43, axis=0)
    found = []
    for device_at_hand in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=device_at_hand: there)
        with Evaluator(StudentPotential("tiny", engine=engine), water, "Reference") as evaluator:
            found.append(evaluator.evaluate(frames, batched=True))
            found.append(evaluator.evaluate(frames[:1], batched=False))
    for wanted, got in zip(found[:2], found[2:], strict=True):
        np.testing.assert_array_equal(got[0], wanted[0])
        np.testing.assert_array_equal(got[1], wanted[1])


def test_nothing_that_comes_out_is_tracked_by_autograd():
    """A graph that is carried along doubles the cost of a step."""
    from omm_mlff.forces.making import _Tapped
    from omm_mlff.forces.scripting import script

    system = triatomic()
    tap = Tap(1, system.n_atoms)
    scripted = script(_Tapped(SpringEngine(system), tap.handle).eval())
    positions = torch.from_numpy(system.positions).requires_grad_(True)
    for _ in range(4):
        energy, forces = scripted(positions)
        assert not energy.requires_grad
        assert not forces.requires_grad
    assert not tap.forces.requires_grad
    assert forces.is_contiguous()
    tap.close()
