"""The reference ensembles: the surface they are sampled on, what is shipped, and how it is read."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from springs import diatomic

from omm_mlff.distill import ensemble as sampling
from omm_mlff.distill.dynamics import ACCELERATION, BOLTZMANN_EV, langevin
from omm_mlff.distill.ensemble import (
    PLANS,
    RESOLUTION_NM,
    EnsemblePlan,
    make_ensemble,
    mean_function,
)
from omm_mlff.errors import StructureError
from omm_mlff.geometry.distances import pair_lengths
from omm_mlff.systems import load_system
from omm_mlff.systems.ensemble import ENSEMBLE, reference_ensemble
from omm_mlff.units import ANGSTROM_PER_NM


@pytest.mark.parametrize("name", ["water", "alanine"])
def test_the_stacked_networks_are_the_teachers_mean(name: str, teacher) -> None:
    system = load_system(name)
    noise = np.random.default_rng(1).normal(size=(5, system.n_atoms, 3)) * 0.05
    positions = system.positions * ANGSTROM_PER_NM + noise
    energies, forces = mean_function(teacher, system.species)(positions)
    wanted, wanted_forces, _ = teacher.label(system.species, positions)
    assert np.abs(forces - wanted_forces).max() < 1e-4
    differences = energies - wanted
    assert differences.std() < 1e-4


def test_langevin_at_this_friction_gives_the_canonical_spread_of_a_spring() -> None:
    stiffness, mass, kelvin, dt = 30.0, 1.0, 300.0, 0.5

    def spring(x):
        return 0.5 * stiffness * (x**2).sum((1, 2)), -stiffness * x

    result = langevin(
        spring,
        np.zeros((64, 1, 3)),
        np.array([mass]),
        np.full(64, kelvin),
        timestep_fs=dt,
        n_steps=4000,
        stride=20,
        rng=np.random.default_rng(7),
        friction_per_ps=PLANS["water"].friction_per_ps,
    )
    kept = result.positions[40:]
    by_replica = (kept**2).mean(axis=(0, 2, 3))
    # BAOAB has no error of discretisation in the configurations of a spring.
    expected = BOLTZMANN_EV * kelvin / stiffness
    error = by_replica.std(ddof=1) / 8.0
    assert abs(by_replica.mean() - expected) < 4.0 * error
    assert error < 0.05 * expected
    assert dt * np.sqrt(stiffness * ACCELERATION / mass) < 0.3


@pytest.mark.parametrize("name", PLANS)
def test_a_shipped_ensemble_is_of_its_molecule_at_300_K(name: str) -> None:
    system = load_system(name)
    found = reference_ensemble(system)
    assert found is not None
    plan = PLANS[name]
    assert found.method == "ANI-1ccx"
    assert found.temperature_K == 300.0
    assert found.positions.shape[0] == plan.n_replicas == found.n_replicas
    assert found.positions.shape[1] == round(plan.length_ps / plan.spacing_ps)
    frames = found.positions.reshape(-1, system.n_atoms, 3)
    assert np.abs(frames.mean(axis=1)).max() < RESOLUTION_NM
    lengths = pair_lengths(frames, system.bonds, None)
    at_rest = pair_lengths(system.positions[None], system.bonds, None)[0]
    assert np.abs(lengths.mean(axis=0) - at_rest).max() < 0.003
    assert 0.001 < lengths.std(axis=0).min() <= lengths.std(axis=0).max() < 0.006


def test_the_shipped_ensembles_are_small() -> None:
    sizes = [(Path(load_system(name).source) / ENSEMBLE).stat().st_size for name in PLANS]
    assert sum(sizes) < 1_500_000


def test_equipartition_on_the_teachers_surface_sets_the_spread_of_water(teacher) -> None:
    """The classical spread of the O-H stretch is sqrt(kT / k), k by the teacher's own curvature."""
    system = load_system("water")
    found = reference_ensemble(system)
    assert found is not None
    direction = system.positions[1] - system.positions[0]
    direction /= np.linalg.norm(direction)
    steps = np.array([-0.01, 0.0, 0.01])
    frames = np.tile(system.positions * ANGSTROM_PER_NM, (3, 1, 1))
    frames[:, 1] += steps[:, None] * direction
    energies, _, _ = teacher.label(system.species, frames)
    stiffness = (energies[0] - 2.0 * energies[1] + energies[2]) / 0.01**2
    lengths = pair_lengths(found.positions.reshape(-1, 3, 3), system.bonds, None) * ANGSTROM_PER_NM
    # The harmonic value; an O-H stretch is anharmonic by a few percent at kT.
    assert lengths.std() == pytest.approx(np.sqrt(BOLTZMANN_EV * 300.0 / stiffness), rel=0.05)


def test_a_system_that_is_not_shipped_has_no_ensemble() -> None:
    assert reference_ensemble(diatomic()) is None
    assert reference_ensemble(load_system("benzene")) is None


def test_a_changed_ensemble_is_refused(tmp_path: Path) -> None:
    system = load_system("water")
    source = Path(system.source) / ENSEMBLE
    moved = dataclasses.replace(system, source=str(tmp_path))
    with np.load(source) as stored:
        arrays = dict(stored)
    arrays["positions"] = arrays["positions"] + np.float32(1e-3)
    np.savez(tmp_path / ENSEMBLE, **arrays)
    with pytest.raises(StructureError, match="has changed"):
        reference_ensemble(moved)


def test_a_damaged_ensemble_is_refused(tmp_path: Path) -> None:
    system = load_system("water")
    content = (Path(system.source) / ENSEMBLE).read_bytes()
    (tmp_path / ENSEMBLE).write_bytes(content[: len(content) // 2])
    with pytest.raises(StructureError, match="cannot be read"):
        reference_ensemble(dataclasses.replace(system, source=str(tmp_path)))


def test_the_ensemble_of_another_molecule_is_refused(tmp_path: Path) -> None:
    shutil.copy(Path(load_system("water").source) / ENSEMBLE, tmp_path / ENSEMBLE)
    methane = dataclasses.replace(load_system("methane"), source=str(tmp_path))
    with pytest.raises(StructureError, match="of 5 atoms"):
        reference_ensemble(methane)


def test_the_same_seed_gives_the_same_file(tmp_path: Path, monkeypatch, teacher) -> None:
    @dataclasses.dataclass
    class Card:
        folder: Path

    plan = EnsemblePlan(length_ps=0.02, spacing_ps=0.01, equilibration_ps=0.01, n_replicas=2)
    content = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setattr(sampling, "read_card", lambda _, folder=folder: Card(folder))
        path = make_ensemble("water", teacher, plan)
        content.append(path.read_bytes())
    assert content[0] == content[1]
    water = dataclasses.replace(load_system("water"), source=str(tmp_path / "one"))
    found = reference_ensemble(water)
    assert found is not None
    assert found.positions.shape == (2, 2, 3, 3)
    assert found.spacing_ps == 0.01
