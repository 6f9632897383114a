"""Failures become causes: one fault is one cause, and the fundamental one comes first."""

from __future__ import annotations

import math

import pytest

from omm_mlff.checks.registry import all_declarations
from omm_mlff.schema import Fault, Finding, Measurement, Reason, Symptom, Where
from omm_mlff.units import KJMOL_PER_EV
from omm_mlff.verdict.diagnosis import RULES, Facts, diagnose

RAISED, NOT_FINITE = Reason.RAISED, Reason.NOT_FINITE
DECLARATIONS = all_declarations()
CHECK_OF = {row.name: row.check for row in DECLARATIONS}


def failed(
    measurement, value=1.0, cause="", severity="reject", system="water", reasons=()
) -> Finding:
    return Finding(
        policy="strict",
        criterion=f"{measurement}-{severity}",
        measurement=measurement,
        system=system,
        run=None,
        temperature_K=None,
        status="fail",
        kind="deterministic",
        value=value,
        unit="1",
        ci_low=value,
        ci_high=value,
        bound="<= 0.1",
        severity=severity,
        cause=cause,
        where=Where(system=system),
        check=CHECK_OF.get(measurement, measurement.partition(".")[0]),
        reasons=reasons,
    )


def measured(name, value, reasons=(), system="water") -> Measurement:
    return Measurement.exact(name, value, "1", Where(system=system), 1, reasons=reasons)


def slugs(findings, measurements=()) -> list[str]:
    return [cause.slug for cause in diagnose(findings, list(measurements), DECLARATIONS)]


def test_nothing_failed_nothing_to_name() -> None:
    assert diagnose([], [measured("gradient.scale", 1.0)], DECLARATIONS) == ()


def test_forces_that_change_from_call_to_call_explain_everything_numeric() -> None:
    names = ("nve.drift", "gradient.error", "precision.force_noise", "determinism.force")
    assert slugs([failed(name) for name in names]) == ["nondeterminism"]


def test_a_stale_list_is_not_taken_for_noise() -> None:
    assert slugs([failed("determinism.history"), failed("nve.drift")]) == ["history"]


@pytest.mark.parametrize("factor", [KJMOL_PER_EV, 1.0 / KJMOL_PER_EV, 4.184, 10.0])
def test_the_ratio_of_two_units_is_named_as_units(factor: float) -> None:
    rows = [measured("gradient.scale", factor), measured("gradient.error", abs(factor - 1.0))]
    findings = [failed("gradient.scale", factor), failed("gradient.error", abs(factor - 1.0))]
    assert slugs(findings, rows) == ["units"]


@pytest.mark.parametrize("factor", [-1.0, 0.5, 1.001, 1.05, 1.3, 3.0])
def test_another_ratio_without_scatter_is_a_scale(factor: float) -> None:
    error = abs(1.0 - 1.0 / factor)
    rows = [measured("gradient.scale", factor), measured("gradient.error", error)]
    findings = [failed("gradient.scale", factor), failed("gradient.error", error)]
    assert slugs(findings, rows) == ["force-scale"]


def test_scatter_about_the_right_scale_is_a_curl() -> None:
    rows = [measured("gradient.scale", 1.001), measured("gradient.error", 0.2)]
    assert slugs([failed("gradient.error", 0.2), failed("nve.drift")], rows) == ["curl"]


def test_energy_and_force_noise_tell_three_causes_apart() -> None:
    energy, force = failed("precision.energy_noise"), failed("precision.force_noise")
    follow = failed("nve.drift")
    assert slugs([energy, force, follow]) == ["rounding"]
    assert slugs([energy, follow]) == ["energy-offset"]
    assert slugs([force, follow]) == ["force-noise"]


def test_rotation_that_changes_no_more_than_the_noise_is_rounding() -> None:
    findings = [
        failed("invariance.rotation_force", 2e-3),
        failed("precision.energy_noise"),
        failed("precision.force_noise", 1e-3),
    ]
    assert slugs(findings, [measured("precision.force_noise", 1e-3)]) == ["rounding"]


def test_rotation_that_changes_more_is_orientation() -> None:
    findings = [failed("invariance.rotation_force", 0.2), failed("extensivity.energy")]
    rows = [
        measured("precision.force_noise", 1e-6),
        measured("invariance.translation_force", 1e-7),
    ]
    assert slugs(findings, rows) == ["orientation"]


def test_a_wall_with_a_way_through_is_a_hole_and_none_at_all_is_no_repulsion() -> None:
    hole = failed("short_range.hole", 0.5)
    assert slugs([failed("short_range.barrier", 0.3), hole]) == ["hole"]
    assert slugs([failed("short_range.barrier", 0.02), hole]) == ["no-repulsion"]


def test_nan_is_named_before_the_crash_that_it_is() -> None:
    crash = failed("stability.crashes", reasons=(NOT_FINITE,))
    assert slugs([crash, failed("nve.drift", math.nan)]) == ["nan"]


def test_an_error_is_named_before_the_numbers_that_are_missing_for_it() -> None:
    findings = [
        failed("determinism.energy", float("inf"), reasons=(RAISED,)),
        failed("accuracy.force_rmse", float("nan"), reasons=(RAISED,)),
        failed("short_range.barrier", 0.2, reasons=(NOT_FINITE, RAISED)),
        failed("stability.crashes", 3.0, cause="its SCF stops", reasons=(RAISED,)),
    ]
    (cause,) = diagnose(findings, [], DECLARATIONS)
    assert cause.slug == "raises"
    assert cause.evidence[0] == "stability.crashes"
    assert cause.detail == "its SCF stops"
    assert "stops with an error" in cause.sentence


def test_an_error_hides_no_fault_that_a_number_shows() -> None:
    noise = failed("determinism.force", 0.1, reasons=(RAISED,))
    assert slugs([noise, failed("nve.drift")]) == ["nondeterminism"]
    rows = [measured("gradient.scale", 1.05), measured("gradient.error", 0.05 / 1.05)]
    searched = failed("smoothness.scan_force", float("inf"), reasons=(NOT_FINITE, RAISED))
    assert slugs([failed("gradient.scale", 1.05), searched], rows) == ["force-scale", "raises"]
    step = failed("jumps.energy", 20.0, reasons=(RAISED,))
    assert slugs([step]) == ["jump"]


def test_a_step_at_the_cutoff_explains_a_step_elsewhere() -> None:
    findings = [failed("jumps.energy"), failed("cutoff.energy_jump"), failed("nve.drift")]
    assert slugs(findings) == ["cutoff"]


def test_a_step_and_a_kink_differ() -> None:
    assert slugs([failed("jumps.energy"), failed("jumps.kink")]) == ["jump"]
    assert slugs([failed("jumps.kink"), failed("nve.drift")]) == ["kink"]


def test_a_step_that_upsets_one_difference_is_no_curl() -> None:
    rows = [measured("gradient.scale", 0.58), measured("gradient.error", 1e-9)]
    findings = [failed("gradient.scale", 0.58), failed("jumps.energy", 100.0)]
    assert slugs(findings, rows) == ["jump"]


def test_not_a_number_comes_before_the_noise_that_it_looks_like() -> None:
    findings = [
        failed("precision.energy_noise", float("inf")),
        failed("precision.force_noise", float("inf")),
        failed("accuracy.force_rmse", float("nan")),
        failed("short_range.barrier", 0.2, reasons=(NOT_FINITE,)),
    ]
    assert slugs(findings) == ["nan"]


def test_a_hole_of_nan_that_only_a_search_finds_hides_no_other_fault() -> None:
    rows = [measured("gradient.scale", 1.05), measured("gradient.error", 0.05 / 1.05)]
    findings = [
        failed("gradient.scale", 1.05),
        failed("smoothness.scan_force", float("inf"), reasons=(NOT_FINITE,)),
    ]
    assert slugs(findings, rows) == ["force-scale", "nan"]


def test_a_coarse_energy_with_fine_forces_is_an_offset_and_no_curl() -> None:
    rows = [
        measured("gradient.scale", 1.0),
        measured("gradient.error", 2.2e-3),
        measured("precision.energy_noise", 4e-3),
    ]
    assert slugs([failed("gradient.error", 2.2e-3)], rows) == ["energy-offset"]
    fine = [*rows[:2], measured("precision.energy_noise", 3e-4)]
    assert slugs([failed("gradient.error", 2.2e-3)], fine) == ["curl"]


@pytest.mark.parametrize(
    ("reason", "slug"),
    [
        (Reason.TIMESTEP, "timestep"),
        (Reason.ROUNDING, "rounding"),
        (Reason.NON_CONSERVATIVE, "curl"),
        (Reason.DISCONTINUITY, "jump"),
        (Reason.UNEXPLAINED, "drift"),
    ],
)
def test_drift_is_named_after_its_attribution(reason: Reason, slug: str) -> None:
    row = measured("attribution.half_timestep", 5.0, (reason,))
    assert slugs([failed("nve.drift")], [row]) == [slug]
    assert slugs([failed("nve.drift")]) == ["drift"]


def test_independent_faults_are_all_named_and_rejects_come_first() -> None:
    findings = [
        failed("accuracy.force_rmse", severity="limit"),
        failed("soak.memory_growth"),
        failed("soak.slowdown", severity="limit"),
    ]
    assert slugs(findings) == ["memory-leak", "slowing-down", "accuracy"]


def test_a_check_of_another_package_names_itself() -> None:
    assert slugs([failed("their_check.figure")]) == ["their-check"]


def test_no_failure_is_left_without_a_cause() -> None:
    names = ("a.b", "nve.temperature_error", "cost.step_time", "nve.momentum", "restart.state")
    causes = diagnose([failed(name) for name in names], [], DECLARATIONS)
    assert {name for cause in causes for name in cause.evidence} == set(names)


def test_what_is_left_is_named_after_its_check_and_not_after_the_measurement() -> None:
    assert slugs([failed("nve.momentum")]) == ["momentum"]


def test_every_failure_that_counts_has_a_cause_whichever_it_is() -> None:
    for row in DECLARATIONS:
        (cause,) = diagnose([failed(row.name, 0.5)], [], DECLARATIONS)
        assert cause.evidence == (row.name,)


def test_the_rules_ask_for_nothing_that_no_check_declares() -> None:
    asked: set[str] = set()

    class Listening(Facts):
        def failed(self, *names: str) -> list[Finding]:
            asked.update(names)
            return super().failed(*names)

        def largest(self, name: str, system: str | None) -> float:
            asked.add(name)
            return super().largest(name, system)

    facts = Listening([failed(row.name, 0.5) for row in DECLARATIONS], [], DECLARATIONS)
    for rule in RULES:
        rule.shows(facts)
    assert len(asked) > 20
    assert asked <= {row.name for row in DECLARATIONS} | {row.check for row in DECLARATIONS}


def test_every_fault_is_found_by_a_rule_and_explains_some_failure() -> None:
    by_rules = {rule.fault for rule in RULES} - {None}
    assert by_rules == set(Fault)
    assert {fault for row in DECLARATIONS for fault in row.explained_by} == set(Fault)
    assert {row.symptom for row in DECLARATIONS} == {None, *Symptom}
