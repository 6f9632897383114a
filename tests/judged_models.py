"""Measurements of three made-up models, for the tests of the judge and of the reports."""

from __future__ import annotations

import dataclasses

from scipy.special import stdtrit

from omm_mlff.checks.registry import all_declarations
from omm_mlff.report import Judged
from omm_mlff.schema import CONFIDENCE, Criterion, Measurement, PotentialCard, Where
from omm_mlff.verdict.judge import judge_all
from omm_mlff.verdict.measurement_file import MeasurementFile, Planned
from omm_mlff.verdict.profiles import load_profile
from omm_mlff.verdict.provenance import ValidationProvenance

_SHIPPED = {row.name: row for row in all_declarations()}

DECLARATIONS = tuple(
    _SHIPPED[name]
    for name in (
        "accuracy.force_rmse",
        "nve.drift",
        "nve.energy_change",
        "nve.temperature_error",
        "nve.fluctuation",
        "gradient.error",
        "stability.crashes",
        "stability.broken_bonds",
        "cost.step_time",
    )
)

DEFAULTS = (
    Criterion(
        "accuracy.force_rmse-limit",
        "accuracy.force_rmse",
        None,
        0.15,
        "eV/angstrom",
        "limit",
        "DESIGN 8",
    ),
    Criterion("nve.drift-info", "nve.drift", -0.001, 0.001, "meV/atom/ps", "info", "DESIGN 6"),
    Criterion("nve.drift-limit", "nve.drift", -0.01, 0.01, "meV/atom/ps", "limit", "DESIGN 6"),
    Criterion("nve.drift-reject", "nve.drift", -0.1, 0.1, "meV/atom/ps", "reject", "DESIGN 6"),
    Criterion(
        "gradient.error-limit-float64",
        "gradient.error",
        None,
        1e-6,
        "1",
        "limit",
        "DESIGN 6",
        dtypes=("float64",),
    ),
    Criterion(
        "gradient.error-limit-float32",
        "gradient.error",
        None,
        5e-4,
        "1",
        "limit",
        "DESIGN 6",
        dtypes=("float32",),
    ),
    Criterion("gradient.error-reject", "gradient.error", None, 2e-3, "1", "reject", "DESIGN 6"),
    Criterion(
        "stability.crashes-reject",
        "stability.crashes",
        None,
        0.0,
        "1",
        "reject",
        "no replica may stop",
    ),
    Criterion(
        "stability.broken_bonds-reject", "stability.broken_bonds", None, 0.0, "1", "reject", "M6"
    ),
    Criterion("nve.fluctuation-info", "nve.fluctuation", None, 1.0, "meV/atom", "info", "DESIGN 6"),
)

CARD = PotentialCard(
    name="tiny",
    source="student",
    species=(1, 6, 7, 8),
    cutoff_nm=0.5,
    dtype="float32",
    n_parameters=77000,
    training_domain={"temperature_K": [200, 1500]},
    sha256="0" * 64,
)


def sampled(
    name: str, value: float, error: float, where: Where, *, dof: float = 7.0, cause: str = ""
) -> Measurement:
    """A sampled measurement with the interval that its standard error makes."""
    unit = next(d.unit for d in DECLARATIONS if d.name == name)
    half = float(stdtrit(dof, 0.5 * (1.0 + CONFIDENCE))) * error
    return Measurement(
        name, "sampled", value, unit, value - half, value + half, 8, where, error, dof, cause=cause
    )


def count(name: str, value: int, where: Where, cause: str = "") -> Measurement:
    return Measurement(
        name, "count", float(value), "1", 0.0, 4.09, 8, where, exposure_ps=16.0, cause=cause
    )


def sound(profile: str = "quick") -> MeasurementFile:
    """A model that meets every criterion of both policies in the profile's scope."""
    plan = load_profile(profile)
    measurements: list[Measurement] = []
    for system in plan.static_systems:
        here = Where(system=system)
        measurements += [
            sampled("accuracy.force_rmse", 0.071, 0.002, here, dof=19.0),
            Measurement.exact("gradient.error", 9.1e-5, "1", here, 32),
            sampled("cost.step_time", 2.7, 0.02, here, dof=19.0),
        ]
    for run in (run for run in plan.runs if run.purpose == "production"):
        there = Where(
            system=run.system,
            run=run.spec("tiny", 0).name,
            temperature_K=run.temperature_K,
            length_ps=run.length_ps,
        )
        measurements += [
            sampled("nve.drift", 0.0002, 0.0001, there),
            sampled("nve.energy_change", 0.01, 0.001, there),
            sampled("nve.temperature_error", -1.2, 0.9, there),
            Measurement("nve.fluctuation", "info", 0.4, "meV/atom", None, None, 8, there),
            count("stability.crashes", 0, there),
            count("stability.broken_bonds", 0, there),
        ]
    return MeasurementFile(
        card=CARD,
        scope=plan.scope,
        declarations=DECLARATIONS,
        default_criteria=DEFAULTS,
        planned=tuple(Planned(m.name, m.where) for m in measurements),
        measurements=tuple(measurements),
        provenance=ValidationProvenance(
            command="omm-mlff validate --model tiny --profile quick",
            versions={"openmm": "8.6.1", "torch": "2.12.1"},
            platform="Reference",
            seed=1,
        ),
        runs={spec.name: spec for spec in (run.spec("tiny", 0) for run in plan.runs)},
    )


def replaced(file: MeasurementFile, *new: Measurement) -> MeasurementFile:
    """The same file with these measurements in place of those of the same name and place."""
    keys = {(m.name, m.where.system, m.where.run) for m in new}
    kept = [m for m in file.measurements if (m.name, m.where.system, m.where.run) not in keys]
    return dataclasses.replace(file, measurements=(*kept, *new))


def broken() -> MeasurementFile:
    """A model whose water falls apart and whose alanine is inaccurate."""
    run = "water-nve-300K-0.5fs-2ps-x8"
    there = Where(
        system="water",
        run=run,
        temperature_K=300.0,
        replica=3,
        frame=531,
        atoms=(0, 1),
        length_ps=2.0,
    )
    return replaced(
        sound(),
        count("stability.broken_bonds", 2, there, "bond O0-H1 is 0.153 nm long (0.096 at rest)"),
        count("stability.crashes", 2, there, "2 of 8 replicas stopped, the first at 0.27 ps"),
        sampled("accuracy.force_rmse", 0.31, 0.007, Where(system="alanine"), dof=19.0),
        Measurement.inapplicable(
            "accuracy.force_rmse",
            "sampled",
            "eV/angstrom",
            Where(system="methane"),
            "no reference labels",
        ),
        sampled("nve.drift", float("nan"), float("nan"), there, cause="fewer than 8 replicas left"),
    )


def unclear() -> MeasurementFile:
    """A model whose drift in alanine is not known well enough, with one measurement missing."""
    where = Where(
        system="alanine",
        run="alanine-nve-300K-0.5fs-2ps-x8",
        temperature_K=300.0,
        length_ps=2.0,
    )
    file = replaced(sound(), sampled("nve.drift", 0.006, 0.004, where))
    kept = tuple(
        m
        for m in file.measurements
        if not (m.name == "gradient.error" and m.where.system == "methane")
    )
    return dataclasses.replace(file, measurements=kept)


def judged(file: MeasurementFile, policy: str = "strict") -> Judged:
    return Judged(
        model=file.card,
        profile=file.scope.profile,
        policy=policy,
        verdicts=judge_all(file),
        provenance=file.provenance,
    )
