"""The teacher: forces against finite differences, and batches against single structures."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from omm_mlff.distill.molecules import build_molecule
from omm_mlff.errors import MissingPackageError, UnsupportedSystemError
from omm_mlff.teachers import ani as teacher_module
from omm_mlff.teachers.xtb import xtb_labels


def displaced(name, n_frames, size=0.05):
    molecule = build_molecule(name, 3)
    noise = np.random.default_rng(2).standard_normal((n_frames, molecule.n_atoms, 3))
    return molecule, molecule.positions + size * noise


def test_forces_are_the_negative_gradient(teacher):
    molecule, frames = displaced("formic-acid", 1)
    _, forces, _ = teacher.label(molecule.species, frames)
    direction = np.random.default_rng(0).standard_normal(frames.shape)
    step = 1e-4
    ahead, _, _ = teacher.label(molecule.species, frames + step * direction)
    behind, _, _ = teacher.label(molecule.species, frames - step * direction)
    slope = (ahead - behind) / (2 * step)
    # ANI's activations and cutoffs have a second derivative only piecewise: no better than 1e-6.
    assert np.isclose(-slope[0], (forces * direction).sum(), rtol=1e-5)


def test_the_sampling_network_is_near_the_ensemble(teacher):
    molecule, frames = displaced("methanol", 3, size=0.02)
    energies, forces = teacher.sampling_function(molecule.species)(frames)
    reference, exact, spread = teacher.label(molecule.species, frames)
    assert (spread > 0).all()
    assert np.abs(np.diff(energies) - np.diff(reference)).max() < 0.2
    assert np.sqrt(((forces - exact) ** 2).mean()) < 0.3


def test_an_unknown_element_is_named(teacher):
    with pytest.raises(UnsupportedSystemError, match=r"\[9\]"):
        teacher.label(np.array([9, 1]), np.zeros((1, 2, 3)))


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchani", None)
    with pytest.raises(MissingPackageError, match=r"omm-mlff\[teacher\]"):
        teacher_module.Teacher()


def test_missing_tblite_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tblite", None)
    monkeypatch.setitem(sys.modules, "tblite.interface", None)
    with pytest.raises(MissingPackageError, match=r"omm-mlff\[xtb\]"):
        xtb_labels(np.array([1, 1]), np.zeros((1, 2, 3)))


def test_xtb_forces_are_the_negative_gradient():
    pytest.importorskip("tblite", reason="GFN2-xTB needs the extra 'xtb'")
    molecule, frames = displaced("water", 1)
    _, forces = xtb_labels(molecule.species, frames)
    direction = np.random.default_rng(0).standard_normal(frames.shape)
    ends, _ = xtb_labels(
        molecule.species, np.concatenate([frames + 1e-3 * direction, frames - 1e-3 * direction])
    )
    # Its self-consistency converges to 1e-6 hartree.
    assert np.isclose(-(ends[0] - ends[1]) / 2e-3, (forces * direction).sum(), rtol=1e-3)
