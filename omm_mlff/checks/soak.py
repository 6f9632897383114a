r"""Does a step cost the same, and does memory stay, however long the run is?

From the pace that a run records: a row of time a step (processor time on Reference and CPU, wall
time where a GPU computes) and of resident memory every 256 frames. The machine has other work,
which slows a step for seconds and then goes away, or comes to stay; an allocation raises the memory
once. A fault of the model does neither: it grows
all the time. So only steady growth counts. Rows are taken in fours, a to d, a quarter of the run
apart, and of each four

    growth = 4 minmod(b - a, c - b, d - c)

the least of the three, and 0 where they do not all rise or all fall: two steps anywhere in the run,
up or down, give none. The value is the median over the fours, its interval that of their order
statistics, free of any distribution.

- *slowdown*: growth of the time of a step over the run, relative to the least of its first quarter:
  0 where a step costs the same at the end, 1 where it costs twice. The first row, a warm-up, is
  left out.
- *memory growth*: the same of the memory, a step. The first quarter is left out, in which recording
  fills its buffers.

Each batch of replicas is taken by itself, and so is what a resumed or extended run adds: a new
Context has memory and a pace of its own. In a long run windows of rows take the place of rows, each
with its least value: other work only adds.

Bounds: with other work in bursts of 1.5 to 4 times the pace, for 30% of the time, none of 1,000
made-up sound runs fails. Growth that another load imitates well enough in a short run is undecided,
and the run is made longer. Memory of sound runs grows by 0.01 kB a
step or less once they have started; 0.1 is 200 MB in a nanosecond.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import Check, Evidence, absent, bounds, for_each_run, run_where, sampled
from omm_mlff.schema import Declaration, Measurement
from omm_mlff.statistics.intervals import median
from omm_mlff.units import BYTES_PER_MIB

if TYPE_CHECKING:
    from omm_mlff.record.rundir import RunRecord

N_PARTS = 4
MIN_ROWS = 7
"""In each part: so many samples a median's interval needs."""

MAX_WINDOWS = 48
WARM_UP_ROWS = 1
SETTLING = 0.25
"""Of a batch: how long memory may rise before it must stay."""

_BYTES_PER_KB = 1000.0

SLOWDOWN = Declaration(
    "soak.slowdown",
    "sampled",
    "1",
    "steady growth of the time of a step over the run",
    "soak",
    failure="steps grow slower",
)
MEMORY_GROWTH = Declaration(
    "soak.memory_growth",
    "sampled",
    "kB/step",
    "steady growth of the resident memory",
    "soak",
    failure="memory grows with every step",
)


def steady_growth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Growth over a series that its parts agree on; two steps, up or down, give none.

    Parameters
    ----------
    values : shape (n,), in the order of time

    Returns
    -------
    shape (n // N_PARTS,)
    """
    n = len(values) // N_PARTS
    parts = values[: N_PARTS * n].reshape(N_PARTS, n)
    steps = np.diff(parts, axis=0)  # (N_PARTS - 1, n)
    agreed = np.all(steps > 0.0, axis=0) | np.all(steps < 0.0, axis=0)
    least = np.sign(steps[0]) * np.abs(steps).min(axis=0)
    growth: NDArray[np.float64] = np.where(agreed, N_PARTS * least, 0.0)
    return growth


def windows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The least of each window of a long series; a short one as it is."""
    size = max(1, len(values) // MAX_WINDOWS)
    n = len(values) // size
    least: NDArray[np.float64] = values[: n * size].reshape(n, size).min(axis=1)
    return least


def _of_run(evidence: Evidence, run: RunRecord) -> list[Measurement]:
    """Slowdown and memory growth of one run."""
    where = run_where(evidence, run)
    pace = run.pace
    slowdowns: list[NDArray[np.float64]] = []
    growths: list[NDArray[np.float64]] = []
    for batch, part in np.unique(np.column_stack((pace.batch, pace.part)), axis=0):
        of_batch = (pace.batch == batch) & (pace.part == part)
        seconds = windows(pace.seconds_per_step[of_batch][WARM_UP_ROWS:])
        n = len(seconds) // N_PARTS
        if n >= MIN_ROWS:
            slowdowns.append(steady_growth(seconds) / seconds[:n].min())
        memory, step = pace.memory_MiB[of_batch], pace.step[of_batch]
        settled = round(SETTLING * len(memory))
        memory, step = memory[settled:], step[settled:]
        kept = windows(memory)
        if len(kept) // N_PARTS >= MIN_ROWS:
            steps_per_window = (step[-1] - step[0]) / (len(step) - 1) * (len(step) // len(kept))
            n_steps = N_PARTS * (len(kept) // N_PARTS) * steps_per_window
            growths.append(steady_growth(kept) * (BYTES_PER_MIB / _BYTES_PER_KB) / n_steps)
    rows = len(pace.step)
    wanted = round(MIN_ROWS * N_PARTS / (1.0 - SETTLING))
    reason = f"needs some {wanted} rows of pace in a batch of replicas, this run has {rows}"
    found = []
    for declaration, samples, cause in (
        (SLOWDOWN, slowdowns, _slowdown_cause(pace.seconds_per_step)),
        (MEMORY_GROWTH, growths, _memory_cause(pace.memory_MiB)),
    ):
        if samples:
            estimate = median(np.concatenate(samples))
            found.append(sampled(declaration, estimate, where, cause))
        else:
            found.append(absent(declaration, where, reason))
    return found


def _slowdown_cause(seconds: NDArray[np.float64]) -> str:
    if not len(seconds):
        return ""
    quarter = max(1, len(seconds) // 4)
    first, last = np.median(seconds[:quarter]) * 1.0e3, np.median(seconds[-quarter:]) * 1.0e3
    return f"a step took {first:.3g} ms in the first quarter and {last:.3g} ms in the last"


def _memory_cause(memory: NDArray[np.float64]) -> str:
    if not len(memory):
        return ""
    settled = memory[round(SETTLING * len(memory))]
    return f"memory went from {settled:.1f} MiB after the first quarter to {memory[-1]:.1f} MiB"


CHECK = Check(
    name="soak",
    question="Does a step cost the same, and does memory stay, however long the run is?",
    formula="median of 4 minmod(b - a, c - b, d - c) over rows a quarter of the run apart",
    source="Hahn & Meeker, Statistical Intervals (1991), section 5.2, for the interval",
    declares=(SLOWDOWN, MEMORY_GROWTH),
    criteria=(
        *bounds(
            SLOWDOWN,
            "a step that costs twice as much at the end of a run of picoseconds has no end in a "
            "run of nanoseconds; less than that, other work on the machine imitates",
            high=(1.0, 10.0),
        ),
        *bounds(
            MEMORY_GROWTH,
            "0.1 kB a step are 200 MB a nanosecond; sound runs have 0.01",
            high=(0.1, 1.0),
        ),
    ),
    needs=frozenset({"runs"}),
    take=for_each_run(_of_run),
    use="long runs",
)
