"""Does the same structure always give the same answer?

*Repeated.* After calls that settle it, a frame is evaluated again and again, one call each. On the
Reference and CPU platforms a sound model gives the same bits; on CUDA sums are formed in no fixed
order, which changes the last ones. Measured is the largest difference between two of the calls, of
the energy per atom and of the forces over their rms. A value that changes once and then stays is
not counted here: something was settling, which is history.

*History.* A new Context (`Evaluator.for_system`) first evaluates a thermal frame and the system's
own structure; what it answers then is the fresh answer. Then it visits other places, and is asked
again at the same frames:

- far away and back at once, after 1, 2, 3, 5, 8 and 40 calls out there, so that a neighbour list
  that is rebuilt only every n calls is found stale for n up to 40. Far away is where all atoms are
  apart by more than the cutoff (`FAR_NM` where the card names none); in a box, where no such place
  is, like atoms have changed places: all neighbours are others.
- out in 30 small steps, home in one, out in one, and home in the same small steps (a molecule
  only), asked at each place both times. A list that compares each step with its skin, not the way
  since it was built, never notices that atoms have met; all move by more than a usual skin of
  0.2 nm.

The Context that the other checks have used is asked too. Measured is the largest change, of the
forces over the rms force of thermal frames or of the energy over k T at 300 K an atom, whichever is
more, less twice the largest difference between repeated calls: random differences are not history.
Where forces are larger than at the frame that was repeated, so may their noise be. A sound model on
Reference has 0 for all three, in float32 as in float64.

Bounds: sums in float32 on CUDA differ by some 1e-6 of the force, the limit is 1e-5. Forces that
differ at random by 1e-3 heat like the limit of the drift, see `precision`: rejected, as is a
history of that size. A cluster of argon whose pairs beyond 2.5 sigma went missing has 1e-2.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import (
    REPEATABLE,
    SPOILS_EVALUATION,
    Check,
    Evidence,
    absent,
    bounds,
    exact,
    ratio,
)
from omm_mlff.checks.frames import static_frames
from omm_mlff.checks.invariance import like_atoms_exchanged
from omm_mlff.schema import Declaration, Measurement, Where
from omm_mlff.units import ANGSTROM_PER_NM, BOLTZMANN, MEV_PER_KJMOL

if TYPE_CHECKING:
    from omm_mlff.dynamics.evaluator import Evaluator

N_FRAMES = 8
N_SETTLING = 3
N_REPEATS = 12
N_WALK = 30
CALLS_AWAY = (40, 1, 2, 3, 5, 8)
FAR_NM = 1.2
CLEAR_NM = 0.3
"""Beyond the cutoff: more than the skin of a neighbour list."""

_THERMAL = 300.0 * BOLTZMANN  # kJ/mol

ENERGY = Declaration(
    "determinism.energy",
    "deterministic",
    "meV/atom",
    "largest difference between energies of one frame, asked repeatedly",
    "determinism",
    failure="the energy differs from call to call",
)
FORCE = Declaration(
    "determinism.force",
    "deterministic",
    "1",
    "largest relative difference between forces of one frame, asked repeatedly",
    "determinism",
    failure="forces differ from call to call",
)
HISTORY = Declaration(
    "determinism.history",
    "deterministic",
    "1",
    "largest change of force or energy of a frame by what was evaluated before",
    "determinism",
    failure="the answer depends on what was evaluated before",
)


@dataclass(frozen=True, eq=False)
class Answer:
    """What one call gave: energy in kJ/mol, forces in kJ/mol/nm, shape (n_atoms, 3)."""

    energy: float
    forces: NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """Between two answers: energy in kJ/mol, rms of the forces in kJ/mol/nm."""

    energy: float = 0.0
    force: float = 0.0

    @classmethod
    def between(cls, one: Answer, other: Answer) -> Difference:
        """Infinite where one of the two is not finite; none where both are not."""
        broken = [not (np.isfinite(a.energy) and np.isfinite(a.forces).all()) for a in (one, other)]
        if any(broken):
            return cls() if all(broken) else cls(np.inf, np.inf)
        force = float(np.sqrt(((one.forces - other.forces) ** 2).mean()))
        return cls(abs(one.energy - other.energy), force)

    @property
    def any(self) -> bool:
        return self.energy > 0.0 or self.force > 0.0

    def larger(self, other: Difference) -> Difference:
        """The larger of each."""
        return Difference(max(self.energy, other.energy), max(self.force, other.force))

    def beyond(self, noise: Difference, factor: float) -> Difference:
        """What is left over a multiple of the noise."""
        return Difference(
            max(0.0, self.energy - factor * noise.energy),
            max(0.0, self.force - factor * noise.force),
        )


@dataclass(eq=False)
class _Changes:
    """What was found: the change, the rms force at the place, and after what it was."""

    found: list[tuple[Difference, float, str]] = field(default_factory=list)

    def compare(self, fresh: Answer, now: Answer, after: str) -> None:
        size = float(np.sqrt((fresh.forces**2).mean()))
        self.found.append((Difference.between(fresh, now), size, after))


@np.errstate(all="ignore")  # a broken potential is measured, not warned of
def take(evidence: Evidence) -> list[Measurement]:
    """Differences between repeated calls, and what visiting other frames changes."""
    frames = static_frames(evidence, CHECK.name, N_FRAMES)
    _, forces = evidence.live.evaluate(frames)
    where = Where(system=evidence.system.name)
    finite = np.isfinite(forces).all(axis=(1, 2))
    if not finite.any():
        reason = "no answer is finite, so there is nothing to compare"
        return [absent(row, where, reason) for row in CHECK.declares]
    size = float(np.sqrt((forces[finite] ** 2).mean()))
    # Where forces are largest: noise in proportion to the force is largest there too.
    thermal = frames[finite][int((forces[finite] ** 2).mean(axis=(1, 2)).argmax())]
    changes = _Changes()
    evaluator = evidence.live.for_system(evidence.system)
    try:
        noise, n_changed = _repeated(evaluator, thermal, changes)
        _visit(evidence, evaluator, thermal, changes)
    finally:
        evaluator.close()
    n_atoms = evidence.system.n_atoms
    cause = (
        f"{n_changed} of {N_REPEATS - 1} repeated calls gave another answer"
        if n_changed
        else f"{N_REPEATS} calls gave the same bits"
    )
    value, at = _history(changes, noise, size, n_atoms)
    return [
        exact(ENERGY, noise.energy * MEV_PER_KJMOL / n_atoms, where, N_REPEATS, cause),
        exact(FORCE, ratio(noise.force, size), where, N_REPEATS, cause),
        exact(HISTORY, value, where, len(changes.found), at),
    ]


def _repeated(
    evaluator: Evaluator, frame: NDArray[np.float64], changes: _Changes
) -> tuple[Difference, int]:
    """The largest difference between repeated calls, and how many changed the answer."""
    answers = _asked_in_turn(evaluator, [frame] * (N_SETTLING + N_REPEATS))[N_SETTLING:]
    steps = [Difference.between(a, b) for a, b in itertools.pairwise(answers)]
    n_changed = sum(step.any for step in steps)
    if n_changed == 1:
        changes.compare(answers[0], answers[-1], "calls at the same frame, once")
        return Difference(), 0
    noise = Difference()
    for k, one in enumerate(answers):
        for other in answers[:k]:
            noise = noise.larger(Difference.between(one, other))
    return noise, n_changed


def _visit(
    evidence: Evidence, evaluator: Evaluator, thermal: NDArray[np.float64], changes: _Changes
) -> None:
    """Visit other places and ask again at the frames that were asked at first."""
    home = evidence.system.positions
    fresh_thermal, fresh_home = _asked_in_turn(evaluator, [thermal, home])
    far = _far_frame(evidence, evaluator, thermal)
    for n_calls in CALLS_AWAY:
        answers = _asked_in_turn(evaluator, [*[far] * n_calls, thermal, home])
        changes.compare(fresh_thermal, answers[-2], f"{n_calls} calls far away")
        changes.compare(fresh_home, answers[-1], f"{n_calls} calls far away")
    if not evidence.system.periodic and (far != thermal).any():
        walk = thermal + np.linspace(0.0, 1.0, N_WALK + 1)[:, None, None] * (far - thermal)
        step = float(np.linalg.norm(walk[1] - walk[0], axis=1).max()) * ANGSTROM_PER_NM
        # At home a list is built, and again where it jumps to.
        answers = _asked_in_turn(evaluator, [*walk, home, *walk[::-1]])
        outward, inward = answers[: len(walk)], answers[: len(walk) : -1]
        for k in range(N_WALK, -1, -1):
            after = f"a walk of {N_WALK - k} steps of {step:.2g} angstrom from far away"
            changes.compare(outward[k], inward[k], after)
        after = f"a walk of {N_WALK} steps of {step:.2g} angstrom from far away"
        changes.compare(fresh_thermal, inward[0], after)
    changes.compare(fresh_thermal, _asked_in_turn(evidence.live, [thermal])[0], "all other checks")


def _far_frame(
    evidence: Evidence, evaluator: Evaluator, frame: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A frame in which no atom has a neighbour that it had, or the nearest thing that is answered.

    Some models fail where an atom has no neighbour at all.
    """
    exchanged = frame[like_atoms_exchanged(evidence.system.species, evidence.random(CHECK.name))]
    if evidence.system.periodic:
        return exchanged
    centre = frame.mean(axis=0)
    i, j = np.triu_indices(len(frame), k=1)
    closest = float(np.linalg.norm(frame[j] - frame[i], axis=1).min()) if len(i) else np.inf
    cutoff = evidence.card.cutoff_nm or FAR_NM
    for apart in (cutoff + CLEAR_NM, 0.5 * cutoff):
        expanded = np.asarray(centre + (frame - centre) * (apart / closest))
        _asked_in_turn(evaluator, [expanded])
        if not evaluator.raised:
            return expanded
    return exchanged


def _asked_in_turn(evaluator: Evaluator, frames: Sequence[NDArray[np.float64]]) -> list[Answer]:
    """One call for each frame, one after the other."""
    energies, forces = evaluator.evaluate(np.array(frames), batched=False)
    return [Answer(float(e), f) for e, f in zip(energies, forces, strict=True)]


def _history(changes: _Changes, noise: Difference, size: float, n_atoms: int) -> tuple[float, str]:
    """The largest change beyond the noise, and after what."""
    largest, cause = 0.0, f"{len(changes.found)} answers are those of a fresh Context"
    for change, there, after in changes.found:
        left = change.beyond(noise, 2.0 * max(1.0, ratio(there, size)))
        for value, what in (
            (ratio(left.force, size), "forces change by {:.2g} of their rms"),
            (left.energy / (n_atoms * _THERMAL), "the energy changes by {:.2g} kT an atom"),
        ):
            if value > largest:
                largest, cause = value, f"{what.format(value)} after {after}"
    return largest, cause


_SUMS = (
    "sums in another order on CUDA below; differences that heat by the limit of the drift are "
    "rejected (derived in omm_mlff/checks/determinism.py)"
)

CHECK = Check(
    name="determinism",
    question="Does the same structure always give the same answer?",
    formula="max |f_k(x) - f_l(x)| over repeated calls; max |f(x after a visit) - f(x)| less twice "
    "that",
    source="Verlet, Phys. Rev. 159, 98 (1967), for lists of neighbours and when they are stale",
    declares=(ENERGY, FORCE, HISTORY),
    criteria=(
        *bounds(ENERGY, _SUMS, high=(0.01, 1.0)),
        *bounds(FORCE, _SUMS, high=(1.0e-5, 1.0e-3)),
        *bounds(HISTORY, _SUMS, high=(1.0e-5, 1.0e-3)),
    ),
    needs=frozenset({"evaluator"}),
    take=take,
    use=REPEATABLE,
    explained_by=SPOILS_EVALUATION,
)
