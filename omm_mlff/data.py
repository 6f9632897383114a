"""Finds `systems/` and `checkpoints/`: package data in a wheel, else the checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """The folder with shipped data.

    Parameters
    ----------
    name : "systems" or "checkpoints"

    Raises
    ------
    FileNotFoundError : neither the wheel nor the checkout has it; the installation is broken
    """
    for candidate in (_PACKAGE / "_data" / name, _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"the data folder {name!r} is neither in the package nor beside it; reinstall omm-mlff"
    )


def shipped_names(kind: str, marker: str) -> list[str]:
    """Names of the shipped folders that hold a file called `marker`, sorted."""
    return sorted(path.parent.name for path in data_folder(kind).glob(f"*/{marker}"))
