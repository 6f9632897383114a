"""Finds the source that reads a model spec.

A source is a module of this package (or one that an entry point in the group
`omm_mlff.potentials` names) with `matches(spec)`, `load(spec)` and `names()`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from importlib.metadata import entry_points
from types import ModuleType

from omm_mlff import potentials
from omm_mlff.errors import UnknownNameError
from omm_mlff.potentials.base import Potential

ENTRY_POINTS = "omm_mlff.potentials"
_NOT_SOURCES = {"base", "registry"}


@functools.cache
def sources() -> tuple[ModuleType, ...]:
    """The modules that read model specs, this package's own first."""
    own = [
        importlib.import_module(f"{potentials.__name__}.{module.name}")
        for module in pkgutil.iter_modules(potentials.__path__)
        if module.name not in _NOT_SOURCES
    ]
    return (*own, *(point.load() for point in entry_points(group=ENTRY_POINTS)))


def model_names() -> list[str]:
    """Every model that can be named without a path."""
    return sorted(name for source in sources() for name in source.names())


def load_potential(spec: str) -> Potential:
    """The potential behind a model spec.

    Parameters
    ----------
    spec : a shipped name such as "tiny", or the folder of a checkpoint

    Raises
    ------
    UnknownNameError : no source reads it
    CheckpointError : it is there and cannot be used
    """
    for source in sources():
        if source.matches(spec):
            potential: Potential = source.load(spec)
            return potential
    raise UnknownNameError(
        "model", spec, model_names(), hint="or the path of a folder with a student checkpoint"
    )
