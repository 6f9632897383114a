"""An import points only to an earlier layer (DESIGN, section 3), read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "omm_mlff"

# One row a rank, the lowest first; a folder may import from the rows above its own, and from
# itself. A new folder of omm_mlff gets its place here.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("units", "errors", "schema", "data"),
    ("record", "statistics", "geometry"),
    ("students",),
    ("forces",),
    ("systems", "teachers"),
    ("potentials",),
    ("dynamics",),
    ("adapters",),
    ("checks",),
    ("failures",),
    ("campaign",),
    ("validation",),
    ("doctor", "bench", "distill", "proving"),
    ("cli",),
)

# Judging and reporting stand aside: they import one another in this order, of the ranks the first
# two (geometry needs RDKit and OpenMM's elements), and neither torch nor OpenMM. Every rank from
# `checks` upwards may import them.
ASIDE = ("verdict", "report", "comparison")
ASIDE_SEES = {*LAYERS[0], "record", "statistics"}
ASIDE_FROM = "checks"

RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}

HEAVY = {"torch", "openmm", "mdtraj", "pandas", "rdkit", "scipy", "tables", "torchani", "tblite"}
SIMULATING = {"torch", "openmm", "openmmtorch", "mdtraj", "rdkit", "vesin", "torchani", "tblite"}


@dataclass(frozen=True)
class Import:
    """One import statement: who imports what, where."""

    importer: str  # dotted, below omm_mlff: "checks.drift"; "" is the package itself
    imported: str  # dotted, below omm_mlff for one of ours; else the full name
    ours: bool
    line: int
    at_top: bool
    typing_only: bool

    @property
    def importing_unit(self) -> str:
        return self.importer.split(".")[0]

    @property
    def imported_unit(self) -> str:
        return self.imported.split(".")[0]

    def __str__(self) -> str:
        return f"omm_mlff.{self.importer} (line {self.line}) imports {self.imported}"


def module_name(path: Path, package: Path) -> str:
    parts = list(path.relative_to(package).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files(package: Path) -> list[Path]:
    return sorted(path for path in package.rglob("*.py") if "_data" not in path.parts)


def units_of(package: Path) -> set[str]:
    return {module_name(path, package).split(".")[0] for path in source_files(package)} - {""}


def imports_of(path: Path, package: Path, submodules: set[str]) -> Iterator[Import]:
    importer = module_name(path, package)

    def targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            return
        base = node.module or ""
        if node.level:
            here = ["omm_mlff", *filter(None, importer.split("."))]
            if path.name != "__init__.py":
                here.pop()
            here = here[: len(here) - node.level + 1]
            base = ".".join([*here, *filter(None, [base])])
        for alias in node.names:
            # `from omm_mlff import rundir` imports the module; `... import __version__` does not
            full = f"{base}.{alias.name}"
            yield full if full.removeprefix("omm_mlff.") in submodules else base

    def walk(node: ast.AST, at_top: bool, typing_only: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                for target in targets(child):
                    ours = target.split(".")[0] == "omm_mlff"
                    name = target.removeprefix("omm_mlff").removeprefix(".") if ours else target
                    yield Import(importer, name, ours, child.lineno, at_top, typing_only)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(ast.Module(child.body, []), at_top, True)
                yield from walk(ast.Module(child.orelse, []), at_top, typing_only)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, at_top and not inside, typing_only)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True, False)


def may_import(importer: str, imported: str) -> bool:
    """Whether one unit of the package may import another (top-level names below omm_mlff)."""
    if importer == imported:
        return True
    if importer in ASIDE:
        earlier = ASIDE[: ASIDE.index(importer)]
        return imported in ASIDE_SEES or imported in earlier
    if imported in ASIDE:
        return RANK[importer] >= RANK[ASIDE_FROM]
    return RANK[imported] < RANK[importer]


def violations(package: Path) -> list[str]:
    """Every import that breaks a rule, each as one line."""
    found = [
        f"omm_mlff.{name} has no layer: add it to LAYERS in tests/test_layers.py"
        for name in sorted(units_of(package) - set(RANK) - set(ASIDE))
    ]
    if found:
        return found
    submodules = {module_name(path, package) for path in source_files(package)}
    for path in source_files(package):
        importer = module_name(path, package)
        unit = importer.split(".")[0]
        is_init = path.name == "__init__.py"
        for row in imports_of(path, package, submodules):
            top_package = row.imported.split(".")[0]
            if row.ours and importer and row.imported:
                if not may_import(unit, row.imported_unit):
                    found.append(f"{row}: not an earlier layer")
            elif row.ours and not importer and not row.typing_only:
                found.append(f"{row}: the package's public names are loaded lazily")
            elif row.ours or row.typing_only:
                continue
            elif unit == "students" and top_package in {"openmm", "openmmtorch"}:
                found.append(f"{row}: students know nothing of OpenMM")
            elif unit == "schema" and top_package == "openmm" and not row.at_top:
                continue  # a system, which came from OpenMM, is handed to it
            elif (unit in ASIDE or unit in ASIDE_SEES) and top_package in SIMULATING:
                found.append(f"{row}: a finished run is judged where this is absent")
            elif (unit == "cli" or is_init) and row.at_top and top_package in HEAVY:
                found.append(f"{row}: too heavy for the top of this file")
    return found


def test_every_import_points_to_an_earlier_layer() -> None:
    assert violations(PACKAGE) == []


def test_judging_is_importable_where_torch_and_openmm_are_absent() -> None:
    present = sorted(
        module_name(path, PACKAGE)
        for path in source_files(PACKAGE)
        if module_name(path, PACKAGE).split(".")[0] in {*ASIDE, *ASIDE_SEES}
    )
    code = (
        "import sys, importlib\n"
        f"for name in {sorted(SIMULATING)!r}: sys.modules[name] = None\n"
        f"for name in {present!r}: importlib.import_module('omm_mlff.' + name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


BROKEN = [
    ("record/rundir.py", "from omm_mlff.dynamics.simulate import simulate", "not an earlier layer"),
    ("record/rundir.py", "from omm_mlff import validation", "not an earlier layer"),
    ("record/rundir.py", "from .. import dynamics", "not an earlier layer"),
    ("record/rundir.py", "def f():\n    import omm_mlff.dynamics", "not an earlier layer"),
    ("checks/drift.py", "from ..validation import validate", "not an earlier layer"),
    ("dynamics/evaluator.py", "import omm_mlff.adapters.reporters", "not an earlier layer"),
    ("validation.py", "from omm_mlff.cli.main import main", "not an earlier layer"),
    ("verdict/judge.py", "from omm_mlff.systems import load_system", "not an earlier layer"),
    ("verdict/judge.py", "from omm_mlff.report import console", "not an earlier layer"),
    ("verdict/judge.py", "from omm_mlff.geometry import scans", "not an earlier layer"),
    ("forces/tap.py", "from omm_mlff.verdict import judge", "not an earlier layer"),
    ("geometry/scans.py", "from omm_mlff.statistics import intervals", "not an earlier layer"),
    (
        "record/rundir.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import omm_mlff.systems",
        "not an earlier layer",
    ),
    ("students/painn.py", "import openmm.app", "know nothing of OpenMM"),
    ("record/rundir.py", "import torch", "judged where this is absent"),
    ("report/console.py", "def f():\n    import mdtraj", "judged where this is absent"),
    ("cli/validate.py", "import pandas as pd", "too heavy"),
    ("checks/__init__.py", "from scipy import stats", "too heavy"),
    ("__init__.py", "from omm_mlff.schema import Verdict", "loaded lazily"),
    ("novelty.py", "", "add it to LAYERS"),
]

ALLOWED = [
    ("record/rundir.py", "from omm_mlff import __version__"),
    ("record/rundir.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import openmm"),
    ("cli/validate.py", "def f():\n    import torch"),
    ("report/console.py", "from omm_mlff.verdict.judge import judge"),
    ("checks/drift.py", "from omm_mlff.checks.base import Check\nimport mdtraj"),
    ("validation.py", "from omm_mlff.verdict.judge import judge"),
]

FILES = {"units", "errors", "schema", "data", "validation", "doctor"}


@pytest.fixture
def small_package(tmp_path: Path) -> Path:
    package = tmp_path / "omm_mlff"
    for name in (*RANK, *ASIDE):
        folder = package / name
        if name in FILES:
            package.mkdir(exist_ok=True)
            (package / f"{name}.py").write_text("")
        else:
            folder.mkdir(parents=True)
            (folder / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "checks" / "base.py").write_text("")
    (package / "dynamics" / "simulate.py").write_text("")
    (package / "verdict" / "judge.py").write_text("")
    (package / "report" / "console.py").write_text("")
    return package


def test_an_obedient_package_has_no_violations(small_package: Path) -> None:
    assert violations(small_package) == []


@pytest.mark.parametrize(("file", "source", "complaint"), BROKEN)
def test_a_forbidden_import_is_found(
    small_package: Path, file: str, source: str, complaint: str
) -> None:
    (small_package / file).write_text(source)
    found = violations(small_package)
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(("file", "source"), ALLOWED)
def test_a_permitted_import_is_let_pass(small_package: Path, file: str, source: str) -> None:
    (small_package / file).write_text(source)
    assert violations(small_package) == []
