"""The command `models`: the students that ship, the other forms of a model, or a card."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import click


@click.command()
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the cards as JSON.")
def models(model: str | None, as_json: bool) -> None:
    """List the models that ship and what else --model takes, or show the card of MODEL."""
    from omm_mlff.potentials.registry import spec_forms
    from omm_mlff.students.checkpoint import load_card, student_names

    if model is not None:
        card = card_of(model)
        click.echo(json.dumps(card, indent=2) if as_json else as_lines(card))
        return
    cards = [load_card(name) for name in student_names()]
    cards.sort(key=lambda card: -card.get("n_parameters", 0))
    if as_json:
        click.echo(json.dumps(cards, indent=2))
        return
    print_table(cards)
    click.echo("\nOther models, for --model:")
    for form in spec_forms():
        click.echo(f"  {form}")


def card_of(model: str) -> dict[str, Any]:
    """The whole card of a student's checkpoint, or what another model says of itself."""
    from omm_mlff.potentials.registry import load_potential
    from omm_mlff.potentials.student import matches
    from omm_mlff.students.checkpoint import load_card, student_names

    if model in student_names() or matches(model):
        return load_card(model)
    said = dataclasses.asdict(load_potential(model).card)
    return {key: value for key, value in said.items() if value not in (None, {}, ())}


TITLES = ("model", "parameters", "elements", "cutoff", "teacher", "trained at", "held out")
LEGEND = """\
cutoff in angstrom; trained at temperatures in K; held out: force RMSE in eV/angstrom on frames of
200 to 500 K that trained nothing, from the best molecule to the worst.
Show one with: omm-mlff models NAME.  Judge it with: omm-mlff validate --model NAME"""


def print_table(cards: list[dict[str, Any]]) -> None:
    """One row per card, in the order given."""
    rows = [TITLES, *map(row_of, cards)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
    click.echo(f"\n{LEGEND}")


def row_of(card: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one card, as titled; a question mark for what it does not say."""
    cold = [row for row in card.get("held_out", ()) if row["stratum"] == "cold"]
    return (
        card["name"],
        f"{card['n_parameters']:,}" if "n_parameters" in card else "?",
        " ".join(symbols(card.get("species", ()))),
        f"{card['cutoff_angstrom']:g}" if "cutoff_angstrom" in card else "?",
        str(card.get("teacher", "?")),
        span(card.get("training_domain", {}).get("temperature_K") or (), "g"),
        span([row["force_rmse_eV_per_angstrom"] for row in cold], ".3f"),
    )


def span(values: Sequence[float], style: str) -> str:
    """The smallest and the largest of them; a question mark where there are none."""
    if not values:
        return "?"
    low, high = min(values), max(values)
    return f"{low:{style}}" if low == high else f"{low:{style}}-{high:{style}}"


def symbols(species: list[int]) -> list[str]:
    """The elements' symbols, of atomic numbers."""
    from openmm.app import Element

    return [Element.getByAtomicNumber(number).symbol for number in species]


def as_lines(data: dict[str, Any], indent: str = "") -> str:
    """A card as indented lines, for a person."""
    lines = []
    for key, value in data.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", as_lines(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            rows = (", ".join(f"{name} {item}" for name, item in row.items()) for row in value)
            lines += [f"{indent}{key}:", *(f"{indent}  {row}" for row in rows)]
        else:
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{indent}{key}: {shown}")
    return "\n".join(lines)
