"""Tells a full or unwritable disk from a fault of this package."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import tables

from omm_mlff.errors import StorageError


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns a full or unwritable disk into a StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"the disk is full: cannot write {path}; free some space, then repeat with --resume"
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StorageError(f"cannot write {path}: {error.strerror}") from error
        raise
    except tables.HDF5ExtError as error:
        free = os.statvfs(path.parent if path.parent.exists() else Path.cwd()).f_bavail
        reason = "the disk is full" if free < 1024 else str(error).strip().splitlines()[-1]
        raise StorageError(f"cannot write {path}: {reason}") from error
