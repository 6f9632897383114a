"""What smooth norms and the shadow energy each contribute to the drift's interval.

    python scripts/drift_study.py smooth=tiny cone=FOLDER --out analysis/drift

Each student runs the NVE runs of the profile; the interval of the drift is then computed from the
raw total energy and from the shadow energy of the same records.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click
import numpy as np


@click.command()
@click.argument("students", nargs=-1, required=True, metavar="LABEL=MODEL...")
@click.option("--profile", default="quick", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--work", type=click.Path(path_type=Path, file_okay=False), help="Keep the runs here."
)
def drift_study(
    students: tuple[str, ...], profile: str, seed: int, out: Path, work: Path | None
) -> None:
    """Half-widths of the drift's interval, with and without each ingredient."""
    from omm_mlff.checks.drift import energies, slope
    from omm_mlff.checks.frames import usable_replicas
    from omm_mlff.dynamics.simulate import simulate
    from omm_mlff.potentials.registry import load_potential
    from omm_mlff.schema import CONFIDENCE
    from omm_mlff.statistics.intervals import mean_over_replicas
    from omm_mlff.systems import load_system
    from omm_mlff.units import MEV_PER_KJMOL
    from omm_mlff.verdict.profiles import load_profile

    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = work or Path(scratch)
        for student in students:
            label, _, model = student.partition("=")
            potential = load_potential(model)
            for run in load_profile(profile).runs:
                spec = run.spec(model, seed)
                system = load_system(run.system)
                record = simulate(
                    spec, potential, system, folder / label / spec.name, resume=work is not None
                )
                samples, _ = usable_replicas(record)
                series = [energies(record, sample) for sample in samples]
                for kind in ("total", "shadow"):
                    slopes = [slope(item.time, getattr(item, kind)) for item in series]
                    per_atom = np.array(slopes) * MEV_PER_KJMOL / system.n_atoms
                    drift = mean_over_replicas(per_atom)
                    rows.append(
                        {
                            "student": label,
                            "system": run.system,
                            "energy": kind,
                            "n_replicas": len(samples),
                            "length_ps": run.length_ps,
                            "drift_meV_per_atom_ps": drift.value,
                            "half_width_meV_per_atom_ps": 0.5 * (drift.ci_high - drift.ci_low),
                        }
                    )
                    click.echo(json.dumps(rows[-1]))
    out.mkdir(parents=True, exist_ok=True)
    content = {"profile": profile, "seed": seed, "confidence": CONFIDENCE, "rows": rows}
    (out / "drift.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    drift_study()
