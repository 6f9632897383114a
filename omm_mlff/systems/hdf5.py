"""Groups of arrays in an HDF5 file of another package."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omm_mlff.errors import InputError

Groups = Iterator[tuple[str, Mapping[str, Any]]]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Groups]:
    """Name and arrays of every group that has some; an array is read when its `read` is called.

    Raises
    ------
    InputError : not an HDF5 file
    """
    import tables

    try:
        file = tables.open_file(str(path), mode="r")
    except (OSError, tables.HDF5ExtError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is not an HDF5 file that can be read ({reason})") from error
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # strings of variable length, which are not read here
        yield _groups(file)


def _groups(file: Any) -> Groups:
    for group in file.walk_groups():
        arrays = {node._v_name: node for node in file.iter_nodes(group) if hasattr(node, "read")}
        if arrays:
            yield group._v_pathname, arrays
