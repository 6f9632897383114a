"""Opens a TorchScript file, and says of any other file what it is.

Nothing is unpickled: TorchScript is read as TorchScript, and of anything else no more than tensors.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from omm_mlff.errors import CheckpointError, InputError
from omm_mlff.forces.faults import one_line
from omm_mlff.forces.scripting import read_script

DESCRIPTION_FILE = "omm-mlff.json"
"""What `omm-mlff export` stores inside a file."""

DESCRIPTION_FORMAT = 1


@dataclass(frozen=True, eq=False)
class TorchScriptFile:
    """What stands in a file.

    Attributes
    ----------
    module : on the host, in evaluation mode
    sha256 : of the file
    description : what `omm-mlff export` stored in it; empty for other people's files
    """

    module: torch.jit.ScriptModule
    sha256: str
    description: Mapping[str, Any]


def open_torchscript(path: Path) -> TorchScriptFile:
    """Load a TorchScript file; this can run code that is stored in it.

    Raises
    ------
    InputError : there is no such file
    CheckpointError : it is not TorchScript, or cannot be read
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}; give the path of a TorchScript file")
    if not is_torchscript(path):
        raise CheckpointError(_what_it_is(path))
    payload = path.read_bytes()
    extra_files: dict[str, bytes] = {DESCRIPTION_FILE: b""}
    try:
        module = read_script(payload, extra_files)
    except Exception as error:  # torch raises what it likes for what it cannot read
        raise CheckpointError(_not_readable(path, error)) from None
    sha256 = hashlib.sha256(payload).hexdigest()
    return TorchScriptFile(module, sha256, _description(extra_files[DESCRIPTION_FILE]))


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive; nothing of it is run."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(re.match(r"[^/]+/code/", name) for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _what_it_is(path: Path) -> str:
    """Why a file that is not TorchScript cannot be used, and what to do."""
    wanted = "wanted a module saved by torch.jit.script(module).save(...)"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        pickled = re.search(r"GLOBAL ([\w.]+)", str(error))
        if pickled:
            return (
                f"{path} holds a pickled {pickled.group(1)}, which is not loaded, since unpickling "
                f"runs code; {wanted}"
            )
        return f"{path} is not a TorchScript file; {wanted}"
    if isinstance(content, dict):
        return (
            f"{path} is a state_dict ({len(content)} entries), the numbers of a network without "
            f"the network; load it into one and save that; {wanted}"
        )
    return f"{path} holds a {type(content).__name__}; {wanted}"


def _not_readable(path: Path, error: Exception) -> str:
    operator = re.search(r"Unknown builtin op: ([\w:]+)", str(error))
    if operator:
        return (
            f"{path} needs the operator {operator.group(1)} of another package; import that "
            "package before loading it (from a script), or save the module without it"
        )
    return f"{path} cannot be read as TorchScript ({one_line(error)}); save it again"


def _description(stored: bytes | str) -> Mapping[str, Any]:
    """What `omm-mlff export` stored; empty for other people's files."""
    if not stored:
        return {}
    try:
        description = json.loads(stored)
    except ValueError:
        return {}
    ours = isinstance(description, dict) and description.get("format") == DESCRIPTION_FORMAT
    return description if ours else {}
