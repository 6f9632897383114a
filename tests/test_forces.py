"""The tap and the two Forces that carry an engine."""

from __future__ import annotations

import numpy as np
import openmm
import pytest
import torch
from springs import SpringEngine, SpringPotential, diatomic, triatomic

from omm_mlff.errors import MissingPackageError
from omm_mlff.forces import Tap, load_plugin, make_force, resolve_backend
from omm_mlff.potentials.base import build_system


def context_of(force, system, n_copies=1, platform="Reference"):
    openmm_system = openmm.System()
    for mass in np.tile(system.masses, n_copies):
        openmm_system.addParticle(float(mass))
    openmm_system.addForce(force)
    context = openmm.Context(
        openmm_system,
        openmm.VerletIntegrator(0.0005),
        openmm.Platform.getPlatformByName(platform),
    )
    stretched = np.tile(system.positions * 1.03, (n_copies, 1))
    context.setPositions(stretched)
    context.setVelocities(np.zeros_like(stretched))
    return context


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


def test_pythonforce_takes_over_where_the_plugin_is_absent(monkeypatch):
    def absent():
        raise MissingPackageError("openmm-torch", "TorchForce", "pip install 'omm-mlff[cpu]'")

    monkeypatch.setattr("omm_mlff.forces.load_plugin", absent)
    assert resolve_backend("auto") == "pythonforce"
    with pytest.raises(MissingPackageError, match="pip install"):
        resolve_backend("torchforce")
    system = diatomic()
    potential = SpringPotential()
    force = build_system(potential, system).getForce(0)
    assert isinstance(force, openmm.PythonForce)


def test_torchforce_is_the_default():
    assert resolve_backend("auto") == "torchforce"
    force = make_force(SpringEngine(diatomic()), periodic=False)
    assert isinstance(force, load_plugin().TorchForce)
    assert force.getOutputsForces()


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["single", "mixed", "double"])
def test_the_tap_works_on_cuda(precision):
    from omm_mlff.platforms import platform_properties

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
    assert tap.energies.device.type == "cuda"
    assert energies.sum() == pytest.approx(state.getPotentialEnergy()._value, rel=1e-4)
    np.testing.assert_allclose(
        forces.reshape(-1, 3), state.getForces(asNumpy=True)._value, rtol=1e-3, atol=1.0
    )


@pytest.mark.parametrize("periodic", [False, True])
def test_every_tensor_of_a_scripted_student_moves_with_it(periodic):
    """The plugin moves the module to the Context's device: no constant may be left behind."""
    from omm_mlff.forces import _Tapped, script
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


def test_nothing_that_comes_out_is_tracked_by_autograd():
    """A graph that is carried along doubles the cost of a step."""
    from omm_mlff.forces import _Tapped, script

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
