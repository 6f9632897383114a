"""What `bench.json` says, as frozen dataclasses: a benchmark, in a form that others can read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from omm_mlff.schema import EXACT_KEYS


@dataclass(frozen=True)
class IntervalRow:
    """A median with the ends of its interval; None where there is no interval."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class BenchProvenance:
    """The machine and how it was used.

    Attributes
    ----------
    device : name of the GPU; None on the host
    threads : of torch and of the compiled engine
    rounds : that each way was timed in
    block_s : about how long a block took
    load_per_core_before, load_per_core_after : processes that wanted a core
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    date: str
    versions: Mapping[str, str]
    python: str
    processor: str
    device: str | None
    cores: int | None
    threads: Mapping[str, int]
    platform: str
    precision: str
    timestep_fs: float
    rounds: int
    block_s: float
    load_per_core_before: float
    load_per_core_after: float
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class WayRow:
    """One way of running a potential on one system."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    way: str
    n_replicas: int
    n_rounds: int
    n_steps: int
    ms_per_step: IntervalRow
    ms_per_replica_step: float
    ns_per_day: float
    replica_steps_per_s: float
    atom_steps_per_s: float
    spread: float


@dataclass(frozen=True)
class RatioRow:
    """How many times as many replica-steps a second `fast` takes as `slow`."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    slow: str
    fast: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SkippedRow:
    """A way that was not timed, and why."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    way: str
    reason: str


@dataclass(frozen=True)
class BreakdownRow:
    """Parts of a recorded step of all replicas, ms."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    model: float
    pairs: float
    python: float
    recording: float
    integrator: float


@dataclass(frozen=True)
class FloorRow:
    """What a step would take of the model's multiply-adds alone, and how far off it is."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    multiply_adds: float
    multiply_adds_per_s: float
    threads: int
    ms: float
    ratio: float


@dataclass(frozen=True)
class AnalysisRow:
    """How much faster a recorded run is measured than it went, or why that was not timed."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    n_steps: int | None = None
    n_replicas: int | None = None
    run_s: IntervalRow | None = None
    analysis_s: IntervalRow | None = None
    ratio: IntervalRow | None = None
    reason: str = ""


@dataclass(frozen=True)
class MemoryRow:
    """Peak memory of a process of its own, or why it is not known."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    host_MiB: float | None = None
    imported_MiB: float | None = None
    device_MiB: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class ResultRow:
    """One potential on one system.

    Attributes
    ----------
    breakdown_ms, floor : of a student
    analysis : where a recorded run was timed
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    model: str
    system: str
    n_atoms: int
    n_parameters: int | None
    ways: tuple[WayRow, ...]
    ratios: tuple[RatioRow, ...]
    skipped: tuple[SkippedRow, ...]
    memory: MemoryRow
    breakdown_ms: BreakdownRow | None = None
    floor: FloorRow | None = None
    analysis: AnalysisRow | None = None


@dataclass(frozen=True)
class SizeRow:
    """A step in a box of one size."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    system: str
    n_atoms: int
    ms_per_step: IntervalRow
    spread: float
    memory: MemoryRow


@dataclass(frozen=True)
class ExponentRow:
    """A fitted power of the number of atoms; no ends for two sizes."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ScalingRow:
    """Growth of time and memory with the number of atoms; None for one size."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    model: str
    sizes: tuple[SizeRow, ...]
    time_exponent: ExponentRow | None = None
    KiB_per_atom: float | None = None


@dataclass(frozen=True)
class PointRow:
    """Accuracy against cost of one potential on one system.

    Attributes
    ----------
    dominated_by : those that are more accurate and faster
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    potential: str
    source: str
    system: str
    force_rmse_eV_angstrom: float
    step_ms: float
    dominated_by: tuple[str, ...]


@dataclass(frozen=True)
class BenchDocument:
    """A whole benchmark.

    Attributes
    ----------
    reasons : why it is not conclusive
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    provenance: BenchProvenance
    conclusive: bool
    reasons: tuple[str, ...]
    results: tuple[ResultRow, ...]
    scaling: tuple[ScalingRow, ...]
    pareto: tuple[PointRow, ...]
