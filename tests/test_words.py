"""Texts are for people: the package decides the same whatever its texts say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent

PROFILE = """
static_systems = ["water"]

[[run]]
system = "water"
length_ps = 0.1
n_replicas = 2
temperature_K = 300

[[out_of_scope]]
policy = "m6"
criterion = "complete-10ps"
reason = "the longest run is shorter"
"""

SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
reworded = __import__("reworded") if sys.argv[1] == "reworded" else None
from springs import CalledSpringPotential, SpringPotential
from omm_mlff import validate

for name, potential in {
    "holds": SpringPotential(),
    "stops": SpringPotential(breaks_at=0.12, breaks_copy=1),
    "scaled": SpringPotential(force_scale=1.3),
    "raises": CalledSpringPotential(raises_at=1.1),
}.items():
    validate(potential, profile="short.toml", out=f"{sys.argv[1]}-{name}", platform="Reference")
if reworded:
    assert len(reworded.replaced) > 1000, len(reworded.replaced)
"""

TIMED = ("cost.", "soak.")
WORDS = ("original", "reworded")


def decided(folder: Path) -> dict[str, Any]:
    """What a validation has decided, without a word of what it says."""
    data = json.loads((folder / "verdict.json").read_text())
    typed = ("policy", "criterion", "measurement", "check", "status", "severity", "reasons")
    typed += ("system", "run", "temperature_K", "where", "kind", "unit", "low", "high")
    return {
        "verdicts": data["policies"],
        "diagnosis": [
            {key: cause[key] for key in ("slug", "severity", "evidence", "system")}
            for cause in data["diagnosis"]
        ],
        "failures": [(item["run"], item["replica"], item["kind"]) for item in data["failures"]],
        "findings": [
            {key: row[key] for key in typed}
            for row in data["findings"]
            if not row["measurement"].startswith(TIMED)
        ],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four validations by the package as it is, and by one with every text replaced."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "short.toml").write_text(PROFILE)
    paths = os.pathsep.join(str(path) for path in (TESTS, TESTS.parent, *filter(None, sys.path)))
    for words in WORDS:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    ("name", "slug"),
    [("holds", "accuracy"), ("stops", "nan"), ("scaled", "force-scale"), ("raises", "raises")],
)
def test_rewording_every_text_changes_no_verdict_no_cause_and_no_diagnosis(
    folder: Path, name: str, slug: str
) -> None:
    original, reworded = decided(folder / f"original-{name}"), decided(folder / f"reworded-{name}")
    assert slug in [cause["slug"] for cause in original["diagnosis"]]
    assert reworded == original


def test_the_texts_were_replaced(folder: Path) -> None:
    texts = [json.loads((folder / f"{w}-stops/verdict.json").read_text()) for w in WORDS]
    one, other = ([row["cause"] for row in data["findings"] if row["cause"]] for data in texts)
    assert len(one) == len(other) > 50
    assert not set(one) & set(other)
