"""Makes a checkpoint of what a fast training left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file

from omm_mlff.distill.fast import LOG_FILE
from omm_mlff.distill.packed import PackedFrames
from omm_mlff.distill.transfer import TransferError, transfer_errors
from omm_mlff.errors import InputError
from omm_mlff.students.checkpoint import save_student
from omm_mlff.students.student import STUDENT_CONFIGS, Student
from omm_mlff.teachers.ani import TEACHER_NAME
from omm_mlff.teachers.xtb import XTB_NAME


def trained_student(folder: Path, name: str) -> Student:
    """The student that a training left in `folder`, frozen.

    Raises
    ------
    InputError : no such file, or damaged
    """
    path = folder / f"{name}.safetensors"
    try:
        student = Student(STUDENT_CONFIGS[name])
        student.load_state_dict(load_file(path), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{path} cannot be read ({error}); train {name} again") from error
    student.eval()
    student.requires_grad_(False)
    return student


def release(folder: Path, name: str, checkpoint: Path, unseen: PackedFrames) -> list[TransferError]:
    """Write the checkpoint of one student, safetensors and card, and return its errors.

    Parameters
    ----------
    folder : with the weights and the log of a training
    unseen : frames of molecules that were held out whole, see `transfer.sample_unseen`

    Raises
    ------
    InputError : the folder lacks the student or the log
    """
    student = trained_student(folder, name)
    try:
        log = json.loads((folder / LOG_FILE).read_text(encoding="utf-8"))
        own = log["students"][name]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder / LOG_FILE} cannot be read ({error}); train again") from error
    errors = transfer_errors(student, unseen)
    save_student(checkpoint, student, _card(log, own, errors))
    return errors


def _card(log: dict[str, Any], own: dict[str, Any], errors: list[TransferError]) -> dict[str, Any]:
    return {
        "teacher": TEACHER_NAME,
        "teacher_outside_its_range": f"{XTB_NAME}, aligned at the join",
        "seed": own["plan"]["seed"],
        "data_hash": log["data_hash"],
        "training": {
            **own["plan"],
            "n_steps": own["n_steps"],
            "seconds": own["history"][-1]["seconds"],
            "device": log["device"],
        },
        "reference_energies": (
            "free atoms on the teacher's scale: the energy without them is minus the energy "
            "of atomisation"
        ),
        "training_domain": log["training_domain"],
        "held_out": _rows(errors),
    }


def _rows(errors: list[TransferError]) -> list[dict[str, Any]]:
    """By molecule and temperature; "cold" is all of a molecule's frames."""
    rows = []
    for system in dict.fromkeys(error.system for error in errors):
        mine = [error for error in errors if error.system == system]
        count = np.array([error.n_frames for error in mine], dtype=float)
        merged = {
            "cold": [
                float(np.sqrt((count * np.array(values) ** 2).sum() / count.sum()))
                for values in ([e.force for e in mine], [e.energy for e in mine])
            ],
            **{f"{error.temperature_K:.0f} K": [error.force, error.energy] for error in mine},
        }
        for stratum, (force, energy) in merged.items():
            n = sum(e.n_frames for e in mine if stratum in ("cold", f"{e.temperature_K:.0f} K"))
            rows.append(
                {
                    "system": system,
                    "stratum": stratum,
                    "trained_on": mine[0].known,
                    "n_frames": n,
                    "force_rmse_eV_per_angstrom": float(f"{force:.4g}"),
                    "energy_rmse_meV_per_atom": float(f"{energy:.4g}"),
                }
            )
    return rows
