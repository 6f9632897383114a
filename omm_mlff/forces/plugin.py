"""The openmm-torch plugin: whether it loads, and what stands in for it where it does not.

TorchForce is the production path. OpenMM's own PythonForce is the fallback where the plugin is
absent.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal, get_args

import openmm

from omm_mlff.errors import InputError, MissingPackageError
from omm_mlff.forces.built import Built, Device

if TYPE_CHECKING:
    from types import ModuleType

Backend = Literal["auto", "torchforce", "pythonforce"]

_KERNELS = "libOpenMMTorch"
_LOADING = "Error loading library "
_PLUGIN_INSTALL = "pip install 'omm-mlff[cpu]' (or [cuda12], [cuda13])"


@functools.cache
def load_plugin() -> ModuleType:
    """The openmmtorch module, its kernels loaded whatever was imported first.

    Raises
    ------
    MissingPackageError : absent, or present and not loadable, or no kernel of it is
    """
    if importlib.util.find_spec("openmmtorch") is None:
        raise MissingPackageError("openmm-torch", "TorchForce", _PLUGIN_INSTALL)
    failures = load_kernels()
    with _without_simtk_notice():
        try:
            import openmmtorch
        except ImportError as error:
            raise _does_not_load(str(error)) from None
    host = [failure for failure in failures if "TorchReference" in failure]
    if host:  # without it no platform has any
        raise _does_not_load(host[0].partition(": ")[2])
    return openmmtorch  # type: ignore[no-any-return]


def _does_not_load(why: str) -> MissingPackageError:
    install = f"{_PLUGIN_INSTALL}, with --force-reinstall and constraints.txt"
    return MissingPackageError("openmm-torch", "TorchForce", install, why)


@functools.cache
def load_kernels() -> tuple[str, ...]:
    """Load the plugin's kernels again where OpenMM could not, since torch was not there yet.

    OpenMM loads its plugins when it is first imported. The libraries of this one find those of
    torch beside them, or where torch lies in another folder only once it has been imported.

    Returns
    -------
    OpenMM's messages on those that do not load even so
    """
    import torch  # noqa: F401  what they need is in the process from here on

    still = []
    for failure in openmm.Platform.getPluginLoadFailures():
        library = failure.removeprefix(_LOADING).partition(": ")[0]
        if _KERNELS not in library:
            continue
        try:
            openmm.Platform.loadPluginLibrary(library)
        except openmm.OpenMMException as error:
            still.append(str(error))
    return tuple(still)


def load_failures() -> list[str]:
    """OpenMM's messages on the libraries that it has not loaded, those loaded since left out."""
    failures = openmm.Platform.getPluginLoadFailures()
    return [row for row in failures if _KERNELS not in row] + list(load_kernels())


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
            f"openmm {openmm.Platform.getOpenMMVersion()} has no PythonForce (8.5 or newer has); "
            f"install the plugin: {_PLUGIN_INSTALL}"
        )
    return "pythonforce"
