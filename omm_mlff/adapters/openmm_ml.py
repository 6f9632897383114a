"""Students as potentials of openmm-ml: MLPotential("omm-mlff-tiny").

openmm-ml finds the factory through this package's entry points, for all of a topology or for some
of its atoms (`createMixedSystem`). It asks of a factory and of what that makes for these methods
and for no base class, so nothing here imports it until `register` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import openmm

from omm_mlff.errors import InputError, MissingPackageError, UnsupportedSystemError
from omm_mlff.forces.plugin import Backend
from omm_mlff.potentials.student import student_force
from omm_mlff.students.checkpoint import checkpoint_folder, student_names

CHECKPOINT = "omm-mlff"
"""The potential that takes the folder of a checkpoint: MLPotential("omm-mlff", modelPath=...)."""


class StudentFactory:
    """What openmm-ml asks for a student by name."""

    def createImpl(self, name: str, modelPath: str | None = None, **args: Any) -> StudentImpl:
        """A student for openmm-ml.

        Parameters
        ----------
        name : "omm-mlff-" and the name of a shipped student, or "omm-mlff" for `modelPath`
        modelPath : the folder of a checkpoint
        args : what other potentials may take

        Raises
        ------
        InputError : a path and the name of a shipped student, or neither
        UnknownNameError : no such student, or no such folder
        """
        shipped = name.removeprefix(CHECKPOINT).removeprefix("-")
        if bool(shipped) == bool(modelPath):
            raise InputError(
                f"{CHECKPOINT!r} takes modelPath, the folder of a checkpoint; a shipped student is "
                f"named without one: {', '.join(potential_names()[1:])}"
            )
        student = modelPath or shipped
        checkpoint_folder(student)
        return StudentImpl(name, student)


class StudentImpl:
    """A student that puts itself into the Systems that openmm-ml makes.

    Parameters
    ----------
    name : in openmm-ml
    student : a shipped name, or the folder of a checkpoint
    """

    def __init__(self, name: str, student: str) -> None:
        self.name = name
        self.student = student

    def addForces(
        self,
        topology: openmm.app.Topology,
        system: openmm.System,
        atoms: Iterable[int] | None,
        forceGroup: int,
        charge: int = 0,
        backend: Backend = "auto",
        **args: Any,
    ) -> None:
        """Add the student to a System.

        Parameters
        ----------
        topology : its box decides whether the student is periodic
        system : without particles, openmm-ml means to copy the Force (interpolate=True); that is
            then a PythonForce, since copies of a TorchForce end the process: the plugin of 2026
            reads its XML by a layout that OpenMM 8.6 has changed
        atoms : indices of those under the student; None means all
        charge : of these atoms; a topology does not tell, and a student serves neutral ones only
        backend : which Force carries it: "torchforce", "pythonforce", or "auto"

        Raises
        ------
        UnsupportedSystemError : a charge, or an element that the student never saw
        InputError : a TorchForce was asked for where it would be copied
        """
        if charge != 0:
            raise UnsupportedSystemError(
                f"{self.name} is for neutral molecules; these atoms have charge {charge:+g}"
            )
        copied = system.getNumParticles() == 0
        if copied and backend == "torchforce":
            raise InputError(
                "interpolate=True copies the Force, and openmm-torch's cannot be read back by "
                "OpenMM 8.6; leave backend out, or say backend='pythonforce'"
            )
        force = student_force(
            topology, self.student, atoms=atoms, backend="pythonforce" if copied else backend
        )
        force.setForceGroup(forceGroup)
        system.addForce(force)

    def getSupportedEmbeddings(self) -> list[str]:
        """No embedding of its own: openmm-ml's mechanical one serves."""
        return []

    def getMLLongRange(self) -> bool:
        """Nothing reaches beyond the cutoff."""
        return False


def potential_names() -> list[str]:
    """The names under which openmm-ml knows this package's students."""
    return [CHECKPOINT, *(f"{CHECKPOINT}-{name}" for name in student_names())]


def register() -> None:
    """Register the students with openmm-ml where this package is not installed.

    An installed package needs no such call: openmm-ml reads its entry points.

    Raises
    ------
    MissingPackageError : openmm-ml is absent
    """
    try:
        from openmmml import MLPotential
    except ModuleNotFoundError:
        raise MissingPackageError("openmmml", "MLPotential", "pip install 'omm-mlff[ml]'") from None
    for name in potential_names():
        MLPotential.registerImplFactory(name, StudentFactory())
