"""Whether evaluations on CUDA are captured once as a graph and replayed; found out, never assumed.

A graph repeats the kernels of one evaluation, without Python and without TorchScript. That is right
only where each evaluation does the same work, and a capture that fails can leave the process
without a usable device. So a capture is first tried in a process of its own (`graph_trial`), once
for a potential, precision and version of everything; that it passed is kept in the cache's folder.
The package's own kernel is known to be capturable and needs none. Then, for every number of atoms
and copies, the numbers of replays are held against the network evaluated directly, at structures
that differ, and evaluations are counted on the device: a replay is one for which Python was not
called. What does not pass is launched.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import torch
from numpy.typing import NDArray

from omm_mlff.dynamics.provenance import package_versions
from omm_mlff.forces.built import Built
from omm_mlff.forces.faults import one_line
from omm_mlff.forces.making import replay
from omm_mlff.forces.platforms import device_asked, platform_properties
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials.base import Potential
from omm_mlff.schema import MolecularSystem, Precision
from omm_mlff.students.kernel.build import cache_folder

ENERGY_TOLERANCE_KJMOL = 0.01
"""An atom; and 4e-7 of the whole, what float32 resolves of it."""
FORCE_TOLERANCE_KJMOL_NM = 1.0
"""Of a component; and 1e-3 of the largest."""
_RELATIVE_ENERGY = 4e-7
_RELATIVE_FORCE = 1e-3
_SHIFTS_NM = (0.003, 0.006, 0.012)
_DISCARDED_CALLS = 3
_TRIAL_SECONDS = 300

Numbers = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Energies (n_rounds, n_copies) in kJ/mol, forces (n_rounds, n_copies, n_atoms, 3) in kJ/mol/nm."""


@dataclass(frozen=True, eq=False)
class Case:
    """Copies of a molecular system under a potential, in a Context.

    Attributes
    ----------
    device : the index that was asked for; None for the platform's own choice
    """

    potential: Potential
    system: MolecularSystem
    platform_name: str
    precision: Precision
    n_copies: int
    device: int | None = field(default_factory=device_asked)


@dataclass(frozen=True)
class Decision:
    """Whether a graph is used.

    Attributes
    ----------
    used : evaluations are replayed
    reason : why, or why not, in one line
    """

    used: bool
    reason: str


_tried: dict[tuple[str, ...], Decision] = {}
_compared: dict[tuple[object, ...], Decision] = {}


def open_context(
    openmm_system: openmm.System,
    built: Built,
    integrator: openmm.Integrator,
    case: Case,
    tap: Tap | None,
) -> tuple[openmm.Context, Built]:
    """A Context whose evaluations are replayed where that can be and is right.

    Parameters
    ----------
    built : what the potential has put into the System; where it has chosen, that stands
    tap : in its Force

    Returns
    -------
    the Context, and `built` with what was decided

    Raises
    ------
    openmm.OpenMMException : no Context can be made
    """
    if not _to_be_decided(built, case, tap):
        return new_context(openmm_system, integrator, case), built
    try:
        content = _content(case.potential)
    except Exception as error:  # what somebody else's objects raise is not known beforehand
        reason = f"no trial in a process of its own: {one_line(error)}"
        return new_context(openmm_system, integrator, case), replace(built, graph_reason=reason)
    key = (content, case.system.species.tobytes(), case.n_copies, case.precision, case.device)
    decision = _compared.get(key)
    if decision is None:
        decision = _trial(content, built, case)
        if decision.used and tap is not None:
            replay(openmm_system, True)
            spare = copy.deepcopy(integrator)  # one serves one Context, also when that is gone
            context = new_context(openmm_system, integrator, case)
            wrong = failure(context, tap, case)
            if not wrong:
                _compared[key] = decision
                return context, replace(built, graph=True, graph_reason=decision.reason)
            decision, integrator = Decision(False, wrong), spare
            del context
        _compared[key] = decision
    replay(openmm_system, decision.used)
    context = new_context(openmm_system, integrator, case)
    return context, replace(built, graph=decision.used, graph_reason=decision.reason)


def new_context(
    openmm_system: openmm.System, integrator: openmm.Integrator, case: Case
) -> openmm.Context:
    """A Context on the case's platform, of a System as it is."""
    return openmm.Context(
        openmm_system,
        integrator,
        openmm.Platform.getPlatformByName(case.platform_name),
        platform_properties(case.platform_name, case.precision),
    )


def evaluated(context: openmm.Context, tap: Tap, case: Case) -> tuple[Numbers, bool]:
    """Copies at structures that differ, in rounds that differ.

    Returns
    -------
    the numbers, as the tap has them
    whether each round was one evaluation, for which Python was not called
    """
    frames = structures(case.system)
    energies, forces = [], []
    for _ in range(_DISCARDED_CALLS):  # warming up and capturing call Python
        _evaluate(context, frames[np.arange(case.n_copies) % len(frames)])
    calls, launches = tap.n_calls, tap.n_launches
    for k in range(len(frames)):
        tap.alive.fill_(True)
        _evaluate(context, frames[(np.arange(case.n_copies) + k) % len(frames)])
        energy, force = tap.read()
        energies.append(energy)
        forces.append(force)
    replayed = tap.n_calls - calls == len(frames) and tap.n_launches == launches
    tap.alive.fill_(True)
    return (np.array(energies), np.array(forces)), replayed


def structures(system: MolecularSystem) -> NDArray[np.float64]:
    """Some structures near the system's own, shape (n_frames, n_atoms, 3), nm."""
    rng = np.random.default_rng(0)
    shifts = [scale * rng.uniform(-1.0, 1.0, system.positions.shape) for scale in _SHIFTS_NM]
    return np.array([system.positions + shift for shift in shifts])


def disagreement(got: Numbers, wanted: Numbers) -> str:
    """How replays differ from what they should be, in one line; empty where they do not."""
    n_atoms = got[1].shape[-2]
    off_energy = float(np.abs(got[0] - wanted[0]).max())
    off_force = float(np.abs(got[1] - wanted[1]).max())
    energy = ENERGY_TOLERANCE_KJMOL * n_atoms + _RELATIVE_ENERGY * float(np.abs(wanted[0]).max())
    force = FORCE_TOLERANCE_KJMOL_NM + _RELATIVE_FORCE * float(np.abs(wanted[1]).max())
    if off_energy <= energy and off_force <= force:
        return ""
    return (
        f"replays are off by {off_energy:.2g} kJ/mol and {off_force:.2g} kJ/mol/nm (wanted "
        f"{energy:.2g} and {force:.2g})"
    )


def failure(context: openmm.Context, tap: Tap, case: Case) -> str:
    """Why a Context that replays is not to be used, in one line; empty where nothing is wrong."""
    frames = structures(case.system)
    direct = case.potential.energies_and_forces(frames, case.system)
    if direct is None:
        return "there is nothing to compare replays with"
    rounds = (np.arange(len(frames))[:, None] + np.arange(case.n_copies)) % len(frames)
    try:
        got, replayed = evaluated(context, tap, case)
    except openmm.OpenMMException as error:
        return f"a replay failed: {one_line(error)}"
    if not replayed:
        return "its evaluations are no replays: Python was called for them"
    return disagreement(got, (direct[0][rounds], direct[1][rounds]))


def _to_be_decided(built: Built, case: Case, tap: Tap | None) -> bool:
    return (
        case.platform_name == "CUDA"
        and built.force == "torchforce"
        and not built.graph
        and tap is not None
        and case.potential.capabilities(case.system).graphs
    )


def _trial(content: str, built: Built, case: Case) -> Decision:
    """Whether a capture can be tried in this process."""
    if built.engines.get("cuda", "").startswith("compiled"):
        return Decision(True, "replays of its kernel agree with the network")
    key = (content, case.precision, str(case.device), *_versions())
    if key not in _tried:
        name = hashlib.sha256(chr(0).join(key).encode()).hexdigest()[:16]
        passed = cache_folder() / f"graph-{name}"
        wrong = "" if passed.exists() else in_process_of_its_own(case)
        if not wrong:
            # That it can be captured is kept over processes; a failure may have been the machine's.
            with contextlib.suppress(OSError):
                passed.parent.mkdir(parents=True, exist_ok=True)
                passed.touch()
        agreed = "replays agree with launches in a process of their own, and with the network here"
        _tried[key] = Decision(not wrong, wrong or agreed)
    return _tried[key]


def in_process_of_its_own(case: Case) -> str:
    """What `graph_trial` finds; why there is no graph, in one line, empty where there is one."""
    with tempfile.TemporaryDirectory(prefix="omm-mlff-") as folder:
        asked, answer = Path(folder) / "case.pickle", Path(folder) / "answer.json"
        asked.write_bytes(pickle.dumps(case))
        command = [sys.executable, "-m", "omm_mlff.dynamics.graph_trial", str(asked), str(answer)]
        # What can be imported here can be imported there.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            done = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TRIAL_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"a capture in a process of its own did not end: {one_line(error)}"
        try:
            return str(json.loads(answer.read_text())["failure"])
        except (OSError, ValueError, KeyError):
            said = (done.stderr.strip().splitlines() or ["no word"])[-1]
            return f"a capture ended its process with code {done.returncode}: {said}"


def _content(potential: Potential) -> str:
    """What a potential is made of, as a hash."""
    digest = hashlib.sha256(pickle.dumps(potential))
    return f"{potential.card.sha256 or digest.hexdigest()} {potential.card.dtype} {potential.spec}"


def _versions() -> tuple[str, ...]:
    """What else a capture depends on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return *(f"{name} {version}" for name, version in package_versions()), device


def forget_decisions() -> None:
    """Try everything again; for a device that is another one now."""
    _tried.clear()
    _compared.clear()


def _evaluate(context: openmm.Context, frames: NDArray[np.float64]) -> Any:
    context.setPositions(frames.reshape(-1, 3))
    return context.getState(energy=True, forces=True)
