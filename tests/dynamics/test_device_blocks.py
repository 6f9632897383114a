"""What is done on a device, done on the host: blocks read out of the counted ring, velocities from
forces, the next block under way while one is looked at.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from springs import SpringEngine, SpringPotential, triatomic
from torch import Tensor, nn

from omm_mlff.dynamics import batch, blocks
from omm_mlff.dynamics.leapfrog import ends_agree, leapfrog
from omm_mlff.dynamics.simulate import simulate
from omm_mlff.forces.making import make_force
from omm_mlff.forces.plugin import built_as
from omm_mlff.potentials.registry import load_potential
from omm_mlff.record.rundir import RunRecord
from omm_mlff.schema import RunSpec
from omm_mlff.systems import load_system

SPEC = RunSpec("springs", "springs", 0.5, 300.0, 3, seed=5, platform="Reference")
FIELDS = ("time", "positions", "velocities", "forces", "potential_energy", "kinetic_energy")


class SinglePositions(nn.Module):
    """An engine that sees positions in float32, as on a device in mixed precision."""

    def __init__(self, engine: nn.Module) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        energies, forces = self.engine(positions.float().double(), box)
        return energies, forces.float()


class Springs(SpringPotential):
    """Springs whose steps may be taken many at a time."""

    repeatable = True
    single_positions = False

    def add_to(self, openmm_system, system, *, n_replicas=1, tap=None):  # type: ignore[no-untyped-def]
        engine: nn.Module = SpringEngine(system, n_replicas, **self.engine_options)
        if self.single_positions:
            engine = SinglePositions(engine)
        openmm_system.addForce(make_force(engine, periodic=False, tap=tap))
        return built_as(self.backend)


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Reference platform counts as one that must not be waited for."""
    monkeypatch.setattr(batch, "counts_itself", lambda platform_name: True)


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch._Course, "_blocks", lambda self, room: None)


def compare(one: RunRecord, other: RunRecord, atol: float = 1e-11) -> None:
    """Forces and energies to the last bit; positions and velocities as sums of float64 round."""
    assert one.n_replicas == other.n_replicas
    for replica in range(one.n_replicas):
        first, second = one.replica(replica), other.replica(replica)
        for name in FIELDS:
            a, b = getattr(first, name), getattr(second, name)
            if name in ("time", "forces", "potential_energy"):
                np.testing.assert_array_equal(a, b, err_msg=name)
            else:
                np.testing.assert_allclose(a, b, rtol=atol, atol=atol, err_msg=name)


@pytest.mark.parametrize("stride", [1, 7])
def test_a_run_on_a_device_is_the_run_on_the_host(
    stride: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    potential, system = load_potential("ultra-tiny"), load_system("methane")
    spec = dataclasses.replace(SPEC, record_stride=stride)
    host = simulate(spec, potential, system, tmp_path / "host")
    monkeypatch.setattr(batch, "counts_itself", lambda platform_name: True)
    device = simulate(spec, potential, system, tmp_path / "device")
    assert device.status["batches"]["0"]["n_evaluations"] == spec.n_steps
    compare(device, host)


@pytest.mark.usefixtures("on_device")
def test_velocities_do_not_come_from_positions_in_single_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    potential = Springs()
    potential.single_positions = True
    device = simulate(SPEC, potential, triatomic(), tmp_path / "device")
    one_by_one(monkeypatch)
    asked = simulate(SPEC, potential, triatomic(), tmp_path / "asked")
    compare(device, asked, atol=1e-9)
    # What the differences of such positions would be off by.
    replica = asked.replica(0)
    moved = np.diff(replica.positions.astype(np.float32).astype(float), axis=0) / 0.0005
    exact = np.diff(replica.positions, axis=0) / 0.0005
    assert np.abs(moved - exact).max() > 1e-6


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("n_slots", [2, 10, 64])
def test_a_small_ring_makes_small_blocks(
    n_slots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = triatomic()
    wide = simulate(SPEC, Springs(), system, tmp_path / "wide")
    sizes = []
    launch = blocks.DeviceBlocks.launch

    def seen(self: Any, first: int, n: int, start: Any) -> None:
        sizes.append(n)
        launch(self, first, n, start)

    monkeypatch.setattr(blocks.DeviceBlocks, "launch", seen)
    frame_bytes = 8 * 3 * (3 * system.n_atoms + 1)
    monkeypatch.setattr(batch, "_DEVICE_BYTES", n_slots * frame_bytes)
    narrow = simulate(SPEC, Springs(), system, tmp_path / "narrow")
    assert max(sizes) == n_slots // 2
    assert sum(sizes) == SPEC.n_steps
    compare(narrow, wide)


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("breaks_copy", [0, 2])
def test_a_replica_that_dies_dies_the_same_and_the_others_do_not_notice(
    breaks_copy: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    potential = Springs(breaks_at=0.1545, breaks_copy=breaks_copy)
    many = simulate(SPEC, potential, triatomic(), tmp_path / "many")
    one_by_one(monkeypatch)
    single = simulate(SPEC, potential, triatomic(), tmp_path / "single")
    assert {r: (e.kind, e.step) for r, e in many.events.items()} == {
        r: (e.kind, e.step) for r, e in single.events.items()
    }
    assert list(many.events) == [breaks_copy]
    assert 0 < many.replica(breaks_copy).n_frames < SPEC.n_steps
    # The block it died in, and the one under way then: no other step is taken twice.
    assert many.status["batches"]["0"]["n_evaluations"] < 1.2 * SPEC.n_steps
    compare(many, single)


@pytest.mark.usefixtures("on_device")
def test_hot_students_have_the_events_of_the_steps_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    potential, system = load_potential("ultra-tiny"), load_system("methane")
    spec = dataclasses.replace(SPEC, temperature_K=9000.0, n_replicas=6)
    many = simulate(spec, potential, system, tmp_path / "many")
    one_by_one(monkeypatch)
    single = simulate(spec, potential, system, tmp_path / "single")
    assert len(many.events) >= 2
    assert {r: (e.kind, e.step, e.atoms) for r, e in many.events.items()} == {
        r: (e.kind, e.step, e.atoms) for r, e in single.events.items()
    }
    compare(many, single, atol=1e-8)


@pytest.mark.usefixtures("on_device")
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    import signal

    def press(step: int, total: int) -> None:
        if 100 < step < 900:
            signal.raise_signal(signal.SIGINT)

    whole = simulate(SPEC, Springs(), triatomic(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        simulate(SPEC, Springs(), triatomic(), tmp_path / "cut", progress=press)
    cut = RunRecord.open(tmp_path / "cut")
    assert 100 < cut.replica(0).n_frames < SPEC.n_steps
    resumed = simulate(SPEC, Springs(), triatomic(), tmp_path / "cut", resume=True)
    compare(resumed, whole)


@pytest.mark.usefixtures("on_device")
def test_forces_that_are_not_those_that_moved_the_atoms_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then each step is asked for: the record is right, and slow."""
    right = simulate(SPEC, Springs(), triatomic(), tmp_path / "right")

    def off(*arguments: Any) -> Any:
        x, v = leapfrog(*arguments)
        return x, v * (1.0 + 1e-6)

    monkeypatch.setattr(blocks, "leapfrog", off)
    record = simulate(SPEC, Springs(), triatomic(), tmp_path / "run")
    assert record.status["batches"]["0"]["n_evaluations"] > 1.5 * SPEC.n_steps
    compare(record, right)


@pytest.mark.usefixtures("on_device")
def test_drift_is_as_small_as_on_the_host(tmp_path: Path) -> None:
    """Closed form: the leapfrog's shadow energy of a spring is conserved."""
    record = simulate(SPEC, Springs(), triatomic(), tmp_path / "run")
    for _, replica in record.replicas():
        total = replica.potential_energy + replica.kinetic_energy
        halves = total[: len(total) // 2].mean(), total[len(total) // 2 :].mean()
        assert abs(halves[1] - halves[0]) < 1e-3 * total.mean()


@pytest.mark.parametrize("precision", ["single", "mixed"])
def test_the_leapfrog_follows_an_integrator_of_either_precision(precision: Any) -> None:
    """Velocities rounded at each step to float32 stay within bounds that a wrong force leaves."""
    real = np.float32 if precision == "single" else np.float64
    rng = np.random.default_rng(0)
    n, dt, inverse_mass = 256, 0.0005, 1.0
    x0 = rng.normal(scale=0.2, size=(2, 5, 3)).astype(real).astype(float)
    v0 = rng.normal(scale=2.0, size=(2, 5, 3)).astype(real).astype(float)
    x, v, forces = x0.copy(), v0.copy(), []
    for _ in range(n):
        force = (-5e3 * x).astype(np.float32).astype(float)
        forces.append(force)
        v = (v + np.round(force * 2.0**32) / 2.0**32 * dt).astype(real).astype(float)
        x = (x + v * dt).astype(real).astype(float)
    arguments = (x0, v0, np.array(forces), np.array(inverse_mass), dt)
    mine_x, mine_v = leapfrog(*arguments)
    assert ends_agree((mine_x[-1], mine_v[-1]), (x, v), precision)
    wrong = np.array(forces) * (1.0 + (1e-2 if precision == "single" else 1e-5))
    wrong_x, wrong_v = leapfrog(x0, v0, wrong, np.array(inverse_mass), dt)
    assert not ends_agree((wrong_x[-1], wrong_v[-1]), (x, v), precision)
    assert torch.from_numpy(mine_x).shape == (n + 1, 2, 5, 3)


def close(one: RunRecord, other: RunRecord, steps: int) -> None:
    """The same run as far as float32 forces, summed in no fixed order, let two runs be the same."""
    for replica in range(one.n_replicas):
        first, second = one.replica(replica), other.replica(replica)
        assert first.n_frames == second.n_frames
        for name, atol in (("positions", 1e-5), ("velocities", 2e-2), ("forces", 20.0)):
            a, b = getattr(first, name)[:steps], getattr(second, name)[:steps]
            np.testing.assert_allclose(a, b, rtol=0.0, atol=atol, err_msg=name)
        for name in ("potential_energy", "kinetic_energy"):
            a, b = getattr(first, name)[:steps], getattr(second, name)[:steps]
            np.testing.assert_allclose(a, b, rtol=0.0, atol=0.5, err_msg=name)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["single", "mixed", "double"])
def test_on_cuda_blocks_are_the_steps_one_by_one(
    precision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = dataclasses.replace(SPEC, length_ps=0.1, platform="CUDA", precision=precision)
    many = simulate(spec, Springs(), triatomic(), tmp_path / "many")
    # No block was taken again: forces in float64 sums end where the Context does.
    assert many.status["batches"]["0"]["n_evaluations"] == spec.n_steps
    one_by_one(monkeypatch)
    single = simulate(spec, Springs(), triatomic(), tmp_path / "single")
    close(many, single, 100)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["mixed", "double"])
def test_on_cuda_a_replica_that_dies_is_masked_and_the_others_go_on(
    precision: Any, tmp_path: Path
) -> None:
    spec = dataclasses.replace(SPEC, length_ps=0.1, platform="CUDA", precision=precision)
    sound = simulate(spec, Springs(), triatomic(), tmp_path / "sound")
    potential = Springs(breaks_at=0.1545, breaks_copy=1)
    record = simulate(spec, potential, triatomic(), tmp_path / "run")
    assert [(r, event.kind) for r, event in record.events.items()] == [(1, "nan")]
    assert 0 < record.replica(1).n_frames < spec.n_steps
    assert np.isfinite(record.replica(1).positions).all()
    for other in (0, 2):
        np.testing.assert_allclose(
            record.replica(other).positions[:100], sound.replica(other).positions[:100], atol=1e-5
        )


@pytest.mark.cuda
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_on_cuda_each_step_fills_the_next_slot(cuda_graphs: bool) -> None:
    """By launches, and by replays of a graph that was captured once."""
    import openmm

    from omm_mlff.forces.platforms import platform_properties
    from omm_mlff.forces.tap import Tap
    from omm_mlff.potentials.base import build_system
    from omm_mlff.potentials.student import StudentPotential

    system, n_replicas, n = load_system("ethanol"), 4, 24
    tap = Tap(n_replicas, system.n_atoms, n_slots=40, counted=True)
    potential = StudentPotential("tiny", cuda_graphs=cuda_graphs)
    context = openmm.Context(
        build_system(potential, system, n_replicas=n_replicas, tap=tap),
        openmm.VerletIntegrator(0.0005),
        openmm.Platform.getPlatformByName("CUDA"),
        platform_properties("CUDA", "mixed"),
    )
    rng = np.random.default_rng(0)
    positions = np.tile(system.positions, (n_replicas, 1))
    context.setPositions(positions + rng.normal(scale=0.003, size=positions.shape))
    context.setVelocities(np.zeros_like(positions))
    for _ in range(3):
        context.getState(energy=True, forces=True)
    energies = []
    for _ in range(2):  # the second goes over the ring's end
        before, launches = tap.n_calls, tap.n_launches
        context.getIntegrator().step(n)
        assert tap.n_calls - before == n
        assert (tap.n_launches == launches) == cuda_graphs
        assert tap.kept is not None
        arrays = tap.kept.fetch(before, n).arrays()
        assert arrays is not None
        np.testing.assert_array_equal(arrays[0][-1], tap.read()[0])
        np.testing.assert_array_equal(arrays[1][-1], tap.read()[1])
        energies.append(arrays[0])
        # Released at rest: the potential energy falls, step by step and in each replica by its own.
        assert len(np.unique(arrays[0])) == arrays[0].size
    first = energies[0]
    assert (np.diff(first[:4], axis=0) < 0.0).all()
    context.setVelocities(np.zeros_like(positions))
    state = context.getState(energy=True)
    total = float(tap.read()[0].sum())
    assert total == pytest.approx(state.getPotentialEnergy()._value, rel=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["single", "mixed", "double"])
def test_on_cuda_eight_alanines_keep_their_energy(precision: Any, tmp_path: Path) -> None:
    potential, system = load_potential("tiny"), load_system("alanine")
    spec = RunSpec("tiny", "alanine", 0.5, 300.0, 8, seed=1, platform="CUDA", precision=precision)
    record = simulate(spec, potential, system, tmp_path / "run")
    assert record.events == {}
    assert record.status["batches"]["0"]["n_evaluations"] == spec.n_steps
    for _, replica in record.replicas():
        total = replica.potential_energy + replica.kinetic_energy
        assert np.ptp(total) < 0.05 * np.ptp(replica.kinetic_energy)
        # Positions follow the velocities that are recorded with them.
        v_half = np.diff(replica.positions, axis=0) / 0.0005
        on_step = 0.5 * (v_half[1:] + v_half[:-1])
        np.testing.assert_allclose(replica.velocities[1:-1], on_step, atol=2e-2)


@pytest.mark.cuda
def test_on_cuda_a_killed_run_goes_on_from_its_last_closed_segment(tmp_path: Path) -> None:
    import os
    import signal
    import subprocess
    import sys
    import time

    script = """
import sys
from omm_mlff.dynamics.simulate import simulate
from omm_mlff.potentials.registry import load_potential
from omm_mlff.record import rundir
from omm_mlff.schema import RunSpec
from omm_mlff.systems import load_system
rundir.SEGMENT_FRAMES = 256
spec = RunSpec("tiny", "alanine", 50.0, 300.0, 8, seed=5, platform="CUDA", precision="mixed")
simulate(spec, load_potential("tiny"), load_system("alanine"), sys.argv[1])
"""
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)])
    deadline = time.monotonic() + 120
    while not (folder / "replica_007" / "00001.h5").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = int(np.load(folder / "batch_000.npz")["step"])
    assert kept >= 256

    def press(step: int, total: int) -> None:
        if step > kept + 256:
            signal.raise_signal(signal.SIGINT)

    spec = RunSpec("tiny", "alanine", 50.0, 300.0, 8, seed=5, platform="CUDA", precision="mixed")
    with pytest.raises(KeyboardInterrupt):
        simulate(
            spec,
            load_potential("tiny"),
            load_system("alanine"),
            folder,
            resume=True,
            progress=press,
        )
    for _, replica in RunRecord.open(folder).replicas():
        assert replica.n_frames > kept
        np.testing.assert_allclose(np.diff(replica.time), 0.0005, rtol=1e-9)
        # Nothing jumps where the run went on.
        assert np.abs(np.diff(replica.positions, axis=0)).max() < 0.01
        total = replica.potential_energy + replica.kinetic_energy
        assert np.ptp(total) < 0.05 * np.ptp(replica.kinetic_energy)
