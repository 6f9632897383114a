"""Registry: a check is one file, and no two may claim one measurement."""

from __future__ import annotations

import dataclasses
import pkgutil
import subprocess
import sys
import types

import pytest

import omm_mlff.checks as package
from omm_mlff.checks import drift, registry
from omm_mlff.checks.registry import all_checks, all_declarations, default_criteria
from omm_mlff.errors import InputError
from omm_mlff.verdict.policies import load_policy

NO_CHECKS = {"base", "frames", "registry"}


def test_every_file_is_a_check_or_is_named_here_as_none() -> None:
    files = {info.name for info in pkgutil.iter_modules(package.__path__)}
    assert {check.name for check in all_checks()} == files - NO_CHECKS


def test_a_new_file_is_found_without_an_edit_elsewhere(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "novelty.py").write_text(
        "import dataclasses\n"
        "from omm_mlff.checks.base import bounds\n"
        "from omm_mlff.checks.drift import CHECK as other\n"
        "from omm_mlff.schema import Declaration\n"
        "NEW = Declaration('novelty.size', 'sampled', 'nm', 'how new', 'novelty')\n"
        "CHECK = dataclasses.replace(other, name='novelty', declares=(NEW,),\n"
        "    criteria=bounds(NEW, 'this test', high=(1.0, 10.0)), use='finding things')\n"
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    registry._shipped.cache_clear()
    try:
        assert "novelty" in [check.name for check in all_checks()]
        (row,) = (row for row in all_declarations() if row.check == "novelty")
        assert (row.name, row.use) == ("novelty.size", "finding things")
        policy = load_policy("strict", all_declarations(), default_criteria())
        bounds = [row for row in policy.criteria if row.measurement == "novelty.size"]
        assert [(row.severity, row.high) for row in bounds] == [("limit", 1.0), ("reject", 10.0)]
    finally:
        registry._shipped.cache_clear()
        sys.modules.pop("omm_mlff.checks.novelty", None)


class Point:
    name = "mine"
    value = "mine:CHECK"

    def __init__(self, loaded) -> None:
        self.loaded = loaded

    def load(self):
        return self.loaded


def installed(monkeypatch: pytest.MonkeyPatch, loaded) -> None:
    def entry_points(*, group: str):
        return [Point(loaded)] if group == "omm_mlff.checks" else []

    fake = types.SimpleNamespace(entry_points=entry_points)
    monkeypatch.setattr(registry.importlib, "metadata", fake)


def test_an_installed_package_adds_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    row = dataclasses.replace(drift.DRIFT, name="mine.drift", check="mine")
    mine = dataclasses.replace(drift.CHECK, name="mine", declares=(row,), criteria=())
    installed(monkeypatch, mine)
    assert "mine" in [check.name for check in all_checks()]
    assert "mine.drift" in [declared.name for declared in all_declarations()]


def test_two_checks_of_one_measurement_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, dataclasses.replace(drift.CHECK, name="mine"))
    with pytest.raises(
        InputError, match=r"'nve\.drift' is declared by the checks 'drift' and 'mine'"
    ):
        all_checks()


def test_two_checks_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, drift.CHECK)
    with pytest.raises(InputError, match="two checks are named 'drift'"):
        all_checks()


def test_an_entry_point_that_is_no_check_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "drift")
    with pytest.raises(InputError, match=r"'mine' .* is a str, expected a Check"):
        all_checks()


def test_every_check_is_documented_and_its_criteria_bound_what_it_declares() -> None:
    for check in all_checks():
        assert check.question.endswith("?")
        assert check.formula
        assert check.source
        declared = {row.name: row for row in check.declares}
        assert len(declared) == len(check.declares)
        for row in check.declares:
            assert row.check == check.name
            assert row.meaning
        for criterion in check.criteria:
            assert criterion.unit == declared[criterion.measurement].unit
            assert criterion.source
            assert (criterion.low, criterion.high) != (None, None)
            if criterion.severity != "info":
                assert declared[criterion.measurement].kind != "info"


def test_criteria_have_names_of_their_own() -> None:
    names = [row.name for row in default_criteria()]
    assert len(set(names)) == len(names)


def test_every_bound_by_dtype_exists_for_both() -> None:
    rows = [row for row in default_criteria() if row.dtypes]
    for dtype in ("float32", "float64"):
        assert {(r.measurement, r.severity) for r in rows if r.dtypes == (dtype,)} == {
            (r.measurement, r.severity) for r in rows
        }


@pytest.mark.parametrize("policy", ["strict", "m6"])
def test_shipped_policies_accept_what_the_checks_declare(policy: str) -> None:
    """Names, units, and the distance between limit and reject are checked there."""
    loaded = load_policy(policy, all_declarations(), default_criteria())
    if policy == "strict":
        assert {row.name for row in default_criteria()} <= {row.name for row in loaded.criteria}


def test_checks_are_importable_without_torch_and_openmm() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'openmm', 'mdtraj', 'rdkit'): sys.modules[name] = None\n"
        "from omm_mlff.checks.registry import all_checks\n"
        "print(len(all_checks()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(all_checks())
