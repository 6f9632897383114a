"""Make the folder of a system in `systems/`, whole or in part.

    python scripts/make_system.py acetone --smiles 'CC(C)=O'     a new system, all in one go
    python scripts/make_system.py                                every system anew but its structure
    python scripts/make_system.py ethanol --only landmarks       one part of one system anew

A folder holds, in the order in which they are made: structure.pdb and system.toml (with its bonds),
reference.npz (labelled frames), landmarks.npz (minima, normal modes, torsion scans), for the
systems that have one ensemble.npz (the teacher's own dynamics), and openff-2.2.1.xml (parameters
of OpenFF Sage). The last needs an environment of its own, which scripts/make_native.py describes:
where its packages are absent, the command for it is printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from omm_mlff.distill.ensemble import PLANS, EnsemblePlan, make_ensemble
from omm_mlff.distill.landmarks import LandmarkPlan, make_landmarks
from omm_mlff.distill.new_system import make_structure
from omm_mlff.distill.reference import ReferencePlan, make_reference
from omm_mlff.errors import OmmMlffError
from omm_mlff.potentials.committed import WITHOUT
from omm_mlff.systems import system_names
from omm_mlff.teachers.ani import Teacher

NEW_ENSEMBLE = EnsemblePlan(length_ps=10.0)
PARTS = ("reference", "landmarks", "ensemble", "parameters")


def main(words: Sequence[str]) -> int:
    """The exit code: 0, or 2 with one line on standard error where something cannot be made."""
    torch.set_num_threads(1)  # a file must not depend on how many cores made it
    summary, _, description = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="every system by default")
    parser.add_argument("--smiles", help="begin a new folder, NAME, with this molecule")
    parser.add_argument("--title", default="", help="of a new system, for a person")
    parser.add_argument("--notes", default="", help="of a new system: what it is good for")
    parser.add_argument("--only", choices=PARTS, action="append", help="these parts alone")
    asked = parser.parse_args(words)
    if asked.smiles is not None and len(asked.names) != 1:
        parser.error("--smiles begins one new system: wanted one NAME")
    teacher = Teacher()
    try:
        if asked.smiles is not None:
            (name,) = asked.names
            title, notes = asked.title, asked.notes
            _timed(lambda: make_structure(name, asked.smiles, teacher, title=title, notes=notes))
        for name in asked.names or system_names():
            _make(name, asked.only, teacher)
    except OmmMlffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _make(name: str, only: Sequence[str] | None, teacher: Teacher) -> None:
    """The parts that are named; without names, all that a system of its kind has."""
    parts = only or [part for part in PARTS if part != "ensemble" or name in PLANS]
    if "reference" in parts:
        _timed(lambda: make_reference(name, teacher, ReferencePlan()))
    if "landmarks" in parts:
        _timed(lambda: make_landmarks(name, teacher, LandmarkPlan()))
    if "ensemble" in parts:
        _timed(lambda: make_ensemble(name, teacher, PLANS.get(name, NEW_ENSEMBLE)))
    if "parameters" in parts and name not in WITHOUT:
        if importlib.util.find_spec("openff") is None:
            print(f"parameters: python scripts/make_native.py {name}, in its own environment")
            return
        import make_native

        make_native.main([name])


def _timed(make: Callable[[], Path]) -> None:
    """Make something, then say where it is and how long it took."""
    start = time.perf_counter()
    path = make()
    print(f"{path}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
