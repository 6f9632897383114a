r"""Up to which temperature, and for how long, does the molecule come through?

The runs of a temperature ladder (production runs belong to it) are read together; replicas at one
temperature are pooled, whichever run they are from. A replica's *event* is the first of: a bond
broken, a new bond, a hydrogen transferred (`bonds` says what these are, and reads them from the
frames), and whatever made the simulation stop it: atoms on top of each other, the total energy 0.1
eV/atom off, a NaN, an error that the potential's code raises. A replica without one is censored
where its frames end, also where that is earlier than planned, because a budget was spent.

`survival.probability` is Kaplan's and Meier's estimate at the end of the longest watch, with the
beta product interval (see `kaplan_meier`). `survival.events` counts replicas. `survival.rate_limit`
is the upper limit of the rate of events, by Garwood from the time watched until each replica's
first event; it alone supposes that the rate is constant. Nothing is said beyond the length that
was run: to claim 95% survival over 1 ns with 95% confidence takes 59 replicas of 1 ns without an
event (0.05^(1/59) = 0.95), and the cause says how much of that was run.

`survival.highest_temperature` is the highest temperature that was run such that neither there nor
at any lower one was an event. `survival.lowest_failure` is the lowest at which there was one.

**Bounds.** What a model is run at is room temperature: whoever breaks at 300 K or below, be it in
a run of the ladder alone, is rejected (the production runs have `stability.*` besides). Above,
events are not wrong by themselves: a model need not know what it will never meet, and at 1000 K
real molecules react too. But heat is also a way to see what is rare at 300 K: one event in the
time tau at temperature T, of a process with attempt rate nu and one barrier (Arrhenius, Vineyard),
means a life at 300 K of

    (nu tau)^(T / 300 K) / nu

With tau = 160 ps (16 replicas of 10 ps) and nu = 10 to 100 per ps that is 20 to 100 ns for an event
at 500 K, 0.3 to 3 microseconds at 600 K, 3 to 60 at 700 K, and milliseconds at 1000 K. Production
runs last 1 to 100 ns: an event below 600 K is a limit, one from there on is information. What was
not run decides nothing: without a run near 300 K the bounds have nothing to say.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from omm_mlff.checks.base import (
    SPOILS_DYNAMICS,
    WHOLE,
    Check,
    Evidence,
    absent,
    counted,
    exact,
    sampled,
)
from omm_mlff.checks.bonds import Incident, IncidentScan, from_event, transfers
from omm_mlff.schema import Criterion, Declaration, Measurement, Reason, Symptom, Where
from omm_mlff.statistics.intervals import Estimate, garwood
from omm_mlff.statistics.kaplan_meier import replicas_needed, survival_at
from omm_mlff.units import PS_PER_NS

if TYPE_CHECKING:
    from omm_mlff.record.rundir import RunRecord

REQUIRED_K = 300.0
"""A model that has events at or below this temperature is of no use."""

RARE_FROM_K = 600.0
"""Events from this temperature on are too rare at 300 K to matter (see above)."""

_CLAIM = 0.95  # survival over a nanosecond, and the confidence in it

EVENTS = Declaration(
    "survival.events", "count", "1", "replicas with a broken or new bond or a crash", "survival"
)
PROBABILITY = Declaration(
    "survival.probability", "info", "1", "of no event to the end of the longest run", "survival"
)
RATE = Declaration(
    "survival.rate_limit", "info", "1/ns", "upper limit of a constant rate of events", "survival"
)
HIGHEST = Declaration(
    "survival.highest_temperature",
    "deterministic",
    "K",
    "highest temperature of the ladder with no event there and below",
    "survival",
    failure="it breaks at room temperature",
)
LOWEST = Declaration(
    "survival.lowest_failure",
    "deterministic",
    "K",
    "lowest temperature of the ladder with an event",
    "survival",
    failure="it breaks not far above room temperature",
)


@dataclass(frozen=True)
class Outcome:
    """How one replica ended.

    Attributes
    ----------
    until_ps : time of its first event, or of its last frame
    incident : the event; None where it came through
    words : what happened, for a person
    """

    run: RunRecord
    until_ps: float
    incident: Incident | None
    words: str = ""


def outcome(scan: IncidentScan, index: int) -> Outcome | None:
    """How one replica ended; None for one that was never begun."""
    run = scan.run
    found = run.events.get(index)
    # Rounded, so that runs of one length end at one time.
    watched_ps = round(run.replica(index).n_frames * run.dt_ps, 9)
    if found is None and watched_ps == 0.0:
        return None
    broken, new = scan.incidents(index)
    moved = transfers(broken, new, scan.system.species, scan.names)
    incidents = [*broken, *new]
    if found is not None:
        incidents.append(from_event(index, found))
    if not incidents:
        return Outcome(run, watched_ps, None)
    first = min(incidents, key=lambda item: item.time_ps)
    transfer = moved.get((index, first.atoms))
    words = f"{transfer} ({first.detail})" if transfer else first.detail
    return Outcome(run, first.time_ps, first, words)


def _of_ladder(evidence: Evidence) -> list[Measurement]:
    """Survival at each temperature, and what the ladder as a whole says."""
    ladder: dict[float, list[Outcome]] = defaultdict(list)
    for run in evidence.runs:
        scan = IncidentScan.of(evidence.system, run)
        ended = (outcome(scan, index) for index in range(run.n_replicas))
        ladder[run.spec.temperature_K] += [item for item in ended if item is not None]
    rungs = {kelvin: ladder[kelvin] for kelvin in sorted(ladder) if ladder[kelvin]}
    if not rungs:
        where = Where(system=evidence.system.name)
        return [absent(row, where, "no replica has a frame") for row in CHECK.declares]
    found: list[Measurement] = []
    for kelvin, outcomes in rungs.items():
        where = Where(system=evidence.system.name, temperature_K=kelvin)
        found += _of_rung(outcomes, where)
    return found + _of_all(rungs, Where(system=evidence.system.name))


def _of_rung(outcomes: list[Outcome], where: Where) -> list[Measurement]:
    """Events, survival and rate at one temperature."""
    until = np.array([item.until_ps for item in outcomes])
    had = np.array([item.incident is not None for item in outcomes])
    n_events, exposure = int(had.sum()), float(until.sum())
    first = _first(outcomes)
    at_first = _at(where, first)
    found = [
        counted(
            EVENTS,
            n_events,
            at_first,
            n_replicas=len(outcomes),
            exposure_ps=exposure,
            cause=_in_words(first, n_events, len(outcomes)),
            reasons=_reasons(first),
        )
    ]
    survival = survival_at(float(_end(outcomes)), until, had)
    interval = Estimate(
        survival.probability,
        float("nan"),
        float("nan"),
        survival.ci_low,
        survival.ci_high,
        len(outcomes),
    )
    needed = replicas_needed(_CLAIM, _CLAIM)
    claim = (
        f"for {survival.time:.4g} ps and no longer: {_CLAIM:.0%} over 1 ns with {_CLAIM:.0%} "
        f"confidence takes {needed} replicas of 1 ns without an event, {needed} ns in all; "
        f"watched here: {exposure / PS_PER_NS:.3g} ns, {n_events} events"
    )
    row = sampled(PROBABILITY, interval, where, claim)
    found.append(dataclasses.replace(row, standard_error=None, dof=None))
    if exposure == 0.0:
        return [*found, absent(RATE, where, "every replica had its event in the first frame")]
    low, high = (item / exposure * PS_PER_NS for item in garwood(n_events))
    cause = f"{n_events} events in {exposure / PS_PER_NS:.3g} ns, were the rate constant"
    rate = sampled(RATE, Estimate(high, 0.0, 1.0, low, high, len(outcomes)), where, cause)
    found.append(dataclasses.replace(rate, standard_error=None, dof=None))
    return found


def _of_all(rungs: dict[float, list[Outcome]], where: Where) -> list[Measurement]:
    """Where the ladder ends, from below and from above."""
    ran = ", ".join(f"{kelvin:g} K {_extent(outcomes)}" for kelvin, outcomes in rungs.items())
    n_replicas = sum(len(outcomes) for outcomes in rungs.values())
    failed = [kelvin for kelvin, outcomes in rungs.items() if _first(outcomes) is not None]
    lowest = min(failed, default=None)
    sound = [kelvin for kelvin in rungs if lowest is None or kelvin < lowest]
    highest = max(sound, default=0.0)
    if lowest is None:
        words, at_lowest, reasons = f"no event; run: {ran}", where, _reasons(None)
        reason = f"no event at any temperature; run: {ran}"
        of_lowest = absent(LOWEST, where, reason)
    else:
        first = _first(rungs[lowest])
        n_events = sum(item.incident is not None for item in rungs[lowest])
        what = f"at {lowest:g} K {_in_words(first, n_events, len(rungs[lowest]))}"
        words, at_lowest, reasons = f"{what}; run: {ran}", _at(where, first), _reasons(first)
        at_lowest = dataclasses.replace(at_lowest, temperature_K=lowest)
        of_lowest = exact(LOWEST, lowest, at_lowest, n_replicas, words, reasons)
    if highest < REQUIRED_K and (lowest is None or lowest > REQUIRED_K):
        reason = f"nothing is known of {REQUIRED_K:g} K: add a run there; {words}"
        return [absent(HIGHEST, where, reason), of_lowest]
    at_highest = dataclasses.replace(at_lowest, temperature_K=None)
    return [exact(HIGHEST, highest, at_highest, n_replicas, words, reasons), of_lowest]


def _first(outcomes: list[Outcome]) -> Outcome | None:
    failed = [item for item in outcomes if item.incident is not None]
    return min(failed, key=lambda item: item.until_ps, default=None)


def _at(where: Where, first: Outcome | None) -> Where:
    """A place with the replica, the frame and the atoms of an event added."""
    if first is None or first.incident is None:
        return where
    incident = first.incident
    return dataclasses.replace(
        where,
        run=first.run.spec.name,
        length_ps=first.run.spec.length_ps,
        replica=incident.replica,
        frame=incident.frame,
        atoms=incident.atoms,
    )


def _in_words(first: Outcome | None, n_events: int, n_replicas: int) -> str:
    if first is None or first.incident is None:
        return ""
    return (
        f"{first.words}, replica {first.incident.replica} of {first.run.spec.name} at "
        f"{first.until_ps:.4g} ps; {n_events} of {n_replicas} replicas"
    )


def _reasons(first: Outcome | None) -> tuple[Reason, ...]:
    return () if first is None or first.incident is None else first.incident.reasons


def _end(outcomes: list[Outcome]) -> float:
    """When the longest watch of a temperature ends, whatever happened, ps."""
    lengths = [item.run.spec.length_ps for item in outcomes]
    censored = [item.until_ps for item in outcomes if item.incident is None]
    return max(censored) if censored else max(lengths)


def _extent(outcomes: list[Outcome]) -> str:
    return f"({len(outcomes)} replicas to {_end(outcomes):.4g} ps)"


CHECK = Check(
    name="survival",
    question="Up to which temperature, and for how long, does the molecule come through?",
    formula="S(t) = prod (n_j - d_j) / n_j; the ladder's highest temperature without an event",
    source=(
        "Kaplan & Meier, J. Am. Stat. Assoc. 53, 457 (1958); Fay, Brittain & Proschan, "
        "Biostatistics 14, 723 (2013)"
    ),
    declares=(EVENTS, PROBABILITY, RATE, HIGHEST, LOWEST),
    criteria=(
        Criterion(
            f"{HIGHEST.name}-reject",
            HIGHEST.name,
            REQUIRED_K,
            None,
            HIGHEST.unit,
            "reject",
            "room temperature: whatever breaks there or below cannot be run at all",
        ),
        Criterion(
            f"{LOWEST.name}-limit",
            LOWEST.name,
            RARE_FROM_K,
            None,
            LOWEST.unit,
            "limit",
            "by Arrhenius one event in 160 ps below 600 K means one in 20 to 300 ns at 300 K, "
            "within the length of a production run",
        ),
    ),
    needs=frozenset({"runs"}),
    take=_of_ladder,
    reads=frozenset({"production", "survival"}),
    joint=True,
    use=WHOLE,
    explained_by=SPOILS_DYNAMICS,
    symptom=Symptom.CRASH,
)
