"""Does a run that was interrupted go on as the same run?

Ten steps at constant energy, a stop, ten more; then the last ten again from what the stop left:

- a *State*: positions and velocities through OpenMM's XmlSerializer, what a portable restart file
  holds; Verlet needs nothing else;
- a *checkpoint*: the platform's own binary copy of everything that the Context knows.

Both go into the Context of the run and into another one. The value is the largest distance of an
atom from where the uninterrupted run had it, relative to the longest way of an atom in these ten
steps; the worse of the two Contexts counts. It is 0 where the forces are a function of the
positions and computed the same way each time. It is not where a force field remembers what it has
seen (a neighbour list that is never rebuilt, a running average), or adds up in an order that
changes.

Bounds. The velocities being right, forces off by a relative e move an atom by some e of its way.
Float32 forces summed in another order differ by some 1e-6; single precision keeps positions to
1e-7 nm, and the way is some 5e-3 nm: 1e-4 is above both by a factor of five or more. A percent is
no rounding: it is another run. The shipped students and springs have exactly 0 on Reference; lost
velocities more than 0.5.
"""

from __future__ import annotations

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
)
from omm_mlff.forces.potential_errors import RAISED, is_not_a_number, own_error
from omm_mlff.schema import Declaration, Measurement, Reason, Where
from omm_mlff.units import BOLTZMANN

if TYPE_CHECKING:
    import openmm

    from omm_mlff.dynamics.contexts import Held

N_STEPS = 10
"""Before the stop, and after it."""

FEW_STEPS = 2
MANY_ATOMS = 500
"""From so many atoms on few steps do. Not by the clock: the result would be the machine's."""

TEMPERATURE_K = 300.0

STATE = Declaration(
    "restart.state",
    "deterministic",
    "1",
    "largest departure after a restart from a serialised State, over the way travelled",
    "restart",
    failure="a run does not go on from its State",
)
CHECKPOINT = Declaration(
    "restart.checkpoint",
    "deterministic",
    "1",
    "largest departure after a restart from a checkpoint, over the way travelled",
    "restart",
    failure="a run does not go on from its checkpoint",
)


def take(evidence: Evidence) -> list[Measurement]:
    """Departures of four restarted runs from the one that was not interrupted."""
    import openmm  # here, as below: finished runs are measured again where it is absent

    where = Where(system=evidence.system.name)
    evaluator = evidence.live
    same = evaluator.one()
    first = same.context
    n_steps = N_STEPS if evidence.system.n_atoms < MANY_ATOMS else FEW_STEPS
    same.ready()
    first.setPositions(evidence.system.positions)
    first.setVelocities(_velocities(evidence))
    try:
        first.getIntegrator().step(n_steps)
        begin = _positions(first)
        xml = openmm.XmlSerializer.serialize(first.getState(positions=True, velocities=True))
        checkpoint = first.createCheckpoint()
        first.getIntegrator().step(n_steps)
        end = _positions(first)
    except openmm.OpenMMException as error:
        begin = end = np.full((evidence.system.n_atoms, 3), np.nan)
        reason = f"({_in_words(error, evidence)})"
    else:
        reason = f"({_stopped(same) or 'positions are not finite'})"
    if _stopped(same) or not np.isfinite(end).all():
        reason = f"the run itself does not last {2 * n_steps} steps {reason}; see stability.*"
        return [absent(row, where, reason) for row in CHECK.declares]
    way = float(np.linalg.norm(end - begin, axis=1).max())
    if way == 0.0:
        reason = "nothing moves: there is no way to compare with"
        return [absent(row, where, reason) for row in CHECK.declares]

    another = evaluator.another()
    state = openmm.XmlSerializer.deserialize(xml)
    names = [f"{atom.element.symbol}{atom.index}" for atom in evidence.system.topology.atoms()]
    found = []
    for row, what in ((STATE, "a State"), (CHECKPOINT, "a checkpoint")):
        worst, cause = -1.0, ""
        reasons: tuple[Reason, ...] = ()
        for held, which in ((same, "the same Context"), (another, "another Context")):
            context = held.context
            held.ready()
            try:
                if row is STATE:
                    context.setState(state)
                else:
                    context.loadCheckpoint(checkpoint)
                context.getIntegrator().step(n_steps)
                off = np.linalg.norm(_positions(context) - end, axis=1) / way
            except openmm.OpenMMException as error:
                off = np.full(len(end), np.inf)
                cause = f"{what} does not go on in {which}: {_in_words(error, evidence)}"
                reasons = (Reason.NOT_FINITE if is_not_a_number(error) else Reason.RAISED,)
            stopped = _stopped(held)
            if stopped:
                off = np.full(len(end), np.inf)
                cause = f"{what} does not go on in {which}: {stopped}"
                reasons = (Reason.NOT_FINITE if held.raised() is None else Reason.RAISED,)
            off = np.where(np.isfinite(off), off, np.inf)
            atom = int(off.argmax())
            if off[atom] > worst:
                worst = float(off[atom])
                if np.isfinite(worst) or not cause:
                    reasons = ()
                    cause = (
                        f"{n_steps} steps after a restart from {what} in {which}, {names[atom]} "
                        f"is off by {worst:.2g} of the way travelled"
                    )
        found.append(exact(row, worst, where, 2, cause, reasons))
    return found


def _in_words(error: openmm.OpenMMException, evidence: Evidence) -> str:
    """Why a run has stopped; a machine that fails is no answer, and raises."""
    from omm_mlff.forces.faults import one_line

    if is_not_a_number(error):
        return one_line(error)
    return f"{RAISED} {own_error(error, evidence.card)}"


def _stopped(held: Held) -> str:
    """What the tap has kept from OpenMM since `ready`; empty where nothing was amiss."""
    message = held.raised()
    if message is not None:
        return f"{RAISED} {message}"
    return "energy or forces are not finite" if held.masked else ""


def _velocities(evidence: Evidence) -> NDArray[np.float64]:
    masses = evidence.system.masses[:, None]
    noise = evidence.random("restart").normal(size=evidence.system.positions.shape)
    velocities: NDArray[np.float64] = noise * np.sqrt(BOLTZMANN * TEMPERATURE_K / masses)
    return velocities


def _positions(context: openmm.Context) -> NDArray[np.float64]:
    positions = context.getState(positions=True).getPositions(asNumpy=True)
    return np.array(positions._value)


_ROUNDING = "rounding (derived in omm_mlff/checks/restart.py)"

CHECK = Check(
    name="restart",
    question="Does a run that was interrupted go on as the same run?",
    formula="max |x_restarted - x| / max |x - x_stop|, ten steps after the stop",
    source="OpenMM User's Guide, 'Saving Simulation Progress and Results'",
    declares=(STATE, CHECKPOINT),
    criteria=(
        *bounds(STATE, _ROUNDING, high=(1.0e-4, 1.0e-2)),
        *bounds(CHECKPOINT, _ROUNDING, high=(1.0e-4, 1.0e-2)),
    ),
    needs=frozenset({"evaluator"}),
    take=take,
    use=REPEATABLE,
    explained_by=SPOILS_EVALUATION,
)
