"""The reference ensemble of a shipped system, sampled with the teacher's own dynamics.

The surface is the mean of the teacher's eight networks, which is what its labels are, in float32:
the thermostat forgives the rounding of forces (1e-5 eV/angstrom) as it would not forgive another
network. Langevin dynamics by the BAOAB splitting, whose positions are those of OpenMM's
LangevinMiddleIntegrator step for step (it is the same sequence of kicks, drifts and noise, begun
at another point of the cycle), so that at an equal timestep the two have the same error of
discretisation in configurations.

The friction is ten times what a simulation would take. In equilibrium it changes nothing but how
soon a vibration forgets its energy (1 / friction), which is what limits the width of a
distribution: 50 fs here, against 1 ps at the usual 1/ps.
"""

from __future__ import annotations

import copy
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omm_mlff.distill.dynamics import EnergyFunction, langevin
from omm_mlff.systems.ensemble import ENSEMBLE, content_hash
from omm_mlff.systems.shipped import load_shipped, read_card
from omm_mlff.teachers.ani import TEACHER_SPECIES, Teacher
from omm_mlff.units import ANGSTROM_PER_NM, EV_PER_HARTREE, NM_PER_ANGSTROM, PS_PER_FS

Float = NDArray[np.float64]

RESOLUTION_NM = 2.0**-17
"""Positions are stored to this, 8e-5 angstrom, a three-hundredth of a bond's thermal motion: the
bits below it are noise that does not compress."""


@dataclass(frozen=True)
class EnsemblePlan:
    """How an ensemble is sampled.

    Attributes
    ----------
    length_ps : of each replica, after equilibration
    spacing_ps : between the frames that are kept
    equilibration_ps : discarded, from the shipped structure with thermal velocities
    """

    length_ps: float
    spacing_ps: float = 0.05
    temperature_K: float = 300.0
    n_replicas: int = 16
    timestep_fs: float = 0.5
    friction_per_ps: float = 20.0
    equilibration_ps: float = 1.0
    seed: int = 20261124


PLANS = {
    "water": EnsemblePlan(length_ps=20.0),
    "methane": EnsemblePlan(length_ps=20.0),
    "ethanol": EnsemblePlan(length_ps=10.0),
    "alanine": EnsemblePlan(length_ps=10.0),
}
"""The systems that have an ensemble: what the teacher samples in minutes."""


def mean_function(teacher: Teacher, species: NDArray[np.int64]) -> EnergyFunction:
    """The mean of all networks in float32, the networks of an element in one product.

    Its energies leave the atoms' self energies out, which float32 could not carry.

    Parameters
    ----------
    species : shape (n_atoms,), atomic numbers among 1, 6, 7, 8
    """
    model = copy.deepcopy(teacher._ensemble).to(torch.float32)
    kinds = torch.tensor([TEACHER_SPECIES.index(int(z)) for z in species])
    atoms = {kind: torch.nonzero(kinds == kind).flatten() for kind in set(kinds.tolist())}
    layers = {kind: _stacked(model.neural_networks, kind) for kind in atoms}

    def evaluate(positions: Float) -> tuple[Float, Float]:
        x = torch.tensor(positions, dtype=torch.float32, requires_grad=True)
        aevs = model.aev_computer((kinds.expand(len(x), -1), x)).aevs
        energy = x.new_zeros(len(x))
        for kind, members in atoms.items():
            h = aevs[:, members].flatten(0, 1).expand(len(model.neural_networks), -1, -1)
            for weight, bias in layers[kind][:-1]:
                h = torch.nn.functional.celu(torch.baddbmm(bias, h, weight), alpha=0.1)
            h = torch.baddbmm(layers[kind][-1][1], h, layers[kind][-1][0])
            energy = energy + h.mean(0).reshape(len(x), -1).sum(1)
        (gradient,) = torch.autograd.grad(energy.sum(), x)
        return (
            energy.detach().double().numpy() * EV_PER_HARTREE,
            -EV_PER_HARTREE * gradient.double().numpy(),
        )

    return evaluate


def sample_ensemble(name: str, teacher: Teacher, plan: EnsemblePlan) -> Float:
    """Positions of replicas in equilibrium, shape (n_replicas, n_frames, n_atoms, 3), nm.

    Parameters
    ----------
    name : of a shipped system

    Raises
    ------
    UnknownNameError : no such system is shipped
    UnsupportedSystemError : an element that the teacher does not know
    RuntimeError : the dynamics broke; take a shorter timestep
    """
    system = load_shipped(name)
    # crc32, because Python's own hash of a string differs from run to run
    rng = np.random.default_rng([plan.seed, zlib.crc32(name.encode())])
    function = mean_function(teacher, system.species)
    stride = round(plan.spacing_ps / (plan.timestep_fs * PS_PER_FS))
    n_discarded = round(plan.equilibration_ps / plan.spacing_ps)
    n_frames = round(plan.length_ps / plan.spacing_ps)
    result = langevin(
        function,
        np.repeat(system.positions[None] * ANGSTROM_PER_NM, plan.n_replicas, axis=0),
        system.masses,
        np.full(plan.n_replicas, plan.temperature_K),
        timestep_fs=plan.timestep_fs,
        n_steps=(n_discarded + n_frames) * stride,
        stride=stride,
        rng=rng,
        friction_per_ps=plan.friction_per_ps,
    )
    if (result.length < n_discarded + n_frames).any():
        raise RuntimeError(f"the dynamics of {name} broke; take a shorter timestep")
    kept = result.positions[n_discarded:].swapaxes(0, 1) * NM_PER_ANGSTROM
    centred: Float = kept - kept.mean(axis=2, keepdims=True)
    return centred


def make_ensemble(name: str, teacher: Teacher, plan: EnsemblePlan) -> Path:
    """Sample, then write `ensemble.npz` beside the structure.

    The same seed on the same machine gives the same file, byte for byte.
    """
    sampled = sample_ensemble(name, teacher, plan)
    n_replicas, n_frames = sampled.shape[:2]
    rounded = np.round(sampled / RESOLUTION_NM) * RESOLUTION_NM
    positions = rounded.reshape(-1, *sampled.shape[2:]).astype(np.float32)
    replica = np.repeat(np.arange(n_replicas, dtype=np.int16), n_frames)
    dynamics = (
        f"Langevin (BAOAB) on the mean of the eight networks of {teacher.name} in float32: "
        f"{plan.n_replicas} replicas of {plan.length_ps:g} ps after {plan.equilibration_ps:g} ps, "
        f"{plan.timestep_fs:g} fs, friction {plan.friction_per_ps:g}/ps, a frame every "
        f"{plan.spacing_ps:g} ps, seed {plan.seed}"
    )
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        positions=positions,
        replica=replica,
        temperature_K=np.array(plan.temperature_K),
        spacing_ps=np.array(plan.spacing_ps),
        method=np.array(teacher.name),
        dynamics=np.array(dynamics),
        seed=np.array(plan.seed),
        sha256=np.array(content_hash(positions, replica)),
    )
    path = read_card(name).folder / ENSEMBLE
    path.write_bytes(buffer.getvalue())
    return path


def _stacked(networks: Any, kind: int) -> list[tuple[Tensor, Tensor]]:
    """One element's layers: weights (n_networks, n_in, n_out), biases (n_networks, 1, n_out)."""
    chains = [list(network.values())[kind] for network in networks]
    linear = [i for i, layer in enumerate(chains[0]) if hasattr(layer, "weight")]
    return [
        (
            torch.stack([chain[i].weight.detach().T for chain in chains]).contiguous(),
            torch.stack([chain[i].bias.detach() for chain in chains]).unsqueeze(1),
        )
        for i in linear
    ]
