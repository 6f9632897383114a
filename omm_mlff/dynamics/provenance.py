"""What a result depends on: versions, device, precision, hashes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform as host
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from omm_mlff.forces.platforms import platform_properties
from omm_mlff.potentials.base import Potential
from omm_mlff.potentials.registry import content_hash
from omm_mlff.record.provenance import (
    RecordedDevice,
    RecordedGraph,
    RecordedIntegrator,
    RecordedMolecule,
    RecordedPotential,
    RunProvenance,
)
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
    *,
    integrator: RecordedIntegrator,
    force: str,
    engine: str,
    graph: RecordedGraph,
    device: RecordedDevice | None,
    notices: tuple[str, ...],
) -> RunProvenance:
    """What a run depends on.

    Parameters
    ----------
    rest : where the replicas start
    n_dof : of one replica
    force, engine : what OpenMM calls, and what computes in it
    graph : whether CUDA graphs replay it
    device : None on the host
    notices : what is not as it was asked for, or not as fast as it could be
    """
    card = potential.card
    tapped = potential.capabilities(system).tap
    return RunProvenance(
        versions=dict(package_versions()),
        python=host.python_version(),
        machine=host.machine(),
        platform=platform_name,
        precision=spec.precision if platform_properties(platform_name, "double") else "double",
        recording="tap" if tapped else "state (every step is evaluated twice)",
        torch_threads=torch.get_num_threads(),
        potential=RecordedPotential(card.name, card.source, content_hash(potential)),
        start=rest.kind,
        n_dof=n_dof,
        molecule=RecordedMolecule(
            name=system.name,
            species=tuple(system.species.tolist()),
            masses=tuple(system.masses.tolist()),
            bonds=tuple((int(i), int(j)) for i, j in system.bonds),
            positions=tuple((float(x), float(y), float(z)) for x, y, z in rest.positions),
            periodic=system.periodic,
        ),
        integrator=integrator,
        force=force,
        engine=engine,
        graph=graph,
        device=device,
        notices=notices,
    )


def package_versions() -> Iterator[tuple[str, str]]:
    """Name and version of each package that a result depends on."""
    for name in (*_PACKAGES, *_PLUGINS):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)
