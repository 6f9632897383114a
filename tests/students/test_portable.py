"""A student in plain torch gives what the engines give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from students.test_student import some_student
from vesin_torch import NeighborList

from omm_mlff.errors import UnsupportedSystemError
from omm_mlff.students.engine import BoxEngine, build_engine
from omm_mlff.students.pairs import minimum_image, pairs_within
from omm_mlff.students.portable import portable
from omm_mlff.units import ANGSTROM_PER_NM

CUTOFF = 5.0
BOXES = {
    "cube": [[10.1, 0, 0], [0, 10.1, 0], [0, 0, 10.1]],
    "triclinic": [[12.0, 0, 0], [5.9, 11.0, 0], [-5.9, 5.4, 10.2]],
    "flat": [[10.0001, 0, 0], [-4.9, 20.0, 0], [4.9, -9.9, 30.0]],
}


def some_box(name: str) -> torch.Tensor:
    return torch.tensor(BOXES[name], dtype=torch.float64)


def scattered(box: torch.Tensor, n_atoms: int, seed: int = 0, gap: float = 0.0) -> torch.Tensor:
    """Over three boxes each way: molecules leave the box in which they began."""
    generator = torch.Generator().manual_seed(seed)
    placed = torch.empty((0, 3), dtype=torch.float64)
    while len(placed) < n_atoms:
        trial = (3.0 * torch.rand(1, 3, dtype=torch.float64, generator=generator) - 1.0) @ box
        if bool((minimum_image(placed - trial, box).norm(dim=1) > gap).all()):
            placed = torch.cat([placed, trial])
    return placed


@pytest.mark.parametrize("name", BOXES)
def test_the_nearest_image_is_the_nearest_of_all_within_half_a_box(name):
    box = some_box(name)
    r_ij = scattered(box, 400)
    wrapped = minimum_image(r_ij, box)
    steps = torch.arange(-3, 4, dtype=torch.float64)
    shifts = torch.cartesian_prod(steps, steps, steps) @ box
    nearest = (wrapped.unsqueeze(1) + shifts).norm(dim=2).min(dim=1).values
    near = nearest < box.diagonal().min() / 2
    assert near.sum() > 30
    torch.testing.assert_close(wrapped[near].norm(dim=1), nearest[near])
    turns = torch.linalg.solve(box.T, (r_ij - wrapped).T)
    torch.testing.assert_close(turns, turns.round(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("block_pairs", [1, 1000, 10**6])
@pytest.mark.parametrize("name", [*BOXES, "vacuum"])
def test_pairs_are_those_of_a_neighbour_list(name, block_pairs):
    periodic = name != "vacuum"
    box = some_box(name if periodic else "cube")
    positions = scattered(box, 60, seed=1)
    idx_i, idx_j = pairs_within(positions, box if periodic else None, CUTOFF, block_pairs)
    lists = NeighborList(cutoff=CUTOFF, full_list=True, sorted=True)
    found = lists.compute(points=positions, box=box, periodic=periodic, quantities="ij")
    expected = sorted(zip(found[0].tolist(), found[1].tolist(), strict=True))
    assert list(zip(idx_i.tolist(), idx_j.tolist(), strict=True)) == expected


@pytest.mark.parametrize("forces", [False, True])
@pytest.mark.parametrize("kind", ["cube", "triclinic", "molecule", "large molecule"])
def test_energy_and_forces_are_the_engines(kind, forces):
    student = some_student()
    periodic = kind in BOXES
    n_atoms = 80 if kind == "large molecule" else 30
    box = some_box(kind if periodic else "triclinic")
    positions = scattered(box, n_atoms, gap=1.0) / ANGSTROM_PER_NM
    species = torch.tensor([1, 6, 7, 8, 1])[torch.arange(n_atoms) % 5]
    module = torch.jit.script(portable(student, species, periodic=periodic, forces=forces))
    arguments = [positions.clone().requires_grad_(not forces)]
    if periodic:
        arguments.append(box / ANGSTROM_PER_NM)
    if forces:
        energy, given = module(*arguments)
    else:
        energy = module(*arguments)
        given = -torch.autograd.grad(energy, arguments[0])[0]
    assert energy.shape == ()
    assert energy.dtype == torch.float64
    assert given.is_contiguous()
    engine = build_engine(student, species, periodic=periodic)
    expected, expected_forces = engine(positions, box / ANGSTROM_PER_NM if periodic else None)
    assert float(energy.detach()) == pytest.approx(float(expected[0]), rel=1e-12)
    scale = float(expected_forces.abs().max())
    torch.testing.assert_close(given, expected_forces, rtol=0, atol=1e-11 * scale)


def test_an_image_counts_once_and_never_the_atom_itself():
    """Two atoms across the face of a box are a pair, however far apart their numbers are."""
    student = some_student()
    species = torch.tensor([8, 1])
    box = 2.0 * torch.eye(3, dtype=torch.float64)
    module = portable(student, species, periodic=True, forces=True)
    across = torch.tensor([[0.03, 0.5, 0.5], [1.95, 0.5, 4.5]], dtype=torch.float64)
    alone = torch.tensor([[0.08, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    expected = BoxEngine(student, species, periodic=False)(alone)
    energy, forces = module(across, box)
    assert float(energy) == pytest.approx(float(expected[0][0]), rel=1e-12)
    torch.testing.assert_close(forces, expected[1])


def test_a_box_that_is_too_small_or_not_reduced_is_refused_in_the_file():
    species = torch.tensor([8, 1, 1])
    positions = torch.rand(3, 3, dtype=torch.float64)
    module = portable(some_student(), species, periodic=True, forces=True)
    small = torch.diag(torch.tensor([2.0, 2.0, 0.99], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"the box is 0\.99\d* nm across, twice the cutoff is 1"):
        module(positions, small)
    turned = 2.0 * torch.eye(3, dtype=torch.float64)
    turned[0, 1] = 0.1
    with pytest.raises(ValueError, match="reduced form"):
        module(positions, turned)
    with pytest.raises(torch.jit.Error, match="twice the cutoff"):
        torch.jit.script(module)(positions, small)


def test_another_number_of_atoms_is_refused_in_the_file():
    module = portable(some_student(), torch.tensor([8, 1, 1]), periodic=False, forces=False)
    with pytest.raises(ValueError, match="wanted positions of 3 atoms"):
        module(torch.rand(4, 3))


def test_what_cannot_be_exported_is_refused():
    student = some_student()
    for species, message in (
        ([16, 1], "never trained on atomic numbers 16"),
        ([1], "a single atom has no pairs"),
        ([1] * 10_001, r"10001 atoms have 1e\+08 pairs"),
    ):
        with pytest.raises(UnsupportedSystemError, match=message):
            portable(student, torch.tensor(species), periodic=True, forces=True)


def test_positions_in_single_precision_are_served():
    """CUDA in mixed precision passes float32."""
    student = some_student(dtype=torch.float32)
    species = torch.tensor([8, 1, 1])
    positions = torch.tensor(np.eye(3) * 0.09, dtype=torch.float32)
    box = 2.0 * torch.eye(3)
    energy, forces = portable(student, species, periodic=True, forces=True)(positions, box)
    assert (energy.dtype, forces.dtype) == (torch.float64, torch.float32)
