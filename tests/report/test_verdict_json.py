"""`verdict.json` is what DESIGN section 4 says, key by key."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from omm_mlff.report import Judged
from omm_mlff.report.verdict_json import FILE_NAME, write
from tests.judged_models import CARD, broken, judged, sound, unclear

VERDICTS = {"APPROVED", "NOT RECOMMENDED", "REJECTED", "UNDECIDED"}
STATUSES = {"pass", "fail", "undecided", "not-measured", "not-applicable"}
TEXT = (str,)
MAYBE_TEXT = (str, type(None))
NUMBER = (int, float, type(None))
FINDING = {
    "policy": TEXT,
    "criterion": TEXT,
    "system": MAYBE_TEXT,
    "run": MAYBE_TEXT,
    "temperature_K": NUMBER,
    "status": TEXT,
    "kind": MAYBE_TEXT,
    "value": (*NUMBER, str),
    "unit": TEXT,
    "ci_low": (*NUMBER, str),
    "ci_high": (*NUMBER, str),
    "bound": TEXT,
    "severity": TEXT,
    "cause": TEXT,
    "where": (dict,),
}


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def written(folder: Path, what: Judged) -> dict[str, Any]:
    path = folder / FILE_NAME
    write(what, path)
    content = json.loads(path.read_text(), parse_constant=refuse)
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("policy", ["strict", "m6"])
@pytest.mark.parametrize("model", [sound, broken, unclear])
def test_verdict_json_follows_schema_1(tmp_path: Path, model: Any, policy: str) -> None:
    content = written(tmp_path, judged(model(), policy))
    assert list(content) == [
        "schema",
        "model",
        "profile",
        "policy",
        "verdict",
        "policies",
        "findings",
        "diagnosis",
        "failures",
        "provenance",
    ]
    assert content["schema"] == 1
    assert content["model"] == json.loads(json.dumps(dataclasses.asdict(CARD)))
    assert content["profile"] == "quick"
    assert content["policy"] == policy
    assert content["verdict"] in VERDICTS
    assert set(content["policies"]) == {"strict", "m6"}
    assert content["policies"][policy] == content["verdict"]
    for finding in content["findings"]:
        for key, types in FINDING.items():
            assert isinstance(finding[key], types), (key, finding[key])
        assert finding["status"] in STATUSES
        assert finding["severity"] in {"reject", "limit", "info"}
        assert finding["kind"] in {"deterministic", "sampled", "count", "info"}
        if isinstance(finding["value"], str):
            assert finding["value"] in {"nan", "inf", "-inf"}
    assert {f["policy"] for f in content["findings"]} == {"strict", "m6"}


def test_findings_keep_their_numbers_and_their_place(tmp_path: Path) -> None:
    content = written(tmp_path, judged(broken()))
    crash = next(f for f in content["findings"] if f["cause"].startswith("2 of 8"))
    assert crash["status"] == "fail"
    assert crash["value"] == 2.0
    assert crash["where"]["replica"] == 3
    assert crash["where"]["atoms"] == [0, 1]
    nan = next(f for f in content["findings"] if f["value"] == "nan")
    assert nan["measurement"] == "nve.drift"
    assert nan["status"] == "fail"


def test_provenance_is_written_with_all_that_it_has(tmp_path: Path) -> None:
    there = written(tmp_path, judged(sound()))["provenance"]
    assert there["versions"] == {"openmm": "8.6.1", "torch": "2.12.1"}
    assert there["command"] == "omm-mlff validate --model tiny --profile quick"
    assert there["precision"] is None
    assert "date" not in there


def test_a_policy_that_was_not_judged_cannot_count() -> None:
    what = judged(sound())
    with pytest.raises(ValueError, match="'other' was not judged"):
        Judged(what.model, what.profile, "other", what.verdicts)
