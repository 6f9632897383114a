"""Faults of other people's code, put into one line."""

from __future__ import annotations

import re

import openmm


def nobody_alone(n_copies: int) -> str:
    """Words for an error of an evaluation of several copies that comes back for none of them."""
    return f"(for one of {n_copies} copies, for none of them when alone)"


_NAMED_ERROR = re.compile(r"(?:builtins\.)?([\w.]*(?:Error|Exception|Interrupt)\b.*)")


def one_line(error: BaseException) -> str:
    """What an exception says, in one line: of an interpreter's traceback the error at its end."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if any(line.startswith("Traceback") for line in lines):
        named = [found[1] for line in lines[::-1] if (found := _NAMED_ERROR.match(line))]
        if named:
            return named[0]
    if isinstance(error, openmm.OpenMMException) or type(error).__name__ in lines[0]:
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}"
