"""One contract for every check, on real runs: springs that hold, a student that flies apart."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from springs import SpringPotential, triatomic

from omm_mlff.checks.base import Check, Evidence, exact
from omm_mlff.checks.registry import all_checks
from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.dynamics.simulate import simulate
from omm_mlff.errors import AnalysisError
from omm_mlff.potentials.student import StudentPotential
from omm_mlff.schema import Measurement, MolecularSystem, ReferenceLabels, RunSpec, Where
from omm_mlff.students.checkpoint import save_student, student_names
from omm_mlff.students.student import STUDENT_CONFIGS, Student
from omm_mlff.systems import load_system

CHECKS = {check.name: check for check in all_checks()}


def of_one_run(check: Check) -> bool:
    return "runs" in check.needs and not check.joint and "production" in check.reads


def springs_evidence(folder):
    potential = SpringPotential()
    # Every pair has its own rest length: like a native force field, it knows its atoms.
    potential.card = dataclasses.replace(potential.card, knows_atoms_by="bond")
    return potential, triatomic(), 300.0


def untrained_evidence(folder):
    torch.manual_seed(2)
    student = Student(STUDENT_CONFIGS["ultra-tiny"])
    student.network.double()
    save_student(folder / "untrained", student, {})
    return StudentPotential(str(folder / "untrained")), little_water(), 300.0


def shipped_evidence(folder):
    return StudentPotential("tiny"), little_water(), 300.0


def potential_is_unsound(evidence: Evidence) -> bool:
    """An untrained network: its forces are the gradient of its energy, no more."""
    return evidence.live.potential.spec.endswith("untrained")


SURFACE = {"short_range", "smoothness", "survival", "vibrations"}
"""Checks of the energy surface's shape, which nobody promises for an untrained network."""


def little_water() -> MolecularSystem:
    """Shipped water with an eighth of its reference frames."""
    system = load_system("water")
    reference = system.reference
    arrays = {
        name: getattr(reference, name)[::8]
        for name in ("positions", "energies", "forces", "trajectory", "temperature_K")
    }
    return dataclasses.replace(system, reference=ReferenceLabels(**arrays, method=reference.method))


SOURCES = {"springs": springs_evidence, "untrained": untrained_evidence}
if "tiny" in student_names():
    SOURCES["tiny"] = shipped_evidence


@pytest.fixture(scope="module", params=SOURCES)
def evidence(request, tmp_path_factory):
    """A real run of 0.2 ps x 3, and the potential alive."""
    folder = tmp_path_factory.mktemp(request.param)
    potential, system, kelvin = SOURCES[request.param](folder)
    spec = RunSpec(potential.spec, system.name, 0.2, kelvin, 3, seed=4, platform="Reference")
    run = simulate(spec, potential, system, folder / "run")
    with Evaluator(potential, system, "Reference") as evaluator:
        yield Evidence(
            system, potential.card, (run,), evaluator, 1, potential.reference_energy(system)
        )


@pytest.fixture(scope="module")
def measured(evidence) -> dict[str, list[Measurement]]:
    return {name: check.measure(evidence) for name, check in CHECKS.items()}


@pytest.mark.parametrize("name", CHECKS)
def test_what_is_declared_is_emitted(name: str, measured) -> None:
    declared = {row.name: (row.kind, row.unit) for row in CHECKS[name].declares}
    emitted = {row.name: (row.kind, row.unit) for row in measured[name]}
    assert emitted == declared


@pytest.mark.parametrize("name", CHECKS)
def test_a_measurement_says_where_it_was_taken(name: str, measured, evidence) -> None:
    assert {row.where.system for row in measured[name]} == {evidence.system.name}


@pytest.mark.parametrize("name", [n for n, c in CHECKS.items() if of_one_run(c)])
def test_a_measurement_of_one_run_names_it(name: str, measured, evidence) -> None:
    spec = evidence.runs[0].spec
    places = {(w.run, w.temperature_K, w.length_ps) for w in (r.where for r in measured[name])}
    assert places == {(spec.name, 300.0, 0.2)}


@pytest.mark.parametrize("name", CHECKS)
def test_a_measurement_is_complete_for_its_kind(name: str, measured, evidence) -> None:
    assert [f"{row.name}: {row}" for row in measured[name] if lacks(row)] == []
    # What is not finite fails any bound: only the untrained network may have it.
    broken = [row.name for row in measured[name] if row.value is not None and not_finite(row)]
    assert broken == [] or potential_is_unsound(evidence)


def not_finite(row: Measurement) -> bool:
    return not math.isfinite(row.value)


def lacks(row: Measurement) -> bool:
    """Whether something that belongs to its kind is not there."""
    if row.value is None:
        return len(row.not_applicable) <= 10
    if not_finite(row):
        return len(row.cause) <= 10
    complete = row.n_samples >= 1 and row.ci_low <= row.value <= row.ci_high
    of_kind = {
        "deterministic": lambda: row.ci_low == row.ci_high,
        "sampled": lambda: row.standard_error >= 0.0 and row.dof > 0.0,
        "count": lambda: row.exposure_ps > 0.0,
        "info": lambda: True,
    }
    return not (complete and of_kind[row.kind]())


@pytest.mark.parametrize(
    "changes",
    [
        {"ci_high": 2.0},
        {"n_samples": 0},
        {"kind": "count"},
        {"kind": "sampled", "standard_error": -1.0, "dof": 1.0},
        {"value": math.inf},
        {"value": None, "not_applicable": "no"},
    ],
)
def test_what_lacks_something_is_seen(changes: dict[str, object]) -> None:
    whole = Measurement("a.b", "deterministic", 1.0, "1", 1.0, 1.0, 3, Where(), exposure_ps=0.0)
    assert not lacks(whole)
    assert lacks(dataclasses.replace(whole, **changes))


@pytest.mark.parametrize("name", CHECKS)
def test_a_measurement_survives_json(name: str, measured) -> None:
    for row in measured[name]:
        again = Measurement.from_json(json.loads(json.dumps(row.to_json(), allow_nan=False)))
        assert repr(again) == repr(row)  # to the last bit, a NaN and types included


@pytest.mark.parametrize("name", [n for n, c in CHECKS.items() if n != "cost"])
def test_measuring_again_gives_the_same(name: str, measured, evidence) -> None:
    again = CHECKS[name].measure(evidence)
    for new, old in zip(again, measured[name], strict=True):
        assert new.name == old.name
        assert new.not_applicable == old.not_applicable
        if old.value is not None:
            assert new.value == pytest.approx(old.value, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", CHECKS)
def test_without_what_it_needs_every_measurement_says_why(name: str, evidence) -> None:
    check = CHECKS[name]
    bare = dataclasses.replace(evidence.system, reference=None)
    found = check.measure(Evidence(bare, evidence.card))
    assert Counter(row.name for row in found) == Counter(row.name for row in check.declares)
    assert all(row.not_applicable for row in found)


def test_a_sound_potential_stays_inside_every_deterministic_bound(measured, evidence) -> None:
    dtype = evidence.card.dtype
    left_out = SURFACE if potential_is_unsound(evidence) else set()
    judged = [
        (row, criterion)
        for check in CHECKS.values()
        if check.name not in left_out
        for criterion in check.criteria
        if not criterion.dtypes or dtype in criterion.dtypes
        for row in measured[check.name]
        if row.name == criterion.measurement and row.kind == "deterministic"
        if row.value is not None
    ]
    assert len({row.name for row, _ in judged}) > 15
    outside = [
        (row.name, row.value, criterion.name)
        for row, criterion in judged
        if not (criterion.low is None or row.value >= criterion.low)
        or not (criterion.high is None or row.value <= criterion.high)
    ]
    assert outside == []


def test_springs_hold_and_what_flies_apart_is_counted(measured, evidence) -> None:
    found = {row.name: row for rows in measured.values() for row in rows}
    broken = found["stability.broken_bonds"].value + found["stability.crashes"].value
    if evidence.runs[0].events:
        assert broken >= 1
    else:
        assert broken == 0
        assert found["nve.drift"].n_samples == 3
        assert abs(found["nve.drift"].value) < 0.1
        assert found["nve.momentum"].value < 1e-6


def test_a_check_that_emits_what_it_did_not_declare_is_stopped() -> None:
    declared = CHECKS["drift"].declares[0]
    other = dataclasses.replace(declared, unit="eV")

    def take(evidence: Evidence) -> list[Measurement]:
        return [exact(other, 1.0, Where(), 1)]

    check = Check("mine", "?", "", "", (declared,), (), frozenset(), take)
    with pytest.raises(AnalysisError, match=r"'mine' emitted nve\.drift"):
        check.measure(Evidence(triatomic(), SpringPotential().card))


def test_evidence_without_a_thing_refuses_to_hand_it_out() -> None:
    bare = Evidence(triatomic(), SpringPotential().card)
    with pytest.raises(AnalysisError, match="no reference labels"):
        _ = bare.reference
    with pytest.raises(AnalysisError, match="needs an Evaluator"):
        _ = bare.live
    assert np.array_equal(bare.random("a").random(3), bare.random("a").random(3))
