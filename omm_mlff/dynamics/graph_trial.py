"""Captures an evaluation where nothing is lost if that fails: a program of its own.

    python -m omm_mlff.dynamics.graph_trial CASE ANSWER

CASE is a pickled `graphs.Case` that this package has written a moment before; ANSWER gets, as JSON,
why there is no graph. Whoever started it sees how it ended, too.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import openmm

from omm_mlff.dynamics.graphs import Case, Numbers, disagreement, evaluated, new_context
from omm_mlff.forces.faults import one_line
from omm_mlff.forces.making import replay
from omm_mlff.forces.platforms import on_device
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials.base import system_and_built


def try_graph(case: Case) -> str:
    """Why a graph of this case is not to be used, in one line; empty where nothing is wrong."""
    try:
        launched, _ = _numbers(case, graph=False)
        replayed, are_replays = _numbers(case, graph=True)
    except Exception as error:  # what a capture raises is not known beforehand
        return f"it cannot be captured: {one_line(error)}"
    if not are_replays:
        return "its evaluations are no replays: Python was called for them"
    return disagreement(replayed, launched)


def _numbers(case: Case, *, graph: bool) -> tuple[Numbers, bool]:
    tap = Tap(case.n_copies, case.system.n_atoms)
    openmm_system, _ = system_and_built(
        case.potential, case.system, n_replicas=case.n_copies, tap=tap
    )
    replay(openmm_system, graph)
    context = new_context(openmm_system, openmm.VerletIntegrator(0.0005), case)
    return evaluated(context, tap, case)


def main(asked: str, answer: str) -> None:
    """Read a case, try it, write what came of it."""
    case = pickle.loads(Path(asked).read_bytes())
    with on_device(case.platform_name, case.device):
        failure = try_graph(case)
    Path(answer).write_text(json.dumps({"failure": failure}))


if __name__ == "__main__":
    main(*sys.argv[1:])
