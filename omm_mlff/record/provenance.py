"""What `provenance.json` in a run directory says: what a run depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from omm_mlff.schema import EXACT_KEYS

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class RecordedPotential:
    """Which potential ran."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    name: str
    source: str
    sha256: str | None = None


@dataclass(frozen=True)
class RecordedMolecule:
    """The molecule of a run.

    Attributes
    ----------
    masses : dalton
    positions : nm, of the structure that the replicas were started from
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    name: str
    species: tuple[int, ...]
    masses: tuple[float, ...]
    bonds: tuple[tuple[int, int], ...]
    positions: tuple[Vector, ...]
    periodic: bool = False


@dataclass(frozen=True)
class RecordedIntegrator:
    """What moved the atoms.

    Attributes
    ----------
    name : OpenMM's
    velocities : when they are of, for a person
    friction_per_ps : of a thermostat
    resumed : how an interrupted run goes on, for a person
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    name: str
    velocities: str
    friction_per_ps: float | None = None
    resumed: str = ""


@dataclass(frozen=True)
class RunProvenance:
    """What a run depends on.

    Attributes
    ----------
    versions : of packages, by name
    platform, precision : of OpenMM
    recording : "tap", or how else
    start : what the replicas were started from, for a person
    n_dof : degrees of freedom of one replica
    force : what OpenMM called: "torchforce", "pythonforce", or "openmm" itself
    engine : what computed in it; empty where the potential does not say
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    versions: Mapping[str, str]
    python: str
    machine: str
    platform: str
    precision: str
    recording: str
    torch_threads: int
    potential: RecordedPotential
    start: str
    n_dof: int
    molecule: RecordedMolecule
    integrator: RecordedIntegrator
    force: str = ""
    engine: str = ""
