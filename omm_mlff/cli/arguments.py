"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., object])

model_option = click.option(
    "--model",
    required=True,
    metavar="SPEC",
    help="A shipped student; a checkpoint's folder; a TorchScript file (model.pt, with --system); "
    "openmm-ml:NAME; ase:MODULE:FACTORY; native:FORCEFIELD; teacher:ANI-1ccx. Options follow as "
    "?name=value&name=value. `omm-mlff models` lists them all.",
)


def system_options(command: Command) -> Command:
    """What a structure file leaves open: which of its structures, charge, spin."""
    for option in (
        click.option("--spin", type=int, metavar="2S+1", help="Of a radical: 2 for a doublet."),
        click.option("--charge", type=int, help="Total charge, where the file does not say it."),
        click.option("--frame", type=int, help="Which of several structures in a file, from 0."),
    ):
        command = option(command)
    return command
