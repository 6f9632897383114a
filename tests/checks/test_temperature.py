"""Temperature: kinetic energies whose temperature is known."""

from __future__ import annotations

import numpy as np
import pytest
from checks.fakes import FakeReplica, FakeRun, by_name, card, water

from omm_mlff.checks import temperature
from omm_mlff.checks.base import Evidence
from omm_mlff.units import BOLTZMANN


def replica(first_half_K: float, second_half_K: float) -> FakeReplica:
    kelvin = np.r_[np.full(50, first_half_K), np.full(50, second_half_K)]
    return FakeReplica(3, 5e-4, kinetic_energy=0.5 * 3 * BOLTZMANN * kelvin)


def measured(*replicas: FakeReplica, target_K: float = 300.0):
    run = FakeRun(list(replicas), [16.0, 1.0, 1.0], target_K=target_K, n_dof=3)
    return by_name(temperature.CHECK.measure(Evidence(water(), card(), (run,))))


def test_the_second_half_counts_and_the_first_does_not() -> None:
    found = measured(replica(600.0, 310.0), replica(600.0, 320.0), replica(600.0, 330.0))
    assert found["nve.temperature"].value == pytest.approx(320.0)
    assert found["nve.temperature_error"].value == pytest.approx(100.0 * 20.0 / 300.0)


def test_the_interval_is_that_of_the_replicas() -> None:
    found = measured(replica(0.0, 310.0), replica(0.0, 320.0), replica(0.0, 330.0))
    row = found["nve.temperature"]
    assert row.standard_error == pytest.approx(10.0 / np.sqrt(3.0))
    assert row.dof == 2
    error = found["nve.temperature_error"]
    assert error.ci_low == pytest.approx(100.0 * (row.ci_low / 300.0 - 1.0))


def test_too_cold_is_a_negative_error() -> None:
    found = measured(replica(0.0, 90.0), replica(0.0, 80.0), target_K=100.0)
    assert found["nve.temperature_error"].value == pytest.approx(-15.0)
