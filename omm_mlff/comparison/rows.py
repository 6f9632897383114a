"""Measurements of several models in one table, with what follows from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from omm_mlff.comparison.finished import Finished
from omm_mlff.schema import Kind, Measurement, Where, finite
from omm_mlff.units import NS_PER_DAY_PER_FS_PER_MS

N_PARAMETERS = "model.n_parameters"
NS_PER_DAY = "cost.ns_per_day"
THROUGHPUT = "cost.replica_steps_per_s"


@dataclass(frozen=True)
class Row:
    """One number of one model.

    Attributes
    ----------
    model : the label that the model has in this comparison
    quantity : name of a measurement, or of what follows from it
    planned : name of the run before it was extended: the same for all models
    note : cause, or the reason why there is no value
    """

    model: str
    quantity: str
    kind: Kind
    value: float | None
    ci_low: float | None
    ci_high: float | None
    unit: str
    system: str | None = None
    temperature_K: float | None = None
    run: str | None = None
    planned: str | None = None
    element: str | None = None
    n_samples: int = 0
    exposure_ps: float | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return dict(finite(dataclasses.asdict(self)))


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))


def rows_of(label: str, finished: Finished) -> list[Row]:
    """Everything that was measured of a model, and what follows from it.

    A day of one replica follows from the step time and the longest timestep that was run on the
    system; replica-steps a second from the wall time of the runs, recording included.
    """
    rows = [_measured(label, finished, item) for item in finished.measured.measurements]
    if finished.n_parameters is not None:
        rows.append(_derived(label, N_PARAMETERS, float(finished.n_parameters), "1"))
    for row in list(rows):
        timesteps = [
            run.spec.timestep_fs
            for run in finished.runs
            if _system_of(finished, run.name) == row.system
        ]
        if row.quantity == "cost.step_time" and row.value and timesteps:
            day = NS_PER_DAY_PER_FS_PER_MS * max(timesteps)
            rows.append(
                dataclasses.replace(
                    row,
                    quantity=NS_PER_DAY,
                    kind="info",
                    unit="ns/day",
                    value=day / row.value,
                    ci_low=day / row.ci_high if row.ci_high else None,
                    ci_high=day / row.ci_low if row.ci_low else None,
                    note=f"one replica, timestep {max(timesteps):g} fs",
                )
            )
    for run in finished.runs:
        if run.wall_s > 0.0:
            where = Where(
                system=_system_of(finished, run.name),
                run=run.name,
                temperature_K=run.spec.temperature_K,
            )
            rows.append(
                _derived(
                    label,
                    THROUGHPUT,
                    run.replica_steps / run.wall_s,
                    "1/s",
                    where,
                    run.planned,
                    f"{run.spec.n_replicas} replicas, {run.wall_s:.4g} s, recording included",
                )
            )
    return rows


def as_table(rows: Iterable[Row]) -> pd.DataFrame:
    """One line for every row."""
    table = pd.DataFrame([vars(row) for row in rows], columns=list(COLUMNS))
    numbers = ("value", "ci_low", "ci_high", "temperature_K", "exposure_ps")
    return table.astype(dict.fromkeys(numbers, "float64"))


def _measured(label: str, finished: Finished, item: Measurement) -> Row:
    return Row(
        model=label,
        quantity=item.name,
        kind=item.kind,
        value=item.value,
        ci_low=item.ci_low,
        ci_high=item.ci_high,
        unit=item.unit,
        system=item.where.system,
        temperature_K=item.where.temperature_K,
        run=item.where.run,
        planned=finished.planned_name(item.where.run) if item.where.run else None,
        element=item.where.element,
        n_samples=item.n_samples,
        exposure_ps=item.exposure_ps,
        note=item.not_applicable or item.cause,
    )


def _derived(
    label: str,
    quantity: str,
    value: float,
    unit: str,
    where: Where | None = None,
    planned: str | None = None,
    note: str = "",
) -> Row:
    where = where or Where()
    return Row(
        model=label,
        quantity=quantity,
        kind="info",
        value=value,
        ci_low=None,
        ci_high=None,
        unit=unit,
        system=where.system,
        temperature_K=where.temperature_K,
        run=where.run,
        planned=planned,
        note=note,
    )


def _system_of(finished: Finished, run: str) -> str | None:
    """Name of a run's system, as measurements say it; its spec may be a path."""
    return next(
        (item.where.system for item in finished.measured.measurements if item.where.run == run),
        None,
    )
