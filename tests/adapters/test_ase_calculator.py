"""A student in ASE: finite differences, a supercell, OpenMM, and ASE's own tests of calculators."""

from __future__ import annotations

import copy
import doctest
import pickle
import warnings

import numpy as np
import openmm
import pytest
import torch

from omm_mlff import load_potential, load_student, load_system
from omm_mlff.errors import InputError, UnknownNameError, UnsupportedSystemError
from omm_mlff.potentials.base import build_system
from omm_mlff.students.engine import BoxEngine
from omm_mlff.units import INVERSE_CM_PER_RADIAN_PER_PS

pytest.importorskip("ase")

from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS, FIRE, LBFGS
from ase.vibrations import Vibrations

import omm_mlff.adapters.ase_calculator as calculator_module
from omm_mlff.adapters.ase_calculator import StudentCalculator

EV, EV_PER_ANGSTROM = 96.48533212331, 964.8533212331  # CODATA 2018: kJ/mol, kJ/mol/nm


@pytest.fixture(scope="module")
def twin():
    """`tiny` with its network in float64: finite differences see no rounding."""
    student = load_student("tiny")
    student.network.double()
    return student


@pytest.fixture
def precise(twin):
    return StudentCalculator(twin)


def of_system(name):
    system = load_system(name)
    box = None if system.box_vectors is None else 10.0 * system.box_vectors
    return system, Atoms(system.species, 10.0 * system.positions, cell=box, pbc=box is not None)


def crystal(n=2, seed=0):
    """Methanol-sized contents in a skewed cell, smaller than the cutoff of 5 angstrom."""
    water = molecule("H2O")
    cell = np.array([[3.3, 0.0, 0.0], [0.5, 3.6, 0.0], [-0.4, 0.3, 3.9 * n / 2]])
    positions = [water.positions + np.array([0.0, 0.1, 0.2 + 3.9 / 2 * k]) for k in range(n)]
    atoms = Atoms("OHH" * n, np.concatenate(positions), cell=cell, pbc=True)
    atoms.rattle(0.05, seed=seed)
    return atoms


def strained(atoms, strain):
    moved = atoms.copy()
    moved.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return moved


def stress_by_strain(atoms, calculator, step=1e-5):
    """(1/V) dE/d(strain), Voigt, from five points along each symmetric strain."""
    found = np.empty(6)
    for k, (i, j) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):
        strain = np.zeros((3, 3))
        strain[i, j] += 0.5 * step
        strain[j, i] += 0.5 * step
        energies = [
            calculator.get_potential_energy(strained(atoms, n * strain)) for n in (-2, -1, 1, 2)
        ]
        found[k] = np.dot(energies, [1.0, -8.0, 8.0, -1.0]) / (12.0 * step)
    return found / atoms.get_volume()


@pytest.mark.parametrize("name", ["water", "alanine-dipeptide"])
def test_a_molecule_has_the_energy_and_forces_of_the_engine(name):
    system, atoms = of_system(name)
    energies, forces = load_potential("tiny").energies_and_forces(system.positions[None], system)
    atoms.calc = StudentCalculator("tiny", engine="scripted")
    assert atoms.get_potential_energy() == pytest.approx(energies[0] / EV, abs=1e-9)
    atoms.calc = StudentCalculator("tiny")
    per_atom = (atoms.get_potential_energy() - energies[0] / EV) / len(atoms)
    assert abs(per_atom) < 1e-5
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    # Float32 in the network: the conversions may move its input by one place.
    np.testing.assert_allclose(atoms.get_forces(), forces[0] / EV_PER_ANGSTROM, atol=1e-5)


def test_energy_and_forces_equal_the_engine_in_float64(twin, precise):
    system, atoms = of_system("water-box:20")
    engine = BoxEngine(twin, torch.from_numpy(system.species), True)
    energy, forces = engine(
        torch.from_numpy(system.positions), torch.from_numpy(system.box_vectors)
    )
    atoms.calc = precise
    assert atoms.get_potential_energy() == pytest.approx(float(energy) / EV, rel=1e-14)
    expected = forces.numpy() / EV_PER_ANGSTROM
    np.testing.assert_allclose(atoms.get_forces(), expected, rtol=0, atol=1e-12)


def test_stress_is_the_derivative_of_the_energy_by_strain_in_a_small_skewed_cell(precise):
    atoms = crystal()
    assert min(atoms.cell.lengths()) < 5.0
    stress = precise.get_stress(atoms)
    assert stress.shape == (6,)
    assert np.abs(stress).min() > 1e-4  # every component has something to say
    expected = stress_by_strain(atoms, precise)
    np.testing.assert_allclose(stress, expected, atol=1e-9 + 1e-6 * np.abs(stress).max())


def test_a_cell_smaller_than_the_cutoff_equals_its_supercell(precise):
    atoms = crystal()
    large = atoms.repeat((3, 3, 3))
    assert precise.get_potential_energy(large) == pytest.approx(
        27 * precise.get_potential_energy(atoms), rel=1e-13
    )
    np.testing.assert_allclose(precise.get_stress(large), precise.get_stress(atoms), atol=1e-12)
    forces = precise.get_forces(atoms)
    np.testing.assert_allclose(precise.get_forces(large)[: len(atoms)], forces, atol=1e-10)


def test_pressure_is_openmms_derivative_by_volume():
    system, atoms = of_system("water-box:20")
    pressure = -StudentCalculator("tiny").get_stress(atoms)[:3].mean()
    potential = load_potential("tiny").in_float64()
    context = openmm.Context(
        build_system(potential, system),
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatformByName("Reference"),
    )
    step, energies, volumes = 1e-4, [], []
    for scale in (1.0 - step, 1.0 + step):
        context.setPeriodicBoxVectors(*(scale * system.box_vectors))
        context.setPositions(scale * system.positions)
        energies.append(context.getState(energy=True).getPotentialEnergy()._value)
        volumes.append(np.linalg.det(10.0 * scale * system.box_vectors))
    slope = -(energies[1] - energies[0]) / EV / (volumes[1] - volumes[0])
    assert pressure == pytest.approx(slope, rel=2e-4)


def test_a_rotated_cell_has_the_rotated_stress(precise):
    atoms = crystal()
    turned = atoms.copy()
    turned.rotate(37, (1, 2, 3), rotate_cell=True)
    rotation = np.linalg.solve(atoms.cell.array, turned.cell.array)
    expected = rotation.T @ _full(precise.get_stress(atoms)) @ rotation
    np.testing.assert_allclose(_full(precise.get_stress(turned)), expected, atol=1e-12)


def _full(v):
    return np.array([[v[0], v[5], v[4]], [v[5], v[1], v[3]], [v[4], v[3], v[2]]])


@pytest.mark.parametrize("pbc", [(True, False, True), (False, False, True), (True, True, False)])
def test_what_repeats_in_some_directions_alone_is_served_but_for_stress(precise, pbc):
    atoms = crystal()
    atoms.pbc = pbc
    padded = atoms.copy()  # the oracle: periodic everywhere, with images out of sight
    for k in np.flatnonzero(~np.array(pbc)):
        normal = np.cross(atoms.cell[k - 1], atoms.cell[k - 2])
        padded.cell[k] = 60.0 * normal / np.linalg.norm(normal)
    if sum(pbc) == 1:
        for k in (0, 1):
            padded.cell[k] = np.cross(atoms.cell[2], np.eye(3)[1 - k])
            padded.cell[k] *= 60.0 / np.linalg.norm(padded.cell[k])
    padded.pbc = True
    for cell in (atoms.cell.array, np.where(np.array(pbc)[:, None], atoms.cell.array, 0.0)):
        atoms.cell = cell
        energy = precise.get_potential_energy(atoms)
        assert energy == pytest.approx(precise.get_potential_energy(padded), rel=1e-14)
        np.testing.assert_allclose(
            precise.get_forces(atoms), precise.get_forces(padded), atol=1e-11
        )
    with pytest.raises(PropertyNotImplementedError, match="three directions"):
        precise.get_stress(atoms)


def test_a_molecule_has_no_stress(precise):
    with pytest.raises(PropertyNotImplementedError, match="three directions"):
        precise.get_stress(molecule("H2O"))


def test_a_molecule_in_a_large_cell_is_that_molecule(precise):
    water = molecule("H2O")
    alone = precise.get_potential_energy(water)
    boxed = molecule("H2O", cell=[20, 20, 20], pbc=True)
    assert precise.get_potential_energy(boxed) == pytest.approx(alone, rel=1e-14)
    lone = Atoms("O", cell=[30, 30, 30], pbc=True)
    assert np.isfinite(precise.get_potential_energy(lone))
    assert not precise.get_stress(lone).any()


def test_no_answer_is_left_over_from_other_atoms(twin, precise):
    def fresh(atoms):
        return StudentCalculator(twin).get_potential_energy(atoms)

    water, methane = molecule("H2O"), molecule("CH4")
    swapped = Atoms("HOH", water.positions)
    grown = water + Atoms("H2", [[3.0, 0, 0], [3.0, 0, 0.75]])
    boxed = molecule("H2O", cell=[4, 4, 4], pbc=True)
    for atoms in (water, methane, swapped, water, grown, boxed, strained(boxed, 0.1 * np.eye(3))):
        assert precise.get_potential_energy(atoms) == pytest.approx(fresh(atoms), rel=1e-14)
        assert precise.get_forces(atoms).shape == (len(atoms), 3)
    water.calc = precise
    before = water.get_potential_energy()
    water.positions[0, 0] += 0.1
    assert water.get_potential_energy() != before
    water += Atoms("H", [[3.0, 0, 0]])
    assert water.get_forces().shape == (4, 3)
    with pytest.raises(UnsupportedSystemError):
        precise.get_potential_energy(Atoms("He2", [[0, 0, 0], [1, 0, 0]]))
    assert precise.results == {}
    precise.calculate(boxed)
    precise.calculate(molecule("CH4"))
    assert "stress" not in precise.results


def test_an_answer_is_computed_once_and_cannot_be_spoilt(precise, monkeypatch):
    boxed = crystal()
    boxed.calc = precise
    n_calls = 0
    evaluate = calculator_module.evaluate_cell

    def counted(*arguments):
        nonlocal n_calls
        n_calls += 1
        return evaluate(*arguments)

    monkeypatch.setattr(calculator_module, "evaluate_cell", counted)
    boxed.get_forces()[:] = 0.0
    boxed.get_potential_energy()
    boxed.get_stress()
    assert boxed.get_forces().any()
    assert n_calls == 1


def cluster(n=22):
    """More atoms than all pairs are taken of: its engine has a neighbour list."""
    water = molecule("H2O")
    positions = [
        water.positions + np.array([3 * (k % 3), 3 * (k // 3 % 3), 3 * (k // 9)]) for k in range(n)
    ]
    return Atoms("OHH" * n, np.concatenate(positions))


@pytest.mark.parametrize(
    "atoms", [molecule("H2O"), cluster(), crystal()], ids=["molecule", "cluster", "cell"]
)
def test_it_survives_pickling_and_copying_also_after_use(atoms):
    atoms = atoms.copy()
    atoms.calc = StudentCalculator("tiny")
    energy = atoms.get_potential_energy()
    for twin in (pickle.loads(pickle.dumps(atoms)), copy.deepcopy(atoms)):
        assert twin.calc is not atoms.calc
        assert twin.get_potential_energy() == energy
        twin.rattle(0.01)
        assert twin.get_potential_energy() != energy
        assert atoms.get_potential_energy() == energy


@pytest.mark.parametrize(
    ("atoms", "error", "complaint"),
    [
        (molecule("HCl"), UnsupportedSystemError, "tiny was never trained on Cl"),
        (Atoms("O"), UnsupportedSystemError, "needs two atoms or more, got 1: a single atom"),
        (Atoms(), UnsupportedSystemError, "needs two atoms or more, got 0"),
        (Atoms(pbc=True, cell=[5, 5, 5]), UnsupportedSystemError, "needs atoms, got none"),
        (Atoms("H2", [[0, 0, 0], [0, 0, np.nan]]), InputError, "wanted finite positions"),
        (Atoms("OH", [[0, 0, 0], [0, 0, 1]], charges=[-1, 0]), UnsupportedSystemError, "to -1"),
        (Atoms("OH", [[0, 0, 0], [0, 0, 1]], pbc=True), InputError, "3 independent cell vectors"),
        (
            Atoms(
                "OH", [[0, 0, 0], [0, 0, 1]], pbc=(1, 1, 0), cell=[[5, 0, 0], [5, 0, 0], [0] * 3]
            ),
            InputError,
            "2 independent cell vectors",
        ),
    ],
)
def test_what_it_cannot_serve_is_refused_in_one_line(atoms, error, complaint):
    with pytest.raises(error, match=complaint) as caught:
        StudentCalculator("tiny").get_forces(atoms)
    assert "\n" not in str(caught.value)


def test_what_makes_no_calculator_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean tiny"):
        StudentCalculator("tyny")
    with pytest.raises(InputError, match="has no parameter device"):
        StudentCalculator("tiny", device="cpu")
    with pytest.raises(InputError, match="cannot be changed"):
        StudentCalculator("tiny").set(student="original")


def test_its_example_runs():
    found = doctest.testmod(calculator_module)
    assert (found.failed, found.attempted) == (0, 4)


def test_water_relaxes_to_one_minimum_with_bfgs_and_fire(precise):
    ends = []
    for optimizer in (BFGS, FIRE):
        atoms = molecule("H2O")
        atoms.rattle(0.1, seed=1)
        atoms.calc = precise
        assert optimizer(atoms, logfile=None).run(fmax=1e-4, steps=300)
        ends.append(
            [atoms.get_distance(0, 1), atoms.get_angle(1, 0, 2), atoms.get_potential_energy()]
        )
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-5)
    assert ends[0][:2] == pytest.approx([0.96, 104.5], rel=0.02)


def test_a_constrained_atom_stays(precise):
    atoms = molecule("CH4")
    atoms.rattle(0.1, seed=1)
    atoms.set_constraint(FixAtoms([0, 1]))
    atoms.calc = precise
    start = atoms.positions.copy()
    assert BFGS(atoms, logfile=None).run(fmax=1e-3, steps=100)
    np.testing.assert_array_equal(atoms.positions[:2], start[:2])


def test_a_water_box_relaxes_together_with_its_cell():
    # `original`: the network of `tiny` gives way where a box of water shrinks.
    _, atoms = of_system("water-box:4")
    atoms.calc = StudentCalculator("original")
    start, volume = atoms.get_potential_energy(), atoms.get_volume()
    with LBFGS(FrechetCellFilter(atoms), logfile=None) as optimizer:
        assert optimizer.run(fmax=0.1, steps=100)
    assert atoms.get_potential_energy() < start - 1.0
    assert 0.9 * volume < atoms.get_volume() < 1.3 * volume
    virial = np.abs(atoms.get_stress()).max() * atoms.get_volume()
    assert virial / len(atoms) < 0.15  # the filter's own measure, beside fmax of 0.1
    bonds = atoms.get_all_distances(mic=True)[::3]  # of the oxygens
    assert ((bonds > 0.5) & (bonds < 1.1)).sum(1).tolist() == [2] * 4


def test_velocity_verlet_conserves_energy_by_the_square_of_the_timestep(precise):
    spread = []
    for timestep_fs in (0.5, 0.25):
        atoms = molecule("H2O")
        atoms.calc = precise
        spread_of_velocity = np.sqrt(600.0 * units.kB / atoms.get_masses())[:, None]
        atoms.set_velocities(np.random.default_rng(3).normal(size=(3, 3)) * spread_of_velocity)
        total = []
        with VelocityVerlet(atoms, timestep_fs * units.fs) as dynamics:
            dynamics.attach(lambda a=atoms, t=total: t.append(a.get_total_energy()))
            dynamics.run(round(100 / timestep_fs))
        spread.append(np.std(total))
        drift = np.polyfit(np.linspace(0.0, 0.1, len(total)), total, 1)[0] / len(atoms)
        assert abs(drift) < 1e-3  # eV/atom/ps: the bounded oscillation alone
    assert spread[0] / spread[1] == pytest.approx(4.0, rel=0.15)


def test_vibrations_are_those_of_the_engines_hessian(precise, tmp_path):
    """ASE's finite differences beside those of the engine's forces, masses OpenMM's."""
    system, atoms = of_system("water")
    atoms.calc = precise
    BFGS(atoms, logfile=None).run(fmax=1e-6, steps=200)
    atoms.set_masses(system.masses)
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=0.001, nfree=4)
    vibrations.run()
    found = vibrations.get_frequencies()[-3:].real

    potential = load_potential("tiny").in_float64()
    step, x = 1e-4, atoms.positions / 10.0
    moved = x + step * np.concatenate([np.eye(9), -np.eye(9)]).reshape(-1, 3, 3)
    _, forces = potential.energies_and_forces(moved, system)
    hessian = -(forces[:9] - forces[9:]).reshape(9, 9) / (2.0 * step)
    weights = np.repeat(system.masses, 3) ** -0.5
    squared = np.linalg.eigvalsh(0.5 * (hessian + hessian.T) * np.outer(weights, weights))
    expected = np.sqrt(squared[-3:]) * INVERSE_CM_PER_RADIAN_PER_PS
    np.testing.assert_allclose(found, expected, atol=0.5)


def test_a_trajectory_of_ase_keeps_energy_forces_and_stress(tmp_path):
    atoms = crystal()
    atoms.calc = StudentCalculator("tiny")
    stress, forces = atoms.get_stress(), atoms.get_forces()
    write(tmp_path / "cell.traj", atoms)
    again = read(tmp_path / "cell.traj")
    assert again.get_potential_energy() == atoms.get_potential_energy()
    np.testing.assert_array_equal(again.get_forces(), forces)
    np.testing.assert_array_equal(again.get_stress(), stress)


# ASE's own tests of calculators, which its wheels carry, run on a student: what they ask of EMT or
# of a program for density functionals is asked of it.


@pytest.fixture(scope="module")
def ase_tests(request):
    """Imports a module of ASE's test suite, whose marks this project's pytest does not know."""
    import importlib

    for mark in ("calculator", "calculator_lite", "optimize"):
        request.config.addinivalue_line("markers", f"{mark}: of ASE's own tests")

    def load(name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its suite and of the programs that it looks for
            return pytest.importorskip(f"ase.test.{name}") and importlib.import_module(
                f"ase.test.{name}"
            )

    return load


class Factory:
    """As the fixture of that name in ASE's suite: `calc()` makes a calculator."""

    name = "omm-mlff"

    def __init__(self, student):
        self.student = student

    def calc(self):
        return StudentCalculator(self.student)


def test_ase_trajectory_of_a_periodic_molecule(ase_tests, twin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ase_tests("calculator.test_traj").test_h2_traj(Factory(twin), None)


@pytest.mark.parametrize("test", ["test_fd", "test_analytical_forces", "test_analytical_stress"])
def test_ase_finite_differences(ase_tests, twin, monkeypatch, test):
    """The numerical forces and stress of ase.calculators.fd."""
    module = ase_tests("calculator.test_fd")
    monkeypatch.setattr(module, "EMT", Factory(twin).calc)
    from ase.calculators import fd

    def coarser(calculator, eps_disp=1e-4, eps_strain=1e-4):
        return fd.FiniteDifferenceCalculator(calculator, eps_disp, eps_strain)

    # An energy of -4000 eV has no digits left for ASE's steps of 1e-6.
    monkeypatch.setattr(module, "FiniteDifferenceCalculator", coarser)

    def close(actual, expected, rtol=1e-7):
        compare(actual, expected, rtol=rtol, atol=2e-6)

    compare = np.testing.assert_allclose
    monkeypatch.setattr(module.np.testing, "assert_allclose", close)
    getattr(module, test)(crystal())


@pytest.mark.parametrize("name", ["UnitCellFilter", "FrechetCellFilter"])
def test_ase_cell_filters(ase_tests, precise, name):
    module = ase_tests("filter.test_cellfilter")
    cell_filter = getattr(module, name)
    atoms = crystal()
    atoms.calc = precise
    module.test_get_and_set_positions(atoms.copy(), cell_filter)
    factor = {"UnitCellFilter": "cell_factor", "FrechetCellFilter": "exp_cell_factor"}[name]
    for value in (1, None):
        moved = atoms.copy()
        moved.calc = precise
        module.test_cellfilter_stress(moved, cell_filter, factor, value)


def test_ase_gradient_test_and_intensive_cell_gradient(ase_tests, precise):
    from ase.calculators.test import gradient_test

    module = ase_tests("filter.test_cellfilter")
    atoms = crystal()
    atoms.calc = precise
    forces, numerical = gradient_test(FrechetCellFilter(atoms))
    np.testing.assert_allclose(forces, numerical, atol=1e-4)
    module.test_intensive_cell_gradient(atoms)


def test_ase_molecular_dynamics(ase_tests, precise, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = ase_tests("md.test_md")
    atoms = molecule("H2O")
    atoms.calc = precise
    module.test_run_twice(VelocityVerlet, atoms)
    module.test_md(atoms, None)
