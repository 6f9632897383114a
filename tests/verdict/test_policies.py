"""A policy is read strictly: whatever could not be judged as written is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from omm_mlff.errors import InputError, PolicyError, UnknownNameError
from omm_mlff.schema import Criterion, Declaration
from omm_mlff.verdict.policies import Policy, check_bounds, load_policy, policy_names
from tests.judged_models import DECLARATIONS, DEFAULTS

ROW = {
    "name": '"force"',
    "measurement": '"accuracy.force_rmse"',
    "high": "0.2",
    "unit": '"eV/angstrom"',
    "severity": '"limit"',
    "source": '"a paper"',
}


def write(folder: Path, *rows: dict[str, str], head: str = "") -> Path:
    path = folder / "mine.toml"
    text = head + "".join(
        "\n[[criterion]]\n" + "".join(f"{key} = {value}\n" for key, value in row.items())
        for row in rows
    )
    path.write_text(text)
    return path


def load(path: str | Path) -> Policy:
    return load_policy(path, DECLARATIONS, DEFAULTS)


def test_both_policies_ship() -> None:
    assert policy_names() == ["m6", "strict"]


def test_strict_is_the_default_criteria_of_the_checks() -> None:
    assert load("strict").criteria == DEFAULTS


def test_m6_holds_the_bounds_of_design_section_8() -> None:
    rows = {c.name: c for c in load("m6").criteria}
    bounds = {name: (c.measurement, c.low, c.high, c.unit, c.severity) for name, c in rows.items()}
    assert bounds == {
        "runs-complete": ("stability.crashes", None, 0.0, "1", "reject"),
        "complete-10ps": ("stability.crashes", None, 0.0, "1", "reject"),
        "temperature-series": ("stability.crashes", None, 0.0, "1", "reject"),
        "no-broken-bond": ("stability.broken_bonds", None, 0.0, "1", "reject"),
        "energy-change": ("nve.energy_change", None, 1.0, "%", "limit"),
        "force-rmse": ("accuracy.force_rmse", None, 0.2, "eV/angstrom", "limit"),
        "step-time": ("cost.step_time", None, 10.0, "ms", "limit"),
        "mean-temperature": ("nve.temperature_error", -10.0, 10.0, "%", "limit"),
    }
    assert rows["complete-10ps"].min_length_ps == 10.0
    assert rows["temperature-series"].temperatures_K == (100.0, 300.0, 500.0)
    assert rows["runs-complete"].min_systems == 3
    assert all(c.source.startswith("M6") for c in rows.values())


def test_own_rows_join_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, ROW, head="include_defaults = true\n")
    policy = load(path)
    assert policy.name == "mine"
    assert policy.criteria[:-1] == DEFAULTS
    assert policy.criteria[-1] == Criterion(
        "force", "accuracy.force_rmse", None, 0.2, "eV/angstrom", "limit", "a paper"
    )
    assert policy.declared["accuracy.force_rmse"].kind == "sampled"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measurement": '"accuracy.force_rms"'}, "did you mean accuracy.force_rmse"),
        ({"unit": '"kJ/mol/nm"'}, "is measured in 'eV/angstrom', the bound is in 'kJ/mol/nm'"),
        ({"severity": '"fatal"'}, "unknown severity 'fatal'; one of reject, limit, info"),
        ({"low": "0.3"}, "low = 0.3 lies above high = 0.2"),
        ({"hihg": "0.2"}, "unknown key 'hihg'"),
        ({"high": '"0.2"'}, "high must be a number"),
        ({"high": "nan"}, "high must be a number"),
        ({"high": "true"}, "high must be a number"),
        ({"high": None}, "neither low nor high"),
        ({"source": None}, "source must be given"),
        ({"systems": '"water"'}, "systems must be a list"),
        ({"temperatures_K": '["300"]'}, "temperatures_K must be a list"),
        ({"min_systems": "0"}, "min_systems"),
        (
            {"measurement": '"stability.crashes"', "unit": '"1"', "high": "2"},
            "a count, which fails at the first event",
        ),
        (
            {"measurement": '"nve.fluctuation"', "unit": '"meV/atom"'},
            "is for information only",
        ),
    ],
)
def test_a_row_that_cannot_be_judged_is_refused_by_name(
    tmp_path: Path, change: dict[str, str | None], message: str
) -> None:
    good = {**ROW, "name": '"good"'}
    bad = {key: value for key, value in {**ROW, **change}.items() if value is not None}
    path = write(tmp_path, good, bad)
    with pytest.raises(PolicyError) as error:
        load(path)
    assert message in str(error.value)
    assert f"policy {path}, criterion 2 (force)" in str(error.value)


def test_two_criteria_with_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"criterion 2 \(force\): another criterion has the same"):
        load(write(tmp_path, ROW, ROW))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("criterion = 3", "write criteria as"),
        ("title = 'empty'", "holds no criterion"),
        ("include_defaults = 1", "true or false"),
        ("criteria = []", "unknown key 'criteria'"),
        ("title = ", "is not a TOML file"),
        ("criterion = [3]", "wanted a table"),
    ],
)
def test_a_file_that_is_no_policy_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(PolicyError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


def test_unknown_names_and_missing_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean strict"):
        load("stric")
    with pytest.raises(InputError, match="no policy file at"):
        load(tmp_path / "absent.toml")


def test_two_checks_may_not_declare_one_measurement() -> None:
    twin = dataclasses.replace(DECLARATIONS[0], check="other")
    with pytest.raises(PolicyError, match=r"two checks declare accuracy\.force_rmse"):
        load_policy("strict", (*DECLARATIONS, twin), DEFAULTS)


KINDS = {
    "drift": Declaration("drift", "sampled", "meV", "", "c"),
    "r2": Declaration("r2", "sampled", "1", "", "c"),
    "temperature": Declaration("temperature", "sampled", "K", "", "c"),
    "exact": Declaration("exact", "deterministic", "1", "", "c"),
}


def pair(
    name: str,
    limit: tuple[float | None, float | None],
    reject: tuple[float | None, float | None],
    dtypes: tuple[str, ...] = (),
) -> list[Criterion]:
    unit = KINDS[name].unit
    return [
        Criterion("l", name, *limit, unit, "limit", "s"),
        Criterion("r", name, *reject, unit, "reject", "s", dtypes=dtypes),
    ]


@pytest.mark.parametrize(
    ("name", "limit", "reject", "nearest"),
    [
        ("drift", (-0.01, 0.01), (-0.1, 0.05), "at 0.1 or further"),
        ("drift", (-0.01, 0.01), (-0.05, 0.1), "at -0.1 or further"),
        ("drift", (None, 0.2), (None, 1.9), "at 2 or further"),
        ("r2", (0.99, None), (0.95, None), "at 0.9 or further"),
        ("temperature", (290.0, 310.0), (250.0, 400.0), "at 200 or further"),
        ("temperature", (200.0, None), (30.0, None), "at 20 or further"),
    ],
)
def test_a_reject_bound_near_its_limit_is_refused(
    name: str, limit: tuple[float, float], reject: tuple[float, float], nearest: str
) -> None:
    with pytest.raises(PolicyError, match=nearest):
        check_bounds(pair(name, limit, reject), KINDS)


@pytest.mark.parametrize(
    ("name", "limit", "reject"),
    [
        ("drift", (-0.01, 0.01), (-0.1, 0.1)),
        ("drift", (None, 0.2), (None, 2.0)),
        ("drift", (-0.01, None), (None, 0.02)),
        ("r2", (0.99, None), (0.9, None)),
        ("temperature", (290.0, 310.0), (200.0, 400.0)),
        ("exact", (None, 5e-4), (None, 2e-3)),
    ],
)
def test_a_reject_bound_ten_times_out_is_accepted(
    name: str, limit: tuple[float, float], reject: tuple[float, float]
) -> None:
    check_bounds(pair(name, limit, reject), KINDS)


def test_bounds_for_different_dtypes_are_not_compared() -> None:
    limit, reject = pair("drift", (None, 0.2), (None, 0.3), dtypes=("float64",))
    check_bounds([dataclasses.replace(limit, dtypes=("float32",)), reject], KINDS)
    with pytest.raises(PolicyError):
        check_bounds([limit, reject], KINDS)


def test_the_loader_names_the_file_whose_bounds_are_too_close(tmp_path: Path) -> None:
    near = {**ROW, "name": '"far"', "severity": '"reject"', "high": "0.3"}
    path = write(tmp_path, ROW, near)
    with pytest.raises(PolicyError, match=r"far rejects at high = 0\.3") as error:
        load(path)
    assert str(path) in str(error.value)
