"""Profiles hold what DESIGN section 7 says, and are read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from omm_mlff.errors import PolicyError, UnknownNameError
from omm_mlff.schema import Purpose
from omm_mlff.verdict import profiles
from omm_mlff.verdict.judge import check_scope
from omm_mlff.verdict.policies import load_policy
from omm_mlff.verdict.profiles import PlannedRun, Scope, load_profile, profile_names
from tests.judged_models import DECLARATIONS, DEFAULTS

M6_MOLECULES = ("water", "methane", "alanine")
SHIPPED = ["alanine", "alanine-dipeptide", "aspirin", "benzene", "ethanol", "methane", "water"]


@pytest.fixture(autouse=True)
def _shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "shipped_names", lambda kind, marker: SHIPPED)


def test_three_profiles_ship() -> None:
    assert profile_names() == ["full", "quick", "standard"]


def test_quick_is_two_picoseconds_of_three_molecules() -> None:
    quick = load_profile("quick")
    assert quick.static_systems == M6_MOLECULES
    assert quick.runs == tuple(PlannedRun(name, 2.0, 8, 300.0, 0.5) for name in M6_MOLECULES)


def test_standard_is_m6() -> None:
    standard = load_profile("standard")
    assert standard.static_systems == M6_MOLECULES
    assert {run for run in standard.runs if run.purpose == "production"} == {
        *(PlannedRun(name, 5.0, 16, 300.0) for name in M6_MOLECULES),
        PlannedRun("alanine", 10.0, 4, 300.0),
        *(PlannedRun("methane", 2.0, 16, kelvin) for kelvin in (100.0, 300.0, 500.0)),
    }
    assert standard.scope == Scope("standard")


@pytest.mark.parametrize("name", ["standard", "full"])
def test_both_ladders_and_the_thermostat_are_there_and_stand_aside(name: str) -> None:
    runs = load_profile(name).runs
    aside = {
        purpose: [run for run in runs if run.purpose == purpose] for purpose in get_args(Purpose)
    }
    assert max(run.temperature_K for run in aside["survival"]) == 1000.0
    assert {run.timestep_fs for run in aside["timestep"]} >= {0.125, 0.25}
    assert {run.timestep_fs for run in aside["production"]} == {0.5}
    assert len({run.temperature_K for run in aside["thermostat"] if run.system == "water"}) == 2
    spec = aside["thermostat"][0].spec("tiny", 0)
    assert (spec.ensemble, spec.purpose) == ("nvt", "thermostat")
    assert "-thermostat-nvt-" in spec.name


def test_an_unknown_purpose_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[[run]]\nsystem="water"\nlength_ps=1\nn_replicas=2\ntemperature_K=300\npurpose="fun"\n'
    )
    with pytest.raises(PolicyError, match="unknown purpose 'fun'; one of production, survival"):
        load_profile(path)


def test_full_has_every_system_and_both_ladders() -> None:
    full = load_profile("full")
    assert list(full.static_systems) == SHIPPED
    assert {run.system for run in full.runs if run.length_ps == 100.0} == set(SHIPPED)
    assert max(run.temperature_K for run in full.runs) == 1000.0
    assert {run.timestep_fs for run in full.runs} >= {0.125, 0.25, 0.5}
    assert full.scope == Scope("full")


@pytest.mark.parametrize("name", ["quick", "standard", "full"])
def test_no_profile_excludes_what_its_runs_could_decide(name: str) -> None:
    profile = load_profile(name)
    policy = load_policy("m6", DECLARATIONS, DEFAULTS)
    check_scope(policy, profile.scope)
    excluded = profile.scope.excluded.get("m6", {})
    has_10ps = any(run.length_ps >= 10.0 for run in profile.runs)
    has_series = {100.0, 300.0, 500.0} <= {run.temperature_K for run in profile.runs}
    assert ("complete-10ps" in excluded) is not has_10ps
    assert ("temperature-series" in excluded) is not has_series


@pytest.mark.parametrize("name", ["quick", "standard", "full"])
def test_every_run_of_a_profile_has_a_name_of_its_own(name: str) -> None:
    specs = [run.spec("tiny", 1) for run in load_profile(name).runs]
    assert len({spec.name for spec in specs}) == len(specs)


def test_a_users_system_gets_every_kind_of_run() -> None:
    chosen = load_profile("standard").for_systems(["mine.pdb"])
    assert chosen.static_systems == ("mine.pdb",)
    assert {run for run in chosen.runs if run.purpose == "production"} == {
        PlannedRun("mine.pdb", 5.0, 16, 300.0),
        PlannedRun("mine.pdb", 10.0, 4, 300.0),
        *(PlannedRun("mine.pdb", 2.0, 16, kelvin) for kelvin in (100.0, 300.0, 500.0)),
    }
    assert chosen.scope.chosen_systems == ("mine.pdb",)
    assert load_profile("standard").scope.chosen_systems == ()
    with pytest.raises(PolicyError, match="no system"):
        chosen.for_systems([])


def test_a_planned_run_becomes_the_spec_of_that_run() -> None:
    spec = PlannedRun("water", 2.0, 8, 300.0, 0.25).spec("tiny", 7, "CPU", "mixed")
    assert (spec.potential, spec.seed, spec.platform, spec.precision) == ("tiny", 7, "CPU", "mixed")
    assert (spec.n_steps, spec.n_replicas, spec.ensemble) == (8000, 8, "nve")


def test_scope_survives_json() -> None:
    scope = load_profile("quick").for_systems(["water", "x.xyz"]).scope
    assert Scope.from_json(scope.to_json()) == scope


RUN = "[[run]]\nsystem='water'\nlength_ps=1\nn_replicas=2\ntemperature_K=300\n"


def test_a_users_own_profile_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("static_systems = ['water']\n" + RUN)
    assert load_profile(path).name == "mine"
    assert load_profile(str(path)).runs == (PlannedRun("water", 1.0, 2, 300.0),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "neither a static system nor a run"),
        (RUN.replace("length_ps=1", "length_ps=0"), "run 1: length_ps must be a number above 0"),
        (RUN.replace("=300", "=[300, -1]"), "temperature_K must be a number above 0, got -1"),
        (RUN.replace("=2", "=2.5"), "n_replicas must be a whole number"),
        (RUN.replace("temperature_K=300", ""), "temperature_K is missing"),
        (RUN + "lenght=3", "unknown key 'lenght'"),
        (RUN.replace("'water'", "[]"), "names no system"),
        (RUN.replace("'water'", "3"), "wanted a name"),
        ("runs = 3", "unknown key 'runs'"),
        ("run = 3", r"write \[\[run\]\] rows"),
        (RUN + "[[out_of_scope]]\npolicy='m6'\ncriterion='x'\n", "reason must be given"),
    ],
)
def test_a_profile_that_contradicts_itself_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(PolicyError, match=message) as error:
        load_profile(path)
    assert str(path) in str(error.value)


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean quick"):
        load_profile("quik")
