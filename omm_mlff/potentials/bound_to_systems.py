"""Holds a potential that knows its atoms by their place to the systems that it was given for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omm_mlff.potentials.base import Potential
from omm_mlff.schema import MolecularSystem


class BoundPotential:
    """The same potential, which refuses every molecule but those that it is bound to.

    A file that was made for one molecule cannot tell that it is shown another one with as many
    atoms. Checks that build dimers, fragments or lone molecules from a system ask `unsupported`
    first; this is what answers them.

    Parameters
    ----------
    potential : one whose card says that it knows atoms by "index"
    systems : those that it was made for, by the word of whoever named them
    """

    def __init__(self, potential: Potential, systems: Iterable[MolecularSystem]) -> None:
        self._potential = potential
        self._bound = {_identity(system) for system in systems}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copying asks for these before there is a potential
            raise AttributeError(name)
        return getattr(self._potential, name)

    def unsupported(self, system: MolecularSystem) -> str | None:
        """Why it cannot serve this system, in one line; None if it can."""
        if _identity(system) not in self._bound:
            return "it knows its atoms by their place in the molecule that it was made for"
        return self._potential.unsupported(system)


def bound(potential: Potential, systems: Iterable[MolecularSystem]) -> Potential:
    """The potential, held to these systems where it knows its atoms by index."""
    if potential.card.knows_atoms_by != "index":
        return potential
    held: Any = BoundPotential(potential, systems)
    return held  # type: ignore[no-any-return]


def _identity(system: MolecularSystem) -> tuple[bytes, bytes]:
    def raw(array: NDArray[np.int64]) -> bytes:
        return np.ascontiguousarray(array).tobytes()

    return raw(system.species), raw(system.bonds)
