"""Ways of running the same dynamics do the same dynamics."""

import numpy as np
import pytest

from omm_mlff.bench.others import AseVerlet
from omm_mlff.bench.ways import Recorded, Unrecorded, Yardstick
from omm_mlff.potentials.registry import load_potential
from omm_mlff.systems import load_system
from omm_mlff.units import ANGSTROM_PER_NM

WHERE = ("Reference", "double")


@pytest.fixture(scope="module")
def water():
    return load_system("water")


def test_the_script_records_every_step_and_moves_as_the_bare_steps_do(water):
    potential = load_potential("ultra-tiny?engine=scripted")
    script = Yardstick(potential, water, *WHERE)
    bare = Unrecorded(potential, water, *WHERE, name="bare", n_replicas=2)
    assert script.run(20) > 0.0
    bare.run(20)
    assert len(script.reporter.frames) == 20
    last = script.reporter.frames[-1][3]._value
    many = bare.context.getState(positions=True).getPositions(asNumpy=True)._value
    np.testing.assert_allclose(many[:3], last, atol=1e-6)
    assert np.abs(many[3:] - last).max() > 1e-4  # each replica has velocities of its own
    script.run(5)
    assert len(script.reporter.frames) == 5


def test_ase_goes_where_openmm_goes(water):
    """Velocity Verlet starts on the step, a leapfrog half a step behind: the same path, nearly."""
    potential = load_potential("ultra-tiny?engine=scripted")
    ase = AseVerlet(potential.student, water, name="ase", engine="scripted")
    bare = Unrecorded(potential, water, *WHERE, name="bare")
    ase.run(20)
    bare.run(20)
    there = ase.dynamics.atoms.positions / ANGSTROM_PER_NM
    here = bare.context.getState(positions=True).getPositions(asNumpy=True)._value
    moved = np.abs(here - water.positions).max()
    assert np.abs(there - here).max() < 0.2 * moved


def test_a_recorded_way_leaves_nothing_behind(water):
    way = Recorded(load_potential("ultra-tiny"), water, *WHERE, name="recorded", n_replicas=3)
    assert way.run(300) > 0.0
    folder = way.folder
    way.close()
    assert not folder.exists()
