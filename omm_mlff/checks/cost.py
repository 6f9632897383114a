"""What does a step cost?

*Step time*: one replica under VerletIntegrator, through the Force that production uses, in blocks
of steps after a block of warm-up; the median over the blocks, with the interval of their order
statistics (timings have a long upper tail). *Peak memory*: the largest resident set that this
process has had, everything that it did before included.
"""

from __future__ import annotations

import sys

import numpy as np

from omm_mlff.checks.base import Check, Evidence, absent, sampled
from omm_mlff.schema import Criterion, Declaration, Fault, Measurement, Symptom, Where
from omm_mlff.statistics.intervals import median
from omm_mlff.units import BYTES_PER_MIB

N_STEPS = 20
N_BLOCKS = 20
_MS_PER_S = 1.0e3
_BYTES_PER_KIB = 1024

STEP_TIME = Declaration(
    "cost.step_time",
    "sampled",
    "ms",
    "one step of one replica",
    "cost",
    failure="a step takes too long",
)
PEAK_MEMORY = Declaration(
    "cost.peak_memory", "info", "MiB", "largest resident set of this process", "cost"
)


def peak_memory_bytes() -> int:
    """Largest resident set that this process has had so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * _BYTES_PER_KIB


def take(evidence: Evidence) -> list[Measurement]:
    """Step time and peak memory on this system."""
    where = Where(system=evidence.system.name)
    seconds = evidence.live.time_steps(N_STEPS, N_BLOCKS)
    peak = peak_memory_bytes() / BYTES_PER_MIB
    if np.isfinite(seconds).all():
        cause = "the machine, or its other load"
        step_time = sampled(STEP_TIME, median(seconds * _MS_PER_S), where, cause)
    else:
        step_time = absent(STEP_TIME, where, "its steps from the structure at rest come to no end")
    return [
        step_time,
        Measurement(
            PEAK_MEMORY.name, PEAK_MEMORY.kind, peak, PEAK_MEMORY.unit, peak, peak, 1, where
        ),
    ]


CHECK = Check(
    name="cost",
    question="What does a step cost?",
    formula="median over blocks of wall time / steps; largest resident set",
    source="Hahn & Meeker, Statistical Intervals (1991), section 5.2",
    declares=(STEP_TIME, PEAK_MEMORY),
    criteria=(
        Criterion(
            "cost.step_time-info",
            STEP_TIME.name,
            None,
            10.0,
            STEP_TIME.unit,
            "info",
            "DESIGN section 8 (M6): below 10 ms a step, one replica",
        ),
    ),
    needs=frozenset({"evaluator"}),
    take=take,
    use="the time that a step may take",
    explained_by=(Fault.SLOWING_DOWN,),
    symptom=Symptom.COST,
)
