"""Everything that only a node with a GPU can tell, in one go: what works there, and what it costs.

Each part is a process of its own with a limit of its own, so that a crash or a hang of one costs
nothing but that part. `scripts/gpu_check.sh` prepares a node without network and calls this.

usage: python -m omm_mlff.bench.gpu_check FOLDER [--platform CUDA] [--only NAME,NAME] [--limit-s S]

FOLDER gets gpu_check.json (every part: command, seconds, exit code, what it printed last, its own
result) and gpu_check.md, the same as tables. Ends in 0 where every part did what it should.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click

SCHEMA = 1
DOCUMENT_FILE, TABLE_FILE = "gpu_check.json", "gpu_check.md"
STUDENTS = ("tiny", "original", "ultra-tiny")

_MAIN = "import sys; from omm_mlff.cli.main import main; sys.exit(main(sys.argv[1:]))"
_TAIL = 4000
_GRACE_S = 5.0
_TESTS_FILE = "junit.xml"
_MARK = "mark.cuda"


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes
    ----------
    name : of the part; its folder under the output too
    command : after the interpreter
    limit_s : then it is stopped
    result : the file that it leaves, relative to the part's folder: JSON, or pytest's JUnit XML, of
        which one test at least must have passed; empty where it leaves none
    passing : exit codes that say that it did what it should
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    result: str = ""
    passing: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Outcome:
    """What became of a part.

    Attributes
    ----------
    exit_code : negative for a signal; None where it was stopped at its limit or not begun
    result : what its JSON file holds
    tail : what it printed last
    """

    name: str
    passed: bool
    seconds: float
    exit_code: int | None
    tail: str
    command: tuple[str, ...] = ()
    result: Any = field(default=None)


def parts(folder: Path, platform: str) -> list[Part]:
    """What is looked at, the most telling first.

    Parameters
    ----------
    folder : each part writes into a folder of its name under it
    platform : "CUDA"; another one tries the script itself
    """

    def cli(*words: str) -> tuple[str, ...]:
        return ("-c", _MAIN, *words)

    def module(name: str, *words: str) -> tuple[str, ...]:
        return ("-m", f"omm_mlff.bench.{name}", *words)

    found = [
        Part("doctor", cli("doctor", "--json"), 40.0),
        Part(
            "tests",
            (
                *("-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "--durations=8"),
                f"--junitxml={folder / 'tests' / _TESTS_FILE}",
                *files_with_cuda_tests(),
            ),
            120.0,
            _TESTS_FILE,
        ),
        Part(
            "engine",
            module("device_engine", "--limit-s", "55", "--out", str(folder / "engine")),
            60.0,
            "device_engine.json",
        ),
    ]
    found += [
        Part(
            f"validate-{name}",
            cli(
                *("validate", "--model", name, "--profile", "quick", "--platform", platform),
                *("--out", str(folder / f"validate-{name}" / "run")),
            ),
            90.0,
            "run/verdict.json",
            passing=(0, 1, 3),
        )
        for name in STUDENTS
    ]
    found += [
        Part(
            f"bench-{n}",
            cli(
                *("bench", "--quick", "--model", "original", "--system", "alanine-dipeptide"),
                *("--replicas", str(n), "--platform", platform, "--precision", "mixed"),
                *("--out", str(folder / f"bench-{n}" / "run")),
            ),
            60.0,
            "run/bench.json",
        )
        for n in (16, 256)
    ]
    found.append(
        Part(
            "precisions",
            module("precisions", "--platform", platform, "--out", str(folder / "precisions")),
            60.0,
            "precisions.json",
        )
    )
    return found


def files_with_cuda_tests() -> list[str]:
    """Test files of this checkout in which some test is marked `cuda`; others need not be read."""
    tests = Path(__file__).resolve().parents[2] / "tests"
    found = sorted(tests.rglob("test_*.py"))
    return [str(path) for path in found if _MARK in path.read_text(encoding="utf-8")]


def run_part(part: Part, folder: Path, limit_s: float) -> Outcome:
    """Run one part to its end, or to the limit.

    Parameters
    ----------
    folder : of all parts
    limit_s : at most; the part's own limit holds too
    """
    own = folder / part.name
    own.mkdir(parents=True, exist_ok=True)
    limit = min(part.limit_s, limit_s)
    if limit <= 0.0:
        return Outcome(part.name, False, 0.0, None, "no time was left", part.command)
    began = time.monotonic()
    with open(own / "output.txt", "wb") as output:
        process = subprocess.Popen(
            [sys.executable, *part.command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    seconds = time.monotonic() - began
    tail = (own / "output.txt").read_bytes()[-_TAIL:].decode(errors="replace")
    if code is None:
        tail += f"\nstopped at its limit of {limit:.0f} s"
    result = _result(own / part.result) if part.result else {}
    passed = code in part.passing and result is not None
    return Outcome(part.name, passed, round(seconds, 2), code, tail, part.command, result)


def _result(path: Path) -> Any:
    """What a part has left; None where it left nothing, or tests of which none has passed."""
    if not path.is_file():
        return None
    if path.name != _TESTS_FILE:
        return json.loads(path.read_text(encoding="utf-8"))
    suites = ElementTree.parse(path).getroot().iter("testsuite")
    counts = {"tests": 0, "skipped": 0, "failures": 0, "errors": 0}
    for suite in suites:
        for name in counts:
            counts[name] += int(suite.get(name, 0))
    n_passed = counts["tests"] - sum(n for name, n in counts.items() if name != "tests")
    return {**counts, "passed": n_passed} if n_passed > 0 else None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Whatever is left of a part and of what it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            continue


def table(outcomes: Sequence[Outcome], card: str) -> str:
    """The outcomes for people, as Markdown."""
    lines = [
        f"# What only a GPU tells: {card}",
        "",
        "| part | passed | seconds | exit code |",
        "|---|---|---|---|",
    ]
    for row in outcomes:
        code = "stopped" if row.exit_code is None else row.exit_code
        lines.append(f"| {row.name} | {'yes' if row.passed else 'NO'} | {row.seconds} | {code} |")
    for row in outcomes:
        if not row.passed:
            last = row.tail.strip().splitlines()[-12:]
            lines += ["", f"## {row.name}", "", "```", *last, "```"]
    return "\n".join(lines) + "\n"


def card_name() -> str:
    """The device's name, driver and memory, as torch tells them."""
    import torch

    if not torch.cuda.is_available():
        return "no CUDA device"
    properties = torch.cuda.get_device_properties(0)
    return (
        f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
        f"{properties.total_memory / 2**30:.0f} GiB, torch {torch.__version__}"
    )


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--platform", default="CUDA", show_default=True)
@click.option("--only", default="", help="Names of parts, separated by commas.")
@click.option("--limit-s", default=240.0, show_default=True, help="For all parts together.")
def main(folder: Path, platform: str, only: str, limit_s: float) -> None:
    """Run every part and write what was found into FOLDER."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    chosen = parts(folder, platform)
    names = {name for name in only.split(",") if name}
    unknown = sorted(names - {part.name for part in chosen})
    if unknown:
        known = ", ".join(part.name for part in chosen)
        raise click.BadParameter(f"no part is named {unknown[0]!r}; known: {known}")
    chosen = [part for part in chosen if not names or part.name in names]
    began = time.monotonic()
    card = card_name()
    outcomes: list[Outcome] = []
    for part in chosen:
        outcome = run_part(part, folder, limit_s - (time.monotonic() - began))
        outcomes.append(outcome)
        word = "ok" if outcome.passed else "FAILED"
        click.echo(f"{word:<7} {outcome.name:<20} {outcome.seconds:7.1f} s", nl=True)
        # Written after each: whatever ends this process leaves what is known.
        document = {
            "schema": SCHEMA,
            "card": card,
            "seconds": round(time.monotonic() - began, 1),
            "parts": [asdict(row) for row in outcomes],
        }
        (folder / DOCUMENT_FILE).write_text(json.dumps(document, indent=1), encoding="utf-8")
        (folder / TABLE_FILE).write_text(table(outcomes, card), encoding="utf-8")
    sys.exit(0 if outcomes and all(row.passed for row in outcomes) else 1)


if __name__ == "__main__":
    main()
