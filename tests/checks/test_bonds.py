"""Bonds: trajectories made by hand, on both sides of every threshold."""

from __future__ import annotations

import numpy as np
import pytest
from checks.fakes import WATER, FakeReplica, FakeRun, by_name, card, water
from springs import molecule

from omm_mlff.checks import bonds, survival
from omm_mlff.checks.base import Evidence
from omm_mlff.geometry.distances import pair_lengths
from omm_mlff.schema import Event
from omm_mlff.statistics.intervals import garwood

N_FRAMES = 400


def trajectory(stretch_nm: float = 0.0, first: int = 0, n: int = 0) -> np.ndarray:
    """Water at rest, with bond 0-1 longer by `stretch_nm` in `n` frames."""
    positions = np.tile(np.array(WATER), (N_FRAMES, 1, 1))
    positions[first : first + n, 1, 0] += stretch_nm
    return positions


def measured(*trajectories, system=None, **options):
    system = system or water()
    replicas = [FakeReplica(system.n_atoms, 5e-4, positions=x) for x in trajectories]
    run = FakeRun(replicas, system.masses, **options)
    return by_name(bonds.CHECK.measure(Evidence(system, card(), (run,))))


def test_a_bond_is_broken_after_ten_femtoseconds_and_not_before() -> None:
    for n, expected in ((20, 0), (21, 1)):
        found = measured(trajectory(0.051, 100, n))
        assert found["stability.broken_bonds"].value == expected
    assert measured(trajectory(0.049, 100, 200))["stability.broken_bonds"].value == 0


def test_a_bond_that_comes_back_in_between_is_not_broken() -> None:
    positions = trajectory(0.06, 100, 40)
    positions[120] = WATER
    assert measured(positions)["stability.broken_bonds"].value == 0


def test_a_broken_bond_is_named_with_its_place() -> None:
    row = measured(trajectory(), trajectory(0.06, 100, 30))["stability.broken_bonds"]
    assert (row.where.replica, row.where.frame, row.where.atoms) == (1, 100, (0, 1))
    assert row.cause == "bond O0-H1 at 1.56 angstrom (0.96 at rest), replica 1 at 0.05 ps"


def test_a_break_across_pieces_of_the_record_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bonds, "_PIECE_NUMBERS", 9 * 16)
    row = measured(trajectory(0.06, 100, 21))["stability.broken_bonds"]
    assert (row.value, row.where.frame) == (1, 100)


def test_no_event_comes_with_its_exposure_and_upper_limit() -> None:
    row = measured(trajectory(), trajectory())["stability.broken_bonds"]
    assert (row.kind, row.value, row.n_samples) == ("count", 0.0, 2)
    assert row.exposure_ps == pytest.approx(2 * N_FRAMES * 5e-4)
    assert (row.ci_low, row.ci_high) == garwood(0)


def collision(distance_nm: float, n: int) -> np.ndarray:
    positions = np.tile(np.array(WATER), (N_FRAMES, 1, 1))
    positions[100 : 100 + n, 2] = positions[100 : 100 + n, 1] + [0.0, distance_nm, 0.0]
    return positions


def test_two_hydrogens_that_stay_together_have_a_new_bond_and_a_collision_has_none() -> None:
    # 1.2 (0.31 + 0.31) angstrom, Cordero 2008
    assert measured(collision(0.073, 60))["stability.new_bonds"].value == 1
    assert measured(collision(0.076, 60))["stability.new_bonds"].value == 0
    assert measured(collision(0.073, 15))["stability.new_bonds"].value == 0


def test_a_bond_that_is_there_is_never_new() -> None:
    assert measured(trajectory())["stability.new_bonds"].value == 0


def test_a_hydrogen_transfer_is_called_one() -> None:
    system = molecule([8, 1, 7], [[0, 0, 0], [0.1, 0, 0], [0.3, 0, 0]], [[0, 1]])
    positions = np.tile(system.positions, (N_FRAMES, 1, 1))
    positions[150:, 1, 0] = 0.2
    found = measured(positions, system=system)
    words = "hydrogen transfer: H1 from O0 to N2"
    assert found["stability.broken_bonds"].cause.startswith(words)
    assert found["stability.new_bonds"].cause.startswith(words)


def event(kind: str, atoms=(0, 1)) -> Event:
    return Event(kind, 120, 0.06, atoms, 0.2, "nm", "what happened")


@pytest.mark.parametrize("kind", ["nan", "energy", "overlap"])
def test_a_replica_stopped_by_anything_but_a_bond_is_a_crash(kind: str) -> None:
    found = measured(trajectory(), trajectory()[:120], events={1: event(kind)})
    row = found["stability.crashes"]
    assert (row.value, row.where.replica, row.where.atoms) == (1, 1, (0, 1))
    assert row.cause == "what happened, replica 1 at 0.06 ps"
    assert found["stability.broken_bonds"].value == 0
    assert row.exposure_ps == pytest.approx((N_FRAMES + 120) * 5e-4)


def test_an_event_and_the_frames_together_count_a_broken_bond_once() -> None:
    replica = trajectory(0.06, 99, 21)[:120]
    found = measured(replica, events={0: event("bond")})
    assert found["stability.broken_bonds"].value == 1
    assert found["stability.crashes"].value == 0
    # Frames that do not reach the threshold leave the event as the only witness.
    alone = measured(trajectory(0.06, 110, 10)[:120], events={0: event("bond", (1, 0))})
    assert alone["stability.broken_bonds"].value == 1


def test_distances_in_a_box_are_to_the_nearest_image() -> None:
    box = np.array([[2.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-0.4, 0.3, 2.0]])
    pair = np.array([[0, 1]])
    near = np.array([[0.1, 0.1, 0.1], [0.2, 0.1, 0.1]])
    for shift in np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, -1, 1]]) @ box:
        positions = near + np.array([[0.0] * 3, shift])
        assert bonds.pair_lengths(positions[None], pair, box)[0, 0] == pytest.approx(0.1)


def test_unbonded_pairs_are_all_pairs_but_the_bonds() -> None:
    pairs = bonds.unbonded_pairs(4, np.array([[0, 1], [2, 3]]))
    assert pairs.tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    assert len(bonds.unbonded_pairs(3, np.empty((0, 2), dtype=np.int64))) == 3


def test_lasting_columns_are_those_of_a_frame_by_frame_count_however_the_frames_are_cut() -> None:
    random = np.random.default_rng(3)
    for _ in range(200):
        n, enough = int(random.integers(1, 60)), int(random.integers(1, 8))
        flags = random.random((n, 4)) < random.choice([0.3, 0.7, 0.95])
        expected = {}
        for column in range(4):
            streak = 0
            for frame in range(n):
                streak = streak + 1 if flags[frame, column] else 0
                if streak == enough and column not in expected:
                    expected[column] = frame - enough + 1
        cuts = np.sort(random.integers(0, n + 1, 3))
        streaks = bonds.Streaks(enough)
        for piece in np.split(flags, cuts):
            streaks.add(piece)
        columns, began = streaks.found()
        assert dict(zip(columns.tolist(), began.tolist(), strict=True)) == expected


@pytest.mark.parametrize("box", [None, np.diag([0.3, 0.4, 0.5])])
def test_lengths_by_pair_are_pair_lengths_to_the_last_bit(box) -> None:
    random = np.random.default_rng(4)
    positions = random.normal(size=(7, 5, 3))
    pairs = np.array([[0, 1], [4, 2], [3, 0]])
    found = bonds.lengths_by_pair(positions, pairs, box)
    np.testing.assert_array_equal(found, pair_lengths(positions, pairs, box).T)


def test_bonds_are_looked_for_once_for_all_checks_of_a_run(monkeypatch) -> None:
    looks = []
    original = bonds.lengths_by_pair
    monkeypatch.setattr(
        bonds, "lengths_by_pair", lambda *given: looks.append(1) or original(*given)
    )
    run = FakeRun([FakeReplica(3, 5e-4, positions=trajectory())], water().masses)
    evidence = Evidence(water(), card(), (run,))
    bonds.CHECK.measure(evidence)
    n_looks = len(looks)
    assert n_looks > 0
    survival.CHECK.measure(evidence)
    assert len(looks) == n_looks
