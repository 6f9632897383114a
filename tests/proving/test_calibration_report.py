"""The tables say what was drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omm_mlff.proving import calibration_report
from omm_mlff.proving.calibration import Design
from omm_mlff.proving.calibration_report import calibrate, write
from tests.judged_models import sound


def test_every_sampled_criterion_has_a_row_with_its_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_report, "SHAPES", ((8, 200),))
    monkeypatch.setattr(calibration_report, "N_SETS", 20)
    drawn = calibrate(Design(sound()), n_verdicts=5, n_sound=5, n_trials=5, seed=1)
    content, tables = (path.read_text() for path in write(drawn, tmp_path))
    stored = json.loads(content)
    assert [row["criterion"] for row in stored["criteria"]] == [
        "accuracy.force_rmse-limit",
        "nve.drift-limit",
        "nve.drift-reject",
    ]
    assert {row["power"] for row in stored["criteria"]} == {1.0}
    assert stored["verdicts"]["approved"] == 1.0
    for row in stored["criteria"]:
        assert f"| `{row['criterion']}` | {row['severity']} | {row['bound']} |" in tables
    for _, _, _, share in stored["coverage"]:
        assert f"{100 * share:.1f} %" in tables
