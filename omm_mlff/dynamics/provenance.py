"""What a result depends on: versions, device, precision, hashes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform as host
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from omm_mlff.forces.platforms import platform_properties
from omm_mlff.potentials.base import Potential
from omm_mlff.potentials.registry import content_hash
from omm_mlff.schema import MolecularSystem, RunSpec

if TYPE_CHECKING:
    from omm_mlff.dynamics.initial_state import Rest

_PACKAGES = ("omm-mlff", "openmm", "torch", "numpy", "mdtraj")
_PLUGINS = (
    "acellera-openmmtorch-cpu",
    "acellera-openmmtorch-cu12",
    "acellera-openmmtorch-cu13",
    "openmmtorch",
)


def run_provenance(
    spec: RunSpec,
    potential: Potential,
    system: MolecularSystem,
    platform_name: str,
    rest: Rest,
    n_dof: int,
) -> dict[str, Any]:
    """The content of a run directory's `provenance.json`.

    Parameters
    ----------
    rest : where the replicas start
    n_dof : of one replica
    """
    card = potential.card
    tapped = potential.capabilities(system).tap
    return {
        "versions": dict(package_versions()),
        "python": host.python_version(),
        "machine": host.machine(),
        "platform": platform_name,
        "precision": spec.precision if platform_properties(platform_name, "double") else "double",
        "recording": "tap" if tapped else "state (every step is evaluated twice)",
        "torch_threads": torch.get_num_threads(),
        "potential": {"name": card.name, "source": card.source, "sha256": content_hash(potential)},
        "start": rest.kind,
        "n_dof": n_dof,
        "molecule": {
            "name": system.name,
            "species": system.species.tolist(),
            "masses": system.masses.tolist(),
            "bonds": system.bonds.tolist(),
            "positions": rest.positions.tolist(),
            "periodic": system.periodic,
        },
    }


def package_versions() -> Iterator[tuple[str, str]]:
    """Name and version of each package that a result depends on."""
    for name in (*_PACKAGES, *_PLUGINS):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)
