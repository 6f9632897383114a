"""Engines: a student as a function of positions, in the units of OpenMM.

Both take nm and give kJ/mol and kJ/mol/nm, and both are TorchScript: the same code runs in plain
torch, in a TorchForce, and in a PythonForce. Displacements are formed in the precision of the
positions; the network then runs in its own; energies are summed in float64.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from omm_mlff.errors import InputError, KernelError, UnsupportedSystemError
from omm_mlff.students.pairs import complete_pairs
from omm_mlff.students.student import Student
from omm_mlff.units import ANGSTROM_PER_NM, KJMOL_NM_PER_EV_ANGSTROM, KJMOL_PER_EV

Engine = Literal["auto", "scripted", "compiled"]

log = logging.getLogger(__name__)

MAX_COMPLETE_ATOMS = 64
"""Up to here all pairs of a molecule are cheaper than a neighbour list."""


class MoleculeEngine(nn.Module):
    """Many copies of one molecule in vacuum, in one call; pairs only inside a copy.

    Parameters
    ----------
    student : in evaluation mode
    species : shape (n_atoms,), atomic numbers of one copy
    n_copies : how many copies follow one another in `positions`
    """

    if TYPE_CHECKING:
        species: Tensor
        idx_i: Tensor
        idx_j: Tensor
        reference_energy: Tensor

    def __init__(self, student: Student, species: Tensor, n_copies: int = 1) -> None:
        super().__init__()
        n_atoms = len(species)
        if n_atoms < 2:
            raise UnsupportedSystemError("a single atom has no pairs; a student needs two or more")
        idx_i, idx_j = complete_pairs(n_atoms, n_copies)
        self.student = student
        self.n_copies = n_copies
        self.n_neighbors = n_atoms - 1
        self.angstrom_per_nm = ANGSTROM_PER_NM
        self.kjmol_per_ev = KJMOL_PER_EV
        self.force_unit = KJMOL_NM_PER_EV_ANGSTROM
        self.register_buffer("species", species.repeat(n_copies), persistent=False)
        self.register_buffer("idx_i", idx_i, persistent=False)
        self.register_buffer("idx_j", idx_j, persistent=False)
        self.register_buffer(
            "reference_energy", student.reference_energy(species).sum(), persistent=False
        )

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Energy of every copy and the forces on every atom.

        Parameters
        ----------
        positions : shape (n_copies * n_atoms, 3), nm
        box : ignored, molecules are in vacuum

        Returns
        -------
        energies : shape (n_copies,), float64, kJ/mol
        forces : shape of `positions`, its dtype, kJ/mol/nm
        """
        x = (positions.detach() * self.angstrom_per_nm).requires_grad_(True)
        r_ij = x[self.idx_j] - x[self.idx_i]
        atomic = self.student.interaction(
            self.species, self.idx_i, self.idx_j, r_ij, self.n_neighbors
        )
        energies = atomic.view(self.n_copies, -1).sum(1)
        gradient = torch.autograd.grad([energies.sum()], [x])[0]
        assert gradient is not None
        total = (energies.detach() + self.reference_energy) * self.kjmol_per_ev
        return total, (gradient * -self.force_unit).contiguous()


class BoxEngine(nn.Module):
    """One large molecule, or a periodic box, with a neighbour list.

    Parameters
    ----------
    student : in evaluation mode
    species : shape (n_atoms,), atomic numbers
    periodic : whether the box that comes with the positions repeats
    """

    if TYPE_CHECKING:
        species: Tensor
        reference_energy: Tensor

    def __init__(self, student: Student, species: Tensor, periodic: bool) -> None:
        super().__init__()
        from vesin_torch import NeighborList

        self.student = student
        self.periodic = periodic
        self.angstrom_per_nm = ANGSTROM_PER_NM
        self.kjmol_per_ev = KJMOL_PER_EV
        self.force_unit = KJMOL_NM_PER_EV_ANGSTROM
        self.register_buffer("species", species.clone(), persistent=False)
        self.register_buffer(
            "reference_energy", student.reference_energy(species).sum(), persistent=False
        )
        cutoff = student.config.cutoff_angstrom
        self.neighbors = NeighborList(cutoff=cutoff, full_list=True, sorted=True)

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Energy of the box and the forces on every atom.

        Parameters
        ----------
        positions : shape (n_atoms, 3), nm
        box : shape (3, 3), nm; needed when periodic

        Returns
        -------
        energies : shape (1,), float64, kJ/mol
        forces : shape of `positions`, its dtype, kJ/mol/nm
        """
        x = (positions.detach() * self.angstrom_per_nm).requires_grad_(True)
        idx_i, idx_j, r_ij = self.find(x, box)
        atomic = self.student.interaction(self.species, idx_i, idx_j, r_ij, 0)
        energies = atomic.sum().unsqueeze(0)
        gradient = torch.autograd.grad([energies.sum()], [x])[0]
        assert gradient is not None
        total = (energies.detach() + self.reference_energy) * self.kjmol_per_ev
        return total, (gradient * -self.force_unit).contiguous()

    @torch.jit.export
    def pairs(self, positions: Tensor, box: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs within the cutoff, of positions as `forward` takes them.

        Returns
        -------
        idx_i, idx_j : shape (n_pairs,), int64, every pair in both directions, sorted by `idx_i`
        r_ij : shape (n_pairs, 3), angstrom
        """
        return self.find(positions.detach() * self.angstrom_per_nm, box)

    def find(self, x: Tensor, box: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The same for positions in angstrom; `r_ij` can be differentiated."""
        cell = torch.zeros([3, 3], dtype=x.dtype, device=x.device)
        if self.periodic:
            assert box is not None, "a periodic engine needs box vectors"
            cell = box.to(x.dtype) * self.angstrom_per_nm
        found = self.neighbors.compute(
            points=x, box=cell, periodic=self.periodic, quantities="ijD", copy=True
        )
        return found[0], found[1], found[2]


Scripted = MoleculeEngine | BoxEngine


class SubsetEngine(nn.Module):
    """An engine that sees some of the atoms; there is no force on the others.

    Parameters
    ----------
    engine : for the atoms that it sees
    atoms : shape (n_seen,), indices into the positions that come
    """

    if TYPE_CHECKING:
        atoms: Tensor

    def __init__(self, engine: nn.Module, atoms: Tensor) -> None:
        super().__init__()
        self.engine = engine
        self.register_buffer("atoms", atoms.clone(), persistent=False)

    def forward(self, positions: Tensor, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Energies of the engine, and forces of the shape of all positions."""
        energies, seen = self.engine(positions.detach()[self.atoms], box)
        forces = torch.zeros_like(positions).index_copy(0, self.atoms, seen)
        return energies, forces


def build_engine(
    student: Student,
    species: Tensor,
    *,
    periodic: bool,
    n_copies: int = 1,
    engine: Engine = "scripted",
) -> nn.Module:
    """The engine that serves this system best.

    Parameters
    ----------
    species : shape (n_atoms,), atomic numbers of one copy
    n_copies : more than one only for molecules that `MoleculeEngine` serves
    engine : "scripted" runs wherever torch does; "compiled" runs a kernel, in C++ on the host
        and, for molecules in vacuum, in CUDA on a device;
        "auto" is compiled where it can be, else scripted, and a warning says why

    Raises
    ------
    UnsupportedSystemError : copies of a box or of a large molecule
    InputError : "compiled" was asked for and cannot be had, or an engine that is not known
    """
    if engine not in get_args(Engine):
        raise InputError(f"unknown engine {engine!r}; known: {', '.join(get_args(Engine))}")
    scripted = _scripted(student, species, periodic, n_copies)
    if engine == "scripted":
        return scripted
    from omm_mlff.students.compiled import compiled_engine

    try:
        return compiled_engine(scripted)
    except KernelError as error:
        if engine == "compiled":
            raise InputError(f"no compiled engine: {error}; take engine=scripted") from error
        _say_scripted(str(error))
        return scripted


def is_compiled_here() -> bool:
    """Whether the compiled engine can be had on this machine; builds it if need be."""
    from omm_mlff.students.kernel.build import library

    try:
        library()
    except KernelError:
        return False
    return True


@functools.cache
def _say_scripted(reason: str) -> None:
    """Once for each reason."""
    log.warning("notice: students run scripted, several times slower: %s", reason)


def _scripted(student: Student, species: Tensor, periodic: bool, n_copies: int) -> Scripted:
    if not periodic and len(species) <= MAX_COMPLETE_ATOMS:
        return MoleculeEngine(student, species, n_copies)
    if n_copies > 1:
        raise UnsupportedSystemError("replicas in one call are for molecules in vacuum only")
    return BoxEngine(student, species, periodic)
