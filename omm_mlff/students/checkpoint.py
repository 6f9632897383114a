"""Checkpoints: safetensors for the numbers, a JSON card for what they mean.

Loading executes nothing that is stored: safetensors holds raw arrays, the card plain JSON. A
`state_dict` that was pickled by `torch.save` is read as well, as weights only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors

from omm_mlff.data import data_folder, shipped_names
from omm_mlff.errors import CheckpointError, UnknownNameError
from omm_mlff.record.replacing import replaced
from omm_mlff.students.student import Student, StudentConfig

MODEL_FILE = "model.safetensors"
PICKLE_FILE = "model.pt"
CARD_FILE = "card.json"
CARD_VERSION = 1
UNITS = {"length": "angstrom", "energy": "eV"}


def student_names() -> list[str]:
    """Names of the shipped students."""
    return shipped_names("checkpoints", CARD_FILE)


def checkpoint_folder(name_or_folder: str | Path) -> Path:
    """The folder of a shipped student, or the folder that was named.

    Raises
    ------
    UnknownNameError : neither a shipped name nor a folder
    """
    if str(name_or_folder) in student_names():
        return data_folder("checkpoints") / str(name_or_folder)
    folder = Path(name_or_folder)
    if folder.is_dir():
        return folder
    raise UnknownNameError(
        "student",
        str(name_or_folder),
        student_names(),
        hint=f"or the path of a folder with {MODEL_FILE} and {CARD_FILE}",
    )


def save_student(folder: str | Path, student: Student, card: Mapping[str, Any]) -> None:
    """Write a checkpoint; an existing one is replaced file by file, never left half written.

    Parameters
    ----------
    card : training domain, teacher, seed, data hash, held-out errors, ...; what follows from the
        student itself (parameter count, units, species, cutoff, configuration, hash) is added
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in student.state_dict().items()}
    payload = dump_tensors(tensors)
    config = student.config
    full_card = {
        "card_version": CARD_VERSION,
        "name": config.name,
        "architecture": "painn+zbl",
        "n_parameters": student.n_parameters,
        "units": UNITS,
        "species": list(config.species),
        "cutoff_angstrom": config.cutoff_angstrom,
        "dtype": str(student.dtype).removeprefix("torch."),
        "config": dataclasses.asdict(config),
        **card,
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    _replace(folder / MODEL_FILE, payload)
    _replace(folder / CARD_FILE, (json.dumps(full_card, indent=2) + "\n").encode())


def load_card(name_or_folder: str | Path) -> dict[str, Any]:
    """The card of a student, checked for the fields that loading needs.

    Raises
    ------
    CheckpointError : no card, not JSON, or a field is missing
    """
    path = checkpoint_folder(name_or_folder) / CARD_FILE
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {CARD_FILE}; it is not a checkpoint") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); restore the file") from None
    if not isinstance(card, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(card).__name__}")
    missing = {"card_version", "name", "config", "units", "sha256"} - card.keys()
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(sorted(missing))}; it is not a model card")
    if card["card_version"] != CARD_VERSION:
        raise CheckpointError(
            f"{path} has card version {card['card_version']}, this package reads {CARD_VERSION}"
        )
    if card["units"] != UNITS:
        raise CheckpointError(f"{path} has units {card['units']}, expected {UNITS}")
    return card


def load_student(name_or_folder: str | Path) -> Student:
    """A student in evaluation mode, its parameters frozen.

    Parameters
    ----------
    name_or_folder : a shipped name such as "tiny", or a checkpoint's folder

    Raises
    ------
    UnknownNameError : neither a shipped name nor a folder
    CheckpointError : corrupt, truncated, or not what its card says
    """
    folder = checkpoint_folder(name_or_folder)
    card = load_card(folder)
    path = weights_file(folder)
    try:
        payload = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no {MODEL_FILE} (nor {PICKLE_FILE}, a pickled state_dict); "
            "the checkpoint is incomplete"
        ) from None
    found = hashlib.sha256(payload).hexdigest()
    if found != card["sha256"]:
        raise CheckpointError(
            f"{path} is corrupt or was replaced: its sha256 is {found[:12]}..., "
            f"its card says {str(card['sha256'])[:12]}...; restore the file or train again"
        )
    try:
        fields = dict(card["config"])
        config = StudentConfig(**{**fields, "species": tuple(fields["species"])})
        student = Student(config)
        tensors = load_tensors(payload) if path.name == MODEL_FILE else _unpickled(payload)
        dtype = tensors["network.readout_mix.weight"].dtype
        student.network.to(dtype)
        student.load_state_dict(tensors, strict=True)
    except UnpicklingError:
        raise CheckpointError(
            f"{path} is a pickle that holds more than tensors, and is not loaded; save the "
            f"state_dict alone, or better as {MODEL_FILE} with omm_mlff.students.checkpoint"
        ) from None
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} does not fit its card: {reason}") from None
    declared = card.get("n_parameters")
    if declared is not None and declared != student.n_parameters:
        raise CheckpointError(
            f"{path} has {student.n_parameters} parameters, its card says {declared}"
        )
    student.eval()
    student.requires_grad_(False)
    return student


def weights_file(folder: Path) -> Path:
    """The file with the parameters: safetensors, or a pickled state_dict where that is all."""
    pickled = folder / PICKLE_FILE
    alone = pickled.is_file() and not (folder / MODEL_FILE).exists()
    return pickled if alone else folder / MODEL_FILE


def _unpickled(payload: bytes) -> dict[str, Any]:
    tensors = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    if not isinstance(tensors, dict):
        raise TypeError(f"wanted a state_dict, got a {type(tensors).__name__}")
    return tensors


def _replace(path: Path, payload: bytes) -> None:
    with replaced(path) as partial:
        partial.write_bytes(payload)
