"""The molecules that students learn from, and how they are placed."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit import Chem

from omm_mlff.distill.broad import jobs
from omm_mlff.distill.library import TEST, TRAIN, VALIDATION, embed, library
from omm_mlff.distill.molecules import SINGLE
from omm_mlff.distill.placing import (
    APPROACH,
    CONTACT,
    MAIN,
    MONOMERS,
    approach,
    cluster,
    merged,
    stretched,
    twisted,
)

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


def canonical(smiles):
    return Chem.MolToSmiles(Chem.MolFromSmiles(smiles))


def test_the_library_holds_hundreds_of_different_neutral_molecules():
    assert len({canonical(e.smiles) for e in library()}) == len(library()) >= 500
    for entry in library():
        molecule = Chem.MolFromSmiles(entry.smiles)
        atoms = list(molecule.GetAtoms())
        assert {a.GetAtomicNum() for a in atoms} <= {1, 6, 7, 8}
        assert not any(a.GetFormalCharge() or a.GetNumRadicalElectrons() for a in atoms)
        assert len(atoms) <= 9 or entry.family == "dipeptide" or entry.smiles == ASPIRIN


def test_what_is_held_out_whole_is_in_no_other_list():
    held = {canonical(e.smiles) for e in library() if e.role in (TEST, VALIDATION)}
    assert sum(e.role == TEST for e in library()) >= 21
    assert canonical(ASPIRIN) in held
    taught = [*SINGLE.values(), *(smiles for smiles, _ in MAIN.values()), *MONOMERS]
    test = {canonical(e.smiles) for e in library() if e.role == TEST}
    assert not test & {canonical(smiles) for smiles in taught}
    named = {name for job in jobs(0, 1) for name in job.members}
    parts = {part for name in named for part in name.replace("+", ".").split(".")}
    assert not test & {canonical(p) for p in parts if Chem.MolFromSmiles(p) is not None}
    assert {e.role for e in library()} == {TRAIN, VALIDATION, TEST}


def test_every_second_conformer_of_an_acid_has_its_hydrogen_turned_away():
    acid = embed("CC(=O)O", 4, seed=1)
    pattern = Chem.MolFromSmarts("[OX1]=C[OX2]-[H]")
    o, c, x, h = Chem.AddHs(Chem.MolFromSmiles("CC(=O)O")).GetSubstructMatch(pattern)
    gap = np.linalg.norm(acid.positions[:, h] - acid.positions[:, o], axis=1)
    assert (gap[::2] < 2.5).all()
    assert (gap[1::2] > 2.9).all()
    assert acid.species[[o, c, x, h]].tolist() == [8, 6, 8, 1]


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_pair_stands_at_the_contact_that_is_asked_for(kind):
    a, b = embed("c1ccccc1", 1, seed=1), embed("c1ccoc1", 1, seed=2)
    path = approach(a, b, kind, np.random.default_rng(4))
    radius = [np.array([CONTACT[z] for z in m.species.tolist()]) for m in (a, b)]
    for frame, factor in zip(path, APPROACH, strict=True):
        d = np.linalg.norm(frame[: a.n_atoms, None] - frame[None, a.n_atoms :], axis=-1)
        nearest = (d / (radius[0][:, None] + radius[1][None])).min()
        assert nearest == pytest.approx(factor, abs=1e-5)


def test_rings_are_stacked_or_stand_on_each_other():
    a = embed("c1ccccc1", 1, seed=1)
    angles = set()
    for seed in range(8):
        frame = approach(a, a, 2, np.random.default_rng(seed), np.array([1.0]))[0]
        normals = [np.linalg.svd(x - x.mean(0))[2][2] for x in (frame[:6], frame[12:18])]
        angles.add(round(float(np.degrees(np.arccos(min(1.0, abs(normals[0] @ normals[1])))))))
    assert angles == {0, 90}


def test_a_stretched_bond_has_its_length_and_moves_nothing_else():
    ethanol = embed("CCO", 1, seed=1)
    i, j = ethanol.bonds[1]
    path = stretched(ethanol.positions[0], ethanol, 1, np.array([0.8, 1.3]))
    length = np.linalg.norm(path[:, i] - path[:, j], axis=1)
    np.testing.assert_allclose(length, ethanol.lengths[1] * np.array([0.8, 1.3]))
    others = [k for k in range(len(ethanol.bonds)) if k != 1]
    a, b = ethanol.bonds[others].T
    np.testing.assert_allclose(
        np.linalg.norm(path[:, a] - path[:, b], axis=-1),
        np.linalg.norm(ethanol.positions[[0], a] - ethanol.positions[[0], b], axis=-1)[None].repeat(
            2, 0
        ),
    )


def test_turning_a_rotor_keeps_every_bond():
    butane = embed("CCCC", 2, seed=1)
    rng = np.random.default_rng(1)
    i, j = butane.bonds.T
    turned = [twisted(butane, 1, rng) for _ in range(5)]
    for x in turned:
        np.testing.assert_allclose(
            np.linalg.norm(x[i] - x[j], axis=1),
            np.linalg.norm(butane.positions[1][i] - butane.positions[1][j], axis=1),
            rtol=1e-10,
        )
    assert np.ptp([np.linalg.norm(x[0] - x[3]) for x in turned]) > 0.3


def test_a_water_cluster_is_as_dense_as_the_liquid():
    body = cluster("18*O", 4, np.random.default_rng(1))
    assert body.n_atoms == 54
    oxygen = body.positions[:, body.species == 8]
    d = np.linalg.norm(oxygen[:, :, None] - oxygen[:, None], axis=-1)
    d[:, np.arange(18), np.arange(18)] = np.inf
    assert 2.6 < np.median(d.min(2)) < 3.4
    inside = cluster("CO+4*O", 2, np.random.default_rng(1))
    assert inside.parts.max() == 4
    assert inside.species[:6].tolist() == [6, 8, 1, 1, 1, 1]


def test_a_merged_body_has_the_bonds_of_its_parts():
    water, methane = embed("O", 1, 1), embed("C", 1, 1)
    x = np.concatenate([water.positions, methane.positions + 5.0], 1)
    body = merged("O.C", [water, methane])(x, np.zeros(1))
    assert body.bonds.tolist() == [[0, 1], [0, 2], [3, 4], [3, 5], [3, 6], [3, 7]]
    assert body.parts.tolist() == [0] * 3 + [1] * 5


def test_jobs_follow_from_the_seed_and_passes_differ():
    assert jobs(1, 7) == jobs(1, 7)
    assert [job.members for job in jobs(1, 7)] != [job.members for job in jobs(2, 7)]
    singles = {n for job in jobs(0, 7) if job.kind == "single" for n in job.members}
    assert singles == {e.smiles for e in library() if e.role != TEST}
