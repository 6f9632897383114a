"""Writes the matrix: as JSON, as Markdown for the documentation, as tables on the console."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omm_mlff.proving.matrix import BadRow, GoodRow, Matrix, Reach
from omm_mlff.report.markdown_table import markdown_table
from omm_mlff.schema import finite

if TYPE_CHECKING:
    from rich.table import Table

JSON_FILE = "prove.json"
MARKDOWN_FILE = "prove.md"

_BAD = ("kind", "strength", "verdict", "caught by", "cause named", "right")
_REACH = ("kind", "dial", "smallest caught", "smallest rejected", "tried")
_GOOD = ("known good", "seeds", "verdicts", "rejected", "criteria that failed (in how many seeds)")


def as_json(matrix: Matrix) -> dict[str, Any]:
    """The whole matrix, as plain JSON."""
    return dict(
        finite(
            {
                "passed": matrix.passed,
                "kinds": [_bad_json(row) for row in matrix.bad],
                "smallest": [
                    {
                        "kind": reach.kind.name,
                        "unit": reach.kind.unit,
                        "tried": list(reach.tried),
                        "caught": reach.caught,
                        "rejected": reach.rejected,
                    }
                    for reach in matrix.reach
                ],
                "known_good": [_good_json(row) for row in matrix.good],
            }
        )
    )


def as_markdown(matrix: Matrix) -> str:
    """The three tables."""
    lines = [
        "## Known bad",
        "",
        *_markdown(_BAD, [_bad_cells(row) for row in matrix.bad]),
        "",
        "## The smallest strength still caught",
        "",
        *_markdown(_REACH, [_reach_cells(reach) for reach in matrix.reach]),
        "",
        "## Known good",
        "",
        *_markdown(_GOOD, [_good_cells(row) for row in matrix.good]),
    ]
    return "\n".join(lines) + "\n"


def as_tables(matrix: Matrix) -> list[Table]:
    """The matrix for the console."""
    from rich import box
    from rich.table import Table

    tables = []
    for columns, rows in (
        (_BAD, [_bad_cells(row) for row in matrix.bad]),
        (_REACH, [_reach_cells(reach) for reach in matrix.reach]),
        (_GOOD, [_good_cells(row) for row in matrix.good]),
    ):
        if rows:
            table = Table(*columns, box=box.SIMPLE)
            for row in rows:
                table.add_row(*row)
            tables.append(table)
    return tables


def write(matrix: Matrix, folder: Path) -> list[Path]:
    """Both files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / JSON_FILE, folder / MARKDOWN_FILE]
    paths[0].write_text(json.dumps(as_json(matrix), indent=1) + "\n", encoding="utf-8")
    paths[1].write_text(as_markdown(matrix), encoding="utf-8")
    return paths


def _bad_json(row: BadRow) -> dict[str, Any]:
    found = row.attempt
    return {
        "kind": row.kind.name,
        "what": row.kind.what,
        "strength": row.strength,
        "unit": row.kind.unit,
        "gross": row.gross,
        "verdict": found.verdict,
        "caught_by": list(found.caught_by),
        "cause": found.cause,
        "cause_expected": row.kind.cause,
        "cause_right": row.cause_right,
        "causes": list(found.causes),
        "sentence": found.sentence,
        "failed": [vars(alarm) for alarm in found.alarms],
        "cpu_s": round(found.cpu_s, 1),
        "wall_s": round(found.wall_s, 1),
        "error": found.error,
    }


def _good_json(row: GoodRow) -> dict[str, Any]:
    return {
        "name": row.good.name,
        "what": row.good.what,
        "seeds": len(row.attempts),
        "verdicts": row.verdicts,
        "rejected": row.n_rejected,
        "false_alarms": [
            {"criterion": name, "severity": severity, "seeds": n}
            for (severity, name), n in row.alarms.items()
        ],
        "cpu_s": round(sum(item.cpu_s for item in row.attempts), 1),
        "errors": [item.error for item in row.attempts if item.error],
    }


def _bad_cells(row: BadRow) -> tuple[str, ...]:
    found = row.attempt
    right = {True: "yes", False: f"no: {row.kind.cause}", None: ""}[row.cause_right]
    return (
        row.kind.name,
        f"{row.strength:g} {'(gross)' if row.gross else ''}".strip(),
        found.verdict,
        ", ".join(found.caught_by[:4]) + (" ..." if len(found.caught_by) > 4 else ""),
        found.cause or found.error,
        right,
    )


def _reach_cells(reach: Reach) -> tuple[str, ...]:
    return (
        reach.kind.name,
        reach.kind.unit,
        *("never" if value is None else f"{value:g}" for value in (reach.caught, reach.rejected)),
        ", ".join(f"{strength:g}" for strength in reach.tried),
    )


def _good_cells(row: GoodRow) -> tuple[str, ...]:
    verdicts = ", ".join(f"{n} {name}" for name, n in sorted(row.verdicts.items()))
    alarms = ", ".join(f"{name} ({n})" for (_, name), n in row.alarms.items())
    return (row.good.name, str(len(row.attempts)), verdicts, str(row.n_rejected), alarms)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["None was tried."]
    return markdown_table(columns, rows)
