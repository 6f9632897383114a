"""A PythonForce around somebody else's function, with replicas and the tap."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import openmm
import torch
from numpy.typing import NDArray

from omm_mlff.forces.faults import nobody_alone, one_line
from omm_mlff.forces.plugin import python_force_or_error
from omm_mlff.forces.tap import Tap

Evaluate = Callable[
    [NDArray[np.float64], NDArray[np.float64] | None],
    tuple[NDArray[np.float64], NDArray[np.float64]],
]
"""Positions (n_copies, n_atoms, 3) in nm and box vectors (3, 3) in nm or None, to energies
(n_copies,) in kJ/mol and forces of the shape of the positions in kJ/mol/nm."""


def make_python_force(
    evaluate: Evaluate,
    *,
    n_replicas: int,
    n_atoms: int,
    periodic: bool,
    tap: Tap | None = None,
) -> openmm.Force:
    """A PythonForce around a function of somebody else's, with replicas and the tap.

    Where the function raises, the copies are tried one by one: with a tap, that replica's energy
    and forces are NaN, and `Tap.raised` has the message; where none of them raises alone, those of
    all are. Without a tap OpenMM raises it, and the message begins with the kind of exception.

    Parameters
    ----------
    n_atoms : of one copy

    Raises
    ------
    InputError : this OpenMM has no PythonForce
    """
    python_force_or_error()

    def compute(state: openmm.State) -> tuple[float, NDArray[np.float64]]:
        x = np.array(state.getPositions(asNumpy=True)._value)
        box = None
        if periodic:
            box = np.array(state.getPeriodicBoxVectors(asNumpy=True)._value)
        frames = x.reshape(n_replicas, n_atoms, 3)
        if tap is None:
            try:
                energies, forces = _evaluated(evaluate, frames, box)
            except (Exception, SystemExit) as error:
                # OpenMM hands on the text of an exception, not its kind.
                raise RuntimeError(one_line(error)) from error
            return float(energies.sum()), forces.reshape(-1, 3)
        tap.raised = {}
        try:
            energies, forces = _evaluated(evaluate, frames, box)
        except (Exception, SystemExit) as error:
            energies, forces, tap.raised = _one_by_one(evaluate, frames, box, error)
        passed_on, masked = tap.receive(
            torch.from_numpy(energies),
            torch.from_numpy(forces.reshape(-1, 3)),
            torch.from_numpy(x),
        )
        return float(passed_on.sum()), masked.numpy()

    force = openmm.PythonForce(compute)
    force.setUsesPeriodicBoundaryConditions(periodic)
    return force


def _evaluated(
    evaluate: Evaluate, frames: NDArray[np.float64], box: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What a function gives, as contiguous float64.

    Raises
    ------
    ValueError : as many energies as copies, or forces of their shape, were wanted and did not come
    """
    given, pulled = evaluate(frames, box)
    energies = np.ascontiguousarray(given, dtype=np.float64).reshape(-1)
    forces = np.ascontiguousarray(pulled, dtype=np.float64)
    if energies.shape != (len(frames),):
        raise ValueError(f"it gave {len(energies)} energies, wanted {len(frames)}")
    if forces.shape != frames.shape:
        raise ValueError(f"it gave forces of shape {forces.shape}, wanted {frames.shape}")
    return energies, forces


def _one_by_one(
    evaluate: Evaluate,
    frames: NDArray[np.float64],
    box: NDArray[np.float64] | None,
    first: BaseException,
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[int, str]]:
    """Each copy in a call of its own; NaN and the message for those that raise."""
    energies = np.full(len(frames), np.nan)
    forces = np.full(frames.shape, np.nan)
    raised = {}
    if len(frames) == 1:
        return energies, forces, {0: one_line(first)}
    for replica, frame in enumerate(frames):
        try:
            energy, force = _evaluated(evaluate, frame[None], box)
        except (Exception, SystemExit) as error:
            raised[replica] = one_line(error)
        else:
            energies[replica], forces[replica] = energy[0], force[0]
    if not raised:
        energies[:], forces[:] = np.nan, np.nan
        raised = dict.fromkeys(range(len(frames)), f"{one_line(first)} {nobody_alone(len(frames))}")
    return energies, forces, raised
