"""Names what is wrong with a model: from failed findings to causes, the first cause first.

One fault fails many criteria: forces that differ from call to call also have no energy whose
gradient they are, an energy that drifts, and a different answer after every rotation. The rules
below are tried in order, from faults that spoil every other figure to those that spoil only their
own; each takes the failed findings that it explains off the table (what a measurement's failure
follows from is declared with it), and what is left at the end is called by the symptom that its
measurement declares, or else after its check. Numbers, and reasons of a closed set, decide; no
text does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from omm_mlff.schema import (
    Cause,
    Declaration,
    Fault,
    Finding,
    Measurement,
    Reason,
    Severity,
    Symptom,
)
from omm_mlff.units import (
    ANGSTROM_PER_BOHR,
    ANGSTROM_PER_NM,
    KJMOL_PER_EV,
    KJMOL_PER_HARTREE,
    KJMOL_PER_KCALMOL,
)

_UNIT_FACTORS = {
    "eV for kJ/mol": KJMOL_PER_EV,
    "hartree for kJ/mol": KJMOL_PER_HARTREE,
    "kcal/mol for kJ/mol": KJMOL_PER_KCALMOL,
    "hartree for eV": KJMOL_PER_HARTREE / KJMOL_PER_EV,
    "eV for kcal/mol": KJMOL_PER_EV / KJMOL_PER_KCALMOL,
    "angstrom for nm": ANGSTROM_PER_NM,
    "bohr for angstrom": ANGSTROM_PER_BOHR,
    "bohr for nm": ANGSTROM_PER_NM / ANGSTROM_PER_BOHR,
    "eV/angstrom for kJ/mol/nm": KJMOL_PER_EV * ANGSTROM_PER_NM,
    "hartree/bohr for kJ/mol/nm": KJMOL_PER_HARTREE * ANGSTROM_PER_NM / ANGSTROM_PER_BOHR,
    "hartree/bohr for eV/angstrom": KJMOL_PER_HARTREE / KJMOL_PER_EV / ANGSTROM_PER_BOHR,
}
_UNIT_TOLERANCE = 0.03  # relative; a sound student is off by 1%, the nearest factors are 8% apart


class Facts:
    """What was measured, and which failed findings no cause explains yet.

    Parameters
    ----------
    findings : of every policy that was judged
    measurements : all of them, also those that no criterion bounds
    declarations : of the checks that measured
    """

    def __init__(
        self,
        findings: Iterable[Finding],
        measurements: Sequence[Measurement],
        declarations: Iterable[Declaration],
    ) -> None:
        failed = [f for f in findings if f.status == "fail" and f.severity != "info"]
        failed.sort(key=lambda f: f.severity != "reject")  # stable: reject first
        self.open = failed
        self.measurements = measurements
        self._declared = {row.name: row for row in declarations}

    def failed(self, *names: str) -> list[Finding]:
        """Failed findings on these measurements, or on all of a check's ("cutoff")."""
        return [f for f in self.open if f.measurement in names or f.check in names]

    def showing(self, symptom: Symptom) -> list[Finding]:
        """Failed findings on the measurements that declare a symptom."""
        return [f for f in self.open if self._symptom(f) is symptom]

    def largest(self, name: str, system: str | None) -> float:
        """A measurement on a system, the largest in size; NaN where it was not measured."""
        values = [
            m.value
            for m in self.measurements
            if m.name == name and m.where.system == system and m.value is not None
        ]
        return max(values, key=abs, default=math.nan)

    def explain(self, shown: Sequence[Finding], fault: Fault | None = None) -> None:
        """Take off the table what shows a cause, and what follows from the fault behind it."""
        own = {f.measurement for f in shown}
        self.open = [
            f for f in self.open if f.measurement not in own and fault not in self._faults(f)
        ]

    def _faults(self, finding: Finding) -> tuple[Fault, ...]:
        row = self._declared.get(finding.measurement)
        return row.explained_by if row else ()

    def _symptom(self, finding: Finding) -> Symptom | None:
        row = self._declared.get(finding.measurement)
        return row.symptom if row else None


@dataclass(frozen=True)
class Rule:
    """One cause: what shows it, and which failures follow from it.

    Attributes
    ----------
    shows : the failed findings that show the cause; none where it is not the cause
    fault : the failures that follow from it are those that declare so; None: none does
    """

    slug: str
    sentence: str
    shows: Callable[[Facts], list[Finding]]
    fault: Fault | None = None


def diagnose(
    findings: Iterable[Finding],
    measurements: Sequence[Measurement],
    declarations: Iterable[Declaration],
) -> tuple[Cause, ...]:
    """What the failed findings come from, the most fundamental cause first.

    Parameters
    ----------
    findings : of every policy that was judged
    measurements : everything that was measured
    declarations : of the checks that measured

    Returns
    -------
    nothing where nothing failed
    """
    facts = Facts(findings, measurements, declarations)
    causes = []
    for rule in RULES:
        shown = rule.shows(facts)
        if shown:
            causes.append(_cause(rule.slug, rule.sentence, shown))
            facts.explain(shown, rule.fault)
    for symptom in Symptom:
        shown = facts.showing(symptom)
        if shown:
            causes.append(_cause(symptom.value, _SYMPTOMS[symptom], shown))
            facts.explain(shown)
    for finding in list(facts.open):
        if finding in facts.open:  # the rest is named after its check
            check = finding.check
            shown = facts.failed(check)
            causes.append(_cause(check.replace("_", "-"), f"the check {check} failed", shown))
            facts.explain(shown)
    return tuple(sorted(causes, key=lambda cause: cause.severity != "reject"))


def _cause(slug: str, sentence: str, shown: Sequence[Finding]) -> Cause:
    first = shown[0]
    severity: Severity = first.severity
    return Cause(
        slug=slug,
        sentence=sentence,
        severity=severity,
        evidence=tuple(dict.fromkeys(f.measurement for f in shown)),
        system=first.system,
        detail=first.cause,
    )


def _unit_of(ratio: float) -> str | None:
    """Which units were confused, if a ratio is that of two units."""
    if not (math.isfinite(ratio) and ratio > 0.0):
        return None
    for words, factor in _UNIT_FACTORS.items():
        for exact in (factor, 1.0 / factor):
            if abs(ratio / exact - 1.0) < _UNIT_TOLERANCE:
                return words
    return None


def _units(facts: Facts) -> list[Finding]:
    scales = facts.failed("gradient.scale", "accuracy.force_scale")
    shown = [f for f in scales if f.value is not None and _unit_of(f.value)]
    if shown or not facts.failed("gradient.error"):
        return shown
    # The scale may carry no criterion in the user's policy; its value is known all the same.
    return [f for f in facts.failed("gradient.error") if _unit_of(_scale(facts, f.system))]


def _scale(facts: Facts, system: str | None) -> float:
    return facts.largest("gradient.scale", system)


def _force_scale(facts: Facts) -> list[Finding]:
    """A multiple of the gradient: the scale accounts for the error, nothing else is left."""
    shown = []
    for finding in facts.failed("gradient.scale", "gradient.error"):
        scale = _scale(facts, finding.system)
        error = facts.largest("gradient.error", finding.system)
        # rms(D + F.u) / rms(F.u) is |1 - 1/s| for forces that are s times the gradient.
        expected = abs(1.0 - 1.0 / scale) if scale else math.inf
        if expected > 0.0 and (not math.isfinite(error) or abs(error - expected) <= 0.3 * expected):
            shown.append(finding)
    return shown


def _orientation(facts: Facts) -> list[Finding]:
    """Rotation changes more than the noise of one evaluation does."""
    shown = []
    for finding in facts.failed("invariance.rotation_energy", "invariance.rotation_force"):
        name = finding.measurement.replace("rotation", "translation")
        beside = facts.largest(name, finding.system)
        noise = facts.largest("precision.force_noise", finding.system)
        change = abs(finding.value) if finding.value is not None else math.inf
        if finding.measurement.endswith("force") and change < 30.0 * noise:
            continue
        if not change < 10.0 * beside:
            shown.append(finding)
    if shown:
        return shown
    return facts.failed("invariance.net_torque") if not facts.failed("precision") else []


def _noise(*, energy: bool, force: bool) -> Callable[[Facts], list[Finding]]:
    def shows(facts: Facts) -> list[Finding]:
        energies = facts.failed("precision.energy_noise")
        forces = facts.failed("precision.force_noise")
        return energies + forces if (bool(energies), bool(forces)) == (energy, force) else []

    return shows


def _steps(*names: str) -> Callable[[Facts], list[Finding]]:
    """A step somewhere, of a model whose forces are the gradient of its energy elsewhere."""

    def shows(facts: Facts) -> list[Finding]:
        wrong = {f.system for f in facts.failed("gradient.error", "precision")}
        return [f for f in facts.failed(*names) if f.system not in wrong]

    return shows


def _coarse_energy(facts: Facts) -> list[Finding]:
    """Energies too coarse for their gradient to be seen, beside forces that are fine."""
    return [
        f
        for f in facts.failed("gradient.error")
        if facts.largest("precision.energy_noise", f.system) > COARSE_MEV
        and not any(g.system == f.system for g in facts.failed("precision.force_noise"))
    ]


def _short_range(slug: str) -> Callable[[Facts], list[Finding]]:
    """No wall at all is "no-repulsion"; a wall with a way through it is a "hole"."""

    def shows(facts: Facts) -> list[Finding]:
        walls = facts.failed("short_range.barrier", "short_range.hole", "short_range.temperature")
        shown = [f for f in walls if Reason.NOT_FINITE not in f.reasons]
        if not shown:
            return []
        barriers = [
            f.value for f in shown if f.measurement == "short_range.barrier" and f.value is not None
        ]
        bare = any(value < BARE_WALL_EV for value in barriers)
        return shown if bare == (slug == "no-repulsion") else []

    return shows


BARE_WALL_EV = 0.13
"""A wall that gives way below this (5 kT at 300 K) is none: atoms meet at every collision."""

COARSE_MEV = 1.0e-3
"""meV/atom: three times the rounding of a sound float32 network's energy."""


def _unless_raised(*names: str) -> Callable[[Facts], list[Finding]]:
    """Failures by a number; an answer that is missing because the code raised is none."""

    def shows(facts: Facts) -> list[Finding]:
        return [f for f in facts.failed(*names) if not _raised(f) or _is_finite(f.value)]

    return shows


def _raises(facts: Facts) -> list[Finding]:
    """The code raised in a run, or on frames such as runs visit."""
    checks = ("accuracy", "determinism", "gradient", "invariance", "parity", "precision")
    on_frames = [f for f in facts.failed(*checks) if not _is_finite(f.value)]
    return [f for f in facts.failed("bonds", "survival") + on_frames if _raised(f)]


def _raises_beside(facts: Facts) -> list[Finding]:
    """The code raised at places that only a search has come to."""
    return [
        f
        for f in facts.failed("jumps", "short_range", "smoothness", "vibrations", "box")
        if _raised(f) and (Reason.NOT_FINITE in f.reasons or not _is_finite(f.value))
    ]


def _raised(finding: Finding) -> bool:
    return Reason.RAISED in finding.reasons


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _nan(facts: Facts) -> list[Finding]:
    """Not a number where there should be one, in a run or in a figure."""
    in_runs = [f for f in facts.failed("bonds", "survival") if Reason.NOT_FINITE in f.reasons]
    in_figures = [
        f
        for f in facts.failed("accuracy", "gradient", "invariance", "parity", "precision")
        if f.value is not None and not math.isfinite(f.value)
    ]
    return in_runs + in_figures


def _nan_beside(facts: Facts) -> list[Finding]:
    """Not a number at places that only a search has come to."""
    searches = facts.failed("jumps", "short_range", "smoothness")
    return [f for f in searches if Reason.NOT_FINITE in f.reasons]


def _drift_from(reason: Reason) -> Callable[[Facts], list[Finding]]:
    """Drift, or a fluctuation of the wrong order, that `attribution` has put down to it."""

    def shows(facts: Facts) -> list[Finding]:
        named = {m.where.system for m in facts.measurements if reason in m.reasons}
        return [f for f in facts.failed("nve.drift") if f.system in named]

    return shows


def _failed(*names: str) -> Callable[[Facts], list[Finding]]:
    return lambda facts: facts.failed(*names)


RULES: tuple[Rule, ...] = (
    Rule(
        "nondeterminism",
        "the same structure gives another answer when it is asked again",
        _unless_raised("determinism.energy", "determinism.force"),
        Fault.NONDETERMINISM,
    ),
    Rule(
        "history",
        "the answer depends on what was evaluated before, as with a stale neighbour list, or an "
        "iteration that starts from the last answer",
        _unless_raised("determinism.history"),
        Fault.HISTORY,
    ),
    Rule(
        "raises",
        "its code stops with an error in a region that is visited",
        _raises,
        Fault.RAISES,
    ),
    Rule(
        "nan",
        "energy or forces are not finite in a region that is visited",
        _nan,
        Fault.NAN,
    ),
    Rule(
        "units",
        "energies or forces are in another unit than they claim",
        _units,
        Fault.UNITS,
    ),
    Rule(
        "atom-order",
        "the atoms are taken in another order than the system's",
        _failed("order"),
        Fault.ATOM_ORDER,
    ),
    Rule(
        "force-noise",
        "the forces carry noise that the energy does not have",
        _noise(energy=False, force=True),
        Fault.NOISE,
    ),
    Rule(
        "rounding",
        "energies and forces lose digits inside the model, as with half precision",
        _noise(energy=True, force=True),
        Fault.NOISE,
    ),
    Rule(
        "energy-offset",
        "the energy is coarse while the forces are fine: a large constant takes its digits",
        _noise(energy=True, force=False),
        Fault.NOISE,
    ),
    Rule(
        "energy-offset",
        "the energy is too coarse for its gradient, as beside a large constant in float32",
        _coarse_energy,
        Fault.NOISE,
    ),
    Rule(
        "orientation",
        "the energy depends on how the molecule is turned",
        _orientation,
        Fault.ORIENTATION,
    ),
    Rule(
        "box",
        "the periodic box is not handled as a lattice",
        _failed("box"),
        Fault.BOX,
    ),
    Rule(
        "cutoff",
        "energy or forces step where a pair crosses the cutoff",
        _failed("cutoff"),
        Fault.CUTOFF,
    ),
    Rule(
        "jump",
        "the energy steps inside the region that is visited",
        _steps("jumps.energy", "jumps.force"),
        Fault.JUMP,
    ),
    Rule(
        "kink",
        "the forces turn abruptly while the energy is continuous, as at the tip of a cone",
        _steps("jumps.kink"),
        Fault.KINK,
    ),
    Rule(
        "force-scale",
        "the forces are a multiple of the energy's gradient",
        _force_scale,
        Fault.FORCE_SCALE,
    ),
    Rule(
        "curl",
        "the forces are the gradient of no energy",
        _failed("gradient.error"),
        Fault.CURL,
    ),
    Rule(
        "raises",
        "its code stops with an error in a region within reach",
        _raises_beside,
        Fault.RAISES_IN_REACH,
    ),
    Rule(
        "nan",
        "energy or forces are not finite in a region within reach",
        _nan_beside,
        Fault.NAN_IN_REACH,
    ),
    Rule(
        "no-repulsion",
        "nothing keeps atoms apart",
        _short_range("no-repulsion"),
        Fault.WALL,
    ),
    Rule(
        "hole",
        "there is a way through the repulsive wall, into a hole of the energy surface",
        _short_range("hole"),
        Fault.WALL,
    ),
    Rule(
        "memory-leak",
        "memory grows with every step",
        _failed("soak.memory_growth"),
    ),
    Rule(
        "slowing-down",
        "a step costs more the longer the run is",
        _failed("soak.slowdown"),
        Fault.SLOWING_DOWN,
    ),
    Rule(
        "timestep",
        "the timestep is too long for the stiffest motion",
        _drift_from(Reason.TIMESTEP),
        Fault.ATTRIBUTED,
    ),
    Rule(
        "rounding",
        "the energy drifts by the rounding of the model's dtype",
        _drift_from(Reason.ROUNDING),
        Fault.ATTRIBUTED,
    ),
    Rule(
        "curl",
        "along the run the forces are not the gradient of the energy",
        _drift_from(Reason.NON_CONSERVATIVE),
        Fault.ATTRIBUTED,
    ),
    Rule(
        "jump",
        "the energy drifts by single steps",
        _drift_from(Reason.DISCONTINUITY),
        Fault.ATTRIBUTED,
    ),
)
"""In order: each takes what it explains off the table."""

_SYMPTOMS: Mapping[Symptom, str] = {
    Symptom.BROKEN_BOND: "the molecule reacts",
    Symptom.CRASH: "the simulation cannot go on",
    Symptom.ROUGH: "the energy surface is rough along bonds or torsions",
    Symptom.DRIFT: "the energy is not conserved",
    Symptom.TEMPERATURE: "the run is not at its temperature",
    Symptom.ACCURACY: "it is sound, and too far from its reference method",
    Symptom.COST: "a step takes too long",
}
