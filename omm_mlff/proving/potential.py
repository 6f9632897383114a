"""A potential of the proving ground, as validation takes it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from torch import nn

from omm_mlff.forces.built import Built
from omm_mlff.forces.making import make_force
from omm_mlff.forces.plugin import built_as
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials.base import Capabilities
from omm_mlff.proving.field import unknown_elements
from omm_mlff.schema import Identity, MolecularSystem, PotentialCard

SOURCE = "proving"

EngineBuilder = Callable[[MolecularSystem, int], nn.Module]
"""A molecular system and a number of copies to an engine (`proving.field.PairEngine`)."""

_MAX_REPLICAS = 256


class ProvingPotential:
    """An engine in closed form, sound or faulty: tapped, with replicas.

    Parameters
    ----------
    name : such as "curl 0.1"
    build : makes the engine; called anew for every Force
    cutoff_nm : as the card names it
    knows_atoms_by : as in the card
    dtype : as the card claims it
    has_memory : what it computes depends on what it computed before, so that there is no other way
        to it than OpenMM's
    """

    def __init__(
        self,
        name: str,
        build: EngineBuilder,
        *,
        cutoff_nm: float | None,
        knows_atoms_by: Identity = "bond",
        dtype: str = "float64",
        has_memory: bool = False,
    ) -> None:
        self.spec = f"proving:{name.replace(' ', ':')}"
        self._card = PotentialCard(
            name, SOURCE, None, cutoff_nm, dtype, knows_atoms_by=knows_atoms_by
        )
        self._build = build
        self._has_memory = has_memory

    @property
    def card(self) -> PotentialCard:
        return self._card

    def unsupported(self, system: MolecularSystem) -> str | None:
        missing = unknown_elements(system)
        if missing:
            listed = ", ".join(map(str, missing))
            return f"the proving ground has no parameters for the atomic numbers {listed}"
        return None

    def capabilities(self, system: MolecularSystem) -> Capabilities:
        return Capabilities(
            tap=True, max_replicas=_MAX_REPLICAS, reads_box=True, force="torchforce"
        )

    def add_to(
        self,
        openmm_system: openmm.System,
        system: MolecularSystem,
        *,
        n_replicas: int = 1,
        tap: Tap | None = None,
    ) -> Built:
        engine = self._build(system, n_replicas)
        openmm_system.addForce(make_force(engine, periodic=system.periodic, tap=tap))
        return built_as()

    def energies_and_forces(
        self, positions: NDArray[np.float64], system: MolecularSystem
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        if self._has_memory:
            return None
        engine = self._build(system, len(positions))
        box = None if system.box_vectors is None else torch.from_numpy(system.box_vectors)
        flat = torch.from_numpy(np.array(positions, dtype=np.float64)).reshape(-1, 3)
        energies, forces = engine(flat, box)
        return energies.numpy(), forces.numpy().reshape(np.shape(positions))

    def reference_energy(self, system: MolecularSystem) -> float:
        return 0.0
