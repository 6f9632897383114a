"""The teacher as a potential: the same numbers as the teacher alone, in a batch and one by one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.dynamics.simulate import simulate
from omm_mlff.errors import UnknownNameError
from omm_mlff.potentials.base import Potential
from omm_mlff.potentials.registry import load_potential
from omm_mlff.potentials.teacher import TEACHER_SPEC, TeacherPotential
from omm_mlff.schema import RunSpec
from omm_mlff.systems import load_system
from omm_mlff.units import KJMOL_NM_PER_EV_ANGSTROM, KJMOL_PER_EV


@pytest.fixture(scope="module")
def potential(teacher) -> TeacherPotential:
    return load_potential(TEACHER_SPEC)


@pytest.fixture(scope="module")
def water():
    return load_system("water")


def test_it_is_a_potential_with_a_card(potential):
    assert isinstance(potential, Potential)
    assert potential.card.name == "ANI-1ccx"
    assert potential.card.species == (1, 6, 7, 8)
    assert potential.card.dtype == "float64"


def test_openmm_gives_what_the_teacher_gives(potential, teacher, water):
    frames = water.reference.positions[:40:5]
    energies, forces, _ = teacher.label(water.species, 10.0 * frames)
    with Evaluator(potential, water, "Reference") as evaluator:
        for batched in (True, False):
            found, force = evaluator.evaluate(frames, batched=batched)
            np.testing.assert_allclose(found, energies * KJMOL_PER_EV, atol=1e-8)
            np.testing.assert_allclose(force, forces * KJMOL_NM_PER_EV_ANGSTROM, atol=1e-8)


def test_it_has_no_error_against_its_own_labels(potential, water):
    energies, forces = potential.energies_and_forces(water.reference.positions[:8], water)
    np.testing.assert_allclose(forces, water.reference.forces[:8], atol=0.05)
    difference = energies - water.reference.energies[:8]
    np.testing.assert_allclose(difference, difference.mean(), atol=1e-3)


def test_its_reference_energy_leaves_the_interaction(potential, water):
    # Its self energies are fitted, not those of free atoms: what is left is of a molecule's size.
    bound = potential.energies_and_forces(water.positions[None], water)[0][0]
    assert bound < -2.0e5
    assert abs(bound - potential.reference_energy(water)) < 1.0e3


def test_forces_are_minus_the_gradient(potential, water):
    frame = water.reference.positions[0]
    direction = np.random.default_rng(3).normal(size=frame.shape)
    step = 1e-5
    moved = frame + step * np.array([-2, -1, 1, 2])[:, None, None] * direction
    energies, _ = potential.energies_and_forces(moved, water)
    slope = energies @ np.array([1.0, -8.0, 8.0, -1.0]) / (12.0 * step)
    _, forces = potential.energies_and_forces(frame[None], water)
    # The curvature of its activations steps, so the stencil is good to the first power of its step.
    size = np.linalg.norm(forces) * np.linalg.norm(direction)
    assert slope == pytest.approx(-(forces[0] * direction).sum(), abs=1e-4 * size)


def test_replicas_run_side_by_side_through_the_tap(potential, water, tmp_path):
    spec = RunSpec(TEACHER_SPEC, "water", 0.01, 300.0, 3, seed=5, platform="Reference")
    run = simulate(spec, potential, water, tmp_path / "run")
    assert run.n_replicas == 3
    assert run.provenance.recording
    first = run.replica(0)
    total = first.potential_energy + first.kinetic_energy
    assert np.ptp(total) < 3.0  # kJ/mol; the kinetic energy is 12
    again, _ = potential.energies_and_forces(first.positions[5:6], water)
    assert first.potential_energy[5] == pytest.approx(again[0], abs=1e-8)


def test_what_it_was_not_made_for_is_refused(potential, water):
    ion = dataclasses.replace(water, charge=-1)
    assert "charge -1" in potential.unsupported(ion)
    argon = dataclasses.replace(water, species=np.array([18, 1, 1]))
    assert "does not know Ar" in potential.unsupported(argon)
    box = dataclasses.replace(water, box_vectors=3.0 * np.eye(3))
    assert "vacuum" in potential.unsupported(box)


def test_another_teacher_is_met_with_the_name_of_this_one():
    with pytest.raises(UnknownNameError, match="did you mean teacher:ANI-1ccx"):
        load_potential("teacher:ANI-2x")
