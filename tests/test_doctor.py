"""The start-up check: what each probe makes of what it finds, and that no probe takes it down."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import openmm
import pytest
from packaging.requirements import Requirement

from omm_mlff import doctor
from omm_mlff.cli.main import main
from omm_mlff.doctor import Diagnosis, Gpu, Probe

HERE = Path(__file__).resolve().parent


@pytest.fixture
def strange(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    import strange_probes

    return strange_probes


@pytest.mark.parametrize(
    ("name", "words", "remedy"),
    [
        ("crash", "died of SIGSEGV", "reinstall"),
        ("abort", "died of SIGABRT: terminate called", "reinstall"),
        ("leave_early", "no message", "reinstall"),
        ("fail", "cannot access PyObject for Tensor", "torch>=2.10,<2.13"),
    ],
)
def test_a_probe_that_dies_is_one_failed_line(
    strange: ModuleType, name: str, words: str, remedy: str
) -> None:
    (found,) = doctor.carry_out(Probe("plugin", getattr(strange, name), isolated=True))
    assert found.subject == "plugin"
    assert found.status == "failed"
    assert words in found.detail
    assert remedy in found.remedy


def test_a_probe_that_hangs_is_stopped(strange: ModuleType) -> None:
    (found,) = doctor.carry_out(Probe("plugin", strange.hang, isolated=True), time_limit_s=1.0)
    assert found.status == "failed"
    assert found.detail == "no answer within 1 s"


def test_a_plugin_that_prints_does_not_garble_the_answer(strange: ModuleType) -> None:
    probe = Probe("plugin", strange.chatter, ("a word",), isolated=True)
    assert doctor.carry_out(probe) == [Diagnosis("chatter", "ok", "a word")]


def test_a_probe_in_this_process_that_breaks_is_one_failed_line(strange: ModuleType) -> None:
    (found,) = doctor.carry_out(Probe("packages", strange.fail))
    assert found.status == "failed"
    assert found.detail == "RuntimeError: cannot access PyObject for Tensor"


INSTALLED = {
    "omm-mlff": "0.1.0",
    "openmm": "8.6.1",
    "torch": "2.12.1",
    "acellera-openmmtorch-cpu": "1.10",
}
WANTED = {
    "omm-mlff": [Requirement("openmm>=8.4"), Requirement("torch>=2.10")],
    "acellera-openmmtorch-cpu": [Requirement("openmm"), Requirement("torch<2.13,>=2.10")],
}


def by_subject(found: list[Diagnosis]) -> dict[str, Diagnosis]:
    assert len({row.subject for row in found}) == len(found)
    return {row.subject: row for row in found}


def test_versions_that_fit_are_ok() -> None:
    assert doctor.compare_versions(INSTALLED, WANTED) == [
        Diagnosis("openmm", "ok", "8.6.1"),
        Diagnosis("torch", "ok", "2.12.1"),
    ]


def test_a_torch_too_new_for_the_plugin_fails_with_a_version_that_fits() -> None:
    found = by_subject(doctor.compare_versions({**INSTALLED, "torch": "2.13.0"}, WANTED))
    assert found["openmm"].status == "ok"
    assert found["torch"].status == "failed"
    assert "2.13.0 is installed; acellera-openmmtorch-cpu 1.10 wants" in found["torch"].detail
    specifier = Requirement(found["torch"].remedy.split("'")[1]).specifier
    assert "2.12.1" in specifier
    assert "2.13.0" not in specifier


def test_a_local_version_of_torch_fits() -> None:
    found = by_subject(doctor.compare_versions({**INSTALLED, "torch": "2.12.1+cu130"}, WANTED))
    assert found["torch"].status == "ok"


def test_a_missing_package_fails_and_one_for_another_python_does_not() -> None:
    wanted = {
        "omm-mlff": [Requirement("tables>=3.10"), Requirement("old; python_version < '3.9'")],
        "tables": [Requirement("blosc2>=2.3")],
    }
    found = by_subject(
        doctor.compare_versions({"tables": "3.11"}, wanted | {"omm-mlff": wanted["omm-mlff"][:1]})
    )
    assert found["tables"].status == "ok"
    assert found["blosc2"].status == "failed"
    assert "not installed; tables 3.11 wants blosc2>=2.3" in found["blosc2"].detail


def test_this_environment_has_what_the_package_requires() -> None:
    found = doctor.look_at_packages()
    assert {row.subject for row in found} >= {"openmm", "torch", "mdtraj", "numpy"}
    assert [row for row in found if row.status != "ok"] == []


@pytest.mark.parametrize(
    ("names", "has_gpu", "status", "words"),
    [
        ([], False, "warning", "PythonForce"),
        (["acellera-openmmtorch-cpu"], False, "ok", "1.10"),
        (["acellera-openmmtorch-cpu"], True, "warning", "does not use it"),
        (["acellera-openmmtorch-cu13"], True, "ok", "1.10"),
        (["openmmtorch"], False, "warning", "CUDA 12"),
        (["acellera-openmmtorch-cpu", "acellera-openmmtorch-cu12"], True, "failed", "overwrite"),
        (["acellera-openmmtorch-cu13", "openmmtorch"], True, "failed", "overwrite"),
    ],
)
def test_exactly_one_plugin_that_suits_the_machine_is_ok(
    names: list[str], has_gpu: bool, status: str, words: str
) -> None:
    found = doctor.judge_plugins(dict.fromkeys(names, "1.10") | {"torch": "2.12.1"}, has_gpu)
    assert found.status == status
    assert words in found.detail
    if status == "failed":
        assert all(name in found.remedy for name in names)
    if status != "ok":
        assert ("cuda13" if has_gpu else "cpu") in found.remedy


def test_two_plugins_in_the_environment_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("acellera_openmmtorch_cu12", "acellera_openmmtorch_cu13"):
        folder = tmp_path / f"{name}-1.10.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.10\n")
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = doctor.look_at_plugin()
    assert found.status == "failed"
    assert "acellera-openmmtorch-cu12 1.10, acellera-openmmtorch-cu13 1.10" in found.detail


NVIDIA_SMI = (
    "NVIDIA H100 80GB HBM3, 580.82.07, 80994, 81559\nNVIDIA H100 80GB HBM3, 580.82.07, 12, 81559\n"
)


def test_the_drivers_table_is_read() -> None:
    first, second = doctor.parse_gpus(NVIDIA_SMI)
    assert first == Gpu("NVIDIA H100 80GB HBM3", "580.82.07", 80994, 81559)
    assert second.free_MiB == 12
    assert doctor.parse_gpus("No devices were found\n") == []
    assert doctor.parse_gpus("Some GPU, 1.0, [N/A], [N/A]\n") == []


def test_the_drivers_table_tells_the_compute_capability() -> None:
    (gpu,) = doctor.parse_gpus("NVIDIA H100 80GB HBM3, 580.82.07, 80994, 81559, 9.0\n")
    assert gpu.capability == "9.0"
    (found,) = doctor.judge_gpus([gpu])
    assert found.detail == (
        "NVIDIA H100 80GB HBM3, compute capability 9.0, driver 580.82.07, 80994 of 81559 MiB free"
    )


@pytest.mark.parametrize(
    ("capability", "failure", "has_gpu", "status", "words"),
    [
        ("9.0", "", True, "ok", "13.0 compiles for sm_75 to sm_121"),
        ("12.9", "", True, "warning", "does not compile for compute capability 12.9"),
        ("", "No module named 'cuda'", False, "ok", "no GPU here needs it"),
        ("9.0", "No module named 'cuda'", True, "warning", "not here: No module"),
    ],
)
def test_the_compiler_of_kernels_must_know_the_gpu(
    capability: str, failure: str, has_gpu: bool, status: str, words: str
) -> None:
    capabilities = [capability] if capability else []
    known = ["90", "75", "121"]
    found = doctor.judge_nvrtc("13.0", known, capabilities, failure, has_gpu=has_gpu)
    assert (found.status, words in found.detail) == (status, True)
    assert bool(found.remedy) == (status != "ok")


def test_the_compiler_of_kernels_is_asked() -> None:
    (found,) = doctor.look_at_nvrtc()
    assert found.subject == "NVRTC"
    assert found.status == "ok", found


def test_a_full_gpu_is_a_warning() -> None:
    found = doctor.judge_gpus(doctor.parse_gpus(NVIDIA_SMI))
    assert [row.status for row in found] == ["ok", "warning"]
    assert "80994 of 81559 MiB free" in found[0].detail
    assert "--platform CPU" in found[1].remedy


def test_no_gpu_is_no_failure() -> None:
    assert [row.status for row in doctor.judge_gpus([])] == ["ok"]


@pytest.mark.parametrize(
    ("script", "count"),
    [
        ("echo 'A GPU, 1.2, 3, 4, 9.0'", 1),
        ("case $1 in *compute_cap*) exit 2;; esac; echo 'A GPU, 1.2, 3, 4'", 1),
        ("exit 9", 0),
    ],
)
def test_the_driver_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, count: int
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert len(doctor.gpus()) == count


OPENCL = (
    "Error loading library /x/lib/libOpenMM{}.so: {}: cannot open shared object file: No such file"
)
FAILURES = [
    OPENCL.format("OpenCL", "libOpenCL.so.1"),
    OPENCL.format("TorchOpenCL", "libOpenCL.so.1"),
    OPENCL.format("AmoebaOpenCL", "libOpenMMOpenCL.so"),
    OPENCL.format("TorchReference", "libtorch.so"),
]


def test_each_cause_of_a_failed_platform_is_named_once_with_its_remedy() -> None:
    found = doctor.judge_platforms(["Reference", "CPU"], FAILURES, has_gpu=True)
    assert [row.status for row in found] == ["ok", "ok", "warning", "warning"]
    assert found[2].subject == "libOpenMMOpenCL.so, libOpenMMTorchOpenCL.so"
    assert "libOpenCL.so.1: cannot open" in found[2].detail
    assert "OpenCL loader" in found[2].remedy
    assert "torch>=2.10,<2.13" in found[3].remedy


def test_a_gpu_library_that_no_gpu_needs_is_ok() -> None:
    found = doctor.judge_platforms(["Reference", "CPU"], FAILURES, has_gpu=False)
    assert [row.status for row in found] == ["ok", "ok", "ok", "warning"]


def test_an_openmm_without_its_own_platforms_has_failed() -> None:
    found = doctor.judge_platforms(["Reference"], [], has_gpu=False)
    assert [(row.subject, row.status) for row in found] == [
        ("platform Reference", "ok"),
        ("platform CPU", "failed"),
    ]


POSITIONS = np.array([[0.1, -0.2, 0.3], [0.0, 0.4, -0.1]])


def test_a_spring_has_twice_k_x_for_a_force() -> None:
    energy = 1000.0 * 0.31
    good = doctor.judge_spring("spring", POSITIONS, energy, -2000.0 * POSITIONS)
    assert good.status == "ok"
    # what the plugin's own documentation pairs with E = k x^2
    halved = doctor.judge_spring("spring", POSITIONS, energy, -500.0 * POSITIONS)
    assert halved.status == "failed"
    shifted = doctor.judge_spring("spring", POSITIONS, energy + 1.0, -2000.0 * POSITIONS)
    assert shifted.status == "failed"
    broken = doctor.judge_spring("spring", POSITIONS, float("nan"), -2000.0 * POSITIONS)
    assert broken.status == "failed"


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_a_torch_force_computes_on(platform: str) -> None:
    (found,) = doctor.look_at_torch_force(platform)
    assert found.status == "ok", found


@pytest.mark.cuda
def test_a_torch_force_computes_on_cuda() -> None:
    (found,) = doctor.look_at_torch_force("CUDA")
    assert found.status == "ok", found


def test_a_platform_that_cannot_make_a_context_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise openmm.OpenMMException("Error initializing CUDA: CUDA_ERROR_OUT_OF_MEMORY (2)")

    monkeypatch.setattr(doctor, "_evaluated", refuse)
    (found,) = doctor.look_at_torch_force("CUDA")
    assert found.status == "warning"
    assert "nvidia-smi" in found.remedy
    (found,) = doctor.look_at_torch_force("CPU")
    assert found.status == "failed"


def test_the_fallback_computes() -> None:
    (found,) = doctor.look_at_python_force()
    assert found.status == "ok", found


def test_torch_is_tried() -> None:
    (found,) = doctor.look_at_torch()
    assert found.status == "ok", found


def test_the_platforms_of_this_machine_are_listed() -> None:
    found = by_subject(doctor.look_at_platforms())
    assert found["platform Reference"].status == "ok"
    assert found["platform CPU"].status == "ok"


def test_every_shipped_system_loads() -> None:
    found = by_subject(doctor.look_at_systems())
    assert [row for row in found.values() if row.status != "ok"] == []
    assert found["system water"].detail.startswith("3 atoms")


def test_every_shipped_checkpoint_loads() -> None:
    found = by_subject(doctor.look_at_checkpoints())
    assert [row for row in found.values() if row.status != "ok"] == []
    assert set(found) >= {f"checkpoint {name}" for name in ("original", "tiny", "ultra-tiny")}


def test_a_damaged_checkpoint_is_one_failed_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "card.json").write_text('{"name": "tiny"')
    for module in ("omm_mlff.data", "omm_mlff.students.checkpoint"):
        monkeypatch.setattr(f"{module}.data_folder", lambda kind: tmp_path)
    (found,) = doctor.look_at_checkpoints()
    assert (found.subject, found.status) == ("checkpoint tiny", "failed")
    assert "not valid JSON" in found.detail


@pytest.mark.parametrize(("free_MiB", "status"), [(100, "failed"), (1000, "warning"), (9000, "ok")])
def test_the_disk_needs_room(free_MiB: int, status: str) -> None:
    assert doctor.judge_disk(Path("/runs"), free_MiB).status == status


def test_the_disk_is_written_to(tmp_path: Path) -> None:
    (found,) = doctor.look_at_disk(str(tmp_path))
    assert found.status in ("ok", "warning")
    (found,) = doctor.look_at_disk("/proc")
    assert found.status == "failed"
    assert "cannot write to /proc" in found.detail


def test_the_worst_line_decides_the_exit_code() -> None:
    lines = [Diagnosis("a", "ok", ""), Diagnosis("b", "warning", ""), Diagnosis("c", "failed", "")]
    assert [doctor.exit_code(lines[:n]) for n in range(4)] == [0, 0, 0, 4]
    assert [doctor.overall(lines[:n]) for n in range(4)] == ["ok", "ok", "warning", "failed"]


def three_lines(folder: Path, time_limit_s: float = 0.0) -> Iterator[Diagnosis]:
    yield Diagnosis("torch", "ok", "2.12.1")
    yield Diagnosis("disk", "warning", "little", "free some")
    yield Diagnosis("checkpoint tiny", "failed", "corrupt", "reinstall")


def test_the_command_prints_line_by_line_and_ends_in_4_when_one_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", three_lines)
    assert main(["doctor"]) == 4
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ok", "torch:", "2.12.1"]
    assert lines[2].strip() == "-> free some"
    assert lines[-1] == "1 ok, 1 warning, 1 failed"


def test_the_command_prints_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda folder: list(three_lines(folder))[:2])
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == 1
    assert report["status"] == "warning"
    assert report["diagnoses"][1] == {
        "subject": "disk",
        "status": "warning",
        "detail": "little",
        "remedy": "free some",
    }


@pytest.mark.slow
def test_this_installation_is_sound(tmp_path: Path) -> None:
    found = by_subject(list(doctor.examine(tmp_path)))
    assert [row for row in found.values() if row.status == "failed"] == []
    assert "TorchForce on Reference" in found
    assert "TorchForce on CPU" in found


def test_asking_the_doctor_imports_nothing_that_could_crash() -> None:
    code = "import sys, omm_mlff.doctor; sys.exit(bool({'torch', 'openmm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE.parent, check=False)
    assert done.returncode == 0


def test_the_compiled_engine_is_tried_and_its_absence_is_a_warning(monkeypatch):
    from collections import OrderedDict

    from omm_mlff.doctor import look_at_compiled_engine
    from omm_mlff.students.kernel import build

    (found,) = look_at_compiled_engine()
    assert (found.status, found.remedy) == ("ok", "")
    monkeypatch.setenv("CXX", "no-such-compiler")
    build.library.cache_clear()
    monkeypatch.setattr("omm_mlff.students.compiled._models", OrderedDict())
    monkeypatch.setattr("omm_mlff.students.compiled._known", {})
    try:
        (found,) = look_at_compiled_engine()
    finally:
        build.library.cache_clear()
    assert found.status == "warning"
    assert "no C++ compiler here" in found.detail
    assert "apt-get install g++" in found.remedy
