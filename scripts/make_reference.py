"""Make the reference frames of shipped systems: python scripts/make_reference.py [NAME ...]."""

from __future__ import annotations

import sys
import time

import torch

from omm_mlff.distill.reference import ReferencePlan, make_reference
from omm_mlff.systems import system_names
from omm_mlff.teachers.ani import Teacher


def main(names: list[str]) -> None:
    torch.set_num_threads(1)  # a file must not depend on how many cores made it
    teacher = Teacher()
    for name in names or system_names():
        start = time.perf_counter()
        path = make_reference(name, teacher, ReferencePlan())
        print(f"{path}: {path.stat().st_size:,} bytes, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
