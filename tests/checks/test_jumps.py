"""Jumps: steps and creases of known size are found where a run went; smooth surfaces have none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from checks.fakes import FakeEvaluator, FakeReplica, FakeRun, by_name, card, labels, water
from checks.fakes import with_labels as labelled

from omm_mlff.checks import jumps
from omm_mlff.checks.base import Evidence
from omm_mlff.units import KJMOL_NM_PER_EV_ANGSTROM, MEV_PER_KJMOL, NM_PER_ANGSTROM

STIFFNESS = 3.0e5  # kJ/mol/nm^2
FIRST, SECOND = np.triu_indices(3, k=1)
REST = np.linalg.norm(water().positions[SECOND] - water().positions[FIRST], axis=1)
LENGTH = 0.0963  # nm: O0-H1 passes it in every vibration


def springs(positions, system=None):
    """Every pair of water on a spring."""
    r = positions[SECOND] - positions[FIRST]
    d = np.sqrt((r**2).sum(axis=1))
    pull = (STIFFNESS * (d - REST) / d)[:, None] * r
    forces = np.zeros_like(positions)
    np.add.at(forces, FIRST, pull)
    np.add.at(forces, SECOND, -pull)
    return 0.5 * STIFFNESS * float(((d - REST) ** 2).sum()), forces


class Bond:
    """Springs, and something more along the bond O0-H1: `energy(d)` and its `slope(d)`."""

    def __init__(self, energy, slope=lambda d: 0.0):
        self.energy, self.slope = energy, slope

    def __call__(self, positions, system=None):
        energy, forces = springs(positions)
        r = positions[1] - positions[0]
        d = math.sqrt(float(r @ r))
        pull = self.slope(d) * r / d
        return energy + self.energy(d), forces + np.stack([pull, -pull, 0.0 * pull])


def step(size_meV: float) -> Bond:
    size = size_meV / MEV_PER_KJMOL
    return Bond(lambda d: size if d > LENGTH else 0.0)


def crease(size_eV_angstrom: float) -> Bond:
    """The bond's force changes by this at one length; the energy is continuous."""
    half = 0.5 * size_eV_angstrom * KJMOL_NM_PER_EV_ANGSTROM
    return Bond(lambda d: half * abs(d - LENGTH), lambda d: math.copysign(half, d - LENGTH))


def cliff(size_meV: float, width_angstrom: float) -> Bond:
    """A step made smooth over a width."""
    size, width = 0.5 * size_meV / MEV_PER_KJMOL, width_angstrom * NM_PER_ANGSTROM
    return Bond(
        lambda d: size * math.tanh((d - LENGTH) / width),
        lambda d: size / width * (1.0 - math.tanh((d - LENGTH) / width) ** 2),
    )


def rounded(function):
    """What a float32 network makes of it: energies to 1e-6 eV, forces to 1e-6 of themselves."""

    def evaluate(positions, system=None):
        energy, forces = function(np.float32(10.0 * positions).astype(float) / 10.0)
        return float(np.float32(energy)), forces.astype(np.float32).astype(float)

    return evaluate


def dynamics(function, seed: int, n_steps: int = 500, dt: float = 5e-4) -> FakeReplica:
    """Verlet at some 300 K, recorded as the product records."""
    system = water()
    masses = system.masses[:, None]
    x = system.positions.copy()
    v = np.random.default_rng(seed).normal(size=x.shape) * np.sqrt(2 * 2.494 / masses)
    v -= (masses * v).sum(axis=0) / masses.sum()
    frames = []
    for _ in range(n_steps):
        energy, force = function(x, system)
        v_on = v + 0.5 * dt * force / masses
        frames.append((x, v_on, force, energy, 0.5 * float((masses * v_on**2).sum())))
        v = v + dt * force / masses
        x = x + dt * v
    names = ("positions", "velocities", "forces", "potential_energy", "kinetic_energy")
    arrays = (np.array(values) for values in zip(*frames, strict=True))
    return FakeReplica(3, dt, **dict(zip(names, arrays, strict=True)))


def measured(function, *, system=None, recorded=None, n_replicas=2):
    system = system or water()
    replicas = [dynamics(recorded or function, seed) for seed in range(n_replicas)]
    run = FakeRun(replicas, system.masses)
    evaluator = FakeEvaluator(function, system)
    found = jumps.CHECK.measure(Evidence(system, card(), (run,), evaluator, seed=1))
    return by_name(found), evaluator


def test_a_smooth_surface_has_no_jump() -> None:
    found, evaluator = measured(springs)
    assert found["jumps.energy"].value < 1e-9
    assert found["jumps.force"].value < 1e-9
    assert found["jumps.kink"].value < 1e-4
    assert evaluator.n_evaluations < 700


@pytest.mark.parametrize("size_meV", [1.0, 30.0])
def test_a_step_of_the_energy_is_found_with_its_size(size_meV: float) -> None:
    found, _ = measured(step(size_meV))
    row = found["jumps.energy"]
    assert row.value == pytest.approx(size_meV, rel=1e-3)
    assert found["jumps.force"].value < 1e-4
    assert row.cause.startswith(f"step of {size_meV:.3g} meV between frames ")
    assert "replica" in row.cause


def test_the_place_of_a_step_is_named() -> None:
    """The frames that the cause names lie on both sides of the length."""
    found, _ = measured(step(5.0), n_replicas=1)
    words = found["jumps.energy"].cause.split()
    frame = int(words[words.index("frames") + 1])
    x = dynamics(step(5.0), 0).positions[frame : frame + 2]
    lengths = np.linalg.norm(x[:, 1] - x[:, 0], axis=1)
    assert (lengths[0] - LENGTH) * (lengths[1] - LENGTH) < 0.0


@pytest.mark.parametrize("size", [0.02, 0.5])
def test_a_crease_is_found_with_its_size_and_is_no_step(size: float) -> None:
    found, _ = measured(crease(size))
    # the force changes along the bond, on both atoms
    assert found["jumps.kink"].value == pytest.approx(size, rel=0.05)
    assert "force on O0" in found["jumps.kink"].cause or "force on H1" in found["jumps.kink"].cause
    assert found["jumps.energy"].value < 1e-4


def test_a_step_and_a_crease_at_one_place_are_a_step_of_the_force() -> None:
    both = Bond(
        lambda d: 0.5 if d > LENGTH else 0.0,
        lambda d: 0.2 * KJMOL_NM_PER_EV_ANGSTROM if d > LENGTH else 0.0,
    )
    found, _ = measured(both)
    assert found["jumps.energy"].value == pytest.approx(0.5 * MEV_PER_KJMOL, rel=1e-3)
    assert found["jumps.force"].value == pytest.approx(0.2, rel=1e-3)


@pytest.mark.parametrize("width_angstrom", [0.03, 0.01])
def test_a_smooth_cliff_is_no_jump(width_angstrom: float) -> None:
    """Steep enough to stand out in the record of the run, and smooth when it is looked into."""
    found, _ = measured(cliff(5.0, width_angstrom))
    assert found["jumps.energy"].value < 1e-6
    assert found["jumps.kink"].value < jumps.FORCE_LIMIT


def test_a_cliff_of_a_thousandth_of_an_angstrom_is_a_kink_to_the_integrator() -> None:
    found, _ = measured(cliff(5.0, 5e-4))
    assert found["jumps.kink"].value > 0.3


def test_the_tip_of_a_cone_is_a_kink_and_a_blunt_one_is_not() -> None:
    """|r . n| smoothed over eps, as norms inside a network are: sqrt(s^2 + eps^2)."""
    strength = 0.2 * KJMOL_NM_PER_EV_ANGSTROM

    def cone(eps_angstrom):
        eps = eps_angstrom * NM_PER_ANGSTROM
        return Bond(
            lambda d: strength * math.hypot(d - LENGTH, eps),
            lambda d: strength * (d - LENGTH) / math.hypot(d - LENGTH, eps),
        )

    sharp, _ = measured(cone(1e-5))
    assert sharp["jumps.kink"].value == pytest.approx(0.4, rel=0.05)
    blunt, _ = measured(cone(0.1))
    assert blunt["jumps.kink"].value < jumps.FORCE_LIMIT


def test_rounding_of_float32_is_no_jump() -> None:
    found, _ = measured(rounded(springs))
    assert found["jumps.energy"].value < 0.1 * jumps.ENERGY_LIMIT
    assert found["jumps.kink"].value < 0.1 * jumps.FORCE_LIMIT


def test_a_step_stands_out_from_the_rounding_of_float32() -> None:
    found, _ = measured(rounded(step(1.0)))
    assert found["jumps.energy"].value == pytest.approx(1.0, rel=0.05)


def test_a_step_that_no_run_has_crossed_is_found_on_the_lines_between_frames() -> None:
    reference = labels(
        springs, water(), temperature_K=[300.0] * 6, trajectory=np.arange(6), spread=0.004
    )
    found, _ = measured(step(4.0), system=labelled(water(), reference), recorded=springs)
    row = found["jumps.energy"]
    assert row.value == pytest.approx(4.0, rel=1e-3)
    assert "on a line between frames" in row.cause


def test_a_hole_in_the_surface_is_infinite() -> None:
    def holed(positions, system=None):
        energy, forces = springs(positions)
        d = np.linalg.norm(positions[1] - positions[0])
        inside = abs(d - LENGTH) < 2e-4
        return (math.nan if inside else energy), forces

    found, _ = measured(holed, recorded=springs)
    assert all(row.value == math.inf for row in found.values())
    assert "NaN in a region" in found["jumps.energy"].cause


def test_roughness_is_the_size_of_a_step_and_forgets_what_is_smooth() -> None:
    t = np.linspace(0.0, 1.0, 60)
    x = np.zeros((60, 1, 3))
    x[:, 0, 0] = t
    energies = 3.0 * t**2
    forces = -6.0 * x
    smooth = jumps.roughness(x, energies, forces)
    assert max(size.max() for size in smooth.values()) < 1e-12
    rough = jumps.roughness(x, energies + 0.7 * (t > 0.5), forces)["energy"]
    assert rough.max() == pytest.approx(0.7)
    k = int(rough.argmax()) + 2
    assert t[k] < 0.5 < t[k + 1]
    stepped = forces + np.where(t > 0.5, 0.4, 0.0)[:, None, None] * np.array([0.6, 0.8, 0.0])
    assert jumps.roughness(x, energies, stepped)["force"].max() == pytest.approx(0.4)


def test_a_run_read_in_pieces_gives_what_it_gives_in_one(monkeypatch) -> None:
    whole, _ = measured(step(2.0))
    monkeypatch.setattr(jumps, "_PIECE", 37)
    pieces, _ = measured(step(2.0))
    assert pieces["jumps.energy"].cause == whole["jumps.energy"].cause
    assert pieces["jumps.energy"].value == whole["jumps.energy"].value


def test_a_run_of_a_few_frames_is_no_obstacle() -> None:
    run = FakeRun([dynamics(springs, 0, n_steps=3)], water().masses)
    evaluator = FakeEvaluator(springs, water())
    found = by_name(jumps.CHECK.measure(Evidence(water(), card(), (run,), evaluator)))
    assert found["jumps.energy"].value < 1e-9
