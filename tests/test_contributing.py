"""What the contributor's guide shows is so: its examples run, its picture is the code's."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import test_layers
from judged_models import broken, judged

from omm_mlff import report
from omm_mlff.cli.main import main
from omm_mlff.record.frame_fields import FIELDS, FrameField

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


def test_the_recorded_field_that_is_shown_is_the_one_that_a_test_adds() -> None:
    shown = next(example for example in EXAMPLES if example.startswith("FrameField("))
    row = eval(shown, {"FrameField": FrameField})
    assert row.name not in FIELDS
    assert repr(row) in added_by_the_test()


def added_by_the_test() -> str:
    """The row of `tests/record/test_frame_fields.py`, as Python prints it."""
    text = (ROOT / "tests" / "record" / "test_frame_fields.py").read_text(encoding="utf-8")
    (call,) = re.findall(r"row = frame_fields\.(FrameField\(.*?\))\n", text, re.DOTALL)
    return repr(eval(call, {"FrameField": FrameField}))
