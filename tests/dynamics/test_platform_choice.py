"""Auto takes the fastest platform for this very potential; a named one is taken or refused."""

from __future__ import annotations

import dataclasses
import functools
import logging

import openmm
import pytest
from springs import CalledSpringPotential, NativeSpringPotential, SpringPotential, triatomic

from omm_mlff.dynamics import platform_choice
from omm_mlff.dynamics.platform_choice import Choice, choose, seconds_per_step, where_runs_are
from omm_mlff.dynamics.simulate import simulate
from omm_mlff.errors import MissingPackageError, PlatformError
from omm_mlff.forces import platforms
from omm_mlff.record import rundir
from omm_mlff.record.rundir import RunRecord
from omm_mlff.schema import RunSpec

SYSTEM = triatomic()
SPEC = RunSpec("springs", "springs", 0.02, 300.0, 2, 1, platform="Reference")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(platform_choice, "_known", {})
    monkeypatch.setattr(platform_choice, "_said", set())
    platforms.forget_what_failed()
    yield
    platforms.forget_what_failed()


@pytest.fixture
def with_a_gpu(monkeypatch):
    """CUDA is there and works; what a step takes where is as the test says."""

    def told(**seconds):
        def step(potential, system, name, n_replicas, precision, *, give_up_s=float("inf")):
            calls.append((name, n_replicas))
            if isinstance(seconds[name], Exception):
                raise seconds[name]
            return seconds[name]

        calls = []
        monkeypatch.setattr(platform_choice, "seconds_per_step", step)
        cuda = functools.cache(lambda requested, n: "CUDA")
        monkeypatch.setattr(platforms, "choose_platform", cuda)
        monkeypatch.setattr(platforms, "cuda_failure", lambda: "")
        monkeypatch.setattr(platforms, "host_platform", functools.cache(lambda n: "Reference"))
        return calls

    return told


def test_where_the_device_loses_the_host_is_taken_and_said(with_a_gpu, caplog):
    with_a_gpu(CUDA=4e-4, Reference=2e-5)
    with caplog.at_level(logging.WARNING):
        found = choose(SpringPotential(), SYSTEM)
    assert found.platform == "Reference"
    (line,) = found.notices
    assert "Reference takes 0.02 ms a step, CUDA 0.4" in line
    assert "--platform CUDA insists" in line
    assert caplog.messages == [f"notice: {line}"]


@pytest.mark.parametrize("host_s", [3.7e-4, 4e-4, 1.0])
def test_where_the_device_is_as_fast_it_is_taken_without_a_word(with_a_gpu, host_s):
    with_a_gpu(CUDA=4e-4, Reference=host_s)
    assert choose(SpringPotential(), SYSTEM) == Choice("CUDA")


def test_it_is_measured_once_for_a_potential_a_system_and_so_many_replicas(with_a_gpu):
    calls = with_a_gpu(CUDA=4e-4, Reference=1.0)
    for _ in range(2):
        choose(SpringPotential(), SYSTEM, n_replicas=8)
    assert calls == [("CUDA", 8), ("Reference", 8)]
    choose(SpringPotential(), SYSTEM, n_replicas=1)
    choose(SpringPotential(stiffness=1.0), SYSTEM, n_replicas=8)
    assert len(calls) == 6


def test_a_device_without_memory_is_passed_over_and_said(with_a_gpu):
    with_a_gpu(CUDA=openmm.OpenMMException("Error: CUDA_ERROR_OUT_OF_MEMORY (2)"), Reference=1.0)
    found = choose(SpringPotential(), SYSTEM)
    assert found.platform == "Reference"
    assert "no memory is free on the device" in found.notices[0]


def test_a_host_that_cannot_serve_it_leaves_the_device(with_a_gpu):
    with_a_gpu(CUDA=1.0, Reference=RuntimeError("not enough memory"))
    assert choose(SpringPotential(), SYSTEM) == Choice("CUDA")


def test_without_a_device_nothing_is_measured(monkeypatch):
    def never(*_, **__):
        raise AssertionError("measured for nothing")

    monkeypatch.setattr(platform_choice, "seconds_per_step", never)
    assert choose(SpringPotential(), SYSTEM) == Choice(platforms.choose_platform("auto", 3))


def test_a_driver_that_is_too_old_is_said_and_the_host_goes_on(monkeypatch, caplog):
    message = "Error: CUDA driver version is insufficient for CUDA runtime version"
    library = f"Error loading library /x/lib/plugins/libOpenMMCUDA.so: {message}"
    monkeypatch.setattr(openmm.Platform, "getPluginLoadFailures", staticmethod(lambda: (library,)))
    with caplog.at_level(logging.WARNING):
        found = choose(SpringPotential(), SYSTEM)
    assert found.platform in ("Reference", "CPU")
    assert "driver is older" in found.notices[0]
    assert "update the driver" in found.notices[0]
    with pytest.raises(PlatformError, match=r"driver is older.*update the driver"):
        choose(SpringPotential(), SYSTEM, "CUDA")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (openmm.OpenMMException("CUDA_ERROR_OUT_OF_MEMORY (2)"), "no memory is free"),
        (RuntimeError("CUDA error: no kernel image is available"), "compute capability"),
        (openmm.OpenMMException("Error: CUDA_ERROR_NO_DEVICE (100)"), "no CUDA device"),
    ],
)
def test_a_device_that_does_not_compute_is_passed_over_by_auto_and_refused_by_name(
    monkeypatch, tmp_path, error, cause
):
    whole = platforms.spring_context

    def spring(name, *arguments):
        if name == "CUDA":
            raise error
        return whole(name, *arguments)

    monkeypatch.setattr(platforms, "installed_platforms", lambda: ["CUDA", "CPU", "Reference"])
    monkeypatch.setattr(platforms, "spring_context", spring)
    spec = dataclasses.replace(SPEC, platform="auto")
    record = simulate(spec, SpringPotential(), SYSTEM, tmp_path / "run")
    assert record.provenance["platform"] in ("CPU", "Reference")
    (notice,) = record.provenance["notices"]
    assert notice.startswith("CUDA is passed over: ")
    assert cause in notice
    with pytest.raises(PlatformError, match=cause):
        simulate(
            dataclasses.replace(SPEC, platform="CUDA"), SpringPotential(), SYSTEM, tmp_path / "b"
        )
    # What was known of the first part is known of the whole.
    longer = dataclasses.replace(spec, length_ps=0.04)
    again = simulate(longer, SpringPotential(), SYSTEM, tmp_path / "run", resume=True)
    assert again.provenance["notices"] == [notice]


def test_a_step_is_timed_with_the_potential_itself():
    for potential in (SpringPotential(), NativeSpringPotential()):
        assert 1e-7 < seconds_per_step(potential, SYSTEM, "Reference", 1, "double") < 1.0
    called = CalledSpringPotential(objects=lambda frame: ValueError("asked"))
    seconds_per_step(called, SYSTEM, "Reference", 2, "double")  # its errors end no process


def test_a_host_that_is_far_behind_is_not_asked_for_more():
    steps = []

    def counted(frame):
        steps.append(1)

    potential = CalledSpringPotential(objects=counted)
    seconds_per_step(potential, SYSTEM, "Reference", 1, "double", give_up_s=0.0)
    few = len(steps)
    seconds_per_step(potential, SYSTEM, "Reference", 1, "double")
    assert few < 10 < len(steps) - few


def absent(*_):
    raise MissingPackageError("openmm-torch", "TorchForce", "pip install it", "no module simtk")


def test_a_named_platform_without_torch_force_is_an_error_unless_a_fallback_is_allowed(
    monkeypatch, tmp_path
):
    monkeypatch.setattr("omm_mlff.forces.plugin.load_plugin", absent)
    with pytest.raises(PlatformError, match=r"'Reference' was asked for.*no module simtk.*--allow"):
        simulate(SPEC, SpringPotential(), SYSTEM, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    record = simulate(SPEC, SpringPotential(), SYSTEM, tmp_path / "run", allow_fallback=True)
    assert record.provenance["force"] == "pythonforce"
    (notice,) = record.provenance["notices"]
    assert "PythonForce computes in the place of TorchForce" in notice
    assert "no module simtk" in notice


def test_by_auto_a_fallback_goes_on_and_is_said(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr("omm_mlff.forces.plugin.load_plugin", absent)
    spec = dataclasses.replace(SPEC, platform="auto")
    with caplog.at_level(logging.WARNING):
        record = simulate(spec, SpringPotential(), SYSTEM, tmp_path / "run")
    assert [f"notice: {line}" for line in record.provenance["notices"]] == caplog.messages


@pytest.mark.parametrize("potential", [CalledSpringPotential(), NativeSpringPotential()])
def test_what_needs_no_plugin_is_no_fallback(monkeypatch, tmp_path, potential):
    monkeypatch.setattr("omm_mlff.forces.plugin.load_plugin", absent)
    record = simulate(SPEC, potential, SYSTEM, tmp_path / "run")
    assert record.provenance["notices"] == []


def begun_on_cuda(folder):
    """A run of which the record says that it was begun on CUDA."""
    spec = dataclasses.replace(SPEC, platform="auto")
    record = simulate(spec, SpringPotential(), SYSTEM, folder)
    rundir.write_json(
        folder / rundir.PROVENANCE_FILE,
        {**record.provenance, "platform": "CUDA", "engine": "scripted"},
    )
    return dataclasses.replace(spec, length_ps=0.04)


def test_a_run_begun_on_cuda_goes_on_elsewhere_only_if_asked(tmp_path):
    longer = begun_on_cuda(tmp_path / "run")
    with pytest.raises(PlatformError, match=r"begun on CUDA.*name a platform.*--platform CPU"):
        simulate(longer, SpringPotential(), SYSTEM, tmp_path / "run", resume=True)
    asked = dataclasses.replace(longer, platform="Reference")
    record = simulate(asked, SpringPotential(), SYSTEM, tmp_path / "run", resume=True)
    assert record.replica(0).n_frames == 80
    assert record.provenance["platform"] == "Reference"
    assert record.provenance["earlier"] == [
        {"platform": "CUDA", "force": "torchforce", "engine": "scripted"}
    ]


def test_by_auto_a_run_goes_on_where_it_was(tmp_path, monkeypatch):
    spec = dataclasses.replace(SPEC, platform="CPU")
    simulate(spec, SpringPotential(), SYSTEM, tmp_path / "run")
    longer = dataclasses.replace(spec, platform="auto", length_ps=0.04)
    record = simulate(longer, SpringPotential(), SYSTEM, tmp_path / "run", resume=True)
    assert record.provenance["platform"] == "CPU"
    assert record.provenance["earlier"] == []


def test_frames_are_evaluated_where_the_runs_are():
    assert where_runs_are("auto", ["Reference", "CUDA"]) == "CUDA"
    assert where_runs_are("auto", ["Reference"]) == "auto"
    assert where_runs_are("CPU", ["CUDA"]) == "CPU"


@pytest.mark.cuda
def test_auto_takes_the_host_for_three_atoms_and_the_device_for_many(tmp_path):
    from omm_mlff.potentials.registry import load_potential
    from omm_mlff.systems import load_system

    tiny = load_potential("tiny")
    water, dipeptide = load_system("water"), load_system("alanine-dipeptide")
    few = choose(tiny, water)
    assert few.platform in ("Reference", "CPU")
    assert "CUDA" in few.notices[0]
    assert choose(load_potential("original"), dipeptide, n_replicas=256).platform == "CUDA"


@pytest.mark.cuda
@pytest.mark.parametrize("platform", ["CUDA", "Reference"])
def test_the_engine_named_is_the_one_that_evaluated(tmp_path, platform):
    import torch

    from omm_mlff.potentials.registry import load_potential
    from omm_mlff.systems import load_system

    spec = RunSpec("tiny", "water", 0.01, 300.0, 2, 1, platform=platform)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.max_memory_allocated()
    record = simulate(spec, load_potential("tiny"), load_system("water"), tmp_path / "run")
    used = torch.cuda.max_memory_allocated() > before
    assert used == (platform == "CUDA")
    assert record.provenance["platform"] == platform
    assert record.provenance["engine"] == f"compiled ({'CUDA' if used else 'C++'})"
    assert ("device" in record.provenance) == (platform == "CUDA")


@pytest.mark.cuda
def test_a_device_is_taken_by_its_index_and_one_that_is_not_there_refused(tmp_path):
    import torch

    spec = dataclasses.replace(SPEC, platform="CUDA")
    last = torch.cuda.device_count() - 1
    with platforms.on_device("CUDA", last):
        record = simulate(spec, SpringPotential(), SYSTEM, tmp_path / "run")
    assert record.provenance["device"]["index"] == str(last)
    assert record.provenance["device"]["name"]
    with (
        pytest.raises(PlatformError, match="no CUDA device"),
        platforms.on_device("CUDA", last + 1),
    ):
        pass
    assert RunRecord.open(tmp_path / "run").replica(0).n_frames == 40
