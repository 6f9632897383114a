"""`junit.xml` is red in a CI server exactly when the exit code is not 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from omm_mlff.report import Judged
from omm_mlff.report.junit import FILE_NAME, write
from omm_mlff.schema import Where
from omm_mlff.verdict.judge import exit_code
from tests.judged_models import broken, count, judged, replaced, sampled, sound, unclear


def slow() -> Any:
    """Fails M6's step time, and no default criterion."""
    return replaced(sound(), sampled("cost.step_time", 14.0, 0.1, Where(system="water")))


def parsed(folder: Path, what: Judged) -> ElementTree.Element:
    path = folder / FILE_NAME
    write(what, path)
    return ElementTree.parse(path).getroot()


@pytest.mark.parametrize("policy", ["strict", "m6"])
@pytest.mark.parametrize("model", [sound, broken, unclear, slow])
def test_a_gate_is_red_exactly_when_the_exit_code_says_so(
    tmp_path: Path, model: Any, policy: str
) -> None:
    what = judged(model(), policy)
    root = parsed(tmp_path, what)
    red = int(root.get("failures", "")) + int(root.get("errors", ""))
    assert (red > 0) is (exit_code(what.verdict.name) != 0)


@pytest.mark.parametrize("model", [sound, broken, unclear])
def test_every_finding_is_one_case_and_the_counts_are_right(tmp_path: Path, model: Any) -> None:
    what = judged(model())
    root = parsed(tmp_path, what)
    assert [suite.get("name") for suite in root] == ["strict", "m6"]
    for suite in root:
        findings = what.verdicts[str(suite.get("name"))].findings
        cases = suite.findall("testcase")
        assert int(suite.get("tests", "")) == len(cases) == len(findings)
        for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped",) * 2):
            assert int(suite.get(attribute, "")) == len(suite.findall(f"testcase/{tag}"))
        names = [(case.get("classname"), case.get("name")) for case in cases]
        assert len(set(names)) == len(names)
    for attribute in ("tests", "failures", "errors"):
        total = sum(int(suite.get(attribute, "")) for suite in root)
        assert int(root.get(attribute, "")) == total


def test_each_status_has_its_own_element(tmp_path: Path) -> None:
    root = parsed(tmp_path, judged(unclear()))
    elements = {
        (case.get("classname"), case.get("name")): {child.tag for child in case}
        for case in root.iter("testcase")
    }
    run = "alanine-nve-300K-0.5fs-2ps-x8"
    assert elements["strict.alanine", f"nve.drift-limit [{run}]"] == {"error"}
    assert elements["strict.alanine", f"nve.drift-reject [{run}]"] == {"system-out"}
    assert elements["strict.alanine", f"nve.drift-info [{run}]"] == {"system-out"}
    assert elements["strict.methane", "gradient.error-reject [methane]"] == {"error"}
    assert elements["strict.model", "gradient.error-limit-float64"] == {"skipped"}
    root = parsed(tmp_path, judged(broken()))
    failure = root.find(".//failure[@message='0.31 eV/angstrom is above 0.15']")
    assert failure is not None
    assert failure.get("type") == "limit"


def test_characters_that_xml_forbids_are_replaced(tmp_path: Path) -> None:
    where = Where(system="water\x00", run="r\x1b[31m-1ps-x8")
    what = judged(replaced(sound(), count("stability.crashes", 1, where, "a\x07b & <c>")))
    root = parsed(tmp_path, what)
    messages = [failure.get("message") for failure in root.iter("failure")]
    assert "a?b & <c>" in messages
