"""Reads a policy: the criteria that a potential is held to.

A policy is one TOML file, shipped beside this module or the user's own:

    title = "..."
    include_defaults = true          # with the default criteria of the checks

    [[criterion]]
    name = "force-rmse"              # unique within the policy
    measurement = "accuracy.force_rmse"
    high = 0.2                       # `low` and `high`: one of them or both
    unit = "eV/angstrom"             # the measurement's own
    severity = "limit"               # reject, limit or info
    source = "where the bound comes from"
    # optional: systems, dtypes, min_length_ps, temperatures_K, min_systems
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from omm_mlff.errors import InputError, PolicyError, UnknownNameError
from omm_mlff.schema import Criterion, Declaration, Severity

REJECT_RATIO = 10.0
"""A reject bound lies at least this many times beyond the limit bound (DESIGN, section 4)."""

_FOLDER = Path(__file__).resolve().parent
_REQUIRED = {"name": str, "measurement": str, "unit": str, "severity": str, "source": str}
_NUMBERS = ("low", "high", "min_length_ps")
_LISTS: Mapping[str, Any] = {"systems": str, "dtypes": str, "temperatures_K": (int, float)}
_KNOWN = {*_REQUIRED, *_NUMBERS, *_LISTS, "min_systems"}


@dataclass(frozen=True)
class Policy:
    """The criteria that a potential is held to.

    Attributes
    ----------
    name : such as "strict"; for a file, its stem
    title : one line for a person
    criteria : in the order in which they are reported
    declared : the declaration of every measurement that the criteria name
    """

    name: str
    title: str
    criteria: tuple[Criterion, ...]
    declared: Mapping[str, Declaration]


def policy_names() -> list[str]:
    """The shipped policies, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_policy(
    name_or_path: str | Path,
    declarations: Iterable[Declaration],
    default_criteria: Iterable[Criterion],
) -> Policy:
    """A shipped policy by its name, or the user's own by the path of its TOML file.

    Parameters
    ----------
    declarations : every measurement that the checks can emit
    default_criteria : the criteria that the checks bring along

    Raises
    ------
    UnknownNameError : no shipped policy has this name
    PolicyError : the file contradicts itself, or names a measurement that no check declares
    """
    path = find_toml("policy", name_or_path, _FOLDER, policy_names())
    table = read_toml("policy", path)
    unknown = set(table) - {"title", "include_defaults", "criterion"}
    if unknown:
        raise PolicyError(
            f"policy {path}: unknown key {_listed(unknown)}; "
            "known: title, include_defaults, criterion"
        )
    include_defaults = table.get("include_defaults", False)
    if not isinstance(include_defaults, bool):
        raise PolicyError(f"policy {path}: include_defaults is true or false")
    rows = table.get("criterion", [])
    if not isinstance(rows, list):
        raise PolicyError(f"policy {path}: write criteria as [[criterion]] rows")

    declared: dict[str, Declaration] = {}
    for declaration in declarations:
        if declaration.name in declared:
            raise PolicyError(
                f"two checks declare {declaration.name}: "
                f"{declared[declaration.name].check} and {declaration.check}"
            )
        declared[declaration.name] = declaration

    criteria: dict[str, Criterion] = {}
    defaults = list(default_criteria) if include_defaults else []
    origins = [("a check's default criterion", criterion) for criterion in defaults]
    origins += [
        (f"policy {path}, criterion {number}", _parsed(row, f"policy {path}, criterion {number}"))
        for number, row in enumerate(rows, start=1)
    ]
    for origin, criterion in origins:
        origin = f"{origin} ({criterion.name})"
        _check(criterion, declared, origin)
        if criterion.name in criteria:
            raise PolicyError(f"{origin}: another criterion has the same name")
        criteria[criterion.name] = criterion
    if not criteria:
        raise PolicyError(f"policy {path}: it holds no criterion, so it could judge nothing")
    try:
        check_bounds(criteria.values(), declared)
    except PolicyError as error:
        raise PolicyError(f"policy {path}: {error}") from None
    named = {criterion.measurement for criterion in criteria.values()}
    return Policy(
        name=path.stem,
        title=str(table.get("title", path.stem)),
        criteria=tuple(criteria.values()),
        declared={name: declared[name] for name in sorted(named)},
    )


def load_policies(
    policies: Iterable[str | Path | Policy],
    declarations: Sequence[Declaration],
    default_criteria: Sequence[Criterion],
) -> tuple[Policy, ...]:
    """Policies in the order given, each once; those that are loaded already as they are.

    Raises
    ------
    UnknownNameError, PolicyError : as `load_policy`; PolicyError where two have one name
    """
    found: dict[str, Policy] = {}
    asked: set[str] = set()
    for item in policies:
        if isinstance(item, Policy):
            policy = item
        elif str(item) in asked:
            continue
        else:
            asked.add(str(item))
            policy = load_policy(item, declarations, default_criteria)
        if policy.name in found:
            raise PolicyError(f"two policies are named {policy.name!r}; rename the file of one")
        found[policy.name] = policy
    return tuple(found.values())


def check_bounds(criteria: Iterable[Criterion], declared: Mapping[str, Declaration]) -> None:
    """Refuses a reject bound that lies too close to the limit bound of the same measurement.

    The margin is statistical: a value near the limit must not be rejected because of a large
    error bar, nor a broken model pass for a limited one. So it is asked of sampled measurements
    only. A deterministic measurement has no error bar (the gradient check's float32 bounds are
    5e-4 and 2e-3), and a count has one bound, zero.

    How far a bound lies out is counted from the value that a perfect model has: 0 where the
    bounds admit it; else 1 for a quantity without a unit, such as R2; else the middle of the two
    bounds; else, for a single bound, 0.

    Raises
    ------
    PolicyError : naming both criteria, and the nearest bound that would do
    """
    sampled = [c for c in criteria if declared[c.measurement].kind == "sampled"]
    rejects = [c for c in sampled if c.severity == "reject"]
    limits = [c for c in sampled if c.severity == "limit"]
    for limit in limits:
        ideal = _ideal(limit)
        for reject in rejects:
            if reject.measurement != limit.measurement or not _overlap(reject, limit):
                continue
            for side in ("low", "high"):
                inner, outer = getattr(limit, side), getattr(reject, side)
                if inner is None or outer is None:
                    continue
                nearest = ideal + REJECT_RATIO * (inner - ideal)
                if ideal == 0.0 and inner > 0.0 and side == "low":
                    nearest = inner / REJECT_RATIO
                inside = outer < nearest if side == "high" else outer > nearest
                if inside and not math.isclose(outer, nearest, rel_tol=1e-9):
                    raise PolicyError(
                        f"{reject.name} rejects at {side} = {outer:g} {reject.unit}, too close to "
                        f"{limit.name} with {side} = {inner:g}; a reject bound lies at least "
                        f"{REJECT_RATIO:g} times beyond the limit: at {nearest:g} or further"
                    )


def find_toml(kind: str, name_or_path: str | Path, folder: Path, names: Sequence[str]) -> Path:
    """The file of a shipped name, or the file at a path.

    Raises
    ------
    UnknownNameError : neither
    """
    text = str(name_or_path)
    if text in names:
        return folder / f"{text}.toml"
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise InputError(f"no {kind} file at {path}; give a path to a TOML file or a shipped name")
    raise UnknownNameError(kind, text, names, f"or give the path of a {kind}'s TOML file")


def read_toml(kind: str, path: Path) -> dict[str, Any]:
    """The table in a policy's or profile's file.

    Raises
    ------
    PolicyError : the file is not TOML
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PolicyError(f"{kind} {path} is not a TOML file: {error}") from None


def _parsed(row: Any, origin: str) -> Criterion:
    if not isinstance(row, dict):
        raise PolicyError(f"{origin}: wanted a table, got {row!r}")
    name = row.get("name")
    if isinstance(name, str):
        origin = f"{origin} ({name})"
    unknown = set(row) - _KNOWN
    if unknown:
        raise PolicyError(
            f"{origin}: unknown key {_listed(unknown)}; known: {', '.join(sorted(_KNOWN))}"
        )
    for key, kind in _REQUIRED.items():
        if not isinstance(row.get(key), kind) or not row[key].strip():
            raise PolicyError(f"{origin}: {key} must be given, as text; got {row.get(key)!r}")
    for key in _NUMBERS:
        if key in row and not _is_number(row[key]):
            raise PolicyError(f"{origin}: {key} must be a number, got {row[key]!r}")
    for key, kinds in _LISTS.items():
        items = row.get(key, [])
        if not isinstance(items, list) or not all(
            isinstance(item, kinds) and not isinstance(item, bool) for item in items
        ):
            raise PolicyError(f"{origin}: {key} must be a list, got {items!r}")
    min_systems = row.get("min_systems")
    if min_systems is not None and (not isinstance(min_systems, int) or min_systems < 1):
        raise PolicyError(f"{origin}: min_systems must be a whole number from 1 on")
    numbers = {key: float(row[key]) if key in row else None for key in _NUMBERS}
    return Criterion(
        name=row["name"],
        measurement=row["measurement"],
        unit=row["unit"],
        severity=row["severity"],
        source=row["source"],
        systems=tuple(row.get("systems", ())),
        dtypes=tuple(row.get("dtypes", ())),
        temperatures_K=tuple(float(item) for item in row.get("temperatures_K", ())),
        min_systems=min_systems,
        **numbers,
    )


def _check(criterion: Criterion, declared: Mapping[str, Declaration], origin: str) -> None:
    if criterion.severity not in get_args(Severity):
        raise PolicyError(
            f"{origin}: unknown severity {criterion.severity!r}; "
            f"one of {', '.join(get_args(Severity))}"
        )
    declaration = declared.get(criterion.measurement)
    if declaration is None:
        unknown = UnknownNameError("measurement", criterion.measurement, declared)
        raise PolicyError(f"{origin}: {unknown}")
    if criterion.unit != declaration.unit:
        raise PolicyError(
            f"{origin}: {criterion.measurement} is measured in {declaration.unit!r}, "
            f"the bound is in {criterion.unit!r}; convert the bound"
        )
    low, high = criterion.low, criterion.high
    if low is None and high is None and criterion.severity != "info":
        raise PolicyError(f"{origin}: it has neither low nor high, so nothing could fail it")
    if low is not None and high is not None and low > high:
        raise PolicyError(f"{origin}: low = {low:g} lies above high = {high:g}")
    if declaration.kind == "count" and criterion.severity != "info" and (low, high) != (None, 0.0):
        raise PolicyError(
            f"{origin}: {criterion.measurement} is a count, which fails at the first event; "
            "its bound is high = 0"
        )
    if declaration.kind == "info" and criterion.severity != "info":
        raise PolicyError(
            f"{origin}: {criterion.measurement} is for information only (it has no error bar), "
            f'so it decides nothing; use severity = "info"'
        )


def _ideal(criterion: Criterion) -> float:
    def admits(value: float) -> bool:
        return (criterion.low is None or criterion.low <= value) and (
            criterion.high is None or value <= criterion.high
        )

    if admits(0.0):
        return 0.0
    if criterion.unit == "1" and admits(1.0):
        return 1.0
    if criterion.low is not None and criterion.high is not None:
        return 0.5 * (criterion.low + criterion.high)
    return 0.0


def _overlap(one: Criterion, other: Criterion) -> bool:
    return all(
        not a or not b or bool(set(a) & set(b))
        for a, b in (
            (one.systems, other.systems),
            (one.dtypes, other.dtypes),
            (one.temperatures_K, other.temperatures_K),
        )
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))
