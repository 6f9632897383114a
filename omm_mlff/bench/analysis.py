"""How long a recorded run takes, and how long to measure it.

Measured is what `validate` measures on a run: every check that reads production runs and does not
evaluate the potential, from the opening of the run directory on. `along` asks the teacher about at
most 64 of a run's frames, which counts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omm_mlff.bench.document import interval_row
from omm_mlff.bench.timing import median
from omm_mlff.bench.ways import raise_where_one_was_stopped, recorded_run
from omm_mlff.checks.base import Check, Evidence
from omm_mlff.checks.registry import all_checks
from omm_mlff.dynamics.simulate import simulate
from omm_mlff.errors import AnalysisError
from omm_mlff.potentials.base import Potential
from omm_mlff.record.rundir import RunRecord
from omm_mlff.schema import MolecularSystem, Precision

LEAST_STEPS = 1000
"""A shorter run is too short for many checks, which then have nothing to do."""

_MOST_S = 60.0
_MOST_STEPS = 20_000
_ROUNDS = 3


def analysis_row(
    potential: Potential,
    system: MolecularSystem,
    platform: str,
    precision: Precision,
    *,
    n_replicas: int,
    step_s: float,
    wanted_s: float,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """How much faster a run is measured than it went, or the reason why there is no telling.

    Parameters
    ----------
    step_s : seconds a recorded step of all replicas
    wanted_s : about how long a run may take
    progress : called with the rounds that are done and all
    """
    n_steps = steps_to_analyse(step_s, wanted_s)
    if n_steps is None:
        return {"reason": f"{LEAST_STEPS} steps would take more than {_MOST_S:g} s"}
    rows: list[tuple[float, float]] = []
    for done in range(_ROUNDS):
        progress(done, _ROUNDS)
        try:
            rows.append(
                run_and_analyse(
                    potential,
                    system,
                    platform,
                    precision,
                    n_replicas=n_replicas,
                    n_steps=n_steps,
                    seed=done + 1,
                )
            )
        except AnalysisError as error:
            return {"reason": str(error)}
    progress(_ROUNDS, _ROUNDS)
    runs, analyses = zip(*rows, strict=True)
    return {
        "n_steps": n_steps,
        "n_replicas": n_replicas,
        "run_s": interval_row(median(runs)),
        "analysis_s": interval_row(median(analyses)),
        "ratio": interval_row(median([run / took for run, took in rows])),
    }


def steps_to_analyse(step_s: float, wanted_s: float) -> int | None:
    """How many steps of a run to measure.

    Parameters
    ----------
    step_s : seconds a recorded step
    wanted_s : about how long the run may take, as long as it has `LEAST_STEPS`

    Returns
    -------
    None where the least would take more than `_MOST_S`
    """
    if LEAST_STEPS * step_s > _MOST_S:
        return None
    return int(min(max(wanted_s / step_s, LEAST_STEPS), _MOST_STEPS))


def run_checks() -> list[Check]:
    """The checks that measure a production run by what was recorded."""
    return [
        check
        for check in all_checks()
        if "runs" in check.needs and "evaluator" not in check.needs and "production" in check.reads
    ]


def run_and_analyse(
    potential: Potential,
    system: MolecularSystem,
    platform: str,
    precision: Precision,
    *,
    n_replicas: int,
    n_steps: int,
    seed: int,
) -> tuple[float, float]:
    """Seconds of a run's steps with their recording, and of all measurements on it.

    Set-up and minimisation, which are over when the run first tells of its progress, do not count;
    the steps until then are counted by what the others took.

    Raises
    ------
    AnalysisError : a replica was stopped: there is no whole run to measure
    """
    spec = recorded_run(
        potential, system, platform, precision, n_replicas=n_replicas, n_steps=n_steps, seed=seed
    )
    first: list[tuple[int, int, float]] = []

    def note(done: int, total: int) -> None:
        if not first:
            first.append((done, total, time.perf_counter()))

    with tempfile.TemporaryDirectory(prefix="omm-mlff-bench-") as folder:
        simulate(spec, potential, system, Path(folder) / "run", allow_fallback=True, progress=note)
        ended = time.perf_counter()
        raise_where_one_was_stopped(Path(folder) / "run", potential, system)
        done, total, began = first[0]
        run_s = (ended - began) * total / (total - done)
        began = time.perf_counter()
        evidence = Evidence(
            system,
            potential.card,
            runs=(RunRecord.open(Path(folder) / "run"),),
            seed=seed,
            reference_energy_kjmol=potential.reference_energy(system),
        )
        for check in run_checks():
            check.measure(evidence)
        return run_s, time.perf_counter() - began
