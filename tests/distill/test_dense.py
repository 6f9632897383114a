"""The padded form of the network against the sparse one, which is the oracle."""

from __future__ import annotations

import pytest
import torch

from omm_mlff.distill.dense import Slab, atomic_energies, by_slab
from omm_mlff.students.pairs import pairs_within
from omm_mlff.students.student import STUDENT_CONFIGS, Student

SLABS = [Slab(3, 7), Slab(2, 12)]
N_ATOMS = sum(slab.n_rows for slab in SLABS)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    x = 1.8 * torch.randn((N_ATOMS, 3), generator=generator, dtype=torch.float64)
    real = torch.ones(N_ATOMS, dtype=torch.bool)
    real[5:7] = real[18:21] = real[-4:] = False
    x[~real] = 0.0
    species_index = torch.randint(0, 4, (N_ATOMS,), generator=generator)
    return species_index, x, real


def network(name):
    torch.manual_seed(5)
    return Student(STUDENT_CONFIGS[name]).network.double()


def sparse(model, species_index, x, real):
    idx_i, idx_j, first = [], [], 0
    for slab in SLABS:
        for _ in range(slab.n_frames):
            atoms = torch.arange(first, first + slab.n_atoms)
            atoms = atoms[real[atoms]]
            i, j = pairs_within(x.detach()[atoms], None, model.cutoff)
            idx_i.append(atoms[i])
            idx_j.append(atoms[j])
            first += slab.n_atoms
    idx_i, idx_j = torch.cat(idx_i), torch.cat(idx_j)
    r_ij = x[idx_j] - x[idx_i]
    d_ij = torch.linalg.vector_norm(r_ij, dim=-1)
    return model(species_index, idx_i, idx_j, r_ij, d_ij) * real


@pytest.mark.parametrize("name", ["original", "ultra-tiny"])
def test_padded_energies_forces_and_their_gradients_are_the_sparse_ones(name, batch):
    model = network(name)
    species_index, x, real = batch
    found = []
    for function in (
        lambda y: atomic_energies(model, species_index, y, real, SLABS),
        lambda y: sparse(model, species_index, y, real),
    ):
        y = x.clone().requires_grad_(True)
        energies = function(y)
        (slope,) = torch.autograd.grad(energies.sum(), y, create_graph=True)
        loss = (slope**2).sum() + (energies**2).sum()
        found.append((energies, slope, *torch.autograd.grad(loss, list(model.parameters()))))
    for padded, expected in zip(*found, strict=True):
        torch.testing.assert_close(padded, expected, rtol=1e-12, atol=1e-12)


def test_padding_gets_no_energy_and_feels_no_force(batch):
    species_index, x, real = batch
    x.requires_grad_(True)
    energies = atomic_energies(network("ultra-tiny"), species_index, x, real, SLABS)
    (slope,) = torch.autograd.grad(energies.sum(), x)
    assert (energies[~real] == 0.0).all()
    assert (slope[~real] == 0.0).all()
    assert (slope[real].abs().sum(-1) > 0.0).all()


def test_slabs_part_the_atoms_in_order():
    values = torch.arange(N_ATOMS)
    parts = by_slab(values, SLABS)
    assert [tuple(part.shape) for part in parts] == [(3, 7), (2, 12)]
    assert torch.equal(torch.cat([part.flatten() for part in parts]), values)
