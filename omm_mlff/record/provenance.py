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
class RecordedGraph:
    """Whether CUDA graphs replay the model.

    Attributes
    ----------
    reason : why, or why not; one line
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    replayed: bool = False
    reason: str = ""


@dataclass(frozen=True)
class RecordedDevice:
    """The device that computed, as OpenMM names it."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    index: str
    name: str


@dataclass(frozen=True)
class ComputedBy:
    """Where a part of a run was computed, and by what."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    platform: str
    force: str
    engine: str


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
    graph : None in a record from before that was kept
    device : None on the host
    notices : what is not as it was asked for, or not as fast as it could be
    earlier : where the first parts of the run were computed, if elsewhere or by something else
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
    graph: RecordedGraph | None = None
    device: RecordedDevice | None = None
    notices: tuple[str, ...] = ()
    earlier: tuple[ComputedBy, ...] = ()

    @property
    def computed_by(self) -> ComputedBy:
        """Where and by what."""
        return ComputedBy(self.platform, self.force, self.engine)
