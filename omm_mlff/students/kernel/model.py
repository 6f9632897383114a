"""A student inside the C++ kernel."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from omm_mlff.errors import KernelError
from omm_mlff.students.kernel.build import library
from omm_mlff.students.painn import MESSAGE_SCALE, Message, PaiNN, Update
from omm_mlff.students.prior import RepulsionPrior
from omm_mlff.students.radial import BesselBasis
from omm_mlff.students.student import Student
from omm_mlff.units import ANGSTROM_PER_NM, KJMOL_NM_PER_EV_ANGSTROM, KJMOL_PER_EV

Floats = NDArray[np.float64]

_POINTER, _INT, _INT64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64

_KNOWN = (Student, PaiNN, Message, Update, BesselBasis, RepulsionPrior)
_KNOWN_TORCH = (nn.ModuleList, nn.Sequential, nn.Linear, nn.SiLU, nn.Embedding)

_UNITS = np.array([ANGSTROM_PER_NM, KJMOL_PER_EV, KJMOL_NM_PER_EV_ANGSTROM])
_UNITS_POINTER = _UNITS.ctypes.data


class KernelModel:
    """The numbers of a student as the kernel wants them, taken once.

    Parameters
    ----------
    student : in float32 or float64; later changes of its parameters do not reach the kernel

    Raises
    ------
    KernelError : the kernel cannot be built here, or the student is not made of what it knows
    """

    def __init__(self, student: Student) -> None:
        check_parts(student)
        self._library = library()
        config = student.config
        shape = np.array(
            [
                len(config.species),
                config.n_features,
                config.n_layers,
                config.n_radial,
                config.n_readout,
            ],
            dtype=np.int32,
        )
        numbers = np.concatenate(list(kernel_numbers(student)))
        constants = kernel_constants(student)
        make = self._library.omm_mlff_model
        make.restype, make.argtypes = _POINTER, [_INT, _POINTER, _POINTER, _POINTER]
        self._molecules = self._library.omm_mlff_molecules
        self._molecules.argtypes = [_POINTER, _INT, _INT, *[_POINTER] * 5, _INT]
        self._structure = self._library.omm_mlff_structure
        self._structure.argtypes = [_POINTER, _INT, _POINTER, _INT64, *[_POINTER] * 6, _INT]
        handle = make(
            int(student.dtype == torch.float64),
            shape.ctypes.data,
            constants.ctypes.data,
            numbers.ctypes.data,
        )
        if handle is None:
            raise MemoryError("no memory for the student's parameters")
        self._handle = ctypes.c_void_p(handle)
        weakref.finalize(self, self._library.omm_mlff_forget, self._handle)

    def molecules(
        self,
        species_index: NDArray[np.int32],
        positions: Tensor,
        n_copies: int,
        n_threads: int,
        out: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Copies of one molecule in vacuum.

        Parameters
        ----------
        species_index : shape (n_atoms,), rows of the embedding, of one copy
        positions : shape (n_copies * n_atoms, 3), float64, nm, contiguous, on the host
        out : where energies and forces go, as they are returned; new memory by default

        Returns
        -------
        energies : shape (n_copies,), float64, kJ/mol, without the atomic reference energies; NaN
            where a position is not finite
        forces : shape of `positions`, float64, kJ/mol/nm
        """
        if out is None:
            out = torch.empty(n_copies, dtype=torch.float64), torch.empty_like(positions)
        energies, forces = out
        status = self._molecules(
            self._handle,
            len(species_index),
            n_copies,
            species_index.ctypes.data,
            positions.data_ptr(),
            _UNITS_POINTER,
            energies.data_ptr(),
            forces.data_ptr(),
            n_threads,
        )
        _check(status)
        return energies, forces

    def structure(
        self,
        species_index: NDArray[np.int32],
        idx_i: Tensor,
        idx_j: Tensor,
        r_ij: Tensor,
        n_threads: int,
    ) -> tuple[Tensor, Tensor]:
        """One structure whose pairs are known.

        Parameters
        ----------
        species_index : shape (n_atoms,)
        idx_i, idx_j : shape (n_pairs,), int64, every pair in both directions, sorted by `idx_i`
        r_ij : shape (n_pairs, 3), float64, angstrom, from i to j

        Returns
        -------
        energies : shape (1,), float64, kJ/mol, without the atomic reference energies
        forces : shape (n_atoms, 3), float64, kJ/mol/nm
        """
        idx_i, idx_j, r_ij = idx_i.contiguous(), idx_j.contiguous(), r_ij.contiguous()
        energies = torch.empty(1, dtype=torch.float64)
        forces = torch.empty(len(species_index), 3, dtype=torch.float64)
        status = self._structure(
            self._handle,
            len(species_index),
            species_index.ctypes.data,
            len(idx_i),
            idx_i.data_ptr(),
            idx_j.data_ptr(),
            r_ij.data_ptr(),
            _UNITS_POINTER,
            energies.data_ptr(),
            forces.data_ptr(),
            n_threads,
        )
        _check(status)
        return energies, forces


def check_parts(student: Student) -> None:
    """Refuse a student that a kernel, of the host or of a device, would compute wrongly.

    Raises
    ------
    KernelError : it is not made of what the kernels know
    """
    strange = next((m for m in student.modules() if type(m) not in _KNOWN + _KNOWN_TORCH), None)
    if strange is not None:
        raise KernelError(f"the kernel knows no {type(strange).__name__}")
    if student.dtype not in (torch.float32, torch.float64):
        raise KernelError(f"the kernel is for float32 and float64, not {student.dtype}")


def kernel_numbers(student: Student) -> Iterator[Floats]:
    """Every array of the kernel's Model, in its order."""
    tensors = student.network.state_dict()
    yield np.array(student.config.species, dtype=np.float64)
    yield _flat(tensors["basis.wave_numbers"])
    yield _flat(tensors["embedding.weight"])
    for layer in range(student.config.n_layers):
        for name in ("phi.0", "phi.2", "filter"):
            yield _flat(tensors[f"messages.{layer}.{name}.weight"])
            yield _flat(tensors[f"messages.{layer}.{name}.bias"])
        yield _flat(tensors[f"updates.{layer}.mix.weight"])
        for name in ("gate.0", "gate.2"):
            yield _flat(tensors[f"updates.{layer}.{name}.weight"])
            yield _flat(tensors[f"updates.{layer}.{name}.bias"])
    yield _flat(tensors["readout_mix.weight"])
    for name in ("readout.0", "readout.2"):
        yield _flat(tensors[f"{name}.weight"])
        yield _flat(tensors[f"{name}.bias"])


def kernel_constants(student: Student) -> Floats:
    """What the kernel's Model is given beside parameters, in its order."""
    prior = student.prior
    cutoff = student.config.cutoff_angstrom
    return np.array(
        [
            cutoff,
            student.network.norm_epsilon,
            student.tiny_squared,
            math.sqrt(2.0 / cutoff),
            MESSAGE_SCALE,
            prior.coulomb,
            prior.screening_length,
            prior.screening_power,
            *prior.coefficients.tolist(),
            *prior.exponents.tolist(),
        ]
    )


def _flat(tensor: torch.Tensor) -> Floats:
    flat: Floats = tensor.detach().cpu().double().numpy().ravel()
    return flat


def _check(status: int) -> None:
    if status:
        raise MemoryError("no memory for this many atoms in one call of the kernel")
