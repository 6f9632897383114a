"""ASE calculators as potentials: named in a spec, or handed over by a script."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import openmm
import pytest
from springs import molecule

from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.errors import InputError, MissingPackageError
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials import ase as source
from omm_mlff.potentials.base import Potential, build_system
from omm_mlff.potentials.registry import as_potential, load_potential
from omm_mlff.systems import load_system

pytest.importorskip("ase")

from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

EMT_SPEC = "ase:ase.calculators.emt:EMT?dtype=float64"
EV, EV_PER_ANGSTROM = 96.48533212331, 964.8533212331  # CODATA 2018: kJ/mol, kJ/mol/nm

FACTORIES = """
import collections

from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

CALLS = collections.Counter()
NUMBER = 3
ready = EMT()


def lj(sigma, epsilon=0.01):
    return LennardJones(sigma=sigma, epsilon=epsilon, rc=10.0)


def broken(path):
    raise OSError(f"cannot read {path}")


def quits():
    raise SystemExit(1)


def nothing():
    return None


class Models:
    @staticmethod
    def small():
        return EMT()
"""


class Spring(Calculator):
    """E = 2 (d - 1)^2 between the first two atoms; `faults` replace what it gives."""

    implemented_properties = ("energy", "forces")

    def __init__(self, **faults):
        super().__init__()
        self.faults = faults
        self.n_calls = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.n_calls += 1
        r = atoms.positions[1] - atoms.positions[0]
        d = np.linalg.norm(r)
        forces = np.zeros((len(atoms), 3))
        forces[0] = 4.0 * (d - 1.0) * r / d
        forces[1] = -forces[0]
        self.results = {"energy": 2.0 * (d - 1.0) ** 2, "forces": forces, **self.faults}


class Raising(Spring):
    """Does not converge where the first bond is longer than 2 angstrom."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        if atoms.get_distance(0, 1) > 2.0:
            raise RuntimeError("SCF not converged\nin 250 cycles")


@pytest.fixture(scope="module")
def methane():
    return load_system("methane")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_factories.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_factories", None)


def frames(system, n=3, spread=0.004):
    rng = np.random.default_rng(0)
    return system.positions + rng.normal(scale=spread, size=(n, system.n_atoms, 3))


def pair(d_nm=0.12, charge=0):
    return dataclasses.replace(molecule([8, 1], [[0, 0, 0], [d_nm, 0, 0]], [(0, 1)]), charge=charge)


def test_openmm_gets_what_the_calculator_gives_in_its_units(methane):
    start = frames(methane)
    with Evaluator(load_potential(EMT_SPEC), methane, "Reference") as evaluator:
        found = [evaluator.evaluate(start, batched=batched) for batched in (True, False)]
    for i, frame in enumerate(start):
        atoms = Atoms(methane.species, 10.0 * frame, calculator=EMT())
        for energies, forces in found:
            assert energies[i] == pytest.approx(EV * atoms.get_potential_energy(), rel=1e-12)
            expected = EV_PER_ANGSTROM * atoms.get_forces()
            np.testing.assert_allclose(forces[i], expected, rtol=1e-10, atol=1e-8)


def test_gfn2_through_ase_is_gfn2(methane):
    pytest.importorskip("tblite")
    from omm_mlff.teachers.xtb import xtb_labels

    spec = "ase:tblite.ase:TBLite?method=GFN2-xTB&verbosity=0&accuracy=0.001"
    start = frames(methane)
    potential = load_potential(spec)
    assert potential.card.name == "TBLite-GFN2-xTB"
    energies, forces = potential.energies_and_forces(start, methane)
    expected, slopes = xtb_labels(methane.species, 10.0 * start)
    np.testing.assert_allclose(energies, EV * expected, atol=1e-3)  # ASE's own hartree is of 2014
    np.testing.assert_allclose(forces, EV_PER_ANGSTROM * slopes, atol=2e-4 * np.abs(forces).max())


@pytest.mark.filterwarnings("ignore:Creating a tensor from a list:UserWarning")  # torchani's own
def test_the_teacher_through_ase_is_the_teacher(teacher, methane):
    spec = "ase:omm_mlff.teachers.calculator:ani1ccx?dtype=float64&cutoff_nm=0.52"
    start = frames(methane)
    potential = load_potential(spec)
    assert (potential.card.dtype, potential.card.cutoff_nm) == ("float64", 0.52)
    energies, forces = potential.energies_and_forces(start, methane)
    expected, slopes, _ = teacher.label(methane.species, 10.0 * start)
    np.testing.assert_allclose(energies, EV * expected, rtol=2e-8)  # two adjustments' hartree
    np.testing.assert_allclose(forces, EV_PER_ANGSTROM * slopes, rtol=2e-8, atol=2e-5)


def test_a_periodic_system_comes_with_cell_and_pbc():
    rng = np.random.default_rng(2)
    corners = np.stack(np.meshgrid(*[[0.0, 0.4, 0.8]] * 3), -1).reshape(-1, 3)
    box = np.array([[1.2, 0, 0], [0.1, 1.2, 0], [-0.2, 0.1, 1.2]])
    argon = molecule([18] * 27, corners + rng.normal(scale=0.01, size=(27, 3)), [], box)
    calculator = LennardJones(sigma=3.4, epsilon=0.01, rc=5.0)
    potential = as_potential(LennardJones(sigma=3.4, epsilon=0.01, rc=5.0))
    assert potential.capabilities(argon).max_replicas == 1
    stretched = 1.02 * box
    with Evaluator(potential, argon, "Reference") as evaluator:
        for vectors in (box, stretched):
            energies, forces = evaluator.evaluate(argon.positions[None], vectors)
            atoms = Atoms(argon.species, 10 * argon.positions, cell=10 * vectors, pbc=True)
            atoms.calc = calculator
            assert energies[0] == pytest.approx(EV * atoms.get_potential_energy(), rel=1e-10)
            np.testing.assert_allclose(forces[0], EV_PER_ANGSTROM * atoms.get_forces(), atol=1e-8)


def test_the_free_energy_is_taken_where_there_is_one():
    class Smeared(Spring):
        implemented_properties = ("energy", "free_energy", "forces")

    system = pair()
    plain, _ = as_potential(Spring()).energies_and_forces(system.positions[None], system)
    smeared = as_potential(Smeared(energy=0.0, free_energy=-1.0))
    free, _ = smeared.energies_and_forces(system.positions[None], system)
    assert plain[0] == pytest.approx(EV * 2.0 * 0.2**2)
    assert free[0] == pytest.approx(-EV)


def test_a_structure_that_comes_again_is_computed_again():
    calculator, system = Spring(), pair()
    potential = as_potential(calculator)
    twice = np.stack([system.positions] * 2)
    potential.energies_and_forces(twice, system)
    assert calculator.n_calls == 2


def test_a_calculator_that_keeps_the_atoms_it_was_given_gets_no_stale_ones():
    class Keeping(Spring):
        def calculate(self, atoms=None, properties=("energy",), system_changes=()):
            super().calculate(atoms, properties, system_changes)
            self.atoms = atoms

    short, long = pair(0.12), pair(0.15)
    potential = as_potential(Keeping())
    both = np.stack([short.positions, long.positions])
    energies, _ = potential.energies_and_forces(both, short)
    np.testing.assert_allclose(energies, EV * 2.0 * np.array([0.2, 0.5]) ** 2, rtol=1e-12)


def test_a_copy_that_raises_is_named_and_the_others_go_on():
    system = pair()
    potential = as_potential(Raising())
    tap = Tap(2, 2)
    context = openmm.Context(
        build_system(potential, system, n_replicas=2, tap=tap),
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatformByName("Reference"),
    )
    context.setPositions(np.concatenate([pair(0.3).positions, system.positions]))
    context.getState(energy=True)
    energies, _ = tap.read()
    assert np.isnan(energies[0])
    assert energies[1] == pytest.approx(EV * 2.0 * 0.2**2)
    assert tap.raised == {0: "RuntimeError: SCF not converged"}
    tap.close()


@pytest.mark.parametrize(
    ("faults", "complaint"),
    [
        ({"forces": np.zeros((3, 3))}, r"shape \(2, 3\) .* got float64 of shape \(3, 3\)"),
        ({"forces": np.zeros(6)}, r"got float64 of shape \(6,\)"),
        ({"forces": np.zeros((2, 3), int)}, r"forces as floats .* got int64"),
        ({"forces": None}, r"forces as floats .* got None"),
        ({"energy": None}, r"the energy as one real number in eV, got None"),
        ({"energy": np.zeros(2)}, r"one real number in eV, got float64 of shape \(2,\)"),
        ({"energy": 1.0 + 2.0j}, r"one real number in eV, got a complex"),
        ({"energy": np.nan}, r"its energy is not finite"),
    ],
)
def test_a_wrong_result_is_named_with_what_was_wanted_before_anything_runs(faults, complaint):
    reason = as_potential(Spring(**faults)).unsupported(pair())
    assert "\n" not in reason
    assert re.search(complaint, reason), reason


def test_a_calculator_that_ends_the_process_raises_like_any_other(monkeypatch):
    calculator = Spring()
    monkeypatch.setattr(calculator, "get_forces", lambda atoms: sys.exit("out of luck"))
    potential, system = as_potential(calculator), pair()
    assert "sys.exit: SystemExit: out of luck" in potential.unsupported(system)
    with pytest.raises(RuntimeError, match="out of luck"):
        potential.energies_and_forces(system.positions[None], system)


def test_float32_forces_contradict_dtype_float64():
    calculator = Spring(forces=np.zeros((2, 3), np.float32))
    card = dataclasses.replace(as_potential(Spring()).card, dtype="float64")
    potential = source.AsePotential("ase:x:y", calculator, card)
    assert "wanted forces in float64, as its dtype says, got float32" in potential.unsupported(
        pair()
    )
    assert as_potential(calculator).unsupported(pair()) is None


def test_what_a_calculator_cannot_serve_is_its_own_message_in_one_line(methane):
    potential = load_potential(EMT_SPEC)
    assert potential.unsupported(methane) is None
    argon = molecule([18, 18], [[0, 0, 0], [0.38, 0, 0]], [])
    assert potential.unsupported(argon) == "NotImplementedError: No EMT-potential for Ar"


def test_a_charge_must_have_been_named_to_the_calculator(folder):
    ion = pair(charge=-1)
    assert "name it to the factory, such as ?charge=-1" in as_potential(Spring()).unsupported(ion)
    told = Spring()
    told.parameters["charge"] = -1
    assert as_potential(told).unsupported(ion) is None
    assert "made for charge -1, this system has charge 0" in as_potential(told).unsupported(pair())


class Listening(Spring):
    """Its energy depends on the charge and the spin that the atoms bring."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.heard = atoms.info["charge"], atoms.info["spin"]
        self.sums = (
            float(atoms.get_initial_charges().sum()),
            float(atoms.get_initial_magnetic_moments().sum()),
        )
        self.results["energy"] += 0.1 * atoms.info["charge"] + 0.01 * atoms.info["spin"]


def test_a_calculator_that_reads_charge_and_spin_gets_them():
    calculator = Listening()
    potential = as_potential(calculator)
    ion = dataclasses.replace(pair(charge=-1), spin_multiplicity=2)
    assert potential.unsupported(ion) is None
    (energy,), _ = potential.energies_and_forces(ion.positions[None], ion)
    assert calculator.heard == (-1, 2)
    assert calculator.sums == pytest.approx((-1.0, 1.0))
    (neutral,), _ = potential.energies_and_forces(pair().positions[None], pair())
    assert calculator.heard == (0, 1)
    assert calculator.sums == (0.0, 0.0)
    assert energy - neutral == pytest.approx((-0.1 + 0.01) * EV)


def test_a_calculator_that_does_not_listen_is_refused_a_radical():
    reason = as_potential(Spring()).unsupported(dataclasses.replace(pair(), spin_multiplicity=2))
    assert "gives the same without" in reason
    assert "?multiplicity=2" in reason


CASES = Path(__file__).parents[1] / "systems" / "cases"


@pytest.mark.parametrize("name", ["acetate.sdf", "ammonium-charge.xyz", "methyl-radical.sdf"])
def test_xtb_gets_the_charge_and_the_spin_of_a_file(name):
    pytest.importorskip("tblite")
    system = load_system(str(CASES / name))
    told = load_potential(
        "ase:tblite.ase:TBLite?method=GFN2-xTB&verbosity=0&cache_api=False"
        f"&charge={system.charge}&multiplicity={system.spin_multiplicity}"
    )
    asked = load_potential("ase:tblite.ase:TBLite?method=GFN2-xTB&verbosity=0&cache_api=False")
    assert asked.unsupported(system) is None
    for one, other in zip(
        *(p.energies_and_forces(system.positions[None], system) for p in (told, asked)), strict=True
    ):
        # what the self-consistent cycle leaves; another charge changes forces by hundreds
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=0.2)


@pytest.mark.parametrize("name", ["acetate.sdf", "ammonium-charge.xyz", "methyl-radical.sdf"])
def test_a_student_refuses_ions_and_radicals_in_one_line(name):
    system = load_system(str(CASES / name))
    student = load_potential("ultra-tiny")
    reason = student.unsupported(system)
    assert reason is not None
    assert ("spin multiplicity 2" if name.startswith("methyl") else "charge") in reason
    assert (student.card.charge, student.card.spin_multiplicity) == (0, 1)


def test_a_script_hands_over_the_calculator_itself():
    potential = as_potential(EMT())
    assert isinstance(potential, Potential)
    assert potential.spec == "ase:EMT (object)"
    with pytest.raises(InputError, match="was handed over by a script"):
        load_potential(potential.spec)
    assert not source.takes(Atoms("H2"))
    assert not source.takes(EMT)


@pytest.mark.parametrize(
    "spec",
    [
        "ase:my_factories:lj?sigma=3.0",
        "ase:my_factories.py:lj?sigma=3.0&epsilon=0.01",
        "ase:./my_factories.py:lj?epsilon=0.01&sigma=3.0",
    ],
)
def test_a_factory_is_a_function_in_the_current_directory_or_in_a_file(folder, spec):
    before = list(sys.path)
    potential = load_potential(spec)
    assert sys.path == before
    assert potential.spec == spec
    assert potential.calculator.parameters.sigma == 3.0
    assert (potential.card.sha256 is None) == ("my_factories:" in spec)


def test_a_factory_is_a_calculator_that_exists_or_stands_in_a_class(folder):
    assert isinstance(load_potential("ase:my_factories:ready").calculator, EMT)
    assert isinstance(load_potential("ase:my_factories:Models.small").calculator, EMT)
    with pytest.raises(InputError, match=r"takes no options \(got sigma\)"):
        load_potential("ase:my_factories:ready?sigma=1")


def test_an_option_that_is_close_to_a_listed_one_is_asked_about(folder, caplog):
    load_potential("ase:ase.calculators.lj:LennardJones?sigma=3.0&epsilom=0.1")
    assert "does not list the option 'epsilom'; did you mean 'epsilon'?" in caplog.text
    caplog.clear()
    load_potential("ase:ase.calculators.lj:LennardJones?sigma=3.0&epsilon=0.1&label=x")
    load_potential("ase:my_factories:lj?sigma=3.0&epsilon=0.1")
    assert "did you mean" not in caplog.text


def test_the_code_is_announced_and_nothing_is_imported_for_that(folder):
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "package" / "part.py").write_text("")
    notice = source.executes("ase:package.part:make?x=1")
    assert notice == (
        f"ase:package.part:make runs the code of package.part ({folder / 'package' / 'part.py'})"
    )
    assert str(folder / "my_factories.py") in source.executes("ase:my_factories.py:lj")
    assert source.executes("ase:nowhere_at_all:make") is None
    assert "package" not in sys.modules


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("ase:emt", r"wanted ase:module:factory"),
        ("ase::EMT", r"wanted ase:module:factory"),
        ("ase:nowhere_at_all:EMT", r"there is no module 'nowhere_at_all'"),
        ("ase:ase.calculators.nowhere:EMT", r"there is no module 'ase.calculators.nowhere'"),
        ("ase:nowhere.py:lj", r"there is no file nowhere.py"),
        ("ase:ase.calculators.emt:EMD", r"has no 'EMD'; did you mean EMT"),
        ("ase:my_factories:Lennard", r"has no 'Lennard'; did you mean LennardJones"),
        ("ase:my_factories:zzz", r"has no 'zzz'; it has EMT, LennardJones, Models, broken, .*lj"),
        ("ase:my_factories:NUMBER", r"wanted a class or function .* got a int"),
        ("ase:my_factories:lj", r"called with \(\), it raised TypeError: lj\(\) missing"),
        ("ase:my_factories:broken?path=x", r"called with \(path='x'\), it raised OSError: cannot"),
        ("ase:my_factories:quits", r"it raised SystemExit: 1"),
        ("ase:my_factories:nothing", r"wanted an ASE calculator, .* got None"),
        ("ase:my_factories:ready?dtype=half", r"wanted dtype float32 or float64, got 'half'"),
        ("ase:my_factories:ready?cutoff_nm=far", r"wanted cutoff_nm as a positive number"),
        ("ase:my_factories:ready?cutoff_nm=True", r"wanted cutoff_nm as a positive number"),
        ("ase:my_factories:ready?cutoff_nm=1e999", r"wanted cutoff_nm as a positive number"),
        ("ase:bad_module:x", r"importing bad_module failed: NameError: name 'undefined'"),
        ("ase:needs_module:x", r"needs_module needs 'absent_thing', which is not installed"),
    ],
)
def test_a_spec_that_cannot_be_used_is_met_with_one_line(folder, spec, complaint):
    (folder / "bad_module.py").write_text("undefined")
    (folder / "needs_module.py").write_text("import absent_thing.part")
    with pytest.raises(InputError, match=complaint) as caught:
        load_potential(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "absent", "extra"),
    [
        ("ase:tblite.ase:TBLite", "tblite", "xtb"),
        ("ase:torchani.models:ANI1ccx", "torchani", "teacher"),
    ],
)
def test_an_absent_package_is_met_with_the_command_that_brings_it(monkeypatch, spec, absent, extra):
    for name in [name for name in sys.modules if name.split(".")[0] == absent]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingPackageError, match=rf"pip install 'omm-mlff\[{extra}\]'"):
        source.load(spec)


def test_without_ase_the_command_is_named(monkeypatch):
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'omm-mlff\[ase\]'"):
        source.load(EMT_SPEC)


def test_a_calculator_without_forces_is_refused():
    class Energies(Spring):
        implemented_properties = ("energy", "dipole")

    with pytest.raises(InputError, match=r"got one of energy, dipole; dynamics needs forces"):
        as_potential(Energies())


def test_a_calculator_that_goes_by_the_order_of_atoms_says_so():
    assert load_potential("ase:ase.calculators.emt:EMT").card.knows_atoms_by == "element"
    assert (
        load_potential("ase:ase.calculators.emt:EMT?knows_atoms_by=index").card.knows_atoms_by
        == "index"
    )
    with pytest.raises(InputError, match=r"one of element, bond, index; got 'name'"):
        load_potential("ase:ase.calculators.emt:EMT?knows_atoms_by=name")
