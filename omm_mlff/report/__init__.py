"""Writes what was judged, in one file per format.

A format is one module of this package with a `FILE_NAME` and a `write(judged, path)`; adding one
takes no edit elsewhere. The console is not among them: `console.show` prints.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from omm_mlff.errors import StorageError
from omm_mlff.report.judged import Judged

__all__ = ["Judged", "formats", "write_reports"]


def formats() -> dict[str, ModuleType]:
    """The modules that write a file, by the file's name, sorted."""
    modules = [
        importlib.import_module(f"{__name__}.{info.name}")
        for info in pkgutil.iter_modules(__path__)
    ]
    found = {module.FILE_NAME: module for module in modules if hasattr(module, "FILE_NAME")}
    return dict(sorted(found.items()))


def write_reports(judged: Judged, folder: Path) -> list[Path]:
    """The paths of the files, one for every format, written into an existing folder.

    Raises
    ------
    StorageError : the disk is full or the folder not writable
    """
    paths = []
    for name, module in formats().items():
        path = folder / name
        try:
            module.write(judged, path)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
        paths.append(path)
    return paths
