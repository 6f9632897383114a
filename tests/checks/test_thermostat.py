"""The canonical ensemble: exact samples, three ways to miss it, and another program's figures."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import openmm
import pytest
from checks.fakes import FakeReplica, FakeRun, by_name, card, water
from springs import STIFFNESS, SpringPotential, molecule, triatomic

from omm_mlff.checks import thermostat
from omm_mlff.checks.base import Evidence
from omm_mlff.checks.thermostat import (
    CHECK,
    energies_by_motion,
    equilibrated,
    log_ratio_slope,
    molecules,
    most_certain,
    simultaneous,
    slope_error,
    width_temperature,
)
from omm_mlff.dynamics.simulate import simulate
from omm_mlff.schema import RunSpec
from omm_mlff.statistics.intervals import Estimate, mean_over_replicas
from omm_mlff.units import BOLTZMANN

FORGOTTEN_FRAMES = 140  # 0.7 ps at 5 fs a frame and a friction of 10/ps


def nvt_run(arrays, masses, *, kelvin=300.0, friction=10.0, ensemble="nvt"):
    """A thermostat's run out of arrays, a frame every 5 fs; the first 140 are rubbish."""
    replicas = []
    for fields in arrays:
        rubbish = {
            name: np.concatenate((np.full((FORGOTTEN_FRAMES, *values.shape[1:]), 1e3), values))
            for name, values in fields.items()
        }
        replicas.append(FakeReplica(len(masses), 0.005, **rubbish))
    run = FakeRun(replicas, masses, target_K=kelvin, stride=10, n_dof=3 * len(masses))
    run.spec = dataclasses.replace(run.spec, ensemble=ensemble, purpose="thermostat")
    run.provenance = {"integrator": {"friction_per_ps": friction}}
    run.bonds = np.array([[0, 1], [0, 2]])
    run.rest_positions = water().positions
    return run


def maxwell(n_replicas, n_frames, *, kelvin=300.0, seed=0, scale=None):
    """Exact samples of water's velocities, and energies of three harmonic vibrations."""
    system = water()
    random = np.random.default_rng(seed)
    found = []
    for _ in range(n_replicas):
        shape = (n_frames, 3, 3)
        v = random.normal(size=shape) * np.sqrt(BOLTZMANN * kelvin / system.masses[:, None])
        if scale is not None:
            v = scale(v)
        x = system.positions + 0.003 * random.normal(size=shape)
        kinetic = 0.5 * (system.masses[:, None] * v**2).sum((1, 2))
        potential = random.gamma(1.5, BOLTZMANN * kelvin, size=n_frames) - 2.0e5
        found.append(
            {
                "positions": x,
                "velocities": v,
                "kinetic_energy": kinetic,
                "potential_energy": potential,
            }
        )
    return found


def measured(*runs):
    return by_name(CHECK.measure(Evidence(water(), card(), runs)))


def bounds_of(name):
    (limit,) = [row for row in CHECK.criteria if row.name == f"{name}-limit"]
    return limit.low, limit.high


def test_exact_samples_are_inside_every_bound() -> None:
    found = measured(
        nvt_run(maxwell(8, 800), water().masses),
        nvt_run(maxwell(8, 800, kelvin=500.0, seed=1), water().masses, kelvin=500.0),
    )
    for row in found.values():
        assert row.ci_low < 0.0 < row.ci_high, row
        if row.kind == "sampled":
            low, high = bounds_of(row.name)
            assert low < row.ci_low < row.ci_high < high, row
    assert "-thermostat-nvt-300K-" in found["thermostat.ensemble"].where.run


def test_what_is_left_of_the_start_does_not_count() -> None:
    arrays = maxwell(4, 100)
    run = nvt_run(arrays, water().masses)
    kinetic = equilibrated(run).series("kinetic_energy")
    np.testing.assert_array_equal(kinetic[2], arrays[2]["kinetic_energy"])


def test_frames_are_the_same_however_they_are_read(monkeypatch) -> None:
    run = nvt_run(maxwell(1, 100), water().masses)
    part = dataclasses.replace(equilibrated(run), first=37, stride=3)
    whole = run.replica(0).velocities[37::3]
    for size in (1000, 64, 37, 5, 1):
        monkeypatch.setattr(thermostat, "_PIECE", size)
        pieces = list(part.pieces(part.samples[0]))
        read = np.concatenate([piece["velocities"] for piece in pieces])
        np.testing.assert_array_equal(read, whole)


def test_a_flying_ice_cube_is_no_equipartition() -> None:
    """The whole molecule at 900 K, the rest so cold that the mean is right."""
    masses = water().masses

    def scale(v):
        centre = np.average(v, axis=1, weights=masses)[:, None]
        return np.sqrt(3.0) * centre + 0.01 * (v - centre)

    row = measured(nvt_run(maxwell(8, 300, scale=scale), masses))["thermostat.equipartition"]
    assert row.value == pytest.approx(200.0, abs=25.0)
    assert "translation is at" in row.cause
    assert row.ci_low < -80.0  # the hull holds the cold groups too


def test_a_hot_element_and_a_hot_atom_are_named() -> None:
    def hot_hydrogen(v):
        return v * np.array([1.0, 1.0, np.sqrt(2.0)])[:, None]

    found = measured(nvt_run(maxwell(8, 300, scale=hot_hydrogen), water().masses))
    assert "H2 is at" in found["thermostat.atom_temperature"].cause
    assert found["thermostat.atom_temperature"].value == pytest.approx(100.0, abs=15.0)
    assert "element H is at" in found["thermostat.equipartition"].cause


def test_a_kinetic_energy_that_is_held_still_has_no_width() -> None:
    """An isokinetic thermostat: the right mean, the wrong ensemble."""
    masses = water().masses

    def still(v):
        kinetic = 0.5 * (masses[:, None] * v**2).sum((1, 2))
        return v * np.sqrt(4.5 * BOLTZMANN * 300.0 / kinetic)[:, None, None]

    found = measured(nvt_run(maxwell(8, 300, scale=still), masses))
    assert abs(found["thermostat.temperature_error"].value) < 1e-9
    assert found["thermostat.kinetic_distribution"].value == pytest.approx(-100.0)
    assert found["thermostat.kinetic_distribution"].ci_high < -20.0


def test_too_hot_is_too_hot() -> None:
    run = nvt_run(maxwell(8, 300, kelvin=360.0), water().masses)
    row = measured(run)["thermostat.temperature_error"]
    assert row.value == pytest.approx(20.0, abs=3.0)
    assert row.ci_low > 10.0
    assert "360" in row.cause or "35" in row.cause or "36" in row.cause


def test_energies_twice_too_large_are_twice_the_boltzmann_factor() -> None:
    """As of a potential whose forces are twice its gradient: it samples exp(-2 E / kT)."""
    cold, warm = (
        nvt_run(
            [
                {**fields, "potential_energy": 0.5 * fields["potential_energy"]}
                for fields in maxwell(8, 400, kelvin=kelvin, seed=seed)
            ],
            water().masses,
            kelvin=kelvin,
        )
        for kelvin, seed in ((300.0, 2), (450.0, 3))
    )
    row = measured(cold, warm)["thermostat.ensemble"]
    assert row.value == pytest.approx(100.0, abs=25.0)
    assert row.ci_low > 20.0
    assert "300 and 450 K" in row.cause


def test_what_cannot_be_said_is_absent_with_its_reason() -> None:
    good = nvt_run(maxwell(3, 100), water().masses)
    found = measured(good)
    assert "two temperatures" in found["thermostat.ensemble"].not_applicable
    short = nvt_run(maxwell(3, 100), water().masses, friction=0.1)
    assert "remembered for 70 ps" in measured(short)["thermostat.equipartition"].not_applicable
    nve = nvt_run(maxwell(3, 100), water().masses, ensemble="nve")
    assert "no thermostat" in measured(nve)["thermostat.temperature_error"].not_applicable
    far = nvt_run(maxwell(3, 100, kelvin=300.0), water().masses, kelvin=400.0)
    for replica in far._replicas:
        replica.arrays["potential_energy"] += 500.0
    assert "do not overlap" in measured(good, far)["thermostat.ensemble"].not_applicable


def test_one_replica_decides_nothing() -> None:
    row = measured(nvt_run(maxwell(1, 100), water().masses))["thermostat.equipartition"]
    assert np.isinf(row.ci_high)
    assert np.isinf(row.standard_error)


def test_simultaneous_intervals_hold_all_at_once() -> None:
    """Nine groups of noise, 400 times: the hull misses zero as rarely as it promises."""
    random = np.random.default_rng(7)
    missed = 0
    for _ in range(400):
        table = random.normal(size=(8, 9))
        estimates = [mean_over_replicas(column, simultaneous(9)) for column in table.T]
        missed += any(not e.ci_low < 0.0 < e.ci_high for e in estimates)
        hull, _ = most_certain(estimates)
        assert hull.ci_low == pytest.approx(min(e.ci_low for e in estimates))
        assert hull.ci_high == pytest.approx(max(e.ci_high for e in estimates))
    assert missed <= 14  # 6.7 expected at 1 - 1/60; three standard deviations


def test_a_small_deviation_known_well_outweighs_a_large_one_known_badly() -> None:
    sure = Estimate(30.0, 1.0, 7.0, 25.0, 35.0, 8)
    vague = Estimate(50.0, 20.0, 7.0, -20.0, 120.0, 8)
    chosen, index = most_certain([vague, sure])
    assert index == 1
    assert (chosen.value, chosen.ci_low, chosen.ci_high) == (30.0, -20.0, 120.0)


def test_the_interval_of_the_slope_covers_the_truth() -> None:
    """Closed form: three harmonic vibrations at two temperatures, correlated within a replica."""
    random = np.random.default_rng(11)
    missed = 0
    for _ in range(150):
        cold, warm = (
            [
                np.repeat(random.gamma(1.5, BOLTZMANN * kelvin, size=30), 5)  # g = 5
                for _ in range(8)
            ]
            for kelvin in (300.0, 400.0)
        )
        estimate = slope_error(cold, warm, 300.0, 400.0)
        missed += not estimate.ci_low < 0.0 < estimate.ci_high
    assert missed <= 8  # 2.5 expected at 1 - 1/60


def test_molecules_that_a_face_has_cut_are_made_whole() -> None:
    box = np.eye(3)
    whole = np.concatenate((water().positions, water().positions + np.array([0.5, 0.5, 0.97])))
    whole += 0.02
    cut = whole % 1.0
    bonds = np.array([[0, 1], [0, 2], [3, 4], [3, 5]])
    parts = molecules(6, bonds, cut, box)
    np.testing.assert_array_equal(parts.of_atom, [0, 0, 0, 1, 1, 1])
    again = cut + parts.shift
    for a, b in bonds:
        np.testing.assert_allclose(again[b] - again[a], whole[b] - whole[a], atol=1e-12)


@pytest.mark.parametrize(
    ("positions", "bonds", "n_turns"),
    [
        ([[0, 0, 0], [0.1, 0, 0]], [[0, 1]], 2),
        ([[0, 0, 0], [0.1, 0, 0], [0.05, 0.09, 0]], [[0, 1], [0, 2]], 3),
        ([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0]], np.empty((0, 2), dtype=int), 0),
    ],
)
def test_motions_share_all_of_the_energy_and_all_degrees_of_freedom(positions, bonds, n_turns):
    n = len(positions)
    masses = np.arange(1.0, n + 1.0)
    x = np.array(positions, dtype=float)[None]
    v = np.random.default_rng(3).normal(size=(1, n, 3))
    parts = molecules(n, np.asarray(bonds), x[0], None)
    found = energies_by_motion(x, v, masses, parts)
    assert found["rotation"][1][0] == n_turns
    assert sum(pair[1][0] for pair in found.values()) == 3 * n
    total = sum(pair[0][0] for pair in found.values())
    assert total == pytest.approx(0.5 * (masses[:, None] * v[0] ** 2).sum())


# Another program: physical-validation (Merz & Shirts), on the same numbers.


def simulation_data(kelvin, kinetic=None, potential=None):
    data = pytest.importorskip("physical_validation.data")
    units = data.UnitData(
        kb=BOLTZMANN,
        energy_str="kJ/mol",
        energy_conversion=1.0,
        length_str="nm",
        length_conversion=1.0,
        volume_str="nm^3",
        volume_conversion=1.0,
        temperature_str="K",
        temperature_conversion=1.0,
        pressure_str="bar",
        pressure_conversion=1.0,
        time_str="ps",
        time_conversion=1.0,
    )
    system = data.SystemData(
        natoms=3,
        nconstraints=0,
        ndof_reduction_tra=0,
        ndof_reduction_rot=0,
        mass=water().masses,
        molecule_idx=[0],
        nconstraints_per_molecule=[0],
    )
    return data.SimulationData(
        units=units,
        ensemble=data.EnsembleData("NVT", natoms=3, volume=1.0, temperature=kelvin),
        system=system,
        observables=data.ObservableData(kinetic_energy=kinetic, potential_energy=potential),
    )


def test_temperatures_of_mean_and_width_are_those_of_physical_validation(capsys) -> None:
    """To the last digit that it prints; the errors within what a bootstrap can say."""
    other = pytest.importorskip("physical_validation.kinetic_energy")
    arrays = maxwell(64, 100)
    pooled = np.concatenate([fields["kinetic_energy"] for fields in arrays])
    other.distribution(
        simulation_data(300.0, kinetic=pooled),
        verbosity=1,
        bootstrap_seed=1,
        data_is_uncorrelated=True,
    )
    said = capsys.readouterr().out
    theirs = [
        float(number)
        for pair in re.findall(r"T\((?:mu|sigma)\) = ([0-9.]+) \+- ([0-9.]+)", said)
        for number in pair
    ]
    found = measured(nvt_run(arrays, water().masses))
    for name, value, error in (
        ("temperature_error", *theirs[:2]),
        ("kinetic_distribution", *theirs[2:]),
    ):
        row = found[f"thermostat.{name}"]
        assert 300.0 * (1.0 + 0.01 * row.value) == pytest.approx(value, abs=0.006)
        assert 3.0 * row.standard_error == pytest.approx(error, rel=0.3)
    assert width_temperature(pooled, 9) == pytest.approx(theirs[2], abs=0.006)


def test_equipartition_is_that_of_physical_validation() -> None:
    other = pytest.importorskip("physical_validation.kinetic_energy")
    data = pytest.importorskip("physical_validation.data")
    fields = maxwell(1, 300)[0]
    theirs = simulation_data(300.0)
    theirs.trajectory = data.TrajectoryData(fields["positions"], fields["velocities"])
    other.equipartition(theirs, verbosity=0, bootstrap_seed=1, data_is_uncorrelated=True)
    parts = molecules(3, np.array([[0, 1], [0, 2]]), water().positions, None)
    ours = energies_by_motion(fields["positions"], fields["velocities"], water().masses, parts)
    for name, key in (
        ("translation", "translational"),
        ("rotation", "rotational"),
        ("inner motion", "internal"),
    ):
        energy, n_dof = ours[name]
        per_frame = [frame[key][0] for frame in theirs.observables.kinetic_energy_per_molecule]
        np.testing.assert_allclose(energy, per_frame, rtol=1e-9)
        assert n_dof[0] == theirs.system.ndof_per_molecule[0][key]


def test_the_slope_is_that_of_physical_validation(capsys) -> None:
    """The same likelihood, hence the same slope; and its own verdict in standard errors."""
    fit = pytest.importorskip("physical_validation.util.ensemble").do_max_likelihood_fit
    check = pytest.importorskip("physical_validation.ensemble").check
    random = np.random.default_rng(5)
    cold = [random.gamma(3.0, BOLTZMANN * 300.0, size=250) for _ in range(16)]
    warm = [random.gamma(3.0, BOLTZMANN * 400.0, size=250) for _ in range(16)]
    exact = (1.0 / 300.0 - 1.0 / 400.0) / BOLTZMANN
    theirs, errors = fit(
        np.concatenate(cold), np.concatenate(warm), 1.0, 1.0, np.array([0.0, exact]), False
    )
    assert log_ratio_slope(np.concatenate(cold), np.concatenate(warm)) == pytest.approx(
        theirs[1], rel=1e-7
    )
    ours = slope_error(cold, warm, 300.0, 400.0)
    assert ours.standard_error == pytest.approx(100.0 * errors[1] / exact, rel=0.35)
    (quantiles,) = check(
        simulation_data(300.0, potential=np.concatenate(cold)),
        simulation_data(400.0, potential=np.concatenate(warm)),
        verbosity=0,
        data_is_uncorrelated=True,
    )
    capsys.readouterr()
    assert abs(ours.value) / (100.0 * errors[1] / exact) == pytest.approx(quantiles, abs=0.6)
    assert quantiles < 3.0


# Real runs in OpenMM.


def real_runs(folder, potential=SpringPotential, *, kelvin=(300.0, 600.0), **options):
    spec = RunSpec(
        "springs",
        "springs",
        2.0,
        300.0,
        64,
        seed=3,
        timestep_fs=2.0,
        ensemble="nvt",
        purpose="thermostat",
        platform="Reference",
        record_stride=2,
    )
    specs = [dataclasses.replace(spec, temperature_K=k, seed=int(k)) for k in kelvin]
    soft = potential(**{"stiffness": 0.2 * STIFFNESS, **options})
    return tuple(simulate(s, soft, triatomic(), folder / s.name) for s in specs)


def test_springs_in_openmms_thermostat_are_canonical(tmp_path) -> None:
    runs = real_runs(tmp_path)
    found = CHECK.measure(Evidence(triatomic(), SpringPotential().card, runs))
    assert len(found) == 9
    for row in found:
        assert row.ci_low < 0.0 < row.ci_high, row
    assert by_name(found)["thermostat.ensemble"].standard_error < 8.0


def test_forces_of_half_the_gradient_give_half_the_slope(tmp_path) -> None:
    """Every temperature is right; only the energies betray it."""
    runs = real_runs(tmp_path, force_scale=0.5, stiffness=0.5 * STIFFNESS)
    found = by_name(CHECK.measure(Evidence(triatomic(), SpringPotential().card, runs)))
    assert abs(found["thermostat.temperature_error"].value) < 10.0
    row = found["thermostat.ensemble"]
    assert row.value == pytest.approx(-50.0, abs=4.0 * row.standard_error)
    assert not any(run.events for run in runs)
    assert row.ci_high < -20.0


class Swirling(SpringPotential):
    """Springs, and a force around the molecule that is no gradient; the tap does not see it."""

    def add_to(self, openmm_system, system, *, n_replicas=1, tap=None):
        built = super().add_to(openmm_system, system, n_replicas=n_replicas, tap=tap)

        def compute(state):
            x = np.array(state.getPositions(asNumpy=True)._value).reshape(n_replicas, -1, 3)
            r = x - np.average(x, axis=1, weights=system.masses)[:, None]
            return 0.0, 400.0 * np.cross([0.0, 0.0, 1.0], r).reshape(-1, 3)

        openmm_system.addForce(openmm.PythonForce(compute))
        return built


def test_a_force_that_is_no_gradient_heats_what_it_turns(tmp_path) -> None:
    runs = real_runs(tmp_path, Swirling, kelvin=(300.0,))
    found = by_name(CHECK.measure(Evidence(triatomic(), SpringPotential().card, runs)))
    row = found["thermostat.equipartition"]
    assert "rotation is at" in row.cause
    assert row.value > 50.0
    assert found["thermostat.temperature_error"].ci_low > 10.0


def test_a_box_of_atoms_has_translation_only() -> None:
    system = molecule([18, 18], [[0, 0, 0], [0.4, 0, 0]], [], box_vectors=2.0 * np.eye(3))
    parts = molecules(2, system.bonds, system.positions, system.box_vectors)
    v = np.ones((1, 2, 3))
    found = energies_by_motion(system.positions[None], v, system.masses, parts)
    assert found["inner motion"][1][0] == 0.0
    assert found["inner motion"][0][0] == pytest.approx(0.0, abs=1e-12)
