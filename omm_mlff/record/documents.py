"""Reads and writes the small JSON documents that pass between stages, each a frozen dataclass.

A document carries its schema, 1; one without is from before that was written, and of schema 1 as
well. What is unknown or damaged in it is refused by its name. A number that is not finite is the
text "nan", "inf" or "-inf", for which JSON has no other word, and is a number again when read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from omm_mlff.errors import OmmMlffError, RunDirectoryError
from omm_mlff.record.replacing import replaced
from omm_mlff.record.storage import storage_errors
from omm_mlff.schema import finite

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA = 1

T = TypeVar("T")


def read_document(path: Path, kind: type[T], error: type[OmmMlffError] = RunDirectoryError) -> T:
    """A document as the dataclass that it is.

    Parameters
    ----------
    kind : the dataclass
    error : what to raise

    Raises
    ------
    error : absent, damaged, of another schema, or with a key that the dataclass does not have
    """
    data = read_json(path, error)
    schema = data.pop("schema", SCHEMA)
    if schema != SCHEMA:
        raise error(f"{path} is of schema {schema!r}, wanted {SCHEMA}; update omm-mlff to read it")
    try:
        return parsed(kind, data)
    except ValueError as problem:
        raise error(f"{path} is damaged at {problem}; repeat the run") from None


def parsed(kind: type[T], data: Mapping[str, Any]) -> T:
    """A part of a document as the dataclass that it is.

    Raises
    ------
    ValueError : where it is damaged and how, in one line
    """
    from pydantic import ValidationError

    try:
        document: T = _adapter(kind).validate_python(data)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise ValueError(f"{where}: {first['msg']}") from None
    return document


def write_document(path: Path, document: object) -> None:
    """Write a frozen dataclass so that a kill leaves the old document or the new one."""
    content = _adapter(type(document)).dump_python(document)
    write_json(path, {"schema": SCHEMA, **finite(content)})


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file so that a kill leaves the old one or the new one, never half of it."""
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    with storage_errors(path), replaced(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path, error: type[OmmMlffError] = RunDirectoryError) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    error : absent or damaged
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path} is missing; this is not a complete run directory") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise error(f"{path} is damaged ({problem}); repeat the run") from None
    if not isinstance(data, dict):
        raise error(f"{path} is damaged: expected a JSON object")
    return data


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # here: a tenth of a second that not every command needs

    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


_adapters: dict[type[Any], TypeAdapter[Any]] = {}
"""Made once for each dataclass."""
