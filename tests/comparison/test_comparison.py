"""Finished validations side by side: what is read, what follows, what is said of it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from finished_models import (
    ALANINE,
    WATER,
    at,
    made_up,
    original,
    tiny,
    ultra_tiny,
    write_run,
    write_validation,
)
from judged_models import count, judged, replaced, sampled

from omm_mlff.comparison import compare, read_finished, read_forecast, write_comparison
from omm_mlff.comparison.advice import advise, failures
from omm_mlff.comparison.compare import Comparison, folder_name
from omm_mlff.comparison.forecast import outcome
from omm_mlff.comparison.picture import COLOURS, draw
from omm_mlff.comparison.study import as_markdown, commands, run_in_words, shown
from omm_mlff.errors import InputError, MissingPackageError, OutputExistsError, StorageError
from omm_mlff.record.status import BatchStatus
from omm_mlff.schema import Declaration, Measurement, RunSpec, VerdictName, Where

FORECAST = """
title = "A study"
repeat = "scripts/study.sh"
policy = "m6"
source = "somebody, before"

[verdicts]
original = "APPROVED"
tiny = "NOT RECOMMENDED"
ultra-tiny = "REJECTED"
"huge" = "APPROVED"
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("validations")
    files = {"original": original(), "tiny": tiny(), "ultra-tiny": ultra_tiny()}
    walls = {"original": 60.0, "tiny": 30.0, "ultra-tiny": 12.0}
    return {
        name: write_validation(root / name, file, wall_s=walls[name])
        for name, file in files.items()
    }


@pytest.fixture(scope="module")
def forecast_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forecast") / "forecast.toml"
    path.write_text(FORECAST)
    return path


@pytest.fixture(scope="module")
def compared(folders: dict[str, Path], forecast_file: Path) -> Comparison:
    return compare(list(folders.values()), read_forecast(forecast_file))


def only(compared: Comparison, quantity: str, model: str, system: str):
    (row,) = [r for r in compared.select(quantity, model) if r.system == system]
    return row


# --- reading


def test_a_finished_validation_is_read_as_it_was_judged(folders: dict[str, Path]) -> None:
    finished = read_finished(folders["ultra-tiny"])
    truth = judged(ultra_tiny(), "m6")
    assert finished.policy == "m6"
    assert {k: v.name for k, v in finished.verdicts.items()} == {
        "m6": "REJECTED",
        "strict": "REJECTED",
    }
    for name, verdict in truth.verdicts.items():
        # repr, since NaN is not equal to itself
        assert list(map(repr, finished.verdicts[name].findings)) == list(
            map(repr, verdict.findings)
        )
    drift = [f for f in finished.verdicts["strict"].findings if f.measurement == "nve.drift"]
    assert any(f.value is not None and math.isnan(f.value) for f in drift)


def test_a_batch_that_died_early_counts_no_steps_that_it_did_not_take(tmp_path: Path) -> None:
    folder = write_validation(tmp_path / "v", original(), runs=False)
    spec = RunSpec("m", "water", 5.0, 300.0, 16, 0)
    batches = {
        0: BatchStatus((0, 7), 4.0, 1000, 1001),
        1: BatchStatus((8, 15), 1.0, 1000, 21),
    }
    write_run(folder / "runs", spec.to_json(), batches=batches)
    (row,) = compare([folder]).select("cost.replica_steps_per_s")
    assert row.value == pytest.approx((8 * 1000 + 8 * 21) / 5.0, rel=1e-15)
    assert (row.unit, row.system, row.temperature_K) == ("1/s", "water", 300.0)


def test_a_run_that_was_extended_stands_beside_the_others(tmp_path: Path) -> None:
    file = original()
    longer = RunSpec("m", "water", 20.0, 300.0, 16, 0).name
    renamed = tuple(
        dataclasses.replace(m, where=dataclasses.replace(m.where, run=longer, length_ps=20.0))
        if m.where.run == WATER
        else m
        for m in file.measurements
    )
    runs = {longer if name == WATER else name: spec for name, spec in file.runs.items()}
    file = dataclasses.replace(file, measurements=renamed, runs=runs)
    folder = write_validation(tmp_path / "long", file)
    spec = RunSpec("m", "water", 20.0, 300.0, 16, 0)
    write_run(folder / "runs", spec.to_json(), planned=WATER)
    short = write_validation(tmp_path / "short", made_up("tiny", 5))
    both = compare([folder, short])
    rows = [r for r in both.select("nve.drift") if r.planned == WATER]
    assert {(r.model, r.run) for r in rows} == {("original", longer), ("tiny", WATER)}
    assert "water 300 K, 5 ps x 16 (extended to 20 ps)" in as_markdown(both, None, [])


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("verdict.json", None, "no verdict at"),
        ("verdict.json", "{", "is no verdict of schema 1"),
        ("verdict.json", "[]", "is no verdict of schema 1"),
        ("verdict.json", '{"schema": 2}', "schema 2, wanted 1"),
        ("measurements.json", None, "no measurements at"),
        ("measurements.json", '{"schema": 1}', "is no measurement file"),
        ("findings.csv", None, "lacks findings.csv"),
        (f"runs/{WATER}/status.json", '{"state": "running"}', "is no run directory"),
        (f"runs/{WATER}/spec.json", "{", "is no run directory"),
    ],
)
def test_a_bad_folder_is_an_input_error_of_one_line(
    tmp_path: Path, name: str, text: str | None, complaint: str
) -> None:
    folder = write_validation(tmp_path / "v", original())
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    with pytest.raises(InputError, match=complaint) as error:
        compare([folder])
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


def test_files_of_two_validations_in_one_folder_are_noticed(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    folder = write_validation(tmp_path / "v", original())
    tiny().write(folder / "measurements.json")
    with pytest.raises(InputError, match="of two models"):
        compare([folder])


def test_nothing_a_missing_folder_and_one_twice_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="nothing to compare"):
        compare([])
    with pytest.raises(InputError, match="no folder"):
        compare([folders["tiny"].parent / "absent"])
    with pytest.raises(InputError, match="given twice"):
        compare([folders["tiny"], folders["tiny"] / ".." / "tiny"])


def test_without_its_run_directories_a_validation_has_no_throughput(tmp_path: Path) -> None:
    bare = compare([write_validation(tmp_path / "v", original(), runs=False)])
    assert bare.select("cost.replica_steps_per_s") == []
    assert bare.select("cost.ns_per_day") == []
    assert only(bare, "cost.step_time", "original", "water").value == 6.0


# --- what follows from what was measured


def test_a_step_of_half_a_femtosecond_in_two_ms_makes_21_6_ns_a_day(tmp_path: Path) -> None:
    step = Measurement(
        "cost.step_time", "sampled", 2.0, "ms", 1.0, 4.0, 20, Where(system="water"), 0.1, 19.0
    )
    row = only(
        compare([write_validation(tmp_path / "v", made_up("m", 1, step))]),
        "cost.ns_per_day",
        "m",
        "water",
    )
    # 86400 s / 2e-3 s = 4.32e7 steps of 0.5e-6 ns
    assert row.value == pytest.approx(21.6, rel=1e-14)
    assert (row.ci_low, row.ci_high) == pytest.approx((10.8, 43.2), rel=1e-14)
    assert row.unit == "ns/day"


def test_times_of_different_validations_are_compared_nowhere(tmp_path: Path) -> None:
    """One model twice, while something else ran: nothing says that it is faster than itself."""

    def timed(name: str, value: float) -> Path:
        where = Where(system="water")
        step = Measurement("cost.step_time", "sampled", value, "ms", 1.0, 9.0, 20, where, 1.0, 9.0)
        return write_validation(tmp_path / name, made_up("m", 9, step), wall_s=value)

    both = compare([timed("quiet", 2.0), timed("busy", 5.5)])
    assert only(both, "cost.step_time", "busy", "water").value == 5.5
    assert not any("speed" in row.quantity for row in both.rows)
    study = as_markdown(both, None, [])
    assert "speed-up" not in study
    assert "Timings of different validations are not comparable" in study


def test_models_are_timed_side_by_side_by_a_command_that_is_said(compared: Comparison) -> None:
    command = "omm-mlff bench --model original --against tiny --against ultra-tiny"
    assert f"`{command}`" in as_markdown(compared, None, [])


def test_the_table_has_every_measurement_of_every_model(compared: Comparison) -> None:
    table = compared.table
    assert list(table.columns[:2]) == ["model", "quantity"]
    for label, file in (("original", original()), ("tiny", tiny()), ("ultra-tiny", ultra_tiny())):
        mine = table[table["model"] == label]
        for item in file.measurements:
            rows = mine[mine["quantity"] == item.name]
            rows = rows[rows["system"] == item.where.system]
            if item.where.run:
                rows = rows[rows["run"] == item.where.run]
            assert len(rows) == 1, item
            assert rows.iloc[0]["value"] == pytest.approx(item.value, nan_ok=True, rel=1e-15)
    parameters = table[table["quantity"] == "model.n_parameters"].set_index("model")["value"]
    assert parameters.to_dict() == {"original": 428545, "tiny": 76993, "ultra-tiny": 20953}


# --- labels and differences


def test_a_model_that_appears_twice_is_called_as_its_folder(tmp_path: Path) -> None:
    paths = [tmp_path / "first", tmp_path / "second", tmp_path / "third"]
    files = [tiny(), tiny(), original()]
    for path, file in zip(paths, files, strict=True):
        write_validation(path, file, runs=False)
    assert list(compare(paths).models) == ["first", "second", "original"]


def test_folders_of_one_name_are_told_apart_by_what_they_lie_in(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "out", tmp_path / "b" / "out", tmp_path / "tiny"]
    for path in paths[:2]:
        write_validation(path, tiny(), runs=False)
    card = dataclasses.replace(tiny().card, name="a/out")
    write_validation(paths[2], dataclasses.replace(tiny(), card=card))
    labels = list(compare(paths[:2]).models)
    assert labels == ["a/out", "b/out"]
    assert [folder_name(label) for label in labels] == ["a_out", "b_out"]
    labels = list(compare(paths).models)
    assert len({folder_name(label) for label in labels}) == 3


def test_alike_validations_differ_in_nothing(compared: Comparison) -> None:
    assert compared.differences == ()
    assert "The validations differ in the model only." in as_markdown(compared, None, [])


def test_of_two_lists_only_what_is_not_in_both_is_said() -> None:
    from omm_mlff.comparison.compare import _without_common

    said = _without_common({"a": "water, methane", "b": "water", "c": "water, ethane"})
    assert said == {"a": "methane", "b": "nothing more", "c": "ethane"}
    assert _without_common({"a": "CUDA", "b": "CPU"}) == {"a": "CUDA", "b": "CPU"}


def test_what_differs_beside_the_model_is_said(tmp_path: Path, folders: dict[str, Path]) -> None:
    file = tiny()
    other = dataclasses.replace(
        file,
        scope=dataclasses.replace(file.scope, profile="mine"),
        provenance=dataclasses.replace(file.provenance, seed=2, platform="CUDA"),
    )
    folder = write_validation(tmp_path / "v", other, policy="strict", runs=False)
    both = compare([folders["original"], folder])
    found = {item.what: dict(item.values) for item in both.differences}
    assert found["profile"] == {"original": "standard", "tiny": "mine"}
    assert found["policy"] == {"original": "m6", "tiny": "strict"}
    assert found["platform"] == {"original": "Reference", "tiny": "CUDA"}
    assert found["seed"] == {"original": "1", "tiny": "2"}
    assert set(found) == {"profile", "policy", "platform", "seed", "torch threads"}
    study = as_markdown(both, None, [])
    assert "These validations differ in more than the model" in study
    assert "| platform | Reference | CUDA |" in study


# --- what is said of a model


def test_every_criterion_of_every_check_has_a_name_and_a_use() -> None:
    from omm_mlff.checks.registry import all_checks
    from omm_mlff.verdict.policies import load_policy

    checks = all_checks()
    declared = [row for check in checks for row in check.declares]
    defaults = [row for check in checks for row in check.criteria]
    judged_by = {
        criterion.measurement
        for name in ("strict", "m6")
        for criterion in load_policy(name, declared, defaults).criteria
        if criterion.severity != "info"
    }
    assert [row.name for row in declared if row.name in judged_by and not row.failure] == []
    assert [row.name for row in declared if row.name in judged_by and not row.use] == []


def test_a_failure_is_told_once_for_both_policies_the_gravest_first(compared: Comparison) -> None:
    found = failures(compared.models["ultra-tiny"])
    assert [item.measurement for item in found] == [
        "stability.broken_bonds",
        "nve.drift",
        "accuracy.force_rmse",
    ]
    assert found[0].criteria == (
        "m6: no-broken-bond (reject)",
        "strict: stability.broken_bonds-reject (reject)",
    )
    assert [(f.system, f.where.replica) for f in found[0].findings] == [("water", 3)]
    assert failures(compared.models["original"]) == ()


def test_what_a_model_is_good_for_follows_from_its_findings(compared: Comparison) -> None:
    advice = advise(compared.models["ultra-tiny"])
    bad, limited, good, unknown = (
        "\n".join(rows) for rows in (advice.bad, advice.limited, advice.good, advice.open)
    )
    assert "dynamics in which molecules stay whole: water 300 K (broken bonds 2" in bad
    assert "constant-energy dynamics: water 300 K (drift nan" in bad
    assert "the reference method's forces: alanine (force rmse 0.31 eV/angstrom" in limited
    assert "the reference method's forces: water, methane" in good
    whole = next(row for row in advice.good if row.startswith("dynamics in which"))
    assert whole.endswith(": methane 100, 300 and 500 K, alanine 300 K")
    assert "constant-energy dynamics: alanine 300 K (drift 0.009" in unknown
    assert "ps more in each replica would decide" in unknown
    assert advice.summary[0].startswith("REJECTED under m6 and strict: not suitable")
    assert "water, methane and alanine, 100, 300 and 500 K, runs of up to 10 ps" in advice.evidence


def test_nothing_is_good_that_nobody_measured(tmp_path: Path) -> None:
    file = original()
    kept = tuple(m for m in file.measurements if not m.name.startswith("stability."))
    folder = write_validation(tmp_path / "v", dataclasses.replace(file, measurements=kept))
    advice = advise(read_finished(folder))
    assert not any("stay whole" in row for row in advice.good)
    assert any("stay whole" in row for row in advice.open)
    # made-up models are measured neither across the cutoff nor in another orientation
    assert not any("cutoff" in row or "turn" in row for row in advice.good)


def test_a_model_within_m6_and_outside_strict_is_called_limited(compared: Comparison) -> None:
    advice = advise(compared.models["tiny"])
    assert [line.split(":")[0] for line in advice.summary] == [
        "APPROVED under m6",
        "NOT RECOMMENDED under strict",
    ]
    assert len(advice.limited) == 1
    assert "alanine (force rmse 0.17 eV/angstrom, strict wants <= 0.15" in advice.limited[0]
    assert advice.bad == ()


def test_a_check_of_somebody_else_is_told_by_its_meaning(tmp_path: Path) -> None:
    file = tiny()
    odd = Declaration("moon.phase", "sampled", "eV/angstrom", "phase of the moon", "moon")
    bound = dataclasses.replace(
        file.default_criteria[0], name="moon.phase-limit", measurement="moon.phase", high=0.1
    )
    where = Where(system="water")
    wrong = Measurement("moon.phase", "sampled", 0.5, odd.unit, 0.49, 0.51, 9, where, 0.001, 8.0)
    file = dataclasses.replace(
        replaced(file, wrong),
        declarations=(*file.declarations, odd),
        default_criteria=(*file.default_criteria, bound),
    )
    finished = read_finished(write_validation(tmp_path / "v", file, runs=False))
    assert "moon.phase (phase of the moon)" in [item.name for item in failures(finished)]
    assert any(row.startswith("moon.phase (phase") for row in advise(finished).limited)


# --- forecasts


@pytest.mark.parametrize(
    ("forecast", "measured", "words"),
    [
        ("APPROVED", "APPROVED", "as forecast"),
        ("APPROVED", "REJECTED", "worse than forecast"),
        ("NOT RECOMMENDED", "APPROVED", "better than forecast"),
        ("NOT RECOMMENDED", "REJECTED", "worse than forecast"),
        ("REJECTED", "NOT RECOMMENDED", "better than forecast"),
        ("REJECTED", "UNDECIDED", "open"),
        ("REJECTED", None, "not measured"),
    ],
)
def test_a_forecast_is_met_or_missed(
    forecast: VerdictName, measured: VerdictName | None, words: str
) -> None:
    assert outcome(forecast, measured) == words


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "no forecast at"),
        ("policy = ", "cannot be read"),
        ("[verdicts]\ntiny = 'REJECTED'", "policy at least"),
        ("policy = 'm6'", r"no \[verdicts\]"),
        ("policy = 'm6'\n[verdicts]\ntiny = 'rejected'", "tiny = 'rejected'; wanted one of"),
        ("policy = 'm6'\nmodel = 1\n[verdicts]\ntiny = 'REJECTED'", "unknown key model"),
    ],
)
def test_a_forecast_that_cannot_be_meant_is_refused(
    tmp_path: Path, text: str | None, complaint: str
) -> None:
    path = tmp_path / "forecast.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=complaint):
        read_forecast(path)


def test_a_forecast_of_a_policy_that_nobody_used_is_refused(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    path = tmp_path / "forecast.toml"
    path.write_text(FORECAST.replace('"m6"', '"lax"'))
    with pytest.raises(InputError, match="'lax', by which no model was judged"):
        compare([folders["tiny"]], read_forecast(path))


def test_the_committed_forecast_is_the_designs() -> None:
    root = Path(__file__).resolve().parents[2]
    forecast = read_forecast(root / "analysis" / "m6" / "forecast.toml")
    assert forecast.policy == "m6"
    assert dict(forecast.verdicts) == {
        "original": "APPROVED",
        "tiny": "NOT RECOMMENDED",
        "ultra-tiny": "REJECTED",
    }
    assert (root / forecast.repeat).is_file()


# --- the study


@pytest.fixture(scope="module")
def written(
    compared: Comparison, forecast_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("study") / "m6"
    write_comparison(compared, out, forecast_file=forecast_file)
    return out


def test_the_study_holds_table_data_page_picture_and_every_verdict(
    written: Path, folders: dict[str, Path]
) -> None:
    files = {str(path.relative_to(written)) for path in written.rglob("*") if path.is_file()}
    verdicts = {f"{m}/{name}" for m in folders for name in ("verdict.json", "findings.csv")}
    own = {"README.md", "comparison.csv", "comparison.json", "comparison.png"}
    assert files == own | verdicts
    for name in verdicts:
        model, file = name.split("/")
        assert (written / name).read_bytes() == (folders[model] / file).read_bytes()


def test_the_page_links_to_what_is_there(written: Path) -> None:
    text = (written / "README.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    files = [link for link in links if not link.startswith("#")]
    assert len(files) == 7
    assert all((written / link).is_file() for link in files)
    headings = {"#" + line[3:].lower() for line in text.splitlines() if line.startswith("## ")}
    assert {link for link in links if link.startswith("#")} <= headings


def test_the_page_says_numbers_with_their_intervals(written: Path) -> None:
    text = (written / "README.md").read_text()
    assert text.startswith("# A study\n")
    # 0.007 times the 0.99167 quantile of Student's t with 7 degrees of freedom, 3.128
    assert "| alanine | ultra-tiny | 0.31 ± 0.022 |" in text
    assert "| water 300 K, 5 ps x 16 | ultra-tiny | 0 in 16 ps, <= 4.1 | 2 in 16 ps" in text
    assert "| water | ultra-tiny | 1.5 ± 0.063 | 28.8 " in text
    assert "| water 300 K, 5 ps x 16 | original | 2667 |" in text  # 16 x 10,000 / 60 s


def test_every_table_of_the_page_keeps_its_columns(written: Path) -> None:
    width = 0
    rows = [line for line in (written / "README.md").read_text().splitlines() if line[:1] == "|"]
    assert len(rows) > 50
    for row in rows:
        cells = row.replace("\\|", "").count("|")
        if set(row) == set("| -"):
            assert cells == width
        if width and set(row) != set("| -"):
            assert cells == width or "model" in row
        width = cells


def test_the_page_sets_the_forecast_against_the_measured(written: Path) -> None:
    text = (written / "README.md").read_text()
    assert "| tiny | NOT RECOMMENDED | APPROVED | better than forecast | All 8 criteria" in text
    assert "| ultra-tiny | REJECTED | REJECTED | as forecast | no-broken-bond fails" in text
    assert "| huge | APPROVED | - | not measured |" in text


def test_the_page_names_failures_plainly_with_cause_and_place(written: Path) -> None:
    text = (written / "README.md").read_text()
    section = text.split("\n## ultra-tiny\n")[1].split("\n## ")[0]
    bullet = next(line for line in section.splitlines() if line.startswith("- Bonds break"))
    for part in ("for water at 300 K", "bond O0-H1 at 1.53", "replica 3, frame 531, atoms 0-1"):
        assert part in bullet
    assert "What held, though it is rejected:" in section
    assert "Good for:" in text.split("\n## tiny\n")[1].split("\n## ")[0]


def test_the_page_says_how_to_repeat_it_on_any_machine(
    compared: Comparison, tmp_path: Path, written: Path
) -> None:
    lines = commands(compared, "analysis/m6", "analysis/m6/forecast.toml")
    assert lines[1] == (
        "omm-mlff validate --model tiny --profile standard --policy m6 --out runs/tiny"
    )
    assert lines[-1] == (
        "omm-mlff compare runs/original runs/tiny runs/ultra-tiny --out analysis/m6 "
        "--forecast analysis/m6/forecast.toml"
    )
    for name in ("README.md", "comparison.json", "comparison.csv"):
        assert str(written.parent.parent) not in (written / name).read_text()


def test_the_data_file_is_plain_json_with_all_that_the_page_says(
    written: Path, compared: Comparison
) -> None:
    data = json.loads((written / "comparison.json").read_text(), parse_constant=pytest.fail)
    assert data["schema"] == 1
    assert len(data["rows"]) == len(compared.rows)
    assert [m["label"] for m in data["models"]] == ["original", "tiny", "ultra-tiny"]
    assert [m["outcome"] for m in data["models"]] == [
        "as forecast",
        "better than forecast",
        "as forecast",
    ]
    worst = data["models"][2]
    assert worst["failures"][0]["measurement"] == "stability.broken_bonds"
    assert worst["recommendation"]["bad"]
    table = pd.read_csv(written / "comparison.csv")
    assert len(table) == len(compared.rows)
    times = table[(table["quantity"] == "cost.step_time") & (table["model"] == "ultra-tiny")]
    assert times["value"].tolist() == pytest.approx([1.5, 1.625, 2.25])


def test_a_second_study_leaves_nothing_of_the_first(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "study"
    write_comparison(compare([folders["original"], folders["ultra-tiny"]]), out, picture=False)
    (out / "forecast.toml").write_text("mine")
    (out / "original" / "notes").write_text("mine")
    write_comparison(compare([folders["tiny"]]), out, picture=False)
    left = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    study = {"README.md", "comparison.csv", "comparison.json"}
    copies = {"tiny/verdict.json", "tiny/findings.csv"}
    assert left == study | copies | {"forecast.toml", "original/notes"}
    assert not (out / "ultra-tiny").exists()


def test_a_study_among_its_validations_leaves_them_alone(tmp_path: Path) -> None:
    out = tmp_path / "all"
    for name, file in {"original": original(), "tiny": tiny()}.items():
        write_validation(out / name, file)
    write_comparison(compare([out / "original", out / "tiny"]), out, picture=False)
    write_comparison(compare([out / "tiny"]), out, picture=False)
    assert (out / "original" / "verdict.json").exists()
    assert read_finished(out / "original").model == "original"


@pytest.mark.parametrize(
    ("planned", "words"),
    [
        ("alanine-nve-300K-0.5fs-10ps-x4", "alanine 300 K, 10 ps x 4"),
        ("water-survival-nve-700K-0.5fs-2ps-x8", "water 700 K, 2 ps x 8, survival"),
        ("something", "something"),
    ],
)
def test_a_run_is_named_for_a_person(compared: Comparison, planned: str, words: str) -> None:
    assert run_in_words(compared, planned) == words


def test_values_are_shown_as_they_are_known(compared: Comparison) -> None:
    row = only(compared, "accuracy.force_rmse", "original", "water")
    assert shown(row) == "0.071 ± 0.0053"
    assert shown(dataclasses.replace(row, ci_high=0.09)) == "0.071 [0.0657, 0.09]"
    assert shown(dataclasses.replace(row, ci_low=-math.inf, ci_high=math.inf)) == "0.071"
    assert shown(dataclasses.replace(row, value=None)) == "-"
    assert shown(None) == "-"
    (broken,) = [
        r for r in compared.select("stability.broken_bonds", "ultra-tiny") if r.planned == WATER
    ]
    assert shown(broken) == "2 in 16 ps, <= 4.1"


# --- the folder that is written to


def test_a_study_is_replaced_by_its_own_next_version(
    compared: Comparison, folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "forecast.toml").write_text(FORECAST)
    write_comparison(compared, tmp_path)
    first = (tmp_path / "comparison.png").read_bytes()
    write_comparison(compared, tmp_path)
    assert (tmp_path / "comparison.png").read_bytes() == first
    write_comparison(compare([folders["tiny"]]), tmp_path, picture=False)
    assert "NOT RECOMMENDED" in (tmp_path / "README.md").read_text()
    assert "comparison.png" not in (tmp_path / "README.md").read_text()
    assert not (tmp_path / "comparison.png").exists()
    assert (tmp_path / "forecast.toml").read_text() == FORECAST


def test_what_is_not_ours_is_never_replaced(folders: dict[str, Path], tmp_path: Path) -> None:
    one = compare([folders["tiny"]])
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(OutputExistsError, match="that no comparison wrote"):
        write_comparison(one, tmp_path, picture=False)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    other = write_validation(tmp_path / "x" / "tiny", original(), runs=False)
    with pytest.raises(OutputExistsError, match="another validation"):
        write_comparison(one, tmp_path / "x", picture=False)
    with pytest.raises(OutputExistsError, match="holds a validation"):
        write_comparison(one, other, picture=False)
    with pytest.raises(OutputExistsError, match="is a file"):
        write_comparison(one, tmp_path / "README.md", picture=False)


def test_a_study_may_lie_around_its_validations(tmp_path: Path) -> None:
    folder = write_validation(tmp_path / "tiny", tiny(), runs=False)
    before = (folder / "verdict.json").read_bytes()
    files = write_comparison(compare([folder]), tmp_path, picture=False)
    assert (folder / "verdict.json").read_bytes() == before
    assert all(path.parent == tmp_path for path in files)


def test_without_matplotlib_nothing_is_written_but_the_command_that_brings_it(
    compared: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=r"omm-mlff\[report\].*--no-picture"):
        write_comparison(compared, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert write_comparison(compared, tmp_path / "out", picture=False)


def test_a_full_disk_is_a_failure_of_ours(
    compared: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(StorageError, match="the disk is full") as error:
        write_comparison(compared, tmp_path / "out", picture=False)
    assert error.value.exit_code == 4


# --- the picture


def test_the_picture_has_units_and_tells_models_apart(compared: Comparison) -> None:
    figure = draw(compared)
    labels = {(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes}
    assert ("time a step, one replica, of each validation (ms)", "force RMSE (eV/Å)") in labels
    assert any(y == "drift (meV/atom/ps)" for _, y in labels)
    assert any("(K)" in x and "(%)" in y for x, y in labels)
    assert len(set(COLOURS)) == len(COLOURS)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "ultra-tiny: REJECTED (m6)" in texts
    assert {"water", "methane", "alanine"} <= set(texts)


def test_the_picture_shows_every_drift_with_its_interval(compared: Comparison) -> None:
    (axes,) = [a for a in draw(compared).axes if a.get_ylabel().startswith("drift")]
    drifts = [r for r in compared.select("nve.drift") if math.isfinite(r.value or 0.0)]
    assert len(axes.containers) == len(drifts) == 20
    spans = set()
    for container in axes.containers:
        (bars,) = container.lines[2]
        (segment,) = bars.get_segments()
        spans.add((round(segment[0][1], 9), round(segment[1][1], 9)))
    assert spans == {(round(r.ci_low or 0, 9), round(r.ci_high or 0, 9)) for r in drifts}
    assert [t.get_text() for t in axes.texts].count("no value") == 1
    low, high = axes.get_ylim()
    assert all(low < r.ci_low < r.ci_high < high for r in drifts if r.ci_low and r.ci_high)


def test_points_of_the_picture_do_not_hide_one_another(compared: Comparison) -> None:
    (axes,) = [a for a in draw(compared).axes if "temperature" in a.get_ylabel()]
    xs = [x for container in axes.containers for x in container.lines[0].get_xdata()]
    assert len(xs) == len(compared.select("nve.temperature_error")) == 21
    gaps = [b - a for a, b in itertools.pairwise(sorted(xs))]
    assert min(gaps) > 5.0  # K, of an axis 580 K long
    nearest = [min((100.0, 300.0, 500.0), key=lambda t: abs(t - x)) for x in xs]
    assert [nearest.count(t) for t in (100.0, 300.0, 500.0)] == [3, 15, 3]


def test_the_picture_of_next_to_nothing_is_drawn(tmp_path: Path) -> None:
    file = made_up("m", 1)
    file = dataclasses.replace(
        file, measurements=(count("stability.crashes", 1, at(WATER), "it stopped"),), planned=()
    )
    out = tmp_path / "out"
    write_comparison(compare([write_validation(tmp_path / "v", file, runs=False)]), out)
    assert (out / "comparison.png").stat().st_size > 1000


def test_an_enormous_drift_stays_in_the_picture(tmp_path: Path) -> None:
    file = made_up("m", 1, sampled("nve.drift", -3e4, 10.0, at(ALANINE)))
    one = compare([write_validation(tmp_path / "v", file, runs=False)])
    (axes,) = [a for a in draw(one).axes if a.get_ylabel().startswith("drift")]
    assert axes.get_ylim()[0] < -3e4


# --- real ones


PROFILE = """
title = "a short look at water"
static_systems = ["water"]

[[run]]
system = "water"
length_ps = 0.1
n_replicas = 4
temperature_K = 300
"""


def test_two_real_validations_are_compared(tmp_path: Path) -> None:
    """Springs that conserve energy, beside springs whose forces are 2% off."""
    from springs import SpringPotential

    from omm_mlff import validate

    (tmp_path / "short.toml").write_text(PROFILE)
    results = {
        name: validate(
            SpringPotential(force_scale=scale),
            profile=tmp_path / "short.toml",
            policy="m6",
            out=tmp_path / name,
        )
        for name, scale in (("sound", 1.0), ("scaled", 1.02))
    }
    both = compare([result.folder for result in results.values()])
    assert list(both.models) == ["sound", "scaled"]
    # One may have been extended where the other was decided.
    assert {item.what for item in both.differences} <= {"runs"}
    for name, result in results.items():
        for item in result.measured.measurements:
            if item.name == "nve.drift":
                (row,) = both.select("nve.drift", name)
                assert (row.value, row.ci_low) == (item.value, item.ci_low)
        (run,) = both.models[name].runs
        (speed,) = both.select("cost.replica_steps_per_s", name)
        assert speed.value == pytest.approx(4 * run.spec.n_steps / run.wall_s)
        assert run.planned == "water-nve-300K-0.5fs-0.1ps-x4"
        assert run.torch_threads == 1
        assert only(both, "cost.ns_per_day", name, "water").value > 0.0
    broken = {name: {f.measurement for f in failures(both.models[name])} for name in results}
    assert (
        broken["scaled"] - broken["sound"]
        == {"gradient.error", "gradient.scale"} & (broken["scaled"])
    )
    assert "gradient.error" in broken["scaled"]
    files = write_comparison(both, tmp_path / "study")
    assert len(files) == 8
    study = (tmp_path / "study" / "README.md").read_text()
    assert "Forces are not the gradient of the energy (`gradient.error`" in study
