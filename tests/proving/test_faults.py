"""Every fault does what it says, by a closed form."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from springs import molecule

from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.geometry.pulled_apart import two_copies
from omm_mlff.potentials.base import Potential
from omm_mlff.proving import faults
from omm_mlff.proving.grounds import BOX, CLUSTER, METHANOL
from omm_mlff.proving.kinds import KINDS
from omm_mlff.proving.terms import LennardJones
from omm_mlff.units import KJMOL_NM_PER_EV_ANGSTROM, KJMOL_PER_EV, MEV_PER_KJMOL

KIND = {kind.name: kind for kind in KINDS}


def engines(name: str, strength: float, n_copies: int):
    """The faulty engine and the sound one on the kind's ground."""
    kind = KIND[name]
    system = kind.ground.system()
    return kind.fault(system, n_copies, strength), kind.ground.engine(system, n_copies), system


def both(name: str, strength: float, frames=None):
    """Energies and forces of some frames, faulty and sound."""
    system = KIND[name].ground.system()
    frames = system.reference.positions[:8] if frames is None else frames
    faulty, sound, system = engines(name, strength, len(frames))
    box = None if system.box_vectors is None else torch.from_numpy(system.box_vectors)
    flat = torch.from_numpy(np.array(frames)).reshape(-1, 3)
    found = []
    for engine in (faulty, sound):
        energies, forces = engine(flat, box)
        found += [energies.numpy(), forces.numpy().reshape(np.shape(frames))]
    return found


@pytest.mark.parametrize("name", KIND)
def test_it_is_a_potential_that_serves_its_ground_and_two_copies(name: str) -> None:
    kind = KIND[name]
    potential = kind.potential(kind.strengths[0])
    system = kind.ground.system()
    assert isinstance(potential, Potential)
    assert potential.unsupported(system) is None
    pair = two_copies(system, np.random.default_rng(0)).system
    assert potential.unsupported(pair) is None
    with Evaluator(potential, system, "Reference") as evaluator:
        energies, forces = evaluator.evaluate(system.positions[None])
    assert np.isfinite(energies).all()
    assert np.isfinite(forces).all()
    faults.put_down()


@pytest.mark.parametrize("name", KIND)
def test_gross_comes_first_and_the_last_is_the_subtlest(name: str) -> None:
    strengths = KIND[name].strengths
    assert len(strengths) >= 2
    falling = all(a > b for a, b in itertools.pairwise(strengths))
    rising = all(a < b for a, b in itertools.pairwise(strengths))
    assert falling or rising


def test_there_are_sixteen_kinds_or_more_and_each_has_a_name_of_its_own() -> None:
    assert len(KIND) == len(KINDS) >= 16


def test_an_energy_in_ev_is_96_times_too_small() -> None:
    energy, force, true_energy, true_force = both("energy-unit", KJMOL_PER_EV)
    np.testing.assert_allclose(energy * KJMOL_PER_EV, true_energy)
    np.testing.assert_array_equal(force, true_force)


@pytest.mark.parametrize("name", ["forces-scaled", "hidden-scale"])
def test_forces_are_scaled_and_energies_are_not(name: str) -> None:
    energy, force, true_energy, true_force = both(name, 0.001)
    np.testing.assert_array_equal(energy, true_energy)
    np.testing.assert_allclose(force, 1.001 * true_force)


@pytest.mark.parametrize(("name", "strength"), [("curl", 0.1), ("force-noise", 0.5)])
def test_the_extra_force_has_no_net_force_no_torque_and_a_curl(name: str, strength: float) -> None:
    _, force, _, true_force = both(name, strength)
    extra = force - true_force
    system = METHANOL.system()
    frames = system.reference.positions[:8]
    assert np.abs(extra).max() > 10.0
    np.testing.assert_allclose(extra.sum(axis=1), 0.0, atol=1e-9)
    np.testing.assert_allclose(np.cross(frames, extra).sum(axis=1), 0.0, atol=1e-9)
    n, step = 3 * system.n_atoms, 1.0e-7
    moved = frames[0].ravel() + step * np.concatenate((np.eye(n), -np.eye(n)))
    _, force, _, true_force = both(name, strength, moved.reshape(2 * n, -1, 3))
    extra = (force - true_force).reshape(2, n, n)
    jacobian = (extra[0] - extra[1]) / (2.0 * step)
    rotation = np.linalg.norm(jacobian - jacobian.T) / np.linalg.norm(jacobian + jacobian.T)
    assert rotation > 0.5


def test_the_frozen_noise_is_the_same_in_every_call_and_rough() -> None:
    frames = hydroxyl_frames(np.linspace(0.0960, 0.0962, 81))  # two periods of 0.001 angstrom
    _, first, _, sound = both("force-noise", 0.5, frames)
    _, again, _, _ = both("force-noise", 0.5, frames)
    np.testing.assert_array_equal(first, again)
    extra = (first - sound)[:, 0]
    turns = np.diff(np.sign(np.diff(extra[:, 0])))
    assert np.count_nonzero(turns) >= 3


def test_a_hard_cutoff_steps_by_what_lennard_jones_is_there() -> None:
    term = LennardJones(np.array([0.996]), np.array([0.34]), 0.51, 0.51)
    inside, _ = term(torch.tensor([0.51 - 1e-12], dtype=torch.float64))
    outside, _ = term(torch.tensor([0.51 + 1e-12], dtype=torch.float64))
    x = 1.5**-6
    assert float(inside) == pytest.approx(4 * 0.996 * (x * x - x), rel=1e-9)
    assert float(outside) == 0.0


def test_a_turned_molecule_has_another_energy_with_forces_to_match() -> None:
    system = METHANOL.system()
    quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    frames = np.stack((system.positions, system.positions @ quarter.T))
    energy, _, true_energy, _ = both("rotation", 100.0, frames)
    assert abs(energy[1] - energy[0]) * MEV_PER_KJMOL > 10.0
    assert true_energy[1] == pytest.approx(true_energy[0], abs=1e-9)
    u = np.random.default_rng(5).normal(size=system.positions.shape)
    step = 1.0e-6
    moved = system.positions + step * np.array([-1.0, 1.0, 0.0])[:, None, None] * u
    energy, force, true_energy, true_force = both("rotation", 100.0, moved)
    extra = energy - true_energy
    pull = ((force - true_force)[2] * u).sum()
    assert (extra[1] - extra[0]) / (2 * step) == pytest.approx(-pull, rel=1e-4)


def test_exchanged_atoms_feel_each_others_forces() -> None:
    system = METHANOL.system()
    order = [1, 0, 2, 3, 4, 5]
    frames = system.reference.positions[:4]
    energy, force, _, _ = both("atom-order", 2.0, frames)
    _, _, true_energy, true_force = both("atom-order", 2.0, frames[:, order])
    np.testing.assert_allclose(energy, true_energy)
    np.testing.assert_allclose(force[:, order], true_force)


def test_a_number_keeps_its_digits_and_no_more() -> None:
    values = torch.from_numpy(np.random.default_rng(6).uniform(1.0, 2.0, 1000))
    rounded = faults.Rounded(torch.nn.Identity(), 11).rounded(values)
    steps = rounded * 2.0**10
    assert torch.equal(steps, steps.round())
    assert float((rounded - values).abs().max()) == pytest.approx(2.0**-11, rel=0.02)
    half = values.to(torch.float16).to(torch.float64)
    assert torch.equal(rounded, half)


def test_an_energy_with_a_huge_constant_comes_in_steps_of_float32() -> None:
    energy, force, _, true_force = both("energy-offset", 2.0e7)
    assert np.array_equal(energy, energy.astype(np.float32).astype(np.float64))
    assert np.ptp(np.mod(energy, 2.0)) == 0.0
    np.testing.assert_array_equal(force, true_force)


def test_a_capped_repulsion_is_no_higher_than_its_cap() -> None:
    term = LennardJones(np.array([0.996]), np.array([0.34]), 0.7, 0.85)
    capped = faults.Capped(term, 10.0)
    d = torch.linspace(0.0, 0.8, 801, dtype=torch.float64)
    energy, slope = capped(d)
    assert float(energy.max()) <= 10.0
    assert torch.isfinite(slope).all()
    attractive = d > 0.34
    assert torch.equal(energy[attractive], term(d)[0][attractive])


def test_a_hole_is_as_deep_as_it_says_behind_the_rim() -> None:
    pair = molecule([10, 10], [[0, 0, 0], [0.4, 0, 0]], [])
    d = np.linspace(0.105, 0.4, 4000)
    frames = np.zeros((4000, 2, 3))
    frames[:, 1, 0] = d
    engine = KIND["hole"].fault(pair, 4000, 0.5)
    energies, forces = engine(torch.from_numpy(frames).reshape(-1, 3), None)
    energies = energies.numpy()
    inside = int(energies.argmin())
    assert energies[inside] == pytest.approx(-KJMOL_PER_EV, rel=0.02)
    assert energies[inside:].max() == pytest.approx(0.5 * KJMOL_PER_EV, rel=0.02)
    assert energies[0] > KJMOL_PER_EV
    slope = np.gradient(energies, d)[1:-1]
    pull = forces.numpy().reshape(-1, 2, 3)[1:-1, 1, 0]
    gentle = np.abs(slope) < 2.0e4
    np.testing.assert_allclose(-pull[gentle], slope[gentle], atol=100.0)


def hydroxyl_frames(lengths_nm) -> np.ndarray:
    """Methanol with its O-H bond at some lengths."""
    system = METHANOL.system()
    out = system.positions[5] - system.positions[1]
    frames = np.repeat(system.positions[None], len(lengths_nm), axis=0)
    frames[:, 5] = system.positions[1] + out / np.linalg.norm(out) * np.array(lengths_nm)[:, None]
    return frames


def test_a_cone_turns_the_force_over_at_its_tip() -> None:
    tip = 0.096 + 0.001
    frames = hydroxyl_frames([tip - 1e-7, tip + 1e-7])
    energy, force, true_energy, true_force = both("cone", 1.0, frames)
    extra = np.linalg.norm((force - true_force)[1, 5] - (force - true_force)[0, 5])
    assert extra == pytest.approx(KJMOL_NM_PER_EV_ANGSTROM, rel=1e-3)
    np.testing.assert_allclose(energy, true_energy, atol=1e-3)


def test_a_jump_is_in_the_energy_alone() -> None:
    edge = 0.096 + 0.003
    energy, force, true_energy, true_force = both(
        "jump", 100.0, hydroxyl_frames([edge - 1e-6, edge + 1e-6])
    )
    np.testing.assert_allclose((energy - true_energy) * MEV_PER_KJMOL, [0.0, 100.0], atol=1e-9)
    np.testing.assert_array_equal(force, true_force)


def test_nan_begins_where_it_says() -> None:
    edge = 0.096 + 0.01
    energy, force, *_ = both("nan", 0.1, hydroxyl_frames([edge - 1e-6, edge + 1e-6]))
    assert np.isnan(energy).tolist() == [False, True]
    assert np.isnan(force[1]).any()
    assert not np.isnan(force[0]).any()


def test_an_error_comes_where_it_says() -> None:
    edge = 0.096 + 0.01
    energy, force, true_energy, true_force = both("raises", 0.1, hydroxyl_frames([edge - 1e-6]))
    np.testing.assert_array_equal(energy, true_energy)
    np.testing.assert_array_equal(force, true_force)
    with pytest.raises(ValueError, match="a bond is too long"):
        both("raises", 0.1, hydroxyl_frames([edge - 1e-6, edge + 1e-6]))


def test_fresh_noise_differs_from_call_to_call_and_adds_no_net_force() -> None:
    faulty, _, system = engines("nondeterministic", 0.1, 1)
    x = torch.from_numpy(system.positions)
    first, second = (faulty(x, None)[1] for _ in range(2))
    assert float((first - second).abs().max()) > 1.0
    np.testing.assert_allclose((first - second).sum(0).numpy(), 0.0, atol=1e-9)


def test_a_box_that_is_twice_too_long_has_no_images() -> None:
    energy, _, true_energy, _ = both("box", 100.0)
    alone = BOX.system()
    bare = BOX.engine(alone, 8)
    flat = torch.from_numpy(alone.reference.positions[:8].copy()).reshape(-1, 3)
    np.testing.assert_allclose(energy, bare(flat, None)[0].numpy(), atol=1e-9)
    assert (energy > true_energy + 10.0).all()


def test_a_stale_list_is_remembered_inside_a_context() -> None:
    kind = KIND["stale-list"]
    system = CLUSTER.system()
    near, far = system.positions, 3.0 * system.positions
    with Evaluator(kind.potential(4.0), system, "Reference") as evaluator:  # calls 0 to 2: settling
        asked = [evaluator.evaluate(x[None], batched=False)[0][0] for x in (near, far, near, near)]
    # The list is made anew at call 4, where all atoms are apart, and kept for two more.
    (fresh,) = CLUSTER.engine(system, 1)(torch.from_numpy(near.copy()), None)[0].tolist()
    assert asked[0] == pytest.approx(fresh)
    assert asked[1:] == [0.0, 0.0, 0.0]
    pair = kind.fault(system, 1, 3.0)
    energies = [float(pair(torch.from_numpy(x.copy()), None)[0]) for x in (far, near, near, near)]
    assert energies[1] == energies[2] == 0.0  # the list of `far` is empty
    assert energies[3] == pytest.approx(fresh)  # made anew at the third call
    assert kind.potential(100.0).energies_and_forces(near[None], system) is None


def test_a_leak_keeps_what_it_says_until_it_is_put_down() -> None:
    burden = faults.Burden(bytes_per_call=1000)
    engine = faults.Burdened(METHANOL.engine(METHANOL.system(), 1), burden)
    for _ in range(5):
        engine(torch.from_numpy(METHANOL.system().positions), None)
    assert sum(block.tell() for block in burden.kept) == 5000
    assert burden.kept[0][:5001] == b"\1" * 5000 + b"\0"
    faults.put_down()
    with pytest.raises(KeyError):
        engine(torch.from_numpy(METHANOL.system().positions), None)


def test_a_slow_engine_takes_as_much_longer_in_every_call() -> None:
    burden = faults.Burden(seconds_per_call=1.0e-3)
    started = time.perf_counter()
    for _ in range(5):
        burden.bear()
    assert time.perf_counter() - started >= (1 + 2 + 3 + 4 + 5) * 1.0e-3
    faults.put_down()


def test_every_force_has_a_burden_of_its_own() -> None:
    kind = KIND["memory-leak"]
    system = CLUSTER.system()
    first, second = (kind.fault(METHANOL.system(), 1, 1.0) for _ in range(2))
    assert first.handle != second.handle
    assert system.n_atoms == 13
    faults.put_down()
