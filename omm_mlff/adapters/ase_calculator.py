"""A student as an ASE calculator, for relaxations, vibrations and dynamics in ASE's own tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from omm_mlff.errors import InputError, MissingPackageError, UnsupportedSystemError
from omm_mlff.students.checkpoint import load_student
from omm_mlff.students.engine import Engine, build_engine
from omm_mlff.students.student import Student
from omm_mlff.students.virial import evaluate_cell
from omm_mlff.units import EV_ANGSTROM_PER_KJMOL_NM, EV_PER_KJMOL, NM_PER_ANGSTROM

try:
    from ase.calculators.calculator import (
        Calculator,
        PropertyNotImplementedError,
        all_changes,
    )
    from ase.stress import full_3x3_to_voigt_6_stress
except ImportError:
    raise MissingPackageError("ase", "StudentCalculator", "pip install 'omm-mlff[ase]'") from None


class StudentCalculator(Calculator):  # type: ignore[misc]  # ase is not always there to be read
    """Energy, forces and, in a periodic cell, stress (eV, eV/angstrom, eV/angstrom^3).

    Cells of any shape are served, smaller ones than the cutoff as well, and cells that repeat along
    one or two of their vectors; of these the stress is not defined.

    Parameters
    ----------
    student : a shipped name such as "tiny", a checkpoint's folder, or a student itself
    engine : in vacuum, see `add_student`; in a cell it is always the scripted student
    kwargs : of ASE's own base class: atoms, directory, label

    Raises
    ------
    UnknownNameError : neither a shipped name nor a folder
    CheckpointError : the folder's checkpoint cannot be used

    Examples
    --------
    >>> from ase.build import molecule
    >>> water = molecule("H2O")
    >>> water.calc = StudentCalculator("tiny")
    >>> water.get_forces().shape
    (3, 3)
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "stress"]
    ignored_changes: ClassVar[set[str]] = {"initial_magmoms"}

    def __init__(
        self, student: str | Path | Student, *, engine: Engine = "auto", **kwargs: Any
    ) -> None:
        self._how: Engine = engine
        self.student = student if isinstance(student, Student) else load_student(student)
        self._engine: nn.Module | None = None
        self._engine_species = np.empty(0, dtype=np.int64)
        super().__init__(**kwargs)
        name = self.student.config.name if isinstance(student, Student) else str(student)
        dtype = str(self.student.dtype).removeprefix("torch.")
        self.parameters.update(student=name, dtype=dtype)

    def calculate(
        self,
        atoms: Any = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute what the atoms' boundaries allow, all of it at once.

        Raises
        ------
        UnsupportedSystemError : an element that the student never saw, a charge, a lone atom
        PropertyNotImplementedError : stress of what is not periodic in three directions
        """
        super().calculate(atoms, list(properties), list(system_changes))
        self.results = {}
        self._refuse_what_it_cannot_serve()
        if self.atoms.pbc.any():
            energy, forces, virial = self._in_cell()
            if self.atoms.pbc.all():
                stress = 0.5 * (virial + virial.T) / self.atoms.get_volume()
                self.results["stress"] = full_3x3_to_voigt_6_stress(stress)
        else:
            energy, forces = self._in_vacuum()
        self.results.update(energy=energy, free_energy=energy, forces=forces)
        if "stress" in properties and "stress" not in self.results:
            raise PropertyNotImplementedError(
                "stress is defined in a cell that is periodic in three directions; this one has "
                f"pbc {self.atoms.pbc.tolist()}"
            )

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Refuse new parameters: what a calculator computes with is settled when it is made."""
        fixed = sorted(set(kwargs) & {"student", "dtype"})
        if fixed:
            raise InputError(f"{', '.join(fixed)} cannot be changed; make a new StudentCalculator")
        if kwargs:
            raise InputError(
                f"StudentCalculator has no parameter {', '.join(sorted(kwargs))}; it takes a "
                "student, and atoms, directory or label"
            )
        changed: dict[str, Any] = super().set()
        return changed

    def _in_vacuum(self) -> tuple[float, NDArray[np.float64]]:
        species = self.atoms.numbers
        if self._engine is None or not np.array_equal(self._engine_species, species):
            self._engine = build_engine(
                self.student,
                torch.tensor(species, dtype=torch.int64),
                periodic=False,
                engine=self._how,
            )
            self._engine_species = species.copy()
        positions = torch.from_numpy(self.atoms.positions * NM_PER_ANGSTROM)
        energies, forces = self._engine(positions)
        return float(energies) * EV_PER_KJMOL, forces.numpy() * EV_ANGSTROM_PER_KJMOL_NM

    def _in_cell(self) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        found = evaluate_cell(
            self.student,
            torch.tensor(self.atoms.numbers, dtype=torch.int64),
            torch.tensor(self.atoms.positions),
            torch.from_numpy(self._cell()),
        )
        return found.energy, found.forces.numpy(), found.virial.numpy()

    def _cell(self) -> NDArray[np.float64]:
        """Cell vectors; where one does not repeat, one too long for an atom to see its image."""
        cell = np.array(self.atoms.cell.array, dtype=np.float64)
        pbc = self.atoms.pbc
        if np.linalg.matrix_rank(cell[pbc]) < pbc.sum():
            raise InputError(
                f"wanted {pbc.sum()} independent cell vectors for pbc {pbc.tolist()}, got "
                f"{cell[pbc].tolist()}; set the cell, or switch pbc off"
            )
        # The right singular vectors beyond the rank are orthogonal to every vector that repeats.
        across = np.linalg.svd(cell[pbc])[2][pbc.sum() :]
        cutoff = self.student.config.cutoff_angstrom
        for row, direction in zip(np.flatnonzero(~pbc), across, strict=True):
            extent = np.ptp(self.atoms.positions @ direction)
            cell[row] = (extent + 2.0 * cutoff) * direction
        return cell

    def _refuse_what_it_cannot_serve(self) -> None:
        name = self.parameters["student"]
        known = self.student.config.species
        unknown = sorted({a.symbol for a in self.atoms if a.number not in known})
        if unknown:
            raise UnsupportedSystemError(f"{name} was never trained on {', '.join(unknown)}")
        charge = float(self.atoms.get_initial_charges().sum())
        if round(charge) != 0:
            raise UnsupportedSystemError(
                f"{name} is for neutral molecules, these atoms' initial charges add up to "
                f"{charge:+g}"
            )
        if len(self.atoms) < 2 and not self.atoms.pbc.any():
            raise UnsupportedSystemError(
                f"{name} needs two atoms or more, got {len(self.atoms)}: a single atom has no pairs"
            )
        if len(self.atoms) == 0:
            raise UnsupportedSystemError(f"{name} needs atoms, got none")
        if not np.isfinite(self.atoms.positions).all():
            raise InputError("wanted finite positions, got some that are not; the run has failed")
