"""Packs of labelled frames: what is written is what is read, and how packs are joined."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from omm_mlff.distill.frames import Frames
from omm_mlff.distill.packed import (
    GRID,
    PackedFrames,
    PackedScale,
    content_hash,
    joined,
    load_packed,
    load_training_pack,
    save_packed,
    selected,
)
from omm_mlff.errors import InputError


def pack(name, n_frames, n_atoms, seed):
    rng = np.random.default_rng(seed)
    x = np.round(rng.uniform(-9.0, 9.0, (n_frames, n_atoms, 3)) / GRID) * GRID
    frames = Frames(
        name,
        rng.choice([1, 6, 7, 8], n_atoms),
        np.array([[0, 1]]),
        np.array([1.0]),
        x,
        np.full(n_frames, "thermal"),
        np.arange(n_frames) // 2,
        np.full(n_frames, 300.0),
    )
    packed = PackedFrames.of_molecule(
        frames,
        rng.standard_normal(n_frames) - 1e4,
        5.0 * rng.standard_normal(x.shape),
        rng.standard_normal(x.shape[:2]),
        np.full(n_frames, "teacher"),
    )
    return packed, x


def assert_equal(a, b):
    for item in dataclasses.fields(PackedFrames):
        np.testing.assert_array_equal(getattr(a, item.name), getattr(b, item.name))


@pytest.mark.parametrize("name", ["pack.npz", "pack.npz.xz"])
def test_a_pack_comes_back_bit_for_bit(tmp_path, name):
    packed, _ = pack("water", 6, 3, 1)
    save_packed(tmp_path / name, packed)
    assert_equal(load_packed(tmp_path / name), packed)


def test_positions_on_the_grid_are_kept_to_the_last_bit():
    packed, x = pack("water", 6, 3, 1)
    np.testing.assert_array_equal(packed.positions.reshape(x.shape) * GRID, x)


def test_a_training_pack_brings_its_scale(tmp_path):
    packed, _ = pack("water", 2, 3, 1)
    scale = PackedScale(np.arange(9.0), np.arange(9.0) / 3)
    save_packed(tmp_path / "whole.npz.xz", packed, scale)
    _, found = load_training_pack(tmp_path / "whole.npz.xz")
    np.testing.assert_array_equal(found.free_atoms, scale.free_atoms)
    np.testing.assert_array_equal(found.self_energies, scale.self_energies)
    save_packed(tmp_path / "part.npz", packed)
    with pytest.raises(InputError, match="one part of a pack"):
        load_training_pack(tmp_path / "part.npz")


def test_a_damaged_pack_is_bad_input(tmp_path):
    packed, _ = pack("water", 6, 3, 1)
    path = tmp_path / "pack.npz.xz"
    save_packed(path, packed)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="make it again"):
        load_packed(path)


def test_joined_packs_keep_their_frames_and_their_trajectories_apart():
    one, two, three = (pack(n, k, 3, s)[0] for n, k, s in (("a", 4, 1), ("b", 3, 2), ("a", 5, 3)))
    whole = joined([one, two, three])
    assert whole.names.tolist() == ["a", "b"]
    assert whole.n_frames == 12
    of_a = whole.trajectory[whole.molecule == 0]
    assert len(set(of_a[:4]) & set(of_a[4:])) == 0
    back = selected(whole, np.arange(12) >= 7)
    np.testing.assert_array_equal(back.positions, three.positions)
    np.testing.assert_array_equal(back.energies, three.energies)


def test_parts_of_the_same_trajectories_are_joined_as_such():
    one, _ = pack("a", 4, 3, 1)
    whole = joined([one, one], apart=False)
    assert set(whole.trajectory.tolist()) == {0, 1}


def test_the_hash_sees_one_changed_force():
    packed, _ = pack("water", 6, 3, 1)
    forces = packed.forces.copy()
    forces[4, 1] += np.float16(0.5)
    assert content_hash(packed) != content_hash(dataclasses.replace(packed, forces=forces))
