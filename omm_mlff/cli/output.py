"""Keeps standard output for what a command was asked for."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def models_print_to_stderr() -> Iterator[None]:
    """Meanwhile what is printed goes to standard error, by Python or by a library beneath it.

    A model's code prints what it likes, and the document of `--json` must stand alone.
    """
    with contextlib.redirect_stdout(sys.stderr), _descriptor_redirected():
        yield


@contextlib.contextmanager
def _descriptor_redirected() -> Iterator[None]:
    """Sends what code writes to the descriptor of stdout itself to that of stderr."""
    if sys.__stdout__ is None or sys.__stderr__ is None:
        yield
        return
    try:
        out, err = sys.__stdout__.fileno(), sys.__stderr__.fileno()
        sys.__stdout__.flush()
        kept = os.dup(out)
    except (OSError, ValueError):  # a stream that is closed, or none of the system's
        yield
        return
    try:
        os.dup2(err, out)
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.__stdout__.flush()
        os.dup2(kept, out)
        os.close(kept)
