"""What stays in memory: once, while there is room, and as long as its record lives."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from omm_mlff.record.frame_cache import Kept, Room


def test_what_is_kept_is_made_once() -> None:
    kept = Kept(Room(100))
    made = []
    for _ in range(3):
        assert kept.value("a", 10, lambda: made.append(1) or "frames") == "frames"
    assert made == [1]


def test_all_records_together_stay_within_the_room() -> None:
    room = Room(100)
    one, other = Kept(room), Kept(room)
    assert one.value("a", 60, lambda: "a") == "a"
    assert other.value("b", 60, lambda: "b") is None
    assert other.value("c", 40, lambda: "c") == "c"
    assert room.n_free == 0


def test_what_finds_no_room_is_made_each_time() -> None:
    kept = Kept(Room(5))
    assert [kept.of("a", 6, lambda: np.ones(1))[0] for _ in range(2)] == [1.0, 1.0]
    assert kept.of("a", 6, dict) is not kept.of("a", 6, dict)


def test_the_room_comes_back_with_the_end_of_the_record() -> None:
    room = Room(100)
    kept = Kept(room)
    kept.value("a", 70, lambda: "a")
    assert room.n_free == 30
    del kept
    gc.collect()
    assert room.n_free == 100


def test_what_fails_takes_no_room() -> None:
    room = Room(100)
    kept = Kept(room)
    with pytest.raises(ZeroDivisionError):
        kept.value("a", 70, lambda: 1 // 0)
    assert room.n_free == 100
    assert kept.value("a", 70, lambda: "later") == "later"
