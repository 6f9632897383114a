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
import io
import itertools
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from omm_mlff.errors import InputError, MissingPackageError
from omm_mlff.students.compiled import CompiledMoleculeEngine, evaluate_molecules

if TYPE_CHECKING:
    from types import ModuleType

Backend = Literal["auto", "torchforce", "pythonforce"]

_PLUGIN_INSTALL = "pip install 'omm-mlff[cpu]' (or [cuda12], [cuda13])"


class Ring:
    """Keeps what a tap receives, evaluation after evaluation, in memory that was taken before.

    Parameters
    ----------
    n_frames, n_replicas, n_atoms : how much it holds

    Attributes
    ----------
    energies : shape (n_frames, n_replicas), kJ/mol
    forces, positions : shape (n_frames, n_replicas, n_atoms, 3), kJ/mol/nm and nm
    n_received : evaluations since `empty`; more than `n_frames` were not all kept
    unmasked : whether everything goes on to OpenMM as it is: who finds that something is not finite
        takes the steps again, and until then nothing need be masked
    """

    def __init__(self, n_frames: int, n_replicas: int, n_atoms: int) -> None:
        self.n_frames = n_frames
        self.n_received = 0
        self.unmasked = False
        self.energies = np.empty((n_frames, n_replicas))
        self.forces = np.empty((n_frames, n_replicas, n_atoms, 3))
        self.positions = np.empty((n_frames, n_replicas, n_atoms, 3))
        # Frame by frame, as what is evaluated comes.
        self._rows = list(
            zip(
                torch.from_numpy(self.energies).unbind(0),
                torch.from_numpy(self.forces.reshape(n_frames, -1, 3)).unbind(0),
                torch.from_numpy(self.positions.reshape(n_frames, -1, 3)).unbind(0),
                strict=True,
            )
        )

    def empty(self, *, unmasked: bool) -> None:
        """Begin anew."""
        self.n_received = 0
        self.unmasked = unmasked

    def keep(self, energies: Tensor, forces: Tensor, positions: Tensor) -> None:
        """The next evaluation, which is on the host."""
        row = self._next()
        if row is not None:
            for kept, came in zip(row, (energies, forces, positions), strict=True):
                kept.copy_(came)

    def place(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        """Keeps the positions of the next evaluation; where its energies and forces are to go.

        None where there is no room, or where everything that is evaluated is not wanted as it is.
        """
        if not self.unmasked or positions.dtype != torch.float64:
            return None
        row = self._next()
        if row is None:
            return None
        row[2].copy_(positions)
        return row[0], row[1]

    def _next(self) -> tuple[Tensor, Tensor, Tensor] | None:
        k = self.n_received
        self.n_received += 1
        return self._rows[k] if k < self.n_frames else None


class Tap:
    """Receives energies, forces and positions from inside the Force, once per evaluation.

    A replica whose energy or forces are not finite is masked from then on: what goes on to OpenMM
    is zero for it, so that the others can go on. `alive` says which are left.

    Attributes
    ----------
    handle : names this tap to the custom op; the Context works on a copy of the module
    n_launches : how often Python was called; a CUDA graph is replayed without it
    energies : shape (n_replicas,), kJ/mol, as computed, before masking
    forces, positions : shape (n_replicas * n_atoms, 3), kJ/mol/nm and nm
    alive : shape (n_replicas,), bool
    raised : by replica, what the potential's own code raised for it at the last evaluation
    ring : where evaluations on the host are kept as well, while one is given
    """

    def __init__(self, n_replicas: int, n_atoms: int) -> None:
        self.n_replicas = n_replicas
        self.n_atoms = n_atoms
        self.n_launches = 0
        self.energies = torch.zeros(n_replicas, dtype=torch.float64)
        self.forces = torch.zeros(n_replicas * n_atoms, 3, dtype=torch.float64)
        self.positions = torch.zeros(n_replicas * n_atoms, 3, dtype=torch.float64)
        self.alive = torch.ones(n_replicas, dtype=torch.bool)
        self.raised: dict[int, str] = {}
        self.ring: Ring | None = None
        self._on_device: Tensor | None = None
        self._on_host = 0
        self.handle = next(_handles)
        _taps[self.handle] = self
        _register_tap_op()

    def receive(self, energies: Tensor, forces: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Keep what was computed and pass on what OpenMM may see.

        Every write stays on the device, into memory that is owned here, so that a captured CUDA
        graph repeats it.
        """
        if self.energies.device != energies.device:
            self._move_to(energies.device)
        self.count()
        if self.ring is not None and energies.device.type == "cpu":
            self.ring.keep(energies, forces, positions)
            if self.ring.unmasked:
                return energies, forces
        self.energies.copy_(energies)
        self.forces.copy_(forces)
        self.positions.copy_(positions)
        if energies.device.type == "cpu" and self._all_finite():
            return energies, forces.contiguous()
        finite = torch.isfinite(energies) & torch.isfinite(forces).view(self.n_replicas, -1).all(1)
        self.alive.logical_and_(finite)
        masked_energies = torch.where(self.alive, energies, torch.zeros_like(energies))
        alive_atoms = self.alive.repeat_interleave(self.n_atoms).unsqueeze(1)
        masked_forces = torch.where(alive_atoms, forces, torch.zeros_like(forces))
        return masked_energies, masked_forces.contiguous()

    @property
    def n_calls(self) -> int:
        """Evaluations so far, replays of a CUDA graph included."""
        counted = 0 if self._on_device is None else int(self._on_device)
        return self._on_host + counted

    def _all_finite(self) -> bool:
        """Whether there is nothing to mask; on the host, where looking is cheap.

        The sum of finite numbers may overflow; then it is looked at one by one.
        """
        everything = float(self.energies.numpy().sum()) + float(self.forces.numpy().sum())
        return math.isfinite(everything) and bool(self.alive.numpy().all())

    def count(self) -> None:
        """One more evaluation; on a device it is counted there, where a replay counts it too."""
        self.n_launches += 1
        if self._on_device is not None:
            self._on_device.add_(1)
        else:
            self._on_host += 1

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
        if device.type != "cpu":
            self._on_device = torch.zeros((), dtype=torch.int64, device=device)


_taps: dict[int, Tap] = {}
_handles = itertools.count()


@functools.cache
def _register_tap_op() -> Any:
    """Define the op that TorchScript calls; the library must live as long as the process."""
    library: Any = torch.library.Library("omm_mlff", "DEF")  # type: ignore[no-untyped-call]
    library.define(
        "tap(int handle, Tensor energies, Tensor forces, Tensor positions) -> (Tensor, Tensor)"
    )
    library.define("student_tapped(int student, int handle, Tensor positions) -> (Tensor, Tensor)")

    def tap(
        handle: int, energies: Tensor, forces: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        # Detached inside the op as well: otherwise a graph grows and the step doubles.
        return _taps[handle].receive(energies.detach(), forces.detach(), positions.detach())

    def student_tapped(student: int, handle: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        tap, x = _taps[handle], positions.detach()
        place = None if tap.ring is None else tap.ring.place(x)
        if place is not None:
            tap.count()
            energies, forces = evaluate_molecules(student, x, place)
        else:
            energies, forces = tap.receive(*evaluate_molecules(student, x), x)
        return energies.sum(), forces

    library.impl("tap", tap, "CompositeExplicitAutograd")
    library.impl("student_tapped", student_tapped, "CompositeExplicitAutograd")
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
    """The same without a tap."""

    def __init__(self, engine: nn.Module) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        energies, forces = self.engine(positions, box)
        return energies.sum(), forces


class _SumTapped(nn.Module):
    """What an engine gave, as TorchForce wants it, with the tap in between."""

    def __init__(self, handle: int) -> None:
        super().__init__()
        self.handle = handle

    def forward(self, energies: Tensor, forces: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():  # as in _Tapped
            energies, forces = torch.ops.omm_mlff.tap(self.handle, energies, forces, positions)
            return energies.sum(), forces


class _Sum(nn.Module):
    """The same without a tap."""

    def forward(self, energies: Tensor, forces: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
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
    InputError : neither is available, or another was asked for
    """
    if backend not in get_args(Backend):
        raise InputError(f"unknown backend {backend!r}; known: {', '.join(get_args(Backend))}")
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
    engine : scriptable; positions (nm) and box to energies (kJ/mol) and forces (kJ/mol/nm)
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
        force.setProperty("useCUDAGraphs", "true")
    return force


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
        with _known_deprecation():  # it saves the module; as an error this would abort the process
            force = plugin.TorchForce(scripted)
        force.setOutputsForces(True)
        for name, default in parameters.items():
            force.addGlobalParameter(name, default)
    else:
        function = _python_function(scripted, periodic, list(parameters))
        force = openmm.PythonForce(function, dict(parameters))
    force.setUsesPeriodicBoundaryConditions(periodic)
    return force


Evaluate = Callable[
    [NDArray[np.float64], NDArray[np.float64] | None],
    tuple[NDArray[np.float64], NDArray[np.float64]],
]
"""Positions (n_copies, n_atoms, 3) in nm and box vectors (3, 3) in nm or None, to energies
(n_copies,) in kJ/mol and forces of the shape of the positions in kJ/mol/nm."""


def make_python_force(
    evaluate: Evaluate,
    *,
    n_replicas: int,
    n_atoms: int,
    periodic: bool,
    tap: Tap | None = None,
) -> openmm.Force:
    """A PythonForce around a function of somebody else's, with replicas and the tap.

    Where the function raises, the copies are tried one by one: with a tap, that replica's energy
    and forces are NaN, and `Tap.raised` has the message; where none of them raises alone, those of
    all are. Without a tap OpenMM raises it, and the message begins with the kind of exception.

    Parameters
    ----------
    n_atoms : of one copy

    Raises
    ------
    InputError : this OpenMM has no PythonForce
    """
    _python_force_or_error()

    def compute(state: openmm.State) -> tuple[float, NDArray[np.float64]]:
        x = np.array(state.getPositions(asNumpy=True)._value)
        box = None
        if periodic:
            box = np.array(state.getPeriodicBoxVectors(asNumpy=True)._value)
        frames = x.reshape(n_replicas, n_atoms, 3)
        if tap is None:
            try:
                energies, forces = evaluate(frames, box)
            except (Exception, SystemExit) as error:
                # OpenMM hands on the text of an exception, not its kind.
                raise RuntimeError(one_line(error)) from error
            return float(energies.sum()), np.ascontiguousarray(forces.reshape(-1, 3))
        tap.raised = {}
        try:
            energies, forces = evaluate(frames, box)
        except (Exception, SystemExit) as error:
            energies, forces, tap.raised = _one_by_one(evaluate, frames, box, error)
        passed_on, masked = tap.receive(
            torch.from_numpy(np.ascontiguousarray(energies)),
            torch.from_numpy(np.ascontiguousarray(forces).reshape(-1, 3)),
            torch.from_numpy(x),
        )
        return float(passed_on.sum()), masked.numpy()

    force = openmm.PythonForce(compute)
    force.setUsesPeriodicBoundaryConditions(periodic)
    return force


def _one_by_one(
    evaluate: Evaluate,
    frames: NDArray[np.float64],
    box: NDArray[np.float64] | None,
    first: BaseException,
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[int, str]]:
    """Each copy in a call of its own; NaN and the message for those that raise."""
    energies = np.full(len(frames), np.nan)
    forces = np.full(frames.shape, np.nan)
    raised = {}
    if len(frames) == 1:
        return energies, forces, {0: one_line(first)}
    for replica, frame in enumerate(frames):
        try:
            energy, force = evaluate(frame[None], box)
        except (Exception, SystemExit) as error:
            raised[replica] = one_line(error)
        else:
            energies[replica], forces[replica] = energy[0], force[0]
    if not raised:
        energies[:], forces[:] = np.nan, np.nan
        raised = dict.fromkeys(range(len(frames)), f"{one_line(first)} {nobody_alone(len(frames))}")
    return energies, forces, raised


def nobody_alone(n_copies: int) -> str:
    """Words for an error of an evaluation of several copies that comes back for none of them."""
    return f"(for one of {n_copies} copies, for none of them when alone)"


_NAMED_ERROR = re.compile(r"(?:builtins\.)?([\w.]*(?:Error|Exception|Interrupt)\b.*)")


def one_line(error: BaseException) -> str:
    """What an exception says, in one line: of an interpreter's traceback the error at its end."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if any(line.startswith("Traceback") for line in lines):
        named = [found[1] for line in lines[::-1] if (found := _NAMED_ERROR.match(line))]
        if named:
            return named[0]
    if isinstance(error, openmm.OpenMMException) or type(error).__name__ in lines[0]:
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}"


def script(module: nn.Module) -> torch.jit.ScriptModule:
    """TorchScript, not frozen: the plugin moves it to the Context's device, then freezes it.

    What is frozen before has its parameters for constants, and they stay where they were.
    """
    with _known_deprecation():
        scripted: torch.jit.ScriptModule = torch.jit.script(module)
        return scripted


def script_source(forward: str, parts: Mapping[str, nn.Module]) -> torch.jit.ScriptModule:
    """A module whose `forward` is written as TorchScript; for signatures known only at run time.

    Parameters
    ----------
    parts : modules by the names that `forward` has for them
    """

    class Holder(nn.Module):
        """A class of its own each time: objects of one class share what was compiled for one."""

    holder = Holder()
    for name, part in parts.items():
        holder.add_module(name, part)
    scripted = script(holder.eval())
    scripted.define(forward)
    return scripted


def read_script(
    payload: bytes, extra_files: dict[str, bytes] | None = None
) -> torch.jit.ScriptModule:
    """A saved TorchScript module, on the host, ready to be evaluated.

    Reading it can run code that is stored in it.

    Parameters
    ----------
    payload : the whole file
    extra_files : names of files inside it; what they hold is put in their place
    """
    with _known_deprecation():
        module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
            io.BytesIO(payload), map_location="cpu", _extra_files=extra_files
        )
    return module.eval()


@contextlib.contextmanager
def _known_deprecation() -> Iterator[None]:
    """TorchScript is deprecated since torch 2.12; TorchForce takes nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        yield


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
