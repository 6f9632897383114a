"""Mutation testing: which small changes of a module does no test notice?

    python scripts/mutate.py omm_mlff/statistics/intervals.py tests/statistics/test_intervals.py

Every mutant is the module with one operator, constant, condition or statement changed. It lives in
memory alone, in a fork of this process, and the tests that are named run against it: it is killed
where one fails, and survives where all pass. Left alone are words for people (strings with a
space, messages of errors), annotations, decorators and declarations of `__all__`. The survivors are
printed with their lines; analysis/mutation/README.md says why each is let live.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.machinery
import io
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
LEFT_ALONE = {"annotation", "returns", "decorator_list", "type_params"}
UNCHANGED, NO_TESTS = 0, 5  # pytest's exit codes


@dataclass(frozen=True)
class Mutant:
    """The tree of a module with one thing changed, and which."""

    tree: ast.Module
    line: int
    change: str


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module, from the top to the bottom."""
    tree = ast.parse(source)
    for index, node in enumerate(places(tree)):
        for was, change in enumerate(changes(node)):
            other = copy.deepcopy(tree)
            place = places(other)[index]
            done = changes(place)[was][1]()
            ast.fix_missing_locations(other)
            yield Mutant(other, node.lineno, f"{change[0]}: {done}")


def places(tree: ast.Module) -> list[ast.expr | ast.stmt]:
    """The nodes that may be changed, in the order of the source."""
    found: list[ast.expr | ast.stmt] = []

    def walk(node: ast.AST) -> None:
        for name, value in ast.iter_fields(node):
            if name in LEFT_ALONE:
                continue
            for child in value if isinstance(value, list) else [value]:
                if not isinstance(child, ast.AST) or is_words(child) or is_for_types(child):
                    continue
                if isinstance(child, ast.expr | ast.stmt):
                    found.append(child)
                walk(child)

    walk(tree)
    return found


def is_words(node: ast.AST) -> bool:
    """Whether it is text for people: a docstring, a sentence, what an error says."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.JoinedStr):
        return True
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value


def is_for_types(node: ast.AST) -> bool:
    """Whether it is there for the type checker, or names what the module offers."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"


def changes(node: ast.expr | ast.stmt) -> list[tuple[str, Callable[[], str]]]:
    """What may be done to a node: the line as it was, and what changes it and tells how."""
    was = ast.unparse(node).splitlines()[0]
    made: list[tuple[str, Callable[[], str]]] = []

    def add(change: Callable[[], object]) -> None:
        def changed() -> str:
            change()
            return f"-> {ast.unparse(node).splitlines()[0]}"

        made.append((was, changed))

    def swap(owner: ast.AST, name: str, at: int | None = None) -> None:
        old = getattr(owner, name) if at is None else getattr(owner, name)[at]
        if type(old) in SWAPPED:
            new = SWAPPED[type(old)]()
            add(
                lambda: (
                    setattr(owner, name, new)
                    if at is None
                    else getattr(owner, name).__setitem__(at, new)
                )
            )

    if isinstance(node, ast.Compare):
        for at in range(len(node.ops)):
            swap(node, "ops", at)
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign):
        swap(node, "op")
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        add(
            lambda: setattr(
                node, "op", ast.UAdd() if isinstance(node.op, ast.USub) else _twice(node)
            )
        )
    elif isinstance(node, ast.Constant):
        new = _other(node.value)
        if new is not None:
            add(lambda: setattr(node, "value", new))
    elif isinstance(node, ast.Return) and node.value is not None:
        if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            add(lambda: setattr(node, "value", ast.Constant(None)))
    elif isinstance(node, ast.Assign):
        if not isinstance(node.targets[0], ast.Tuple) and not isinstance(node.value, ast.Constant):
            add(lambda: setattr(node, "value", ast.Constant(None)))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        add(lambda: setattr(node, "value", ast.Constant(None)))
    if isinstance(node, ast.If | ast.IfExp | ast.While) and not isinstance(
        node.test, ast.Compare | ast.BoolOp | ast.UnaryOp
    ):
        add(lambda: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test)))
    if isinstance(node, ast.If) and any(isinstance(inner, ast.Raise) for inner in node.body):
        add(lambda: setattr(node, "test", ast.Constant(False)))
    return made


def _twice(node: ast.UnaryOp) -> ast.unaryop:
    """`not x` becomes `not not x`, which is x as a condition."""
    node.operand = ast.UnaryOp(ast.Not(), node.operand)
    return ast.Not()


def _other(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 1.5 if value else 1.0
    if isinstance(value, str) and value:
        return value + "X"
    return None


class Instead(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a mutant in the place of its module."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self.name = name
        self.path = path
        self.tree = tree

    def find_spec(
        self, name: str, path: object, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.machinery.ModuleSpec(name, self, origin=str(self.path))

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = str(self.path)
        exec(compile(self.tree, str(self.path), "exec"), module.__dict__)


def run(name: str, path: Path, tree: ast.Module, tests: Sequence[str], limit_s: float) -> int:
    """pytest's exit code on a module's tree, in a fork; -1 where it took too long."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        code = 1
        with contextlib.suppress(BaseException), contextlib.redirect_stdout(io.StringIO()):
            import pytest

            sys.meta_path.insert(0, Instead(name, path, tree))
            options = ["-x", "-q", "-p", "no:cacheprovider"]
            code = int(pytest.main([*options, *tests]))
        os._exit(code)
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("module", type=Path, help="its file, below the current folder")
    parser.add_argument("tests", nargs="+", help="files of tests, or words for pytest such as -k")
    parser.add_argument("--line", type=int, help="mutants of this line alone")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn at random (seed 0)")
    asked, words = parser.parse_known_args()
    tests = [*asked.tests, *words]
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, os.getcwd())
    # What every test imports is imported once, before the forks; nothing of the package itself.
    import mdtraj  # noqa: F401
    import openmm  # noqa: F401
    import pandas  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch  # noqa: F401

    source = asked.module.read_text(encoding="utf-8")
    name = ".".join(asked.module.with_suffix("").parts)
    began = time.monotonic()
    if run(name, asked.module.resolve(), ast.parse(source), tests, 3600) != UNCHANGED:
        print("the tests fail on the module as it is", file=sys.stderr)
        return 2
    limit_s = 10 + 4 * (time.monotonic() - began)
    found = [mutant for mutant in mutants(source) if asked.line in (None, mutant.line)]
    if asked.sample is not None and asked.sample < len(found):
        drawn = sorted(random.Random(0).sample(range(len(found)), asked.sample))
        found = [found[index] for index in drawn]
    survivors = []
    for mutant in found:
        code = run(name, asked.module.resolve(), mutant.tree, tests, limit_s)
        if code in (UNCHANGED, NO_TESTS):
            survivors.append(mutant)
            print(f"{asked.module}:{mutant.line}: {mutant.change}", flush=True)
    killed = len(found) - len(survivors)
    share = 100 * killed / max(1, len(found))
    print(f"{asked.module}: {killed} of {len(found)} mutants killed ({share:.0f}%)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
