"""What a check is: evidence in, measurements out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from omm_mlff.errors import AnalysisError, UnsupportedSystemError
from omm_mlff.schema import (
    Criterion,
    Declaration,
    Fault,
    Measurement,
    MolecularSystem,
    PotentialCard,
    Purpose,
    Reason,
    ReferenceLabels,
    Symptom,
    Where,
)
from omm_mlff.statistics.intervals import Estimate, garwood

if TYPE_CHECKING:
    from omm_mlff.dynamics.evaluator import Evaluator
    from omm_mlff.dynamics.reference_method import ReferenceMethod
    from omm_mlff.record.rundir import RunRecord

Need = Literal["evaluator", "reference", "runs"]

SPOILS_ANY = (Fault.NONDETERMINISM, Fault.HISTORY, Fault.RAISES, Fault.NAN)
"""Faults that leave no number of a potential what it should be."""

SPOILS_EVALUATION = (*SPOILS_ANY, Fault.NOISE)
"""What explains the failure of a check that compares energies or forces with each other."""

SPOILS_SURFACE = (*SPOILS_ANY, Fault.UNITS, Fault.ATOM_ORDER, Fault.FORCE_SCALE, Fault.CURL)
"""What explains the failure of a check of where the atoms go, or of how right the forces are."""

SPOILS_DYNAMICS = (
    *SPOILS_SURFACE,
    Fault.ORIENTATION,
    Fault.BOX,
    Fault.JUMP,
    Fault.KINK,
    Fault.RAISES_IN_REACH,
    Fault.NAN_IN_REACH,
    Fault.WALL,
)
"""What explains the failure of a check of runs."""

CONSTANT_ENERGY = "constant-energy dynamics"
WHOLE = "dynamics in which molecules stay whole"
GEOMETRY = "the reference method's bond lengths and angles"
REFERENCE_FORCES = "the reference method's forces"
MINIMISATION = "minimisation, and all that needs forces to be the energy's gradient"
MEETING = "molecules that meet"
REPEATABLE = "results that come out again"
FREE = "molecules that turn, travel and exchange like atoms"
IN_OPENMM = "OpenMM in place of the bare network"


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known about one potential on one system.

    Attributes
    ----------
    runs : finished runs of this potential on this system
    evaluator : the potential alive in a Context, or None where runs alone are judged
    seed : of every random choice that a check makes
    reference_energy_kjmol : the zero of energy for "percent of |E0|": the sum of the atomic
        reference energies of a student, 0 where the potential has none, None where it does not say
    teacher : the reference method that the user has named; None where none was
    """

    system: MolecularSystem
    card: PotentialCard
    runs: tuple[RunRecord, ...] = ()
    evaluator: Evaluator | None = None
    seed: int = 0
    reference_energy_kjmol: float | None = 0.0
    teacher: ReferenceMethod | None = None

    @property
    def reference(self) -> ReferenceLabels:
        """The reference labels, for a check that has declared that it needs them."""
        if self.system.reference is None:
            raise AnalysisError(f"system {self.system.name!r} has no reference labels")
        return self.system.reference

    @property
    def live(self) -> Evaluator:
        """The evaluator, for a check that has declared that it needs it."""
        if self.evaluator is None:
            raise AnalysisError("this check needs an Evaluator, and the evidence has none")
        return self.evaluator

    def lacking(self, need: Need) -> str | None:
        """Why a need is not met, in one line; None where it is."""
        if need == "evaluator" and self.evaluator is None:
            return "the potential is not loaded, only its runs are"
        if need == "reference" and self.system.reference is None:
            return f"system {self.system.name!r} has no reference labels"
        if need == "runs" and not self.runs:
            return f"no run of system {self.system.name!r} that this check reads"
        return None

    def random(self, check: str) -> np.random.Generator:
        """A generator that depends on the seed and on who asks."""
        return np.random.default_rng([self.seed, *check.encode()])


@dataclass(frozen=True, eq=False)
class Check:
    """One question put to a potential.

    Attributes
    ----------
    name : the module's, such as "drift"
    question : what a person wants to know
    formula : what is computed, in one line
    source : where the method comes from
    declares : every measurement that it emits
    criteria : default bounds, for policies that include the defaults
    needs : without these, every measurement is not applicable
    reads : the purposes of the runs that it is shown
    joint : it looks at all of these runs together; else at one after another
    take : the measuring function; called through `measure`
    use, explained_by, symptom : of the measurements that do not say otherwise (see `Declaration`)
    """

    name: str
    question: str
    formula: str
    source: str
    declares: tuple[Declaration, ...]
    criteria: tuple[Criterion, ...]
    needs: frozenset[Need]
    take: Callable[[Evidence], list[Measurement]]
    reads: frozenset[Purpose] = frozenset({"production"})
    joint: bool = False
    use: str = ""
    explained_by: tuple[Fault, ...] = ()
    symptom: Symptom | None = None

    def __post_init__(self) -> None:
        filled = tuple(
            dataclasses.replace(
                row,
                use=row.use or self.use,
                explained_by=tuple(dict.fromkeys((*self.explained_by, *row.explained_by))),
                symptom=row.symptom or self.symptom,
            )
            for row in self.declares
        )
        object.__setattr__(self, "declares", filled)

    def measure(self, evidence: Evidence) -> list[Measurement]:
        """Every measurement that was declared, or the reason why one has no meaning here.

        Where the potential's own code raised meanwhile, every measurement says so.

        Raises
        ------
        AnalysisError : the check emitted something that it has not declared
        """
        shown = tuple(run for run in evidence.runs if run.spec.purpose in self.reads)
        evidence = dataclasses.replace(evidence, runs=shown)
        where = Where(system=evidence.system.name)
        for need in sorted(self.needs):
            reason = evidence.lacking(need)
            if reason is not None:
                return [absent(row, where, reason) for row in self.declares]
        tally = evidence.evaluator.tally if evidence.evaluator is not None else None
        mark = tally.mark() if tally is not None else (0, 0)
        try:
            measurements = self.take(evidence)
        except UnsupportedSystemError as error:  # of a molecule that the check has made
            return [absent(row, where, str(error)) for row in self.declares]
        declared = {row.name: (row.kind, row.unit) for row in self.declares}
        for row in measurements:
            if declared.get(row.name) != (row.kind, row.unit):
                raise AnalysisError(
                    f"check {self.name!r} emitted {row.name} ({row.kind}, {row.unit}), which it "
                    f"has not declared so; add a Declaration, or mend the one it has"
                )
        raised = tally.since(mark) if tally is not None else ""
        return [_saying(row, raised) for row in measurements] if raised else measurements


def _saying(row: Measurement, words: str) -> Measurement:
    """A measurement during which the potential's code has raised, which its words say as well."""
    reasons = tuple(dict.fromkeys((*row.reasons, Reason.RAISED)))
    if row.value is None:
        said = f"{row.not_applicable}; {words}"
        return dataclasses.replace(row, not_applicable=said, reasons=reasons)
    cause = f"{row.cause}; {words}" if row.cause else words
    return dataclasses.replace(row, cause=cause, reasons=reasons)


def absent(declaration: Declaration, where: Where, reason: str) -> Measurement:
    """A declared measurement that has no meaning here."""
    return Measurement.inapplicable(
        declaration.name, declaration.kind, declaration.unit, where, reason
    )


def exact(
    declaration: Declaration,
    value: float,
    where: Where,
    n_samples: int,
    cause: str = "",
    reasons: tuple[Reason, ...] = (),
) -> Measurement:
    """A deterministic measurement: the maximum over a fixed set of frames."""
    return Measurement.exact(
        declaration.name, float(value), declaration.unit, where, n_samples, cause, reasons
    )


def sampled(
    declaration: Declaration,
    estimate: Estimate,
    where: Where,
    cause: str = "",
    reasons: tuple[Reason, ...] = (),
) -> Measurement:
    """A sampled measurement, or one for information, with its interval."""
    return Measurement(
        declaration.name,
        declaration.kind,
        estimate.value,
        declaration.unit,
        estimate.ci_low,
        estimate.ci_high,
        estimate.n_samples,
        where,
        standard_error=estimate.standard_error,
        dof=estimate.dof,
        cause=cause,
        reasons=reasons,
    )


def counted(
    declaration: Declaration,
    n_events: int,
    where: Where,
    *,
    n_replicas: int,
    exposure_ps: float,
    cause: str = "",
    reasons: tuple[Reason, ...] = (),
) -> Measurement:
    """A count of events, with Garwood's interval for its expectation."""
    low, high = garwood(n_events)
    return Measurement(
        declaration.name,
        "count",
        float(n_events),
        declaration.unit,
        low,
        high,
        n_replicas,
        where,
        exposure_ps=exposure_ps,
        cause=cause,
        reasons=reasons,
    )


def bounds(
    declaration: Declaration,
    source: str,
    *,
    dtypes: Sequence[str] = (),
    low: tuple[float | None, float | None] = (None, None),
    high: tuple[float | None, float | None] = (None, None),
) -> tuple[Criterion, ...]:
    """The `limit` and the `reject` criterion on one measurement.

    Parameters
    ----------
    source : where the bounds come from
    dtypes : of the potentials that they are for; empty means all
    low, high : the limit, then the reject bound; None leaves a side open or a severity out
    """
    rows = []
    suffix = "".join(f"-{dtype}" for dtype in dtypes)
    for severity, lower, upper in (("limit", low[0], high[0]), ("reject", low[1], high[1])):
        if lower is None and upper is None:
            continue
        rows.append(
            Criterion(
                name=f"{declaration.name}-{severity}{suffix}",
                measurement=declaration.name,
                low=lower,
                high=upper,
                unit=declaration.unit,
                severity="limit" if severity == "limit" else "reject",
                source=source,
                dtypes=tuple(dtypes),
            )
        )
    return tuple(rows)


def for_each_run(
    measure: Callable[[Evidence, RunRecord], list[Measurement]],
) -> Callable[[Evidence], list[Measurement]]:
    """A check's `take` from a function that measures one run."""

    def take(evidence: Evidence) -> list[Measurement]:
        return [row for run in evidence.runs for row in measure(evidence, run)]

    return take


def run_where(evidence: Evidence, run: RunRecord) -> Where:
    """Where a measurement of a whole run was taken."""
    return Where(
        system=evidence.system.name,
        run=run.spec.name,
        temperature_K=run.spec.temperature_K,
        length_ps=run.spec.length_ps,
    )


def ratio(part: float, whole: float) -> float:
    """part / whole; 0 for 0/0, infinite where it is not a number."""
    if part == 0.0:
        return 0.0
    quotient = part / whole if whole else np.inf
    return float(quotient) if np.isfinite(quotient) else np.inf


def worst(values: NDArray[np.float64]) -> tuple[float, int]:
    """Largest value and its index; a NaN counts as the largest.

    Parameters
    ----------
    values : shape (n,), n at least 1
    """
    broken = np.flatnonzero(~np.isfinite(values))
    index = int(broken[0]) if len(broken) else int(values.argmax())
    return float(values[index]), index
