"""Imports the package with every text in it that people read replaced by a hash.

A text is a string, or a piece of an f-string, of two words or more that is no docstring, no
argument of a regular expression, no name of a verdict and no signature of a PyTorch operator.
Import this before anything of the package.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.abc
import importlib.machinery
import re
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType
from typing import Any

_TWO_WORDS = re.compile(r"[A-Za-z]{2,}[,;:.)]* +[(]?[A-Za-z]{2,}")
_NAMES = {"NOT RECOMMENDED"}

replaced: set[str] = set()
"""Every text that was replaced."""


def said_otherwise(text: str, place: str) -> str:
    """The hash of a text at its place, with the space kept that it begins or ends with.

    The place counts: two places that happen to say the same must not go on to do so.
    """
    if text in _NAMES or "Tensor" in text or not _TWO_WORDS.search(text):
        return text
    replaced.add(text)
    digest = hashlib.sha256(f"{place} {text}".encode()).hexdigest()[:12]
    return " " * text.startswith(" ") + f"<{digest}>" + " " * text.endswith(" ")


class _Rewording(ast.NodeTransformer):
    def __init__(self, path: str) -> None:
        self.path = path

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, str):
            place = f"{self.path}:{node.lineno}:{node.col_offset}"
            return ast.copy_location(ast.Constant(said_otherwise(node.value, place)), node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func
        if isinstance(name, ast.Attribute) and getattr(name.value, "id", "") == "re":
            return node
        return self.generic_visit(node)

    def _documented(self, node: Any) -> ast.AST:
        first = node.body[0] if node.body else None
        said = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        kept = node.body[:1] if said else []
        node.body = node.body[len(kept) :]
        node = self.generic_visit(node)
        node.body = kept + node.body
        return node  # type: ignore[no-any-return]

    visit_Module = visit_FunctionDef = visit_ClassDef = _documented


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = _Rewording(path).visit(ast.parse(self.get_data(path)))
        return compile(ast.fix_missing_locations(tree), path, "exec")  # type: ignore[no-any-return]


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != "omm_mlff":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            spec.loader = _Loader(fullname, spec.origin)
        return spec


assert "omm_mlff" not in sys.modules
sys.meta_path.insert(0, _Finder())
