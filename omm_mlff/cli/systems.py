"""The command `systems`: the molecules that ship, or one system as it would be run."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from omm_mlff.cli.arguments import system_options

if TYPE_CHECKING:
    from omm_mlff.schema import MolecularSystem
    from omm_mlff.systems.shipped import SystemCard


@click.command()
@click.argument("system", required=False)
@system_options
@click.option("--json", "as_json", is_flag=True, help="Print the cards as JSON.")
def systems(
    system: str | None, frame: int | None, charge: int | None, spin: int | None, as_json: bool
) -> None:
    """List the systems that ship, or show SYSTEM.

    SYSTEM is a shipped name, a structure file (PDB, mmCIF, SDF, MOL2, XYZ, GRO, prmtop+inpcrd,
    psf+crd), smiles:STRING, or water-box:N.
    """
    from omm_mlff.systems import system_names, with_options
    from omm_mlff.systems.shipped import read_card

    if system is not None:
        described = describe(with_options(system, frame=frame, charge=charge, spin=spin))
        click.echo(json.dumps(described, indent=2) if as_json else as_lines(described))
        return
    cards = [read_card(name) for name in system_names()]
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(card) for card in cards], indent=2))
        return
    print_table(cards)


def print_table(cards: list[SystemCard]) -> None:
    """One row per card, in the order given."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for title, side in (
        ("system", "left"),
        ("formula", "left"),
        ("trained on", "left"),
        ("labels", "left"),
        ("frames", "right"),
        ("at (K)", "left"),
    ):
        table.add_column(title, justify="right" if side == "right" else "left", no_wrap=True)
    for card in cards:
        labels = card.reference
        table.add_row(
            card.name,
            card.formula,
            "yes" if card.trained_on else "no",
            labels.method if labels else "none",
            str(labels.n_frames) if labels else "0",
            span(labels.temperatures_K) if labels else "",
        )
    Console().print(table)
    click.echo(
        "Any structure file is a system too, and so are smiles:STRING and water-box:N.\n"
        "Show one with: omm-mlff systems NAME"
    )


def describe(spec: str) -> dict[str, Any]:
    """What is known of a system, loaded and checked as it is before a run."""
    from omm_mlff.systems import load_system, system_names
    from omm_mlff.systems.shipped import read_card

    system = load_system(spec)
    described: dict[str, Any] = {
        "name": system.name,
        "formula": formula(system),
        "atoms": system.n_atoms,
        "bonds": len(system.bonds),
        "charge": system.charge,
        "spin_multiplicity": system.spin_multiplicity,
        "mass_dalton": round(float(system.masses.sum()), 4),
        "box_nm": None if system.box_vectors is None else system.box_vectors.round(6).tolist(),
    }
    if spec in system_names():
        card = dataclasses.asdict(read_card(spec))
        for key in ("name", "formula", "charge", "bonds"):
            del card[key]
        return described | card
    return described | {"source": system.source, "reference": None}


def formula(system: MolecularSystem) -> str:
    """Carbon, hydrogen, then the others by symbol (Hill's order)."""
    counts = Counter(atom.element.symbol for atom in system.topology.atoms())
    first = [symbol for symbol in ("C", "H") if "C" in counts and symbol in counts]
    ordered = first + sorted(set(counts) - set(first))
    return "".join(f"{symbol}{counts[symbol] if counts[symbol] > 1 else ''}" for symbol in ordered)


def span(temperatures: tuple[float, ...]) -> str:
    """Lowest to highest temperature, for one cell of a table."""
    return f"{min(temperatures):g} to {max(temperatures):g}"


def as_lines(data: dict[str, Any], indent: str = "") -> str:
    """A description as indented lines, for a person."""
    lines = []
    for key, value in data.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", as_lines(value, indent + "  ")]
        elif value is None:
            lines.append(f"{indent}{key}: none")
        elif isinstance(value, bool):
            lines.append(f"{indent}{key}: {'yes' if value else 'no'}")
        else:
            shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
            lines.append(f"{indent}{key}: {shown}")
    return "\n".join(lines)
