"""Ctrl-C that waits until the step is done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Lets a step finish before Ctrl-C is obeyed, so that every frame is kept.

    Yields
    ------
    a function that says whether Ctrl-C (or SIGTERM) has come
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    seen: list[int] = []
    old = {
        number: signal.signal(number, lambda received, frame: seen.append(received))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
