"""The teacher as a potential, so that it can be validated like any other model."""

from __future__ import annotations

import functools

import numpy as np
import openmm
from numpy.typing import NDArray

from omm_mlff.errors import UnknownNameError
from omm_mlff.forces.built import Built
from omm_mlff.forces.python_force import make_python_force
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials.base import Capabilities
from omm_mlff.potentials.ions import no_neutral_singlet
from omm_mlff.schema import MolecularSystem, PotentialCard
from omm_mlff.teachers.ani import TEACHER_NAME, TEACHER_SPECIES, Teacher
from omm_mlff.units import (
    ANGSTROM_PER_NM,
    KJMOL_NM_PER_EV_ANGSTROM,
    KJMOL_PER_EV,
    NM_PER_ANGSTROM,
)

SOURCE = "teacher"
FORMS = ("teacher:ANI-1ccx",)
TEACHER_SPEC = f"{SOURCE}:{TEACHER_NAME}"

_CUTOFF_ANGSTROM = 5.2  # radial; angles reach to 3.5 (Smith et al., Chem. Sci. 8, 3192 (2017))
_TRAINING_DOMAIN = {
    "elements": "H C N O, neutral, closed shells",
    "believe it": "within 0.8 to 1.35 equilibrium bond lengths, outside deep contacts",
}
_MAX_REPLICAS = 256


class TeacherPotential:
    """ANI-1ccx in float64, through OpenMM's own PythonForce; copies are a batch of structures."""

    spec = TEACHER_SPEC

    def __init__(self) -> None:
        self.teacher = Teacher()
        self._self_energies = self.teacher.self_energies()
        self._card = PotentialCard(
            name=TEACHER_NAME,
            source=SOURCE,
            species=TEACHER_SPECIES,
            cutoff_nm=_CUTOFF_ANGSTROM * NM_PER_ANGSTROM,
            dtype="float64",
            charge=0,
            spin_multiplicity=1,
            training_domain=_TRAINING_DOMAIN,
        )

    @property
    def card(self) -> PotentialCard:
        return self._card

    def unsupported(self, system: MolecularSystem) -> str | None:
        unknown = sorted(set(system.species.tolist()) - set(TEACHER_SPECIES))
        if unknown:
            symbols = [openmm.app.Element.getByAtomicNumber(z).symbol for z in unknown]
            return f"{TEACHER_NAME} does not know {', '.join(symbols)} (knows H, C, N, O)"
        reason = no_neutral_singlet(system)
        if reason:
            return reason
        if system.periodic:
            return "the teacher is run on molecules in vacuum only"
        if system.n_atoms < 2:
            return "a single atom has no neighbours"
        return None

    def capabilities(self, system: MolecularSystem) -> Capabilities:
        return Capabilities(tap=True, max_replicas=_MAX_REPLICAS, force="pythonforce")

    def add_to(
        self,
        openmm_system: openmm.System,
        system: MolecularSystem,
        *,
        n_replicas: int = 1,
        tap: Tap | None = None,
    ) -> Built:
        openmm_system.addForce(
            make_python_force(
                lambda frames, box: self.energies_and_forces(frames, system),
                n_replicas=n_replicas,
                n_atoms=system.n_atoms,
                periodic=False,
                tap=tap,
            )
        )
        return Built("pythonforce")

    def energies_and_forces(
        self, positions: NDArray[np.float64], system: MolecularSystem
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        frames = np.asarray(positions) * ANGSTROM_PER_NM
        energies, forces, _ = self.teacher.label(system.species, frames)
        return energies * KJMOL_PER_EV, forces * KJMOL_NM_PER_EV_ANGSTROM

    def reference_energy(self, system: MolecularSystem) -> float:
        return sum(self._self_energies[int(z)] for z in system.species) * KJMOL_PER_EV


def names() -> list[str]:
    """Nothing: the teacher does not ship, it comes with the extra `teacher`."""
    return []


def matches(spec: str) -> bool:
    """Whether this source reads the spec."""
    return spec.startswith(f"{SOURCE}:")


@functools.lru_cache(maxsize=1)
def load(spec: str) -> TeacherPotential:
    """The potential behind a spec.

    Raises
    ------
    UnknownNameError : another teacher than the one there is
    MissingPackageError : torchani is not installed
    """
    if spec != TEACHER_SPEC:
        raise UnknownNameError("teacher", spec, [TEACHER_SPEC])
    return TeacherPotential()
