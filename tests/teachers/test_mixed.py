"""The teacher in float32 on padded structures against the teacher itself."""

from __future__ import annotations

import numpy as np
import pytest

from omm_mlff.distill.molecules import build_molecule
from omm_mlff.teachers.mixed import MixedTeacher, teacher_tensors


@pytest.fixture(scope="module")
def tensors(teacher):
    return teacher_tensors()


def structures(names, n_frames, seed=1):
    rng = np.random.default_rng(seed)
    molecules = [build_molecule(name, 1) for name in names]
    n_max = max(m.n_atoms for m in molecules) + 2
    species = np.zeros((len(names) * n_frames, n_max), dtype=np.int64)
    positions = np.zeros((*species.shape, 3))
    for k, m in enumerate(molecules):
        rows = slice(k * n_frames, (k + 1) * n_frames)
        species[rows, : m.n_atoms] = m.species
        positions[rows, : m.n_atoms] = m.positions + 0.05 * rng.standard_normal(
            (n_frames, m.n_atoms, 3)
        )
    return molecules, species, positions


def test_padded_float32_labels_are_the_teachers_own(teacher, tensors):
    molecules, species, positions = structures(("water", "alanine", "water-dimer"), 3)
    labels = MixedTeacher(tensors=tensors).label(species, positions)
    for k, m in enumerate(molecules):
        rows = slice(3 * k, 3 * k + 3)
        energies, forces, _ = teacher.label(m.species, positions[rows, : m.n_atoms])
        np.testing.assert_allclose(labels.energies[rows], energies, atol=1e-4, rtol=0.0)
        np.testing.assert_allclose(labels.forces[rows, : m.n_atoms], forces, atol=1e-4, rtol=0.0)
    assert (labels.forces[species == 0] == 0.0).all()
    assert (labels.atomic[species == 0] == 0.0).all()


def test_shares_of_atoms_and_self_energies_make_the_energy(tensors):
    _, species, positions = structures(("ethanol",), 2)
    mixed = MixedTeacher(tensors=tensors)
    labels = mixed.label(species, positions)
    total = labels.atomic.sum(1) + mixed.self_energies[species].sum(1)
    np.testing.assert_allclose(labels.energies, total, rtol=1e-14)


def test_the_mean_of_single_networks_is_the_ensemble(tensors):
    _, species, positions = structures(("methanol",), 2)
    single = [MixedTeacher((k,), tensors).label(species, positions) for k in range(8)]
    ensemble = MixedTeacher(tensors=tensors).label(species, positions)
    forces = np.mean([labels.forces for labels in single], axis=0)
    np.testing.assert_allclose(forces, ensemble.forces, atol=1e-4, rtol=0.0)
    assert np.abs(single[0].forces - single[1].forces).max() > 1e-3
