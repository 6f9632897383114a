"""The course of a replica: Verlet's own invariant, both temperatures, and reading in pieces."""

from __future__ import annotations

import math

import numpy as np
import pytest
from checks.fakes import FakeReplica, FakeRun, water

from omm_mlff.failures import course
from omm_mlff.failures.course import Course, course_of
from omm_mlff.units import BOLTZMANN, EV_PER_KJMOL

MASSES = water().masses[:, None]
RATE, DT = 2.0 * math.pi / 0.016, 5e-4  # 1/ps, ps


def leapfrog(n_frames: int) -> dict[str, np.ndarray]:
    """Nine oscillators by the algorithm itself, recorded as the product records."""
    turn = np.random.default_rng(1).uniform(0.0, 2.0 * math.pi, (3, 3))
    x, v = 0.005 * np.cos(turn), -0.005 * RATE * np.sin(turn - 0.5 * RATE * DT)
    frames: dict[str, list] = {name: [] for name in ("positions", "velocities", "forces", "e", "k")}
    for _ in range(n_frames):
        force = -MASSES * RATE**2 * x
        v_on = v + 0.5 * DT * force / MASSES
        frames["positions"].append(water().positions + x)
        frames["velocities"].append(v_on)
        frames["forces"].append(force)
        frames["e"].append(0.5 * (MASSES * RATE**2 * x**2).sum())
        frames["k"].append(0.5 * (MASSES * v_on**2).sum())
        v = v + DT * force / MASSES
        x = x + DT * v
    arrays = {name: np.array(values) for name, values in frames.items()}
    return {
        **{name: arrays[name] for name in ("positions", "velocities", "forces")},
        "potential_energy": arrays["e"],
        "kinetic_energy": arrays["k"],
    }


def course_from(arrays, stride: int = 1) -> Course:
    system = water()
    replica = FakeReplica(3, DT * stride, **{name: a[::stride] for name, a in arrays.items()})
    return course_of(FakeRun([replica], system.masses, n_dof=9, stride=stride), system, 0)


def test_the_algorithms_own_oscillation_is_taken_out_where_every_step_was_recorded() -> None:
    arrays = leapfrog(400)
    total = (arrays["potential_energy"] + arrays["kinetic_energy"]) * EV_PER_KJMOL
    fine = course_from(arrays)
    assert np.ptp(fine.energy[1:-1]) < 0.02 * np.ptp(total)
    coarse = course_from(arrays, stride=4)
    assert coarse.energy == pytest.approx(total[::4] - total[0])


def test_both_temperatures_are_those_of_the_motion() -> None:
    arrays = leapfrog(4000)
    mean = 0.5 * float((MASSES * (0.005 * RATE) ** 2).sum()) * 3 / (9 * BOLTZMANN)
    found = course_from(arrays)
    assert found.kinetic_K.mean() == pytest.approx(mean, rel=0.02)
    assert found.moved_K.mean() == pytest.approx(mean, rel=0.02)
    assert len(found.time) == len(found.energy) == len(found.kinetic_K) == len(found.moved_K)


def test_a_replica_read_in_pieces_is_the_one_read_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = leapfrog(333)
    whole = course_from(arrays)
    monkeypatch.setattr(course, "_NUMBERS_AT_ONCE", 9 * 50)
    pieces = course_from(arrays)
    for name in ("time", "energy", "kinetic_K", "moved_K"):
        assert getattr(pieces, name) == pytest.approx(getattr(whole, name), abs=1e-12)


@pytest.mark.parametrize("frame", [0, 1, 50, 51, 100, 120])
def test_the_course_ends_before_what_is_not_finite(
    frame: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "_NUMBERS_AT_ONCE", 9 * 50)
    arrays = leapfrog(200)
    arrays["positions"][frame:, 1] = np.nan
    found = course_from(arrays)
    assert len(found.time) == len(found.energy) == len(found.moved_K) == frame
    assert found.broken_ps == pytest.approx(frame * DT)
    assert np.isfinite(found.energy).all()
