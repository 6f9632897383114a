"""Symptoms: runs made by hand with one fault each, then with several in a known order."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from checks.fakes import WATER, FakeReplica, FakeRun, water
from springs import molecule

from omm_mlff.failures.explain import diagnose
from omm_mlff.failures.symptoms import Symptom
from omm_mlff.schema import Event
from omm_mlff.units import BOLTZMANN, EV_PER_KJMOL, KJMOL_PER_EV

N_FRAMES, DT, TARGET = 1200, 5e-4, 300.0
BREAK = 600  # the frame at which things happen
RATE = 2.0 * math.pi / 0.016  # of every coordinate's vibration, 1/ps


def vibrating(system, seed=1, n_frames=N_FRAMES) -> dict[str, np.ndarray]:
    """Every coordinate an oscillator with the energy kT: sound, at the target, for ever."""
    turn = np.random.default_rng(seed).uniform(0.0, 2.0 * math.pi, (system.n_atoms, 3))
    phase = RATE * np.arange(n_frames)[:, None, None] * DT + turn
    mass = system.masses[:, None]
    size = np.sqrt(2.0 * BOLTZMANN * TARGET / mass) / RATE
    x, v = size * np.cos(phase), -size * RATE * np.sin(phase)
    return {
        "positions": system.positions + x,
        "velocities": v,
        "forces": -mass * RATE**2 * x,
        "potential_energy": (0.5 * mass * RATE**2 * x**2).sum((1, 2)),
        "kinetic_energy": (0.5 * mass * v**2).sum((1, 2)),
    }


def made(arrays, system, *, event=None, ensemble="nve", n_frames=N_FRAMES) -> FakeRun:
    arrays = {name: array[:n_frames] for name, array in arrays.items()}
    run = FakeRun(
        [FakeReplica(system.n_atoms, DT, **arrays)],
        system.masses,
        n_dof=3 * system.n_atoms,
        events={0: event} if event else {},
    )
    run.spec = dataclasses.replace(run.spec, ensemble=ensemble)
    return run


def symptoms(arrays, system=None, **options) -> tuple[Symptom, ...]:
    system = system or water()
    return diagnose(made(arrays, system, **options), system, 0)


def kinds(*args, **options) -> list[str]:
    return [item.kind for item in symptoms(*args, **options)]


def heat(arrays, factor: float, first: int = BREAK) -> None:
    """Kinetic energy times a factor, out of the potential energy: the total is conserved."""
    more = (factor - 1.0) * arrays["kinetic_energy"][first:]
    arrays["kinetic_energy"][first:] += more
    arrays["potential_energy"][first:] -= more


def stop(kind: str, step: int, atoms=(0, 1), value=0.05, unit="nm") -> Event:
    return Event(kind, step, step * DT, atoms, value, unit, f"what {kind} says")


def test_a_sound_run_has_none() -> None:
    for seed in range(5):
        assert kinds(vibrating(water(), seed)) == []


def test_a_broken_bond_is_told_with_its_length_and_what_came_off() -> None:
    arrays = vibrating(water())
    arrays["positions"][BREAK:, 1, 0] += 0.08
    broken, pieces = symptoms(arrays)
    assert (broken.kind, broken.atoms, broken.unit) == ("broken-bond", (0, 1), "angstrom")
    assert broken.time_ps == pytest.approx(BREAK * DT)
    assert broken.value == pytest.approx(1.76, abs=0.2)
    assert (pieces.kind, pieces.atoms, pieces.value) == ("fragmentation", (1,), 2.0)
    assert "2 pieces where there were 1: H1 came off" in pieces.sentence


def test_a_ring_that_opens_does_not_fall_to_pieces() -> None:
    ring = molecule(
        [6, 6, 6], [[0, 0, 0], [0.15, 0, 0], [0.075, 0.13, 0]], [[0, 1], [1, 2], [0, 2]]
    )
    arrays = vibrating(ring)
    apart = np.array([[-0.04, 0.0, 0.0], [0.04, 0.0, 0.0], [0.0, 0.0, 0.0]])
    arrays["positions"][BREAK:] += apart
    assert kinds(arrays, ring) == ["broken-bond"]


def test_two_atoms_that_bond_are_told() -> None:
    arrays = vibrating(water())
    arrays["positions"][BREAK:, 2] = arrays["positions"][BREAK:, 1] + [0.0, 0.06, 0.0]
    (only,) = symptoms(arrays)
    assert (only.kind, only.atoms) == ("new-bond", (1, 2))


def test_a_hydrogen_that_changes_its_partner_is_one_transfer() -> None:
    system = molecule([8, 1, 7], [[0, 0, 0], [0.1, 0, 0], [0.3, 0, 0]], [[0, 1]])
    arrays = vibrating(system)
    arrays["positions"][BREAK:, 1, 0] += 0.1
    (only,) = symptoms(arrays, system)
    assert (only.kind, only.atoms) == ("transfer", (0, 1, 2))
    assert only.sentence.startswith("hydrogen transfer: H1 from O0 to N2")


def test_an_overlap_is_told_as_the_simulation_saw_it() -> None:
    (only,) = symptoms(vibrating(water()), event=stop("overlap", 900, (1, 2)), n_frames=901)
    assert (only.kind, only.atoms, only.time_ps) == ("overlap", (1, 2), pytest.approx(0.45))
    assert (only.value, only.unit) == (pytest.approx(0.5), "angstrom")


@pytest.mark.parametrize("electronvolts", [0.5, -0.5])
def test_an_energy_that_jumps_and_stays_is_a_jump(electronvolts: float) -> None:
    arrays = vibrating(water())
    arrays["potential_energy"][BREAK:] += electronvolts * KJMOL_PER_EV
    (only,) = symptoms(arrays)
    assert (only.kind, only.unit) == ("jump", "eV")
    assert only.time_ps == pytest.approx(BREAK * DT)
    assert only.value == pytest.approx(electronvolts, rel=0.01)


def test_a_jump_is_not_told_again_as_a_drift() -> None:
    arrays = vibrating(water(), n_frames=4000)
    arrays["potential_energy"][2000:] += 0.5 * KJMOL_PER_EV
    assert kinds(arrays, n_frames=4000) == ["jump"]


def test_an_energy_that_comes_back_is_no_jump() -> None:
    arrays = vibrating(water())
    arrays["potential_energy"][BREAK : BREAK + 5] += 0.5 * KJMOL_PER_EV
    assert kinds(arrays) == []


def test_a_jump_in_the_last_frame_is_seen() -> None:
    arrays = vibrating(water())
    arrays["potential_energy"][900:] += 0.5 * KJMOL_PER_EV
    (only,) = symptoms(arrays, event=stop("energy", 900), n_frames=901)
    assert (only.kind, only.time_ps) == ("jump", pytest.approx(0.45))


def test_an_energy_event_that_nothing_else_shows_is_still_told() -> None:
    (only,) = symptoms(vibrating(water()), event=stop("energy", 900), n_frames=901)
    assert (only.kind, only.sentence) == ("jump", "what energy says")


def test_a_steady_slope_is_a_drift_and_its_onset_a_tenth_of_the_heat() -> None:
    arrays = vibrating(water())
    slope = 0.05  # eV/atom/ps
    arrays["potential_energy"] += slope * KJMOL_PER_EV * 3 * np.arange(N_FRAMES) * DT
    (only,) = symptoms(arrays)
    assert (only.kind, only.unit) == ("drift", "meV/atom/ps")
    assert only.value == pytest.approx(50.0, rel=0.02)
    tenth = 0.1 * 3.0 * BOLTZMANN * EV_PER_KJMOL * TARGET
    assert only.time_ps == pytest.approx(tenth / slope, rel=0.02)


def test_a_slope_that_changes_nothing_is_no_drift() -> None:
    arrays = vibrating(water())
    arrays["potential_energy"] += 2e-4 * KJMOL_PER_EV * 3 * np.arange(N_FRAMES) * DT
    assert kinds(arrays) == []


@pytest.mark.parametrize(("factor", "kind"), [(3.0, "heating"), (0.2, "cooling")])
def test_a_temperature_that_leaves_the_band_is_told(factor: float, kind: str) -> None:
    arrays = vibrating(water())
    heat(arrays, factor)
    (only,) = symptoms(arrays)
    assert (only.kind, only.unit) == (kind, "K")
    # Known within one window of 50 fs, and never before it happened.
    assert BREAK * DT <= only.time_ps <= BREAK * DT + 0.05


def test_under_a_thermostat_the_energy_may_come_and_go() -> None:
    arrays = vibrating(water())
    heat(arrays, 1.8)
    arrays["potential_energy"][BREAK:] += 0.5 * KJMOL_PER_EV
    assert kinds(arrays, ensemble="nvt") == []
    heat(arrays, 10.0)
    assert kinds(arrays, ensemble="nvt") == ["heating"]


def test_what_stands_still_is_frozen_and_not_merely_cold() -> None:
    arrays = vibrating(water())
    total = arrays["potential_energy"] + arrays["kinetic_energy"]
    arrays["positions"][BREAK:] = arrays["positions"][BREAK]
    arrays["velocities"][BREAK:] = 0.0
    arrays["kinetic_energy"][BREAK:] = 0.0
    arrays["potential_energy"][BREAK:] = total[BREAK:]
    (only,) = symptoms(arrays)
    assert only.kind == "frozen"
    assert only.time_ps == pytest.approx(BREAK * DT, abs=0.002)


def test_velocities_that_move_nothing_are_frozen_too() -> None:
    arrays = vibrating(water())
    arrays["positions"][BREAK:] = arrays["positions"][BREAK]
    (only,) = symptoms(arrays)
    assert only.kind == "frozen"
    assert only.sentence.startswith("atoms do not move")


def test_a_nan_is_told_with_the_time_at_which_it_was_seen() -> None:
    (only,) = symptoms(vibrating(water()), event=stop("nan", 900, value=math.nan), n_frames=900)
    assert (only.kind, only.atoms, only.time_ps) == ("nan", (0, 1), pytest.approx(0.45))
    recorded = vibrating(water())
    recorded["forces"][700, 2] = math.inf
    (other,) = symptoms(recorded)
    assert (other.kind, other.time_ps) == ("nan", pytest.approx(0.35))


def test_a_molecule_that_leaves_its_cluster_evaporates() -> None:
    two = np.concatenate((WATER, np.array(WATER) + np.array([0.3, 0.0, 0.0])))
    bonds = [[0, 1], [0, 2], [3, 4], [3, 5]]
    cluster = molecule([8, 1, 1, 8, 1, 1], two, bonds)
    arrays = vibrating(cluster)
    assert kinds(arrays, cluster) == []
    arrays["positions"][:, 3:, 0] += 5.0 * np.arange(N_FRAMES)[:, None] * DT  # 0.5 angstrom/10 fs
    (only,) = symptoms(arrays, cluster)
    assert (only.kind, only.atoms) == ("evaporation", (3, 4, 5))
    # 0.3 nm apart, hydrogens 0.1 nm nearer; 1 nm after some 0.17 ps, seen at the next look
    assert 0.15 <= only.time_ps <= 0.25


def test_symptoms_come_in_the_order_in_which_they_began() -> None:
    arrays = vibrating(water())
    arrays["positions"][400:, 1, 0] += 0.08
    heat(arrays, 3.0, first=600)
    found = symptoms(arrays, event=stop("nan", 900, value=math.nan), n_frames=900)
    assert [item.kind for item in found] == ["broken-bond", "fragmentation", "heating", "nan"]
    arrays = vibrating(water())
    arrays["potential_energy"][300:] += 0.5 * KJMOL_PER_EV
    heat(arrays, 3.0, first=320)
    arrays["positions"][500:, 1, 0] += 0.08
    assert kinds(arrays) == ["jump", "heating", "broken-bond", "fragmentation"]


def test_a_record_of_a_few_frames_or_none_is_no_reason_to_stumble() -> None:
    for n in (1, 2, 3, 5):
        assert kinds(vibrating(water()), n_frames=n) == []
    assert kinds(vibrating(water()), n_frames=1, event=stop("nan", 1, value=math.nan)) == ["nan"]
