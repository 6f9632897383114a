"""Finds every check: a file in this package, or an entry point of another."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil

import omm_mlff.checks as package
from omm_mlff.checks.base import Check
from omm_mlff.errors import InputError
from omm_mlff.schema import Criterion, Declaration

ENTRY_POINT_GROUP = "omm_mlff.checks"
ATTRIBUTE = "CHECK"


def all_checks() -> list[Check]:
    """Every check that is shipped or installed, by name.

    A module of this package is a check when it has a `CHECK`. Another package registers one by an
    entry point of the group `omm_mlff.checks` that names a `Check`.

    Raises
    ------
    InputError : an entry point that is no Check, or two checks that declare one measurement
    """
    found = [*_shipped(), *_installed()]
    require_unambiguous(found)
    return sorted(found, key=lambda check: check.name)


def all_declarations() -> list[Declaration]:
    """Every measurement that some check declares."""
    return [row for check in all_checks() for row in check.declares]


def default_criteria() -> list[Criterion]:
    """The default criteria of every check."""
    return [row for check in all_checks() for row in check.criteria]


def require_unambiguous(checks: list[Check]) -> None:
    """Refuse two checks of one name, or two that declare one measurement.

    Raises
    ------
    InputError : with both names
    """
    names: set[str] = set()
    owners: dict[str, str] = {}
    for check in checks:
        if check.name in names:
            raise InputError(f"two checks are named {check.name!r}; rename or remove one")
        names.add(check.name)
        for row in check.declares:
            if row.name in owners:
                raise InputError(
                    f"measurement {row.name!r} is declared by the checks {owners[row.name]!r} and "
                    f"{check.name!r}; rename it in one of them"
                )
            owners[row.name] = check.name


@functools.cache
def _shipped() -> tuple[Check, ...]:
    modules = [
        importlib.import_module(f"{package.__name__}.{info.name}")
        for info in pkgutil.iter_modules(package.__path__)
        if info.name != "registry"
    ]
    return tuple(getattr(module, ATTRIBUTE) for module in modules if hasattr(module, ATTRIBUTE))


def _installed() -> list[Check]:
    found = []
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        check = point.load()
        if not isinstance(check, Check):
            raise InputError(
                f"the entry point {point.name!r} ({point.value}) in group {ENTRY_POINT_GROUP!r} is "
                f"a {type(check).__name__}, expected a Check; mend or uninstall that package"
            )
        found.append(check)
    return found
