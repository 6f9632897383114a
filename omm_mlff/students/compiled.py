"""Compiled engines: kernels in C++ and CUDA behind the same calls as the scripted ones.

They are TorchScript too: a custom op that Python registers runs the kernel where the positions are.
For molecules in vacuum there is one for the host and one for devices; for large systems the host's
alone, and the scripted engine, which is kept inside, computes on a device. Wherever a kernel cannot
be had, the scripted engine computes, and one line says why.

A kernel is built when it is needed: the host's is not compiled for what runs on a device.

No engine is used on trust. Before its first use it is compared with the scripted one, for the same
atoms and in the same place, and refused where energies differ by more than `ENERGY_TOLERANCE_EV` an
atom or forces by more than `FORCE_TOLERANCE_EV_ANGSTROM`.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from omm_mlff.errors import KernelError
from omm_mlff.students.engine import BoxEngine, MoleculeEngine, SubsetEngine
from omm_mlff.students.kernel.device import DeviceModel, Launch
from omm_mlff.students.kernel.model import KernelModel, kernel_constants, kernel_numbers
from omm_mlff.students.kernel.threads import kernel_threads
from omm_mlff.students.student import Student
from omm_mlff.units import (
    KJMOL_NM_PER_EV_ANGSTROM,
    KJMOL_PER_EV,
    NM_PER_ANGSTROM,
)

ENERGY_TOLERANCE_EV = 1.0e-5
FORCE_TOLERANCE_EV_ANGSTROM = 1.0e-4

_TRIAL_ATOMS = 64
_TRIAL_SPACING_ANGSTROM = 1.7
_TRIAL_SHIFT_ANGSTROM = 0.2
_TRIAL_COPY_ANGSTROM = 0.03
_MODELS_KEPT = 8

log = logging.getLogger(__name__)


class CompiledMoleculeEngine(nn.Module):
    """Many copies of one molecule in vacuum, in one call of a kernel.

    Parameters
    ----------
    scripted : what it stands for

    Attributes
    ----------
    scripted : kept only where there is a device and its kernel cannot be had: it computes there

    Raises
    ------
    KernelError : no kernel can be had here, or its numbers are not the scripted engine's
    """

    def __init__(self, scripted: MoleculeEngine) -> None:
        super().__init__()
        species = scripted.species[: len(scripted.species) // scripted.n_copies]
        work = _work(scripted.student, species, scripted.n_copies, periodic=False)
        with_device = torch.cuda.is_available()
        served = with_device and work.is_ready_on_device()
        if not served:
            work.prepare_host()
        # Scripting what is never called takes ten times as long as all the rest.
        self.scripted = scripted if with_device and not served else None
        self.handle = work.handle

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `MoleculeEngine.forward`."""
        # One `if` without an early return: TorchScript dies of a return inside a nested one.
        if self.scripted is not None and positions.is_cuda:
            energies, forces = self.scripted(positions, box)
        else:
            energies, forces = torch.ops.omm_mlff.student_molecules(self.handle, positions)
        return energies, forces


class CompiledBoxEngine(nn.Module):
    """One large molecule, or a periodic box; the kernel takes the pairs that were found.

    Parameters
    ----------
    scripted : what it stands for; computes on a device

    Raises
    ------
    KernelError : the kernel cannot be had here, or its numbers are not the scripted engine's
    """

    def __init__(self, scripted: BoxEngine) -> None:
        super().__init__()
        work = _work(scripted.student, scripted.species, 1, periodic=scripted.periodic)
        if not torch.cuda.is_available():
            work.prepare_host()
        self.scripted = scripted
        self.handle = work.handle

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `BoxEngine.forward`."""
        if positions.is_cuda:
            energies, forces = self.scripted(positions, box)
        else:
            idx_i, idx_j, r_ij = self.scripted.pairs(positions, box)
            energies, forces = torch.ops.omm_mlff.student_structure(
                self.handle, idx_i, idx_j, r_ij, positions
            )
        return energies, forces


def engine_on(engine: nn.Module, device_type: str) -> str:
    """What computes for positions on "cpu" or "cuda".

    Returns
    -------
    "compiled (C++)", "compiled (CUDA)" or "scripted"
    """
    if isinstance(engine, SubsetEngine):
        return engine_on(engine.engine, device_type)
    if not isinstance(engine, CompiledMoleculeEngine | CompiledBoxEngine):
        return "scripted"
    work = _works[engine.handle]
    if device_type == "cpu":
        return "scripted" if work.host_refused else "compiled (C++)"
    if isinstance(engine, CompiledBoxEngine) or not work.has_device_kernel:
        return "scripted"
    return "compiled (CUDA)"


def compiled_engine(
    scripted: MoleculeEngine | BoxEngine,
) -> CompiledMoleculeEngine | CompiledBoxEngine:
    """The compiled engine in the place of a scripted one.

    Raises
    ------
    KernelError : the kernel cannot be had here, or its numbers are not the scripted engine's
    """
    if isinstance(scripted, MoleculeEngine):
        return CompiledMoleculeEngine(scripted)
    return CompiledBoxEngine(scripted)


def evaluate_molecules(
    handle: int, positions: Tensor, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """What the op of a `CompiledMoleculeEngine` computes, for another op that does more with it.

    Parameters
    ----------
    handle : the engine's
    positions : on the host, of all its copies or of fewer; or of all on a device, for which nothing
        waits
    out : where float64 energies and forces go, for float64 positions; new memory by default. On
        the host alone
    """
    work = _works[handle]
    if positions.is_cuda:
        return work.molecules_on_device(positions)
    return work.molecules(positions, out)


def energies_of_molecules(handle: int, positions: Tensor) -> Tensor:
    """The energies alone, which cost a third; see `evaluate_molecules`."""
    energies, _ = _works[handle].molecules(positions, None, with_forces=False)
    return energies


class _Model:
    """A student as it was when it was first seen, and its kernels as they are asked for."""

    def __init__(self, digest: str, student: Student) -> None:
        self.digest = digest
        self.student = copy.deepcopy(student)

    @functools.cached_property
    def host(self) -> KernelModel:
        return KernelModel(self.student)

    @functools.cached_property
    def device(self) -> DeviceModel:
        return DeviceModel(self.student)


class _Work:
    """What the ops need to know of a call; a handle names it inside TorchScript.

    Attributes
    ----------
    host_refused : why the host's kernel does not compute, where it was asked for and could not
    """

    def __init__(
        self, handle: int, model: _Model, species: Tensor, n_copies: int, *, periodic: bool
    ) -> None:
        student = model.student
        self.handle = handle
        self.host_refused = ""
        self._model = model
        self._species = species.clone()
        self._n_copies = n_copies
        self._periodic = periodic
        self._index = student.species_index[species].numpy().astype(np.int32)
        self._reference_kjmol = float(student.reference_energy(species).sum()) * KJMOL_PER_EV
        self._host: KernelModel | None = None
        self._on_device: dict[int, Callable[[Tensor], tuple[Tensor, Tensor]]] = {}
        self._lock = threading.Lock()

    def molecules(
        self, positions: Tensor, out: tuple[Tensor, Tensor] | None, *, with_forces: bool = True
    ) -> tuple[Tensor, Tensor]:
        x = positions.to(torch.float64).contiguous()
        n_copies = len(x) // len(self._index)
        kernel = self._kernel_or_none()
        if kernel is None:
            scripted = MoleculeEngine(self._model.student, self._species, n_copies)
            with torch.enable_grad():  # the module that calls may have switched it off
                energies, forces = scripted(x)
            if out is not None:
                out[0].copy_(energies)
                out[1].copy_(forces)
                return out
            return energies, forces.to(positions.dtype)
        energies, forces = kernel.molecules(
            self._index, x, n_copies, kernel_threads(), out, with_forces=with_forces
        )
        energies += self._reference_kjmol
        return energies, forces.to(positions.dtype)

    def structure(
        self, idx_i: Tensor, idx_j: Tensor, r_ij: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        kernel = self._kernel_or_none()
        if kernel is None:
            return self._structure_scripted(idx_i, idx_j, r_ij.to(torch.float64), dtype)
        energies, forces = kernel.structure(
            self._index, idx_i, idx_j, r_ij.to(torch.float64), kernel_threads()
        )
        energies += self._reference_kjmol
        return energies, forces.to(dtype)

    def molecules_on_device(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        index = positions.device.index
        compute = self._on_device.get(index)
        if compute is None:
            compute = self._prepare_device(index)
        return compute(positions)

    @property
    def has_device_kernel(self) -> bool:
        """Whether a kernel serves a device, or will when positions come from one."""
        return any(isinstance(compute, Launch) for compute in self._on_device.values())

    def is_ready_on_device(self) -> bool:
        """Prepare the device that is current; if it cannot be, a notice says why."""
        try:
            index = torch.cuda.current_device()
        except (RuntimeError, AssertionError) as error:
            _say_scripted_on_device(str(error).split("\n")[0])
            return False
        return isinstance(self._on_device.get(index) or self._prepare_device(index), Launch)

    def prepare_host(self) -> None:
        """Build the host's kernel if need be, and hold it against the scripted engine.

        Raises
        ------
        KernelError : it cannot be had, or it computes something else
        """
        with self._lock:
            if self._host is None:
                kernel = self._model.host
                with torch.enable_grad():  # the module that calls may have switched it off
                    _verify(self._model, kernel, tuple(self._species.tolist()), self._periodic)
                self._host = kernel

    def _kernel_or_none(self) -> KernelModel | None:
        """The host's kernel, made ready if this is the first call that needs it."""
        if self._host is None and not self.host_refused:
            try:
                self.prepare_host()
            except KernelError as error:
                self.host_refused = str(error)
                log.warning("notice: on the host students run scripted: %s", error)
        return self._host

    def _prepare_device(self, index: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        with self._lock:
            found = self._on_device.get(index)
            if found is not None:
                return found
            with torch.cuda.device(index):
                if torch.cuda.is_current_stream_capturing():
                    raise KernelError(
                        f"the kernel for CUDA device {index} is not ready, and cannot be made so "
                        "while a CUDA graph is captured; evaluate once before"
                    )
                try:
                    launch = self._model.device.prepare(index, self._species, self._n_copies)
                    with torch.enable_grad():  # as on the host
                        _verify_on_device(self._model, launch, self._species, index)
                    compute: Callable[[Tensor], tuple[Tensor, Tensor]] = launch
                except KernelError as error:
                    _say_scripted_on_device(str(error))
                    student = copy.deepcopy(self._model.student)
                    scripted = MoleculeEngine(student, self._species.cpu(), self._n_copies)
                    compute = scripted.to(f"cuda:{index}")
            self._on_device[index] = compute
            return compute

    def _structure_scripted(
        self, idx_i: Tensor, idx_j: Tensor, r_ij: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        r_ij = r_ij.detach().requires_grad_(True)
        with torch.enable_grad():
            atomic = self._model.student.interaction(self._species, idx_i, idx_j, r_ij)
            (gradient,) = torch.autograd.grad([atomic.sum()], [r_ij])
        forces = torch.zeros(len(self._species), 3, dtype=torch.float64)
        forces = forces.index_add(0, idx_i, gradient).index_add(0, idx_j, -gradient)
        energies = atomic.detach().sum().unsqueeze(0) * KJMOL_PER_EV + self._reference_kjmol
        return energies, (forces * KJMOL_NM_PER_EV_ANGSTROM).to(dtype)


# What a Force names must last as long as the process: the Context runs on a copy of the module and
# says nothing when it goes. Like calls share an entry; an entry is some kilobytes and a model.
_works: dict[int, _Work] = {}
_known: dict[tuple[object, ...], _Work] = {}
_handles = itertools.count()
_models: OrderedDict[str, _Model] = OrderedDict()


def _work(student: Student, species: Tensor, n_copies: int, *, periodic: bool) -> _Work:
    model = _model(student)
    key = (model.digest, species.numpy().tobytes(), n_copies, periodic)
    found = _known.get(key)
    if found is not None:
        return found
    _register_ops()
    work = _Work(next(_handles), model, species, n_copies, periodic=periodic)
    _works[work.handle] = _known[key] = work
    return work


def _model(student: Student) -> _Model:
    """The kernels' copy of a student, by its numbers: who trains on meets another one."""
    digest = hashlib.sha256(f"{student.config} {student.dtype}".encode())
    for array in (kernel_constants(student), *kernel_numbers(student)):
        digest.update(array.tobytes())
    digest.update(student.reference_energies.cpu().numpy().tobytes())
    key = digest.hexdigest()
    model = _models.get(key)
    if model is None:
        model = _models[key] = _Model(key, student)
        if len(_models) > _MODELS_KEPT:
            _models.popitem(last=False)
    _models.move_to_end(key)
    return model


@functools.cache
def _say_scripted_on_device(reason: str) -> None:
    """Once for each reason."""
    log.warning("notice: on CUDA students run scripted, several times slower: %s", reason)


_verified: set[tuple[str, tuple[int, ...], bool]] = set()
_verified_on_device: set[tuple[object, ...]] = set()


def _verify(model: _Model, kernel: KernelModel, species: tuple[int, ...], periodic: bool) -> None:
    """Compare with the scripted engine, on a structure of these atoms that is not at rest."""
    few = species[:_TRIAL_ATOMS]
    if (model.digest, few, periodic) in _verified:
        return
    student = model.student
    atoms = torch.tensor(few)
    x, box = _trial(len(few))
    index = student.species_index[atoms].numpy().astype(np.int32)
    positions = torch.from_numpy(x * NM_PER_ANGSTROM)
    if periodic:
        scripted = BoxEngine(student, atoms, periodic=True)
        cell = torch.from_numpy(box * NM_PER_ANGSTROM)
        wanted = scripted(positions, cell)
        i, j, r = scripted.pairs(positions, cell)
        energies, forces = kernel.structure(index, i, j, r, 1)
    else:
        wanted = MoleculeEngine(student, atoms)(positions)
        energies, forces = kernel.molecules(index, positions, 1, 1)
    energies += float(student.reference_energy(atoms).sum()) * KJMOL_PER_EV
    _compare(wanted, (energies, forces), len(few))
    _verified.add((model.digest, few, periodic))


def _verify_on_device(model: _Model, launch: Launch, species: Tensor, index: int) -> None:
    """Compare on a device, for copies that go through it as those of `launch` will."""
    call = launch.call
    n_copies = min(call.n_copies, 2 * call.group + 1)
    key = (model.digest, tuple(species.tolist()), launch.variant, call.group, n_copies, index)
    if key in _verified_on_device:
        return
    trial = model.device.prepare(index, species, n_copies, choice=launch.choice)
    x, _ = _trial(len(species))
    shift = np.random.default_rng(1).normal(scale=_TRIAL_COPY_ANGSTROM, size=(n_copies, *x.shape))
    positions = torch.from_numpy((x + shift).reshape(-1, 3) * NM_PER_ANGSTROM).to(launch.device)
    scripted = MoleculeEngine(copy.deepcopy(model.student).cpu(), species, n_copies)
    wanted = scripted.to(launch.device)(positions)
    _compare(wanted, trial(positions), len(species))
    _verified_on_device.add(key)


def _compare(wanted: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], n_atoms: int) -> None:
    off_energy = float((wanted[0] - found[0]).abs().max()) / KJMOL_PER_EV / n_atoms
    off_force = float((wanted[1] - found[1]).abs().max()) / KJMOL_NM_PER_EV_ANGSTROM
    if not (off_energy <= ENERGY_TOLERANCE_EV and off_force <= FORCE_TOLERANCE_EV_ANGSTROM):
        raise KernelError(
            f"its energies are off by {off_energy:.1e} eV/atom and its forces by {off_force:.1e} "
            f"eV/angstrom from the scripted engine's (wanted {ENERGY_TOLERANCE_EV:g} and "
            f"{FORCE_TOLERANCE_EV_ANGSTROM:g})"
        )


def _trial(n_atoms: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A disordered grid and the cell in which it repeats, angstrom."""
    side = int(np.ceil(n_atoms ** (1.0 / 3.0)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    shift = np.random.default_rng(0).uniform(-1.0, 1.0, (n_atoms, 3)) * _TRIAL_SHIFT_ANGSTROM
    positions = grid[:n_atoms] * _TRIAL_SPACING_ANGSTROM + shift
    return positions, np.eye(3) * (side * _TRIAL_SPACING_ANGSTROM + 1.0)


@functools.cache
def _register_ops() -> Any:
    """Define the ops that TorchScript calls; the library must live as long as the process."""
    library: Any = torch.library.Library("omm_mlff", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("student_molecules(int handle, Tensor positions) -> (Tensor, Tensor)")
    library.define(
        "student_structure(int handle, Tensor idx_i, Tensor idx_j, Tensor r_ij, Tensor positions)"
        " -> (Tensor, Tensor)"
    )

    def molecules(handle: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        return evaluate_molecules(handle, positions.detach())

    def structure(
        handle: int, idx_i: Tensor, idx_j: Tensor, r_ij: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        return _works[handle].structure(idx_i, idx_j, r_ij.detach(), positions.dtype)

    library.impl("student_molecules", molecules, "CompositeExplicitAutograd")
    library.impl("student_structure", structure, "CompositeExplicitAutograd")
    return library
