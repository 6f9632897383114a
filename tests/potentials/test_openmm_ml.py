"""Potentials of openmm-ml, those of other packages among them."""

from __future__ import annotations

import dataclasses
import logging
import sys

import numpy as np
import openmm
import pytest
from springs import molecule

pytest.importorskip("openmmml", reason="openmm-ml is not installed: pip install 'omm-mlff[ml]'")

from openmmml import MLPotential

from omm_mlff.adapters.openmm_ml import register
from omm_mlff.checks.base import Evidence
from omm_mlff.checks.registry import all_checks
from omm_mlff.dynamics import evaluator as evaluator_module
from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.errors import (
    InputError,
    MissingPackageError,
    UnknownNameError,
    UnsupportedSystemError,
)
from omm_mlff.potentials.base import build_system
from omm_mlff.potentials.openmm_ml import OpenmmMLPotential, unusable
from omm_mlff.potentials.registry import as_potential, load_potential
from omm_mlff.systems import load_system

STIFFNESS = 2.0e5  # kJ/mol/nm^2


class Springs:
    """A factory, and what it makes: every bond of the topology a spring of 0.1 nm."""

    name = "springs"

    def __init__(self, then=lambda system: None):
        self.then = then
        self.seen = {}

    def createImpl(self, name, **args):
        self.seen["constructor"] = args
        return self

    def addForces(self, topology, system, atoms, forceGroup, stiffness=STIFFNESS, **args):
        self.seen["createSystem"] = {"stiffness": stiffness, **args}
        self.seen["box"] = topology.getPeriodicBoxVectors()
        force = openmm.HarmonicBondForce()
        for bond in topology.bonds():
            force.addBond(bond.atom1.index, bond.atom2.index, 0.1, stiffness)
        system.addForce(force)
        self.then(system)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Names of this test's own; load_potential forgets what it made of them."""
    monkeypatch.setattr(MLPotential, "_implFactories", dict(MLPotential._implFactories))
    register()
    from omm_mlff.potentials.openmm_ml import load

    load.cache_clear()
    yield MLPotential.registerImplFactory
    load.cache_clear()


@pytest.fixture(scope="module")
def water():
    return load_system("water")


def test_energy_and_forces_are_those_of_the_closed_form(registered, water):
    registered("springs", Springs())
    potential = load_potential("openmm-ml:springs?stiffness=1e5&dtype=float64&cutoff_nm=0.3")
    assert (potential.card.dtype, potential.card.cutoff_nm) == ("float64", 0.3)
    assert potential.card.training_domain["options"] == {"stiffness": "100000.0"}
    stretch = [np.linalg.norm(water.positions[j] - water.positions[i]) for i, j in water.bonds]
    with Evaluator(potential, water, "Reference") as evaluator:
        energies, forces = evaluator.evaluate(water.positions[None])
        assert evaluator.tap is None
    assert energies[0] == pytest.approx(0.5e5 * sum((d - 0.1) ** 2 for d in stretch))
    assert np.abs(forces[0].sum(0)).max() < 1e-8


def test_nothing_is_in_the_system_but_what_it_adds(registered, water):
    registered("springs", Springs())
    built = build_system(load_potential("openmm-ml:springs"), water)
    assert [type(force).__name__ for force in built.getForces()] == ["HarmonicBondForce"]


def test_an_option_goes_where_it_is_named(registered):
    class Named(Springs):
        def createImpl(self, name, modelPath=None, **args):
            self.seen["constructor"] = {"modelPath": modelPath, **args}
            return self

    factory = Named()
    registered("springs", factory)
    load_potential("openmm-ml:springs?modelPath=here&stiffness=3.5&other=x")
    assert factory.seen["constructor"] == {"modelPath": "here", "stiffness": 3.5, "other": "x"}
    assert factory.seen["createSystem"] == {"stiffness": 3.5, "other": "x"}


def test_an_option_that_nothing_takes_is_refused(registered):
    class Strict(Springs):
        def createImpl(self, name):
            return self

        def addForces(self, topology, system, atoms, forceGroup):
            raise NotImplementedError

    registered("strict", Strict())
    with pytest.raises(InputError, match="openmm-ml:strict takes no option 'extra'"):
        load_potential("openmm-ml:strict?extra=1")


@pytest.mark.parametrize("cutoff", ["abc", "0", "-1", "True"])
def test_a_cutoff_that_is_no_length_is_refused(registered, cutoff):
    registered("springs", Springs())
    with pytest.raises(InputError, match="wanted cutoff_nm as a positive number"):
        load_potential(f"openmm-ml:springs?cutoff_nm={cutoff}")


def test_the_charge_and_the_box_are_those_of_the_system(registered, water):
    class Charged(Springs):
        def addForces(self, topology, system, atoms, forceGroup, **args):
            super().addForces(topology, system, atoms, forceGroup, **args)
            words = f"{args.get('charge', 0)} + 10 * {args.get('multiplicity', 1)} + 0 * x"
            force = openmm.CustomExternalForce(words)
            force.addParticle(0)
            system.addForce(force)

    factory = Charged()
    registered("springs", factory)
    potential = load_potential("openmm-ml:springs")
    ion = dataclasses.replace(water, charge=-1, box_vectors=3.0 * np.eye(3))
    build_system(potential, ion)
    assert factory.seen["createSystem"]["charge"] == -1
    assert factory.seen["box"][2][2]._value == 3.0
    assert water.topology.getPeriodicBoxVectors() is None
    build_system(potential, water)
    assert "charge" not in factory.seen["createSystem"]
    charged = load_potential("openmm-ml:springs?charge=1")
    assert charged.unsupported(water) == "it was loaded for charge 1, this one has 0"
    radical = dataclasses.replace(ion, spin_multiplicity=2)
    build_system(potential, radical)
    assert factory.seen["createSystem"]["multiplicity"] == 2


def test_a_potential_that_does_not_listen_is_refused_an_ion_and_a_radical(registered, water):
    registered("springs", Springs())
    potential = load_potential("openmm-ml:springs")
    assert potential.unsupported(water) is None
    for what, changed in (("charge", {"charge": -1}), ("spin", {"spin_multiplicity": 3})):
        reason = potential.unsupported(dataclasses.replace(water, **changed))
        assert f"gives the same without: it takes no {what}" in reason


def constrain(system):
    if system.getNumParticles() == 3:
        system.addConstraint(0, 1, 0.1)


def make_virtual(system):
    if system.getNumParticles() == 3:
        system.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))


@pytest.mark.parametrize("adds", [constrain, make_virtual, lambda s: s.addParticle(1.0)])
def test_what_moves_atoms_other_than_by_forces_is_refused(registered, water, adds):
    registered("springs", Springs(adds))
    with pytest.raises(UnsupportedSystemError, match="adds constraints or virtual sites"):
        build_system(load_potential("openmm-ml:springs"), water)


def test_what_the_package_raises_is_said_in_one_line(registered, water):
    class Fails(Springs):
        def addForces(self, topology, *_, **__):
            if any(atom.element.symbol == "O" for atom in topology.atoms()):
                raise ValueError("no oxygen here\nand more")
            super().addForces(topology, *_, **__)

    registered("fails", Fails())
    potential = load_potential("openmm-ml:fails")
    assert potential.unsupported(water) == "ValueError: no oxygen here"
    assert potential.unsupported(molecule([1, 1], [[0, 0, 0], [0.07, 0, 0]], [[0, 1]])) is None


def test_an_element_that_a_student_never_saw_is_refused_through_openmm_ml():
    helium = molecule([2, 2], [[0, 0, 0], [0.3, 0, 0]], [])
    reason = load_potential("openmm-ml:omm-mlff-ultra-tiny").unsupported(helium)
    assert "never trained on He" in reason
    assert "\n" not in reason


def test_an_unknown_name_is_met_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean omm-mlff-tiny"):
        load_potential("openmm-ml:omm-mlff-tinny")


def test_an_absent_package_names_the_command_that_installs_it(registered):
    class Lacks(Springs):
        def addForces(self, *_, **__):
            try:
                import a_package_that_nobody_has.inside  # noqa: F401
            except ImportError as error:
                raise ImportError(f"Failed: {error}. Run 'pip install nobody-has'.") from None

    registered("lacks", Lacks())
    with pytest.raises(MissingPackageError, match=r"run: pip install nobody-has$"):
        load_potential("openmm-ml:lacks")
    bare = ModuleNotFoundError("No module named 'torchmdnet_absent'", name="torchmdnet_absent.x")
    assert "pip install torchmdnet_absent" in str(unusable("aceff", bare))


def test_a_package_of_another_version_is_not_called_absent(registered):
    class Old(Springs):
        def addForces(self, *_, **__):
            openmm.a_name_of_another_version()

    registered("old", Old())
    with pytest.raises(InputError, match="does not work with the packages here: AttributeError"):
        load_potential("openmm-ml:old")


def test_openmm_ml_itself_may_be_absent(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "openmmml", None)
    with pytest.raises(MissingPackageError, match=r"run: pip install 'omm-mlff\[ml\]'"):
        load_potential("openmm-ml:ani1ccx")


def test_the_package_whose_code_runs_is_named_before_it_does(registered, caplog):
    registered("springs", Springs())
    with caplog.at_level(logging.WARNING):
        load_potential("openmm-ml:springs")
        load_potential("openmm-ml:omm-mlff-ultra-tiny")
        with pytest.raises(InputError):
            load_potential("openmm-ml:nequip")
    package = Springs.__module__.split(".")[0]
    assert [record.getMessage() for record in caplog.records] == [
        f"notice: openmm-ml:springs runs code of the package {package}, and what its model may "
        "carry",
        "notice: openmm-ml:nequip runs code of the package openmmml, and what its model may carry",
    ]


def test_an_object_from_a_script_is_taken(water):
    potential = as_potential(MLPotential("omm-mlff-ultra-tiny"))
    assert isinstance(potential, OpenmmMLPotential)
    assert potential.unsupported(water) is None


def test_an_ase_calculator_is_given_from_a_script(water):
    pytest.importorskip("ase", reason="ase is not installed")
    from ase.calculators.lj import LennardJones

    assert "Calculator must be provided" in load_potential("openmm-ml:ase").unsupported(water)
    calculator = LennardJones(sigma=1.0, epsilon=0.01, rc=50.0)
    potential = OpenmmMLPotential(MLPotential("ase"), options={"calculator": calculator})
    with Evaluator(potential, water, "Reference") as evaluator:
        energies, _ = evaluator.evaluate(water.positions[None])
    d = np.array(
        [
            10 * np.linalg.norm(water.positions[i] - water.positions[j])
            for i, j in ((0, 1), (0, 2), (1, 2))
        ]
    )
    shift = 4 * 0.01 * (50.0**-12 - 50.0**-6)
    expected = (4 * 0.01 * (d**-12 - d**-6) - shift).sum() * 96.4853
    assert energies[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_static_measurements_are_those_of_the_student_itself(monkeypatch, water):
    """Through our own plugin and back, where both evaluate one structure a call.

    A call for many copies rounds float32 sums otherwise, in the last bits; `tiny` is given such
    calls, and openmm-ml knows no copies.
    """
    monkeypatch.setattr(evaluator_module, "BATCH_ATOMS", 1)

    def measured(spec):
        potential = load_potential(spec)
        with Evaluator(potential, water, "Reference") as evaluator:
            evidence = Evidence(
                system=water, card=potential.card, runs=(), evaluator=evaluator, seed=0
            )
            return {
                (row.name, row.where.element): row.value
                for check in all_checks()
                if "runs" not in check.needs and check.name != "cost"
                for row in check.measure(evidence)
            }

    direct = measured("ultra-tiny")
    through = measured("openmm-ml:omm-mlff-ultra-tiny?cutoff_nm=0.5")
    assert direct.keys() == through.keys()
    # What needs the network itself is said to be so, and nothing else is missing.
    lost = {name for (name, *_), value in through.items() if value is None}
    lost -= {name for (name, *_), value in direct.items() if value is None}
    assert lost == {
        "parity.energy",
        "parity.force",
        "precision.float64_energy",
        "precision.float64_force",
    }
    both = [key for key in direct if None not in (direct[key], through[key])]
    assert len(both) > 25
    for key in both:
        a, b = direct[key], through[key]
        assert abs(a - b) <= 1e-6 * max(1.0, abs(a)), key
