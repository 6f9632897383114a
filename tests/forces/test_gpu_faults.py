"""What OpenMM, torch and the driver say, put into one line with the remedy."""

from __future__ import annotations

import pytest

from omm_mlff.forces.gpu_faults import device_was_lost, gpu_fault, missing_platform

CUDA = "Error loading library /x/OpenMM.libs/lib/plugins/libOpenMMCUDA.so: "

SAID = [
    (
        "Error initializing CUDA: CUDA_ERROR_NO_DEVICE (100) at CudaContext.cpp:145",
        "no CUDA device is here",
        "nvidia-smi",
    ),
    (
        "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
        "no NVIDIA driver",
        "install the driver",
    ),
    (
        "The NVIDIA driver on your system is too old (found version 11040). Please update",
        "driver is older",
        "update the driver",
    ),
    (
        "Error loading CUDA module: CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)",
        "driver is older",
        "[cuda12]",
    ),
    (
        "CUDA error: no kernel image is available for execution on the device",
        "compute capability",
        "--platform CPU",
    ),
    (
        "Error compiling program: nvrtc: error: invalid value for --gpu-architecture (-arch)",
        "compute capability",
        "a torch that was built for it",
    ),
    (
        "Error creating array velm: CUDA_ERROR_OUT_OF_MEMORY (2)",
        "no memory is free",
        "fewer replicas",
    ),
    ("CUDA out of memory. Tried to allocate 20.00 MiB.", "no memory is free", "nvidia-smi"),
    ("Illegal value for DeviceIndex: 7", "no such device", "counted from 0"),
    (
        "Specified a Platform for a Context which does not support all required kernels",
        "has no kernels for this platform",
        "omm-mlff doctor",
    ),
]


@pytest.mark.parametrize(("message", "cause", "remedy"), SAID)
def test_a_message_has_a_cause_and_a_remedy(message, cause, remedy):
    fault = gpu_fault(message, {})
    assert fault is not None
    assert cause in fault.cause
    assert remedy in fault.remedy
    assert "\n" not in str(fault)


def test_a_message_that_nobody_has_met_is_left_as_it_is():
    assert gpu_fault("Unknown bond", {}) is None


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_devices_are_no_missing_ones(hidden):
    fault = gpu_fault(SAID[0][0], {"CUDA_VISIBLE_DEVICES": hidden})
    assert fault is not None
    assert "hides every device" in fault.cause
    assert "unset it" in fault.remedy
    shown = gpu_fault(SAID[0][0], {"CUDA_VISIBLE_DEVICES": "0"})
    assert shown is not None
    assert "no CUDA device is here" in shown.cause


def test_why_openmm_has_no_cuda():
    driver = CUDA + "libcuda.so.1: cannot open shared object file: No such file or directory"
    assert missing_platform("CUDA", [driver]).cause == "no NVIDIA driver is here"
    libraries = CUDA + "libcufft.so.12: cannot open shared object file: No such file or directory"
    assert "CUDA libraries" in missing_platform("CUDA", [libraries]).cause
    assert "pip install 'omm-mlff[cuda13]'" in missing_platform("CUDA", []).remedy
    other = "Error loading library /x/libOpenMMRPMDCUDA.so: libOpenMMCUDA.so: cannot open"
    assert "not installed" in missing_platform("CUDA", [other]).cause


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: unspecified launch failure",
        "Error synchronizing: CUDA_ERROR_ILLEGAL_ADDRESS (700)",
        "Unable to determine the device handle: GPU is lost. Reboot the system",
    ],
)
def test_a_device_that_is_gone_is_told_from_one_that_is_full(message):
    assert device_was_lost(message)
    assert not device_was_lost("Error creating array: CUDA_ERROR_OUT_OF_MEMORY (2)")
