"""Says what a model is good for, from its findings.

A use of a force field rests on some measurements, and at each place (a system, a temperature) the
findings on them decide it, under all policies that were judged: a failed `reject` criterion means
that it is not to be used so; a failed `limit` criterion, within a limit; an open one, that nobody
knows; all passed, that it is good for it. Nothing is said that no finding says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from omm_mlff.comparison.finished import Finished
from omm_mlff.report.wording import bound, number, place, urgency
from omm_mlff.schema import Finding, RunSpec, VerdictName

Level = Literal["bad", "limited", "open", "good"]

USES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("dynamics in which molecules stay whole", ("stability.", "survival.")),
    (
        "constant-energy dynamics",
        ("nve.drift", "nve.energy_change", "nve.fluctuation", "timestep.", "jumps."),
    ),
    ("dynamics at the temperature asked for", ("nve.temperature",)),
    ("the canonical ensemble, under a thermostat", ("thermostat.",)),
    ("the reference method's forces", ("accuracy.force", "along.")),
    ("the reference method's energy differences", ("accuracy.energy",)),
    ("the reference method's vibrations", ("vibrations.",)),
    ("the reference method's rotamers and conformers", ("torsions.", "conformers.")),
    ("the reference method's bond lengths and angles", ("structure.", "distribution.")),
    (
        "minimisation, and all that needs forces to be the energy's gradient",
        ("gradient.", "smoothness."),
    ),
    ("molecules that meet", ("short_range.", "extensivity.")),
    ("results that come out again", ("determinism.", "precision.", "restart.")),
    ("periodic boxes", ("box.",)),
    ("long runs", ("soak.",)),
    (
        "molecules that turn, travel and exchange like atoms",
        ("invariance.", "nve.momentum", "nve.angular"),
    ),
    ("atoms that come and go across the cutoff", ("cutoff.",)),
    ("OpenMM in place of the bare network", ("parity.", "order.")),
    ("the time that a step may take", ("cost.",)),
)
"""What a force field is used for, and the measurements that each use rests on."""

SUMMARIES: dict[VerdictName, str] = {
    "APPROVED": "suitable, for what was measured and no further",
    "NOT RECOMMENDED": "usable only where its limits, named below, do not matter",
    "REJECTED": "not suitable for dynamics: something failed that makes a trajectory worthless",
    "UNDECIDED": "not decided: measure more before it is used",
}

PLAIN = {
    "stability.crashes": "a run stops by itself",
    "stability.broken_bonds": "bonds break",
    "stability.new_bonds": "bonds form that should not",
    "nve.drift": "energy is not conserved",
    "nve.energy_change": "the energy at the end is not that of the start",
    "nve.temperature_error": "the run is not at the temperature asked for",
    "nve.momentum": "momentum is not conserved",
    "nve.angular_momentum": "angular momentum is not conserved",
    "accuracy.force_rmse": "forces are off",
    "accuracy.energy_rmse": "energies are off",
    "structure.bond_shift": "bonds have another mean length",
    "gradient.error": "forces are not the gradient of the energy",
    "gradient.scale": "forces are out of proportion to the energy",
    "invariance.rotation_energy": "the energy depends on the orientation",
    "invariance.rotation_force": "forces do not turn with the molecule",
    "invariance.translation_energy": "the energy depends on the position",
    "invariance.translation_force": "forces depend on the position",
    "invariance.permutation_energy": "the energy depends on the order of like atoms",
    "invariance.permutation_force": "forces depend on the order of like atoms",
    "invariance.net_force": "the molecule pulls on itself",
    "invariance.net_torque": "the molecule turns itself",
    "cutoff.energy_jump": "the energy jumps where a pair crosses the cutoff",
    "cutoff.force_jump": "forces jump where a pair crosses the cutoff",
    "parity.energy": "OpenMM computes another energy than the network",
    "parity.force": "OpenMM computes other forces than the network",
    "cost.step_time": "a step takes too long",
    "short_range.barrier": "atoms can pass through each other",
    "short_range.hole": "there is a hole in the energy surface",
    "short_range.binding": "two molecules bind far too strongly",
    "determinism.history": "the answer depends on what was evaluated before",
    "precision.energy_noise": "the energy is rounded coarsely",
    "precision.force_noise": "the forces are noisy",
    "jumps.energy": "the energy jumps",
    "jumps.kink": "the forces turn abruptly",
    "vibrations.frequency_rmse": "vibrations have other frequencies",
    "vibrations.imaginary": "there is no minimum where there should be one",
    "torsions.map_rmse": "energies along torsions are off",
    "torsions.barrier": "torsional barriers are off",
    "conformers.energy_rmse": "conformers have other energies",
    "conformers.order": "conformers come in another order",
    "timestep.exponent": "the energy does not fluctuate as the timestep squared",
    "survival.highest_temperature": "it breaks at room temperature",
    "survival.lowest_failure": "it breaks not far above room temperature",
    "soak.slowdown": "steps grow slower",
    "soak.memory_growth": "memory grows with every step",
    "accuracy.force_scale": "forces are out of proportion to the reference's",
    "along.force_rmse": "forces are off where the run goes",
    "along.excursion": "the run goes where the forces are worse",
    "box.translation_energy": "the energy depends on the periodic image",
    "box.translation_force": "forces depend on the periodic image",
    "box.resize_energy": "the energy keeps to an old box",
    "box.resize_force": "forces keep to an old box",
    "box.npt_density_change": "the density runs away at constant pressure",
    "determinism.energy": "the energy differs from call to call",
    "determinism.force": "forces differ from call to call",
    "distribution.mean_shift": "bonds have another mean length at constant temperature",
    "distribution.angle_shift": "angles have another mean",
    "distribution.wasserstein": "bonds and angles are distributed otherwise",
    "extensivity.energy": "the energies of distant molecules do not add up",
    "extensivity.force": "distant molecules feel each other",
    "jumps.force": "forces jump",
    "order.swap": "the atoms are taken in another order",
    "precision.float64_energy": "the dtype changes the energy",
    "precision.float64_force": "the dtype changes the forces",
    "precision.mixed_force": "mixed precision changes the forces",
    "precision.single_force": "single precision changes the forces",
    "restart.checkpoint": "a run does not go on from its checkpoint",
    "restart.state": "a run does not go on from its State",
    "smoothness.extrema": "the energy along a bond has more than one minimum",
    "smoothness.scan_energy": "the energy steps along a bond",
    "smoothness.scan_force": "the force steps along a bond",
    "smoothness.torsion_energy": "the energy steps in a torsion",
    "smoothness.torsion_force": "the force steps in a torsion",
    "thermostat.temperature_error": "the thermostat does not hold the temperature",
    "thermostat.equipartition": "motions have different temperatures",
    "thermostat.kinetic_distribution": "kinetic energies are distributed otherwise",
    "thermostat.ensemble": "energies are not distributed as in the canonical ensemble",
    "vibrations.zero_point": "the zero-point energy is off",
}
"""What a failure of a measurement is called; one that is not here is called by its meaning."""


@dataclass(frozen=True)
class Failure:
    """All failed findings on one measurement.

    Attributes
    ----------
    name : plainly
    criteria : as "m6: force-rmse (limit)"
    findings : one for each place, the most urgent first
    """

    name: str
    measurement: str
    criteria: tuple[str, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Advice:
    """What to do with a model; each line names the use and the places it is about.

    Attributes
    ----------
    summary : one line for each policy, or one for all where they agree
    good, limited, bad, open : see the levels at the top of this file
    evidence : what all of it rests on, and where it ends
    """

    summary: tuple[str, ...]
    good: tuple[str, ...]
    limited: tuple[str, ...]
    bad: tuple[str, ...]
    open: tuple[str, ...]
    evidence: str


def failures(finished: Finished) -> tuple[Failure, ...]:
    """What failed, by measurement, the gravest first; `info` criteria do not count."""
    failed = [f for f in _deciding(finished) if f.status == "fail"]
    failed.sort(key=lambda f: (urgency(f), -_excess(f)))
    found = []
    for measurement in dict.fromkeys(f.measurement for f in failed):
        rows = [f for f in failed if f.measurement == measurement]
        criteria = dict.fromkeys(f"{f.policy}: {f.criterion} ({f.severity})" for f in rows)
        places = {f.where: f for f in reversed(rows)}
        ordered = [f for f in rows if places[f.where] is f]
        name = PLAIN.get(measurement) or _meaning(finished, measurement)
        found.append(Failure(name, measurement, tuple(criteria), tuple(ordered)))
    return tuple(found)


def advise(finished: Finished) -> Advice:
    """What a model is good for and what not, by the rules at the top of this file."""
    findings = [f for f in _deciding(finished) if f.status != "not-applicable"]
    lines: dict[Level, list[str]] = {"good": [], "limited": [], "bad": [], "open": []}
    uses = [*USES, *_other_uses(finished, findings)]
    for use, names in uses:
        by_place: dict[str, list[Finding]] = {}
        for finding in findings:
            if finding.measurement.startswith(names):
                by_place.setdefault(place(finding), []).append(finding)
        levels = {where: _level(rows) for where, rows in by_place.items()}
        for level, collected in lines.items():
            places = [where for where in by_place if levels[where] == level]
            if not places:
                continue
            if level == "good":
                collected.append(f"{use}: {_listed(places)}")
            else:
                details = [_why(level, where, by_place[where]) for where in places]
                collected.append(f"{use}: {'; '.join(details)}")
    return Advice(
        summary=_summary(finished),
        good=tuple(lines["good"]),
        limited=tuple(lines["limited"]),
        bad=tuple(lines["bad"]),
        open=tuple(lines["open"]),
        evidence=_evidence(finished),
    )


def _deciding(finished: Finished) -> list[Finding]:
    """The findings that count, those of the policy that was asked for first."""
    verdicts = [finished.verdicts[name] for name in _policies(finished)]
    return [f for verdict in verdicts for f in verdict.findings if f.severity != "info"]


def _level(findings: Sequence[Finding]) -> Level:
    seen = {(f.status, f.severity) for f in findings}
    statuses = {status for status, _ in seen}
    if ("fail", "reject") in seen:
        return "bad"
    if "fail" in statuses:
        return "limited"
    return "good" if statuses == {"pass"} else "open"


def _why(level: Level, where: str, findings: Sequence[Finding]) -> str:
    """Such as "alanine (force_rmse 0.31 eV/angstrom, strict wants <= 0.0434)"."""
    if level == "open":
        rows = [f for f in findings if f.status in ("undecided", "not-measured")]
    else:
        severity = "reject" if level == "bad" else "limit"
        rows = [f for f in findings if f.status == "fail" and f.severity == severity]
    worst = {f.measurement: f for f in sorted(rows, key=_excess)}
    words = []
    for measurement, finding in sorted(worst.items()):
        name = measurement.split(".")[-1].replace("_", " ")
        unit = "" if finding.unit == "1" else f" {finding.unit}"
        if finding.value is None:
            words.append(f"{name}: {finding.cause}")
            continue
        text = f"{name} {number(finding.value)}{unit}, {finding.policy} wants {bound(finding)}"
        words.append(f"{text}: {finding.cause}" if level == "open" else text)
    return f"{where or 'the model as a whole'} ({'; '.join(words)})"


def _summary(finished: Finished) -> tuple[str, ...]:
    names = _policies(finished)
    verdicts = {name: finished.verdicts[name].name for name in names}
    if len(set(verdicts.values())) == 1:
        verdict = verdicts[names[0]]
        return (f"{verdict} under {_joined(names)}: {SUMMARIES[verdict]}.",)
    return tuple(f"{v} under {name}: {SUMMARIES[v]}." for name, v in verdicts.items())


def _policies(finished: Finished) -> list[str]:
    """The policy that was asked for, then the others."""
    return list(dict.fromkeys([finished.policy, *finished.verdicts]))


def _evidence(finished: Finished) -> str:
    measurements = finished.measured.measurements
    systems = list(dict.fromkeys(m.where.system for m in measurements if m.where.system))
    parts = [_joined(systems) or "no system"]
    temperatures = sorted({m.where.temperature_K for m in measurements if m.where.temperature_K})
    if temperatures:
        parts.append(f"{_joined([f'{item:g}' for item in temperatures])} K")
    names = {m.where.run for m in measurements if m.where.run}
    lengths = [length for name in names if (length := RunSpec.length_ps_in(name)) is not None]
    watched = [m.exposure_ps for m in measurements if m.name == "stability.crashes"]
    if lengths:
        parts.append(f"runs of up to {max(lengths):g} ps a replica")
    if any(watched):
        parts.append(f"{sum(item for item in watched if item):.4g} ps watched in all")
    methods = {m for m in (finished.provenance.get("reference") or {}).values() if m}
    if methods:
        parts.append(f"labels of {_joined(sorted(methods))}")
    return (
        f"{', '.join(parts)}. Nothing here speaks of other molecules, of other conditions or of "
        "longer runs"
    )


def _other_uses(
    finished: Finished, findings: Sequence[Finding]
) -> list[tuple[str, tuple[str, ...]]]:
    """What the table of uses does not know: the measurements of somebody's own checks."""
    known = tuple(prefix for _, prefixes in USES for prefix in prefixes)
    unknown = dict.fromkeys(f.measurement for f in findings if not f.measurement.startswith(known))
    return [(_meaning(finished, name), (name,)) for name in unknown]


def _meaning(finished: Finished, measurement: str) -> str:
    declared = {item.name: item.meaning for item in finished.measured.declarations}
    meaning = declared.get(measurement)
    return f"{measurement} ({meaning})" if meaning else measurement


def _excess(finding: Finding) -> float:
    """How far beyond its bound, in widths of the bound; what has no value comes last."""
    value, low, high = finding.value, finding.low, finding.high
    if value is None:
        return -1.0
    if value != value:
        return float("inf")
    beyond = max(
        value - high if high is not None else 0.0, low - value if low is not None else 0.0, 0.0
    )
    width = abs(high) if high else abs(low) if low else 1.0
    return beyond / (width or 1.0)


def _listed(places: Sequence[str]) -> str:
    """Places with what they share said once: "methane 100, 300 and 500 K"."""
    grouped: dict[str, list[str]] = {}
    for where in places:
        head, _, tail = where.removesuffix(" K").rpartition(" ")
        if where.endswith(" K") and head:
            grouped.setdefault(head, []).append(tail)
        else:
            grouped.setdefault(where or "the model as a whole", [])
    return ", ".join(
        f"{head} {_joined(sorted(temperatures, key=float))} K" if temperatures else head
        for head, temperatures in grouped.items()
    )


def _joined(items: Sequence[str]) -> str:
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"
