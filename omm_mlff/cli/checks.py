"""The command `checks`: what each check asks, for a terminal or for the README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from omm_mlff.checks.base import Check

BEGIN, END = "<!-- made by: omm-mlff checks --into README.md -->", "<!-- end of what is made -->"


@click.command()
@click.option("--markdown", is_flag=True, help="Print the table of the README.")
@click.option(
    "--into",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Write that table between its marks in a file.",
)
def checks(markdown: bool, into: Path | None) -> None:
    """List the checks: what each asks and measures."""
    from omm_mlff.checks.registry import all_checks

    found = all_checks()
    if into is not None:
        into.write_text(with_table(into, as_markdown(found)), encoding="utf-8")
        click.echo(f"wrote {len(found)} checks into {into}")
    elif markdown:
        click.echo("\n".join(as_markdown(found)))
    else:
        width = max(len(check.name) for check in found)
        for check in found:
            click.echo(f"{check.name:<{width}}  {check.question}")
            click.echo(f"{'':<{width}}  {', '.join(row.name for row in check.declares)}")


def as_markdown(found: Sequence[Check]) -> list[str]:
    """The lines of the README's table: the checks by what they look at, then by name."""
    from omm_mlff.report.markdown_table import markdown_table

    rows: list[tuple[str, str]] = []
    for title, looks_at in _GROUPS:
        members = [check for check in found if _looks_at(check) == looks_at]
        if members:
            rows.append(("", f"**{title}**"))
            rows += [(f"`{check.name}`", check.question) for check in members]
    return markdown_table(("check", "its question"), rows)


def with_table(path: Path, table: Sequence[str]) -> str:
    """A file's text with the table between its marks.

    Raises
    ------
    InputError : the file lacks a mark
    """
    from omm_mlff.errors import InputError

    text = path.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise InputError(f"{path} lacks the lines {BEGIN!r} and {END!r}, between which it goes")
    return "\n".join([f"{head}{BEGIN}", *table, f"{END}{tail}"])


_GROUPS = (
    ("of the model alone", "model"),
    ("of runs at constant energy", "runs"),
    ("of runs under a thermostat", "thermostat"),
)


def _looks_at(check: Check) -> str:
    if "runs" not in check.needs:
        return "model"
    return "thermostat" if check.reads == {"thermostat"} else "runs"
