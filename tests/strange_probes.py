"""Probes that end as a broken plugin can end; `test_doctor.py` runs each in its own process."""

from __future__ import annotations

import ctypes
import os
import sys
import time

from omm_mlff.doctor import Diagnosis


def crash() -> list[Diagnosis]:
    ctypes.string_at(0)
    return []


def abort() -> list[Diagnosis]:
    sys.stderr.write("terminate called after throwing an instance of 'c10::Error'\n")
    sys.stderr.flush()
    os.abort()


def hang() -> list[Diagnosis]:
    time.sleep(60)
    return []


def leave_early() -> list[Diagnosis]:
    os._exit(0)


def fail() -> list[Diagnosis]:
    raise RuntimeError("cannot access PyObject for Tensor")


def chatter(word: str) -> list[Diagnosis]:
    sys.stdout.write("Warning: importing 'simtk.openmm' is deprecated.\n")
    return [Diagnosis("chatter", "ok", word)]
