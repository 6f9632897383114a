"""The teacher: ANI-1ccx, evaluated on many structures at once (angstrom, eV)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omm_mlff.errors import MissingPackageError, UnsupportedSystemError
from omm_mlff.units import EV_PER_HARTREE

Float = NDArray[np.float64]
EnergyFunction = Callable[[Float], tuple[Float, Float]]
"""positions (n_frames, n_atoms, 3) angstrom -> energies (n_frames,) eV, forces eV/angstrom."""

TEACHER_NAME = "ANI-1ccx"
TEACHER_SPECIES = (1, 6, 7, 8)

# Angular terms grow with the square of the neighbours: this keeps a batch near 200 MB.
_ATOMS_PER_BATCH = 1500


class Teacher:
    """ANI-1ccx: eight networks of coupled-cluster quality for neutral H, C, N and O.

    Float64, because float32 totals are off by 0.08 kJ/mol. Believe it only near equilibrium:
    beyond 0.8 to 1.35 bond lengths, or in deep contact, its surface is false (DESIGN, section 6).

    Raises
    ------
    MissingPackageError : torchani is not installed

    References
    ----------
    Smith et al., Nat. Commun. 10, 2903 (2019).
    """

    name = TEACHER_NAME

    def __init__(self) -> None:
        self._ensemble = load_ensemble().to(torch.float64).requires_grad_(False)
        self._single: Any = None

    def label(self, species: NDArray[np.int64], positions: Float) -> tuple[Float, Float, Float]:
        """Energies, forces, and how far the eight networks disagree.

        Parameters
        ----------
        species : shape (n_atoms,), atomic numbers among 1, 6, 7, 8
        positions : shape (n_frames, n_atoms, 3), angstrom

        Returns
        -------
        energies : shape (n_frames,), eV, self energies of the atoms included
        forces : shape (n_frames, n_atoms, 3), eV/angstrom
        spread : shape (n_frames,), standard deviation of the networks' total energies, eV

        Raises
        ------
        UnsupportedSystemError : an element that the teacher does not know
        """
        numbers = _known(species)
        n_frames = len(positions)
        energies = np.empty(n_frames)
        forces = np.empty((n_frames, len(numbers), 3))
        spread = np.empty(n_frames)
        for part in _batches(n_frames, len(numbers)):
            x = torch.tensor(positions[part], dtype=torch.float64, requires_grad=True)
            z = numbers.expand(len(x), -1)
            converted = self._ensemble.species_converter((z, x))
            aevs = self._ensemble.aev_computer(converted)
            members = torch.stack(
                [network(aevs).energies for network in self._ensemble.neural_networks]
            )
            interaction = members.mean(0)
            (gradient,) = torch.autograd.grad(interaction.sum(), x)
            shift = self._ensemble.energy_shifter.sae(converted.species)
            energies[part] = ((interaction + shift).detach() * EV_PER_HARTREE).numpy()
            forces[part] = (-EV_PER_HARTREE * gradient).numpy()
            spread[part] = (members.std(0).detach() * EV_PER_HARTREE).numpy()
        return energies, forces, spread

    def sampling_function(self, species: NDArray[np.int64]) -> EnergyFunction:
        """One network of the ensemble in float32, ten times cheaper: for dynamics, not labels.

        Its energies leave the atoms' self energies out, which float32 could not carry.

        Parameters
        ----------
        species : shape (n_atoms,), atomic numbers among 1, 6, 7, 8
        """
        numbers = _known(species)
        if self._single is None:
            self._single = load_ensemble().to(torch.float32).requires_grad_(False)
        single = self._single

        def evaluate(positions: Float) -> tuple[Float, Float]:
            energies = np.empty(len(positions))
            forces = np.empty(positions.shape)
            for part in _batches(len(positions), len(numbers)):
                x = torch.tensor(positions[part], dtype=torch.float32, requires_grad=True)
                converted = single.species_converter((numbers.expand(len(x), -1), x))
                energy = single.neural_networks[0](single.aev_computer(converted)).energies
                (gradient,) = torch.autograd.grad(energy.sum(), x)
                energies[part] = energy.detach().double().numpy() * EV_PER_HARTREE
                forces[part] = -EV_PER_HARTREE * gradient.double().numpy()
            return energies, forces

        return evaluate

    def self_energies(self) -> dict[int, float]:
        """The teacher's own energies of the free atoms, eV, by atomic number."""
        values = self._ensemble.energy_shifter.self_energies.tolist()
        return {z: value * EV_PER_HARTREE for z, value in zip(TEACHER_SPECIES, values, strict=True)}


def load_ensemble() -> Any:
    """The eight networks of ANI-1ccx, as torchani has them.

    Raises
    ------
    MissingPackageError : torchani is not installed
    """
    try:
        with warnings.catch_warnings():
            # pkg_resources' deprecation and torchani's notes on its own optional parts
            warnings.simplefilter("ignore")
            import torchani

            return torchani.models.ANI1ccx(periodic_table_index=True)
    except ImportError as error:
        raise MissingPackageError(
            error.name or "torchani", "the teacher ANI-1ccx", "pip install 'omm-mlff[teacher]'"
        ) from error


def _known(species: NDArray[np.int64]) -> torch.Tensor:
    unknown = sorted({int(z) for z in species} - set(TEACHER_SPECIES))
    if unknown:
        raise UnsupportedSystemError(
            f"{TEACHER_NAME} knows atomic numbers {TEACHER_SPECIES}, not {unknown}; "
            "leave these structures out"
        )
    return torch.tensor(np.asarray(species), dtype=torch.int64)


def _batches(n_frames: int, n_atoms: int) -> Iterator[slice]:
    size = max(1, _ATOMS_PER_BATCH // n_atoms)
    for start in range(0, n_frames, size):
        yield slice(start, start + size)
