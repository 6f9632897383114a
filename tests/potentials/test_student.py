"""Students as potentials, and added to a System by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import openmm
import pytest
from openmm import app
from springs import molecule

from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.errors import InputError, UnsupportedSystemError
from omm_mlff.potentials.registry import as_potential, load_potential
from omm_mlff.potentials.student import StudentPotential, add_student
from omm_mlff.students.checkpoint import load_student
from omm_mlff.systems import load_system


def test_the_card_says_what_the_checkpoint_says():
    card = StudentPotential("tiny").card
    assert card.name == "tiny"
    assert card.species == (1, 6, 7, 8)
    assert card.cutoff_nm == pytest.approx(0.5)
    assert card.n_parameters == 76_993
    assert len(card.sha256) == 64


def test_a_charged_molecule_is_refused():
    ion = dataclasses.replace(load_system("water"), charge=1)
    assert "charge +1" in StudentPotential("tiny").unsupported(ion)


def test_a_species_that_was_never_seen_is_named():
    sulphide = molecule([16, 1, 1], [[0, 0, 0], [0.13, 0, 0], [0, 0.13, 0]], [[0, 1], [0, 2]])
    reason = StudentPotential("tiny").unsupported(sulphide)
    assert reason == "it was never trained on S (knows H, C, N, O)"


def test_a_single_atom_is_refused():
    assert "single atom" in StudentPotential("tiny").unsupported(molecule([1], [[0, 0, 0]], []))


def test_a_student_added_by_hand_gives_the_same_forces():
    system = load_system("ethanol")
    by_hand = openmm.System()
    for mass in system.masses:
        by_hand.addParticle(float(mass))
    force = add_student(by_hand, system.topology, "tiny")
    assert by_hand.getNumForces() == 1
    assert force.usesPeriodicBoundaryConditions() is False
    context = openmm.Context(
        by_hand, openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(system.positions)
    for _ in range(3):
        state = context.getState(energy=True, forces=True)
    with Evaluator(StudentPotential("tiny"), system, "Reference") as evaluator:
        energies, forces = evaluator.evaluate(system.positions[None])
    assert state.getPotentialEnergy()._value == pytest.approx(energies[0], abs=1e-3)
    np.testing.assert_allclose(
        state.getForces(asNumpy=True)._value, forces[0], atol=1e-4 * np.abs(forces).max()
    )


def test_a_student_refuses_a_system_that_does_not_fit_its_topology():
    system = load_system("water")
    with pytest.raises(UnsupportedSystemError, match="0 particles, the topology 3 atoms"):
        add_student(openmm.System(), system.topology, "tiny")


def energy_of(openmm_system, positions):
    context = openmm.Context(
        openmm_system,
        openmm.VerletIntegrator(0.0005),
        openmm.Platform.getPlatformByName("Reference"),
    )
    context.setPositions(positions)
    return context.getState(energy=True).getPotentialEnergy()._value


def with_particles(system):
    openmm_system = openmm.System()
    for mass in system.masses:
        openmm_system.addParticle(float(mass))
    return openmm_system


def test_a_system_without_a_box_of_its_own_gets_the_topologys():
    """OpenMM begins every System with a box of 2 nm, in which a bigger one overlaps itself."""
    box = load_system("water-box:64")
    by_hand = with_particles(box)
    add_student(by_hand, box.topology, "ultra-tiny")
    np.testing.assert_allclose(
        [list(row._value) for row in by_hand.getDefaultPeriodicBoxVectors()], box.box_vectors
    )
    with Evaluator(StudentPotential("ultra-tiny"), box, "Reference") as evaluator:
        energies, _ = evaluator.evaluate(box.positions[None])
    assert energy_of(by_hand, box.positions) == pytest.approx(energies[0], abs=0.05)


def test_a_system_with_another_box_than_the_topologys_is_refused():
    box = load_system("water-box:64")
    by_hand = with_particles(box)
    by_hand.setDefaultPeriodicBoxVectors(*(3.0 * np.eye(3)))
    with pytest.raises(InputError, match=r"box has edges of 3 3 3 nm, the topology's of 1\.243"):
        add_student(by_hand, box.topology, "ultra-tiny")


@pytest.mark.parametrize("backend", ["torchforce", "pythonforce"])
def test_whatever_is_a_student_is_taken(backend, tmp_path):
    from omm_mlff.students.checkpoint import checkpoint_folder

    water = load_system("water")
    folder = checkpoint_folder("ultra-tiny")
    given = ["ultra-tiny", folder, str(folder), load_student("ultra-tiny")]
    found = []
    for student in [*given, StudentPotential("ultra-tiny")]:
        by_hand = with_particles(water)
        add_student(by_hand, water.topology, student, backend=backend)
        found.append(energy_of(by_hand, water.positions))
    assert found == [found[0]] * 5


def test_a_system_with_a_loaded_student_in_a_pythonforce_can_be_copied():
    import copy

    water = load_system("water")
    by_hand = with_particles(water)
    add_student(by_hand, water.topology, load_student("ultra-tiny"), backend="pythonforce")
    again = copy.deepcopy(by_hand)
    assert energy_of(again, water.positions) == energy_of(by_hand, water.positions)


def test_what_is_no_student_is_refused_with_what_would_be_one():
    water = load_system("water")
    with pytest.raises(InputError, match=r"wanted a student.*got a int"):
        add_student(with_particles(water), water.topology, 5)


def test_a_student_refuses_an_element_by_hand_too():
    topology = app.Topology()
    residue = topology.addResidue("X", topology.addChain())
    openmm_system = openmm.System()
    for _ in range(2):
        topology.addAtom("CL", app.element.chlorine, residue)
        openmm_system.addParticle(35.0)
    with pytest.raises(UnsupportedSystemError, match="never trained on Cl"):
        add_student(openmm_system, topology, "tiny")


def test_a_water_box_is_served_with_a_neighbour_list():
    """A box against its own periodic image, moved by a lattice vector: nothing changes."""
    box = load_system("water-box:32")
    with Evaluator(StudentPotential("ultra-tiny"), box, "Reference") as evaluator:
        energies, forces = evaluator.evaluate(
            np.stack([box.positions, box.positions + box.box_vectors[1]])
        )
    assert energies[0] == pytest.approx(energies[1], rel=1e-7)
    np.testing.assert_allclose(forces[0], forces[1], atol=1e-3 * np.abs(forces[0]).max())
    assert np.abs(forces[0].sum(0)).max() < 1e-3 * np.abs(forces[0]).max()


def test_the_float64_twin_has_the_same_weights_and_differs_by_rounding():
    system = load_system("water")
    potential = StudentPotential("ultra-tiny")
    twin = potential.capabilities(system).float64_twin()
    assert (potential.card.dtype, twin.card.dtype) == ("float32", "float64")
    assert twin.card.sha256 == potential.card.sha256
    for name, weight in potential.student.state_dict().items():
        assert twin.student.state_dict()[name].equal(weight.double()), name
    frames = system.reference.positions[:4]
    energies, forces = potential.energies_and_forces(frames, system)
    exact_energies, exact_forces = twin.energies_and_forces(frames, system)
    assert 0.0 < np.abs(energies - exact_energies).max() < 1e-3
    error = np.sqrt(((forces - exact_forces) ** 2).mean() / (exact_forces**2).mean())
    assert 1e-8 < error < 1e-5


def test_making_a_twin_leaves_the_student_as_it_was_and_a_twin_has_none():
    potential = StudentPotential("ultra-tiny")
    water = load_system("water")
    twin = potential.capabilities(water).float64_twin()
    assert str(potential.student.dtype) == "torch.float32"
    assert twin.capabilities(water).float64_twin is None


def energy_and_forces(openmm_system, positions):
    context = openmm.Context(
        openmm_system,
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatformByName("Reference"),
    )
    context.setPositions(positions)
    for _ in range(4):
        state = context.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


def particles(n_atoms):
    openmm_system = openmm.System()
    for _ in range(n_atoms):
        openmm_system.addParticle(1.0)
    return openmm_system


@pytest.mark.parametrize("backend", ["torchforce", "pythonforce"])
def test_a_student_on_some_atoms_leaves_the_others_alone(backend):
    """Two waters, the second one's atoms in another order: as the second one by itself."""
    water = load_system("water")
    second = [5, 3, 4]  # O, H, H as the water has them
    topology = app.Topology()
    residue = topology.addResidue("HOH", topology.addChain())
    for symbol in ("O", "H", "H", "H", "H", "O"):
        topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
    positions = np.zeros((6, 3))
    positions[:3] = water.positions + 0.2
    positions[second] = 1.02 * water.positions
    both = particles(6)
    force = add_student(both, topology, "ultra-tiny", atoms=second, force_group=3, backend=backend)
    assert force.getForceGroup() == 3
    energy, forces = energy_and_forces(both, positions)
    energies, alone = StudentPotential("ultra-tiny").energies_and_forces(
        1.02 * water.positions[None], water
    )
    assert energy == pytest.approx(energies[0], abs=1e-3)
    np.testing.assert_allclose(forces[second], alone[0], atol=1e-4 * np.abs(alone).max())
    assert not forces[:3].any()


@pytest.mark.parametrize(
    ("atoms", "complaint"),
    [
        ([0, 1, 3], r"atom 3 is none of the topology's \(0 to 2\)"),
        ([-1, 0], "atom -1 is none"),
        ([0, 1, 0], "atom 0 comes twice"),
        ([0.5, 1], "wanted indices"),
        ([], "0 of 3 atoms; a student needs two or more"),
        ([1], "1 of 3 atoms"),
    ],
)
def test_atoms_that_cannot_be_meant_are_refused(atoms, complaint):
    water = load_system("water")
    with pytest.raises((InputError, UnsupportedSystemError), match=complaint):
        add_student(particles(3), water.topology, "ultra-tiny", atoms=atoms)


def test_a_student_from_a_script_is_the_student_that_was_loaded() -> None:
    loaded, water = load_potential("ultra-tiny"), load_system("water")
    taken = as_potential(load_student("ultra-tiny"))
    assert isinstance(taken, StudentPotential)
    assert taken.spec == "ultra-tiny (object)"
    assert taken.card.sha256 not in (None, loaded.card.sha256)  # of its numbers, not of a file
    assert taken.card == dataclasses.replace(
        loaded.card, sha256=taken.card.sha256, training_domain={}
    )
    energies, forces = taken.energies_and_forces(water.positions[None], water)
    expected = loaded.energies_and_forces(water.positions[None], water)
    np.testing.assert_array_equal(energies, expected[0])
    np.testing.assert_array_equal(forces, expected[1])


def test_options_of_a_spec_are_kept_and_others_refused():
    for spec in ("tiny?engine=scripted", "tiny?cuda_graphs=True", "tiny?engine=compiled"):
        assert load_potential(spec).spec == spec
    assert load_potential("tiny?engine=auto").spec == "tiny"
    with pytest.raises(InputError, match="unknown engine 'fast'; known: auto, scripted, compiled"):
        load_potential("tiny?engine=fast")
    with pytest.raises(InputError, match="options are engine and cuda_graphs, got 'speed'"):
        load_potential("tiny?speed=2")
    with pytest.raises(InputError, match="wanted cuda_graphs auto, True or False, got 1"):
        load_potential("tiny?cuda_graphs=1")
