"""Options that several commands share."""

from __future__ import annotations

import click

model_option = click.option(
    "--model",
    required=True,
    metavar="SPEC",
    help="A shipped student; a checkpoint's folder; a TorchScript file (model.pt, with --system); "
    "openmm-ml:NAME; ase:MODULE:FACTORY; native:FORCEFIELD; teacher:ANI-1ccx. Options follow as "
    "?name=value&name=value. `omm-mlff models` lists them all.",
)
