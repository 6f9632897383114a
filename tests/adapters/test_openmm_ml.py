"""Students through openmm-ml: whole systems, and mixed with a native force field."""

from __future__ import annotations

import copy
import math
import tomllib
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app, unit

pytest.importorskip("openmmml", reason="openmm-ml is not installed: pip install 'omm-mlff[ml]'")

from openmmml import MLPotential

from omm_mlff.adapters.openmm_ml import StudentFactory, potential_names, register
from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.errors import InputError, UnknownNameError, UnsupportedSystemError
from omm_mlff.forces.plugin import load_plugin
from omm_mlff.potentials.student import StudentPotential, add_student
from omm_mlff.systems import load_system

PEPTIDE = range(22)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    register()


@pytest.fixture(scope="module")
def dipeptide():
    return load_system("alanine-dipeptide")


@pytest.fixture(scope="module")
def solvated(dipeptide):
    """Alanine dipeptide in TIP3P water under amber14: topology, positions (nm), System."""
    field = app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
    model = app.Modeller(dipeptide.topology, dipeptide.positions)
    model.addSolvent(field, model="tip3p", boxSize=openmm.Vec3(1.8, 1.8, 1.8))
    amber = field.createSystem(
        model.topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=0.8 * unit.nanometer,
        constraints=app.HBonds,
    )
    positions = model.getPositions().value_in_unit(unit.nanometer)
    return model.topology, np.array(positions), amber


def context_of(openmm_system, platform="Reference"):
    return openmm.Context(
        openmm_system,
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatformByName(platform),
    )


def evaluated(openmm_system, positions, platform="Reference", groups=-1):
    """Energy in kJ/mol and forces in kJ/mol/nm, after the calls whose last bits differ."""
    context = context_of(openmm_system, platform)
    context.setPositions(positions)
    for _ in range(4):
        state = context.getState(energy=True, forces=True, groups=groups)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


def interaction(topology, positions, atoms):
    """What `add_student` alone gives for a subset of a topology."""
    alone = openmm.System()
    for _ in range(topology.getNumAtoms()):
        alone.addParticle(1.0)
    if topology.getPeriodicBoxVectors() is not None:
        alone.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
    add_student(alone, topology, "ultra-tiny", atoms=atoms)
    return evaluated(alone, positions)


def test_every_shipped_student_has_an_entry_point():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    points = project["project"]["entry-points"]["openmmml.potentials"]
    assert set(points) == set(potential_names())
    assert set(points.values()) == {f"{StudentFactory.__module__}:{StudentFactory.__qualname__}"}


@pytest.mark.parametrize("name", ["water", "alanine-dipeptide", "water-box:32"])
def test_a_system_of_openmm_ml_is_the_shipped_potential(name):
    system = load_system(name)
    made = MLPotential("omm-mlff-ultra-tiny").createSystem(system.topology)
    assert made.usesPeriodicBoundaryConditions() == system.periodic
    energy, forces = evaluated(made, system.positions)
    with Evaluator(StudentPotential("ultra-tiny"), system, "Reference") as evaluator:
        energies, shipped = evaluator.evaluate(system.positions[None])
    assert energy == pytest.approx(energies[0], rel=1e-9)
    np.testing.assert_allclose(forces, shipped[0], rtol=0, atol=1e-5 * np.abs(shipped).max())


def test_a_checkpoint_by_path_is_the_same_student():
    from omm_mlff.students.checkpoint import checkpoint_folder

    water = load_system("water")
    folder = str(checkpoint_folder("ultra-tiny"))
    by_path = MLPotential("omm-mlff", modelPath=folder).createSystem(water.topology)
    by_name = MLPotential("omm-mlff-ultra-tiny").createSystem(water.topology)
    np.testing.assert_allclose(
        evaluated(by_path, water.positions)[1], evaluated(by_name, water.positions)[1], atol=1e-2
    )


def test_what_cannot_be_meant_is_said_in_one_line():
    water = load_system("water").topology
    with pytest.raises(InputError, match="takes modelPath, the folder of a checkpoint"):
        MLPotential("omm-mlff")
    with pytest.raises(InputError, match="named without one: omm-mlff-original"):
        MLPotential("omm-mlff-tiny", modelPath="somewhere")
    with pytest.raises(UnknownNameError, match="unknown student 'no/such/folder'"):
        MLPotential("omm-mlff", modelPath="no/such/folder")
    with pytest.raises(UnsupportedSystemError, match=r"neutral molecules; .* charge -1"):
        MLPotential("omm-mlff-ultra-tiny").createSystem(water, charge=-1)


def test_the_student_adds_its_energy_to_amber_less_what_amber_says_of_the_peptide(
    solvated, dipeptide
):
    """In group 1 there is the student of the molecule alone, and nothing on the water."""
    topology, positions, amber = solvated
    mixed = MLPotential("omm-mlff-ultra-tiny").createMixedSystem(
        topology, amber, PEPTIDE, forceGroup=1
    )
    constrained = {mixed.getConstraintParameters(i)[0] for i in range(mixed.getNumConstraints())}
    assert constrained
    assert not constrained & set(PEPTIDE)
    energy, forces = evaluated(mixed, positions, groups={1})
    with Evaluator(StudentPotential("ultra-tiny"), dipeptide, "Reference") as evaluator:
        energies, alone = evaluator.evaluate(positions[None, :22])
    assert energy == pytest.approx(energies[0], rel=1e-9)
    np.testing.assert_allclose(forces[:22], alone[0], rtol=0, atol=1e-4 * np.abs(alone).max())
    assert not forces[22:].any()


def test_a_molecule_broken_by_the_box_has_the_same_energy(solvated):
    topology, positions, _ = solvated
    energy, forces = interaction(topology, positions, PEPTIDE)
    box = 1.8
    moved = positions + np.array([box - positions[:22, 0].mean(), 0.3, 0.0])
    broken = moved - box * np.floor(moved / box)  # every atom into the box, by itself
    assert np.ptp(broken[:22, 0]) > 0.9 * box > 1.5 * np.ptp(positions[:22, 0])
    energy_broken, forces_broken = interaction(topology, broken, PEPTIDE)
    assert energy_broken == pytest.approx(energy, abs=1e-2)
    np.testing.assert_allclose(forces_broken, forces, rtol=0, atol=1e-4 * np.abs(forces).max())


@pytest.mark.parametrize("interpolate", [False, True])
def test_forces_of_a_mixed_system_are_minus_the_gradient(solvated, interpolate):
    """Without a cutoff in amber: its own would jump by more than what is looked for."""
    topology, positions, _ = solvated
    field = app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
    amber = field.createSystem(topology, rigidWater=False)
    mixed = MLPotential("omm-mlff-ultra-tiny").createMixedSystem(
        topology, amber, PEPTIDE, interpolate=interpolate
    )
    context = context_of(mixed)
    if interpolate:
        context.setParameter("lambda_interpolate", 0.4)
    near = np.linalg.norm(positions[:, None] - positions[None, :22], axis=2).min(1) < 0.35
    rng = np.random.default_rng(3)
    ratios = []
    for _ in range(6):
        direction = np.where(near[:, None], rng.normal(size=positions.shape), 0.0)
        context.setPositions(positions)
        forces = context.getState(forces=True).getForces(asNumpy=True)._value
        step, slope = 2e-4, 0.0
        for k, c in ((-2, 1.0), (-1, -8.0), (1, 8.0), (2, -1.0)):
            context.setPositions(positions + k * step * direction)
            slope += c * context.getState(energy=True).getPotentialEnergy()._value
        slope /= 12 * step
        ratios.append([slope, -(forces * direction).sum()])
    slopes, projected = np.array(ratios).T
    error = np.sqrt(np.mean((slopes - projected) ** 2) / np.mean(projected**2))
    assert error < 2e-3


def test_interpolation_goes_from_amber_to_the_mixed_system(solvated):
    topology, positions, amber = solvated
    potential = MLPotential("omm-mlff-ultra-tiny")
    between = potential.createMixedSystem(topology, amber, PEPTIDE, interpolate=True)
    context = context_of(between)
    context.setPositions(positions)
    at = {}
    for scale in (0.0, 0.25, 1.0):
        context.setParameter("lambda_interpolate", scale)
        at[scale] = context.getState(energy=True).getPotentialEnergy()._value
    mixed = potential.createMixedSystem(topology, amber, PEPTIDE)
    amber_energy, _ = evaluated(amber, positions)
    mixed_energy, _ = evaluated(mixed, positions)
    assert mixed_energy < amber_energy - 1e5  # the student counts from free nuclei
    assert at[0.0] == pytest.approx(amber_energy, abs=1e-2)
    assert at[1.0] == pytest.approx(mixed_energy, abs=1e-2)
    assert at[0.25] == pytest.approx(0.75 * at[0.0] + 0.25 * at[1.0], abs=1e-2)


def test_a_student_in_a_python_force_outlives_copying_and_xml(solvated):
    topology, positions, amber = solvated
    mixed = MLPotential("omm-mlff-ultra-tiny").createMixedSystem(
        topology, amber, PEPTIDE, backend="pythonforce"
    )
    energy, forces = evaluated(mixed, positions)
    through_xml = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(mixed))
    for again in (copy.deepcopy(mixed), through_xml):
        energy_again, forces_again = evaluated(again, positions)
        assert energy_again == pytest.approx(energy, abs=1e-2)
        np.testing.assert_allclose(forces_again, forces, rtol=0, atol=1e-5 * np.abs(forces).max())


def test_a_torch_force_is_refused_where_it_would_be_copied(solvated):
    topology, _, amber = solvated
    load_plugin()
    with pytest.raises(InputError, match="interpolate=True copies the Force"):
        MLPotential("omm-mlff-ultra-tiny").createMixedSystem(
            topology, amber, PEPTIDE, interpolate=True, backend="torchforce"
        )


def test_an_element_outside_the_students_part_does_not_matter(dipeptide):
    """Argon beside a water; and the argon itself under the student is refused."""
    topology = app.Topology()
    water = topology.addResidue("HOH", topology.addChain())
    for symbol in ("O", "H", "H", "Ar"):
        topology.addAtom(symbol, app.Element.getBySymbol(symbol), water)
    native = openmm.System()
    for _ in range(4):
        native.addParticle(1.0)
    potential = MLPotential("omm-mlff-ultra-tiny")
    mixed = potential.createMixedSystem(topology, native, [0, 1, 2])
    assert mixed.getNumForces() == 1
    with pytest.raises(UnsupportedSystemError, match="never trained on Ar"):
        potential.createMixedSystem(topology, native, [0, 1, 3])


@pytest.mark.slow
def test_alanine_dipeptide_in_tip3p_water_is_stable_for_ten_picoseconds(solvated):
    topology, positions, amber = solvated
    mixed = MLPotential("omm-mlff-tiny").createMixedSystem(topology, amber, PEPTIDE)
    integrator = openmm.LangevinMiddleIntegrator(300, 2.0, 0.001)
    integrator.setRandomNumberSeed(7)
    cpu = openmm.Platform.getPlatformByName("CPU")
    context = openmm.Context(mixed, integrator, cpu, {"Threads": "1"})
    context.setPositions(positions)
    openmm.LocalEnergyMinimizer.minimize(context, 50.0, 200)
    context.setVelocitiesToTemperature(300, 7)
    bonds = [(a.index, b.index) for a, b in topology.bonds() if a.index in PEPTIDE]
    first, second = np.array(bonds).T
    rest = np.linalg.norm(positions[second] - positions[first], axis=1)
    masses = np.array([mixed.getParticleMass(i)._value for i in PEPTIDE])
    n_dof = 3 * mixed.getNumParticles() - mixed.getNumConstraints() - 3
    temperatures, of_peptide = [], []
    for _ in range(100):
        integrator.step(100)
        state = context.getState(energy=True, positions=True, velocities=True)
        assert math.isfinite(state.getPotentialEnergy()._value)
        x = state.getPositions(asNumpy=True)._value
        lengths = np.linalg.norm(x[second] - x[first], axis=1)
        assert np.abs(lengths / rest - 1).max() < 0.25
        k = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)
        temperatures.append(2 * state.getKineticEnergy()._value / (n_dof * k))
        v = state.getVelocities(asNumpy=True)._value[:22]
        of_peptide.append((masses[:, None] * v * v).sum() / (3 * 22 * k))
    assert state.getTime()._value == pytest.approx(10.0)
    # One in 23 of 300 K a frame; correlated for half a picosecond, over eight picoseconds: 4 K.
    assert np.mean(temperatures[20:]) == pytest.approx(300, abs=20)
    # The peptide's 66 degrees of freedom: one in 6 a frame, 13 K.
    assert np.mean(of_peptide[20:]) == pytest.approx(300, abs=52)
