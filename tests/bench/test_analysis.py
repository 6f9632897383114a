"""How long a run and its measurements take."""

from pathlib import Path

import pytest
from springs import SpringPotential, triatomic

from omm_mlff.bench import analysis
from omm_mlff.checks.base import Check, Evidence
from omm_mlff.errors import AnalysisError
from omm_mlff.record.rundir import RunRecord
from omm_mlff.schema import Measurement


@pytest.mark.parametrize(
    ("step_s", "n_steps"), [(1e-6, 20_000), (1e-3, 8_000), (0.02, 1_000), (0.07, None)]
)
def test_steps_fill_the_time_within_bounds(step_s: float, n_steps: int | None) -> None:
    assert analysis.steps_to_analyse(step_s, 8.0) == n_steps


def test_checks_are_those_that_validate_measures_on_a_production_run() -> None:
    names = {check.name for check in analysis.run_checks()}
    assert {"drift", "bonds", "structure"} <= names
    assert not {"gradient", "accuracy"} & names


def test_every_check_sees_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int]] = []
    take = Check.measure

    def measure(check: Check, evidence: Evidence) -> list[Measurement]:
        record: RunRecord = evidence.runs[0]
        assert Path(record.folder).is_dir()
        seen.append((check.name, record.spec.n_replicas, record.replica(1).n_frames))
        return take(check, evidence)

    monkeypatch.setattr(Check, "measure", measure)
    run_s, analysis_s = analysis.run_and_analyse(
        SpringPotential(), triatomic(), "Reference", "double", n_replicas=2, n_steps=1000, seed=1
    )
    assert run_s > 0.0
    assert analysis_s > 0.0
    assert seen == [(check.name, 2, 1000) for check in analysis.run_checks()]


@pytest.mark.parametrize("n_replicas", [1, 2])  # of which the first is stopped, the other goes on
def test_a_run_of_which_a_replica_was_stopped_is_not_measured(n_replicas: int) -> None:
    potential, system = SpringPotential(breaks_at=1e-3), triatomic()
    with pytest.raises(AnalysisError, match="replica 0 was stopped at step 0"):
        analysis.run_and_analyse(
            potential, system, "Reference", "double", n_replicas=n_replicas, n_steps=1000, seed=1
        )
    row = analysis.analysis_row(
        potential,
        system,
        "Reference",
        "double",
        n_replicas=n_replicas,
        step_s=1e-3,
        wanted_s=1.0,
        progress=lambda done, total: None,
    )
    assert set(row) == {"reason"}
    assert "replica 0 was stopped" in row["reason"]


def test_a_run_that_would_take_too_long_is_not_begun() -> None:
    row = analysis.analysis_row(
        SpringPotential(),
        triatomic(),
        "Reference",
        "double",
        n_replicas=2,
        step_s=0.07,
        wanted_s=8.0,
        progress=lambda done, total: pytest.fail("it was begun"),
    )
    assert row == {"reason": "1000 steps would take more than 60 s"}
