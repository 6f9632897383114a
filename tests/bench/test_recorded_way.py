"""Ways of running: that they take the steps they say, of the dynamics that they share."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openmm
import pytest
from springs import SpringPotential, triatomic

from omm_mlff.bench import ways
from omm_mlff.bench.ways import TIMESTEP_FS, Recorded, Unrecorded, Yardstick, velocities
from omm_mlff.errors import AnalysisError, InputError
from omm_mlff.record.rundir import STATUS_FILE, write_json

HERE = ("Reference", "double")


def positions_after(context):
    return context.getState(positions=True).getPositions(asNumpy=True)._value


def by_hand(n_steps):
    """The same dynamics through OpenMM's own harmonic bonds."""
    system = triatomic()
    built = openmm.System()
    for mass in system.masses:
        built.addParticle(mass)
    bonds = openmm.HarmonicBondForce()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        length = float(np.linalg.norm(system.positions[j] - system.positions[i]))
        bonds.addBond(i, j, length, 3.0e5)
    built.addForce(bonds)
    integrator = openmm.VerletIntegrator(TIMESTEP_FS * 1e-3)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(built, integrator, platform)
    context.setPositions(system.positions)
    context.setVelocities(velocities(system, 1))
    integrator.step(n_steps)
    return positions_after(context)


def test_the_steps_alone_are_those_of_openmm_itself():
    way = Unrecorded(SpringPotential(), triatomic(), *HERE, name="single")
    for _ in range(3):  # each block from the start
        assert way.run(60) > 0.0
    assert positions_after(way.context) == pytest.approx(by_hand(60), abs=1e-9)
    way.close()


def test_the_tap_changes_no_step():
    way = Unrecorded(SpringPotential(), triatomic(), *HERE, name="tapped", tapped=True)
    way.run(60)
    assert positions_after(way.context) == pytest.approx(by_hand(60), abs=1e-9)
    assert way.tap.n_calls >= 60
    way.close()


@pytest.mark.parametrize("kind", [Yardstick, Unrecorded])
def test_steps_that_come_to_no_end_have_no_time(kind):
    way = kind(SpringPotential(breaks_at=1e-3), triatomic(), *HERE, name="broken")
    with pytest.raises(AnalysisError, match=r"broken cannot be timed: .*NaN"):
        way.run(20)
    way.close()


def test_replicas_differ_from_one_another_and_the_first_is_the_single_one():
    way = Unrecorded(SpringPotential(), triatomic(), *HERE, name="many", n_replicas=4)
    way.run(60)
    replicas = positions_after(way.context).reshape(4, 3, 3)
    assert replicas[0] == pytest.approx(by_hand(60), abs=1e-9)
    assert not np.allclose(replicas[0], replicas[1], atol=1e-4)
    way.close()


def test_the_yardstick_takes_everything_at_every_step():
    way = Yardstick(SpringPotential(), triatomic(), *HERE)
    way.run(20)
    way.run(60)
    assert len(way.reporter.frames) == 60
    times, *_, last, _velocities, forces = zip(*way.reporter.frames, strict=True)
    assert np.diff([t._value for t in times]) == pytest.approx(TIMESTEP_FS * 1e-3)
    assert last[-1]._value == pytest.approx(by_hand(60), abs=1e-9)
    assert np.ptp([np.abs(f._value).max() for f in forces]) > 0.0
    way.close()


def test_the_yardstick_without_its_reporter_takes_the_same_steps():
    way = Yardstick(SpringPotential(), triatomic(), *HERE, recorded=False)
    way.run(60)
    assert way.reporter.frames == []
    state = way.simulation.context.getState(positions=True)
    assert state.getPositions(asNumpy=True)._value == pytest.approx(by_hand(60), abs=1e-9)
    way.close()


def recorded(**engine_options):
    return Recorded(
        SpringPotential(**engine_options), triatomic(), *HERE, name="recorded", n_replicas=2
    )


def test_a_recorded_way_is_one_run_that_goes_on_and_leaves_nothing():
    way = recorded()
    way.run(300)
    first = way._done
    way.run(1)
    assert way._done > first >= 300
    assert list(way.folder.rglob("status.json"))
    folder, thread = way.folder, way._thread
    way.close()
    assert not folder.exists()
    assert not thread.is_alive()


def test_a_recorded_way_that_was_never_run_leaves_nothing():
    way = recorded()
    way.close()
    assert not way.folder.exists()


def test_segments_that_are_closed_do_not_pile_up(monkeypatch):
    monkeypatch.setattr("omm_mlff.record.rundir.SEGMENT_FRAMES", 512)
    way = recorded()
    way.run(1)
    for _ in range(3):
        way.run(2000)
        assert len(list(way.folder.rglob("*.h5"))) == 0
    assert len(list(way.folder.rglob("*.partial"))) <= 4
    way.close()


@pytest.fixture
def clock(monkeypatch):
    """A `simulate` that tells of its progress every ten steps, by a clock that it moves itself.

    A set-up is 1 s, a step 20 ms, of that clock; how fast the machine is does not count.
    """
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)

    def simulate(spec, potential, system, folder, *, progress):
        folder.mkdir()
        write_json(folder / STATUS_FILE, {"events": {}})
        clock.now += 1.0
        for step in range(10, spec.n_steps, 10):
            clock.now += 10 * 2e-2
            progress(step, spec.n_steps)

    monkeypatch.setattr(ways, "simulate", simulate)
    monkeypatch.setattr(ways, "time", clock)
    return clock


def test_set_up_is_not_counted_and_a_block_counts_its_share(clock):
    way = recorded()
    assert way.run(2) == pytest.approx(0.04)  # of ten steps that were taken, in 0.2 s
    assert way.run(20) == pytest.approx(0.4)
    way.close()


def test_a_run_that_is_held_does_not_go_on(clock):
    way = recorded()
    way.run(20)
    done = way._done
    time.sleep(0.1)
    assert way._done == done
    way.close()


def test_what_ends_the_run_comes_out_of_the_block(monkeypatch):
    def simulate(spec, potential, system, folder, *, progress):
        folder.mkdir()
        write_json(folder / STATUS_FILE, {"events": {}})
        progress(10, spec.n_steps)
        raise InputError("the disk is on fire")

    monkeypatch.setattr(ways, "simulate", simulate)
    way = recorded()
    with pytest.raises(InputError, match="on fire"):
        way.run(20)
    way.close()


@pytest.mark.parametrize("n_replicas", [1, 2])  # of which the first is stopped
def test_a_run_of_which_a_replica_was_stopped_has_no_time(n_replicas):
    potential = SpringPotential(breaks_at=1e-3)
    way = Recorded(potential, triatomic(), *HERE, name="recorded", n_replicas=n_replicas)
    with pytest.raises(AnalysisError, match=r"cannot be timed: replica 0 was stopped at step 0 \("):
        way.run(20)
    way.close()


def test_a_run_that_was_closed_is_not_held_again():
    way = recorded()
    way.close()  # before the run tells that the block, which nobody waits for, is over
    ended = []

    def progress():
        try:
            way._progress(256, 10**9)
        except Exception as error:
            ended.append(type(error).__name__)

    thread = threading.Thread(target=progress, daemon=True)
    thread.start()
    thread.join(timeout=60.0)
    assert ended == ["_Enough"]


def test_closing_in_the_middle_of_a_block_ends_the_run(clock):
    way = recorded()
    way.run(1)
    way._wanted = 10**8
    way._go.set()  # as Ctrl-C leaves it while a block is waited for
    time.sleep(0.05)
    closing = threading.Thread(target=way.close, daemon=True)
    closing.start()
    closing.join(timeout=60.0)
    assert not closing.is_alive()
    assert not Path(way.folder).exists()
