"""Structure: files in the product's own format, with shapes and lengths that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checks.fakes import FakeReplica, FakeRun, by_name, card, water, with_labels
from scipy.spatial.transform import Rotation

from omm_mlff.checks import structure
from omm_mlff.checks.base import Evidence
from omm_mlff.record import rundir
from omm_mlff.record.rundir import ReplicaRecord, SegmentWriter
from omm_mlff.schema import ReferenceLabels

N_FRAMES = 400


def written(folder: Path, positions: np.ndarray) -> ReplicaRecord:
    """Two closed segments of one replica."""
    topology = rundir.mdtraj_topology(
        ["O", "H1", "H2"], ["O", "H", "H"], [("HOH", 0)] * 3, np.array([[0, 1], [0, 2]])
    )
    writer = SegmentWriter(folder, topology, 3, None, 0)
    fields = FakeReplica(3, 5e-4, positions=positions).arrays
    for part in (slice(0, 150), slice(150, None)):
        writer.append({name: array[part] for name, array in fields.items()})
        writer.close_segment()
    return ReplicaRecord(tuple(sorted(folder.glob("*.h5"))), None)


def reference(lengths_nm: dict[float, float], n_trajectories: int = 6) -> ReferenceLabels:
    """Frames whose bond 0-1 has a given mean length at each temperature."""
    positions, trajectory, temperature = [], [], []
    random = np.random.default_rng(8)
    for kelvin, length in lengths_nm.items():
        for _ in range(n_trajectories):
            for _ in range(5):
                frame = np.array(water().positions)
                frame[1, 0] = length + 2e-4 * random.normal()
                positions.append(frame)
                trajectory.append(len(set(trajectory)) if not trajectory else trajectory[-1])
                temperature.append(kelvin)
            trajectory[-5:] = [len(positions)] * 5
    n = len(positions)
    return ReferenceLabels(
        np.array(positions),
        np.zeros(n),
        np.zeros((n, 3, 3)),
        np.array(trajectory),
        np.array(temperature),
        "by hand",
    )


def measured(tmp_path: Path, trajectories, labels=None, target_K=300.0):
    system = water() if labels is None else with_labels(water(), labels)
    replicas = [written(tmp_path / f"{k}", x) for k, x in enumerate(trajectories)]
    run = FakeRun(replicas, system.masses, target_K=target_K)
    return by_name(structure.CHECK.measure(Evidence(system, card(), (run,))))


def stretched(by_nm: float, amplitude_nm: float = 0.0) -> np.ndarray:
    positions = np.tile(np.array(water().positions), (N_FRAMES, 1, 1))
    positions[:, 1, 0] += by_nm + amplitude_nm * np.sqrt(2.0) * np.sin(np.arange(N_FRAMES) * 0.17)
    return positions


def test_turning_and_moving_a_molecule_is_no_change_of_shape(tmp_path: Path) -> None:
    turns = Rotation.random(N_FRAMES, rng=np.random.default_rng(1)).as_matrix()
    moved = np.einsum("fxy,fay->fax", turns, stretched(0.0)) + 0.3
    found = measured(tmp_path, [moved, moved])
    assert found["structure.rmsd"].value < 1e-3
    assert found["structure.bond_spread"].value < 1e-5


def test_rmsd_of_a_longer_bond_is_that_of_another_program(tmp_path: Path) -> None:
    long = stretched(0.02)
    found = measured(tmp_path, [long, long])
    ours, rest = long[0] - long[0].mean(0), water().positions - water().positions.mean(0)
    _, expected = Rotation.align_vectors(rest, ours)
    assert found["structure.rmsd"].value == pytest.approx(10.0 * expected / np.sqrt(3), rel=1e-3)


def test_a_bond_that_is_longer_than_in_the_reference_is_found(tmp_path: Path) -> None:
    labels = reference({100.0: 0.090, 300.0: 0.096, 500.0: 0.099})
    found = measured(tmp_path, [stretched(0.004 + e) for e in (-1e-5, 0.0, 1e-5)], labels)
    row = found["structure.bond_shift"]
    assert row.ci_low < 0.04 < row.ci_high
    assert row.value == pytest.approx(0.04, abs=2e-3)
    assert row.where.atoms == (0, 1)


@pytest.mark.parametrize(("target_K", "shift"), [(120.0, 0.06), (480.0, 0.03)])
def test_the_reference_is_that_of_the_nearest_temperature(
    tmp_path: Path, target_K: float, shift: float
) -> None:
    labels = reference({100.0: 0.090, 300.0: 0.096, 500.0: 0.099})
    found = measured(tmp_path, [stretched(0.0)] * 2, labels, target_K)
    assert found["structure.bond_shift"].value == pytest.approx(shift, abs=2e-3)


def test_the_interval_of_a_shift_holds_the_error_of_replicas_and_reference(tmp_path: Path) -> None:
    labels = reference({300.0: 0.096})
    alike = measured(tmp_path / "a", [stretched(0.004)] * 3, labels)["structure.bond_shift"]
    unlike = measured(tmp_path / "b", [stretched(x) for x in (0.0, 0.004, 0.008)], labels)
    row = unlike["structure.bond_shift"]
    per_trajectory = 2e-3 / np.sqrt(5 * 6)
    assert alike.standard_error == pytest.approx(per_trajectory, rel=0.6)
    assert row.standard_error == pytest.approx(0.04 / np.sqrt(3.0), rel=0.01)
    assert row.dof == pytest.approx(2.0, abs=0.1)


def test_bond_spread_is_the_standard_deviation_of_the_widest_bond(tmp_path: Path) -> None:
    row = measured(tmp_path, [stretched(0.0, 0.003)] * 2)["structure.bond_spread"]
    assert row.value == pytest.approx(0.03, rel=0.05)
    assert row.where.atoms == (0, 1)


def test_without_reference_frames_a_shift_is_not_applicable(tmp_path: Path) -> None:
    row = measured(tmp_path, [stretched(0.0)] * 2)["structure.bond_shift"]
    assert "no reference frames" in row.not_applicable


def test_pieces_of_any_size_give_the_same_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured(tmp_path / "whole", [stretched(0.01, 0.004)] * 2)
    monkeypatch.setattr(structure, "_PIECE_NUMBERS", 3 * 37)
    pieces = measured(tmp_path / "pieces", [stretched(0.01, 0.004)] * 2)
    for name, row in whole.items():
        if row.value is not None:
            assert pieces[name].value == pytest.approx(row.value, rel=1e-6)
    assert pieces["structure.bond_spread"].value == pytest.approx(0.04, rel=0.05)
