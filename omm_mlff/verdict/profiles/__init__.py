"""Reads a profile: the systems, runs and criteria in scope of one validation.

A profile is one TOML file, shipped beside this module or the user's own:

    title = "..."
    static_systems = ["water"]       # for the checks that need no run; or "all"

    [[run]]                          # a list stands for one run each
    system = ["water", "methane"]    # or "all": every shipped system
    length_ps = 2.0
    n_replicas = 8
    temperature_K = 300
    timestep_fs = 0.5                # optional
    purpose = "production"           # optional; or survival, timestep, thermostat (see RunSpec)

    [[out_of_scope]]                 # not judged under this profile, and the report says so
    policy = "m6"
    criterion = "complete-10ps"
    reason = "the longest run of this profile is 2 ps"
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

from omm_mlff.data import shipped_names
from omm_mlff.errors import PolicyError
from omm_mlff.schema import EXACT_KEYS, Precision, Purpose, RunSpec
from omm_mlff.verdict.policies import find_toml, read_toml

_FOLDER = Path(__file__).resolve().parent
_RUN_KEYS = ("system", "length_ps", "n_replicas", "temperature_K", "timestep_fs", "purpose")


@dataclass(frozen=True)
class PlannedRun:
    """One run that a profile asks for, of whichever potential is validated."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    system: str
    length_ps: float
    n_replicas: int
    temperature_K: float
    timestep_fs: float = 0.5
    purpose: Purpose = "production"

    def spec(
        self, potential: str, seed: int, platform: str = "auto", precision: Precision = "double"
    ) -> RunSpec:
        """The run as `simulate` takes it."""
        return RunSpec(
            potential=potential,
            system=self.system,
            length_ps=self.length_ps,
            temperature_K=self.temperature_K,
            n_replicas=self.n_replicas,
            seed=seed,
            timestep_fs=self.timestep_fs,
            platform=platform,
            precision=precision,
            ensemble="nvt" if self.purpose == "thermostat" else "nve",
            purpose=self.purpose,
        )


@dataclass(frozen=True)
class Scope:
    """What of a policy a profile can decide.

    Attributes
    ----------
    profile : its name
    excluded : by policy, then by criterion: the reason why it is not judged
    chosen_systems : those that the user put in place of the profile's; empty when none
    """

    profile: str
    excluded: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    chosen_systems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scope:
        return cls(data["profile"], data["excluded"], tuple(data["chosen_systems"]))


@dataclass(frozen=True)
class Profile:
    """The systems, runs and criteria in scope of one validation.

    Attributes
    ----------
    static_systems : for the checks that need no run
    runs : without duplicates, in the order of the file
    """

    name: str
    title: str
    static_systems: tuple[str, ...]
    runs: tuple[PlannedRun, ...]
    scope: Scope

    def for_systems(self, systems: Iterable[str]) -> Profile:
        """This profile for the user's systems: each of them gets every kind of run in it."""
        chosen = tuple(dict.fromkeys(systems))
        if not chosen:
            raise PolicyError(f"profile {self.name}: no system was given to run it on")
        runs = dict.fromkeys(
            dataclasses.replace(run, system=system) for system in chosen for run in self.runs
        )
        return dataclasses.replace(
            self,
            static_systems=chosen,
            runs=tuple(runs),
            scope=dataclasses.replace(self.scope, chosen_systems=chosen),
        )


def profile_names() -> list[str]:
    """The shipped profiles, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_profile(name_or_path: str | Path) -> Profile:
    """A shipped profile by its name, or the user's own by the path of its TOML file.

    Raises
    ------
    UnknownNameError : no shipped profile has this name
    PolicyError : the file contradicts itself
    """
    path = find_toml("profile", name_or_path, _FOLDER, profile_names())
    table = read_toml("profile", path)
    origin = f"profile {path}"
    _only(table, ("title", "static_systems", "run", "out_of_scope"), origin)
    static_systems = _systems(table.get("static_systems", []), f"{origin}, static_systems")
    runs: dict[PlannedRun, None] = {}
    for number, row in enumerate(_rows(table, "run", origin), start=1):
        for run in _runs(row, f"{origin}, run {number}"):
            runs[run] = None
    if not static_systems and not runs:
        raise PolicyError(f"{origin}: it has neither a static system nor a run")
    excluded: dict[str, dict[str, str]] = {}
    for number, row in enumerate(_rows(table, "out_of_scope", origin), start=1):
        where = f"{origin}, out_of_scope {number}"
        keys = ("policy", "criterion", "reason")
        _only(row, keys, where)
        for key in keys:
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise PolicyError(f"{where}: {key} must be given, as text; got {row.get(key)!r}")
        excluded.setdefault(row["policy"], {})[row["criterion"]] = row["reason"]
    return Profile(
        name=path.stem,
        title=str(table.get("title", path.stem)),
        static_systems=static_systems,
        runs=tuple(runs),
        scope=Scope(path.stem, excluded),
    )


def _runs(row: Mapping[str, Any], origin: str) -> list[PlannedRun]:
    _only(row, _RUN_KEYS, origin)
    for key in _RUN_KEYS[:4]:
        if key not in row:
            raise PolicyError(f"{origin}: {key} is missing")
    replicas = row["n_replicas"]
    if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 1:
        raise PolicyError(
            f"{origin}: n_replicas must be a whole number from 1 on, got {replicas!r}"
        )
    systems = _systems(row["system"], f"{origin}, system")
    if not systems:
        raise PolicyError(f"{origin}: it names no system")
    lengths = _numbers(row, "length_ps", origin)
    temperatures = _numbers(row, "temperature_K", origin)
    timesteps = _numbers(row, "timestep_fs", origin) if "timestep_fs" in row else [0.5]
    purpose = row.get("purpose", "production")
    if purpose not in get_args(Purpose):
        raise PolicyError(
            f"{origin}: unknown purpose {purpose!r}; one of {', '.join(get_args(Purpose))}"
        )
    return [
        PlannedRun(system, length, replicas, temperature, timestep, purpose)
        for system in systems
        for length in lengths
        for temperature in temperatures
        for timestep in timesteps
    ]


def _numbers(row: Mapping[str, Any], key: str, origin: str) -> list[float]:
    items = row[key] if isinstance(row[key], list) else [row[key]]
    for item in items:
        if (
            not isinstance(item, int | float)
            or isinstance(item, bool)
            or not math.isfinite(item)
            or item <= 0
        ):
            raise PolicyError(f"{origin}: {key} must be a number above 0, got {item!r}")
    return [float(item) for item in items]


def _systems(value: Any, origin: str) -> tuple[str, ...]:
    if value == "all":
        return tuple(shipped_names("systems", "system.toml"))
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) and item for item in items):
        raise PolicyError(f'{origin}: wanted a name, a list of names or "all", got {value!r}')
    return tuple(dict.fromkeys(items))


def _rows(table: Mapping[str, Any], key: str, origin: str) -> list[Mapping[str, Any]]:
    rows = table.get(key, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise PolicyError(f"{origin}: write [[{key}]] rows")
    return rows


def _only(table: Mapping[str, Any], known: Iterable[str], origin: str) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise PolicyError(
            f"{origin}: unknown key {', '.join(map(repr, unknown))}; known: {', '.join(known)}"
        )
