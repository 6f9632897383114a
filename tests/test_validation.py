"""The whole pipeline, on potentials whose truth is known."""

from __future__ import annotations

import json
import signal

import pytest
from springs import NativeSpringPotential, SpringPotential, diatomic, triatomic

from omm_mlff import validate
from omm_mlff.errors import InputError, OutputExistsError, PlatformError, UnsupportedSystemError
from omm_mlff.verdict.measurement_file import MeasurementFile

PROFILE = """
title = "a short look at water"
static_systems = ["water"]

[[run]]
system = "water"
length_ps = 0.2
n_replicas = 4
temperature_K = 300
"""


@pytest.fixture
def profile(tmp_path):
    path = tmp_path / "short.toml"
    path.write_text(PROFILE)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validation")
    (folder / "short.toml").write_text(PROFILE)
    return validate(SpringPotential(), profile=folder / "short.toml", out=folder / "out")


def statuses(result, policy="strict"):
    return {(finding.criterion, finding.status) for finding in result.verdicts[policy].findings}


def test_springs_conserve_energy_and_are_no_water(finished):
    """Sound mechanics, wrong chemistry: the verdict must tell these apart."""
    found = statuses(finished)
    for sound in ("nve.drift-reject", "gradient.error-limit-float64", "nve.momentum-reject"):
        assert (sound, "pass") in found, sound
    assert finished.verdict.name == "REJECTED"
    assert any("force_rmse" in name and status == "fail" for name, status in found)
    assert finished.exit_code == 1


def test_every_criterion_has_a_finding(finished):
    """M6 asks for more than this profile runs; that must show as not measured, never as passed."""
    strict, m6 = (finished.verdicts[name].findings for name in ("strict", "m6"))
    assert [f.criterion for f in strict if f.status == "not-measured"] == []
    unmeasured = {f.criterion for f in m6 if f.status == "not-measured"}
    assert unmeasured == {"runs-complete", "complete-10ps", "temperature-series"}


def test_the_folder_holds_verdict_runs_and_reports(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert {"verdict.json", "measurements.json", "campaign.json", "runs"} <= names
    assert {"report.md", "junit.xml", "findings.csv"} <= names
    verdict = json.loads((finished.folder / "verdict.json").read_text())
    assert verdict["verdict"] == finished.verdict.name
    assert set(verdict["policies"]) == {"strict", "m6"}
    assert verdict["provenance"]["platform"] in ("Reference", "CPU", "CUDA", "OpenCL")


def test_a_finished_validation_can_be_judged_again_from_its_file(finished):
    from omm_mlff.verdict.judge import judge_all

    measured = MeasurementFile.read(finished.folder / "measurements.json")
    assert {k: v.name for k, v in judge_all(measured).items()} == {
        k: v.name for k, v in finished.verdicts.items()
    }


def test_undecided_runs_are_extended_up_to_four_times(profile, tmp_path):
    """A bound on the true value itself: no run is long enough, and the report says so."""
    policy = tmp_path / "hair.toml"
    policy.write_text(
        """
title = "split a hair"
include_defaults = false

[[criterion]]
name = "not-too-hot"
measurement = "nve.temperature_error"
low = -50.0
high = 0.0
unit = "%"
severity = "limit"
source = "this test: the mean temperature of springs is the target"
"""
    )
    result = validate(SpringPotential(), profile=profile, policy=policy, out=tmp_path / "out")
    (finding,) = result.verdict.findings
    assert finding.status == "undecided"
    assert finding.ci_low < 0.0 < finding.ci_high
    assert finding.more_ps is None or finding.more_ps > 0.0
    assert (result.verdict.name, result.exit_code) == ("UNDECIDED", 3)
    (run,) = result.measured.provenance.runs.values()
    assert run.simulated_ps == pytest.approx(4 * 4 * 0.2)


def test_a_policy_that_is_edited_meanwhile_judges_as_it_was(profile, tmp_path):
    policy = tmp_path / "mine.toml"
    row = '[[criterion]]\nname = "hot"\nmeasurement = "nve.temperature_error"\nlow = -50.0\n'
    row += 'high = 0.0\nunit = "%"\nseverity = "limit"\nsource = "this test"\n'
    policy.write_text(row)

    def edit(label: str, done: int, total: int) -> None:
        policy.write_text(row.replace("high = 0.0", "high = 50.0"))

    result = validate(
        SpringPotential(), profile=profile, policy=policy, out=tmp_path / "out", progress=edit
    )
    (finding,) = result.verdict.findings
    assert (finding.high, finding.status) == (0.0, "undecided")


def test_a_rejected_model_is_not_looked_at_again(finished):
    (run,) = finished.measured.provenance.runs.values()
    assert run.simulated_ps == pytest.approx(4 * 0.2)


def test_forces_off_by_half_a_percent_are_rejected_for_their_gradient(profile, tmp_path):
    result = validate(SpringPotential(force_scale=1.005), profile=profile, out=tmp_path / "out")
    failed = {f.criterion for f in result.verdict.findings if f.status == "fail"}
    assert any(name.startswith("gradient.error") for name in failed)
    assert result.verdict.name == "REJECTED"


def test_a_potential_that_breaks_is_rejected_with_its_atoms(profile, tmp_path):
    result = validate(
        SpringPotential(breaks_at=0.154, breaks_copy=1), profile=profile, out=tmp_path / "out"
    )
    crashes = [
        f
        for f in result.verdicts["m6"].findings
        if f.measurement == "stability.crashes" and f.status == "fail"
    ]
    assert crashes
    assert crashes[0].where.replica == 1
    assert "not finite" in crashes[0].cause
    assert result.verdicts["m6"].name == "REJECTED"
    assert result.exit_code == 1


def test_an_untapped_potential_reaches_a_verdict_too(profile, tmp_path):
    result = validate(NativeSpringPotential(), profile=profile, out=tmp_path / "out")
    assert result.verdict.name == "REJECTED"
    parity = [f for f in result.verdict.findings if f.measurement == "parity.energy"]
    assert {f.status for f in parity} == {"not-applicable"}


def test_resuming_after_ctrl_c_gives_the_same_measurements(finished, tmp_path):
    pressed = []

    def press_once(label, done, total):
        if not pressed and total > 100:
            pressed.append(label)
            signal.raise_signal(signal.SIGINT)

    profile = tmp_path / "short.toml"
    profile.write_text(PROFILE.replace("0.2", "0.4"))
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        validate(SpringPotential(), profile=profile, out=out, progress=press_once)
    resumed = validate(SpringPotential(), profile=profile, out=out, resume=True)
    whole = validate(SpringPotential(), profile=profile, out=tmp_path / "whole")
    assert dynamic(resumed) == dynamic(whole)


def dynamic(result):
    return {
        (m.name, m.where.run): m.value
        for m in result.measured.measurements
        if m.name.startswith(("nve.", "stability."))
    }


def test_an_existing_validation_is_refused(finished, tmp_path):
    profile = finished.folder.parent / "short.toml"
    with pytest.raises(OutputExistsError, match="--resume"):
        validate(SpringPotential(), profile=profile, out=finished.folder)
    with pytest.raises(OutputExistsError, match="different: seed"):
        validate(SpringPotential(), profile=profile, out=finished.folder, resume=True, seed=1)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputExistsError, match="not empty"):
        validate(SpringPotential(), profile=profile, out=tmp_path)


def test_bad_input_is_noticed_before_anything_runs(profile, tmp_path):
    class Picky(SpringPotential):
        def unsupported(self, system):
            return "it does not like water"

    with pytest.raises(UnsupportedSystemError, match="cannot serve water: it does not like water"):
        validate(Picky(), profile=profile, out=tmp_path / "a")
    with pytest.raises(PlatformError, match="not available"):
        validate(SpringPotential(), profile=profile, platform="Metal", out=tmp_path / "b")
    with pytest.raises(InputError):
        validate("no-such-model", profile=profile, out=tmp_path / "c")
    assert not any((tmp_path / name).exists() for name in "abc")


def test_resuming_what_is_not_there_is_an_error(profile, tmp_path):
    with pytest.raises(InputError, match=r"there is nothing to go on with in .*typo"):
        validate(SpringPotential(), profile=profile, out=tmp_path / "typo", resume=True)
    assert not (tmp_path / "typo").exists()


def test_one_system_need_not_be_put_into_a_list(finished, tmp_path):
    from omm_mlff import load_system

    profile = tmp_path / "short.toml"
    profile.write_text('title = "short"\nstatic_systems = ["water"]\n')
    found = [
        validate("ultra-tiny", systems=given, profile=profile, out=tmp_path / str(i))
        for i, given in enumerate(("water", ["water"], load_system("water")))
    ]
    criteria = [[f.criterion for f in one.verdict.findings] for one in found]
    assert criteria == [criteria[0]] * 3
    assert criteria[0]


def test_what_a_validation_prints_is_one_line(finished):
    line = repr(finished)
    assert line.startswith("<Validation of ")
    assert finished.verdict.name in line
    assert len(line) < 200


def test_a_users_own_file_has_no_labels_and_the_report_says_so(tmp_path, profile):
    xyz = tmp_path / "mine.xyz"
    xyz.write_text("3\nwater\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n")
    result = validate(SpringPotential(), systems=[str(xyz)], profile=profile, out=tmp_path / "out")
    accuracy = [f for f in result.verdict.findings if f.measurement == "accuracy.force_rmse"]
    assert {f.status for f in accuracy} == {"not-applicable"}
    assert "reference labels" in accuracy[0].cause


def test_two_loaded_systems_of_one_name_are_refused(profile, tmp_path):
    with pytest.raises(InputError, match="two systems have one name"):
        validate(
            SpringPotential(),
            systems=[diatomic(), triatomic()],
            profile=profile,
            out=tmp_path / "out",
        )


def test_a_loaded_system_that_has_changed_is_not_resumed(profile, tmp_path):
    asked = {"profile": profile, "out": tmp_path / "out"}
    validate(SpringPotential(), systems=[diatomic(0.10)], **asked)
    with pytest.raises(OutputExistsError, match="different: systems"):
        validate(SpringPotential(), systems=[diatomic(0.12)], resume=True, **asked)


def test_a_failure_comes_with_its_cause_and_a_replay(profile, tmp_path):
    breaks = SpringPotential(breaks_at=0.153)
    result = validate(breaks, systems=[triatomic()], profile=profile, out=tmp_path / "out")
    assert result.verdict.name == "REJECTED"
    assert result.diagnosis[0].slug == "nan"
    failure = result.judged.failures[0]
    assert (result.folder / failure.folder / "failure.json").is_file()
    assert (result.folder / failure.replay).is_file()
    verdict = json.loads((result.folder / "verdict.json").read_text())
    assert verdict["diagnosis"][0]["slug"] == "nan"
    assert verdict["failures"][0]["run"] == failure.run
    assert "## What happened in the runs" in (result.folder / "report.md").read_text()


def test_the_diagnosis_is_of_the_policy_that_was_asked_for(finished):
    failed = {f.measurement for f in finished.verdict.findings if f.status == "fail"}
    assert {name for cause in finished.diagnosis for name in cause.evidence} <= failed


def test_the_rungs_of_a_ladder_are_extended_together(tmp_path):
    from omm_mlff.campaign import campaign as campaigns
    from omm_mlff.record.rundir import RunRecord
    from omm_mlff.verdict.profiles import load_profile

    path = tmp_path / "ladder.toml"
    path.write_text(
        PROFILE
        + """
[[run]]
purpose = "timestep"
system = "water"
length_ps = 0.05
n_replicas = 2
temperature_K = 300
timestep_fs = [0.25, 0.5]
"""
    )
    campaign = campaigns.plan(
        SpringPotential(),
        load_profile(path),
        seed=0,
        platform="Reference",
        folder=tmp_path / "out",
        resume=False,
    )
    measured = campaigns.execute(campaign)
    (exponent,) = [m for m in measured.measurements if m.name == "timestep.exponent"]
    assert "-timestep-" in exponent.where.run or "0.2ps" in exponent.where.run
    name = next(campaign.spec(run).name for run in campaign.runs if run.purpose == "timestep")
    campaigns.extend(campaign, measured, [name])
    lengths = {
        run: RunRecord.open(campaign.run_folder(run)).spec.length_ps for run in campaign.runs
    }
    assert {run.purpose: length for run, length in lengths.items()} == {
        "production": 0.2,
        "timestep": 0.1,
    }
    assert sorted(lengths.values()) == [0.1, 0.1, 0.2]


def test_two_files_whose_names_differ_by_a_slash_have_each_its_own_run(tmp_path, monkeypatch):
    water = "O 0 0 0.1173\nH 0 0.7572 -0.4692\nH 0 -0.7572 -0.4692\n"
    heavy = water.replace("H", "D")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.xyz").write_text("3\n\n" + water)
    (tmp_path / "a_b.xyz").write_text("3\n\n" + heavy)
    (tmp_path / "short.toml").write_text(PROFILE.replace("0.2", "0.02"))
    monkeypatch.chdir(tmp_path)
    result = validate(
        SpringPotential(), systems=["a/b.xyz", "a_b.xyz"], profile="short.toml", out="out"
    )
    folders = sorted(path.name for path in (tmp_path / "out" / "runs").iterdir())
    assert len(folders) == 2
    masses = {
        json.loads((tmp_path / "out" / "runs" / name / "provenance.json").read_text())["molecule"][
            "masses"
        ][1]
        for name in folders
    }
    assert len(masses) == 2
    assert len(result.measured.provenance.runs) == 2


def test_a_run_of_another_molecule_is_not_taken(tmp_path):
    (tmp_path / "short.toml").write_text(PROFILE.replace("0.2", "0.02"))
    words = {"profile": tmp_path / "short.toml", "out": tmp_path / "out"}
    validate(SpringPotential(), **words)
    (run,) = (tmp_path / "out" / "runs").iterdir()
    provenance = json.loads((run / "provenance.json").read_text())
    provenance["molecule"]["masses"][1] = 2.014
    (run / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(OutputExistsError, match=r"holds another run \(different: masses\)"):
        validate(SpringPotential(), **words, resume=True)
