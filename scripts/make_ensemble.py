"""Make the reference ensembles of shipped systems: python scripts/make_ensemble.py [NAME ...]."""

from __future__ import annotations

import sys
import time

import torch

from omm_mlff.distill.ensemble import PLANS, make_ensemble
from omm_mlff.teachers.ani import Teacher


def main(names: list[str]) -> None:
    torch.set_num_threads(1)  # a file must not depend on how many cores made it
    teacher = Teacher()
    for name in names or list(PLANS):
        start = time.perf_counter()
        path = make_ensemble(name, teacher, PLANS[name])
        seconds = time.perf_counter() - start
        print(f"{path}: {path.stat().st_size:,} bytes, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
