"""Why a GPU does not compute: what OpenMM, torch and the driver say, put into cause and remedy."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_HOST = "--platform CPU computes without one"


@dataclass(frozen=True)
class GpuFault:
    """One line on what is wrong, and one on what helps.

    Attributes
    ----------
    cause : such as "no memory is free on the device"
    remedy : what to do
    """

    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.cause}; {self.remedy}"


# The first that matches counts: what is said on top of a driver that is too old may name memory.
_KNOWN: tuple[tuple[str, GpuFault], ...] = (
    (
        r"driver version is insufficient|driver on your system is too old|driver is too old"
        r"|UNSUPPORTED_PTX_VERSION|unsupported toolchain|SYSTEM_DRIVER_MISMATCH"
        r"|unsupported display driver|CUDA_ERROR_STUB_LIBRARY",
        GpuFault(
            "the NVIDIA driver is older than the CUDA that torch and OpenMM are built for",
            "update the driver, or install the extra [cuda12] in the place of [cuda13]",
        ),
    ),
    (
        r"no kernel image|NO_BINARY_FOR_GPU|invalid value for --gpu-architecture|INVALID_PTX"
        r"|unsupported gpu architecture|not compatible with the current PyTorch",
        GpuFault(
            "this GPU is of a compute capability that torch or NVRTC does not know",
            f"install a torch that was built for it, or use the host: {_HOST}",
        ),
    ),
    (
        r"out of memory|OUT_OF_MEMORY|OutOfMemory",
        GpuFault(
            "no memory is free on the device",
            "end what fills it (nvidia-smi lists it), take fewer replicas, or use the host: "
            f"{_HOST}",
        ),
    ),
    (
        r"Illegal value for DeviceIndex|INVALID_DEVICE|invalid device ordinal",
        GpuFault("there is no such device", "name one that nvidia-smi lists, counted from 0"),
    ),
    (
        r"ERROR_NO_DEVICE|no CUDA-capable device|No CUDA GPUs are available|No compatible CUDA",
        GpuFault("no CUDA device is here", f"look with nvidia-smi; {_HOST}"),
    ),
    (
        r"libcuda\.so|Found no NVIDIA driver",
        GpuFault("no NVIDIA driver is here", f"install the driver; {_HOST}"),
    ),
    (
        r"libnvrtc|libcufft|libcudart",
        GpuFault(
            "the CUDA libraries that OpenMM needs are not here",
            "pip install 'omm-mlff[cuda13]' (or [cuda12])",
        ),
    ),
    (
        r"does not support all required kernels",
        GpuFault(
            "the openmm-torch plugin has no kernels for this platform",
            "run omm-mlff doctor, which says why they did not load",
        ),
    ),
)
_LOST = re.compile(
    r"GPU is lost|DEVICE_LOST|device-side assert|ILLEGAL_ADDRESS|illegal memory access"
    r"|LAUNCH_FAILED|unspecified launch failure|ECC_UNCORRECTABLE|HARDWARE_STACK_ERROR"
    r"|fallen off the bus|CUDA_ERROR_DEINITIALIZED|CUDA_ERROR_UNKNOWN",
    re.IGNORECASE,
)


def gpu_fault(message: str, environment: Mapping[str, str] | None = None) -> GpuFault | None:
    """What a message of OpenMM, torch or the driver means; None where nobody has met it.

    Parameters
    ----------
    environment : of the process; by default its own
    """
    found = os.environ if environment is None else environment
    known = next(
        (fault for pattern, fault in _KNOWN if re.search(pattern, message, re.IGNORECASE)), None
    )
    hidden = found.get("CUDA_VISIBLE_DEVICES")
    if known is not None and hidden in ("", "-1") and "device" in known.cause:
        return GpuFault(
            f"CUDA_VISIBLE_DEVICES={hidden!r} hides every device", "unset it, or name one in it"
        )
    return known


def device_was_lost(message: str) -> bool:
    """Whether a device that has computed before is no longer there, or no longer to be trusted."""
    return bool(_LOST.search(message))


def missing_platform(name: str, failures: Sequence[str]) -> GpuFault:
    """Why OpenMM has no such platform, from its own messages.

    Parameters
    ----------
    failures : what `openmm.Platform.getPluginLoadFailures` gave
    """
    for failure in failures:
        library, _, cause = failure.removeprefix("Error loading library ").partition(": ")
        if library.endswith(f"libOpenMM{name}.so"):
            return gpu_fault(cause, {}) or GpuFault(cause.strip(), "run omm-mlff doctor")
    if name == "CUDA":
        return GpuFault(
            "OpenMM's CUDA platform is not installed",
            "pip install 'omm-mlff[cuda13]' (or [cuda12])",
        )
    return GpuFault("OpenMM has loaded no such platform", "run omm-mlff doctor")
