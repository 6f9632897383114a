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
