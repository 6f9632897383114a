"""Argon and water in a box: the sound potential passes, each way to get a box wrong fails."""

from __future__ import annotations

import dataclasses

import numpy as np
import openmm
import pytest
from checks.fakes import FakeEvaluator, by_name
from springs import molecule, triatomic

from omm_mlff.checks import box
from omm_mlff.checks.base import Evidence
from omm_mlff.checks.box import CHECK, pressure_bar, scaled_by_molecule
from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.forces.built import Built
from omm_mlff.potentials.base import Capabilities
from omm_mlff.potentials.student import StudentPotential
from omm_mlff.schema import PotentialCard
from omm_mlff.students.checkpoint import student_names
from omm_mlff.systems import load_system
from omm_mlff.units import BOLTZMANN

SIDE = 2.2  # nm; 216 atoms at a reduced density of 0.8
EPSILON, SIGMA, CUTOFF = 3.5, 0.3405, 0.8  # at 300 K a liquid, as argon is at 85 K


def argon(side=SIDE, per_side=6):
    """A lattice of argon, a little disordered."""
    grid = np.stack(np.meshgrid(*[np.arange(per_side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    noise = np.random.default_rng(0).normal(size=grid.shape) * 0.01
    positions = (grid + 0.25) * side / per_side + noise
    system = molecule([18] * len(grid), positions, [], box_vectors=side * np.eye(3))
    return dataclasses.replace(system, name="argon")


class Argon:
    """Lennard-Jones by OpenMM, in a box; `fault` says what is wrong with it.

    `no-image` : distances are taken without the minimum image
    `old-box` : the minimum image of the box that it was made with
    `squeezed` : wants to be smaller, and is not a number when it is
    """

    spec = "argon"
    card = PotentialCard("argon", "tests", None, CUTOFF, "float64")

    def __init__(self, fault="") -> None:
        self.fault = fault

    def unsupported(self, system):
        return None

    def capabilities(self, system):
        return Capabilities(reads_box=True)

    def add_to(self, openmm_system, system, *, n_replicas=1, tap=None):
        if self.fault in ("no-image", "old-box"):
            openmm_system.addForce(self._by_hand(system))
            return Built("pythonforce")
        if self.fault == "squeezed":
            openmm_system.addForce(self._squeezed(system))
        force = openmm.NonbondedForce()
        force.setNonbondedMethod(force.CutoffPeriodic)
        force.setUseSwitchingFunction(True)
        force.setSwitchingDistance(0.9 * CUTOFF)
        force.setUseDispersionCorrection(False)
        for _ in range(system.n_atoms):
            force.addParticle(0.0, SIGMA, EPSILON)
        force.setCutoffDistance(CUTOFF)
        openmm_system.addForce(force)
        return Built("openmm")

    def _squeezed(self, system):
        made_with = np.linalg.det(system.box_vectors)

        def compute(state):
            ratio = state.getPeriodicBoxVolume()._value / made_with
            forces = np.zeros((system.n_atoms, 3))
            return (np.nan if ratio < 0.98 else 1.0e5 * ratio), forces + 0.0 * ratio

        force = openmm.PythonForce(compute)
        force.setUsesPeriodicBoundaryConditions(True)
        return force

    def _by_hand(self, system):
        made_with = np.diag(system.box_vectors)
        i, j = np.triu_indices(system.n_atoms, k=1)

        def compute(state):
            x = np.array(state.getPositions(asNumpy=True)._value)
            r = x[j] - x[i]
            if self.fault == "old-box":
                r -= np.round(r / made_with) * made_with
            d2 = np.maximum((r**2).sum(1), (0.5 * SIGMA) ** 2)
            inside = d2 < CUTOFF**2
            s6 = np.where(inside, (SIGMA**2 / d2) ** 3, 0.0)
            pull = (24.0 * EPSILON * (s6 - 2.0 * s6**2) / d2)[:, None] * r
            forces = np.zeros_like(x)
            np.add.at(forces, i, pull)
            np.add.at(forces, j, -pull)
            return float((4.0 * EPSILON * (s6**2 - s6)).sum()), forces

        force = openmm.PythonForce(compute)
        force.setUsesPeriodicBoundaryConditions(True)
        return force

    def energies_and_forces(self, positions, system):
        return None

    def reference_energy(self, system):
        return 0.0


class Nothing(Argon):
    """No force at all, in a box; of molecules it says as little as a TorchForce does."""

    def add_to(self, openmm_system, system, *, n_replicas=1, tap=None):
        force = openmm.CustomNonbondedForce("0")
        force.setNonbondedMethod(force.CutoffPeriodic)
        force.setCutoffDistance(0.2)
        for _ in range(system.n_atoms):
            force.addParticle([])
        openmm_system.addForce(force)
        return Built("openmm")


def measured(potential, system, **changes):
    with Evaluator(potential, system, "Reference") as evaluator:
        card = dataclasses.replace(potential.card, **changes)
        return by_name(CHECK.measure(Evidence(system, card, (), evaluator)))


def failed(found, dtype="float64", severity="limit"):
    """Names of the measurements that are beyond a bound."""
    return {
        row.measurement
        for row in CHECK.criteria
        if row.severity == severity
        and (not row.dtypes or dtype in row.dtypes)
        and found[row.measurement].value is not None
        and found[row.measurement].value > row.high
    }


def test_argon_by_openmm_passes() -> None:
    found = measured(Argon(), argon())
    assert failed(found) == set()
    assert all(row.value is not None for row in found.values())
    n_steps = box.ATOM_STEPS // argon().n_atoms
    assert found["box.npt_density_change"].n_samples == n_steps


def test_a_minimum_image_that_is_not_taken_shows_when_atoms_change_their_cell() -> None:
    found = measured(Argon("no-image"), argon(1.5, 4))
    assert failed(found, severity="reject") >= {"box.translation_energy", "box.translation_force"}
    assert "cell" in found["box.translation_energy"].cause


def test_a_box_that_is_remembered_shows_when_it_is_changed() -> None:
    found = measured(Argon("old-box"), argon(1.8, 5))
    assert failed(found, severity="reject") == {"box.resize_energy", "box.resize_force"}
    assert "made with that box" in found["box.resize_energy"].cause


def test_what_dies_at_constant_pressure_is_seen() -> None:
    found = measured(Argon("squeezed"), argon(1.8, 5))
    assert failed(found, severity="reject") >= {"box.npt_density_change"}
    assert np.isinf(found["box.npt_density_change"].value)
    assert "NPT run" in found["box.npt_density_change"].cause


def test_molecules_are_moved_as_wholes_by_the_barostat() -> None:
    """OpenMM's own notion of molecules in the Context of the run at constant pressure."""
    system = load_system("water-box:8")
    potential = Nothing()
    with Evaluator(potential, system, "Reference") as evaluator:
        evidence = Evidence(system, Argon.card, (), evaluator)
        found = box._npt_context(evidence).getMolecules()
    assert [list(atoms) for atoms in found] == [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(8)]


def test_the_box_of_the_evaluator_is_as_it_was() -> None:
    system = argon(1.8, 5)
    with Evaluator(Argon(), system, "Reference") as evaluator:
        before = evaluator.evaluate(system.positions[None])
        CHECK.measure(Evidence(system, Argon.card, (), evaluator))
        after = evaluator.evaluate(system.positions[None])
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])


def test_the_pressure_of_argon_is_that_of_its_virial() -> None:
    """Closed form: P = (N k T + sum r . f / 3) / V over pairs, f the switched pair force."""
    system = argon(1.8, 5)
    side = 1.8
    i, j = np.triu_indices(system.n_atoms, k=1)
    r = system.positions[j] - system.positions[i]
    r -= np.round(r / side) * side
    d = np.linalg.norm(r, axis=1)
    d = d[d < CUTOFF]

    def energy(d):
        start = 0.9 * CUTOFF
        x = np.clip((d - start) / (CUTOFF - start), 0.0, 1.0)
        switch = 1.0 - 10.0 * x**3 + 15.0 * x**4 - 6.0 * x**5
        s6 = (SIGMA / d) ** 6
        return 4.0 * EPSILON * (s6**2 - s6) * switch

    slope = (energy(d + 1e-6) - energy(d - 1e-6)) / 2e-6
    volume = side**3
    expected = system.n_atoms * BOLTZMANN * 300.0 / volume - (d * slope).sum() / (3.0 * volume)
    with Evaluator(Argon(), system, "Reference") as evaluator:
        found = pressure_bar(evaluator, system.positions, 300.0)
    assert found == pytest.approx(expected * 16.6053906717, rel=1e-3)


def test_molecules_keep_their_shape_when_a_box_is_scaled() -> None:
    system = load_system("water-box:8")
    scaled = scaled_by_molecule(system.positions, 1.1, system)
    before, after = (x.reshape(8, 3, 3) for x in (system.positions, scaled))
    np.testing.assert_allclose(
        after[:, 1:] - after[:, :1], before[:, 1:] - before[:, :1], atol=1e-12
    )
    masses = system.masses[:3]
    np.testing.assert_allclose(
        np.average(after, axis=1, weights=masses),
        1.1 * np.average(before, axis=1, weights=masses),
        atol=1e-12,
    )


def test_a_native_force_field_is_not_asked_to_tear_its_molecules() -> None:
    system = load_system("water-box:8")
    frames = system.positions[None]
    random = np.random.default_rng(1)
    for _, moved in box.images(frames, system, random, whole=True):
        a, b = (x.reshape(8, 3, 3) for x in (moved[0], frames[0]))
        np.testing.assert_allclose(a[:, 1:] - a[:, :1], b[:, 1:] - b[:, :1], atol=1e-9)


def test_a_molecule_in_vacuum_has_no_box() -> None:
    system = triatomic()
    found = CHECK.measure(Evidence(system, Argon.card, (), evaluator=FakeEvaluator(None, system)))
    assert len(found) == len(CHECK.declares)
    assert all("has no box" in row.not_applicable for row in found)


@pytest.mark.skipif("ultra-tiny" not in student_names(), reason="no shipped student")
def test_a_shipped_student_knows_its_box(monkeypatch) -> None:
    monkeypatch.setattr(box, "ATOM_STEPS", 0)  # the fewest steps at constant pressure
    monkeypatch.setattr(box, "MIN_STEPS", 4)
    potential = StudentPotential("ultra-tiny")
    found = measured(potential, load_system("water-box:64"))
    assert failed(found, potential.card.dtype) == set()
    assert all(row.value is not None for row in found.values())
