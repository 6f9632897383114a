"""The integrator of each ensemble, and a thermostat's random numbers over an interruption."""

from __future__ import annotations

import numpy as np
import openmm

from omm_mlff.schema import RunSpec
from omm_mlff.units import PS_PER_FS

FRICTION_PER_PS = 10.0
"""Of the Langevin thermostat. A small molecule in vacuum has no bath and hardly any exchange
between its vibrations: each of them is thermalised by the friction alone, at this rate. Most users
take 1/ps for a liquid; here that would waste several picoseconds of every replica on forgetting the
start, and leave one independent sample of the energy in 1 ps. Ten times as much does it in 0.1 ps,
and all vibrations above 30 cm^-1 remain underdamped. Not more: friction also cools what a wrong
force heats."""


def is_thermostatted(spec: RunSpec) -> bool:
    """Whether something else than the potential changes the energy."""
    return spec.ensemble == "nvt"


def make_integrator(spec: RunSpec, batch: int, first_step: int) -> openmm.Integrator:
    """The integrator of the ensemble; a resumed run must not repeat the first one's noise.

    The Reference platform has one random stream for the whole process: two thermostatted runs
    in threads of one process each sample their ensemble, but cannot be repeated.

    Parameters
    ----------
    batch : number of the batch of replicas, which decides its noise with the seed
    first_step : where it begins
    """
    timestep_ps = spec.timestep_fs * PS_PER_FS
    if not is_thermostatted(spec):
        return openmm.VerletIntegrator(timestep_ps)
    integrator = openmm.LangevinMiddleIntegrator(spec.temperature_K, FRICTION_PER_PS, timestep_ps)
    words = np.random.SeedSequence([spec.seed, batch, first_step])
    # OpenMM takes a positive 32-bit integer, and 0 for "another one each time".
    integrator.setRandomNumberSeed(1 + int(words.generate_state(1)[0]) % (2**31 - 2))
    return integrator


def random_stream(context: openmm.Context, spec: RunSpec) -> bytes:
    """What `restore_random_stream` wants; empty for Verlet, which positions and velocities say."""
    return context.createCheckpoint() if is_thermostatted(spec) else b""


def restore_random_stream(context: openmm.Context, stream: bytes) -> bool:
    """Go on with the random numbers where they were left; whether this platform and version can.

    Where they cannot, the noise is new: the same ensemble, not the same run; positions and
    velocities of the Context are then not to be relied on.
    """
    try:
        context.loadCheckpoint(stream)
    except openmm.OpenMMException:
        return False
    return True
