"""Turns an energy function into an openmm.Force; everything of TorchForce stands here.

TorchForce is the production path. OpenMM's own PythonForce is the fallback where the plugin is
absent. Both run the same engine: a module that maps positions (nm) to the energy of every copy
and the forces on every atom (`students.engine`).

The *tap* hands over what the Force has computed anyway. Asking the Context afterwards would run
the model again: a per-step reporter that does so more than doubles the cost of a step.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from omm_mlff.errors import InputError, MissingPackageError

if TYPE_CHECKING:
    from types import ModuleType

Backend = Literal["auto", "torchforce", "pythonforce"]

_PLUGIN_INSTALL = "pip install 'omm-mlff[cpu]' (or [cuda12], [cuda13])"


class Tap:
    """Receives energies, forces and positions from inside the Force, once per evaluation.

    A replica whose energy or forces are not finite is masked from then on: what goes on to OpenMM
    is zero for it, so that the others can go on. `alive` says which are left.

    Attributes
    ----------
    handle : names this tap to the custom op; the Context works on a copy of the module
    n_calls : evaluations so far
    energies : shape (n_replicas,), kJ/mol, as computed, before masking
    forces, positions : shape (n_replicas * n_atoms, 3), kJ/mol/nm and nm
    alive : shape (n_replicas,), bool
    """

    def __init__(self, n_replicas: int, n_atoms: int) -> None:
        self.n_replicas = n_replicas
        self.n_atoms = n_atoms
        self.n_calls = 0
        self.energies = torch.zeros(n_replicas, dtype=torch.float64)
        self.forces = torch.zeros(n_replicas * n_atoms, 3, dtype=torch.float64)
        self.positions = torch.zeros(n_replicas * n_atoms, 3, dtype=torch.float64)
        self.alive = torch.ones(n_replicas, dtype=torch.bool)
        self.handle = next(_handles)
        _taps[self.handle] = self
        _register_tap_op()

    def receive(self, energies: Tensor, forces: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Keep what was computed and pass on what OpenMM may see.

        Every write stays on the device, into memory that is owned here, so that a captured CUDA
        graph repeats it.
        """
        self.n_calls += 1
        if self.energies.device != energies.device:
            self._move_to(energies.device)
        self.energies.copy_(energies)
        self.forces.copy_(forces)
        self.positions.copy_(positions)
        finite = torch.isfinite(energies) & torch.isfinite(forces).view(self.n_replicas, -1).all(1)
        self.alive.logical_and_(finite)
        masked_energies = torch.where(self.alive, energies, torch.zeros_like(energies))
        alive_atoms = self.alive.repeat_interleave(self.n_atoms).unsqueeze(1)
        masked_forces = torch.where(alive_atoms, forces, torch.zeros_like(forces))
        return masked_energies, masked_forces.contiguous()

    def freeze(self, replica: int) -> None:
        """Mask one replica from the next evaluation on."""
        self.alive[replica] = False

    def read(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Energies (n_replicas,) and forces (n_replicas, n_atoms, 3) of the last evaluation."""
        energies = self.energies.cpu().numpy().copy()
        forces = self.forces.cpu().numpy().reshape(self.n_replicas, self.n_atoms, 3).copy()
        return energies, forces

    def close(self) -> None:
        """Forget this tap; a Force that still names it would fail."""
        _taps.pop(self.handle, None)

    def _move_to(self, device: torch.device) -> None:
        self.energies = self.energies.to(device)
        self.forces = self.forces.to(device)
        self.positions = self.positions.to(device)
        self.alive = self.alive.to(device)


_taps: dict[int, Tap] = {}
_handles = itertools.count()


@functools.cache
def _register_tap_op() -> Any:
    """Define the op that TorchScript calls; the library must live as long as the process."""
    library: Any = torch.library.Library("omm_mlff", "DEF")  # type: ignore[no-untyped-call]
    library.define(
        "tap(int handle, Tensor energies, Tensor forces, Tensor positions) -> (Tensor, Tensor)"
    )

    def tap(
        handle: int, energies: Tensor, forces: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        # Detached inside the op as well: otherwise a graph grows and the step doubles.
        return _taps[handle].receive(energies.detach(), forces.detach(), positions.detach())

    library.impl("tap", tap, "CompositeExplicitAutograd")
    return library


class _Tapped(nn.Module):
    """An engine as TorchForce wants it: total energy and forces, with the tap in between."""

    def __init__(self, engine: nn.Module, handle: int) -> None:
        super().__init__()
        self.engine = engine
        self.handle = handle

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        energies, forces = self.engine(positions, box)
        with torch.no_grad():  # else TorchScript's executor tracks what leaves a custom op
            energies, forces = torch.ops.omm_mlff.tap(self.handle, energies, forces, positions)
            return energies.sum(), forces


class _Untapped(nn.Module):
    """The same without a tap."""

    def __init__(self, engine: nn.Module) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        energies, forces = self.engine(positions, box)
        return energies.sum(), forces


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
    InputError : neither is available
    """
    if backend == "pythonforce":
        return _python_force_or_error()
    try:
        load_plugin()
    except MissingPackageError:
        if backend == "torchforce":
            raise
        return _python_force_or_error()
    return "torchforce"


def _python_force_or_error() -> Literal["pythonforce"]:
    if not hasattr(openmm, "PythonForce"):
        raise InputError(
            f"openmm {openmm.Platform.getOpenMMVersion()} has no PythonForce (8.4 or newer has); "
            f"install the plugin: {_PLUGIN_INSTALL}"
        )
    return "pythonforce"


def make_force(
    engine: nn.Module, *, periodic: bool, tap: Tap | None = None, backend: Backend = "auto"
) -> openmm.Force:
    """A Force that computes with an engine.

    Parameters
    ----------
    engine : scriptable; positions (nm) and box to energies (kJ/mol) and forces (kJ/mol/nm)
    periodic : whether the box is passed
    tap : receives what every evaluation computes

    Raises
    ------
    MissingPackageError, InputError : see `resolve_backend`
    """
    resolved = resolve_backend(backend)
    module = (_Untapped(engine) if tap is None else _Tapped(engine, tap.handle)).eval()
    scripted = script(module)
    if resolved == "torchforce":
        plugin = load_plugin()
        with _known_deprecation():  # it saves the module; as an error this would abort the process
            force = plugin.TorchForce(scripted)
        force.setOutputsForces(True)
    else:
        force = openmm.PythonForce(_python_function(scripted, periodic))
    force.setUsesPeriodicBoundaryConditions(periodic)
    return force


def script(module: nn.Module) -> torch.jit.ScriptModule:
    """TorchScript, not frozen: the plugin moves it to the Context's device, then freezes it.

    What is frozen before has its parameters for constants, and they stay where they were.
    """
    with _known_deprecation():
        scripted: torch.jit.ScriptModule = torch.jit.script(module)
        return scripted


@contextlib.contextmanager
def _known_deprecation() -> Iterator[None]:
    """TorchScript is deprecated since torch 2.12; TorchForce takes nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        yield


def _python_function(scripted: torch.jit.ScriptModule, periodic: bool) -> Any:
    def compute(state: openmm.State) -> tuple[float, NDArray[np.float64]]:
        positions = torch.from_numpy(np.array(state.getPositions(asNumpy=True)._value))
        if periodic:
            box = torch.from_numpy(np.array(state.getPeriodicBoxVectors(asNumpy=True)._value))
            energy, forces = scripted(positions, box)
        else:
            energy, forces = scripted(positions)
        return float(energy.detach()), forces.detach().numpy()

    return compute
