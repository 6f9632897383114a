"""Sampling and labelling, tiny but real."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from omm_mlff.distill.frames import STRATA, load_frames, load_labels, save_frames, save_labels
from omm_mlff.distill.label import BOND_RANGE, element_shifts, in_range, label_frames
from omm_mlff.distill.molecules import build_molecule, molecule_names
from omm_mlff.distill.sample import Sampler, SamplingPlan, plan_for, sample_molecules
from omm_mlff.errors import InputError, UnknownNameError

PLAN = SamplingPlan(
    temperatures_K=(300.0, 600.0),
    n_trajectories=2,
    n_frames=3,
    n_modes=4,
    n_bond_paths=1,
    n_approaches=4,
    n_excursions=2,
    stride=10,
    equilibration=20,
)


@pytest.fixture(scope="module")
def water(teacher):
    return Sampler(teacher, "water", PLAN, seed=4).sample()


@pytest.fixture(scope="module")
def labelled(teacher, water):
    pytest.importorskip("tblite", reason="GFN2-xTB needs the extra 'xtb'")
    return label_frames(water, teacher, element_shifts(teacher))


def test_what_transfer_is_measured_with_is_never_trained_on():
    assert not {"benzene", "aspirin"} & set(molecule_names())


def test_hydrogen_keeps_its_atoms():
    molecule = build_molecule("hydrogen", 0)
    assert molecule.species.tolist() == [1, 1]
    assert molecule.bonds.tolist() == [[0, 1]]


def test_the_clusters_molecules_are_apart():
    molecule = build_molecule("water-trimer", 1)
    assert molecule.n_fragments == 3
    gaps = np.linalg.norm(molecule.positions[:, None] - molecule.positions[None], axis=-1)
    other = molecule.fragment[:, None] != molecule.fragment[None]
    assert gaps[other].min() > 2.0


def test_an_unknown_molecule_gets_the_nearest_name():
    with pytest.raises(UnknownNameError, match="ethanol"):
        build_molecule("ethanal", 0)


def test_sampling_twice_gives_the_same_frames(teacher, water):
    again = Sampler(teacher, "water", PLAN, seed=4).sample()
    assert np.array_equal(again.positions, water.positions)
    other = Sampler(teacher, "water", PLAN, seed=5).sample()
    assert not np.array_equal(other.positions, water.positions)


def test_every_frame_knows_where_it_comes_from(water):
    assert set(water.stratum.tolist()) == set(STRATA) - {"excursion"}
    for number in np.unique(water.trajectory):
        rows = water.trajectory == number
        assert len(set(water.stratum[rows].tolist())) == 1
        assert len(set(water.temperature_K[rows].tolist())) == 1
    thermal = water.stratum == "thermal"
    assert len(np.unique(water.trajectory[thermal])) == 4


def test_bond_paths_reach_both_ends(water):
    rows = water.stratum == "bond"
    first, second = water.bonds.T
    d = np.linalg.norm(water.positions[rows][:, first] - water.positions[rows][:, second], axis=-1)
    ratio = d / water.lengths
    assert ratio.max() > 2.5
    assert ratio.min() < 0.45


def test_an_approach_ends_in_deep_contact(teacher):
    sampler = Sampler(teacher, "water-methane", dataclasses.replace(PLAN, n_modes=0), seed=1)
    frames = sampler.approaches()
    heavy = np.linalg.norm(frames.positions[:, 0] - frames.positions[:, 3], axis=-1)
    gaps = np.linalg.norm(frames.positions[:, :3, None] - frames.positions[:, None, 3:], axis=-1)
    assert heavy.max() > 3.0
    assert gaps.min((1, 2)).min() < 0.5


def test_a_twist_moves_one_side_as_a_rigid_body(teacher):
    frames = Sampler(teacher, "methanol", PLAN, seed=1).twists()
    first, second = frames.bonds.T
    d = np.linalg.norm(frames.positions[:, first] - frames.positions[:, second], axis=-1)
    for number in np.unique(frames.trajectory):
        assert np.ptp(d[frames.trajectory == number], axis=0).max() < 1e-9


def test_the_range_ends_where_it_says(water):
    base = water.select(np.flatnonzero(water.stratum == "modes")[:1])
    first, second = base.bonds[0]
    axis = base.positions[0, second] - base.positions[0, first]
    axis /= np.linalg.norm(axis)
    for factor, believed in (
        (BOND_RANGE[0] - 0.01, False),
        (BOND_RANGE[1] - 0.01, True),
        (BOND_RANGE[1] + 0.01, False),
    ):
        x = base.positions.copy()
        x[0, second] = x[0, first] + factor * base.lengths[0] * axis
        assert in_range(dataclasses.replace(base, positions=x))[0] == believed


def test_the_teacher_is_never_believed_on_hydrogen(teacher):
    pytest.importorskip("tblite", reason="GFN2-xTB needs the extra 'xtb'")
    frames = Sampler(teacher, "hydrogen", PLAN, seed=4).modes()
    assert not in_range(frames).any()


def test_labels_join_without_a_jump(water, labelled):
    frames = labelled.frames
    checked = 0
    for number in np.unique(frames.trajectory[frames.stratum == "bond"]):
        rows = np.flatnonzero(frames.trajectory == number)
        source = labelled.source[rows]
        joins = np.flatnonzero((source[:-1] == "teacher") & (source[1:] == "xtb"))
        for join in joins:
            a, b = rows[join], rows[join + 1]
            # What the forces say the step costs, by the trapezium rule; the methods' slopes differ.
            step = frames.positions[b] - frames.positions[a]
            work = -0.5 * ((labelled.forces[a] + labelled.forces[b]) * step).sum()
            assert abs(labelled.energies[b] - labelled.energies[a] - work) < 0.3
            checked += 1
    assert checked >= 2


def test_xtb_labels_only_what_the_teacher_may_not(labelled):
    inside = in_range(labelled.frames)
    assert (labelled.source[inside] == "teacher").all()
    assert (labelled.source[~inside] == "xtb").all()
    assert np.isfinite(labelled.spread[inside]).all()
    assert labelled.frames.n_frames + labelled.n_dropped > 0


def test_a_wide_spread_deletes_nothing(water, labelled):
    inside = in_range(water)
    assert (labelled.source == "teacher").sum() == inside.sum()


def test_files_give_back_what_was_written(tmp_path, water, labelled):
    save_frames(tmp_path / "frames.npz", water)
    save_labels(tmp_path / "labels.npz", labelled)
    assert np.array_equal(load_frames(tmp_path / "frames.npz").positions, water.positions)
    again = load_labels(tmp_path / "labels.npz")
    assert np.array_equal(again.forces, labelled.forces)
    assert again.frames.molecule == "water"
    (tmp_path / "frames.npz").write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(InputError, match="delete it"):
        load_frames(tmp_path / "frames.npz")


def test_a_molecule_already_sampled_is_kept(tmp_path, water):
    save_frames(tmp_path / "water.npz", water)
    before = (tmp_path / "water.npz").stat().st_mtime_ns
    sample_molecules(tmp_path, seed=4, names=["water"])
    assert (tmp_path / "water.npz").stat().st_mtime_ns == before


def test_plans_scale():
    assert plan_for("water", 0.1).n_frames == 4
    assert plan_for("water-dimer").n_modes == 0
