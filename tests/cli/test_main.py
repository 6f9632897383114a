"""Exit codes and the one line on the error stream; what the console script itself does."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from omm_mlff import __version__, errors
from omm_mlff.cli import main as module
from omm_mlff.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]

HEAVY = ("torch", "openmm", "mdtraj", "pandas", "rdkit", "numpy", "rich")


def install(monkeypatch: pytest.MonkeyPatch, callback: Callable[[], Any]) -> None:
    """Put a command that does `callback` in the place of `doctor`."""
    fake = ModuleType("omm_mlff.cli.doctor")
    fake.doctor = click.Command("doctor", callback=callback)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "omm_mlff.cli.doctor", fake)


def raising(error: BaseException) -> Callable[[], None]:
    def callback() -> None:
        raise error

    return callback


def all_errors(base: type[errors.OmmMlffError] = errors.OmmMlffError) -> list[type]:
    return [base, *(leaf for child in base.__subclasses__() for leaf in all_errors(child))]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 130])
def test_a_command_returns_its_exit_code(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    install(monkeypatch, lambda: code)
    assert main(["doctor"]) == code


def test_a_command_that_returns_nothing_has_succeeded(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, lambda: None)
    assert main(["doctor"]) == 0


def test_a_command_may_stop_through_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, lambda: click.get_current_context().exit(3))
    assert main(["doctor"]) == 3


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_an_exception_of_ours_is_one_line_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type
) -> None:
    error = kind.__new__(kind)
    Exception.__init__(error, "wanted this,\n  got that; do so")
    install(monkeypatch, raising(error))
    assert main(["doctor"]) == error.exit_code
    assert error.exit_code in (2, 4)
    captured = capsys.readouterr()
    assert captured.err == "error: wanted this, got that; do so\n"
    assert captured.out == ""


@pytest.mark.parametrize("way", ["option", "environment"])
def test_the_traceback_is_shown_where_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    install(monkeypatch, raising(errors.StructureError("two atoms at one place")))
    if way == "environment":
        monkeypatch.setenv("OMM_MLFF_DEBUG", "1")
    assert main(["--debug", "doctor"] if way == "option" else ["doctor"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "error: two atoms at one place"


@pytest.mark.parametrize(
    "error", [ValueError("a defect"), SystemExit(1), SystemExit("bye"), MemoryError()], ids=repr
)
def test_an_unexpected_exception_keeps_its_traceback_and_ends_in_4(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    install(monkeypatch, raising(error))
    assert main(["doctor"]) == 4
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert type(error).__name__ in shown


def test_an_interrupt_ends_in_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, raising(KeyboardInterrupt()))
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full (out/run.h5)"),
        (errno.EDQUOT, "the disk is full (out/run.h5)"),
        (errno.EACCES, "cannot write (out/run.h5)"),
        (errno.EROFS, "cannot write (out/run.h5)"),
    ],
)
def test_a_disk_that_takes_nothing_is_one_line_and_4(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, words: str
) -> None:
    install(monkeypatch, raising(OSError(number, os.strerror(number), "out/run.h5")))
    monkeypatch.setattr(module, "_discard", lambda stream: None)
    assert main(["doctor"]) == 4
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {words}")
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["validte"], "validate"),
        (["doctor", "--no-such-option"], "No such option"),
        (["--no-such-option"], "No such option"),
        ([], "Usage:"),
    ],
)
def test_bad_usage_ends_in_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    complaint: str,
) -> None:
    install(monkeypatch, lambda: 0)
    assert main(words) == 2
    assert complaint in capsys.readouterr().err


def test_the_list_of_commands_needs_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} {line}" in shown for name, line in COMMANDS.items())


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: omm-mlff {name}")


def in_a_process(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        text=True,
        stderr=subprocess.PIPE,
        check=False,
        **options,
    )


def test_help_is_quick_since_nothing_heavy_is_imported() -> None:
    code = f"""
        import sys
        from omm_mlff.cli.main import main
        code = main(["--help"])
        heavy = [name for name in {HEAVY!r} if name in sys.modules]
        # 115 as it is, most of them click's; a second's worth of imports is a thousand and more.
        many = len(sys.modules) > 250
        sys.exit(f"imported {{heavy}}, {{len(sys.modules)}} in all" if heavy or many else code)
    """
    done = in_a_process(code, stdout=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr


PRINTING = """
    import sys, types, click
    from omm_mlff.cli.main import main
    def callback():
        for _ in range({n_lines}):
            sys.stdout.write("a line that somebody reads\\n")
        return {code}
    fake = types.ModuleType("omm_mlff.cli.doctor")
    fake.doctor = click.Command("doctor", callback=callback)
    sys.modules["omm_mlff.cli.doctor"] = fake
    sys.exit(main({words!r}))
"""


@pytest.mark.parametrize("n_lines", [1, 20000])  # seen when flushed at the end; when written
@pytest.mark.parametrize("code", [0, 3])
def test_a_reader_that_goes_away_changes_neither_the_exit_code_nor_the_errors(
    n_lines: int, code: int
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    text = PRINTING.format(words=["doctor"], n_lines=n_lines, code=code)
    done = in_a_process(text, stdout=writing)
    os.close(writing)
    assert done.returncode == code
    assert done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("words", [["doctor"], ["--help"]])
def test_a_full_disk_under_the_output_ends_in_4(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = in_a_process(PRINTING.format(words=words, n_lines=20000, code=0), stdout=full)
    assert done.returncode == 4
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["bench", "export"])
def test_what_a_system_may_be_is_said_in_one_place(name: str, capsys) -> None:
    assert main([name, "--help"]) == 0
    assert "as `omm-mlff validate --system` takes it" in " ".join(capsys.readouterr().out.split())
