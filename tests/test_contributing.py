"""What the contributor's guide shows is so: its examples run, its picture is the code's."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import mdtraj
import numpy as np
import pytest
import test_layers
from judged_models import broken, judged

from omm_mlff import report
from omm_mlff.cli.main import main
from omm_mlff.record import rundir
from omm_mlff.record.rundir import RunRecord, SegmentWriter, mdtraj_topology
from omm_mlff.schema import RunSpec

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def draw_layers() -> ModuleType:
    return script("draw_layers")


def test_the_picture_is_drawn_from_the_code_as_it_is(draw_layers: ModuleType) -> None:
    """Where this fails: python scripts/draw_layers.py."""
    assert draw_layers.with_picture(TEXT, draw_layers.picture(test_layers)) == TEXT


def test_the_picture_has_every_unit_in_its_row_and_no_arrow_up(draw_layers: ModuleType) -> None:
    rows, arrows = draw_layers.drawn_in(TEXT)
    assert rows == [list(row) for row in (*reversed(test_layers.LAYERS), test_layers.ASIDE)]
    assert {unit for row in rows for unit in row} == test_layers.units_of(test_layers.PACKAGE)
    assert len(arrows) > 20
    for importer, imported in arrows:
        assert test_layers.may_import(importer, imported), (importer, imported)


def test_an_arrow_that_follows_from_others_is_left_out(draw_layers: ModuleType) -> None:
    graph = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}, "e": {"d"}}
    assert draw_layers.reduced(graph) == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "e": {"d"}}


def test_a_picture_that_is_not_of_the_code_is_found(
    draw_layers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = tmp_path / "CONTRIBUTING.md"
    monkeypatch.setattr(draw_layers, "GUIDE", guide)
    guide.write_text(TEXT.replace("cli --> ", "units --> ", 1))
    assert draw_layers.main(["--check"]) == 1
    assert draw_layers.main([]) == 0
    assert draw_layers.main(["--check"]) == 0
    assert guide.read_text() == TEXT


def test_every_file_and_command_that_is_named_exists(capsys: pytest.CaptureFixture[str]) -> None:
    prose = re.sub(r"systems/formaldehyde|verdict\.txt", "", TEXT)
    paths = set(re.findall(r"(?:omm_mlff|tests|scripts|analysis|systems)/[\w./]+[\w/]", prose))
    assert len(paths) > 12
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"make (\w+) +#", TEXT)) <= set(targets)
    for command in set(re.findall(r"omm-mlff (\w+)", TEXT)):
        assert main([command, "--help"]) == 0
        assert f"omm-mlff {command}" in capsys.readouterr().out
    marks = (ROOT / "pyproject.toml").read_text()
    assert all(f'"{mark}: ' in marks for mark in ("timed", "slow"))


def test_the_entry_point_that_is_shown_is_the_example_packages() -> None:
    (shown,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert shown in (ROOT / "tests" / "example_package" / "pyproject.toml").read_text()


def test_the_command_that_makes_a_system_has_the_words_that_are_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """tests/distill/test_new_system.py runs it for this very molecule."""
    (line,) = re.findall(r"\$ python scripts/make_system\.py (.*)", TEXT)
    make_system = script("make_system")
    made: list[tuple[str, str, str]] = []
    monkeypatch.setattr(make_system, "Teacher", object)
    monkeypatch.setattr(
        make_system,
        "make_structure",
        lambda name, smiles, teacher, *, title, notes: made.append((name, smiles, title)),
    )
    monkeypatch.setattr(
        make_system, "_make", lambda name, only, teacher: made.append((name, "", ""))
    )
    assert make_system.main(shlex.split(line)) == 0
    assert made == [("formaldehyde", "C=O", "Formaldehyde"), ("formaldehyde", "", "")]


def test_the_report_format_that_is_shown_is_written_with_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = next(example for example in EXAMPLES if "FILE_NAME" in example)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "verdict_text.py").write_text(shown)
    monkeypatch.setattr(report, "__path__", [*report.__path__, str(tmp_path / "more")])
    before = set(report.formats()) - {"verdict.txt"}
    (tmp_path / "out").mkdir()
    try:
        paths = report.write_reports(judged(broken()), tmp_path / "out")
    finally:
        sys.modules.pop("omm_mlff.report.verdict_text", None)
    assert {path.name for path in paths} == before | {"verdict.txt"}
    first, *failed = (tmp_path / "out" / "verdict.txt").read_text().splitlines()
    assert first == "tiny: REJECTED under strict"
    assert any(line.startswith("stability.broken_bonds-reject on ") for line in failed)


def test_a_field_in_the_table_is_written_and_read_back_as_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = next(example for example in EXAMPLES if "SegmentWriter" in example)
    (row,) = re.findall(r"rundir\._FIELDS\[\"(\w+)\"\] = \(\"(\w+)\", \"(\w+)\"\)", shown)
    name, dataset, unit = row
    monkeypatch.setitem(rundir._FIELDS, name, (dataset, unit))
    monkeypatch.setitem(rundir._DATASETS, name, dataset)
    folder = tmp_path / "run"
    rundir.create(folder, RunSpec("m", "s", 1.0, 300.0, 1, seed=0), {}, resume=False)
    rundir.write_json(folder / "status.json", {"state": "complete", "events": {}})
    topology = mdtraj_topology(["H1", "H2"], ["H", "H"], [("HYD", 0)] * 2, np.array([[0, 1]]))
    writer = SegmentWriter(folder / "replica_000", topology, 2, None, first_index=0)
    frames = {field: np.zeros((2, 2, 3)) for field in ("positions", "velocities", "forces")}
    frames |= {field: np.zeros(2) for field in ("potential_energy", "kinetic_energy")}
    writer.append({**frames, "time": np.array([0.0, 0.5]), name: np.array([0.5, -0.5])})
    writer.close_segment()
    (block,) = RunRecord.open(folder).replica(0).chunks(1000, ("time", name))
    assert block[name].tolist() == [0.5, -0.5]
    assert mdtraj.load(folder / "replica_000" / "00000.h5").n_frames == 2
