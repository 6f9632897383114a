"""Scan geometries: what is to change does, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from checks.fakes import Pairs, water
from springs import molecule

from omm_mlff.geometry import scans
from omm_mlff.geometry.distances import covalent_radii
from omm_mlff.systems import load_system

PEROXIDE = [[0.0, 0.0, 0.0], [0.145, 0.0, 0.0], [-0.02, 0.095, 0.0], [0.165, 0.03, 0.09]]


def peroxide():
    """H-O-O-H, the smallest molecule with a torsion."""
    return molecule([8, 8, 1, 1], PEROXIDE, [[0, 1], [0, 2], [1, 3]])


def ring():
    """Four carbons in a square."""
    corners = [[0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.15, 0.15, 0.0], [0.0, 0.15, 0.0]]
    return molecule([6] * 4, corners, [[0, 1], [0, 3], [1, 2], [2, 3]])


def distances(frames):
    return np.linalg.norm(frames[..., :, None, :] - frames[..., None, :, :], axis=-1)


def dihedral(frames, atoms):
    a, b, c, d = (frames[:, atom] for atom in atoms)
    axis = (c - b) / np.linalg.norm(c - b, axis=1, keepdims=True)
    first, last = a - b, d - c
    first = first - (first * axis).sum(1, keepdims=True) * axis
    last = last - (last * axis).sum(1, keepdims=True) * axis
    sine = (np.cross(axis, first) * last).sum(1)
    return np.arctan2(sine, (first * last).sum(1))


def test_one_bond_of_every_type_is_scanned() -> None:
    def labels(name):
        return [scan.label for scan in scans.bond_scans(load_system(name))]

    assert labels("water") == ["bond O0-H1"]
    assert labels("methane") == ["bond C0-H1"]
    assert labels("benzene") == ["bond C0-C1", "bond C0-H6"]
    # C-C, C-H of CH3; C-N, C-C to the carboxyl; N-H; C=O, C-OH; O-H. The C-H of the alpha carbon
    # has the elements and bonds of those of the methyl group.
    assert len(labels("alanine")) == 8


def test_a_bond_takes_the_length_asked_for_and_its_fragments_keep_their_shape() -> None:
    system = load_system("alanine")
    for scan in scans.bond_scans(system):
        lengths = np.linspace(0.3, 2.0, 5) * scan.rest_nm
        frames = scan.at(lengths)
        i, j = scan.atoms
        assert distances(frames)[:, i, j] == pytest.approx(lengths, abs=1e-12)
        stayed = np.setdiff1d(np.arange(system.n_atoms), scan.moved)
        assert len(scan.moved) <= len(stayed)
        for part in (scan.moved, stayed):
            kept = distances(frames[:, part])
            assert kept == pytest.approx(np.broadcast_to(kept[0], kept.shape), abs=1e-12)


def test_a_ring_is_cut_in_two_halves() -> None:
    (scan,) = scans.bond_scans(ring())
    assert scan.moved.tolist() == [1, 2]
    frames = scan.at(np.array([0.1]))
    assert distances(frames)[0, 0, 1] == pytest.approx(0.1)
    assert distances(frames)[0, 3, 2] == pytest.approx(0.1)
    assert distances(frames)[0, 1, 2] == pytest.approx(0.15)


def test_a_fragment_without_a_bond_stays_where_it_is() -> None:
    system = molecule([8, 1, 18], [[0, 0, 0], [0.1, 0, 0], [0, 0, 1.0]], [[0, 1]])
    (scan,) = scans.bond_scans(system)
    assert scan.moved.tolist() == [1]


def test_a_torsion_turns_by_the_angle_asked_for_and_comes_round() -> None:
    (scan,) = scans.torsion_scans(peroxide())
    assert scan.label == "torsion H2-O0-O1-H3"
    angles = np.linspace(0.0, 2.0 * np.pi, 9)
    frames = scan.at(angles)
    turned = dihedral(frames, scan.atoms) - dihedral(frames[:1], scan.atoms)
    assert np.exp(1j * turned) == pytest.approx(np.exp(1j * angles), abs=1e-9)
    assert frames[-1] == pytest.approx(frames[0], abs=1e-12)
    near = distances(frames)[:, [0, 0, 1], [1, 2, 3]]
    assert near == pytest.approx(np.broadcast_to(near[0], near.shape), abs=1e-12)


def test_rings_ends_and_straight_chains_have_no_torsion() -> None:
    ethyne = [[0.0, 0, 0], [0.12, 0, 0], [-0.106, 0, 0], [0.226, 0, 0]]
    straight = molecule([6, 6, 1, 1], ethyne, [[0, 1], [0, 2], [1, 3]])
    for system in (ring(), straight, water(), load_system("benzene")):
        assert scans.torsion_scans(system) == []
    assert len(scans.torsion_scans(load_system("alanine"))) == 4


def test_the_force_along_a_scan_is_the_derivative_of_the_energy() -> None:
    system, pairs = peroxide(), Pairs(sigma=0.1)
    _, approaches = scans.collision(system, np.random.default_rng(0), 1)
    for scan, at in (
        (scans.bond_scans(system)[0], 0.17),
        (scans.torsion_scans(system)[0], 1.0),
        (approaches[0], 0.3),
    ):
        points = at + 1e-6 * np.array([-1.0, 0.0, 1.0])
        found = [pairs(frame, None) for frame in scan.at(points)]
        energies = np.array([energy for energy, _ in found])
        forces = scan.along(points, np.array([force for _, force in found]))
        per_length = getattr(scan, "arm_nm", 1.0)
        assert forces[1] * per_length == pytest.approx(
            -(energies[2] - energies[0]) / 2e-6, rel=1e-5
        )


def test_every_two_species_meet_head_on_with_both_molecules_whole() -> None:
    system = load_system("ethanol")
    both, approaches = scans.collision(system, np.random.default_rng(2), 2)
    n = system.n_atoms
    pairs = [tuple(sorted(both.species[list(scan.pair)].tolist())) for scan in approaches]
    assert sorted(pairs) == sorted(2 * [(1, 1), (1, 6), (1, 8), (6, 6), (6, 8), (8, 8)])
    own = distances(system.positions)
    for scan in approaches:
        d = np.array([0.05, 0.3])
        frames = scan.at(d)
        assert distances(frames)[:, scan.pair[0], scan.pair[1]] == pytest.approx(d, abs=1e-12)
        assert scan.atoms == (scan.pair[0], scan.pair[1] - n)
        for part in (slice(n), slice(n, None)):
            assert distances(frames[0, part]) == pytest.approx(own, abs=1e-12)
    assert distances(both.positions)[:n, n:].min() > 0.5
    _, again = scans.collision(system, np.random.default_rng(2), 2)
    for one, other in zip(approaches, again, strict=True):
        assert np.array_equal(one.positions, other.positions)


def test_the_way_in_is_freer_than_a_random_one() -> None:
    system = load_system("methane")
    _, chosen = scans.collision(system, np.random.default_rng(1), 1)
    free = {scan.label[0] + scan.label[7]: scan.clearance for scan in chosen}
    # Hydrogens lie outside and meet freely; two carbons never do without their hydrogens.
    assert free["HH"] > 1.3
    assert free["CC"] < free["HH"]


def test_clearance_is_the_least_distance_of_the_other_atoms() -> None:
    system = load_system("water")
    radii = covalent_radii(system.species)
    contact = radii[:, None] + radii[None, :]
    _, approaches = scans.collision(system, np.random.default_rng(1), 1)
    for scan in approaches:
        i, j = scan.atoms
        frames = scan.at(np.array([1.0, 1.25, 1.5, 2.0]) * contact[i, j])
        ratios = distances(frames)[:, :3, 3:] / contact
        ratios[:, i, j] = np.inf
        assert scan.clearance == pytest.approx(ratios.min())


def test_touching_is_where_the_first_two_atoms_touch() -> None:
    system = load_system("methane")
    contact = np.full((5, 5), 0.2)
    _, approaches = scans.collision(system, np.random.default_rng(1), 2)
    for scan in approaches:
        d = scan.touching(contact)
        frames = scan.at(d + np.array([0.0, 0.01, 0.1, 0.3]))
        least = distances(frames)[:, :5, 5:].min(axis=(1, 2))
        assert least[0] == pytest.approx(0.2, abs=1e-12)
        assert (least[1:] > 0.2).all()


def test_of_a_box_one_whole_molecule_is_left() -> None:
    one = np.array(water().positions)
    positions = np.concatenate((one, one + 0.4))
    positions[2] -= [0.0, 1.0, 0.0]  # one hydrogen lies in the next box
    box = molecule([8, 1, 1] * 2, positions, [[0, 1], [0, 2], [3, 4], [3, 5]], np.eye(3))
    alone = scans.in_vacuum(box)
    assert not alone.periodic
    assert alone.species.tolist() == [8, 1, 1]
    assert alone.bonds.tolist() == [[0, 1], [0, 2]]
    assert distances(alone.positions) == pytest.approx(distances(one), abs=1e-12)
    assert len(list(alone.topology.bonds())) == 2
    vacuum = water()
    assert scans.in_vacuum(vacuum) is vacuum
