"""Is the run at the temperature that was asked for?

    T = 2 <E_kin> / (n_dof k)

over the second half of the run, one number a replica, with n_dof = 3N - 6 (linear 3N - 5, box
3N - 3). In NVE the energy that a replica was prepared with decides: a potential whose wells are
much softer or stiffer than harmonic, or an energy that drifts, shows as a deviation. So prepared
as here, 16 of 16 replicas average within 10% of the target (DESIGN, section 5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import (
    SPOILS_DYNAMICS,
    SPOILS_EVALUATION,
    Check,
    Evidence,
    absent,
    bounds,
    for_each_run,
    run_where,
    sampled,
)
from omm_mlff.checks.frames import in_words, none_lasted, usable_replicas
from omm_mlff.schema import Declaration, Fault, Measurement, Symptom
from omm_mlff.statistics.intervals import mean_over_replicas
from omm_mlff.units import BOLTZMANN

if TYPE_CHECKING:
    from omm_mlff.record.rundir import RunRecord

TEMPERATURE = Declaration(
    "nve.temperature", "sampled", "K", "mean over the second half and the replicas", "temperature"
)
TEMPERATURE_ERROR = Declaration(
    "nve.temperature_error",
    "sampled",
    "%",
    "deviation of the mean from the target",
    "temperature",
    failure="the run is not at the temperature asked for",
)


def kinetic_temperature(kinetic_energy: NDArray[np.float64], n_dof: int) -> NDArray[np.float64]:
    """Temperature in K of kinetic energies in kJ/mol, of any shape."""
    return np.asarray(2.0 * kinetic_energy / (n_dof * BOLTZMANN))


def _of_run(evidence: Evidence, run: RunRecord) -> list[Measurement]:
    """Mean temperature of one run."""
    where = run_where(evidence, run)
    samples, left_out = usable_replicas(run)
    if not samples:
        reason = none_lasted(left_out)
        return [absent(row, where, reason) for row in CHECK.declares]
    means = np.array(
        [
            kinetic_temperature(
                sample.replica.kinetic_energy[sample.n_frames // 2 : sample.n_frames], run.n_dof
            ).mean()
            for sample in samples
        ]
    )
    mean = mean_over_replicas(means)
    cause = in_words(left_out)
    target = run.spec.temperature_K
    return [
        sampled(TEMPERATURE, mean, where, cause),
        sampled(TEMPERATURE_ERROR, mean.scaled(100.0 / target, -100.0), where, cause),
    ]


CHECK = Check(
    name="temperature",
    question="Is the run at the temperature that was asked for?",
    formula="2 <E_kin> / (n_dof k) over the second half, against the target",
    source="DESIGN section 5; equipartition",
    declares=(TEMPERATURE, TEMPERATURE_ERROR),
    criteria=bounds(
        TEMPERATURE_ERROR,
        "DESIGN section 5: sound replicas average within 10%; ten times that is twice the target",
        low=(-10.0, None),
        high=(10.0, 100.0),
    ),
    needs=frozenset({"runs"}),
    take=for_each_run(_of_run),
    use="dynamics at the temperature asked for",
    explained_by=(
        *SPOILS_EVALUATION,
        *SPOILS_DYNAMICS,
        Fault.CUTOFF,
        Fault.ATTRIBUTED,
    ),
    symptom=Symptom.TEMPERATURE,
)
