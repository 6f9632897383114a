"""Our reporter in anybody's openmm.app.Simulation."""

from __future__ import annotations

import mdtraj
import numpy as np
import openmm
import pytest
import tables
from openmm import app
from springs import NativeSpringPotential, triatomic

from omm_mlff.errors import OutputExistsError
from omm_mlff.potentials.base import build_system
from omm_mlff.reporters import TrajectoryReporter


def simulation():
    system = triatomic()
    simulation = app.Simulation(
        system.topology,
        build_system(NativeSpringPotential(), system),
        openmm.VerletIntegrator(0.0005),
        openmm.Platform.getPlatformByName("Reference"),
    )
    simulation.context.setPositions(system.positions * 1.02)
    return simulation


def test_reported_frames_are_what_the_context_says(tmp_path):
    ours = simulation()
    with TrajectoryReporter(tmp_path / "run.h5", 5) as reporter:
        ours.reporters.append(reporter)
        ours.step(20)
        assert not (tmp_path / "run.h5").exists()
    other = simulation()
    with tables.open_file(str(tmp_path / "run.h5")) as handle:
        assert handle.root.time.shape == (4,)
        for frame in range(4):
            other.step(5)
            state = other.context.getState(
                positions=True, velocities=True, forces=True, energy=True
            )
            root = handle.root
            np.testing.assert_array_equal(
                root.coordinates[frame], state.getPositions(asNumpy=True)._value
            )
            np.testing.assert_array_equal(root.forces[frame], state.getForces(asNumpy=True)._value)
            assert root.potentialEnergy[frame] == state.getPotentialEnergy()._value
            assert root.kineticEnergy[frame] == state.getKineticEnergy()._value
            assert root.time[frame] == pytest.approx(0.0025 * (frame + 1), rel=1e-12)


def test_mdtraj_reads_the_file(tmp_path):
    ours = simulation()
    with TrajectoryReporter(tmp_path / "run.h5", 2) as reporter:
        ours.reporters.append(reporter)
        ours.step(6)
    assert mdtraj.load(str(tmp_path / "run.h5")).n_frames == 3


def test_an_existing_file_is_refused(tmp_path):
    (tmp_path / "run.h5").touch()
    with pytest.raises(OutputExistsError, match="already there"):
        TrajectoryReporter(tmp_path / "run.h5", 1)


def test_a_reporter_that_never_reported_leaves_no_file(tmp_path):
    with TrajectoryReporter(tmp_path / "run.h5", 1):
        pass
    assert list(tmp_path.iterdir()) == []
