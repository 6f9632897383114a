"""A device that is lost in the middle ends the run, not its record; and the run goes on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from springs import CalledSpringPotential, triatomic

from omm_mlff import validate
from omm_mlff.dynamics.simulate import simulate
from omm_mlff.errors import PlatformError, ValidationFailure
from omm_mlff.record import rundir
from omm_mlff.record.rundir import RunRecord
from omm_mlff.schema import RunSpec

SYSTEM = triatomic()
SPEC = RunSpec("called-springs", "springs", 0.1, 300.0, 2, 1, platform="Reference")


device = {"calls": 0, "lost_at": 10**9}


class Lost(CalledSpringPotential):
    """Springs on a device that is lost at a certain evaluation, if any."""

    def energies_and_forces(self, positions, system):
        device["calls"] += 1
        if device["calls"] > device["lost_at"]:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return super().energies_and_forces(positions, system)


@pytest.fixture(autouse=True)
def _whole(monkeypatch):
    monkeypatch.setitem(device, "lost_at", 10**9)


def test_what_was_recorded_is_kept_and_the_run_goes_on_bit_by_bit(tmp_path, monkeypatch):
    whole = simulate(SPEC, CalledSpringPotential(), SYSTEM, tmp_path / "whole")
    folder = tmp_path / "run"
    half = dataclasses.replace(SPEC, length_ps=0.05)
    simulate(half, Lost(), SYSTEM, folder)
    monkeypatch.setitem(device, "lost_at", device["calls"] + 60)
    with pytest.raises(ValidationFailure, match=r"device is lost.*kept: go on with --resume"):
        simulate(SPEC, Lost(), SYSTEM, folder, resume=True)
    record = RunRecord.open(folder)
    assert record.status["state"] == "interrupted"
    assert record.events == {}
    assert record.replica(0).n_frames == 100
    monkeypatch.setitem(device, "lost_at", 10**9)
    record = simulate(SPEC, Lost(), SYSTEM, folder, resume=True)
    assert record.status["state"] == "complete"
    for replica in range(2):
        np.testing.assert_array_equal(
            record.replica(replica).positions, whole.replica(replica).positions
        )


PROFILE = """
title = "short"
static_systems = []

[[run]]
system = "springs"
length_ps = 0.05
n_replicas = 2
temperature_K = 300
"""


def test_a_validation_begun_on_a_device_goes_on_elsewhere_only_if_asked(tmp_path):
    profile = tmp_path / "short.toml"
    profile.write_text(PROFILE)

    def go(**options):
        return validate(
            CalledSpringPotential(),
            systems=[SYSTEM],
            profile=profile,
            out=tmp_path / "out",
            **options,
        )

    go(platform="auto")
    (status,) = tmp_path.glob("out/runs/*/status.json")
    path = status.parent / rundir.PROVENANCE_FILE
    rundir.write_json(path, {**rundir.read_json(path), "platform": "CUDA"})
    with pytest.raises(PlatformError, match=r"begun on CUDA.*--platform CPU"):
        go(platform="auto", resume=True)
    assert go(platform="Reference", resume=True).exit_code in (0, 1, 3)
