"""The exceptions of the package.

    OmmMlffError                 exit code
    ├── InputError                   2   what the user asked for cannot be done as asked
    │   ├── UnknownNameError         2   no such model, system, profile, policy, ...
    │   ├── StructureError           2   a structure file or geometry that cannot be used
    │   ├── CheckpointError          2   a checkpoint that is corrupt or does not match its card
    │   ├── UnsupportedSystemError   2   the potential cannot serve this system
    │   ├── PlatformError            2   the platform is not available here
    │   ├── MissingPackageError      2   an optional package is absent
    │   ├── OutputExistsError        2   the output folder holds another run
    │   └── PolicyError              2   a policy or profile that contradicts itself
    ├── ValidationFailure            4   the validation itself failed; says nothing about the model
    │   ├── AnalysisError            4   a measurement could not be made from this data
    │   ├── RunDirectoryError        4   a run directory is incomplete or damaged
    │   └── StorageError             4   the disk is full or not writable
    ├── UnstableSimulationError      4   a script's own simulation, watched by a StabilityReporter
    └── KernelError                  4   the compiled engine cannot be had; the scripted one can

In a validation physics that fails is data, never one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OmmMlffError(Exception):
    """Base of every exception that the package raises on purpose."""

    exit_code = 4


class InputError(OmmMlffError):
    """What was asked for cannot be done as asked."""

    exit_code = 2


class UnknownNameError(InputError):
    """A name that is not known, with the nearest ones that are.

    Parameters
    ----------
    what : the kind of thing, such as "system"
    name : the name that came
    known : the names that would have been accepted
    hint : one more sentence, such as another form that is accepted
    """

    def __init__(self, what: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        message = f"unknown {what} {name!r}"
        if near:
            message += f"; did you mean {' or '.join(near)}?"
        message += f" (known: {', '.join(known) or 'none'})"
        if hint:
            message += f"; {hint}"
        super().__init__(message)


class StructureError(InputError):
    """A structure file or geometry that cannot be used."""


class CheckpointError(InputError):
    """A checkpoint that is corrupt, truncated, or does not match its card."""


class UnsupportedSystemError(InputError):
    """The potential cannot serve this system."""


class PlatformError(InputError):
    """The platform that was asked for is not available here."""


class MissingPackageError(InputError):
    """An optional package is absent.

    Parameters
    ----------
    package : the module that could not be imported
    purpose : what it is needed for
    install : the command that brings it
    why : where it is installed, why it does not load all the same
    """

    def __init__(self, package: str, purpose: str, install: str, why: str = "") -> None:
        state = f"is installed and does not load ({why})" if why else "is not installed"
        super().__init__(f"{purpose} needs {package}, which {state}; run: {install}")


class OutputExistsError(InputError):
    """The output folder holds another run."""


class PolicyError(InputError):
    """A policy or profile that contradicts itself or names an unknown measurement."""


class ValidationFailure(OmmMlffError):  # noqa: N818 (a failure, not an error of the user)
    """The validation itself failed; this says nothing about the model."""


class AnalysisError(ValidationFailure):
    """A measurement could not be made from this data."""


class RunDirectoryError(ValidationFailure):
    """A run directory is incomplete or damaged."""


class StorageError(ValidationFailure):
    """The disk is full or not writable."""


class KernelError(OmmMlffError):
    """The compiled engine cannot be built, loaded or trusted here."""
