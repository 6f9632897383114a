"""The console says the verdict first, fits 80 columns, and needs no colour."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from omm_mlff.report.console import LONGEST_NAME, MOST_FAILURES, show
from omm_mlff.schema import Declaration, Measurement, Where
from tests.judged_models import (
    DECLARATIONS,
    DEFAULTS,
    broken,
    count,
    judged,
    replaced,
    sampled,
    sound,
    unclear,
)

MODELS = {"sound": sound, "broken": broken, "unclear": unclear}


def printed(
    name: str, policy: str = "strict", width: int = 80, files: tuple[Path, ...] = ()
) -> str:
    return shown(judged(MODELS[name](), policy), width, files)


def shown(what: object, width: int = 80, files: tuple[Path, ...] = ()) -> str:
    out = io.StringIO()
    show(what, files, Console(file=out, width=width, highlight=False))  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("policy", ["strict", "m6"])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_wider_than_80_columns_or_coloured(name: str, policy: str) -> None:
    text = printed(name, policy)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_the_verdict_and_its_reason_come_first() -> None:
    lines = printed("broken").split("\n\n")[0].strip().splitlines()
    assert lines[0] == "REJECTED  tiny, profile quick, policy strict"
    assert lines[1].startswith(
        "stability.crashes fails for water at 300 K: 2 of 8 replicas stopped"
    )
    assert "Policy m6: REJECTED. runs-complete fails" in printed("broken")
    assert printed("broken", "m6").startswith("\nREJECTED  tiny, profile quick, policy m6")


def table_of(text: str) -> list[str]:
    return text.split("─\n", 1)[1].split("\n\n", 1)[0].splitlines()


def test_failures_stand_above_passes_with_the_worst_system() -> None:
    rows = table_of(printed("broken"))
    words = [row.split()[0] for row in rows if row[:4].strip()]
    assert words == ["FAIL"] * 4 + ["pass", "info"]
    force = next(row for row in rows if "accuracy.force_rmse" in row)
    assert "0.31 ± 0.018" in force
    assert "alanine" in force


def test_an_undecided_verdict_says_what_would_decide_it() -> None:
    text = printed("unclear")
    assert "UNDECIDED   nve.drift" in text
    assert "UNMEASURED  gradient.error" in text
    after = text.split("What would decide")[1]
    assert "2.28 ps more of alanine-nve-300K-0.5fs-2ps-x8: nve.drift" in after
    assert "gradient.error for methane: it was planned and no check measured it" in after


def test_what_is_out_of_scope_is_said_beside_the_verdict() -> None:
    text = " ".join(printed("sound", "m6").split())
    assert "APPROVED tiny, profile quick, policy m6 All 6 criteria that apply are met; " in text
    assert "not in this profile's scope: complete-10ps, temperature-series." in text
    assert "2 findings are not applicable" in text
    assert "the longest run of this profile is 2 ps" in text


def test_files_are_named_at_the_end() -> None:
    text = printed("sound", files=(Path("runs/a/report.md"), Path("runs/a/verdict.json")))
    assert text.endswith("Written to runs/a: report.md, verdict.json\n")


def test_an_ascii_terminal_gets_ascii() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    show(judged(broken()), (), Console(file=out, width=80, highlight=False))
    out.flush()
    raw = out.buffer.getvalue()  # type: ignore[attr-defined]
    assert b"0.31 +- 0.018" in raw


def test_many_failures_are_counted_not_listed() -> None:
    broken_everywhere = [
        count(name, 1, Where(system=m.where.system, run=m.where.run, temperature_K=300.0), "broke")
        for name in ("stability.crashes", "stability.broken_bonds")
        for m in sound().measurements
        if m.name == "stability.crashes"
    ]
    inaccurate = [
        sampled("accuracy.force_rmse", 5.0, 0.1, Where(system=name))
        for name in ("water", "alanine")
    ]
    text = shown(judged(replaced(sound(), *broken_everywhere, *inaccurate)))
    section = text.split("What failed\n")[1].split("\n\n")[0]
    assert sum(line.startswith("- ") for line in section.splitlines()) == MOST_FAILURES
    assert "and 2 more, all in report.md" in section
    # The worst of each criterion comes before a second example of any.
    assert section.index("accuracy.force_rmse") < section.rindex("stability.crashes")


def test_a_long_name_is_broken_at_a_seam() -> None:
    name = "invariance.translation_energy"
    assert len(name) > LONGEST_NAME
    file = sound()
    file = dataclasses.replace(
        file,
        declarations=(*DECLARATIONS, Declaration(name, "deterministic", "meV/atom", "", "i")),
        default_criteria=(
            *DEFAULTS,
            dataclasses.replace(
                DEFAULTS[-1], name=f"{name}-limit", measurement=name, severity="limit"
            ),
        ),
        measurements=(
            *file.measurements,
            Measurement.exact(name, 1e-9, "meV/atom", Where(system="water"), 8),
        ),
    )
    text = shown(judged(file))
    assert "pass  invariance. " in text
    assert "\n        translation_energy" in text


def test_words_in_brackets_are_text_not_markup() -> None:
    file = replaced(broken(), count("stability.crashes", 1, Where(system="[red]x"), "[/bold] no"))
    text = shown(judged(file))
    assert "[/bold] no" in text
    assert "[red]x" in text
