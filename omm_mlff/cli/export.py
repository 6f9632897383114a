"""`omm-mlff export`: a student as a TorchScript file for openmm-torch users."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command()
@click.option("--model", required=True, help="A shipped student, or a checkpoint's folder.")
@click.option(
    "--system",
    required=True,
    metavar="NAME|FILE",
    help="The molecule or box that the file is for, as `omm-mlff validate --system` takes it.",
)
@click.option(
    "--out",
    required=True,
    metavar="FILE.pt",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The new file. The system is written beside it, as FILE.pdb.",
)
@click.option("--forces", is_flag=True, help="It returns energy and forces, not the energy alone.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
def export(model: str, system: str, out: Path, forces: bool, overwrite: bool) -> None:
    """Write a student as a plain TorchScript file.

    It works wherever openmm-torch does, without this package. It is for the atoms of the system, in
    their order.
    """
    from omm_mlff.potentials.export import export_student
    from omm_mlff.systems import load_system

    exported = export_student(model, load_system(system), out, forces=forces, overwrite=overwrite)
    card = exported.card
    n_atoms = len(exported.elements)
    click.echo(
        f"{out}: {card.name} ({card.n_parameters:,} parameters, cutoff "
        f"{card.cutoff_nm:g} nm) for {n_atoms} atoms in this order:\n"
        f"  {in_order(exported.elements)}\n"
        f"takes positions in nm, gives {'energy and forces' if forces else 'energy'} in kJ/mol"
        f"{' and kJ/mol/nm' if forces else ''}; {exported.energy_kjmol:.4f} kJ/mol for the "
        "structure as given, which is in "
        f"{exported.pdb}\n"
        f"\n{exported.usage}\n"
        f"Judge it with: omm-mlff validate --model {out} --system {system}"
    )


def in_order(elements: Sequence[str]) -> str:
    """Elements with how often each follows itself; a pattern that repeats is written once."""
    for length in range(1, len(elements) // 2 + 1):
        times, rest = divmod(len(elements), length)
        if not rest and list(elements) == list(elements[:length]) * times:
            unit = " ".join(elements[:length])
            return f"{unit} ({times} times)"
    runs = [(element, len(list(same))) for element, same in groupby(elements)]
    return " ".join(f"{element} x{n}" if n > 1 else element for element, n in runs)
