"""Recorded dynamics: the record is exact, resumable, and keeps what diverged."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pytest
import tables
from springs import (
    STIFFNESS,
    NativeSpringPotential,
    SpringPotential,
    diatomic,
    molecule,
    triatomic,
)

from omm_mlff.dynamics.initial_state import thermal_velocities
from omm_mlff.dynamics.simulate import FRICTION_PER_PS, simulate
from omm_mlff.errors import InputError, OutputExistsError, StorageError
from omm_mlff.potentials.base import build_system
from omm_mlff.record.rundir import RunRecord
from omm_mlff.schema import RunSpec
from omm_mlff.units import BOLTZMANN, EV_PER_KJMOL

SPEC = RunSpec("springs", "springs", 0.1, 300.0, 3, seed=5, platform="Reference")


def run(folder, system=None, potential=None, **changes):
    spec = dataclasses.replace(SPEC, **changes)
    return simulate(spec, potential or SpringPotential(), system or triatomic(), folder)


def arrays(record):
    return [
        getattr(replica, name)
        for _, replica in record.replicas()
        for name in (
            "time",
            "potential_energy",
            "kinetic_energy",
            "positions",
            "velocities",
            "forces",
        )
    ]


def test_one_evaluation_a_step(tmp_path):
    record = run(tmp_path / "run")
    assert record.status["batches"]["0"]["n_steps"] == 200
    assert record.status["batches"]["0"]["n_evaluations"] == 200
    assert all(replica.n_frames == 200 for _, replica in record.replicas())


def test_recorded_kinetic_energy_equals_openmms(tmp_path):
    """Another program: OpenMM's own leapfrog correction, from the same start."""
    system = triatomic()
    record = run(tmp_path / "run", system, n_replicas=1)
    replica = record.replica(0)
    context = openmm.Context(
        build_system(NativeSpringPotential(), system),
        openmm.VerletIntegrator(0.0005),
        openmm.Platform.getPlatformByName("Reference"),
    )
    context.setPositions(replica.positions[0])
    half = replica.forces[0] * 0.00025 / system.masses[:, None]
    context.setVelocities(replica.velocities[0] - half)
    for frame in range(200):
        state = context.getState(energy=True)
        assert replica.kinetic_energy[frame] == pytest.approx(
            state.getKineticEnergy()._value, rel=1e-12
        ), frame
        context.getIntegrator().step(1)


def test_a_harmonic_oscillator_follows_verlets_shadow_energy(tmp_path):
    """Closed form: E - k x^2 (omega dt)^2 / 8 is what the leapfrog conserves exactly."""
    system = diatomic()
    record = run(tmp_path / "run", system, length_ps=1.0, n_replicas=2)
    reduced_mass = system.masses[0] / 2.0
    omega_dt = np.sqrt(STIFFNESS / reduced_mass) * 0.0005
    for _, replica in record.replicas():
        r = replica.positions[:, 1] - replica.positions[:, 0]
        x = np.linalg.norm(r, axis=1) - 0.1
        total = replica.potential_energy + replica.kinetic_energy
        shadow = total - STIFFNESS * x**2 * omega_dt**2 / 8.0
        assert np.abs(shadow / shadow[0] - 1.0).max() < 1e-11
        assert np.abs(total / total[0] - 1.0).max() > 1e-4


def test_half_of_the_starting_kinetic_energy_flows_into_vibrations(tmp_path):
    record = run(tmp_path / "run", length_ps=2.0, n_replicas=4)
    assert record.n_dof == 3
    for _, replica in record.replicas():
        start = 2.0 * replica.kinetic_energy[0] / (record.n_dof * BOLTZMANN)
        later = 2.0 * replica.kinetic_energy[2000:].mean() / (record.n_dof * BOLTZMANN)
        assert start == pytest.approx(600.0, rel=1e-3)
        assert later == pytest.approx(300.0, rel=0.02)


def test_replicas_neither_drift_nor_turn(tmp_path):
    system = triatomic()
    record = run(tmp_path / "run", system)
    for _, replica in record.replicas():
        momentum = (system.masses[:, None] * replica.velocities).sum(1)
        spin = (system.masses[:, None] * np.cross(replica.positions, replica.velocities)).sum(1)
        assert np.abs(momentum).max() < 1e-10
        assert np.abs(spin).max() < 1e-10


def test_a_replica_depends_on_seed_and_index_alone(tmp_path):
    few = run(tmp_path / "few", n_replicas=2)
    many = run(tmp_path / "many", n_replicas=5)
    other = run(tmp_path / "other", n_replicas=2, seed=6)
    np.testing.assert_allclose(few.replica(1).positions, many.replica(1).positions, atol=1e-12)
    assert np.abs(few.replica(1).positions - other.replica(1).positions).max() > 1e-4


def test_a_potential_without_a_tap_gives_the_same_record(tmp_path):
    tapped = run(tmp_path / "tapped")
    native = run(tmp_path / "native", potential=NativeSpringPotential())
    assert native.provenance["recording"].startswith("state")
    assert tapped.provenance["recording"] == "tap"
    for one, other in zip(arrays(tapped), arrays(native), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-8)


def test_mdtraj_reads_a_segment(tmp_path):
    record = run(tmp_path / "run")
    replica = record.replica(1)
    trajectory = mdtraj.load([str(path) for path in replica.files])
    assert trajectory.n_frames == 200
    assert [a.element.symbol for a in trajectory.topology.atoms] == ["O", "H", "H"]
    assert trajectory.topology.n_bonds == 2
    np.testing.assert_allclose(trajectory.xyz, replica.positions, atol=1e-7)
    np.testing.assert_allclose(trajectory.time, replica.time, atol=1e-6)
    with tables.open_file(str(replica.files[0])) as handle:
        for name in ("coordinates", "time", "velocities", "potentialEnergy", "kineticEnergy"):
            assert handle.get_node("/", name).dtype == np.float64, name
        assert handle.root.forces.shape == (200, 3, 3)


def test_stride_thins_the_record_and_not_the_dynamics(tmp_path):
    every = run(tmp_path / "every").replica(0)
    fourth = run(tmp_path / "fourth", record_stride=4).replica(0)
    np.testing.assert_array_equal(fourth.positions, every.positions[::4])
    np.testing.assert_array_equal(fourth.time, every.time[::4])


def test_a_broken_copy_is_data_and_the_others_go_on(tmp_path):
    system = triatomic()
    sound = run(tmp_path / "sound", system)
    potential = SpringPotential(breaks_at=0.156, breaks_copy=1)
    record = run(tmp_path / "run", system, potential)
    assert record.status["state"] == "complete"
    assert list(record.events) == [1]
    event = record.events[1]
    assert event.kind == "nan"
    assert 0 < event.step < 200
    assert record.replica(1).n_frames == event.step
    assert np.isfinite(record.replica(1).positions).all()
    for other in (0, 2):
        np.testing.assert_array_equal(
            record.replica(other).positions, sound.replica(other).positions
        )


def test_a_bond_that_flies_apart_is_named(tmp_path):
    # A spring so weak that thermal motion stretches it far beyond 0.5 angstrom.
    record = run(
        tmp_path / "run", diatomic(), SpringPotential(stiffness=50.0), length_ps=0.5, n_replicas=1
    )
    event = record.events[0]
    assert event.kind == "bond"
    assert event.atoms == (0, 1)
    # Rest length 0.1, limit 0.05 beyond it; then 10 fs of flight before it counts.
    assert 0.15 < event.value < 0.25
    assert f"bond H0-H1 is {10 * event.value:.2f} angstrom long (1.00 at rest)" == event.detail
    assert record.replica(0).n_frames == event.step + 1


def test_atoms_on_top_of_each_other_are_named(tmp_path):
    system = molecule([6, 6], [[0, 0, 0], [0.08, 0, 0]], [])
    record = run(tmp_path / "run", system, n_replicas=2)
    assert {event.kind for event in record.events.values()} == {"overlap"}
    assert record.events[0].step == 0
    assert "C0 and C1" in record.events[0].detail


def test_heating_is_stopped_as_exploding_energy(tmp_path):
    # At 12 fs the leapfrog is unstable for this spring (omega dt > 2).
    record = run(tmp_path / "run", diatomic(), n_replicas=1, timestep_fs=12.0, length_ps=1.2)
    assert record.events[0].kind in ("energy", "bond", "overlap")
    assert record.replica(0).n_frames < 100


class Interrupts:
    """A progress callback that presses Ctrl-C once."""

    def __init__(self):
        self.done = False

    def __call__(self, step, total):
        if not self.done:
            self.done = True
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("potential", [SpringPotential(), NativeSpringPotential()])
def test_ctrl_c_loses_nothing_and_resuming_changes_nothing(tmp_path, potential):
    spec = dataclasses.replace(SPEC, length_ps=0.4)
    whole = simulate(spec, potential, triatomic(), tmp_path / "whole")
    folder = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        simulate(spec, potential, triatomic(), folder, progress=Interrupts())
    cut = RunRecord.open(folder)
    assert cut.status["state"] == "interrupted"
    assert 0 < cut.replica(0).n_frames < 800
    assert not list(folder.rglob("*.partial"))
    resumed = simulate(spec, potential, triatomic(), folder, resume=True)
    assert resumed.status["state"] == "complete"
    for one, other in zip(arrays(whole), arrays(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_extending_a_run_equals_a_longer_run(tmp_path):
    whole = run(tmp_path / "whole", length_ps=0.3)
    run(tmp_path / "run", length_ps=0.1)
    spec = dataclasses.replace(SPEC, length_ps=0.3)
    extended = simulate(spec, SpringPotential(), triatomic(), tmp_path / "run", resume=True)
    for one, other in zip(arrays(whole), arrays(extended), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_killed_run_goes_on_from_its_last_closed_segment(tmp_path):
    """SIGKILL while an HDF5 file is open for writing: what was closed must survive."""
    script = f"""
import sys, dataclasses
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from springs import SpringPotential, triatomic
from omm_mlff.record import rundir
from omm_mlff.schema import RunSpec
from omm_mlff.dynamics.simulate import simulate
rundir.SEGMENT_FRAMES = 256
spec = RunSpec("springs", "springs", 50.0, 300.0, 3, seed=5, platform="Reference")
simulate(spec, SpringPotential(), triatomic(), sys.argv[1])
"""
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)])
    deadline = time.monotonic() + 120
    while not (folder / "replica_002" / "00001.h5").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    spec = RunSpec("springs", "springs", 50.0, 300.0, 3, seed=5, platform="Reference")
    kept = int(np.load(folder / "batch_000.npz")["step"])
    assert kept >= 256  # the second segment may be closed while its state is not yet written
    stop = Interrupts()
    with pytest.raises(KeyboardInterrupt):
        simulate(spec, SpringPotential(), triatomic(), folder, resume=True, progress=stop)
    cut = RunRecord.open(folder).replica(2)
    assert cut.n_frames > kept
    np.testing.assert_allclose(np.diff(cut.time), 0.0005, rtol=1e-9)
    whole = run(tmp_path / "whole", length_ps=cut.n_frames * 0.0005)
    np.testing.assert_array_equal(cut.positions, whole.replica(2).positions)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_the_run(tmp_path):
    """Peak memory of 10 ps against 1 ps, each in a process of its own."""
    script = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from springs import SpringPotential, triatomic
from omm_mlff.schema import RunSpec
from omm_mlff.dynamics.simulate import simulate
spec = RunSpec("springs", "springs", float(sys.argv[2]), 300.0, 8, seed=5, platform="Reference")
simulate(spec, SpringPotential(), triatomic(), sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    peak = {}
    for length in ("1", "10"):
        out = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / length), length],
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        peak[length] = float(out.stdout)
    assert peak["10"] - peak["1"] < 20.0


def test_an_existing_run_is_refused_and_another_one_never_resumed(tmp_path):
    run(tmp_path / "run")
    with pytest.raises(OutputExistsError, match="already holds a run"):
        run(tmp_path / "run")
    other = dataclasses.replace(SPEC, temperature_K=400.0)
    with pytest.raises(OutputExistsError, match="holds another run"):
        simulate(other, SpringPotential(), triatomic(), tmp_path / "run", resume=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    with pytest.raises(OutputExistsError, match="not empty"):
        run(tmp_path / "full")


def test_a_full_disk_is_an_error_of_storage(tmp_path, monkeypatch):
    import errno

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("omm_mlff.dynamics.checkpoint.np.savez", full)
    with pytest.raises(StorageError, match="disk is full"):
        run(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "interrupted"


@pytest.mark.parametrize(
    "changes", [{"ensemble": "npt"}, {"length_ps": 0.0}, {"n_replicas": 0}, {"record_stride": 0}]
)
def test_a_run_that_makes_no_sense_is_refused(tmp_path, changes):
    with pytest.raises(InputError):
        run(tmp_path / "run", **changes)


def test_runs_work_outside_the_main_thread(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(run(tmp_path / "run")))
    thread.start()
    thread.join()
    assert done[0].status["state"] == "complete"


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["mixed", "double"])
def test_a_student_runs_on_cuda_as_on_the_host(tmp_path, precision):
    """The same replicas, step for step, until chaos parts them."""
    from omm_mlff.potentials.registry import load_potential
    from omm_mlff.systems import load_system

    potential, system = load_potential("tiny"), load_system("ethanol")
    runs = {}
    for platform in ("CUDA", "Reference"):
        spec = RunSpec(
            "tiny", "ethanol", 0.05, 300.0, 4, seed=1, platform=platform, precision=precision
        )
        runs[platform] = simulate(spec, potential, system, tmp_path / platform)
    cuda, host = runs["CUDA"], runs["Reference"]
    assert cuda.status["batches"]["0"]["n_evaluations"] == 100
    assert cuda.events == {}
    for replica in range(4):
        one, other = cuda.replica(replica), host.replica(replica)
        np.testing.assert_allclose(one.positions, other.positions, atol=2e-4)
        total = one.potential_energy + one.kinetic_energy
        assert np.ptp(total) < 0.05 * np.ptp(one.kinetic_energy)


def test_a_minimiser_that_breaks_a_bond_is_not_followed(tmp_path):
    """The nearest minimum of this spring is 0.7 angstrom away: that is another molecule."""
    record = run(tmp_path / "run", diatomic(), SpringPotential(rest_scale=1.7), length_ps=0.05)
    assert record.provenance["start"] == "structure as given: the minimiser broke a bond"
    np.testing.assert_array_equal(record.rest_positions, diatomic().positions)
    sound = run(tmp_path / "sound", diatomic())
    assert sound.provenance["start"] == "minimum"


NVT = dataclasses.replace(SPEC, ensemble="nvt", purpose="thermostat")


def langevin_context(system, record):
    """OpenMM alone, started as the first replica was, with the same random stream."""
    integrator = openmm.LangevinMiddleIntegrator(300.0, FRICTION_PER_PS, 0.0005)
    words = np.random.SeedSequence([record.spec.seed, 0, 0])
    integrator.setRandomNumberSeed(1 + int(words.generate_state(1)[0]) % (2**31 - 2))
    context = openmm.Context(
        build_system(NativeSpringPotential(), system),
        integrator,
        openmm.Platform.getPlatformByName("Reference"),
    )
    context.setPositions(record.replica(0).positions[0])
    context.setVelocities(record.replica(0).velocities[0])
    return context


@pytest.mark.parametrize("potential", [SpringPotential(), NativeSpringPotential()])
def test_a_thermostatted_record_is_what_openmm_says_of_itself(tmp_path, potential):
    """Another program: every frame against OpenMM's own State, energies and velocities too."""
    system = triatomic()
    spec = dataclasses.replace(NVT, n_replicas=1)
    record = simulate(spec, potential, system, tmp_path / "run")
    replica = record.replica(0)
    context = langevin_context(system, record)
    for frame in range(200):
        state = context.getState(positions=True, velocities=True, energy=True, forces=True)
        for ours, theirs in (
            (replica.positions[frame], state.getPositions(asNumpy=True)),
            (replica.velocities[frame], state.getVelocities(asNumpy=True)),
            (replica.forces[frame], state.getForces(asNumpy=True)),
            (replica.kinetic_energy[frame], state.getKineticEnergy()),
            (replica.potential_energy[frame], state.getPotentialEnergy()),
        ):
            np.testing.assert_allclose(ours, theirs._value, rtol=1e-7, atol=1e-7)
        context.getIntegrator().step(1)


def test_a_thermostatted_step_is_one_evaluation(tmp_path):
    record = simulate(NVT, SpringPotential(), triatomic(), tmp_path / "run")
    assert record.status["batches"]["0"]["n_evaluations"] == 200


def test_a_thermostat_moves_all_degrees_of_freedom(tmp_path):
    system = triatomic()
    record = simulate(NVT, SpringPotential(), system, tmp_path / "run")
    assert record.n_dof == 9
    assert record.provenance["integrator"]["friction_per_ps"] == FRICTION_PER_PS
    first = record.replica(0).velocities[0]
    assert np.abs((system.masses[:, None] * first).sum(0)).min() > 1e-3
    np.testing.assert_array_equal(
        first, thermal_velocities(system.masses, temperature_K=300.0, seed=5, replica=0)
    )


def test_half_step_velocities_are_maxwells_and_those_on_the_step_too_cold(tmp_path):
    """Closed form: <v^2> is kT/m at half a step, kT/m (1 - (omega dt)^2 / 4) on the step."""
    system = diatomic()
    spec = dataclasses.replace(NVT, n_replicas=64, length_ps=3.0, timestep_fs=1.5)
    record = simulate(spec, SpringPotential(), system, tmp_path / "run")
    omega_dt = np.sqrt(2.0 * STIFFNESS / system.masses[0]) * 0.0015
    half, on = [], []
    for _, replica in record.replicas():
        r = replica.positions[500:, 1] - replica.positions[500:, 0]
        r /= np.linalg.norm(r, axis=1, keepdims=True)
        kick = 0.5 * 0.0015 * replica.forces[500:] / system.masses[:, None]
        for kept, v in (
            (half, replica.velocities[500:]),
            (on, replica.velocities[500:] + kick),
        ):
            along = ((v[:, 1] - v[:, 0]) * r).sum(1)
            kept.append((along**2).mean() * system.masses[0] / (2.0 * BOLTZMANN * 300.0))
    # 64 replicas, 2.25 ps each: some 700 samples of the stretch; four standard errors.
    error = 4.0 * np.std(half, ddof=1) / 8.0
    assert error < 0.2  # and what sets the two apart is 0.34
    assert np.mean(half) == pytest.approx(1.0, abs=error)
    assert np.mean(on) == pytest.approx(1.0 - omega_dt**2 / 4.0, abs=error)


@pytest.mark.parametrize("potential", [SpringPotential(), NativeSpringPotential()])
def test_a_thermostatted_run_goes_on_with_its_own_random_numbers(tmp_path, potential):
    """Cut and resumed, then extended: bit by bit the run that was never cut."""
    spec = dataclasses.replace(NVT, length_ps=0.4)
    whole = simulate(spec, potential, triatomic(), tmp_path / "whole")
    folder = tmp_path / "cut"
    shorter = dataclasses.replace(spec, length_ps=0.3)
    with pytest.raises(KeyboardInterrupt):
        simulate(shorter, potential, triatomic(), folder, progress=Interrupts())
    simulate(shorter, potential, triatomic(), folder, resume=True)
    # Something else draws random numbers in between.
    simulate(NVT, potential, triatomic(), tmp_path / "other")
    resumed = simulate(spec, potential, triatomic(), folder, resume=True)
    assert "new_random_streams" not in resumed.status["batches"]["0"]
    for one, other in zip(arrays(whole), arrays(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_checkpoint_of_another_platform_gives_a_new_stream_and_says_so(tmp_path):
    spec = dataclasses.replace(NVT, length_ps=0.05, n_replicas=1)
    simulate(spec, SpringPotential(), triatomic(), tmp_path / "run")
    path = tmp_path / "run" / "batch_000.npz"
    with np.load(path) as kept:
        state = dict(kept)
    system = build_system(NativeSpringPotential(), triatomic())
    platform = openmm.Platform.getPlatformByName("CPU")
    other = openmm.Context(system, openmm.VerletIntegrator(0.0005), platform)
    other.setPositions(triatomic().positions)
    state["checkpoint"] = np.frombuffer(other.createCheckpoint(), dtype=np.uint8)
    np.savez(path, **state)
    longer = dataclasses.replace(spec, length_ps=0.1)
    record = simulate(longer, SpringPotential(), triatomic(), tmp_path / "run", resume=True)
    assert record.status["batches"]["0"]["new_random_streams"] == [100]
    replica = record.replica(0)
    assert replica.n_frames == 200
    # It goes on from where it stood, not with the numbers that the run began with.
    jump = replica.positions[100] - replica.positions[99]
    np.testing.assert_allclose(jump, 0.0005 * replica.velocities[100], atol=2e-4)
    began, again = (noise_of_step(replica, step, triatomic().masses) for step in (0, 100))
    assert np.abs(began).max() > 1e-3
    assert np.abs(again - began).max() > 1e-3


def noise_of_step(replica, step, masses):
    """What the thermostat added: v' = c (v + F dt / m) + noise, c = exp(-friction dt)."""
    kicked = replica.velocities[step] + 0.0005 * replica.forces[step] / masses[:, None]
    return replica.velocities[step + 1] - np.exp(-FRICTION_PER_PS * 0.0005) * kicked


def test_a_thermostat_may_take_the_energy_where_it_likes(tmp_path):
    """From the minimum to 1500 K: 0.13 eV an atom, which would stop a run at constant energy."""
    spec = dataclasses.replace(NVT, temperature_K=1500.0, length_ps=1.0)
    record = simulate(spec, SpringPotential(), triatomic(), tmp_path / "run")
    assert not record.events
    total = record.replica(0).potential_energy + record.replica(0).kinetic_energy
    assert np.abs(total - total[0]).max() * EV_PER_KJMOL / 3.0 > 0.1


def test_a_thermostatted_copy_that_breaks_leaves_the_others_alone(tmp_path):
    sound = simulate(NVT, SpringPotential(), triatomic(), tmp_path / "sound")
    potential = SpringPotential(breaks_at=0.15, breaks_copy=1)
    record = simulate(NVT, potential, triatomic(), tmp_path / "run")
    assert list(record.events) == [1]
    for other in (0, 2):
        np.testing.assert_array_equal(
            record.replica(other).positions, sound.replica(other).positions
        )
