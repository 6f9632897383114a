"""The ring of a device, which runs on the host as well, against what was put into it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from springs import SpringEngine, context_of, diatomic, triatomic

from omm_mlff.forces.counted_ring import CountedRing
from omm_mlff.forces.making import make_force
from omm_mlff.forces.tap import Ring, Tap


def ring(n_slots, dtype=torch.float64):
    return CountedRing(n_slots, 2, 3, dtype, torch.device("cpu"))


def evaluations(n, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    energies = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return energies, torch.randn(n, 6, 3, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("first", [0, 3, 6])
def test_blocks_come_back_in_order_wherever_the_ring_begins_anew(first, dtype):
    kept = ring(7, dtype)
    energies, forces = evaluations(first + 4, dtype)
    for energy, force in zip(energies, forces, strict=True):
        kept.keep(energy, force)
    got = kept.fetch(first, 4).arrays()
    assert got is not None
    np.testing.assert_array_equal(got[0], energies[first:].numpy())
    np.testing.assert_array_equal(got[1].reshape(4, 6, 3), forces[first:].double().numpy())
    assert kept.n_received == first + 4
    last_energy, last_force = kept.last()
    np.testing.assert_array_equal(last_energy, energies[-1].numpy())
    np.testing.assert_array_equal(last_force.reshape(6, 3), forces[-1].double().numpy())


@pytest.mark.parametrize("n_received", [3, 5, 20])
def test_a_block_in_which_another_number_of_evaluations_came_is_none(n_received):
    kept = ring(8)
    for energy, force in zip(*evaluations(n_received), strict=True):
        kept.keep(energy, force)
    assert kept.fetch(0, 4).arrays() is None


def test_what_is_fetched_stays_while_the_next_block_comes():
    kept = ring(8)
    energies, forces = evaluations(8)
    for k in range(4):
        kept.keep(energies[k], forces[k])
    fetched = kept.fetch(0, 4)
    for k in range(4, 8):
        kept.keep(energies[k], forces[k])
    first = fetched.arrays()
    second = kept.fetch(4, 4).arrays()
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(np.concatenate((first[0], second[0])), energies.numpy())
    np.testing.assert_array_equal(
        np.concatenate((first[1], second[1])).reshape(8, 6, 3), forces.numpy()
    )


def test_the_ring_of_a_device_keeps_what_that_of_the_host_does():
    system, taken = triatomic(), {}
    for counted in (False, True):
        tap = Tap(2, system.n_atoms, n_slots=16, counted=counted)
        engine = SpringEngine(system, 2)
        context = context_of(make_force(engine, periodic=False, tap=tap), system, 2)
        context.getIntegrator().step(3)
        if counted:
            before = tap.n_calls
            context.getIntegrator().step(10)
            assert tap.kept is not None
            taken[counted] = tap.kept.fetch(before, 10).arrays()
        else:
            tap.ring = Ring(10, 2, system.n_atoms)
            context.getIntegrator().step(10)
            taken[counted] = tap.ring.energies, tap.ring.forces
        assert tap.n_calls == 13
        tap.close()
    np.testing.assert_array_equal(taken[True][0], taken[False][0])
    np.testing.assert_array_equal(taken[True][1], taken[False][1])


def test_a_nan_is_kept_and_masked_without_a_look_at_it():
    system = diatomic()
    tap = Tap(3, system.n_atoms, n_slots=4, counted=True)
    engine = SpringEngine(system, 3, breaks_at=0.09, breaks_copy=1)
    context = context_of(make_force(engine, periodic=False, tap=tap), system, 3)
    state = context.getState(energy=True, forces=True)
    assert np.isfinite(state.getPotentialEnergy()._value)
    forces = state.getForces(asNumpy=True)._value.reshape(3, 2, 3)
    assert np.all(forces[1] == 0.0)
    assert np.all(forces[[0, 2], :, 0] != 0.0)
    energies, raw = tap.read()
    assert np.isnan(energies).tolist() == [False, True, False]
    assert np.isnan(raw[1]).all()
    assert tap.alive.tolist() == [True, False, True]
    tap.freeze(0)
    forces = context.getState(forces=True).getForces(asNumpy=True)._value.reshape(3, 2, 3)
    assert np.all(forces[:2] == 0.0)
    assert np.all(forces[2, :, 0] != 0.0)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("where", ["energy", "force"])
def test_whatever_is_not_finite_masks_its_replica_alone(value, where):
    tap = Tap(2, 3, counted=True)
    energies, forces = torch.ones(2, dtype=torch.float64), torch.full((6, 3), 1e38)
    if where == "energy":
        energies[1] = value
    else:
        forces[4, 2] = value
    passed_on, masked = tap.receive(energies, forces, torch.zeros(6, 3))
    assert passed_on.tolist() == [1.0, 0.0]
    assert masked[:3].eq(1e38).all()
    assert not masked[3:].any()
    assert masked.is_contiguous()
    assert masked.dtype == torch.float32
