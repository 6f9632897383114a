"""A campaign runs what was planned, once; goes on where it was left; extends what is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from springs import SpringPotential, diatomic, triatomic

from omm_mlff.campaign import campaign as campaigns
from omm_mlff.campaign.campaign import Campaign, execute, extend, plan
from omm_mlff.checks import drift, frames, gradient, timestep
from omm_mlff.errors import InputError, OutputExistsError, UnsupportedSystemError
from omm_mlff.record.rundir import RunRecord
from omm_mlff.verdict.profiles import load_profile

PRODUCTION = """
[[run]]
system = "{system}"
length_ps = {length_ps}
n_replicas = 2
temperature_K = {temperature_K}
"""
LADDER = """
[[run]]
purpose = "timestep"
system = "{system}"
length_ps = 0.05
n_replicas = 2
temperature_K = 300
timestep_fs = [0.25, 0.5]
"""
STRETCHED = dataclasses.replace(triatomic(), name="triatomic")
SHORT = dataclasses.replace(diatomic(), name="diatomic")


def run(system: str = "triatomic", length_ps: float = 0.1, temperature_K: float = 300.0) -> str:
    return PRODUCTION.format(system=system, length_ps=length_ps, temperature_K=temperature_K)


@pytest.fixture
def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One check of every kind: of runs alone, of several runs together, of the live potential."""
    chosen = [drift.CHECK, timestep.CHECK, gradient.CHECK]
    monkeypatch.setattr(campaigns, "all_checks", lambda: chosen)
    assert frames.MIN_FRAMES < 100  # the runs below are long enough for a drift


def planned(
    tmp_path: Path,
    *runs: str,
    static: str = "triatomic",
    potential: SpringPotential | None = None,
    seed: int = 0,
    resume: bool = False,
    systems: tuple = (STRETCHED, SHORT),
) -> Campaign:
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "profile.toml"
    statics = json.dumps([static] if static else [])
    path.write_text(f'title = "short"\nstatic_systems = {statics}\n' + "".join(runs))
    return plan(
        potential or SpringPotential(),
        load_profile(path),
        given=dict(zip(("triatomic", "diatomic"), systems, strict=False)),
        seed=seed,
        platform="Reference",
        folder=tmp_path / "out",
        resume=resume,
    )


def lengths(campaign: Campaign) -> dict[str, list[float]]:
    """Of the records, by purpose."""
    found: dict[str, list[float]] = {}
    for item in campaign.runs:
        record = RunRecord.open(campaign.run_folder(item))
        frames_of = {record.replica(i).n_frames for i in range(record.n_replicas)}
        assert frames_of == {record.spec.n_steps + 1} or frames_of == {record.spec.n_steps}
        found.setdefault(item.purpose, []).append(record.spec.length_ps)
    return found


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("nothing was to be simulated")


def test_only_runs_of_one_kind_on_two_systems_share_their_velocities(tmp_path: Path) -> None:
    runs = (run(), run("diatomic"), run(temperature_K=400.0), run(length_ps=0.2))
    campaign = planned(tmp_path / "a", *runs)
    first, other_system, hotter, longer = (campaign.spec(item).seed for item in campaign.runs)
    assert first == other_system
    assert len({first, hotter, longer}) == 3
    again = planned(tmp_path / "b", run())
    assert again.spec(again.runs[0]).seed == first
    other = planned(tmp_path / "c", run(), seed=1)
    assert other.spec(other.runs[0]).seed != first


def test_an_extended_run_keeps_its_folder_and_its_velocities(tmp_path: Path) -> None:
    campaign = planned(tmp_path, run())
    (item,) = campaign.runs
    once, twice = campaign.spec(item), campaign.spec(item, factor=2)
    assert twice == dataclasses.replace(once, length_ps=2 * once.length_ps)
    assert campaign.run_folder(item).name == once.name


def test_a_campaign_is_gone_on_with_only_as_it_was_asked_for(tmp_path: Path) -> None:
    campaign = planned(tmp_path, run())
    asked = json.loads((campaign.folder / "campaign.json").read_text())
    assert (asked["model"], asked["seed"], asked["platform"]) == ("springs", 0, "Reference")
    planned(tmp_path, run(), resume=True)
    with pytest.raises(OutputExistsError, match="--resume"):
        planned(tmp_path, run())
    for changed in (
        {"seed": 1},
        {"systems": (dataclasses.replace(STRETCHED, masses=STRETCHED.masses * 2.0),)},
        {"systems": (dataclasses.replace(STRETCHED, positions=STRETCHED.positions * 1.01),)},
        {"systems": (dataclasses.replace(STRETCHED, bonds=STRETCHED.bonds[:1]),)},
    ):
        with pytest.raises(OutputExistsError, match="another validation"):
            planned(tmp_path, run(), resume=True, **changed)
    with pytest.raises(OutputExistsError, match="another validation"):
        planned(tmp_path, run(length_ps=0.2), resume=True)


def test_what_cannot_be_done_is_refused_before_there_is_a_folder(tmp_path: Path) -> None:
    class Picky(SpringPotential):
        def unsupported(self, system):
            return "two atoms are too few" if system.n_atoms == 2 else None

    with pytest.raises(UnsupportedSystemError, match="cannot serve diatomic: two atoms"):
        planned(tmp_path, run(), run("diatomic"), potential=Picky())
    namesake = dataclasses.replace(SHORT, name="triatomic")
    with pytest.raises(InputError, match="two systems have one name"):
        planned(tmp_path, run(), run("diatomic"), systems=(STRETCHED, namesake))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("few_checks")
def test_what_is_complete_is_not_run_again_and_measures_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = planned(tmp_path, run(), run("diatomic"))
    told: list[tuple[str, int, int]] = []
    first = execute(campaign, lambda *words: told.append(words))
    assert lengths(campaign) == {"production": [0.1, 0.1]}
    assert told[-1][1] == told[-1][2] > 0
    assert {label.partition(":")[0] for label, _, _ in told} == {"triatomic", "diatomic"}
    monkeypatch.setattr(campaigns, "simulate", forbidden)
    again = execute(planned(tmp_path, run(), run("diatomic"), resume=True))
    assert again.measurements == first.measurements
    written = json.loads((campaign.folder / "measurements.json").read_text())
    assert len(written["measurements"]) == len(first.measurements)


@pytest.mark.usefixtures("few_checks")
def test_every_declared_measurement_is_there_measured_or_with_its_reason(tmp_path: Path) -> None:
    """A static check of the one static system, a ladder for the one that has one."""
    measured = execute(planned(tmp_path, run(), run("diatomic"), LADDER.format(system="diatomic")))
    applies = {(row.where.system, row.name): row.value is not None for row in measured.measurements}
    for check, system in (
        (drift.CHECK, "triatomic"),
        (drift.CHECK, "diatomic"),
        (gradient.CHECK, "triatomic"),
        (timestep.CHECK, "diatomic"),
    ):
        assert any(applies[system, row.name] for row in check.declares), (check.name, system)
    for check, system in ((gradient.CHECK, "diatomic"), (timestep.CHECK, "triatomic")):
        rows = [
            row
            for row in measured.measurements
            if row.where.system == system and row.name in {d.name for d in check.declares}
        ]
        assert len(rows) == len(check.declares)
        assert {row.value for row in rows} == {None}
    expected = {(item.measurement, item.where.system) for item in measured.planned}
    assert ("gradient.error", "triatomic") in expected
    assert ("gradient.error", "diatomic") not in expected
    # A ladder is read as one: it is expected once, of the system and of no run.
    ladder = [item for item in measured.planned if item.measurement == "timestep.exponent"]
    assert [item.where.run for item in ladder if item.where.system == "diatomic"] == [None]
    per_run = [item for item in measured.planned if item.measurement == "nve.drift"]
    assert all(item.where.run for item in per_run)


@pytest.mark.usefixtures("few_checks")
def test_only_the_run_that_is_named_is_doubled_and_measured_anew(tmp_path: Path) -> None:
    campaign = planned(tmp_path, run(), run("diatomic"))
    measured = execute(campaign)
    name = campaign.spec(campaign.runs[0]).name
    extended = extend(campaign, measured, [name])
    assert lengths(campaign) == {"production": [0.2, 0.1]}
    rows = {(row.where.system, row.name): row for row in measured.measurements}
    for row in extended.measurements:
        old = rows[row.where.system, row.name]
        if row.where.system == "diatomic" or row.name.startswith("gradient."):
            assert row == old
    (new,) = [
        row
        for row in extended.measurements
        if (row.name, row.where.system) == ("nve.drift", "triatomic")
    ]
    assert new.where.run == RunRecord.open(campaign.run_folder(campaign.runs[0])).spec.name != name
    assert len(extended.measurements) == len(measured.measurements)
    extend(campaign, extended, [new.where.run])
    assert lengths(campaign) == {"production": [0.4, 0.1]}


@pytest.mark.usefixtures("few_checks")
def test_the_rungs_of_a_ladder_are_extended_together(tmp_path: Path) -> None:
    campaign = planned(tmp_path, run(length_ps=0.2), LADDER.format(system="triatomic"))
    measured = execute(campaign)
    (exponent,) = [m for m in measured.measurements if m.name == "timestep.exponent"]
    assert "-timestep-" in exponent.where.run or "0.2ps" in exponent.where.run
    name = next(campaign.spec(item).name for item in campaign.runs if item.purpose == "timestep")
    extend(campaign, measured, [name])
    assert lengths(campaign) == {"production": [0.2], "timestep": [0.1, 0.1]}


@pytest.mark.usefixtures("few_checks")
def test_an_extension_that_was_interrupted_goes_on_to_where_it_was_meant_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = planned(tmp_path, run())
    measured = execute(campaign)
    whole = campaigns.simulate

    def interrupted(spec, *arguments, progress, **options):
        def stop(done, total):
            raise KeyboardInterrupt

        return whole(spec, *arguments, progress=stop, **options)

    name = campaign.spec(campaign.runs[0]).name
    monkeypatch.setattr(campaigns, "simulate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extend(campaign, measured, [name])
    monkeypatch.setattr(campaigns, "simulate", whole)
    execute(planned(tmp_path, run(), resume=True))
    assert lengths(campaign) == {"production": [0.2]}


@pytest.mark.usefixtures("few_checks")
def test_a_failure_is_explained_in_the_run_that_is_named_and_in_no_other(tmp_path: Path) -> None:
    campaign = planned(
        tmp_path, run(), run(temperature_K=10.0), potential=SpringPotential(breaks_at=0.153)
    )
    execute(campaign)
    hot, cold = (campaign.spec(item).name for item in campaign.runs)
    (failure,) = campaigns.explain(campaign, [hot])
    assert (failure.system, failure.run, failure.kind) == ("triatomic", hot, "nan")
    assert (campaign.folder / failure.folder / "failure.json").is_file()
    assert campaigns.explain(campaign, [cold]) == ()
