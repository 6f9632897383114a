"""A docstring stands alone in `help()`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "omm_mlff"
LEANING = re.compile(r"(The same\b|Likewise|As above|Ditto|Same )")


def leaning(source: str) -> list[str]:
    """First lines of docstrings that need what stands above them."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            said = ast.get_docstring(node) or ""
            if LEANING.match(said):
                found.append(said.splitlines()[0])
    return found


def test_a_docstring_that_leans_is_seen() -> None:
    assert leaning('def f():\n    """The same for two."""') == ["The same for two."]
    assert leaning('def f():\n    """What f is."""') == []


def test_no_docstring_leans_on_the_one_above() -> None:
    found = {
        str(path.relative_to(PACKAGE)): lines
        for path in sorted(PACKAGE.rglob("*.py"))
        if (lines := leaning(path.read_text(encoding="utf-8")))
    }
    assert found == {}
