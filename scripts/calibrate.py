"""Draw how often the judge errs, with a finished validation as the design.

python scripts/calibrate.py runs/original-standard-... analysis/calibration
"""

from __future__ import annotations

import argparse
from pathlib import Path

from omm_mlff.cli.progress import shown_progress
from omm_mlff.proving.calibration import Design
from omm_mlff.proving.calibration_report import calibrate, write
from omm_mlff.verdict.measurement_file import MeasurementFile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("validation", type=Path, help="the folder of a finished validation")
    parser.add_argument("out", type=Path)
    parser.add_argument("--verdicts", type=int, default=5000)
    parser.add_argument("--sound", type=int, default=5000)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seed", type=int, default=20261123)
    options = parser.parse_args()
    design = Design(MeasurementFile.read(options.validation / "measurements.json"))
    with shown_progress() as progress:
        drawn = calibrate(
            design,
            n_verdicts=options.verdicts,
            n_sound=options.sound,
            n_trials=options.trials,
            seed=options.seed,
            progress=progress,
        )
    for path in write(drawn, options.out):
        print(path)


if __name__ == "__main__":
    main()
