"""Writes how often the judge errs: `calibration.json`, and the tables of its README."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omm_mlff.proving.calibration import (
    CriterionRates,
    Design,
    Noise,
    VerdictRates,
    criterion_rates,
    drift_coverage,
    verdict_rates,
)
from omm_mlff.report.markdown_table import markdown_table

Progress = Callable[[str, int, int], None]

NOISES = {
    "white": Noise(1.0),
    "white and red, 30 frames": Noise(0.5, 0.5, 30.0),
    "red, 100 frames": Noise(0.0, 1.0, 100.0),
    "red, 2000 frames": Noise(0.1, 1.0, 2000.0),
}
SHAPES = ((8, 200), (8, 2000), (16, 500), (16, 2000))
"""Replicas, frames."""

LEVEL = 0.95
TRUE_DRIFT = 1.0e-3
N_SETS = 1000


@dataclass(frozen=True)
class Calibration:
    """Everything that was drawn.

    Attributes
    ----------
    design : name of the model and the profile whose standard errors were used
    coverage : by noise, replicas and frames
    """

    design: str
    coverage: tuple[tuple[str, int, int, float], ...]
    verdicts: VerdictRates
    criteria: tuple[CriterionRates, ...]
    n_sound: int
    n_trials: int


def calibrate(
    design: Design,
    *,
    n_verdicts: int,
    n_sound: int,
    n_trials: int,
    seed: int,
    progress: Progress | None = None,
) -> Calibration:
    """Draw everything.

    Parameters
    ----------
    n_verdicts : whole verdicts on a sound model
    n_sound, n_trials : as in `criterion_rates`
    """
    say = progress or (lambda label, done, total: None)
    coverage = []
    cases = [(name, *shape) for name in NOISES for shape in SHAPES]
    for done, (name, n_replicas, n_frames) in enumerate(cases):
        say("coverage", done, len(cases))
        share = drift_coverage(
            NOISES[name],
            drift=TRUE_DRIFT,
            n_replicas=n_replicas,
            n_frames=n_frames,
            n_sets=N_SETS,
            confidence=LEVEL,
            seed=seed,
        )
        coverage.append((name, n_replicas, n_frames, share))
    say("whole verdicts", 0, 2)
    verdicts = verdict_rates(design, n_verdicts, seed)
    say("criteria", 1, 2)
    criteria = criterion_rates(design, n_sound, n_trials, seed)
    say("criteria", 2, 2)
    card = design.measured.card
    return Calibration(
        f"{card.name}, profile {design.measured.scope.profile}",
        tuple(coverage),
        verdicts,
        tuple(criteria),
        n_sound,
        n_trials,
    )


def write(calibration: Calibration, folder: Path) -> list[Path]:
    """Writes the JSON and the Markdown tables.

    Returns
    -------
    the files
    """
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = dataclasses.asdict(calibration)
    files = [folder / "calibration.json", folder / "tables.md"]
    files[0].write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    files[1].write_text(as_markdown(calibration), encoding="utf-8")
    return files


def as_markdown(calibration: Calibration) -> str:
    """The tables, for a README to include."""
    rates = calibration.verdicts
    lines = [
        f"## Intervals: coverage of {100 * LEVEL:g} % intervals of the drift",
        "",
        f"{N_SETS} sets of replicas each, true drift {TRUE_DRIFT:g} a frame beside noise of 1.",
        "",
        *markdown_table(
            ("noise", "replicas", "frames", "coverage"),
            [(*row[:3], f"{100 * row[3]:.1f} %") for row in calibration.coverage],
        ),
        "",
        "## Whole verdicts on a sound model",
        "",
        f"{rates.n_trials} verdicts under `strict`, three looks included; standard errors and "
        f"criteria as measured for {calibration.design}.",
        "",
        *markdown_table(
            ("APPROVED", "NOT RECOMMENDED", "REJECTED", "UNDECIDED"),
            [
                tuple(
                    f"{100 * share:.2f} %"
                    for share in (
                        rates.approved,
                        rates.not_recommended,
                        rates.rejected,
                        rates.undecided,
                    )
                )
            ],
        ),
        "",
        "## Criterion by criterion",
        "",
        f"False failures: {calibration.n_sound} verdicts on the sound model. On the bound, twice "
        f"the bound: {calibration.n_trials} verdicts each with one truth moved there.",
        "",
        *markdown_table(
            (
                "criterion",
                "severity",
                "bound",
                "measured",
                "false failures",
                "fails on the bound",
                "power at twice the bound",
            ),
            [
                (
                    f"`{row.criterion}`",
                    row.severity,
                    row.bound,
                    row.n_measured,
                    f"{100 * row.false_failure:.2f} %",
                    f"{100 * row.at_bound:.1f} %",
                    f"{100 * row.power:.1f} %",
                )
                for row in calibration.criteria
            ],
        ),
    ]
    return "\n".join(lines) + "\n"
