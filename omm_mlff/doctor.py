"""The start-up check: can this installation run what it will be asked to?

A probe is a function that returns diagnoses. Whatever loads torch, OpenMM or the plugin is probed
in a process of its own with a time limit: a plugin that aborts takes only its own probe down. So
nothing heavy is imported at the top of this module.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packaging.requirements import Requirement

from omm_mlff.data import shipped_names
from omm_mlff.errors import OmmMlffError
from omm_mlff.units import BYTES_PER_MIB

if TYPE_CHECKING:
    import openmm

Status = Literal["ok", "warning", "failed"]

PLUGINS = (
    "acellera-openmmtorch-cpu",
    "acellera-openmmtorch-cu12",
    "acellera-openmmtorch-cu13",
    "openmmtorch",
)
"""Distributions that bring openmm-torch. They share files: two at once overwrite each other."""

TIME_LIMIT_S = 180.0
LITTLE_DISK_MIB = 5000
TOO_LITTLE_DISK_MIB = 500
LITTLE_GPU_MEMORY_MIB = 1000

_SPRING = 1000.0  # kJ/mol/nm^2
_FORCE_TOLERANCE = 1e-4  # relative; the GPU platforms compute in single precision by default


@dataclass(frozen=True)
class Diagnosis:
    """One line of the start-up check.

    Attributes
    ----------
    subject : what was looked at, such as "torch"
    detail : what was found
    remedy : what to do about it; empty when ok
    """

    subject: str
    status: Status
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Probe:
    """One thing to look at.

    Attributes
    ----------
    subject : stands in the report if the probe itself dies
    look : returns diagnoses; an isolated one is a function of a module that can be imported
    arguments : strings, passed to `look`
    isolated : run in a process of its own
    """

    subject: str
    look: Callable[..., list[Diagnosis]]
    arguments: tuple[str, ...] = ()
    isolated: bool = False


def examine(folder: Path, time_limit_s: float = TIME_LIMIT_S) -> Iterator[Diagnosis]:
    """Run every probe, in an order in which a first failure explains the later ones.

    Parameters
    ----------
    folder : where runs would be written
    time_limit_s : for each probe that has a process of its own
    """
    names: list[str] = []
    first = [
        Probe("python", look_at_python),
        Probe("packages", look_at_packages),
        Probe("plugin", look_at_plugin),
        Probe("GPU", look_at_gpu),
        Probe("torch", look_at_torch, isolated=True),
        Probe("NVRTC", look_at_nvrtc, isolated=True),
        Probe("platforms", look_at_platforms, isolated=True),
    ]
    for probe in first:
        for diagnosis in carry_out(probe, time_limit_s):
            if diagnosis.subject.startswith("platform ") and diagnosis.status == "ok":
                names.append(diagnosis.subject.removeprefix("platform "))
            yield diagnosis
    rest = [
        *(Probe(f"TorchForce on {name}", look_at_torch_force, (name,), True) for name in names),
        Probe("PythonForce", look_at_python_force, isolated=True),
        Probe("checkpoints", look_at_checkpoints, isolated=True),
        Probe("compiled engine", look_at_compiled_engine, isolated=True),
        Probe("systems", look_at_systems, isolated=True),
        Probe("disk", look_at_disk, (str(folder),)),
    ]
    for probe in rest:
        yield from carry_out(probe, time_limit_s)


def overall(diagnoses: Sequence[Diagnosis]) -> Status:
    """The worst status among them."""
    statuses = {diagnosis.status for diagnosis in diagnoses}
    return "failed" if "failed" in statuses else "warning" if "warning" in statuses else "ok"


def exit_code(diagnoses: Sequence[Diagnosis]) -> int:
    """0 where nothing failed, else 4: a validation here would fail, whatever the model."""
    return 4 if overall(diagnoses) == "failed" else 0


def carry_out(probe: Probe, time_limit_s: float = TIME_LIMIT_S) -> list[Diagnosis]:
    """The diagnoses of one probe; never an exception, whatever the probe does."""
    if probe.isolated:
        return _in_a_process(probe, time_limit_s)
    try:
        return probe.look(*probe.arguments)
    except Exception as error:  # a probe that breaks is a finding about this installation
        return [_broken(probe.subject, f"{type(error).__name__}: {error}")]


# What needs no process of its own


def look_at_python() -> list[Diagnosis]:
    """The interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return [
            Diagnosis(
                "python", "failed", f"{version}; 3.11 to 3.13 is needed", "use another Python"
            )
        ]
    return [Diagnosis("python", "ok", f"{version} ({sys.executable})")]


def look_at_packages() -> list[Diagnosis]:
    """Each required distribution, and whether it satisfies everybody that is installed with it."""
    installed = installed_versions()
    wanted = {"omm-mlff": own_requirements(installed)}
    for name in installed:
        if name in PLUGINS or any(name == _key(row.name) for row in wanted["omm-mlff"]):
            wanted[name] = [Requirement(row) for row in metadata.requires(name) or ()]
    return compare_versions(installed, wanted)


def compare_versions(
    installed: Mapping[str, str], wanted: Mapping[str, Sequence[Requirement]]
) -> list[Diagnosis]:
    """Which requirement is unmet, for every distribution that `omm-mlff` requires.

    Parameters
    ----------
    installed : version by normalised name
    wanted : requirements by the name of who has them; those of "omm-mlff" are what is reported
    """
    complaints: dict[str, list[tuple[str, Requirement]]] = {}
    for owner, requirements in wanted.items():
        for row in requirements:
            if row.marker is not None and not row.marker.evaluate({"extra": ""}):
                continue
            version = installed.get(_key(row.name))
            if version is None or not row.specifier.contains(version, prereleases=True):
                complaints.setdefault(_key(row.name), []).append((owner, row))
    reported = dict.fromkeys([*(_key(row.name) for row in wanted["omm-mlff"]), *complaints])
    diagnoses = []
    for name in reported:
        rows = complaints.get(name, [])
        if not rows:
            diagnoses.append(Diagnosis(name, "ok", installed[name]))
            continue
        have = f"{installed[name]} is installed" if name in installed else "not installed"
        wants = "; ".join(
            f"{owner} {installed.get(owner, '')}".strip() + f" wants {row.name}{row.specifier}"
            for owner, row in rows
        )
        both = ",".join(sorted({str(row.specifier) for _, row in rows} - {""}))
        diagnoses.append(
            Diagnosis(name, "failed", f"{have}; {wants}", f"pip install '{name}{both}'")
        )
    return diagnoses


def own_requirements(installed: Mapping[str, str]) -> list[Requirement]:
    """What omm-mlff itself requires: from its metadata, else from the checkout it runs in."""
    if "omm-mlff" in installed:
        return [
            row
            for row in map(Requirement, metadata.requires("omm-mlff") or ())
            if row.marker is None or row.marker.evaluate({"extra": ""})
        ]
    checkout = Path(__file__).resolve().parents[1] / "pyproject.toml"
    rows = tomllib.loads(checkout.read_text(encoding="utf-8"))["project"]["dependencies"]
    return [Requirement(row) for row in rows]


def installed_versions() -> dict[str, str]:
    """Version of every installed distribution, by normalised name."""
    return {_key(row.metadata["Name"]): row.version for row in metadata.distributions()}


def look_at_plugin() -> list[Diagnosis]:
    """Which of the wheels that bring openmm-torch is here, and whether only one is."""
    return [judge_plugins(installed_versions(), has_gpu=bool(gpus()))]


def judge_plugins(installed: Mapping[str, str], has_gpu: bool) -> Diagnosis:
    """Whether the installed plugin distributions can work.

    Parameters
    ----------
    installed : version by normalised name
    has_gpu : whether a CUDA device was found
    """
    found = [name for name in PLUGINS if name in installed]
    extra = "cuda13" if has_gpu else "cpu"
    install = f"pip install 'omm-mlff[{extra}]'"
    if not found:
        detail = "openmm-torch is absent: models run through OpenMM's PythonForce instead"
        return Diagnosis("openmm-torch", "warning", detail, install)
    versions = ", ".join(f"{name} {installed[name]}" for name in found)
    if len(found) > 1:
        remedy = f"pip uninstall -y {' '.join(found)} && {install}"
        return Diagnosis("openmm-torch", "failed", f"{versions}: they overwrite each other", remedy)
    if found == ["openmmtorch"]:
        detail = f"{versions} links CUDA 12's libraries and does not load without them"
        return Diagnosis(
            "openmm-torch", "warning", detail, f"pip uninstall -y openmmtorch && {install}"
        )
    if has_gpu and found == ["acellera-openmmtorch-cpu"]:
        detail = f"{versions}; a GPU is here, and this wheel does not use it"
        return Diagnosis(
            "openmm-torch", "warning", detail, f"pip uninstall -y {found[0]} && {install}"
        )
    return Diagnosis("openmm-torch", "ok", versions)


@dataclass(frozen=True)
class Gpu:
    """What the driver says of one device; `capability` is empty where it is too old to tell."""

    name: str
    driver: str
    free_MiB: int
    total_MiB: int
    capability: str = ""


def gpus() -> list[Gpu]:
    """The CUDA devices that the driver lists; none where there is no driver."""
    query = "name,driver_version,memory.free,memory.total"
    for columns in (f"{query},compute_cap", query):  # older drivers do not know the last one
        try:
            done = subprocess.run(
                ["nvidia-smi", f"--query-gpu={columns}", "--format=csv,noheader,nounits"],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return []
        if done.returncode == 0:
            return parse_gpus(done.stdout)
    return []


def parse_gpus(table: str) -> list[Gpu]:
    """Devices from the driver's table: name, driver, free and total memory in MiB, capability."""
    rows = [[cell.strip() for cell in line.split(",")] for line in table.splitlines()]
    return [
        Gpu(name, driver, int(free), int(total), *capability)
        for name, driver, free, total, *capability in (row for row in rows if len(row) in (4, 5))
        if free.isdigit() and total.isdigit()
    ]


def look_at_gpu() -> list[Diagnosis]:
    """Each GPU with its free memory."""
    return judge_gpus(gpus())


def judge_gpus(devices: Sequence[Gpu]) -> list[Diagnosis]:
    """Whether each device has memory left."""
    if not devices:
        return [Diagnosis("GPU", "ok", "none found: OpenMM runs on this machine's cores")]
    diagnoses = []
    for gpu in devices:
        capability = f", compute capability {gpu.capability}" if gpu.capability else ""
        detail = (
            f"{gpu.name}{capability}, driver {gpu.driver}, "
            f"{gpu.free_MiB} of {gpu.total_MiB} MiB free"
        )
        if gpu.free_MiB < LITTLE_GPU_MEMORY_MIB:
            remedy = "end what fills it, or use --platform CPU"
            diagnoses.append(Diagnosis("GPU", "warning", detail, remedy))
        else:
            diagnoses.append(Diagnosis("GPU", "ok", detail))
    return diagnoses


def look_at_disk(folder: str) -> list[Diagnosis]:
    """Whether runs can be written here, and how much."""
    place = Path(folder).resolve()
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"0" * 4096)
            file.flush()
    except OSError as error:
        remedy = "choose another with --out"
        return [Diagnosis("disk", "failed", f"cannot write to {place}: {error.strerror}", remedy)]
    return [judge_disk(place, shutil.disk_usage(place).free // BYTES_PER_MIB)]


def judge_disk(place: Path, free_MiB: int) -> Diagnosis:
    """Whether so much free space is enough; a standard validation writes about 1 GiB."""
    detail = f"{free_MiB} MiB free in {place}"
    if free_MiB < TOO_LITTLE_DISK_MIB:
        return Diagnosis("disk", "failed", detail, "free some space, or choose another with --out")
    if free_MiB < LITTLE_DISK_MIB:
        return Diagnosis(
            "disk", "warning", detail, "long runs need more: choose another with --out"
        )
    return Diagnosis("disk", "ok", detail)


# What is looked at in a process of its own


def look_at_torch() -> list[Diagnosis]:
    """Whether torch loads, and sees the GPU that the driver lists."""
    import torch

    threads = torch.get_num_threads()
    cuda = torch.version.cuda
    devices = gpus()
    if not torch.cuda.is_available():
        if devices and cuda:
            detail = f"built for CUDA {cuda}; it does not see the GPU (driver {devices[0].driver})"
            remedy = (
                f"update the driver to one that runs CUDA {cuda}, or install a torch that fits it"
            )
            return [Diagnosis("torch loads", "warning", detail, remedy)]
        if devices:
            detail = "built without CUDA, though a GPU is here"
            return [Diagnosis("torch loads", "warning", detail, "install a torch built with CUDA")]
        return [Diagnosis("torch loads", "ok", f"on {threads} threads, no CUDA device")]
    name = torch.cuda.get_device_name(0)
    total = float(torch.ones(8, device="cuda").sum().cpu())
    if total != 8.0:
        return [_broken("torch loads", f"a sum on {name} gives {total}, not 8")]
    return [Diagnosis("torch loads", "ok", f"CUDA {cuda} computes on {name}")]


def look_at_nvrtc() -> list[Diagnosis]:
    """Whether NVRTC, which comes with torch's CUDA wheels, compiles for the GPUs that are here."""
    devices = gpus()
    capabilities = sorted({gpu.capability for gpu in devices} - {""})
    try:
        from cuda.bindings import nvrtc  # type: ignore[import-untyped, import-not-found, unused-ignore]

        error, major, minor = nvrtc.nvrtcVersion()
        _, architectures = nvrtc.nvrtcGetSupportedArchs()
    except (ImportError, OSError, RuntimeError) as missing:
        return [judge_nvrtc("", [], capabilities, str(missing), has_gpu=bool(devices))]
    failure = "" if int(error) == 0 else f"NVRTC answers with error {int(error)}"
    known = [str(architecture) for architecture in architectures]
    return [judge_nvrtc(f"{major}.{minor}", known, capabilities, failure, has_gpu=bool(devices))]


def judge_nvrtc(
    version: str,
    architectures: Sequence[str],
    capabilities: Sequence[str],
    failure: str,
    *,
    has_gpu: bool,
) -> Diagnosis:
    """Whether the compiler of CUDA kernels serves the devices.

    Parameters
    ----------
    version, architectures : of NVRTC, and what it compiles for, such as "90"
    capabilities : of the devices, such as "9.0"
    failure : why it cannot be asked; empty where it can
    """
    if failure:
        if not has_gpu:
            return Diagnosis("NVRTC", "ok", f"not here ({failure}); no GPU here needs it")
        remedy = "install a torch built with CUDA: pip install 'omm-mlff[cuda13]' (or [cuda12])"
        return Diagnosis("NVRTC", "warning", f"not here: {failure}", remedy)
    unknown = [one for one in capabilities if one.replace(".", "") not in architectures]
    if unknown:
        detail = f"{version} does not compile for compute capability {', '.join(unknown)}"
        remedy = (
            "install a torch for that GPU; CUDA kernels are left out, TorchForce still computes"
        )
        return Diagnosis("NVRTC", "warning", detail, remedy)
    known = sorted(map(int, architectures))
    return Diagnosis("NVRTC", "ok", f"{version} compiles for sm_{known[0]} to sm_{known[-1]}")


def look_at_platforms() -> list[Diagnosis]:
    """Which platforms OpenMM has loaded, and why the others failed to."""
    from openmm import Platform

    from omm_mlff.forces.plugin import load_failures

    failures = load_failures()  # it imports torch, which the plugin's libraries need
    names = [Platform.getPlatform(i).getName() for i in range(Platform.getNumPlatforms())]
    return judge_platforms(names, failures, has_gpu=bool(gpus()))


def judge_platforms(
    names: Sequence[str], failures: Sequence[str], has_gpu: bool
) -> list[Diagnosis]:
    """The platforms that loaded, and one line for each cause of a failure.

    Parameters
    ----------
    names : of the platforms that OpenMM has
    failures : OpenMM's messages, one per library that did not load
    has_gpu : without one, a missing GPU library needs no remedy
    """
    diagnoses = [Diagnosis(f"platform {name}", "ok", "loaded") for name in names]
    diagnoses += [
        Diagnosis(
            f"platform {name}", "failed", "OpenMM did not load it", "reinstall: pip install openmm"
        )
        for name in ("Reference", "CPU")
        if name not in names
    ]
    causes: dict[str, list[str]] = {}
    for failure in failures:
        library, _, cause = failure.removeprefix("Error loading library ").partition(": ")
        causes.setdefault(cause, []).append(Path(library).name)
    unloaded = {library for libraries in causes.values() for library in libraries}
    for cause, libraries in causes.items():
        missing = cause.split(":")[0]
        if missing in unloaded:
            continue  # follows from a failure that has its own line
        detail = f"did not load: {cause}"
        subject = ", ".join(libraries)
        of_a_gpu = any(
            word in cause + subject for word in ("OpenCL", "CUDA", "cuda", "HIP", "nvrtc")
        )
        if of_a_gpu and not has_gpu:
            diagnoses.append(Diagnosis(subject, "ok", f"{detail} (no GPU here needs it)"))
            continue
        remedy = f"install what brings {missing}"
        if "libOpenCL" in missing:
            remedy = (
                "install an OpenCL loader (Debian: ocl-icd-libopencl1), or leave it: CUDA is faster"
            )
        elif "libtorch" in missing or "libc10" in missing:
            remedy = "the plugin does not find torch: pip install 'torch>=2.10,<2.13'"
        elif "libcu" in missing or "libnv" in missing:
            remedy = (
                "it was built for another CUDA: pip install the extra cuda12 or cuda13 that fits"
            )
        diagnoses.append(Diagnosis(subject, "warning", detail, remedy))
    return diagnoses


def look_at_torch_force(platform: str) -> list[Diagnosis]:
    """Whether a TorchForce computes on one platform: E = k x^2 must give F = -2 k x."""
    import warnings

    import numpy as np
    import torch

    import openmm  # isort: skip  after torch, which its plugins need

    from omm_mlff.errors import MissingPackageError
    from omm_mlff.forces.gpu_faults import gpu_fault
    from omm_mlff.forces.plugin import load_plugin

    class Spring(torch.nn.Module):
        def forward(self, positions: torch.Tensor) -> torch.Tensor:
            return 1000.0 * torch.sum(positions**2)

    subject = f"TorchForce on {platform}"
    try:
        plugin = load_plugin()
    except MissingPackageError as error:
        if not any(name in PLUGINS for name in installed_versions()):
            return []  # its absence has its own line
        return [Diagnosis(subject, "failed", str(error), "pip install 'omm-mlff[cpu]'")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is deprecated
        force = plugin.TorchForce(torch.jit.script(Spring()))
    positions = np.linspace(-0.2, 0.3, 15).reshape(5, 3)
    try:
        energy, forces = _evaluated(force, positions, platform)
    except (openmm.OpenMMException, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        status: Status = "failed" if platform in ("Reference", "CPU") else "warning"
        fault = None if status == "failed" else gpu_fault(str(error))
        if fault is not None:
            return [Diagnosis(subject, status, f"{fault.cause} ({first})", fault.remedy)]
        return [Diagnosis(subject, status, first, _remedy_for(first, platform))]
    return [judge_spring(subject, positions, energy, forces)]


def look_at_python_force() -> list[Diagnosis]:
    """Whether OpenMM's own PythonForce computes: the fallback where the plugin is absent."""
    import numpy as np
    import openmm

    subject = "PythonForce"
    if not hasattr(openmm, "PythonForce"):
        detail = f"OpenMM {openmm.Platform.getOpenMMVersion()} has none: no fallback"
        return [Diagnosis(subject, "warning", detail, "pip install 'openmm>=8.5'")]

    def spring(state: openmm.State) -> tuple[float, Any]:
        x = np.array(state.getPositions(asNumpy=True)._value)
        return _SPRING * float((x**2).sum()), -2.0 * _SPRING * x

    positions = np.linspace(-0.2, 0.3, 15).reshape(5, 3)
    energy, forces = _evaluated(openmm.PythonForce(spring), positions, "Reference")
    return [judge_spring(subject, positions, energy, forces)]


def _evaluated(force: openmm.Force, positions: Any, platform: str) -> tuple[float, Any]:
    """Energy in kJ/mol and forces (n_particles, 3) in kJ/mol/nm of one force in a Context."""
    import openmm

    system = openmm.System()
    for _ in range(len(positions)):
        system.addParticle(1.0)
    system.addForce(force)
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform)
    )
    context.setPositions(positions)
    state = context.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


def judge_spring(subject: str, positions: Any, energy: float, forces: Any) -> Diagnosis:
    """Whether energy and forces are those of E = k x^2, hence F = -2 k x.

    Parameters
    ----------
    positions, forces : shape (n_particles, 3), nm and kJ/mol/nm
    energy : kJ/mol
    """
    import numpy as np

    exact_energy = _SPRING * float((np.asarray(positions) ** 2).sum())
    exact_forces = -2.0 * _SPRING * np.asarray(positions)
    force_error = np.abs(forces - exact_forces).max() / np.abs(exact_forces).max()
    energy_error = abs(energy - exact_energy) / exact_energy
    error = float(np.max([force_error, energy_error]))  # unlike max(), this lets a NaN through
    if not error <= _FORCE_TOLERANCE:
        detail = f"a spring's force is off by {error:.0e} of its largest"
        return Diagnosis(
            subject, "failed", detail, "do not use this platform; reinstall the plugin"
        )
    accuracy = f"to {error:.0e}" if error > 0.0 else "exactly"
    return Diagnosis(subject, "ok", f"computes a spring's energy and forces {accuracy}")


def look_at_checkpoints() -> list[Diagnosis]:
    """Whether each shipped student loads and matches its card."""
    from omm_mlff.students.checkpoint import load_student

    names = shipped_names("checkpoints", "card.json")
    if not names:
        return [Diagnosis("checkpoints", "failed", "none are installed", "reinstall omm-mlff")]
    diagnoses = []
    for name in names:
        try:
            student = load_student(name)
        except OmmMlffError as error:
            diagnoses.append(
                Diagnosis(f"checkpoint {name}", "failed", str(error), "reinstall omm-mlff")
            )
            continue
        count = sum(parameter.numel() for parameter in student.parameters())
        diagnoses.append(Diagnosis(f"checkpoint {name}", "ok", f"loads, {count:,} parameters"))
    return diagnoses


def look_at_compiled_engine() -> list[Diagnosis]:
    """Whether a student runs compiled: builds the kernel if need be, and holds it against torch."""
    import torch

    from omm_mlff.students.checkpoint import load_student
    from omm_mlff.students.engine import build_engine
    from omm_mlff.students.kernel.build import find_compiler

    water = torch.tensor([8, 1, 1])
    try:
        for name in shipped_names("checkpoints", "card.json"):
            build_engine(load_student(name), water, periodic=False, engine="compiled")
        return [
            Diagnosis("compiled engine", "ok", f"agrees with torch; built by {find_compiler()}")
        ]
    except OmmMlffError as error:
        remedy = "install a C++ compiler (Debian, Ubuntu: apt-get install g++), or stay scripted"
        return [Diagnosis("compiled engine", "warning", str(error), remedy)]


def look_at_systems() -> list[Diagnosis]:
    """Whether each shipped system loads, with its reference labels."""
    from omm_mlff.systems import load_system, system_names

    names = system_names()
    if not names:
        return [Diagnosis("systems", "failed", "none are installed", "reinstall omm-mlff")]
    diagnoses = []
    for name in names:
        try:
            system = load_system(name)
        except OmmMlffError as error:
            diagnoses.append(
                Diagnosis(f"system {name}", "failed", str(error), "reinstall omm-mlff")
            )
            continue
        labels = (
            "no reference labels"
            if system.reference is None
            else f"{system.reference.n_frames} frames labelled by {system.reference.method}"
        )
        diagnoses.append(Diagnosis(f"system {name}", "ok", f"{system.n_atoms} atoms, {labels}"))
    return diagnoses


# How a process of its own is run


def _in_a_process(probe: Probe, time_limit_s: float) -> list[Diagnosis]:
    look = f"{probe.look.__module__}:{probe.look.__name__}"
    words = [sys.executable, "-m", "omm_mlff.doctor", look, *probe.arguments]
    # The child must find this very package, also where it is run from a checkout.
    path = os.pathsep.join(
        filter(None, [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")])
    )
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=time_limit_s,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [_broken(probe.subject, f"no answer within {time_limit_s:g} s")]
    if done.returncode == 0:
        with contextlib.suppress(ValueError, IndexError, TypeError):
            return [Diagnosis(**row) for row in json.loads(done.stdout.splitlines()[-1])]
    words_of_error = [line for line in done.stderr.splitlines() if line.strip()]
    last = words_of_error[-1].strip() if words_of_error else "no message"
    if done.returncode < 0:
        try:
            cause = signal.Signals(-done.returncode).name
        except ValueError:
            cause = f"signal {-done.returncode}"
        return [_broken(probe.subject, f"the probe's process died of {cause}: {last}")]
    return [_broken(probe.subject, last)]


def _answer(words: Sequence[str]) -> None:
    """Run one probe here, named as module:function, and print its diagnoses as the last line."""
    module, _, function = words[0].partition(":")
    look = getattr(importlib.import_module(module), function)
    rows = [asdict(diagnosis) for diagnosis in look(*words[1:])]
    sys.stdout.write(f"\n{json.dumps(rows)}\n")


def _broken(subject: str, detail: str) -> Diagnosis:
    return Diagnosis(subject, "failed", detail, _remedy_for(detail, ""))


def _remedy_for(message: str, platform: str) -> str:
    """What helps against a message that somebody has met before."""
    if "PyObject for Tensor" in message:
        return "the plugin does not fit this torch: pip install 'torch>=2.10,<2.13'"
    if "cannot open shared object" in message or "undefined symbol" in message:
        return "the plugin and torch do not fit each other: pip install --force-reinstall both"
    if "CUDA_ERROR" in message or "out of memory" in message:
        return "look at the GPU with nvidia-smi; meanwhile use --platform CPU"
    if "No module named" in message:
        return "reinstall: pip install 'omm-mlff[cpu]'"
    if platform not in ("", "Reference", "CPU"):
        return (
            f"this platform is left out by --platform auto; plugin and driver decide on {platform}"
        )
    return "reinstall omm-mlff with constraints.txt; if that does not help, report it"


def _key(name: str) -> str:
    """A distribution's name as the package index compares it."""
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    _answer(sys.argv[1:])
