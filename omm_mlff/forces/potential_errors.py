"""Tells a potential that stops with an error from a machine, or a package, that does.

An error of the potential's own code is data: it ends a replica, or leaves a frame without a number.
Nothing else may count against a potential. OpenMM hands on the text of an error and nothing more,
so the text decides:

- memory, a device or its driver has failed: the validation has failed, not the potential;
- OpenMM has no text, as with Ctrl-C or a bare MemoryError inside a callback: nobody knows, and what
  nobody knows is no evidence;
- the potential is one of this package's students: their code is this package's;
- OpenMM has met a NaN: that is physics, and known under that name;
- everything else is the potential's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from omm_mlff.errors import ValidationFailure
from omm_mlff.forces.gpu_faults import device_was_lost
from omm_mlff.schema import RAISED, PotentialCard

OUR_OWN = ("student",)
"""Sources whose code is this package's."""

_MACHINE = re.compile(
    r"out of memory|not enough memory|unable to allocate|(?:cannot|can't) allocate|bad_alloc"
    r"|MemoryError|OutOfMemory|no space left|CUDA error|CUDA_ERROR|CUDA runtime error|CUDA driver"
    r"|CU(?:BLAS|DNN|SOLVER|SPARSE|FFT|RAND)_STATUS|cu(?:BLAS|DNN|FFT) error|NVRTC|HIP error"
    r"|device-side assert|GPU is lost|unspecified launch failure|fallen off the bus"
    r"|\bcl[A-Z]\w+ ?\(-\d+\)|KeyboardInterrupt",
    re.IGNORECASE,
)
_NOT_A_NUMBER = re.compile(r"Particle \w+ is NaN|Energy is NaN|infinite or NaN|NaN encountered")


def is_not_a_number(error: Exception) -> bool:
    """Whether OpenMM has met a NaN, which a replica's record knows under that name."""
    return bool(_NOT_A_NUMBER.search(str(error)))


def own_error(error: Exception | str, card: PotentialCard) -> str:
    """What a potential's own code has raised, in one line.

    Parameters
    ----------
    error : as it came out of OpenMM, or its text

    Raises
    ------
    ValidationFailure : it was not the potential's own code, or nobody can tell
    """
    from omm_mlff.forces.faults import (
        one_line,  # here: finished runs are read where torch is absent
    )

    line = error if isinstance(error, str) else one_line(error)
    cause = None if isinstance(error, str) else error
    from_openmm = type(error).__name__ == "OpenMMException"
    if not (str(error).strip() if from_openmm else line.strip()):
        raise ValidationFailure(
            f"an evaluation of {card.name} was stopped by an error without a message (memory, "
            "Ctrl-C or its own code), which is no evidence; run again with --resume"
        ) from cause
    if _MACHINE.search(f"{line}\n{error}"):
        raise ValidationFailure(
            f"the machine failed while {card.name} was evaluated: {line}; "
            f"{_how_to_go_on(str(error))}"
        ) from cause
    if card.source in OUR_OWN:
        raise ValidationFailure(
            f"omm-mlff's own code for {card.name} stopped with an error: {line}; this says nothing "
            "of the student: report it"
        ) from cause
    return line


def _how_to_go_on(message: str) -> str:
    if device_was_lost(message):
        return (
            "the device is lost to this process, what was recorded is kept: go on with --resume in "
            "a new one, elsewhere with another --platform"
        )
    return "run again with --resume, with more memory, or on another --platform"


@dataclass
class Tally:
    """How many frames a potential was asked for, and what it raised.

    Attributes
    ----------
    n_frames : evaluated so far
    messages : one for each of these on which its code has raised
    """

    n_frames: int = 0
    messages: list[str] = field(default_factory=list)

    def add(self, n_frames: int, messages: list[str]) -> None:
        """Count frames, and what was raised on them."""
        self.n_frames += n_frames
        self.messages += messages

    def mark(self) -> tuple[int, int]:
        """Where the tally stands now, for `since`."""
        return self.n_frames, len(self.messages)

    def since(self, mark: tuple[int, int]) -> str:
        """What was raised since a mark, in words; empty where nothing was."""
        new = self.messages[mark[1] :]
        if not new:
            return ""
        return f"{RAISED} on {len(new)} of {self.n_frames - mark[0]} frames: {new[0]}"
