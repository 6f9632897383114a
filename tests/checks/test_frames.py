"""Frames: which are looked at, and in which order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from checks.fakes import FakeReplica, FakeRun, Pairs, card, labels, water, with_labels

from omm_mlff.checks.base import Evidence
from omm_mlff.checks.frames import (
    DISPLACEMENT_NM,
    Sample,
    frames_longer_than,
    static_frames,
    stretches,
    usable_replicas,
)
from omm_mlff.schema import Event


def test_static_frames_repeat_with_the_seed_and_differ_between_checks() -> None:
    one = static_frames(Evidence(water(), card(), seed=3), "a", 200)
    assert np.array_equal(one, static_frames(Evidence(water(), card(), seed=3), "a", 200))
    assert not np.array_equal(one, static_frames(Evidence(water(), card(), seed=4), "a", 200))
    assert not np.array_equal(one, static_frames(Evidence(water(), card(), seed=3), "b", 200))
    assert np.array_equal(one[0], water().positions)
    assert (one[1:] - water().positions).std() == pytest.approx(DISPLACEMENT_NM, rel=0.1)


def test_labelled_frames_are_spread_over_all_there_are() -> None:
    reference = labels(Pairs(), water(), temperature_K=[300.0] * 50, trajectory=range(50))
    evidence = Evidence(with_labels(water(), reference), card())
    chosen = static_frames(evidence, "a", 8)
    assert len(chosen) == 8
    assert np.array_equal(chosen[0], reference.positions[0])
    assert np.array_equal(chosen[-1], reference.positions[-1])
    assert len(static_frames(evidence, "a", 99)) == 50


@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("overlap", [0, 2])
def test_stretches_hold_every_frame_in_order(size: int, overlap: int) -> None:
    replica = FakeReplica(3, 1.0, potential_energy=np.arange(40.0))
    pieces = list(stretches(Sample(0, replica, 29), size, ("potential_energy",), overlap))
    seen = [piece["potential_energy"] for piece in pieces]
    fresh = [values[overlap if k else 0 :] for k, values in enumerate(seen)]
    if size >= overlap:
        assert np.concatenate(fresh).tolist() == list(range(29))
    if size >= overlap > 0:
        for before, after in itertools.pairwise(seen):
            assert after[:overlap].tolist() == before[-overlap:].tolist()


def test_longer_than_a_duration_is_one_frame_more_than_fills_it() -> None:
    assert frames_longer_than(0.010, 5e-4) == 21
    assert frames_longer_than(0.010, 0.003) == 4
    assert frames_longer_than(0.010, 0.050) == 1


def test_replicas_that_died_count_by_how_long_they_lasted() -> None:
    def event(step: int) -> Event:
        return Event("nan", step, step * 5e-4, (), 0.0, "", "not finite")

    replicas = [FakeReplica(3, 5e-4, potential_energy=np.zeros(n)) for n in (400, 300, 200)]
    run = FakeRun(replicas, np.ones(3), events={1: event(300), 2: event(200)})
    kept, left_out = usable_replicas(run)
    assert [(sample.index, sample.n_frames) for sample in kept] == [(0, 400), (1, 260)]
    assert left_out == ["replica 2 stopped at 0.1 ps (not finite)"]
