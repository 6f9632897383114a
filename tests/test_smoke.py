"""The main job and every way to it, short: what must work with every version that is admitted.

Each is also done as on a machine with a GPU, as far as one can be played: there engines carry what
is for a device as well, and all of it is scripted.
"""

from __future__ import annotations

import numpy as np
import openmm
import pytest
import torch
from springs import SpringEngine, SpringPotential, triatomic

from omm_mlff import validate
from omm_mlff.errors import KernelError
from omm_mlff.forces.making import make_force, make_parametric_force
from omm_mlff.forces.plugin import resolve_backend
from omm_mlff.forces.scripting import script
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials.base import build_system
from omm_mlff.potentials.registry import as_potential
from omm_mlff.potentials.student import StudentPotential, add_student
from omm_mlff.students.checkpoint import load_student
from omm_mlff.students.engine import build_engine
from omm_mlff.systems import load_system

pytestmark = pytest.mark.smoke

PROFILE = """
title = "the main job, short"
static_systems = ["water"]

[[run]]
system = "water"
length_ps = 0.1
n_replicas = 8
temperature_K = 300
"""


@pytest.fixture(params=["no GPU", "as if a GPU were here"])
def machine(request, monkeypatch):
    """A machine without a GPU, and one on which torch says that there is one."""
    gpu = request.param != "no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    return request.param


@pytest.fixture(params=["torchforce", "pythonforce"])
def backend(request):
    if request.param == "torchforce" and resolve_backend("auto") != "torchforce":
        pytest.skip("the plugin does not fit this torch, and is not here")
    return request.param


def test_a_student_is_validated(machine, tmp_path):
    profile = tmp_path / "short.toml"
    profile.write_text(PROFILE)
    found = validate("tiny", profile=profile, out=tmp_path / "out", seed=3)
    statuses = {finding.status for finding in found.judged.verdict.findings}
    assert "pass" in statuses
    assert found.exit_code in (0, 1, 3)
    drift = [row for row in found.measured.measurements if row.name == "nve.drift"]
    assert drift
    assert all(np.isfinite(row.value) for row in drift)


@pytest.mark.parametrize("tapped", [False, True])
@pytest.mark.parametrize("engine", ["compiled", "scripted"])
@pytest.mark.parametrize("name", ["water", "water-box:20"])
@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_every_engine_computes_in_every_wrapper(machine, backend, tapped, engine, name, platform):
    system = load_system(name)
    n_copies = 1 if system.periodic else 3
    student = load_student("ultra-tiny")
    try:
        built = build_engine(
            student,
            torch.from_numpy(system.species),
            periodic=system.periodic,
            n_copies=n_copies,
            engine=engine,
        )
    except KernelError as error:
        pytest.skip(str(error))
    tap = Tap(n_copies, system.n_atoms) if tapped else None
    force = make_force(built, periodic=system.periodic, tap=tap, backend=backend)
    openmm_system = openmm.System()
    for mass in np.tile(system.masses, n_copies):
        openmm_system.addParticle(float(mass))
    if system.periodic:
        openmm_system.setDefaultPeriodicBoxVectors(*system.box_vectors)
    openmm_system.addForce(force)
    chosen = openmm.Platform.getPlatformByName(platform)
    context = openmm.Context(openmm_system, openmm.VerletIntegrator(0.0005), chosen)
    frames = system.positions + np.random.default_rng(0).normal(
        scale=0.002, size=(n_copies, system.n_atoms, 3)
    )
    context.setPositions(frames.reshape(-1, 3))
    state = context.getState(energy=True, forces=True)
    energies, forces = StudentPotential(student).energies_and_forces(frames, system)
    assert state.getPotentialEnergy()._value == pytest.approx(energies.sum(), abs=0.05)
    got = state.getForces(asNumpy=True)._value.reshape(forces.shape)
    np.testing.assert_allclose(got, forces, atol=1e-3 * np.abs(forces).max())
    if tap is not None:
        np.testing.assert_allclose(tap.read()[0], energies, atol=0.05)
        tap.close()


@pytest.mark.parametrize("tapped", [False, True])
def test_a_force_with_parameters_computes(machine, backend, tapped):
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.engine = SpringEngine(triatomic())

        def forward(
            self,
            positions: torch.Tensor,
            box: torch.Tensor | None,
            parameters: list[torch.Tensor],
        ) -> tuple[torch.Tensor, torch.Tensor]:
            energies, forces = self.engine(positions, box)
            scale = parameters[0].to(positions.dtype)
            return scale * energies, scale * forces

    system = triatomic()
    tap = Tap(1, system.n_atoms) if tapped else None
    openmm_system = openmm.System()
    for mass in system.masses:
        openmm_system.addParticle(float(mass))
    openmm_system.addForce(
        make_parametric_force(
            script(Scaled()), parameters={"scale": 2.0}, periodic=False, tap=tap, backend=backend
        )
    )
    reference = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(openmm_system, openmm.VerletIntegrator(0.0005), reference)
    stretched = 1.02 * system.positions
    context.setPositions(stretched)
    energies, _ = SpringPotential().energies_and_forces(stretched[None], system)
    energy = context.getState(energy=True).getPotentialEnergy()._value
    assert energy == pytest.approx(2.0 * energies[0], rel=1e-9)


def test_a_student_is_added_by_hand_and_a_file_is_read(machine, backend):
    system = load_system("water")
    openmm_system = openmm.System()
    for mass in system.masses:
        openmm_system.addParticle(float(mass))
    add_student(openmm_system, system.topology, "tiny", backend=backend)
    if backend == "torchforce":
        foreign = as_potential(script(_Total()))
        build_system(foreign, triatomic())


class _Total(torch.nn.Module):
    """A module by the plugin's own convention."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = SpringEngine(triatomic())

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return self.engine(positions, None)[0].sum()
