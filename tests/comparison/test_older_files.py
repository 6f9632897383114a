"""What an older version of the package has left is still read, judged and compared."""

from __future__ import annotations

import json
from pathlib import Path

from omm_mlff.comparison import read_finished
from omm_mlff.comparison.advice import advise, failures
from omm_mlff.report.wording import out_of_scope
from omm_mlff.verdict.judge import judge_all
from omm_mlff.verdict.measurement_file import MeasurementFile
from omm_mlff.verdict.policies import Policy

DATA = Path(__file__).resolve().parent.parent / "data" / "finished"


def test_the_verdict_of_an_older_version_is_read_with_its_checks_and_scope() -> None:
    assert "reasons" not in json.loads((DATA / "verdict.json").read_text())["findings"][0]
    finished = read_finished(DATA)
    strict = finished.verdicts["strict"]
    assert strict.name == "NOT RECOMMENDED"
    assert {f.check for f in strict.findings} >= {"accuracy", "bonds", "drift", "cost"}
    (excluded,) = (f for f in finished.verdicts["m6"].findings if f.criterion == "complete-10ps")
    assert out_of_scope(excluded)
    drifts = [f for f in strict.findings if f.measurement == "nve.drift"]
    assert {f.where.length_ps for f in drifts} == {2.0}


def test_its_measurements_are_judged_again_to_the_same_findings() -> None:
    measured = MeasurementFile.read(DATA / "measurements.json")
    declared = {row.name: row for row in measured.declarations}
    policy = Policy("strict", "the checks' own criteria", measured.default_criteria, declared)
    again = judge_all(measured, [policy])["strict"]
    before = {
        (f.criterion, f.where): (f.status, f.value, f.more_ps)
        for f in read_finished(DATA).verdicts["strict"].findings
        if f.value is not None
    }
    after = {
        (f.criterion, f.where): (f.status, f.value, f.more_ps)
        for f in again.findings
        if f.value is not None
    }
    assert len(before) > 20
    assert before == after


def test_what_it_is_good_for_is_said_by_the_meanings_that_it_kept() -> None:
    finished = read_finished(DATA)
    (failure,) = failures(finished)
    assert failure.measurement == "accuracy.force_rmse"
    assert failure.name.startswith("accuracy.force_rmse (")
    assert "runs of up to 2 ps a replica" in advise(finished).evidence
