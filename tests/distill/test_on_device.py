"""Structures that travel, and the dynamics that runs where they arrive."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omm_mlff.distill.dynamics import ACCELERATION, BOLTZMANN_EV
from omm_mlff.distill.frames import Frames
from omm_mlff.distill.label import in_range
from omm_mlff.distill.library import embed
from omm_mlff.distill.on_device import DeviceSampler
from omm_mlff.distill.packed import GRID
from omm_mlff.distill.placing import merged, single_body
from omm_mlff.distill.starts import load_starts, packed_starts, save_starts
from omm_mlff.errors import InputError
from omm_mlff.teachers.mixed import teacher_tensors

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tensors(teacher):
    return teacher_tensors()


def starts_of(n_copies=4, kelvin=400.0):
    water, methane = embed("O", 1, 1), embed("C", 1, 1)
    temperature = np.full(n_copies, kelvin)
    made = []
    for molecule in (water, methane):
        x = np.repeat(molecule.positions, n_copies, 0)
        made.append(
            ("thermal", single_body(molecule.name, molecule, x, temperature), x, temperature)
        )
    x = np.concatenate([water.positions[0], water.positions[0] + [0.0, 0.0, 3.0]])[None]
    x = np.repeat(x, n_copies, 0)
    made.append(("thermal", merged("O.O", [water, water])(x, temperature), x, temperature))
    # Two of these are out of the teacher's range: a bond of twice its length, and an overlap.
    broken = np.repeat(water.positions, 3, 0)
    broken[1, 1] = broken[1, 0] + 2.0 * (broken[1, 1] - broken[1, 0])
    broken[2, 2] = broken[2, 1] + 0.3
    made.append(("varied", single_body("O", water, broken, np.zeros(3)), broken, np.zeros(3)))
    return packed_starts(made)


def test_starts_come_back_as_they_were(tmp_path):
    starts = starts_of()
    save_starts(tmp_path / "starts.npz", starts)
    back = load_starts(tmp_path / "starts.npz")
    np.testing.assert_array_equal(back.positions, starts.positions)
    np.testing.assert_array_equal(back.bonds, starts.bonds)
    assert back.names.tolist() == ["O", "C", "O.O"]
    (tmp_path / "bad.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="make it again"):
        load_starts(tmp_path / "bad.npz")


def test_every_frame_has_the_teachers_labels_and_is_in_its_range(teacher, tensors):
    starts = starts_of()
    frames = DeviceSampler(starts, tensors, CPU, seed=1).run(60.0, 96, lambda line: None)
    assert set(frames.n_atoms.tolist()) == {3, 5, 6}
    first = np.cumsum(frames.n_atoms) - frames.n_atoms
    for k in range(0, frames.n_frames, 7):
        atoms = slice(first[k], first[k] + frames.n_atoms[k])
        species = frames.species[atoms].astype(np.int64)
        x = frames.positions[atoms][None] * GRID
        energies, forces, _ = teacher.label(species, x)
        assert frames.energies[k] == pytest.approx(energies[0], abs=1e-4)
        np.testing.assert_allclose(frames.forces[atoms], forces[0], atol=5e-3)
        row = frames.molecule[k]
        bonds = np.cumsum(starts.n_bonds)[row] - starts.n_bonds[row]
        part = slice(bonds, bonds + starts.n_bonds[row])
        one = Frames(
            "one",
            species,
            starts.bonds[part].astype(np.int64),
            starts.lengths[part].astype(float),
            x,
            np.full(1, "thermal"),
            np.zeros(1, dtype=int),
            np.zeros(1),
        )
        assert in_range(one).all()


def test_structures_out_of_range_are_left_out(tensors):
    frames = DeviceSampler(starts_of(), tensors, CPU, seed=1).run(60.0, 48, lambda line: None)
    assert (frames.stratum == 5).sum() == 1


def test_frames_of_one_start_are_one_trajectory(tensors):
    frames = DeviceSampler(starts_of(), tensors, CPU, seed=1).run(60.0, 96, lambda line: None)
    moved = frames.trajectory[frames.stratum == 0]
    assert len(set(moved.tolist())) == 12
    assert len(moved) == 96


def test_dynamics_keeps_its_temperature(tensors, monkeypatch):
    """Atoms on springs to their centre: a kinetic energy of 3/2 k T each."""
    sampler = DeviceSampler(starts_of(64, 500.0), tensors, CPU, seed=2)
    (batch,) = sampler._batches(np.arange(64))
    monkeypatch.setattr(
        sampler.surface,
        "evaluate",
        lambda species, x: (None, -4.0 * (x - x.mean(1, keepdim=True))),
    )
    kinetic = []
    for _ in range(60):
        sampler._move(batch, 20, friction_per_ps=40.0)
        each = 0.5 * batch.masses * batch.velocities**2 / ACCELERATION  # eV
        kinetic.append(float(each.sum()) / batch.real.sum().item())
    # 50 samples, 500 fs of forgetting apart in all, of 576 components: 2% is three sigma.
    assert np.mean(kinetic[10:]) == pytest.approx(1.5 * BOLTZMANN_EV * 500.0, rel=0.03)
