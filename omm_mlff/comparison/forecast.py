"""Reads what was expected before anything was measured."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from omm_mlff.errors import InputError
from omm_mlff.schema import VerdictName

_ORDER: tuple[VerdictName, ...] = ("REJECTED", "NOT RECOMMENDED", "APPROVED")
_TEXTS = ("title", "repeat", "policy", "source")


@dataclass(frozen=True)
class Forecast:
    """A study's forecast, with how the study is called and repeated.

    Attributes
    ----------
    title : of the study
    repeat : the command that repeats it; empty where none is known
    policy : whose verdict was forecast
    source : who made it, and when
    verdicts : by name of the model
    """

    title: str
    repeat: str
    policy: str
    source: str
    verdicts: Mapping[str, VerdictName]


def read_forecast(path: str | Path) -> Forecast:
    """The content of a forecast's TOML file.

        policy = "m6"
        source = "..."
        title = "..."             # optional: of the study
        repeat = "..."            # optional: the command that repeats it

        [verdicts]
        tiny = "NOT RECOMMENDED"

    Raises
    ------
    InputError : it is missing, or not such a file
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError:
        raise InputError(f"no forecast at {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"forecast {path} cannot be read: {error}") from error
    unknown = sorted(set(table) - {*_TEXTS, "verdicts"})
    if unknown:
        raise InputError(f"forecast {path}: unknown key {', '.join(unknown)}")
    texts = {key: table.get(key, "") for key in _TEXTS}
    verdicts = table.get("verdicts")
    if not all(isinstance(text, str) for text in texts.values()) or not texts["policy"]:
        raise InputError(f"forecast {path}: wanted texts for {', '.join(_TEXTS)}, policy at least")
    if not isinstance(verdicts, dict) or not verdicts:
        raise InputError(f"forecast {path}: it has no [verdicts]")
    for model, verdict in verdicts.items():
        if verdict not in get_args(VerdictName):
            names = ", ".join(get_args(VerdictName))
            raise InputError(f"forecast {path}: {model} = {verdict!r}; wanted one of {names}")
    return Forecast(**texts, verdicts=verdicts)


def outcome(forecast: VerdictName, measured: VerdictName | None) -> str:
    """How a measured verdict stands to its forecast, in words."""
    if measured is None:
        return "not measured"
    if measured == forecast:
        return "as forecast"
    if measured not in _ORDER or forecast not in _ORDER:
        return "open"
    better = _ORDER.index(measured) > _ORDER.index(forecast)
    return "better than forecast" if better else "worse than forecast"
