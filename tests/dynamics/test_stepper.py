"""Many steps in one call of OpenMM against the same steps one by one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from springs import SpringPotential, triatomic

from omm_mlff.dynamics.batch import _Course
from omm_mlff.dynamics.simulate import simulate
from omm_mlff.dynamics.stability_watch import Watch
from omm_mlff.potentials.registry import load_potential
from omm_mlff.record.rundir import RunRecord
from omm_mlff.schema import RunSpec
from omm_mlff.systems import load_system

FIELDS = ("time", "positions", "velocities", "forces", "potential_energy", "kinetic_energy")


def run(folder: Path, potential: Any, name: str, **changes: Any) -> RunRecord:
    spec = RunSpec(
        **{
            "potential": potential.spec,
            "system": name,
            "length_ps": 0.3,
            "temperature_K": 300.0,
            "n_replicas": 3,
            "seed": 5,
            "platform": "Reference",
            **changes,
        }
    )
    return simulate(spec, potential, load_system(name), folder)


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Course, "_blocks", lambda self, room: None)


def frames(record: RunRecord, replica: int) -> dict[str, Any]:
    loaded = record.replica(replica)
    return {name: getattr(loaded, name) for name in FIELDS}


def assert_same(one: RunRecord, other: RunRecord) -> None:
    for replica in range(one.n_replicas):
        first, second = frames(one, replica), frames(other, replica)
        for name in FIELDS:
            if name == "kinetic_energy":  # summed in another order
                np.testing.assert_allclose(first[name], second[name], rtol=1e-13)
            else:
                np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("stride", [1, 7])
def test_steps_in_one_call_are_the_steps_one_by_one(
    platform: str, stride: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    potential = load_potential("ultra-tiny")
    many = run(tmp_path / "many", potential, "methane", platform=platform, record_stride=stride)
    one_by_one(monkeypatch)
    single = run(tmp_path / "single", potential, "methane", platform=platform, record_stride=stride)
    assert len(frames(many, 0)["time"]) == -(-600 // stride)
    assert_same(many, single)


def test_a_sound_run_takes_one_evaluation_a_step_and_no_step_twice(tmp_path: Path) -> None:
    record = run(tmp_path / "run", load_potential("ultra-tiny"), "water")
    assert record.status["batches"]["0"]["n_evaluations"] <= 600 + 1
    assert record.provenance["engine"] == "compiled (C++)"


def test_the_record_says_which_engine_ran(tmp_path: Path) -> None:
    potential = load_potential("ultra-tiny?engine=scripted")
    record = run(tmp_path / "run", potential, "water", length_ps=0.01)
    assert record.provenance["engine"] == "scripted"


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("breaks_copy", [0, 2])
def test_a_replica_that_dies_dies_the_same_and_the_others_do_not_notice(
    platform: str, breaks_copy: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = triatomic()
    potential = SpringPotential(breaks_at=0.1545, breaks_copy=breaks_copy)
    potential.repeatable = True
    spec = RunSpec("springs", "springs", 0.3, 300.0, 3, 5, platform=platform)
    many = simulate(spec, potential, system, tmp_path / "many")
    sound = simulate(spec, SpringPotential(), system, tmp_path / "sound")
    one_by_one(monkeypatch)
    single = simulate(spec, potential, system, tmp_path / "single")
    assert many.events == single.events
    assert list(many.events) == [breaks_copy]
    assert 0 < many.replica(breaks_copy).n_frames < 600
    assert_same(many, single)
    for other in {0, 1, 2} - {breaks_copy}:
        for name in FIELDS:
            np.testing.assert_array_equal(
                getattr(many.replica(other), name), getattr(sound.replica(other), name)
            )


@pytest.mark.parametrize(("name", "temperature_K"), [("methane", 9000.0), ("ethanol", 8000.0)])
def test_hot_students_have_the_events_of_the_steps_one_by_one(
    name: str, temperature_K: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    potential = load_potential("ultra-tiny")
    changes = {"temperature_K": temperature_K, "n_replicas": 6}
    many = run(tmp_path / "many", potential, name, **changes)
    one_by_one(monkeypatch)
    single = run(tmp_path / "single", potential, name, **changes)
    assert len(many.events) >= 2
    assert many.events == single.events
    assert_same(many, single)


def test_every_event_is_found_among_many_steps_too() -> None:
    """What `look` stops, `passes` does not let through; what it lets through, `look` does."""
    system = triatomic()
    rng = np.random.default_rng(0)
    n, dt = 64, 0.0005
    found = dict.fromkeys(("bond", "energy", "overlap", "nan"), 0)
    passed = 0
    for trial in range(200):
        x = np.tile(system.positions, (n, 2, 1, 1)) + rng.normal(scale=0.002, size=(n, 2, 3, 3))
        v = np.zeros_like(x)
        potential, kinetic = np.zeros((n, 2)), np.ones((n, 2))
        kind = ("bond", "energy", "overlap", "nan", "none")[trial % 5]
        begin = int(rng.integers(0, n))
        end = min(n, begin + int(rng.integers(1, 40)))
        if kind == "bond":
            x[begin:end, 1, 1] += [0.06, 0.0, 0.0]
        elif kind == "energy":
            kinetic[begin:end, 1] += 40.0
        elif kind == "overlap":
            away = np.clip(0.01 * np.abs(np.arange(n) - begin), 0.0, 0.05)[:, None]
            x[:, 1, 2] = x[:, 1, 1] + [0.02, 0.0, 0.0] + away * [1.0, 0.0, 0.0]
            v[:, 1, 2] = 0.01 / dt
        elif kind == "nan":
            potential[begin, 1] = np.nan
        alive = np.ones(2, dtype=bool)
        one, many = (Watch(system, system.positions, 2, dt) for _ in range(2))
        event = None
        for k in range(n):
            finite = np.isfinite(potential[k] + kinetic[k])
            events = one.look(k, x[k], potential[k], kinetic[k], finite, alive)
            if events:
                event = events[1]
                break
        if many.passes(0, x, v, potential, kinetic, alive):
            assert event is None
            passed += 1
            np.testing.assert_array_equal(one.first_energy, many.first_energy)
            np.testing.assert_array_equal(one.steps_stretched, many.steps_stretched)
        else:
            assert event is not None
            found[event.kind] += 1
            assert np.isnan(many.first_energy).all()
            assert not many.steps_stretched.any()
    assert passed >= 40
    assert min(found.values()) >= 10
