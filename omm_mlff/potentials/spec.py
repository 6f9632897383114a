"""Reads the options of a model spec: NAME?option=value&option=value."""

from __future__ import annotations

import ast
import math
from typing import Any
from urllib.parse import parse_qsl

from omm_mlff.errors import InputError

DTYPES = ("float32", "float64")


def split_options(spec: str) -> tuple[str, dict[str, Any]]:
    """What stands before the question mark, and the options after it.

    A value is a Python literal where it reads as one (`2`, `0.5`, `True`, `None`, `[1, 2]`), else
    text; quotes make text of anything (`'2'`).

    Raises
    ------
    InputError : an option without a value, or one that is given twice
    """
    name, mark, query = spec.partition("?")
    options: dict[str, Any] = {}
    if not mark:
        return name, options
    try:
        if not query:
            raise ValueError("no options")
        # A plus is a plus here, as in "charge=+1"; in a form it would be a space.
        query = query.replace("+", "%2B")
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        raise InputError(
            f"{spec!r}: wanted options as ?name=value&name=value, got {query!r}"
        ) from None
    for key, text in pairs:
        if key in options:
            raise InputError(f"{spec!r}: option {key!r} is given twice; leave one")
        options[key] = _literal(text)
    return name, options


def card_options(
    spec: str, options: dict[str, Any], *, dtype: str | None = "float32"
) -> dict[str, Any]:
    """`dtype` and `cutoff_nm`, which say what the model does not: they are taken out of `options`.

    Parameters
    ----------
    spec : for messages
    dtype : where none is given

    Raises
    ------
    InputError : another dtype than float32 or float64, or a cutoff that is no positive number
    """
    dtype, cutoff_nm = options.pop("dtype", dtype), options.pop("cutoff_nm", None)
    if dtype not in (None, *DTYPES):
        raise InputError(f"{spec}: wanted dtype {' or '.join(DTYPES)}, got {dtype!r}")
    if cutoff_nm is not None:
        cutoff_nm = positive(spec, "cutoff_nm", cutoff_nm)
    return {"dtype": dtype, "cutoff_nm": cutoff_nm}


def positive(spec: str, name: str, value: Any) -> float:
    """The value of an option that must be a positive number.

    Raises
    ------
    InputError : it is none
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise InputError(f"{spec}: wanted {name} as a positive number, got {value!r}")
    return float(value)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
