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

device_option = click.option(
    "--device",
    type=click.IntRange(min=0),
    metavar="N",
    help="With --platform CUDA or OpenCL: the device to compute on, as nvidia-smi counts them.",
)

allow_fallback_option = click.option(
    "--allow-fallback",
    is_flag=True,
    help="Where --platform names one and TorchForce cannot be had, go on through OpenMM's "
    "PythonForce, which computes on the host.",
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


def label_options(command: Command) -> Command:
    """Energies and forces to compare with, and a method for what no file has."""
    for option in (
        click.option(
            "--labels-method", "method", metavar="NAME", help="The method that made the labels."
        ),
        click.option(
            "--labels-held-out",
            "held_out",
            type=click.Choice(["yes", "no", "unknown"]),
            help="Whether the labels were kept from the model; the report repeats it.",
        ),
        click.option("--length-unit", metavar="UNIT", help="Of the labels: angstrom, nm, bohr."),
        click.option("--force-unit", metavar="UNIT", help="Of the labels, such as eV/angstrom."),
        click.option(
            "--energy-unit", metavar="UNIT", help="Of the labels: eV, kJ/mol, kcal/mol, hartree."
        ),
        click.option("--forces-key", metavar="KEY", help="What the labels call the forces."),
        click.option("--energy-key", metavar="KEY", help="What the labels call the energy."),
        click.option(
            "--teacher",
            metavar="SPEC",
            help="A reference method, written as --model is: asked along the runs, and for "
            "conformers, torsions and vibrations.",
        ),
        click.option(
            "--labels",
            metavar="FILE",
            help="Energies and forces to compare with: extended XYZ, ASE's .db, SPICE's or "
            "TorchMD-Net's .h5, rMD17's .npz. Without --system its molecules are run.",
        ),
    ):
        command = option(command)
    return command
