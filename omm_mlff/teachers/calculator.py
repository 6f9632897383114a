"""The teacher as the ASE calculator that torchani itself brings; `ani` evaluates it otherwise."""

from __future__ import annotations

from typing import Any

import torch

from omm_mlff.errors import MissingPackageError
from omm_mlff.teachers.ani import load_ensemble


def ani1ccx() -> Any:
    """ANI-1ccx in float64; as a model, `ase:omm_mlff.teachers.calculator:ani1ccx?dtype=float64`.

    Raises
    ------
    MissingPackageError : torchani or ase is not installed
    """
    ensemble = load_ensemble().to(torch.float64).requires_grad_(False)
    try:
        return ensemble.ase()
    except ImportError:
        raise MissingPackageError(
            "ase", "the teacher as an ASE calculator", "pip install 'omm-mlff[teacher,ase]'"
        ) from None
