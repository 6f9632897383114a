"""Are the atoms taken in the order of the system?

Where forces are grossly wrong, relative rms error above 0.5 against the labels, the reason may be
that the potential takes its atoms in another order. Every exchange of two atoms is tried, and every
order in which the elements can follow one another in blocks (with its inverse), in the positions
that the potential is given, in the forces that it returns, and in both:

    F'(x)_a = F(x_p)_b,    x_p the positions in the order p, b the place of atom a

*Swap* is 1 where one of these reproduces the labels: an error below 0.3 that is at most a tenth of
the one in the system's own order. It is 0 where none does, and 0 without trying where forces are
not grossly wrong. Two hydrogens that have changed places count: their forces are those of other
atoms.

The bound of 0.5 only tells 0 from 1.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import IN_OPENMM, Check, Evidence, bounds, exact, ratio
from omm_mlff.checks.frames import static_frames
from omm_mlff.schema import Declaration, Measurement, Where

N_FRAMES = 4
GROSS = 0.5
REPRODUCED = 0.3
DROP = 10.0
TOGETHER = 32
"""Orders that are evaluated together."""
MAX_ELEMENTS = 4
"""More elements have too many orders of their blocks; then only neighbours change places."""

SWAP = Declaration(
    "order.swap",
    "deterministic",
    "1",
    "1 where another order of the atoms fits the labels",
    "order",
    failure="the atoms are taken in another order",
)


@dataclass(frozen=True, eq=False)
class Order:
    """Another order of the atoms: shape (n_atoms,), the atom that stands at each place."""

    atoms: NDArray[np.int64]
    words: str


def orders(symbols: list[str]) -> Iterator[Order]:
    """Every exchange of two atoms, then every order of the elements' blocks and its inverse.

    Parameters
    ----------
    symbols : of the elements, one an atom
    """
    n_atoms = len(symbols)
    for i, j in itertools.combinations(range(n_atoms), 2):
        atoms = np.arange(n_atoms)
        atoms[[i, j]] = j, i
        yield Order(atoms, f"{symbols[i]}{i} and {symbols[j]}{j} have changed places")
    elements = sorted(set(symbols))
    if len(elements) > MAX_ELEMENTS:
        return
    for blocks in itertools.permutations(elements):
        atoms = np.array([k for e in blocks for k in range(n_atoms) if symbols[k] == e])
        if (atoms == np.arange(n_atoms)).all():
            continue
        words = f"atoms are taken in the blocks {', '.join(blocks)}"
        yield Order(atoms, words)
        yield Order(np.argsort(atoms), f"{words}, the other way round")


@np.errstate(all="ignore")  # a broken potential is measured, not warned of
def take(evidence: Evidence) -> list[Measurement]:
    """Whether another order of the atoms reproduces the labels."""
    where = Where(system=evidence.system.name)
    frames, target = _labelled(evidence)
    _, forces = evidence.live.evaluate(frames)
    error = _relative(forces, target)
    if not error > GROSS:
        cause = f"the relative error of the forces is {error:.2g}, not gross"
        return [exact(SWAP, 0.0, where, len(frames), cause)]
    symbols = [atom.element.symbol for atom in evidence.system.topology.atoms()]
    best, least, place = "", np.inf, ""
    found: tuple[int, ...] = ()
    n_tried = 0
    for order, moved in _in_other_orders(evidence, frames, orders(symbols)):
        inverse = np.argsort(order.atoms)
        for candidate, what in (
            (moved[:, inverse], "positions and forces"),
            (moved, "positions"),
            (forces[:, inverse], "forces"),
        ):
            n_tried += 1
            remaining = _relative(candidate, target)
            if remaining < least:
                best, least, place = order.words, remaining, what
                changed = np.flatnonzero(order.atoms != np.arange(len(order.atoms)))
                found = tuple(int(atom) for atom in changed)
    if least <= error / DROP and least < REPRODUCED:
        cause = (
            f"{best} in its {place}: put back, the relative error of the forces falls from "
            f"{error:.2g} to {least:.2g}"
        )
        return [exact(SWAP, 1.0, dataclasses.replace(where, atoms=found), len(frames), cause)]
    cause = (
        f"the relative error of the forces is {error:.2g}, and none of {n_tried} other orders "
        f"explains it (least error {least:.2g})"
    )
    return [exact(SWAP, 0.0, where, len(frames), cause)]


def _in_other_orders(
    evidence: Evidence, frames: NDArray[np.float64], tried: Iterator[Order]
) -> Iterator[tuple[Order, NDArray[np.float64]]]:
    """Every order with the forces on the frames taken in it, shape of `frames`."""
    while some := list(itertools.islice(tried, TOGETHER)):
        moved = np.concatenate([frames[:, order.atoms] for order in some])
        _, forces = evidence.live.evaluate(moved)
        yield from zip(some, forces.reshape(len(some), *frames.shape), strict=True)


def _labelled(evidence: Evidence) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A few labelled frames and their forces."""
    reference = evidence.reference
    frames = static_frames(evidence, CHECK.name, N_FRAMES)
    n = len(frames)
    chosen = np.linspace(0, reference.n_frames - 1, n).round().astype(np.int64)
    return frames, reference.forces[chosen]


def _relative(forces: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    """rms(F - F_ref) / rms(F_ref); infinite where it is not a number, 0 for 0/0."""
    error = float(np.sqrt(((forces - target) ** 2).mean()))
    return ratio(error, float(np.sqrt((target**2).mean())))


CHECK = Check(
    name="order",
    question="Are the atoms taken in the order of the system?",
    formula="min over orders p of rms(F(x_p) put back - F_ref) / rms(F_ref), where that of the "
    "system's order is above 0.5",
    source="DESIGN section 4: a TorchScript model's atom order must be the system's",
    declares=(SWAP,),
    criteria=bounds(SWAP, "it is 0 or 1", high=(None, 0.5)),
    needs=frozenset({"evaluator", "reference"}),
    take=take,
    use=IN_OPENMM,
)
