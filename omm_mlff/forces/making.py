"""Makes an openmm.Force of an energy function.

TorchForce and PythonForce run the same engine: a module that maps positions (nm) to the energy of
every copy and the forces on every atom (`students.engine`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from omm_mlff.errors import InputError
from omm_mlff.forces.plugin import Backend, load_plugin, resolve_backend
from omm_mlff.forces.scripting import known_deprecation, script, script_source
from omm_mlff.forces.tap import Tap
from omm_mlff.students.compiled import CompiledMoleculeEngine


def fitted(energies: Tensor, forces: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Energies and forces as the plugin reads them, whatever a module gave; TorchScript.

    The plugin takes the forces' memory for that of contiguous numbers of the positions' dtype on
    their device. It looks at nothing: anything else is garbage, or the end of the process.

    Parameters
    ----------
    forces : shape of `positions`

    Returns
    -------
    energies : shape (n_energies,), float64
    forces : contiguous; both without a graph, on the device of the positions

    Raises
    ------
    RuntimeError : forces of another shape
    """
    if forces.shape != positions.shape:
        raise RuntimeError(f"it gave forces of shape {forces.shape}, wanted {positions.shape}")
    energies = energies.detach().to(positions.device, torch.float64).reshape(-1)
    return energies, forces.detach().to(positions.device, positions.dtype).contiguous()


class _Fitted(nn.Module):
    """An engine, with what it gives as the plugin reads it."""

    def __init__(self, engine: nn.Module) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        energies, forces = self.engine(positions, box)
        # A number of Python is an energy too.
        return fitted(torch.as_tensor(energies), forces, positions)


class _Tapped(nn.Module):
    """An engine as TorchForce wants it: total energy and forces, with the tap in between."""

    def __init__(self, engine: nn.Module, handle: int) -> None:
        super().__init__()
        self.engine = _Fitted(engine)
        self.handle = handle

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        energies, forces = self.engine(positions, box)
        with torch.no_grad():  # else TorchScript's executor tracks what leaves a custom op
            energies, forces = torch.ops.omm_mlff.tap(self.handle, energies, forces, positions)
            return energies.sum(), forces


class _TappedMolecules(nn.Module):
    """The same for a compiled engine, in one op: each costs as much as a small student's step."""

    def __init__(self, engine: CompiledMoleculeEngine, handle: int) -> None:
        super().__init__()
        self.scripted = None if engine.scripted is None else _Tapped(engine.scripted, handle)
        self.student = engine.handle
        self.handle = handle

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # One `if` without an early return: TorchScript dies of a return inside a nested one.
        if self.scripted is not None and positions.is_cuda:
            energy, forces = self.scripted(positions, box)
        else:
            with torch.no_grad():  # as in _Tapped
                energy, forces = torch.ops.omm_mlff.student_tapped(
                    self.student, self.handle, positions
                )
        return energy, forces


class _Untapped(nn.Module):
    """An engine as TorchForce wants it, without a tap."""

    def __init__(self, engine: nn.Module) -> None:
        super().__init__()
        self.engine = _Fitted(engine)

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        energies, forces = self.engine(positions, box)
        return energies.sum(), forces


class _SumTapped(nn.Module):
    """What an engine gave, as TorchForce wants it, with the tap in between."""

    def __init__(self, handle: int) -> None:
        super().__init__()
        self.handle = handle

    def forward(self, energies: Tensor, forces: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        energies, forces = fitted(energies, forces, positions)
        with torch.no_grad():  # as in _Tapped
            energies, forces = torch.ops.omm_mlff.tap(self.handle, energies, forces, positions)
            return energies.sum(), forces


class _Sum(nn.Module):
    """What an engine gave, as TorchForce wants it, without a tap."""

    def forward(self, energies: Tensor, forces: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        energies, forces = fitted(energies, forces, positions)
        return energies.sum(), forces


def make_force(
    engine: nn.Module,
    *,
    periodic: bool,
    tap: Tap | None = None,
    backend: Backend = "auto",
    cuda_graphs: bool = False,
) -> openmm.Force:
    """A Force that computes with an engine.

    Parameters
    ----------
    engine : scriptable; positions (nm) and box to energies (kJ/mol) and forces (kJ/mol/nm), of any
        dtype, on any device, contiguous or not
    periodic : whether the box is passed
    tap : receives what every evaluation computes
    cuda_graphs : on CUDA, capture an evaluation once and replay it; the engine must then do the
        same work at every call and never wait for the device, as a student on a molecule does

    Raises
    ------
    MissingPackageError, InputError : see `resolve_backend`; CUDA graphs without the plugin
    """
    resolved = resolve_backend(backend)
    if cuda_graphs and (periodic or resolved != "torchforce"):
        raise InputError("CUDA graphs are for molecules in vacuum, through TorchForce alone")
    module = _Untapped(engine) if tap is None else _tapped(engine, tap)
    force = _force_around(script(module.eval()), periodic, {}, resolved)
    if cuda_graphs:
        force.setProperty(_GRAPHS, "true")
    return force


_GRAPHS = "useCUDAGraphs"


def replay(openmm_system: openmm.System, replayed: bool) -> None:
    """Whether a Context that is made of a System from now on captures its TorchForces as graphs."""
    for force in openmm_system.getForces():
        if force.getName().lower() == "torchforce":
            load_plugin().TorchForce.cast(force).setProperty(_GRAPHS, str(replayed).lower())


def _tapped(engine: nn.Module, tap: Tap) -> nn.Module:
    if isinstance(engine, CompiledMoleculeEngine):
        return _TappedMolecules(engine, tap.handle)
    return _Tapped(engine, tap.handle)


def make_parametric_force(
    engine: nn.Module,
    *,
    parameters: Mapping[str, float],
    periodic: bool,
    tap: Tap | None = None,
    backend: Backend = "auto",
) -> openmm.Force:
    """A Force that computes with an engine and has global parameters.

    Parameters
    ----------
    engine : scriptable; positions (nm), box or None, and a list with a tensor of shape () for
        every parameter, to energies (kJ/mol) and forces (kJ/mol/nm)
    parameters : defaults by name, in the order in which the engine wants them; their values in a
        Context are set with `Context.setParameter`
    periodic, tap : as in `make_force`

    Raises
    ------
    MissingPackageError, InputError : see `resolve_backend`
    """
    resolved = resolve_backend(backend)
    total = _Sum() if tap is None else _SumTapped(tap.handle)
    # TorchForce passes positions, the box of a periodic system, then each parameter by itself:
    # how many there are is not known to any class here.
    own = [f"parameter_{i}" for i in range(len(parameters))]
    arguments = ["positions", *(["box"] if periodic else []), *own]
    box = "box" if periodic else "None"
    scripted = script_source(
        f"def forward(self, {', '.join(arguments)}) -> Tuple[Tensor, Tensor]:\n"
        f"    energies, forces = self.engine(positions, {box}, [{', '.join(own)}])\n"
        "    return self.total(energies, forces, positions)\n",
        {"engine": engine, "total": total},
    )
    return _force_around(scripted, periodic, parameters, resolved)


def _force_around(
    scripted: torch.jit.ScriptModule,
    periodic: bool,
    parameters: Mapping[str, float],
    backend: Literal["torchforce", "pythonforce"],
) -> openmm.Force:
    if backend == "torchforce":
        plugin = load_plugin()
        with known_deprecation():  # it saves the module; as an error this would abort the process
            force = plugin.TorchForce(scripted)
        force.setOutputsForces(True)
        for name, default in parameters.items():
            force.addGlobalParameter(name, default)
    else:
        function = _python_function(scripted, periodic, list(parameters))
        force = openmm.PythonForce(function, dict(parameters))
    force.setUsesPeriodicBoundaryConditions(periodic)
    return force


def _python_function(
    scripted: torch.jit.ScriptModule, periodic: bool, parameters: Sequence[str]
) -> Any:
    def compute(state: openmm.State) -> tuple[float, NDArray[np.float64]]:
        arguments = [torch.from_numpy(np.array(state.getPositions(asNumpy=True)._value))]
        if periodic:
            box = np.array(state.getPeriodicBoxVectors(asNumpy=True)._value)
            arguments.append(torch.from_numpy(box))
        if parameters:
            values = state.getParameters()
            arguments += [torch.tensor(values[name], dtype=torch.float64) for name in parameters]
        energy, forces = scripted(*arguments)
        return float(energy.detach()), forces.detach().numpy()

    return compute
