"""Native force fields against OpenMM's own createSystem, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import logging
import shutil
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app, unit
from springs import NativeSpringPotential, molecule

from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.errors import CheckpointError, InputError, UnknownNameError, UnsupportedSystemError
from omm_mlff.potentials import committed, native
from omm_mlff.potentials.base import bare_system, build_system
from omm_mlff.potentials.registry import as_potential, load_potential
from omm_mlff.systems import load_system, system_names
from omm_mlff.units import ANGSTROM_PER_NM

WATERS = ("amber14", "amber19", "tip3p", "tip3pfb", "spce", "opc3")
CHARMM_WATER = "charmm36_2024/water.xml"
SERVED = [
    ("amber14", "alanine-dipeptide"),
    ("amber19", "alanine-dipeptide"),
    *((name, "water") for name in WATERS),
]
SAGE_SYSTEMS = sorted(set(system_names()) - {"water"})


def frames(system, n=3, spread=0.005, seed=0):
    rng = np.random.default_rng(seed)
    return system.positions + rng.normal(scale=spread, size=(n, system.n_atoms, 3))


def reference(openmm_system, positions):
    """Energies and forces of a System in a plain Context."""
    context = openmm.Context(
        openmm_system,
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatformByName("Reference"),
    )
    energies, forces = [], []
    for frame in positions:
        context.setPositions(frame)
        state = context.getState(energy=True, forces=True)
        energies.append(state.getPotentialEnergy()._value)
        forces.append(state.getForces(asNumpy=True)._value)
    return np.array(energies), np.array(forces)


def evaluated(potential, system, positions):
    with Evaluator(potential, system, "Reference") as evaluator:
        return evaluator.evaluate(positions)


def made_by_openmm(*files, system, **arguments):
    wanted = {"nonbondedMethod": app.NoCutoff, "constraints": None, "rigidWater": False}
    return app.ForceField(*files).createSystem(system.topology, **(wanted | arguments))


@pytest.fixture(scope="module")
def dipeptide():
    return load_system("alanine-dipeptide")


@pytest.fixture(scope="module")
def amber(dipeptide):
    return made_by_openmm("amber14-all.xml", system=dipeptide)


@pytest.fixture
def water():
    return load_system("water")


@pytest.mark.parametrize(("name", "molecule_name"), SERVED)
def test_a_short_name_is_what_openmm_makes_of_its_files(name, molecule_name):
    system = load_system(molecule_name)
    start = frames(system)
    plain = made_by_openmm(*native.FORCE_FIELDS[name], system=system)
    energies, forces = reference(plain, start)
    got = evaluated(load_potential(f"native:{name}"), system, start)
    np.testing.assert_allclose(got[0], energies, rtol=1e-12)
    np.testing.assert_allclose(got[1], forces, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("name", [*WATERS, CHARMM_WATER])
def test_water_is_flexible(name, water):
    made = build_system(load_potential(f"native:{name}"), water)
    assert made.getNumConstraints() == 0
    bend = np.array([[0.0, 0.0, 0.0], [0.0, 0.01, 0.0], [0.0, -0.01, 0.0]])
    stretch = np.zeros((3, 3))
    stretch[1] = 0.1 * (water.positions[1] - water.positions[0])
    for mode, least in ((stretch, 30.0), (bend, 3.0)):
        energies, _ = reference(made, water.positions + np.array([-mode, 0.0 * mode, mode]))
        assert energies[0] - 2.0 * energies[1] + energies[2] > least


def test_tip3p_of_one_molecule_is_its_closed_form(water):
    potential = load_potential("native:tip3p")
    (energy,), _ = evaluated(potential, water, water.positions[None])
    arms = water.positions[1:] - water.positions[0]
    lengths = np.linalg.norm(arms, axis=1)
    angle = np.arccos(arms[0] @ arms[1] / lengths.prod())
    # Jorgensen et al., J. Chem. Phys. 79, 926 (1983), with Amber's flexible terms
    bonds = 0.5 * 462750.4 * ((lengths - 0.09572) ** 2).sum()
    assert energy == pytest.approx(bonds + 0.5 * 836.8 * (angle - 1.82421813418) ** 2, rel=1e-9)


def test_a_periodic_box_has_particle_mesh_ewald_with_the_cutoff_asked_for():
    box = load_system("water-box:64")
    plain = made_by_openmm(
        "amber14/tip3p.xml",
        system=box,
        nonbondedMethod=app.PME,
        nonbondedCutoff=0.6 * unit.nanometer,
        switchDistance=0.5 * unit.nanometer,
        ewaldErrorTolerance=1e-5,
    )
    plain.setDefaultPeriodicBoxVectors(*box.box_vectors)
    potential = load_potential("native:tip3p?nonbondedCutoff_nm=0.6&switchDistance_nm=0.5")
    energies, forces = reference(plain, box.positions[None])
    got = evaluated(potential, box, box.positions[None])
    np.testing.assert_allclose(got[0], energies, rtol=1e-12)
    np.testing.assert_allclose(got[1], forces, rtol=1e-10, atol=1e-8)


def test_the_mesh_of_a_box_hardly_shows():
    box = load_system("water-box:64")
    shifts = np.random.default_rng(0).uniform(size=(12, 1, 3))
    shifted = box.positions + shifts
    drift = {}
    for tolerance in (1e-5, 5e-4):
        spec = f"native:tip3p?nonbondedCutoff_nm=0.6&ewaldErrorTolerance={tolerance}"
        drift[tolerance] = np.ptp(evaluated(load_potential(spec), box, shifted)[0])
    assert drift[1e-5] < 0.2 * drift[5e-4]
    default = load_potential("native:tip3p?nonbondedCutoff_nm=0.6")
    assert np.ptp(evaluated(default, box, shifted)[0]) == drift[1e-5]


def test_a_box_narrower_than_two_cutoffs_is_refused():
    reason = load_potential("native:tip3p").unsupported(load_system("water-box:64"))
    assert reason is not None
    assert "less than twice the cutoff of 0.9 nm" in reason
    assert "nonbondedCutoff_nm" in reason


def test_the_card_says_what_was_read(tmp_path):
    path = tmp_path / "mine.xml"
    shutil.copy(native._found("amber14/tip3p.xml"), path)
    card = load_potential(f"native:{path}").card
    assert (card.name, card.source, card.dtype) == ("mine", "native", "float64")
    assert card.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card.cutoff_nm is None
    assert card.n_parameters is None
    assert card.knows_atoms_by == "bond"
    assert load_potential(f"native:{path}?cutoff_nm=0.9&dtype=float32").card.cutoff_nm == 0.9


def test_the_hash_sees_what_a_file_includes(tmp_path):
    inner, outer = tmp_path / "inner.xml", tmp_path / "outer.xml"
    shutil.copy(native._found("amber14/tip3p.xml"), inner)
    outer.write_text('<ForceField><Include file="inner.xml"/></ForceField>')
    before = load_potential(f"native:{outer}").card.sha256
    inner.write_text(inner.read_text().replace("462750.4", "500000.0"))
    changed = load_potential(f"native:{outer}")
    assert changed.card.sha256 != before
    water = load_system("water")
    stiff = made_by_openmm(str(inner), system=water)
    np.testing.assert_allclose(
        evaluated(changed, water, frames(water))[0], reference(stiff, frames(water))[0]
    )


def test_files_and_short_names_are_joined_by_plus(dipeptide):
    one = load_potential("native:amber14")
    two = load_potential("native:amber14-all.xml+amber14/tip3p.xml")
    assert one.card.sha256 == two.card.sha256
    assert two.card.name == "amber14-all+tip3p"
    start = frames(dipeptide, 1)
    assert evaluated(one, dipeptide, start)[0] == evaluated(two, dipeptide, start)[0]


@pytest.mark.parametrize(
    ("spec", "name", "complaint"),
    [
        ("native:amber14", "alanine", r"residue ALN 1 \(C3H7NO2\).*not a neutral one.*native:sage"),
        ("native:amber14", "methane", r"no template for residue MTH 1 \(CH4\).*native:sage"),
        ("native:spce", "ethanol", r"C atoms, which are not supported"),
        ("native:amber14/opc.xml", "water", "virtual sites"),
        ("native:sage", "water", "native:tip3p"),
        ("native:sage", "water-box:64", "make_native.py"),
    ],
)
def test_a_molecule_without_parameters_is_refused_in_one_line(spec, name, complaint):
    potential, system = load_potential(spec), load_system(name)
    with pytest.raises(UnsupportedSystemError, match=complaint) as refusal:
        build_system(potential, system)
    assert "\n" not in str(refusal.value)
    assert "http" not in str(refusal.value)


def test_a_bond_that_nothing_holds_is_refused(tmp_path, water):
    path = tmp_path / "rigid.xml"
    text = native._found("amber14/tip3p.xml").read_text()
    path.write_text(text.replace('<Bond type1="tip3p-O" type2="tip3p-H"', "<!-- none -->", 1))
    path.write_text(path.read_text().replace(' length="0.09572" k="462750.4"/>', "", 1))
    reason = load_potential(f"native:{path}").unsupported(water)
    assert reason is not None
    assert "2 of 2 bonds have no term, the first O-H1 of HOH" in reason


@pytest.mark.parametrize(
    ("spec", "error", "complaint"),
    [
        ("native:amber1", UnknownNameError, "did you mean amber1[49]"),
        ("native:absent.xml", UnknownNameError, "unknown native force field 'absent.xml'"),
        ("native:amber14?constraints=HBonds", InputError, "unknown option 'constraints'"),
        ("native:amber14?nonbondedCutoff_nm=-1", InputError, "a positive number, got -1"),
        ("native:amber14?nonbondedCutoff_nm=True", InputError, "a positive number, got True"),
        ("native:tip3p?switchDistance_nm=1.0", InputError, "below the cutoff of 0.9 nm"),
        ("native:tip3p?nonbondedMethod=NoCutoff", InputError, "in vacuum there is no cutoff"),
        ("native:tip3p?useDispersionCorrection=2", InputError, "True or False, not 2"),
        ("native:tip3p?dtype=half", InputError, "float32 or float64, got 'half'"),
        ("native:sage?nonbondedMethod=PME", InputError, "unknown option 'nonbondedMethod'"),
        ("native:sage+amber14", InputError, "stands alone"),
    ],
)
def test_a_spec_that_cannot_be_meant_is_refused(spec, error, complaint):
    with pytest.raises(error, match=complaint):
        load_potential(spec)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("not xml", "cannot be read as XML"),
        ("<State/>", "got <State>"),
        ('<System type="System" version="1"/>', "cannot be made a System"),
        ('<ForceField><AtomTypes><Type name="a"/></AtomTypes></ForceField>', "read by OpenMM"),
    ],
)
def test_a_file_that_is_no_force_field_is_refused(tmp_path, content, complaint):
    path = tmp_path / "mine.xml"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=complaint) as refusal:
        load_potential(f"native:{path}")
    assert "\n" not in str(refusal.value)


# -- serialised Systems


def serialised(folder, system):
    path = folder / "system.xml"
    path.write_text(openmm.XmlSerializer.serialize(system))
    return f"native:{path}"


def test_a_serialised_system_is_the_system(tmp_path, dipeptide, amber):
    potential = load_potential(serialised(tmp_path, amber))
    assert potential.card.knows_atoms_by == "index"
    assert (
        potential.card.sha256 == hashlib.sha256((tmp_path / "system.xml").read_bytes()).hexdigest()
    )
    start = frames(dipeptide)
    energies, forces = reference(amber, start)
    got = evaluated(potential, dipeptide, start)
    np.testing.assert_array_equal(got[0], energies)
    np.testing.assert_array_equal(got[1], forces)


def test_thermostats_and_barostats_are_left_behind(dipeptide, amber):
    moved = copy.deepcopy(amber)
    moved.addForce(openmm.AndersenThermostat(300.0, 1.0))
    moved.addForce(openmm.MonteCarloBarostat(1.0, 300.0))
    kinds = {type(force) for force in build_system(as_potential(moved), dipeptide).getForces()}
    assert openmm.CMMotionRemover in {type(force) for force in amber.getForces()}
    assert openmm.HarmonicBondForce in kinds
    assert not kinds & {
        openmm.AndersenThermostat,
        openmm.MonteCarloBarostat,
        openmm.CMMotionRemover,
    }


def test_objects_are_taken_and_copied(dipeptide, amber):
    given = copy.deepcopy(amber)
    of_system = as_potential(given)
    of_force_field = as_potential(app.ForceField("amber14-all.xml"))
    given.removeForce(0)
    start = frames(dipeptide, 1)
    energies, _ = reference(amber, start)
    for potential in (of_system, of_force_field):
        np.testing.assert_allclose(evaluated(potential, dipeptide, start)[0], energies, rtol=1e-12)


def test_repartitioned_hydrogens_are_not_another_order(dipeptide):
    heavy = made_by_openmm("amber14-all.xml", system=dipeptide, hydrogenMass=4.0)
    assert as_potential(heavy).unsupported(dipeptide) is None
    assert build_system(as_potential(heavy), dipeptide).getParticleMass(0)._value < 1.1


def test_heavy_water_and_masses_that_tell_nothing_are_taken(water):
    for masses in ((15.999, 2.014, 2.014), (0.0, 0.0, 0.0), (0.0, 1.008, 1.008), (1.0, 1.0, 1.0)):
        system = made_by_openmm("tip3p.xml", system=water)
        for i, mass in enumerate(masses):
            system.setParticleMass(i, mass)
        assert as_potential(system).unsupported(water) is None


def test_another_order_of_atoms_is_refused(water):
    system = made_by_openmm("tip3p.xml", system=water)
    for i, mass in enumerate((1.008, 15.999, 1.008)):
        system.setParticleMass(i, mass)
    reason = as_potential(system).unsupported(water)
    assert reason is not None
    assert "atom 0 of water is O" in reason
    assert "another order of atoms" in reason


def test_two_heavy_atoms_exchanged_are_refused(dipeptide, amber):
    exchanged = copy.deepcopy(amber)
    carbon, oxygen = 4, 5
    exchanged.setParticleMass(carbon, amber.getParticleMass(oxygen))
    exchanged.setParticleMass(oxygen, amber.getParticleMass(carbon))
    assert "atom 4 of alanine-dipeptide is C" in str(as_potential(exchanged).unsupported(dipeptide))


def test_what_a_run_does_not_have_is_refused(water, dipeptide, amber):
    rigid = made_by_openmm("tip3p.xml", system=water, rigidWater=True)
    assert "3 constraints" in str(as_potential(rigid).unsupported(water))
    site = made_by_openmm("tip3p.xml", system=water)
    site.setParticleMass(2, 0.0)
    site.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    assert "virtual sites" in str(as_potential(site).unsupported(water))
    assert "22 particles, water 3 atoms" in str(as_potential(amber).unsupported(water))


def test_a_box_and_vacuum_are_not_exchanged(water):
    box = load_system("water-box:64")
    cutoff = 0.6 * unit.nanometer
    method = {"nonbondedMethod": app.PME, "nonbondedCutoff": cutoff}
    in_box = made_by_openmm("tip3p.xml", system=box, **method)
    in_vacuum = made_by_openmm("tip3p.xml", system=box)
    assert as_potential(in_box).unsupported(box) is None
    assert "know no box" in str(as_potential(in_vacuum).unsupported(box))
    lone = dataclasses.replace(box, box_vectors=None)
    assert "is in vacuum" in str(as_potential(in_box).unsupported(lone))
    small = dataclasses.replace(box, box_vectors=0.9 * box.box_vectors)
    assert "less than twice the cutoff" in str(as_potential(in_box).unsupported(small))


def test_forces_that_fail_at_the_structure_are_refused(water):
    system = made_by_openmm("tip3p.xml", system=water)
    torn = openmm.CustomBondForce("sqrt(-r)")
    torn.addBond(0, 1)
    system.addForce(torn)
    assert "not finite" in str(as_potential(system).unsupported(water))


# -- code that comes with a file


class Stretch:
    """A function that pickles, for a PythonForce."""

    def __call__(self, state):
        x = np.array(state.getPositions(asNumpy=True)._value)
        return float((x**2).sum()), -2.0 * x


def test_code_in_a_file_is_announced_before_it_is_loaded(tmp_path, water, caplog):
    system = bare_system(water)
    system.addForce(openmm.PythonForce(Stretch()))
    spec = serialised(tmp_path, system)
    scripted = tmp_path / "scripted.xml"
    scripted.write_text("<ForceField><Script>x = 1</Script></ForceField>")
    with caplog.at_level(logging.WARNING):
        potential = load_potential(spec)
        load_potential(f"native:{scripted}")
    assert "unpickles a Python function" in caplog.text
    assert "scripted.xml has Python scripts" in caplog.text
    assert potential.reference_energy(water) is None  # a function does not say
    energies, forces = evaluated(potential, water, water.positions[None])
    assert energies[0] == pytest.approx((water.positions**2).sum())
    np.testing.assert_allclose(forces[0], -2.0 * water.positions)


def test_a_system_with_a_torch_force_is_refused_before_it_is_read_or_copied(tmp_path, water):
    """OpenMM 8.6 and the plugin would end the process, which no `except` can catch."""
    pytest.importorskip("openmmtorch")
    system = build_system(load_potential("tiny"), water)
    with pytest.raises(InputError, match=r"object has a TorchForce.*path/model\.pt"):
        as_potential(system)
    with pytest.raises(CheckpointError, match=r"system\.xml has a TorchForce.*path/model\.pt"):
        load_potential(serialised(tmp_path, system))


def test_a_function_that_does_not_pickle_is_refused_in_one_line(water):
    system = bare_system(water)
    system.addForce(openmm.PythonForce(lambda state: (0.0, np.zeros((3, 3)))))
    with pytest.raises(InputError, match=r"cannot be copied .*could not be pickled") as refusal:
        as_potential(system)
    assert "\n" not in str(refusal.value)


def test_plain_files_are_not_announced(tmp_path, water):
    assert native.executes("native:amber14") is None
    assert native.executes("native:implicit/gbn2.xml") is None  # its scripts are OpenMM's own
    assert native.executes("native:sage") is None
    plain = made_by_openmm("tip3p.xml", system=water)
    assert native.executes(serialised(tmp_path, plain)) is None


# -- OpenFF Sage


@pytest.mark.parametrize("name", SAGE_SYSTEMS)
def test_committed_parameters_are_of_their_molecule(name):
    system = load_system(name)
    made = committed.read_parameters(name)
    masses = [made.getParticleMass(i)._value for i in range(made.getNumParticles())]
    np.testing.assert_allclose(masses, system.masses, atol=0.02)
    bonds = next(force for force in made.getForces() if isinstance(force, openmm.HarmonicBondForce))
    pairs = [tuple(sorted(bonds.getBondParameters(k)[:2])) for k in range(bonds.getNumBonds())]
    assert sorted(pairs) == [tuple(pair) for pair in system.bonds.tolist()]
    nonbonded = next(
        force for force in made.getForces() if isinstance(force, openmm.NonbondedForce)
    )
    charges = [nonbonded.getParticleParameters(i)[0]._value for i in range(system.n_atoms)]
    assert sum(charges) == pytest.approx(system.charge, abs=1e-6)
    assert made.getNumConstraints() == 0
    assert nonbonded.getNonbondedMethod() == openmm.NonbondedForce.NoCutoff
    card = committed.read_parameter_card(name)
    assert card.licence == "CC-BY-4.0"
    assert "AM1-BCC" in card.charges


@pytest.mark.parametrize("name", SAGE_SYSTEMS)
def test_sage_relaxes_near_the_reference_minimum(name):
    system = load_system(name)
    made = build_system(load_potential("native:sage"), system)
    context = openmm.Context(
        made, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(system.landmarks.minima[0])
    openmm.LocalEnergyMinimizer.minimize(context, 0.1)
    relaxed = context.getState(positions=True).getPositions(asNumpy=True)._value

    def lengths(positions):
        i, j = system.bonds.T
        return np.linalg.norm(positions[i] - positions[j], axis=1)

    shift = np.abs(lengths(relaxed) - lengths(system.landmarks.minima[0])) * ANGSTROM_PER_NM
    # Single bonds beside polar groups are off by up to 0.058 (alanine's CA-C), all others by less.
    assert shift.max() < (0.03 if name in ("methane", "ethanol", "benzene") else 0.06)
    assert np.sqrt((shift**2).mean()) < 0.025


def test_ethanol_has_the_charges_of_am1_bcc():
    """By the rules of Jakalian et al., J. Comput. Chem. 23, 1623 (2002): like atoms alike, O-H."""
    made = committed.read_parameters("ethanol")
    nonbonded = next(
        force for force in made.getForces() if isinstance(force, openmm.NonbondedForce)
    )
    charges = np.array([nonbonded.getParticleParameters(i)[0]._value for i in range(9)])
    species = load_system("ethanol").species
    assert charges[species == 8] == pytest.approx(-0.60, abs=0.01)
    assert np.ptp(charges[3:6]) == pytest.approx(0.0, abs=1e-9)  # the methyl's hydrogens
    assert charges.max() == pytest.approx(0.396, abs=0.005)  # the hydroxyl's


def test_sage_is_what_its_file_says(tmp_path):
    ethanol = load_system("ethanol")
    start = frames(ethanol)
    energies, forces = evaluated(load_potential("native:sage"), ethanol, start)
    plain = reference(committed.read_parameters("ethanol"), start)
    np.testing.assert_array_equal(energies, plain[0])
    np.testing.assert_array_equal(forces, plain[1])
    assert load_potential("native:openff-2.2.1").card == load_potential("native:sage").card


def test_changed_parameters_are_refused(tmp_path, monkeypatch):
    shutil.copytree(committed.data_folder("systems") / "methane", tmp_path / "methane")
    path = tmp_path / "methane" / f"{committed.SAGE}.xml"
    path.write_text(path.read_text().replace('k="', 'k="1', 1))
    monkeypatch.setattr(committed, "data_folder", lambda kind: tmp_path)
    with pytest.raises(CheckpointError, match="not those of their card"):
        committed.read_parameters("methane")


def test_sage_knows_its_molecules_by_their_atoms_in_order():
    ethanol = load_system("ethanol")
    potential = load_potential("native:sage")
    renamed = dataclasses.replace(ethanol, name="mine")
    assert potential.unsupported(renamed) is None
    order = [1, 0, *range(2, 9)]  # the carbons exchanged, their bonds not
    other = np.sort(np.argsort(order)[ethanol.bonds], axis=1)
    assert "order of atoms" in str(
        potential.unsupported(dataclasses.replace(renamed, bonds=other[np.lexsort(other.T[::-1])]))
    )
    assert "He2" in str(potential.unsupported(molecule([2, 2], [[0, 0, 0], [0.3, 0, 0]], [])))


def test_springs_from_a_file_are_the_springs(tmp_path):
    methane = load_system("methane")
    springs = bare_system(methane)
    NativeSpringPotential().add_to(springs, methane)
    got = evaluated(load_potential(serialised(tmp_path, springs)), methane, frames(methane))
    wanted = evaluated(NativeSpringPotential(), methane, frames(methane))
    np.testing.assert_array_equal(got[0], wanted[0])


def test_every_short_name_is_tried_here_but_charmm36_which_takes_minutes():
    assert {*WATERS, "charmm36"} == set(native.FORCE_FIELDS)
    assert CHARMM_WATER in native.FORCE_FIELDS["charmm36"]


def test_every_short_name_stands_for_force_fields_that_openmm_has():
    openmm_data = Path(app.__file__).parent / "data"
    for name, files in native.FORCE_FIELDS.items():
        read = native._read(f"native:{name}", name)
        assert {root.tag for _, root in read} == {"ForceField"}
        assert {openmm_data / file for file in files} <= {path for path, _ in read}


def test_what_a_force_field_makes_is_kept(dipeptide):
    potential = load_potential("native:amber14")
    assert potential.made(dipeptide) is potential.made(load_system("alanine-dipeptide"))
    assert potential.made(load_system("water")) is not potential.made(dipeptide)
