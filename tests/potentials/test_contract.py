"""One contract for every model source, and for the tests' own potentials."""

from __future__ import annotations

import numpy as np
import openmm
import pytest
from potentials.examples import OBJECTS, SPECS, example_package, load_example
from springs import molecule

from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.errors import UnknownNameError, UnsupportedSystemError
from omm_mlff.forces.built import kind_in
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials import registry
from omm_mlff.potentials.base import Potential, build_system, system_and_built
from omm_mlff.potentials.registry import load_potential, model_names, spec_forms
from omm_mlff.systems import load_system

ROUGH = {
    "teacher": 1e-5,  # the curvature of ANI's activations has steps
    "ase": 1e-4,  # GFN2 is self-consistent to a tolerance
}


@pytest.fixture(scope="module", params=[*SPECS, *OBJECTS])
def potential(request, tmp_path_factory) -> Potential:
    return load_example(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def methane():
    return load_system("methane")


def frames(system, n=4, spread=0.004, seed=0):
    rng = np.random.default_rng(seed)
    return system.positions + rng.normal(scale=spread, size=(n, system.n_atoms, 3))


def test_it_is_a_potential_with_a_card(potential):
    assert isinstance(potential, Potential)
    card = potential.card
    assert card.name
    assert card.dtype in ("float32", "float64")
    assert card.cutoff_nm is None or 0.1 < card.cutoff_nm < 5.0


def test_forces_are_minus_the_gradient_through_the_context(potential, methane):
    rng = np.random.default_rng(1)
    directions = rng.normal(size=(6, methane.n_atoms, 3))
    step = 1e-3 if potential.card.dtype == "float32" else 1e-5
    with Evaluator(potential, methane, "Reference") as evaluator:
        start = frames(methane, 6)
        _, forces = evaluator.evaluate(start)
        stencil = np.zeros(6)
        for k, c in ((-2, 1.0), (-1, -8.0), (1, 8.0), (2, -1.0)):
            stencil += c * evaluator.evaluate(start + k * step * directions)[0]
    slope = stencil / (12 * step)
    projected = (forces * directions).sum((1, 2))
    error = np.sqrt(np.mean((slope + projected) ** 2) / np.mean(projected**2))
    # Float32 energies are rounded; a wrong force is off by far more than this.
    usual = 2e-3 if potential.card.dtype == "float32" else 1e-7
    assert error < ROUGH.get(potential.card.source, usual)


def test_openmm_and_direct_evaluation_agree(potential, methane):
    start = frames(methane)
    direct = potential.energies_and_forces(start, methane)
    if direct is None:
        pytest.skip("this potential exists in OpenMM only")
    with Evaluator(potential, methane, "Reference") as evaluator:
        energies, forces = evaluator.evaluate(start)
    np.testing.assert_allclose(energies, direct[0], rtol=0, atol=0.01)
    np.testing.assert_allclose(forces, direct[1], rtol=0, atol=1e-4 * np.abs(forces).max())


def test_replicas_in_one_system_are_independent(potential, methane):
    can = potential.capabilities(methane)
    n_replicas = min(3, can.max_replicas)
    start = frames(methane, n_replicas)
    tap = Tap(n_replicas, methane.n_atoms) if can.tap else None
    context = openmm.Context(
        build_system(potential, methane, n_replicas=n_replicas, tap=tap),
        openmm.VerletIntegrator(0.0005),
        openmm.Platform.getPlatformByName("Reference"),
    )
    context.setPositions(start.reshape(-1, 3))
    together = context.getState(energy=True, forces=True)
    with Evaluator(potential, methane, "Reference") as evaluator:
        energies, forces = evaluator.evaluate(start)
    total = together.getPotentialEnergy()._value
    assert total == pytest.approx(energies.sum(), rel=1e-8)
    got = together.getForces(asNumpy=True)._value.reshape(forces.shape)
    np.testing.assert_allclose(got, forces, atol=1e-4 * np.abs(forces).max())


def test_it_says_what_it_can_do_and_what_it_has_added(potential, methane):
    can = potential.capabilities(methane)
    assert can == potential.capabilities(methane)
    made, built = system_and_built(potential, methane)
    assert kind_in(made) == built.force
    assert built.fallback == ""
    if can.tap:
        assert can.force in ("torchforce", "pythonforce")
    if can.float64_twin is not None:
        twin = can.float64_twin()
        assert (potential.card.dtype, twin.card.dtype) == ("float32", "float64")
        assert twin.capabilities(methane).float64_twin is None


def test_a_nearby_molecule_is_refused_or_served_but_never_wrong(potential):
    helium = molecule([2, 2], [[0, 0, 0], [0.3, 0, 0]], [])
    reason = potential.unsupported(helium)
    if reason is None:
        build_system(potential, helium)
    else:
        # What knows its atoms by their place cannot tell helium from another.
        assert "He" in reason or potential.card.knows_atoms_by == "index"
        with pytest.raises(UnsupportedSystemError, match="cannot serve"):
            build_system(potential, helium)


def test_what_it_writes_of_itself_loads_it_again(potential, tmp_path):
    if potential.spec in ("springs", "native-springs"):
        pytest.skip("an object has no spec")
    with example_package():
        again = registry.load_potential(potential.spec)
    assert again.card == potential.card


def test_a_box_is_served_or_refused_before_anything_runs(potential):
    box = load_system("water-box:8")
    reason = potential.unsupported(box)
    if reason is None and potential.capabilities(box).reads_box:
        with Evaluator(potential, box, "Reference") as evaluator:
            energies, forces = evaluator.evaluate(box.positions[None])
            shifted, _ = evaluator.evaluate(box.positions[None] + 0.37)
        assert np.isfinite(forces).all()
        assert shifted[0] == pytest.approx(energies[0], abs=0.05)
    else:
        assert "\n" not in str(reason)
        with pytest.raises(UnsupportedSystemError, match="cannot serve"):
            build_system(potential, box)


def test_an_atom_more_is_served_or_refused_before_anything_runs(potential, methane):
    """Methane and a hydrogen molecule: other atoms than a file for methane was made for."""
    positions = np.concatenate([methane.positions, [[0.6, 0.0, 0.0], [0.674, 0.0, 0.0]]])
    bonds = [*methane.bonds.tolist(), [5, 6]]
    pair = molecule([*methane.species.tolist(), 1, 1], positions, bonds)
    reason = potential.unsupported(pair)
    if reason is None:
        with Evaluator(potential, pair, "Reference") as evaluator:
            assert np.isfinite(evaluator.evaluate(positions[None])[1]).all()
    else:
        assert "\n" not in reason


def test_every_source_has_the_functions_of_one_and_an_example_here():
    with example_package():
        found = registry.sources()
    for source in found:
        assert callable(source.matches)
        assert callable(source.load)
        assert isinstance(source.names(), list)
        assert getattr(source, "FORMS", ())
    with example_package():
        tried = {
            next(source.__name__ for source in found if source.matches(spec))
            for spec in SPECS.values()
            if isinstance(spec, str)
        }
    files = {"omm_mlff.potentials.torchscript"}
    assert tried | files == {source.__name__ for source in found}


def test_every_shipped_student_is_an_example():
    assert set(model_names()) <= set(SPECS)


def test_the_forms_of_a_spec_are_told():
    told = " ".join(spec_forms())
    for prefix in ("openmm-ml:", "ase:", "native:", "teacher:", ".pt"):
        assert prefix in told


def test_an_unknown_model_is_met_with_the_nearest_names():
    with pytest.raises(UnknownNameError, match=r"unknown model 'orignal'; did you mean original"):
        load_potential("orignal")
