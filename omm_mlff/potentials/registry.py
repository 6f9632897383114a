"""Finds the source that reads a model spec, or that takes an object from a script.

A source is a module of this package (or one that an entry point in the group
`omm_mlff.potentials` names) with

    names()         every model that it offers without a path, as a list of specs
    matches(spec)   whether it reads a spec
    load(spec)      the potential behind it

and, where they have a meaning for it,

    FORMS           how its specs are written, such as "native:FORCEFIELD"; for help and errors
    executes(spec)  one line on whose code loading will run; None where it runs none
    takes(thing)    whether it makes a potential of an object from a script
    wrap(thing)     that potential
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import pkgutil
import weakref
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from omm_mlff import potentials
from omm_mlff.errors import InputError, UnknownNameError
from omm_mlff.forces.faults import one_line
from omm_mlff.potentials.base import Potential
from omm_mlff.potentials.bound_to_systems import BoundPotential
from omm_mlff.potentials.content import content_digest

ENTRY_POINTS = "omm_mlff.potentials"

log = logging.getLogger(__name__)


@functools.cache
def sources() -> tuple[ModuleType, ...]:
    """The modules that read model specs, this package's own first.

    One of another package that cannot be imported is left out, and a warning says so.
    """
    own = [
        importlib.import_module(f"{potentials.__name__}.{module.name}")
        for module in pkgutil.iter_modules(potentials.__path__)
    ]
    others = []
    for point in entry_points(group=ENTRY_POINTS):
        try:
            others.append(point.load())
        except Exception as error:  # one package that is broken must not take the others along
            log.warning("no models of the entry point %s: %s", point.value, one_line(error))
    return tuple(module for module in (*own, *others) if hasattr(module, "matches"))


def model_names() -> list[str]:
    """Every model that can be named without a path."""
    return sorted(name for source in sources() for name in source.names())


def spec_forms() -> list[str]:
    """How model specs are written, source by source."""
    return [form for source in sources() for form in getattr(source, "FORMS", ())]


def load_potential(spec: str) -> Potential:
    """The potential behind a model spec.

    Where loading runs code that came with the model, a warning of this module's logger says so
    first; it is on the error stream unless logging is set up otherwise.

    Parameters
    ----------
    spec : a shipped name such as "tiny", a checkpoint's folder, or one of `spec_forms()`

    Raises
    ------
    UnknownNameError : no source reads it
    CheckpointError : it is there and cannot be used
    MissingPackageError : the package that it needs is absent
    """
    for source in sources():
        if source.matches(spec):
            notice = source.executes(spec) if hasattr(source, "executes") else None
            if notice:
                log.warning("notice: %s", notice)
            potential: Potential = source.load(spec)
            with contextlib.suppress(TypeError):  # a class without room for weak references
                _by_spec[id(potential)] = potential
            return potential
    forms = ", ".join(spec_forms())
    raise UnknownNameError("model", spec, model_names(), hint=f"or one of: {forms}")


_by_spec: weakref.WeakValueDictionary[int, Potential] = weakref.WeakValueDictionary()
"""What was loaded by a spec, which names it."""


def content_hash(potential: Potential) -> str | None:
    """What tells a model from others that are named alike; None where its spec says all.

    That of its card, else that of everything the object holds (`potentials.content`). Runs of one
    model go on under a model of the same hash only.
    """
    if potential.card.sha256 is not None:
        return potential.card.sha256
    if isinstance(potential, BoundPotential):
        return content_hash(potential.potential)
    if _by_spec.get(id(potential)) is potential:
        return None
    return content_digest(potential)


def as_potential(model: Any) -> Potential:
    """The potential that is meant: a spec is loaded, an object is taken as it is or wrapped.

    Parameters
    ----------
    model : a spec, a path, a Potential, or what a source takes: an ASE calculator, a System, ...

    Raises
    ------
    InputError : no source takes it
    """
    if isinstance(model, str | os.PathLike):
        return load_potential(os.fspath(model))
    if isinstance(model, type):
        raise InputError(
            f"{model.__name__} is a class; wanted an object of it, such as {model.__name__}(...)"
        )
    if isinstance(model, Potential):
        return model
    for source in sources():
        if hasattr(source, "takes") and source.takes(model):
            wrapped: Potential = source.wrap(model)
            return wrapped
    raise InputError(
        f"a {type(model).__module__}.{type(model).__qualname__} is no potential; wanted a model "
        "spec, an object with the methods of omm_mlff.potentials.base.Potential, or what a source "
        "takes (an ASE calculator, a TorchScript module, an openmm.System)"
    )
