"""What precision does to a run on a device: energy drift and the cost of a step in each.

usage: python -m omm_mlff.bench.precisions --platform CUDA --out FOLDER
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from omm_mlff.checks.base import Evidence
from omm_mlff.checks.drift import CHECK, DRIFT
from omm_mlff.dynamics.simulate import simulate
from omm_mlff.potentials.registry import load_potential
from omm_mlff.schema import Precision, RunSpec
from omm_mlff.systems import load_system

PRECISIONS: tuple[Precision, ...] = ("double", "mixed", "single")
DOCUMENT_FILE = "precisions.json"


@dataclass(frozen=True)
class PrecisionRow:
    """One recorded run at constant energy.

    Attributes
    ----------
    drift, ci_low, ci_high : meV/atom/ps, of Verlet's shadow energy, mean over replicas
    ms_per_step : of the whole run with its recording and its start, over its steps
    n_events : replicas that were stopped
    """

    precision: str
    n_replicas: int
    length_ps: float
    drift: float | None
    ci_low: float | None
    ci_high: float | None
    ms_per_step: float
    n_events: int


def measure(
    model: str, system_name: str, platform: str, precision: Precision, n_replicas: int, ps: float
) -> PrecisionRow:
    """Run replicas of a system and measure how their energy drifts.

    Parameters
    ----------
    model, system_name : as `omm-mlff simulate` takes them
    ps : length of the run
    """
    potential, system = load_potential(model), load_system(system_name)
    spec = RunSpec(
        model, system_name, ps, 300.0, n_replicas, seed=0, platform=platform, precision=precision
    )
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        record = simulate(spec, potential, system, Path(folder) / "run")
        seconds = time.perf_counter() - began
        evidence = Evidence(system=system, card=potential.card, runs=(record,))
        found = next(row for row in CHECK.measure(evidence) if row.name == DRIFT.name)
        n_events = len(record.events)
    return PrecisionRow(
        precision=precision,
        n_replicas=n_replicas,
        length_ps=ps,
        drift=found.value,
        ci_low=found.ci_low,
        ci_high=found.ci_high,
        ms_per_step=1000.0 * seconds / spec.n_steps,
        n_events=n_events,
    )


@click.command()
@click.option("--model", default="original", show_default=True)
@click.option("--system", "system_name", default="alanine", show_default=True)
@click.option("--platform", default="CUDA", show_default=True)
@click.option("--replicas", default=64, show_default=True)
@click.option("--length-ps", default=1.0, show_default=True)
@click.option("--out", "folder", required=True, type=click.Path(file_okay=False, path_type=Path))
def main(
    model: str, system_name: str, platform: str, replicas: int, length_ps: float, folder: Path
) -> None:
    """Run one system in double, mixed and single precision and compare the drift of its energy."""
    rows = []
    for precision in PRECISIONS:
        row = measure(model, system_name, platform, precision, replicas, length_ps)
        rows.append(row)
        click.echo(
            f"{row.precision:<7} drift {row.drift:+.2e} [{row.ci_low:+.2e}, {row.ci_high:+.2e}] "
            f"meV/atom/ps, {row.ms_per_step:.3f} ms a step, {row.n_events} events"
        )
    folder.mkdir(parents=True, exist_ok=True)
    document = {"model": model, "system": system_name, "platform": platform}
    text = json.dumps({**document, "rows": [asdict(row) for row in rows]}, indent=1)
    (folder / DOCUMENT_FILE).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
