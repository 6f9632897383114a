"""Compiled engines: the C++ kernel behind the same calls as the scripted ones.

They are TorchScript too: a custom op that Python registers runs the kernel on the host. Where the
positions are on a device, and wherever the kernel cannot be had, the scripted engine computes; it
is kept inside.

No engine is used on trust. Before its first use it is compared with the scripted one, for the same
atoms, and refused where energies differ by more than `ENERGY_TOLERANCE_EV` an atom or forces by
more than `FORCE_TOLERANCE_EV_ANGSTROM`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from omm_mlff.errors import KernelError
from omm_mlff.students.engine import BoxEngine, MoleculeEngine
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
_MODELS_KEPT = 8


class CompiledMoleculeEngine(nn.Module):
    """Many copies of one molecule in vacuum, in one call of the kernel.

    Parameters
    ----------
    scripted : what it stands for

    Raises
    ------
    KernelError : the kernel cannot be had here, or its numbers are not the scripted engine's
    """

    def __init__(self, scripted: MoleculeEngine) -> None:
        super().__init__()
        species = scripted.species[: len(scripted.species) // scripted.n_copies]
        work = _work(scripted.student, species, periodic=False)
        # Scripting what is never called takes ten times as long as all the rest.
        self.scripted = scripted if torch.cuda.is_available() else None
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
    scripted : what it stands for

    Raises
    ------
    KernelError : the kernel cannot be had here, or its numbers are not the scripted engine's
    """

    def __init__(self, scripted: BoxEngine) -> None:
        super().__init__()
        work = _work(scripted.student, scripted.species, periodic=scripted.periodic)
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
    positions : on the host; of all its copies, or of fewer
    out : where float64 energies and forces go, for float64 positions; new memory by default
    """
    return _works[handle].molecules(positions, out)


def energies_of_molecules(handle: int, positions: Tensor) -> Tensor:
    """The energies alone, which cost a third; see `evaluate_molecules`."""
    energies, _ = _works[handle].molecules(positions, None, with_forces=False)
    return energies


@dataclass(frozen=True, eq=False)
class _Work:
    """What the op needs to know of a call; a handle names it inside TorchScript."""

    handle: int
    model: KernelModel
    species_index: NDArray[np.int32]
    reference_kjmol: float

    def molecules(
        self, positions: Tensor, out: tuple[Tensor, Tensor] | None, *, with_forces: bool = True
    ) -> tuple[Tensor, Tensor]:
        x = positions.to(torch.float64).contiguous()
        n_copies = len(x) // len(self.species_index)
        energies, forces = self.model.molecules(
            self.species_index, x, n_copies, kernel_threads(), out, with_forces=with_forces
        )
        energies += self.reference_kjmol
        return energies, forces.to(positions.dtype)

    def structure(
        self, idx_i: Tensor, idx_j: Tensor, r_ij: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        energies, forces = self.model.structure(
            self.species_index, idx_i, idx_j, r_ij.to(torch.float64), kernel_threads()
        )
        energies += self.reference_kjmol
        return energies, forces.to(dtype)


# What a Force names must last as long as the process: the Context runs on a copy of the module and
# says nothing when it goes. Like calls share an entry; an entry is some kilobytes and a model.
_works: dict[int, _Work] = {}
_known: dict[tuple[object, ...], _Work] = {}
_handles = itertools.count()
_models: OrderedDict[str, KernelModel] = OrderedDict()


def _work(student: Student, species: Tensor, *, periodic: bool) -> _Work:
    digest, model = _model(student)
    key = (digest, species.numpy().tobytes(), periodic)
    found = _known.get(key)
    if found is not None:
        return found
    _register_ops()
    _verify(student, model, digest, tuple(species.tolist()), periodic)
    index = student.species_index[species].numpy().astype(np.int32)
    reference = float(student.reference_energy(species).sum()) * KJMOL_PER_EV
    work = _Work(next(_handles), model, index, reference)
    _works[work.handle] = _known[key] = work
    return work


def _model(student: Student) -> tuple[str, KernelModel]:
    """The kernel's copy of a student, by its numbers: who trains on meets another one."""
    digest = hashlib.sha256(f"{student.config} {student.dtype}".encode())
    for array in (kernel_constants(student), *kernel_numbers(student)):
        digest.update(array.tobytes())
    digest.update(student.reference_energies.cpu().numpy().tobytes())
    key = digest.hexdigest()
    model = _models.get(key)
    if model is None:
        model = _models[key] = KernelModel(student)
        if len(_models) > _MODELS_KEPT:
            _models.popitem(last=False)
    _models.move_to_end(key)
    return key, model


_verified: set[tuple[str, tuple[int, ...], bool]] = set()


def _verify(
    student: Student, model: KernelModel, digest: str, species: tuple[int, ...], periodic: bool
) -> None:
    """Compare with the scripted engine, on a structure of these atoms that is not at rest."""
    few = species[:_TRIAL_ATOMS]
    if (digest, few, periodic) in _verified:
        return
    atoms = torch.tensor(few)
    x, box = _trial(len(few))
    index = student.species_index[atoms].numpy().astype(np.int32)
    positions = torch.from_numpy(x * NM_PER_ANGSTROM)
    if periodic:
        scripted = BoxEngine(student, atoms, periodic=True)
        cell = torch.from_numpy(box * NM_PER_ANGSTROM)
        wanted = scripted(positions, cell)
        i, j, r = scripted.pairs(positions, cell)
        energies, forces = model.structure(index, i, j, r, 1)
    else:
        wanted = MoleculeEngine(student, atoms)(positions)
        energies, forces = model.molecules(index, positions, 1, 1)
    energies += float(student.reference_energy(atoms).sum()) * KJMOL_PER_EV
    off_energy = abs(float(wanted[0]) - float(energies[0])) / KJMOL_PER_EV / len(few)
    off_force = float((wanted[1] - forces).abs().max()) / KJMOL_NM_PER_EV_ANGSTROM
    if not (off_energy <= ENERGY_TOLERANCE_EV and off_force <= FORCE_TOLERANCE_EV_ANGSTROM):
        raise KernelError(
            f"its energies are off by {off_energy:.1e} eV/atom and its forces by {off_force:.1e} "
            f"eV/angstrom from the scripted engine's (wanted {ENERGY_TOLERANCE_EV:g} and "
            f"{FORCE_TOLERANCE_EV_ANGSTROM:g})"
        )
    _verified.add((digest, few, periodic))


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
