"""Landmarks: torsions against another program, and the stored data against the teacher."""

from __future__ import annotations

import shutil

import mdtraj
import numpy as np
import pytest

from omm_mlff import data
from omm_mlff.distill.landmarks import find_landmarks, make_landmarks, teacher_surface
from omm_mlff.errors import StructureError
from omm_mlff.geometry.landmarks import LandmarkPlan, torsion_angles, turned
from omm_mlff.geometry.normal_modes import AMPLITUDE_NM, hessian, normal_modes
from omm_mlff.schema import MolecularSystem
from omm_mlff.systems import load_system, system_names
from omm_mlff.systems.shipped import LANDMARK_CARD, LANDMARKS
from omm_mlff.units import EV_ANGSTROM_PER_KJMOL_NM, MEV_PER_KJMOL

MAX_BYTES = 400_000
SCANS = {
    "alanine": [(12,)] * 4,
    "alanine-dipeptide": [(12, 12)],
    "aspirin": [(12,)] * 5,
    "benzene": [],
    "ethanol": [(12,)] * 2,
    "methane": [],
    "water": [],
}


@pytest.fixture(scope="module")
def systems() -> dict[str, MolecularSystem]:
    return {name: load_system(name) for name in system_names()}


def test_torsions_and_their_gradients_are_right() -> None:
    random = np.random.default_rng(0)
    frames = random.normal(size=(6, 5, 3))
    torsions = np.array([[0, 1, 2, 3], [4, 2, 1, 0]])
    angles, gradients = torsion_angles(frames, torsions)
    top = mdtraj.Topology()
    residue = top.add_residue("X", top.add_chain())
    for _ in range(5):
        top.add_atom("C", mdtraj.element.carbon, residue)
    other = mdtraj.compute_dihedrals(mdtraj.Trajectory(frames, top), torsions)
    assert np.allclose(np.exp(1j * angles), np.exp(1j * other), atol=1e-5)
    step = 1e-6
    for n, torsion in enumerate(torsions):
        for corner, atom in enumerate(torsion):
            for axis in range(3):
                move = np.zeros(frames.shape)
                move[:, atom, axis] = step
                ahead, _ = torsion_angles(frames + move, torsions)
                behind, _ = torsion_angles(frames - move, torsions)
                slope = (ahead - behind)[:, n] / (2.0 * step)
                assert np.allclose(slope, gradients[:, n, corner, axis], atol=1e-6)


def test_turning_a_torsion_changes_nothing_else(systems) -> None:
    system = systems["alanine-dipeptide"]
    (scan,) = system.landmarks.scans
    moved = system.positions
    for torsion, angle in zip(scan.torsions, (1.0, -2.5), strict=True):
        moved = turned(moved, torsion, angle, system.bonds)
    angles, _ = torsion_angles(moved[None], scan.torsions)
    assert angles[0] == pytest.approx([1.0, -2.5])
    i, j = system.bonds.T
    before = np.linalg.norm(system.positions[j] - system.positions[i], axis=1)
    assert np.linalg.norm(moved[j] - moved[i], axis=1) == pytest.approx(before)


@pytest.mark.parametrize("name", SCANS)
def test_stored_landmarks_are_whole(name, systems) -> None:
    system = systems[name]
    found = system.landmarks
    assert [scan.shape for scan in found.scans] == SCANS[name]
    assert (np.diff(found.energies) >= 0.0).all()
    assert len(found.frequencies) == 3 * system.n_atoms - 6
    assert found.frequencies.min() > 20.0
    assert found.method == "ANI-1ccx"
    i, j = system.bonds.T
    rest = np.linalg.norm(system.positions[j] - system.positions[i], axis=1)
    for frames in (found.minima, *(scan.positions for scan in found.scans)):
        lengths = np.linalg.norm(frames[:, j] - frames[:, i], axis=2)
        assert np.abs(lengths - rest).max() < 0.02


@pytest.mark.parametrize("name", [name for name, scans in SCANS.items() if scans])
def test_scans_stand_on_their_grid_and_are_relaxed_across_it(name, systems) -> None:
    found = systems[name].landmarks
    for scan in found.scans:
        circle = [np.radians(np.arange(n) * 360.0 / n - 180.0) for n in scan.shape]
        grid = np.stack(np.meshgrid(*circle, indexing="ij"), axis=-1).reshape(-1, len(scan.shape))
        angles, gradients = torsion_angles(scan.positions, scan.torsions)
        off = np.angle(np.exp(1j * (angles - grid)))
        assert np.degrees(np.abs(off).max()) < 3.0
        assert (scan.energies - found.energies[0]).min() * MEV_PER_KJMOL > -1.0
        # What is left of the forces pulls along the torsions that were held.
        held = np.zeros((len(angles), len(scan.torsions), *scan.positions.shape[1:]))
        for n, torsion in enumerate(scan.torsions):
            held[:, n, torsion] = gradients[:, n]
        for frame, directions in zip(scan.forces, held, strict=True):
            basis, _ = np.linalg.qr(directions.reshape(len(directions), -1).T)
            left = frame.ravel() - basis @ (basis.T @ frame.ravel())
            assert np.abs(left).max() * EV_ANGSTROM_PER_KJMOL_NM < 0.03


def test_conformers_are_different_ones(systems) -> None:
    for name in ("ethanol", "alanine", "alanine-dipeptide", "aspirin"):
        minima = systems[name].landmarks.minima
        assert len(minima) >= 2
        for k, one in enumerate(minima):
            for other in minima[:k]:
                a, b = (np.linalg.norm(x[:, None] - x[None], axis=2) for x in (one, other))
                assert np.abs(np.sort(a.ravel()) - np.sort(b.ravel())).max() > 5e-4


def test_alanine_has_the_conformer_whose_acid_points_at_its_nitrogen(systems) -> None:
    # Found by turning the O-H, never by embedding: Csaszar, J. Phys. Chem. 100, 3541 (1996), IIA.
    found = systems["alanine"].landmarks
    hydrogen, nitrogen = 12, 2
    distance = np.linalg.norm(found.minima[:, hydrogen] - found.minima[:, nitrogen], axis=1)
    bound = found.energies[distance < 0.22] - found.energies[0]
    assert len(bound)
    assert bound.min() * MEV_PER_KJMOL < 50.0


def test_all_landmarks_together_are_small() -> None:
    folder = data.data_folder("systems")
    assert sum(path.stat().st_size for path in folder.glob(f"*/{LANDMARKS}")) < MAX_BYTES


def test_stored_energies_and_forces_are_the_teachers(teacher, systems) -> None:
    system = systems["alanine-dipeptide"]
    found = system.landmarks
    surface = teacher_surface(teacher, system.species)
    (scan,) = found.scans
    energies, forces = surface(scan.positions[::48])
    assert energies == pytest.approx(scan.energies[::48], abs=1e-6)
    assert np.allclose(forces, scan.forces[::48], atol=1e-3)
    energies, forces = surface(found.minima)
    assert energies == pytest.approx(found.energies, abs=1e-6)
    assert np.abs(forces).max() * EV_ANGSTROM_PER_KJMOL_NM < 3e-4


def test_stored_frequencies_are_the_teachers(teacher, systems) -> None:
    system = systems["ethanol"]
    minimum = system.landmarks.minima[0]
    second = hessian(teacher_surface(teacher, system.species), minimum, AMPLITUDE_NM)
    modes = normal_modes(second, minimum, system.masses)
    assert modes.frequencies == pytest.approx(system.landmarks.frequencies, abs=0.1)


def test_water_found_anew_is_the_water_that_is_stored(teacher, systems) -> None:
    again = find_landmarks("water", teacher, LandmarkPlan())
    stored = systems["water"].landmarks
    assert again.frequencies == pytest.approx(stored.frequencies, abs=1.0)
    assert again.energies == pytest.approx(stored.energies, abs=1e-4)
    assert len(again.minima) == len(stored.minima) == 1


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of the shipped water in a folder of its own."""
    folder = tmp_path / "systems" / "water"
    shutil.copytree(data.data_folder("systems") / "water", folder)
    monkeypatch.setattr(data, "_PACKAGE", tmp_path / "omm_mlff")
    return folder


def test_the_command_writes_the_same_file_again(teacher, checkout) -> None:
    few = LandmarkPlan(n_starts=2)
    first = make_landmarks("water", teacher, few).read_bytes()
    assert load_system("water").landmarks.frequencies[0] > 1500.0
    assert "2 ETKDGv3" in (checkout / LANDMARK_CARD).read_text()
    assert make_landmarks("water", teacher, few).read_bytes() == first


def test_landmarks_of_another_card_are_refused(checkout) -> None:
    content = bytearray((checkout / LANDMARKS).read_bytes())
    content[200] ^= 1
    (checkout / LANDMARKS).write_bytes(bytes(content))
    with pytest.raises(StructureError, match="are not those of its card"):
        load_system("water")
    (checkout / LANDMARKS).unlink()
    with pytest.raises(StructureError, match="cannot be read"):
        load_system("water")
    (checkout / LANDMARK_CARD).unlink()
    assert load_system("water").landmarks is None
