"""bench.json: what a benchmark found, in a form that another run can be held against."""

from __future__ import annotations

import datetime
import json
import os
import platform as host
from pathlib import Path
from typing import Any

import torch

from omm_mlff.bench.rows import BenchDocument
from omm_mlff.bench.timing import Interval, Timing, load_per_core
from omm_mlff.bench.ways import TIMESTEP_FS
from omm_mlff.dynamics.provenance import package_versions
from omm_mlff.errors import InputError
from omm_mlff.record.documents import parsed, write_document
from omm_mlff.students.kernel.threads import kernel_threads
from omm_mlff.units import NS_PER_DAY_PER_FS_PER_MS

SCHEMA = 1
DOCUMENT_FILE = "bench.json"


def provenance(platform: str, precision: str, n_rounds: int, block_s: float) -> dict[str, Any]:
    """The machine and how it was used."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": dict(package_versions()),
        "python": host.python_version(),
        "processor": processor(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": {"torch": torch.get_num_threads(), "compiled engine": kernel_threads()},
        "platform": platform,
        "precision": precision,
        "timestep_fs": TIMESTEP_FS,
        "rounds": n_rounds,
        "block_s": block_s,
        "load_per_core_before": round(load_per_core(), 3),
    }


def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return host.processor() or host.machine()


def timing_row(timing: Timing, n_atoms: int) -> dict[str, Any]:
    """One way of one potential on one system.

    Parameters
    ----------
    n_atoms : of one replica
    """
    step = timing.step
    a_second = timing.n_replicas / step.value
    return {
        "way": timing.way,
        "n_replicas": timing.n_replicas,
        "n_rounds": len(timing.seconds),
        "n_steps": timing.n_steps,
        "ms_per_step": interval_row(step, 1000.0),
        "ms_per_replica_step": _digits(1000.0 * timing.replica_step),
        "ns_per_day": _digits(NS_PER_DAY_PER_FS_PER_MS * TIMESTEP_FS / (1000.0 * step.value)),
        "replica_steps_per_s": _digits(a_second),
        "atom_steps_per_s": _digits(a_second * n_atoms),
        "spread": _digits(timing.spread),
    }


def interval_row(interval: Interval, factor: float = 1.0) -> dict[str, float]:
    """A median with the ends of its interval."""
    return {
        "value": _digits(interval.value * factor),
        "low": _digits(interval.low * factor),
        "high": _digits(interval.high * factor),
    }


def write(document: BenchDocument, folder: Path) -> Path:
    """Write it into a folder, which is made if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / DOCUMENT_FILE
    write_document(path, document)
    return path


def read(path: Path) -> BenchDocument:
    """A document of this schema.

    Raises
    ------
    InputError : absent, not JSON, or not a benchmark of this schema
    """
    if path.is_dir():
        path = path / DOCUMENT_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error})") from error
    if not isinstance(found, dict) or found.pop("schema", None) != SCHEMA:
        raise InputError(f"{path} is no benchmark of schema {SCHEMA}; wanted a {DOCUMENT_FILE}")
    try:
        return parsed(BenchDocument, found)
    except ValueError as error:
        raise InputError(f"{path} is damaged at {error}; wanted a {DOCUMENT_FILE}") from None


def _digits(value: float) -> float:
    return float(f"{value:.5g}")
