"""How long a recorded run takes, and how long to measure it.

Measured is what `validate` measures on a run: every check that reads production runs and needs no
potential to do so, from the opening of the run directory on.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from omm_mlff.bench.ways import TEMPERATURE_K, TIMESTEP_FS
from omm_mlff.checks.base import Check, Evidence
from omm_mlff.checks.registry import all_checks
from omm_mlff.potentials.base import Potential
from omm_mlff.rundir import RunRecord
from omm_mlff.schema import MolecularSystem, Precision, RunSpec
from omm_mlff.simulate import simulate
from omm_mlff.units import PS_PER_FS

LEAST_STEPS = 1000
"""A shorter run is too short for many checks, which then have nothing to do."""

MOST_S = 60.0
_MOST_STEPS = 20_000


def steps_to_analyse(step_s: float, wanted_s: float) -> int | None:
    """How many steps of a run to measure.

    Parameters
    ----------
    step_s : seconds a recorded step
    wanted_s : about how long the run may take, as long as it has `LEAST_STEPS`

    Returns
    -------
    None where the least would take more than `MOST_S`
    """
    if LEAST_STEPS * step_s > MOST_S:
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
    """
    spec = RunSpec(
        potential.spec,
        system.name,
        length_ps=n_steps * TIMESTEP_FS * PS_PER_FS,
        temperature_K=TEMPERATURE_K,
        n_replicas=n_replicas,
        seed=seed,
        timestep_fs=TIMESTEP_FS,
        platform=platform,
        precision=precision,
    )
    first: list[tuple[int, int, float]] = []

    def note(done: int, total: int) -> None:
        if not first:
            first.append((done, total, time.perf_counter()))

    with tempfile.TemporaryDirectory(prefix="omm-mlff-bench-") as folder:
        simulate(spec, potential, system, Path(folder) / "run", progress=note)
        ended = time.perf_counter()
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
