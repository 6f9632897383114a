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
    assert device.status.batches[0].n_evaluations == spec.n_steps
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
    assert many.status.batches[0].n_evaluations < 1.2 * SPEC.n_steps
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
    assert record.status.batches[0].n_evaluations > 1.5 * SPEC.n_steps
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
