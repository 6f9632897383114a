"""Writes a Markdown table, the one way for every report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table; no cell can end its column or its row.

    Parameters
    ----------
    header : titles of the columns
    rows : each as long as the header
    """
    return [_line(header), _line(["---"] * len(header)), *map(_line, rows)]


def markdown_cell(value: object) -> str:
    """A value as it may stand in a cell, or in a heading: one line, its bars escaped."""
    return " ".join(str(value).replace("|", "\\|").split())


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(markdown_cell, cells))} |"
