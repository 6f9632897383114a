"""Distributions: another program's distances, known correlation, runs that agree or do not."""

from __future__ import annotations

import dataclasses
import itertools

import mdtraj
import numpy as np
import pytest
from checks.fakes import FakeReplica, FakeRun, by_name, card, water
from scipy.stats import wasserstein_distance
from springs import molecule

from omm_mlff.checks import distribution
from omm_mlff.checks.base import Evidence
from omm_mlff.systems import load_system
from omm_mlff.systems.ensemble import ReferenceEnsemble
from omm_mlff.units import ANGSTROM_PER_NM

DT_PS = 0.01
N_FRAMES = 400
PEROXIDE = [[0.0, 0.0, 0.0], [0.145, 0.0, 0.0], [-0.02, 0.095, 0.0], [0.165, 0.0, 0.095]]


def bent(rng, shape, *, longer=0.0, wider=1.0, opened=0.0) -> np.ndarray:
    """Water with independent normal bond lengths (nm) and angles, by frames."""
    one, two = 0.096 + longer + 0.0025 * wider * rng.normal(size=(2, *shape))
    angle = np.radians(104.5 + opened + 5.0 * wider * rng.normal(size=shape))
    zero = np.zeros(shape)
    first = np.stack([one, zero, zero], axis=-1)
    second = np.stack([two * np.cos(angle), two * np.sin(angle), zero], axis=-1)
    return np.stack([np.zeros_like(first), first, second], axis=-2)


def ensemble(positions: np.ndarray, kelvin: float = 300.0) -> ReferenceEnsemble:
    return ReferenceEnsemble(positions, kelvin, 0.05, "by hand", "none", 1, "")


def thermostatted(positions, masses, **options) -> FakeRun:
    run = FakeRun(
        [FakeReplica(len(masses), DT_PS, positions=x) for x in positions],
        masses,
        timestep_fs=1000.0 * DT_PS,
        **options,
    )
    run.spec = dataclasses.replace(run.spec, ensemble="nvt", purpose="thermostat")
    return run


@pytest.fixture
def measured(monkeypatch):
    """The check on water in `bent` shapes, against an ensemble of plain `bent` shapes."""
    reference = bent(np.random.default_rng(1), (16, N_FRAMES))
    monkeypatch.setattr(distribution, "_ensemble", lambda system: ensemble(reference))

    def measure(n_replicas=16, n_frames=N_FRAMES, seed=2, target_K=300.0, **changes):
        positions = bent(np.random.default_rng(seed), (n_replicas, n_frames), **changes)
        run = thermostatted(positions, water().masses, target_K=target_K)
        return by_name(distribution.CHECK.measure(Evidence(water(), card(), (run,))))

    return measure


def bound(measurement: str, severity: str) -> float:
    (row,) = [
        row
        for row in distribution.CHECK.criteria
        if row.measurement == measurement and row.severity == severity
    ]
    assert row.high is not None
    return row.high


def test_a_run_from_the_same_distribution_passes_every_bound(measured) -> None:
    found = measured()
    for row in distribution.CHECK.criteria:
        assert found[row.measurement].ci_high < row.high, row.name
    assert "3 of 3 groups have the sample" in found["distribution.wasserstein"].cause


def test_bonds_that_are_too_long_fail_and_are_named(measured) -> None:
    found = measured(longer=0.0025)
    shift = found["distribution.mean_shift"]
    # The distance that spans the angle is off by more: 2 sin(52 degrees) times as much.
    assert shift.value == pytest.approx(0.0395, abs=0.005)
    assert "distance H1-H2" in shift.cause
    assert shift.ci_low > bound("distribution.mean_shift", "limit")
    apart = measured(longer=0.02)["distribution.mean_shift"]
    assert apart.ci_low > bound("distribution.mean_shift", "reject")
    distance = found["distribution.wasserstein"]
    assert distance.value == pytest.approx(1.0, abs=0.1)
    assert distance.ci_low > bound("distribution.wasserstein", "limit")
    assert "bond O0-H1 and 1 like it" in distance.cause
    assert distance.where.atoms == (0, 1)


def test_an_angle_that_is_too_open_fails(measured) -> None:
    found = measured(opened=3.0)
    assert found["distribution.angle_shift"].value == pytest.approx(3.0, abs=0.3)
    assert found["distribution.angle_shift"].ci_low > bound("distribution.angle_shift", "limit")
    assert "angle H1-O0-H2" in found["distribution.angle_shift"].cause


def test_a_width_that_no_mean_shows_fails(measured) -> None:
    """sigma' = 1.5 sigma: W = 0.5 sigma sqrt(2 / pi)."""
    found = measured(wider=1.5)
    assert found["distribution.mean_shift"].ci_high < bound("distribution.mean_shift", "limit")
    row = found["distribution.wasserstein"]
    assert row.value == pytest.approx(0.5 * np.sqrt(2.0 / np.pi), abs=0.06)
    assert row.ci_low > bound("distribution.wasserstein", "limit")


def test_a_short_run_is_held_to_its_means_alone(measured) -> None:
    found = measured(n_replicas=4, n_frames=60)
    assert "run longer" in found["distribution.wasserstein"].not_applicable
    assert found["distribution.mean_shift"].value is not None
    assert found["distribution.effective_sample"].value < distribution.MIN_EFFECTIVE


def test_another_temperature_or_ensemble_is_not_compared(measured, monkeypatch) -> None:
    assert (
        "300 K, the run at 500 K"
        in measured(target_K=500.0)["distribution.mean_shift"].not_applicable
    )
    run = thermostatted(np.tile(water().positions, (2, 50, 1, 1)), water().masses)
    run.spec = dataclasses.replace(run.spec, ensemble="nve")
    found = by_name(distribution.CHECK.measure(Evidence(water(), card(), (run,))))
    assert "constant temperature" in found["distribution.wasserstein"].not_applicable
    monkeypatch.setattr(distribution, "_ensemble", lambda system: None)
    assert "no reference ensemble" in measured()["distribution.wasserstein"].not_applicable


def test_production_runs_are_not_shown_to_it(measured) -> None:
    run = FakeRun([FakeReplica(3, DT_PS, positions=np.zeros((50, 3, 3)))], water().masses)
    found = distribution.CHECK.measure(Evidence(water(), card(), (run,)))
    assert all(row.where.run is None and row.not_applicable for row in found)


def test_atoms_on_top_of_each_other_do_not_stop_it(measured, monkeypatch) -> None:
    run = thermostatted(np.zeros((4, 50, 3, 3)), water().masses)
    found = by_name(distribution.CHECK.measure(Evidence(water(), card(), (run,))))
    assert found["distribution.mean_shift"].ci_low > bound("distribution.mean_shift", "reject")


def test_where_a_torsion_is_trapped_bonds_alone_are_judged(monkeypatch) -> None:
    system = molecule([8, 8, 1, 1], PEROXIDE, [[0, 1], [0, 2], [1, 3]])
    rng = np.random.default_rng(12)

    def turned(n_replicas: int, trapped: bool) -> np.ndarray:
        shape = (n_replicas, N_FRAMES)
        wells = rng.choice([90.0, 270.0], size=(n_replicas, 1) if trapped else shape)
        angle = np.radians(wells + 10.0 * rng.normal(size=shape))
        positions = np.tile(np.array(PEROXIDE), (*shape, 1, 1))
        positions += 0.002 * rng.normal(size=positions.shape)
        positions[..., 3, 1] = 0.095 * np.cos(angle)
        positions[..., 3, 2] = 0.095 * np.sin(angle)
        return positions

    for trapped in (False, True):
        reference = ensemble(turned(16, trapped))
        monkeypatch.setattr(distribution, "_ensemble", lambda system, found=reference: found)
        run = thermostatted(turned(16, trapped), system.masses)
        found = by_name(distribution.CHECK.measure(Evidence(system, card(), (run,))))
        assert found["distribution.mean_shift"].ci_high < 0.01
        assert found["distribution.wasserstein_known"].value < 0.1
        judged = [found[f"distribution.{name}"] for name in ("wasserstein", "angle_shift")]
        if trapped:
            assert all("dihedral H2-O0-O1-H3" in row.not_applicable for row in judged)
            assert "bonds alone" in found["distribution.mean_shift"].cause
        else:
            assert all(row.value is not None for row in judged)


# Distances


def test_the_distance_is_scipys() -> None:
    rng = np.random.default_rng(3)
    run = [rng.gamma(3.0, size=(200, 2)) for _ in range(4)]
    reference = rng.normal(2.0, 1.5, size=(6, 300, 2))
    found = distribution.distributions(run, reference, None)
    ours = found.distance(found.run.mean(axis=0) - found.reference.mean(axis=0))
    theirs = wasserstein_distance(np.concatenate(run).ravel(), reference.ravel())
    assert ours == pytest.approx(theirs, abs=found.width)


def test_on_a_circle_the_distance_is_the_least_over_all_cuts() -> None:
    rng = np.random.default_rng(4)
    run = np.mod(rng.normal(5.0, 30.0, size=(1, 2000, 1)), 360.0)
    reference = np.mod(rng.normal(-25.0, 20.0, size=(2, 1000, 1)), 360.0)
    found = distribution.distributions(list(run), reference, 360.0)
    ours = found.distance(found.run.mean(axis=0) - found.reference.mean(axis=0))
    # No mass is near 180 degrees: cut there, the circle is a line. Any other cut is no shorter.
    cuts = [
        wasserstein_distance(np.mod(run + cut, 360.0).ravel(), np.mod(reference + cut, 360).ravel())
        for cut in (180.0, 0.0, 40.0)
    ]
    assert min(cuts) == cuts[0]
    assert ours == pytest.approx(cuts[0], abs=2.0 * found.width)


def test_turning_everything_does_not_change_a_distance_on_a_circle() -> None:
    rng = np.random.default_rng(5)
    run, reference = rng.normal(0, 9.0, size=(1, 900, 1)), rng.normal(4, 9.0, size=(2, 900, 1))
    got = []
    for turn in (60.0, 118.0):
        found = distribution.distributions(
            list(np.mod(run + turn, 120.0)), np.mod(reference + turn, 120.0), 120.0
        )
        got.append(float(found.distance(found.run[0] - found.reference.mean(axis=0))))
    assert got[0] == pytest.approx(got[1], abs=2.0 * 120.0 / distribution.N_BINS)
    assert got[0] == pytest.approx(4.0, abs=0.7)


def test_the_excess_of_equal_distributions_is_nothing_on_average() -> None:
    """60 comparisons of correlated samples: within three standard errors of 0, covered by 95%."""
    group = distribution.Group("bond", np.array([[0, 1]]), "bond")
    rng = np.random.default_rng(6)
    found = []
    for _ in range(60):
        reference = autoregressive(rng, (16, 300), 0.8)[..., None]
        run = list(autoregressive(rng, (8, 600), 0.9)[..., None])
        found.append(distribution.compared(group, run, reference, rng).excess)
    values = np.array([one.value for one in found])
    assert abs(values.mean()) < 3.0 * values.std(ddof=1) / np.sqrt(60) + 0.01
    assert np.mean([one.ci_low <= 0.0 for one in found]) >= 0.93


# Effective samples


def autoregressive(rng, shape, memory: float) -> np.ndarray:
    """Unit normal series along the last axis, with autocorrelation memory ** lag."""
    series = rng.normal(size=shape)
    for frame in range(1, shape[-1]):
        series[..., frame] *= np.sqrt(1.0 - memory**2)
        series[..., frame] += memory * series[..., frame - 1]
    return series


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_the_effective_sample_is_that_of_a_known_correlation(memory: float) -> None:
    """Of the mean of a first-order series: (1 + memory) / (1 - memory) frames to a draw."""
    rng = np.random.default_rng(7)
    sample = list(autoregressive(rng, (32, 1500), memory)[..., None])
    found = distribution.effective_sample(sample, 0.0, None)
    inefficiency = (1.0 + memory) / (1.0 - memory)
    # The smaller of four estimates is believed, each known to a tenth or a quarter.
    assert 0.75 < found * inefficiency / (32 * 1500) <= 1.1


def test_replicas_trapped_in_rotamers_are_as_many_samples_as_replicas() -> None:
    rng = np.random.default_rng(8)
    wells = rng.choice([60.0, 180.0, 300.0], size=(16, 1, 1))
    sample = list(np.mod(wells + 8.0 * rng.normal(size=(16, 500, 1)), 360.0))
    assert distribution.effective_sample(sample, 180.0, 360.0) < 40.0


def test_one_replica_that_turned_takes_the_torsion_out() -> None:
    rng = np.random.default_rng(9)
    angles = 180.0 + 8.0 * rng.normal(size=(16, 500, 1))
    calm = distribution.effective_sample(list(angles), 180.0, 360.0)
    angles[3, 250:] -= 120.0
    turned = distribution.effective_sample(list(angles), 180.0, 360.0)
    assert calm > distribution.MIN_EFFECTIVE > turned


def test_what_does_not_move_is_one_sample() -> None:
    assert distribution.effective_sample([np.ones((50, 1))] * 3, 0.0, None) == 1.0


# Coordinates


def test_equivalent_coordinates_are_one_group() -> None:
    methane = distribution.coordinate_groups(load_system("methane"))
    assert [(group.kind, len(group.atoms)) for group in methane] == [
        ("bond", 4),
        ("angle", 6),
        ("span", 6),
    ]
    assert methane[0].label == "bond C0-H1 and 3 like it"
    ethanol = distribution.coordinate_groups(load_system("ethanol"))
    counts = {
        kind: [len(group.atoms) for group in ethanol if group.kind == kind]
        for kind in ("bond", "angle", "span", "dihedral")
    }
    # C-C, three C-H of the methyl group, C-O, two C-H, O-H
    assert sorted(counts["bond"]) == [1, 1, 1, 2, 3]
    assert sum(counts["angle"]) == sum(counts["span"]) == 6 + 6 + 1
    # Nine about C-C, three about C-O
    assert sum(counts["dihedral"]) == 12


def test_only_a_methyl_rotor_is_folded() -> None:
    groups = distribution.coordinate_groups(load_system("ethanol"))
    system = load_system("ethanol")
    for group in groups:
        if group.kind == "dihedral":
            about = {int(system.species[i]) for i in group.atoms[0][1:3]}
            assert group.period == (120.0 if about == {6} else 360.0)
        else:
            assert group.period is None


def test_every_pair_of_atoms_is_a_bond_a_span_or_a_distance_once() -> None:
    system = load_system("alanine")
    pairs = [
        tuple(sorted(int(i) for i in atoms))
        for group in distribution.coordinate_groups(system)
        if group.kind in ("bond", "span", "distance")
        for atoms in group.atoms
    ]
    assert sorted(pairs) == list(itertools.combinations(range(system.n_atoms), 2))


def test_coordinates_are_those_of_another_program() -> None:
    system = molecule([8, 8, 1, 1], PEROXIDE, [[0, 1], [0, 2], [1, 3]])
    noise = 0.02 * np.random.default_rng(10).normal(size=(50, 4, 3))
    frames = (system.positions + noise).astype(np.float32)
    trajectory = mdtraj.Trajectory(frames, mdtraj.Topology.from_openmm(system.topology))
    compute = {
        "bond": lambda atoms: mdtraj.compute_distances(trajectory, atoms) * ANGSTROM_PER_NM,
        "angle": lambda atoms: np.degrees(mdtraj.compute_angles(trajectory, atoms)),
        "dihedral": lambda atoms: np.degrees(mdtraj.compute_dihedrals(trajectory, atoms)),
    }
    compute["span"] = compute["distance"] = compute["bond"]
    seen = set()
    for group in distribution.coordinate_groups(system):
        ours = distribution.values(group, frames.astype(np.float64))
        theirs = compute[group.kind](group.atoms)
        if group.kind == "dihedral":
            theirs = np.mod(theirs, 360.0)
        assert ours == pytest.approx(theirs, abs=0.02)
        seen.add(group.kind)
    assert seen == set(compute)


def test_the_start_is_dropped_and_looks_are_even_across_pieces(monkeypatch) -> None:
    monkeypatch.setattr(distribution, "_PIECE", 70)
    frames = np.broadcast_to(np.arange(5000.0)[:, None, None], (5000, 1, 3))
    replica = FakeReplica(1, 5e-4, positions=frames)
    sample = distribution.Sample(0, replica, 5000)
    looks = distribution._looks(sample, 5e-4)[:, 0, 0]
    assert looks[0] == 1250  # a quarter, which is less than 1 ps
    assert set(np.diff(looks)) == {20.0}
    assert looks[-1] == 4990
    monkeypatch.setattr(distribution, "_MOST_LOOKS", 10)
    assert len(distribution._looks(sample, 5e-4)) == 10


# The shipped ensembles


@pytest.mark.parametrize("name", ["water", "methane"])
def test_half_of_a_shipped_ensemble_agrees_with_the_other_half(name: str, monkeypatch) -> None:
    system = load_system(name)
    whole = distribution._ensemble(system)
    assert whole is not None
    rest = dataclasses.replace(whole, positions=whole.positions[8:])
    monkeypatch.setattr(distribution, "_ensemble", lambda system: rest)
    monkeypatch.setattr(distribution, "START_PS", 0.0)
    run = thermostatted(whole.positions[:8], system.masses)
    found = by_name(distribution.CHECK.measure(Evidence(system, card(), (run,))))
    for row in distribution.CHECK.criteria:
        assert found[row.measurement].ci_high < row.high, row.name
