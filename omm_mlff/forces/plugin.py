"""The openmm-torch plugin: whether it loads, and what stands in for it where it does not.

TorchForce is the production path. OpenMM's own PythonForce is the fallback where the plugin is
absent.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal, get_args

import openmm

from omm_mlff.errors import InputError, MissingPackageError
from omm_mlff.forces.built import Built, Device

if TYPE_CHECKING:
    from types import ModuleType

Backend = Literal["auto", "torchforce", "pythonforce"]

_PLUGIN_INSTALL = "pip install 'omm-mlff[cpu]' (or [cuda12], [cuda13])"


@functools.cache
def load_plugin() -> ModuleType:
    """The openmmtorch module.

    Raises
    ------
    MissingPackageError : absent, or present and not loadable
    """
    with _without_simtk_notice():
        try:
            import openmmtorch
        except ImportError as error:
            raise MissingPackageError(
                f"openmm-torch ({error})", "TorchForce", _PLUGIN_INSTALL
            ) from None
    return openmmtorch  # type: ignore[no-any-return]


@contextlib.contextmanager
def _without_simtk_notice() -> Iterator[None]:
    """The plugin imports simtk, which logs a notice; an unconfigured root logger would get a
    handler by that, and the user's own logging would change.
    """
    root, silent = logging.getLogger(), logging.NullHandler()
    disabled = root.manager.disable
    root.addHandler(silent)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        root.removeHandler(silent)


def resolve_backend(backend: Backend = "auto") -> Literal["torchforce", "pythonforce"]:
    """Which Force is used: TorchForce where the plugin loads, else PythonForce.

    Raises
    ------
    MissingPackageError : TorchForce was asked for and is absent
    InputError : neither is available, or another was asked for
    """
    if backend not in get_args(Backend):
        raise InputError(f"unknown backend {backend!r}; known: {', '.join(get_args(Backend))}")
    if backend == "pythonforce":
        return python_force_or_error()
    try:
        load_plugin()
    except MissingPackageError:
        if backend == "torchforce":
            raise
        return python_force_or_error()
    return "torchforce"


def why_no_torch_force(backend: Backend = "auto") -> str:
    """Why a PythonForce stands in for TorchForce, in one line; empty where it does not, or where a
    PythonForce was asked for.
    """
    if backend != "auto":
        return ""
    try:
        load_plugin()
    except MissingPackageError as error:
        return str(error)
    return ""


def built_as(
    backend: Backend = "auto",
    *,
    engines: Mapping[Device, str] | None = None,
    graph: bool = False,
    graph_reason: str = "",
) -> Built:
    """What a Force of `making` is, made with the same `backend`.

    Parameters
    ----------
    engines, graph, graph_reason : see `Built`

    Raises
    ------
    MissingPackageError, InputError : see `resolve_backend`
    """
    return Built(
        resolve_backend(backend), engines or {}, graph, graph_reason, why_no_torch_force(backend)
    )


def python_force_or_error() -> Literal["pythonforce"]:
    if not hasattr(openmm, "PythonForce"):
        raise InputError(
            f"openmm {openmm.Platform.getOpenMMVersion()} has no PythonForce (8.4 or newer has); "
            f"install the plugin: {_PLUGIN_INSTALL}"
        )
    return "pythonforce"
