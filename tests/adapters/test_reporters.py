"""Our reporters in anybody's openmm.app.Simulation."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pytest
import tables
from openmm import app, unit
from springs import NativeSpringPotential, molecule, triatomic

from omm_mlff import StabilityReporter, TrajectoryReporter, add_student, load_system
from omm_mlff.adapters.reporters import UnstableSimulationError
from omm_mlff.errors import InputError, OutputExistsError
from omm_mlff.potentials.base import build_system
from omm_mlff.record import rundir
from omm_mlff.units import KJMOL_PER_EV

ROOT = Path(__file__).resolve().parents[2]


def platform(name="Reference"):
    return openmm.Platform.getPlatformByName(name)


def simulation():
    system = triatomic()
    simulation = app.Simulation(
        system.topology,
        build_system(NativeSpringPotential(), system),
        openmm.VerletIntegrator(0.0005),
        platform(),
    )
    simulation.context.setPositions(system.positions * 1.02)
    return simulation


def free(species, positions, velocities, bonds=(), box=None, dt=0.001):
    """Atoms without forces: where they are is known at all times."""
    part = molecule(species, positions, bonds)
    atoms = list(part.topology.atoms())
    for i, j in bonds:
        part.topology.addBond(atoms[i], atoms[j])
    system = openmm.System()
    for mass in part.masses:
        system.addParticle(mass)
    if box is not None:
        system.setDefaultPeriodicBoxVectors(*np.diag([box] * 3))
        nothing = openmm.CustomNonbondedForce("0")
        nothing.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffPeriodic)
        nothing.setCutoffDistance(0.4 * box)
        for _ in species:
            nothing.addParticle([])
        system.addForce(nothing)
    simulation = app.Simulation(part.topology, system, openmm.VerletIntegrator(dt), platform())
    simulation.context.setPositions(positions)
    simulation.context.setVelocities(velocities)
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


def test_mdtraj_reads_the_file_and_nothing_else_is_left(tmp_path):
    ours = simulation()
    with TrajectoryReporter(tmp_path / "run.h5", 2) as reporter:
        ours.reporters.append(reporter)
        ours.step(6)
    assert mdtraj.load(str(tmp_path / "run.h5")).n_frames == 3
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_an_existing_file_is_refused(tmp_path):
    (tmp_path / "run.h5").touch()
    with pytest.raises(OutputExistsError, match="already there"):
        TrajectoryReporter(tmp_path / "run.h5", 1)
    (tmp_path / "killed.h5.parts").mkdir()
    with pytest.raises(OutputExistsError, match=r"killed\.h5\.parts is already there"):
        TrajectoryReporter(tmp_path / "killed.h5", 1)


def test_a_reporter_that_never_reported_leaves_no_file(tmp_path):
    with TrajectoryReporter(tmp_path / "run.h5", 1):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "interval", "complaint"),
    [("run.dcd", 1, r"an \.h5 file"), ("run.h5", 0, "one step or more; got 0")],
)
def test_a_trajectory_reporter_says_what_it_cannot_do(tmp_path, name, interval, complaint):
    with pytest.raises(InputError, match=complaint):
        TrajectoryReporter(tmp_path / name, interval)


@pytest.fixture(scope="module")
def solvated():
    """Amber: constraints, virtual sites (TIP4P-Ew), a barostat that acts at every other step."""
    dipeptide = load_system("alanine-dipeptide")
    field = app.ForceField("amber14-all.xml", "amber14/tip4pew.xml")
    modeller = app.Modeller(dipeptide.topology, dipeptide.positions * unit.nanometer)
    modeller.addSolvent(field, model="tip4pew", boxSize=openmm.Vec3(1.8, 1.8, 1.8))
    system = field.createSystem(
        modeller.topology,
        nonbondedMethod=app.CutoffPeriodic,
        nonbondedCutoff=0.8,
        constraints=app.HBonds,
        hydrogenMass=3.0,
    )
    system.addForce(openmm.MonteCarloBarostat(1.0, 300.0, 2))
    simulation = app.Simulation(
        modeller.topology,
        system,
        openmm.LangevinMiddleIntegrator(300.0, 1.0, 0.002),
        platform("CPU"),
        {"Threads": "1"},
    )
    simulation.context.setPositions(modeller.positions)
    simulation.minimizeEnergy(maxIterations=50)
    simulation.context.setVelocitiesToTemperature(300.0, 1)
    return simulation


def test_any_system_is_recorded_with_its_box_at_every_frame(solvated, tmp_path):
    boxes = []

    class Seen:
        def describeNextReport(self, simulation):
            steps = 4 - simulation.currentStep % 4
            return {"steps": steps, "periodic": False, "include": ["positions"]}

        def report(self, simulation, state):
            boxes.append(state.getPeriodicBoxVectors(asNumpy=True)._value)

    watch = StabilityReporter(4)
    with TrajectoryReporter(tmp_path / "run.h5", 4) as reporter:
        solvated.reporters = [reporter, Seen(), watch]
        solvated.step(40)
        solvated.reporters = []
    loaded = mdtraj.load(str(tmp_path / "run.h5"))
    assert watch.events == []
    assert loaded.n_frames == 10
    assert len({float(box[0, 0]) for box in boxes}) > 3  # the barostat has moved
    np.testing.assert_allclose(loaded.unitcell_vectors, boxes, atol=1e-6)
    assert sum(atom.element.symbol == "VS" for atom in loaded.topology.atoms) > 100
    bonds = [(a.index, b.index) for a, b in loaded.topology.bonds]
    # Not wrapped atom by atom: every bond is whole without the box's help.
    assert mdtraj.compute_distances(loaded, bonds, periodic=False).max() < 0.2


KILLED = """
    import os, signal, sys
    from openmm import app
    sys.path[:0] = ["tests", "tests/adapters"]
    from omm_mlff import TrajectoryReporter
    from omm_mlff.record import rundir
    from test_reporters import simulation
    rundir.SEGMENT_FRAMES = 5
    ours = simulation()
    ours.reporters.append(TrajectoryReporter(sys.argv[1], 2))
    ours.step(36)
    ours.saveState(sys.argv[1] + ".xml")
    ours.step(10)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_closed_segments_and_can_be_gone_on_with(tmp_path, monkeypatch):
    file = tmp_path / "run.h5"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(file)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "."},
        check=False,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    parts = sorted((tmp_path / "run.h5.parts").glob("*.h5"))
    assert [mdtraj.load(str(part)).n_frames for part in parts] == [5, 5, 5, 5]
    assert not file.exists()

    monkeypatch.setattr(rundir, "SEGMENT_FRAMES", 5)
    again = simulation()
    again.loadState(str(file) + ".xml")  # at step 36: two of the frames that are there come again
    with TrajectoryReporter(file, 2, append=True) as reporter:
        again.reporters.append(reporter)
        again.step(24)
    whole = simulation()
    with TrajectoryReporter(tmp_path / "whole.h5", 2) as reporter:
        whole.reporters.append(reporter)
        whole.step(60)
    with tables.open_file(str(file)) as ours, tables.open_file(str(tmp_path / "whole.h5")) as other:
        for name in ("time", "coordinates", "velocities", "forces", "kineticEnergy"):
            found, expected = ours.get_node("/", name)[:], other.get_node("/", name)[:]
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9, err_msg=name)
    assert {path.name for path in tmp_path.iterdir()} == {"run.h5", "run.h5.xml", "whole.h5"}


def test_going_on_is_refused_where_it_would_drop_everything(tmp_path):
    for attempt in range(2):
        ours = simulation()
        with TrajectoryReporter(tmp_path / "run.h5", 2, append=attempt > 0) as reporter:
            ours.reporters.append(reporter)
            if attempt == 0:
                ours.step(6)
            else:
                with pytest.raises(InputError, match=r"begins at 0\.001 ps.* is at 0\.001 ps"):
                    ours.step(6)
    assert mdtraj.load(str(tmp_path / "run.h5")).n_frames == 3


def test_going_on_with_other_atoms_is_refused(tmp_path):
    ours = simulation()
    with TrajectoryReporter(tmp_path / "run.h5", 2) as reporter:
        ours.reporters.append(reporter)
        ours.step(2)
    pair = free([1, 1], [[0, 0, 0], [0.1, 0, 0]], np.zeros((2, 3)))
    pair.reporters.append(TrajectoryReporter(tmp_path / "run.h5", 2, append=True))
    pair.step(1)
    with pytest.raises(InputError, match="has 3 atoms, the simulation 2"):
        pair.step(1)


# -- StabilityReporter ------------------------------------------------------------------------


def test_a_bond_is_broken_when_it_has_been_half_an_angstrom_too_long_for_10_fs():
    # It grows by 0.99 nm/ps: too long from 51 fs on, for more than 10 fs at the eleventh look.
    pair = free([1, 8], [[0, 0, 0], [0.1, 0, 0]], [[0, 0, 0], [0.99, 0, 0]], bonds=[(0, 1)])
    pair.reporters.append(StabilityReporter(1))
    with pytest.raises(UnstableSimulationError) as caught:
        pair.step(100)
    event = caught.value.event
    assert (event.kind, event.atoms, event.step) == ("bond", (0, 1), 61)
    assert event.time_ps == pytest.approx(0.061)
    assert event.value == pytest.approx(0.1 + 0.99 * 0.061)
    assert str(caught.value) == (
        "bond H0-O1 is 1.60 angstrom long (1.00 at rest) (step 61, 0.061 ps)"
    )


def test_a_look_farther_apart_than_10_fs_is_enough():
    pair = free([1, 8], [[0, 0, 0], [0.1, 0, 0]], [[0, 0, 0], [1, 0, 0]], bonds=[(0, 1)])
    pair.reporters.append(StabilityReporter(20))
    with pytest.raises(UnstableSimulationError, match="step 60, "):
        pair.step(100)


@pytest.mark.parametrize("n_others", [0, 80])  # all pairs; a search tree
def test_atoms_on_top_of_each_other_are_seen(n_others):
    others = [[10.0 + i, 0.0, 0.0] for i in range(n_others)]
    positions = [[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], *others]
    velocities = [[0.0, 0.0, 0.0], [-1.0, 0.0, 0.0], *(0 * np.array(others).reshape(-1, 3))]
    ours = free([1] * len(positions), positions, velocities)
    ours.reporters.append(StabilityReporter(1))
    with pytest.raises(UnstableSimulationError, match="atoms H0 and H1") as caught:
        ours.step(100)
    # 0.6 of twice 0.31 angstrom is 0.0372 nm.
    assert (caught.value.event.kind, caught.value.event.step) == ("overlap", 63)


def test_positions_that_are_no_numbers_are_seen():
    ours = free([1, 1], [[0, 0, 0], [0.5, 0, 0]], [[0, 0, 0], [np.nan, 0, 0]])
    ours.reporters.append(StabilityReporter(10))
    with pytest.raises(UnstableSimulationError, match="the position of H1 is not finite") as caught:
        ours.step(20)
    assert (caught.value.event.kind, caught.value.event.step) == ("nan", 10)


def test_only_chosen_atoms_are_watched_and_keep_their_numbers():
    positions = [[0, 0, 0], [0.1, 0, 0], [0, 1, 0], [0.1, 1, 0]]
    velocities = [[0, 0, 0], [1, 0, 0], [0, 0, 0], [0.45, 0, 0]]
    bonds = [(0, 1), (2, 3)]
    for chosen, atoms, step in ((None, (0, 1), 60), ([3, 2], (2, 3), 120), ([1, 2], None, None)):
        ours = free([1, 8, 1, 8], positions, velocities, bonds=bonds)
        reporter = StabilityReporter(20, atoms=chosen, on_event="record")
        ours.reporters.append(reporter)
        ours.step(140)
        found = [(event.atoms, event.step) for event in reporter.events][:1]
        assert found == ([] if atoms is None else [(atoms, step)])


def test_a_broken_bond_is_seen_where_the_timestep_varies():
    fixed = free([8, 1], [[0, 0, 0], [0.1, 0, 0]], [[0, 0, 0], [0, 0, 0]], bonds=[(0, 1)])
    integrator = openmm.VariableVerletIntegrator(1e-4)
    integrator.setMaximumStepSize(0.001)
    ours = app.Simulation(fixed.topology, fixed.system, integrator, platform())
    ours.context.setPositions([[0, 0, 0], [0.1, 0, 0]])
    ours.context.setVelocities([[0, 0, 0], [10, 0, 0]])
    ours.reporters.append(StabilityReporter(10))
    with pytest.raises(UnstableSimulationError, match="bond O0-H1"):
        ours.step(50)


@pytest.mark.parametrize("interval", [0, -1, 2.5, "10"])
def test_an_interval_is_a_number_of_steps(interval):
    with pytest.raises(InputError, match="one step or more"):
        StabilityReporter(interval)


def test_a_watch_over_virtual_sites_alone_is_refused():
    ours = free([8, 1], [[0, 0, 0], [0.1, 0, 0]], [[0, 0, 0], [0, 0, 0]])
    next(ours.topology.atoms()).element = None
    ours.reporters.append(StabilityReporter(1, atoms=[0]))
    with pytest.raises(InputError, match="all are virtual sites"):
        ours.step(1)


def test_a_molecule_across_the_boundary_is_whole_and_overlaps_through_it_are_seen():
    # The second image of H1 is 0.1 nm from O0; O2 comes through the boundary onto O0.
    positions = [[0.05, 0, 0], [1.95, 0, 0], [1.6, 1, 1]]
    ours = free([8, 1, 8], positions, [[0, 0, 0], [0, 0, 0], [0, 0, 0]], bonds=[(0, 1)], box=2.0)
    ours.reporters.append(StabilityReporter(1, rest_positions=np.array(positions)))
    ours.step(30)
    ours.context.setPositions([[0.05, 0, 0], [1.95, 0, 0], [1.99, 0.02, 0]])
    with pytest.raises(UnstableSimulationError, match="atoms H1 and O2"):
        ours.step(1)
    ours.context.setPositions([[0.02, 0, 0], [1.92, 0, 0], [1.99, 0, 0]])
    with pytest.raises(UnstableSimulationError, match=r"atoms O0 and O2 are 0\.30"):
        ours.step(1)


def test_the_energy_is_watched_where_it_is_asked_for_as_an_atoms_share_of_the_whole():
    for chosen in (None, [0]):
        ours = simulation()
        lift = openmm.CustomExternalForce("lift")
        lift.addGlobalParameter("lift", 0.0)
        lift.addParticle(0, [])
        ours.system.addForce(lift)
        ours.context.reinitialize(preserveState=True)
        reporter = StabilityReporter(1, energy=True, on_event="record", atoms=chosen)
        ours.reporters.append(reporter)
        ours.step(5)
        ours.context.setParameter("lift", 3 * 0.09 * KJMOL_PER_EV)
        ours.step(5)
        assert reporter.events == []
        ours.context.setParameter("lift", 3 * 0.2 * KJMOL_PER_EV)
        ours.step(5)
        (event,) = reporter.events
        assert (event.kind, event.unit, event.step) == ("energy", "eV/atom", 11)
        assert event.value == pytest.approx(0.2, rel=2e-3)  # the integrator's own fluctuation


@pytest.mark.parametrize("spoil", ["Langevin", "Andersen"])
def test_a_thermostat_conserves_no_energy(spoil):
    ours = simulation()
    integrator = openmm.VerletIntegrator(0.0005)
    if spoil == "Langevin":
        integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.0005)
    else:
        ours.system.addForce(openmm.AndersenThermostat(300, 1))
    warm = app.Simulation(ours.topology, ours.system, integrator, platform())
    warm.context.setPositions(triatomic().positions)
    warm.reporters.append(StabilityReporter(energy=True))
    with pytest.raises(InputError, match=f"{spoil}.* does not: leave energy out"):
        warm.step(1)


def test_a_look_evaluates_nothing_unless_the_energy_is_watched():
    calls = []

    def compute(state):
        calls.append(1)
        return 0.0, np.zeros((2, 3))

    def counted(*reporters):
        ours = free([1, 1], [[0, 0, 0], [0.5, 0, 0]], np.zeros((2, 3)))
        ours.system.addForce(openmm.PythonForce(compute))
        ours.context.reinitialize(preserveState=True)
        ours.reporters.extend(reporters)
        calls.clear()
        ours.step(30)
        return len(calls)

    bare = counted()
    assert counted(StabilityReporter(1)) == bare
    assert counted(StabilityReporter(10, energy=True)) == bare + 4  # the start, and three looks


def test_events_are_recorded_once_and_the_run_goes_on(tmp_path):
    positions = [[0, 0, 0], [0.1, 0, 0], [0, 1, 0], [0.1, 1, 0]]
    velocities = [[0, 0, 0], [1.1, 0, 0], [0, 1, 0], [-0.9, 1, 0]]
    ours = free([1, 8, 1, 8], positions, velocities, bonds=[(0, 1)])
    reporter = StabilityReporter(1, on_event="record", file=tmp_path / "events.csv")
    ours.reporters.append(reporter)
    ours.step(200)
    assert ours.currentStep == 200
    assert [event.kind for event in reporter.events] == ["overlap", "bond"]
    with (tmp_path / "events.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["detail"] for row in rows] == [event.detail for event in reporter.events]
    assert {row["kind"]: row["atoms"] for row in rows} == {"bond": "0 1", "overlap": "2 3"}
    with pytest.raises(OutputExistsError):
        StabilityReporter(file=tmp_path / "events.csv")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"interval": 0}, "one step or more"),
        ({"on_event": "ignore"}, "'raise' or 'record'"),
        ({"atoms": [0, 3]}, "expected indices from 0 to 2"),
        ({"atoms": []}, "one at least"),
        ({"rest_positions": np.zeros((2, 3))}, r"expected shape \(3, 3\), got \(2, 3\)"),
    ],
)
def test_a_stability_reporter_says_what_it_cannot_do(options, complaint):
    ours = simulation()
    with pytest.raises(InputError, match=complaint):  # noqa: PT012 (some it knows when it begins)
        ours.reporters.append(StabilityReporter(**options))
        ours.step(1)


def ethanol(timestep_fs, temperature_K):
    molecular = load_system("ethanol")
    system = openmm.System()
    for mass in molecular.masses:
        system.addParticle(mass)
    add_student(system, molecular.topology, "tiny")
    integrator = openmm.LangevinMiddleIntegrator(
        temperature_K * unit.kelvin, 1 / unit.picosecond, timestep_fs * unit.femtoseconds
    )
    integrator.setRandomNumberSeed(1)
    simulation = app.Simulation(molecular.topology, system, integrator, platform())
    simulation.context.setPositions(molecular.positions)
    simulation.context.setVelocitiesToTemperature(temperature_K, 1)
    return simulation


def test_a_student_at_half_a_femtosecond_is_left_alone():
    ours = ethanol(0.5, 300)
    reporter = StabilityReporter(10)
    ours.reporters.append(reporter)
    ours.step(400)
    assert reporter.events == []


@pytest.mark.parametrize(("timestep_fs", "temperature_K"), [(3.0, 300), (0.5, 8000)])
def test_a_student_that_is_blown_up_is_stopped(timestep_fs, temperature_K):
    ours = ethanol(timestep_fs, temperature_K)
    ours.reporters.append(StabilityReporter(10))
    with pytest.raises(UnstableSimulationError, match=r"\(step \d+, "):
        ours.step(1000)
    assert ours.currentStep < 1000


@pytest.mark.parametrize("energy", [False, True])
def test_amber_at_a_usual_timestep_is_left_alone(energy):
    dipeptide = load_system("alanine-dipeptide")
    field = app.ForceField("amber14-all.xml")
    system = field.createSystem(dipeptide.topology, constraints=app.HBonds)
    integrator = (
        openmm.VerletIntegrator(0.001)
        if energy
        else openmm.LangevinMiddleIntegrator(300.0, 1.0, 0.002)
    )
    ours = app.Simulation(dipeptide.topology, system, integrator, platform())
    ours.context.setPositions(dipeptide.positions)
    ours.context.setVelocitiesToTemperature(300.0, 2)
    reporter = StabilityReporter(50, energy=energy)
    ours.reporters.append(reporter)
    ours.step(2500)
    assert reporter.events == []


FORGOTTEN = """
    import sys
    sys.path[:0] = ["tests", "tests/adapters"]
    from omm_mlff import TrajectoryReporter
    from test_reporters import simulation
    ours = simulation()
    ours.reporters.append(TrajectoryReporter(sys.argv[1], 2))
    ours.step(10)
"""


def test_a_reporter_that_nobody_closes_has_its_file_when_the_script_ends(tmp_path):
    file = tmp_path / "run.h5"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORGOTTEN), str(file)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "."},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert mdtraj.load(str(file)).n_frames == 5
    assert not (tmp_path / "run.h5.parts").exists()


def test_a_reporter_that_goes_away_has_its_file(tmp_path):
    file = tmp_path / "run.h5"
    ours = simulation()
    ours.reporters.append(TrajectoryReporter(file, 2))
    ours.step(6)
    assert not file.exists()
    ours.reporters.clear()
    assert mdtraj.load(str(file)).n_frames == 3


def test_reporters_tell_in_one_line_what_they_are(tmp_path):
    assert repr(TrajectoryReporter(tmp_path / "a.h5", 5)).endswith("a.h5: every 5 steps>")
    assert repr(StabilityReporter(10)) == "<StabilityReporter every 10 steps: 0 events>"
