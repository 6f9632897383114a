"""One potential of known truth, put through validation once."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openmm

from omm_mlff.errors import OmmMlffError
from omm_mlff.potentials.base import Potential
from omm_mlff.proving import faults
from omm_mlff.proving.good import KNOWN_GOOD
from omm_mlff.proving.kinds import KINDS
from omm_mlff.schema import Finding, MolecularSystem, VerdictName
from omm_mlff.validation import Validation, validate

FAILED = "FAILED"
"""In the place of a verdict: the validation itself came to no end."""

_ERRORS = (OmmMlffError, openmm.OpenMMException, RuntimeError, ValueError, ArithmeticError)

CAUGHT: tuple[VerdictName, ...] = ("REJECTED", "NOT RECOMMENDED")


@dataclass(frozen=True)
class Task:
    """What is tried: a kind at a strength, or a known-good potential (strength None)."""

    name: str
    strength: float | None
    seed: int


@dataclass(frozen=True)
class Alarm:
    """One criterion that failed."""

    criterion: str
    measurement: str
    severity: str
    value: float | None
    bound: str
    unit: str
    where: str


@dataclass(frozen=True)
class Attempt:
    """What validation said of one task.

    Attributes
    ----------
    verdict : under the policy strict, or "FAILED"
    causes : slugs that the diagnosis named, the first first
    sentence : of the first
    caught_by : checks that failed, first the one behind the first cause, then by severity
    alarms : every failed criterion that counts
    seconds : processor time and wall time
    error : why the validation failed
    """

    task: Task
    verdict: str
    causes: tuple[str, ...]
    sentence: str
    caught_by: tuple[str, ...]
    alarms: tuple[Alarm, ...]
    cpu_s: float
    wall_s: float
    error: str = ""

    @property
    def cause(self) -> str:
        """The first cause that was named; empty where there is none."""
        return self.causes[0] if self.causes else ""

    @property
    def caught(self) -> bool:
        return self.verdict in CAUGHT


def attempt(task: Task) -> Attempt:
    """Validate one potential in a folder that is thrown away."""
    potential, system, profile = _subject(task)
    started, started_cpu = time.perf_counter(), time.process_time()
    found: Validation | None = None
    error = ""
    with tempfile.TemporaryDirectory(prefix="omm-mlff-prove-") as folder, _quiet():
        try:
            found = validate(
                potential,
                systems=[system],
                profile=profile,
                out=Path(folder) / "validation",
                seed=task.seed,
            )
        except _ERRORS as failure:
            # A proving ground goes on: that validation breaks on a bad potential is a result.
            error = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
        finally:
            faults.put_down()
    cpu, wall = time.process_time() - started_cpu, time.perf_counter() - started
    if found is None:
        return Attempt(task, FAILED, (), "", (), (), cpu, wall, error)
    alarms = failed(found)
    diagnosis = found.diagnosis
    behind = [name for cause in diagnosis[:1] for name in cause.evidence]
    measurements = behind + [alarm.measurement for alarm in alarms]
    check_of = {row.name: row.check for row in found.measured.declarations}
    return Attempt(
        task,
        found.verdict.name,
        tuple(cause.slug for cause in diagnosis),
        diagnosis[0].sentence if diagnosis else "",
        tuple(dict.fromkeys(check_of[name] for name in measurements)),
        alarms,
        cpu,
        wall,
    )


def failed(found: Validation) -> tuple[Alarm, ...]:
    """Failed criteria that count, reject before limit."""
    findings = [f for f in found.verdict.findings if f.status == "fail" and f.severity != "info"]
    findings.sort(key=lambda finding: finding.severity != "reject")  # stable
    return tuple(_alarm(finding) for finding in findings)


def _alarm(finding: Finding) -> Alarm:
    where = finding.run or finding.system or ""
    return Alarm(
        finding.criterion,
        finding.measurement,
        finding.severity,
        finding.value,
        finding.bound,
        finding.unit,
        where,
    )


def _subject(task: Task) -> tuple[Potential, MolecularSystem, Path]:
    if task.strength is not None:
        kind = next(kind for kind in KINDS if kind.name == task.name)
        return kind.potential(task.strength), kind.ground.system(), kind.ground.profile
    good = next(good for good in KNOWN_GOOD if good.name == task.name)
    potential, system = good.load()
    return potential, system, good.profile


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """MDTraj and torchani log while they work; a matrix of results is no place for it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
