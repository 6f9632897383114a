"""The watch stops what has diverged and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from springs import molecule, triatomic

from omm_mlff.dynamics.stability_watch import Watch
from omm_mlff.geometry.distances import covalent_radii, minimum_image
from omm_mlff.units import KJMOL_PER_EV

ALIVE = np.ones(1, dtype=bool)


def look(watch, step, positions, potential=0.0, kinetic=0.0, finite=True):
    return watch.look(
        step,
        np.asarray(positions)[None],
        np.array([potential]),
        np.array([kinetic]),
        np.array([finite]),
        ALIVE,
    )


def stretched(system, by):
    positions = system.positions.copy()
    positions[1, 0] += by
    return positions


def test_a_sound_replica_goes_on():
    system = triatomic()
    watch = Watch(system, system.positions, 1, 0.0005)
    for step in range(50):
        assert not look(watch, step, stretched(system, 0.01 * np.sin(step)))


def test_a_bond_counts_as_broken_after_ten_femtoseconds():
    system = triatomic()
    watch = Watch(system, system.positions, 1, 0.0005)
    seen = [bool(look(watch, step, stretched(system, 0.051))) for step in range(25)]
    assert seen.index(True) == 20
    assert not any(seen[:20])


def test_a_bond_that_comes_back_is_not_broken():
    system = triatomic()
    watch = Watch(system, system.positions, 1, 0.0005)
    for step in range(100):
        by = 0.06 if step % 20 else 0.0
        assert not look(watch, step, stretched(system, by))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_energy_may_not_leave_its_start_by_a_tenth_of_an_ev_per_atom(sign):
    system = triatomic()
    watch = Watch(system, system.positions, 1, 0.0005)
    look(watch, 0, system.positions, potential=-1e5)
    inside = sign * 0.099 * 3 * KJMOL_PER_EV
    assert not look(watch, 1, system.positions, potential=-1e5, kinetic=inside)
    beyond = sign * 0.101 * 3 * KJMOL_PER_EV
    event = look(watch, 2, system.positions, potential=-1e5, kinetic=beyond)[0]
    assert event.kind == "energy"
    assert event.value == pytest.approx(sign * 0.101, rel=1e-6)


def test_nan_is_stopped_at_once():
    system = triatomic()
    watch = Watch(system, system.positions, 1, 0.0005)
    event = look(watch, 3, system.positions, potential=np.nan, finite=False)[0]
    assert event.kind == "nan"
    assert event.step == 3
    assert event.time_ps == pytest.approx(0.0015)


def test_covalent_radii_are_those_of_cordero():
    np.testing.assert_allclose(
        covalent_radii(np.array([1, 6, 7, 8])), [0.031, 0.076, 0.071, 0.066], atol=1e-9
    )


def test_overlap_in_a_box_is_found_across_its_face():
    positions = [[0.01, 0.5, 0.5], [0.97, 0.5, 0.5], [0.5, 0.5, 0.5]]
    system = molecule([8, 8, 8], positions, [], box_vectors=np.eye(3))
    watch = Watch(system, system.positions, 1, 0.0005)
    event = look(watch, 0, system.positions)[0]
    assert event.kind == "overlap"
    assert event.atoms == (0, 1)
    assert event.value == pytest.approx(0.04)


def test_a_bond_across_the_face_of_a_box_keeps_its_length():
    positions = [[0.02, 0.5, 0.5], [0.95, 0.5, 0.5]]
    system = molecule([8, 1], positions, [[0, 1]], box_vectors=np.eye(3))
    watch = Watch(system, system.positions, 1, 0.0005)
    assert watch.rest_lengths[0] == pytest.approx(0.07)


def test_minimum_image_in_a_skewed_box_is_the_shortest():
    box = np.array([[2.0, 0, 0], [0.6, 1.8, 0], [-0.5, 0.4, 2.2]])
    rng = np.random.default_rng(0)
    r = rng.uniform(-0.4, 0.4, size=(200, 3))
    shifts = rng.integers(-2, 3, size=(200, 3)) @ box
    np.testing.assert_allclose(minimum_image(r + shifts, box), r, atol=1e-12)


def test_a_stopped_watch_goes_on_as_it_was():
    system = triatomic()
    watch = Watch(system, system.positions, 1, 0.0005)
    for step in range(15):
        look(watch, step, stretched(system, 0.06))
    later = Watch(system, system.positions, 1, 0.0005)
    later.restore(watch.first_energy.copy(), watch.steps_stretched.copy())
    seen = [bool(look(later, step, stretched(system, 0.06))) for step in range(15, 25)]
    assert seen.index(True) == 5
