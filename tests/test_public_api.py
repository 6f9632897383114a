"""The public names, pinned."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import omm_mlff

PINNED = [
    "Criterion",
    "Evaluator",
    "LabelOptions",
    "Measurement",
    "MolecularSystem",
    "PotentialCard",
    "RunRecord",
    "RunSpec",
    "StabilityReporter",
    "StudentCalculator",
    "TrajectoryReporter",
    "Verdict",
    "__version__",
    "add_student",
    "load_potential",
    "load_student",
    "load_system",
    "read_record",
    "validate",
]


def test_the_public_names_are_these() -> None:
    assert omm_mlff.__all__ == PINNED
    assert sorted(PINNED) == PINNED
    assert len(PINNED) < 20


def test_every_public_name_is_listed_and_has_a_home() -> None:
    assert sorted([*omm_mlff._HOME, "__version__"]) == omm_mlff.__all__
    assert set(omm_mlff.__all__) <= set(dir(omm_mlff))


def test_every_name_that_the_readme_imports_is_one_of_them() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    imported = re.findall(r"^from omm_mlff import (.+)$", readme, re.MULTILINE)
    names = {name for line in imported for name in line.split(", ")}
    named = set(re.findall(r"`omm_mlff\.([A-Za-z_]+)`", readme))
    assert {"StudentCalculator", "read_record", "add_student", "RunRecord"} <= names | named
    modules = {info.name for info in pkgutil.iter_modules(omm_mlff.__path__)}
    assert (names | named) - modules <= set(omm_mlff.__all__)


def test_no_public_name_is_also_a_module() -> None:
    modules = {info.name for info in pkgutil.iter_modules(omm_mlff.__path__)}
    assert not modules & set(omm_mlff.__all__)


@pytest.mark.parametrize("name", PINNED)
def test_a_public_name_can_be_used_and_is_documented(name: str) -> None:
    value = getattr(omm_mlff, name)
    if name != "__version__":
        assert value is getattr(importlib.import_module(f"omm_mlff.{omm_mlff._HOME[name]}"), name)
        assert inspect.getdoc(value)


def test_everything_is_imported_where_the_optional_packages_are_absent() -> None:
    code = (
        "import sys\n"
        "for name in ('openmmml', 'torchani', 'tblite', 'matplotlib'): sys.modules[name] = None\n"
        "from omm_mlff import *\n"
        "print(StudentCalculator)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=Path(omm_mlff.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "StudentCalculator" in done.stdout


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Verdikt'"):
        _ = omm_mlff.Verdikt


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import omm_mlff\n"
        "loaded = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "sys.exit(repr(loaded & {'numpy', 'torch', 'openmm', 'mdtraj', 'rdkit', 'click'}) "
        "if loaded & {'numpy', 'torch', 'openmm', 'mdtraj', 'rdkit', 'click'} else 0)"
    )
    root = Path(omm_mlff.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
