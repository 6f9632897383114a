"""What was read or worked out from finished runs, and stays in memory while it is small.

Many checks ask for the same frames. Those of a short run are read once; there is room for
`ROOM_BYTES` in all, first come, first kept, and what finds no room is read each time anew: memory
does not grow with the length of a run. It is given back with the record that it belongs to.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

ROOM_BYTES = 512 * 1024 * 1024

Made = TypeVar("Made")


class Room:
    """How much may be kept by all records together."""

    def __init__(self, n_bytes: int) -> None:
        self.n_free = n_bytes


_ROOM = Room(ROOM_BYTES)


class Kept:
    """What one record keeps.

    Parameters
    ----------
    room : shared with other records; by default with all of the process
    """

    def __init__(self, room: Room = _ROOM) -> None:
        self._room = room
        self._values: dict[Hashable, Any] = {}
        self._taken = [0]
        weakref.finalize(self, _give_back, room, self._taken)

    def value(self, key: Hashable, n_bytes: int, make: Callable[[], Made]) -> Made | None:
        """What is kept under a key; made where it is not yet there. None where there is no room.

        Parameters
        ----------
        n_bytes : that it will take, or more
        make : called at most once for a key, and only where there is room
        """
        if key not in self._values:
            if n_bytes > self._room.n_free:
                return None
            self._values[key] = make()
            self._room.n_free -= n_bytes
            self._taken[0] += n_bytes
        made: Made = self._values[key]
        return made

    def of(self, key: Hashable, n_bytes: int, make: Callable[[], Made]) -> Made:
        """What is kept under a key; made each time anew where there is no room for it."""
        made = self.value(key, n_bytes, make)
        return make() if made is None else made


def _give_back(room: Room, taken: list[int]) -> None:
    room.n_free += taken[0]
