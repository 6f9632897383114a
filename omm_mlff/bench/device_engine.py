"""Times the CUDA kernel of students by itself, beside the scripted engine on the same device.

    python -m omm_mlff.bench.device_engine --out FOLDER
    python -m omm_mlff.bench.device_engine --compile sm_90     (needs no device)

The first prints a table and writes `device_engine.json`; it ends by itself when its time is up. The
second fills the cache of compiled kernels, for a machine that is to spend no time on it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from omm_mlff.errors import KernelError, OmmMlffError, PlatformError
from omm_mlff.forces.scripting import script
from omm_mlff.students.checkpoint import load_student
from omm_mlff.students.engine import MoleculeEngine
from omm_mlff.students.kernel.device import DeviceModel, Launch, compiled_kernel, device_of
from omm_mlff.students.kernel.layout import PHASES, cluster_sizes, variant_of
from omm_mlff.students.student import Student
from omm_mlff.systems import load_system
from omm_mlff.units import KJMOL_NM_PER_EV_ANGSTROM, KJMOL_PER_EV

Energies = tuple[Tensor, Tensor]

CASES = (
    ("original", "alanine-dipeptide"),
    ("original", "alanine"),
    ("tiny", "alanine-dipeptide"),
    ("tiny", "alanine"),
    ("ultra-tiny", "alanine"),
    ("ultra-tiny", "water"),
)
COPIES = (1, 16, 256, 1024)
FILE_NAME = "device_engine.json"
_NOISE_NM = 0.003
_BLOCK_S = 0.05
_REPETITIONS = 5
_WARM_UP = 4
_PROFILED_CALLS = 20
_CLUSTER_ARCHITECTURE = 90


@dataclass(frozen=True)
class Subject:
    """What is timed: a student on copies of a molecule, none like another."""

    name: str
    molecule: str
    student: Student
    species: Tensor
    positions: Tensor
    n_copies: int


def subject(name: str, molecule: str, n_copies: int) -> Subject:
    """A shipped student and a shipped molecule; float64 positions on the host, nm."""
    system = load_system(molecule)
    noise = np.random.default_rng(0).normal(scale=_NOISE_NM, size=(n_copies, system.n_atoms, 3))
    positions = torch.from_numpy((system.positions + noise).reshape(-1, 3))
    species = torch.from_numpy(system.species)
    return Subject(name, molecule, load_student(name), species, positions, n_copies)


def measure(case: Subject, *, with_scripted: bool) -> dict[str, Any]:
    """One row of the table: milliseconds, memory, and how far the two engines are apart.

    Raises
    ------
    KernelError : the kernel cannot be had
    """
    device = torch.device("cuda", torch.cuda.current_device())
    positions = case.positions.float().to(device)
    started = time.perf_counter()
    launch = DeviceModel(case.student).prepare(device.index, case.species, case.n_copies)
    row: dict[str, Any] = {
        "student": case.name,
        "molecule": case.molecule,
        "n_atoms": len(case.species),
        "n_copies": case.n_copies,
        "cluster": launch.variant.cluster,
        "group": launch.call.group,
        "n_blocks": launch.n_blocks,
        "shared_KB": round(launch.call.shared_bytes / 1024, 1),
        "prepared_s": round(time.perf_counter() - started, 2),
        "kernel": timed(launch, positions),
    }
    if case.n_copies == 1:
        row["kernel_by_cluster_ms"] = by_cluster(case, positions)
    if with_scripted:
        scripted = script(
            MoleculeEngine(case.student, case.species, case.n_copies).to(device).eval()
        )
        row["scripted"] = timed(scripted, positions)
        exact = case.positions.to(device)
        row |= deviation(launch(exact), scripted(exact), len(case.species))
    return row


def by_cluster(case: Subject, positions: Tensor) -> dict[str, float | str]:
    """Milliseconds of a replayed evaluation with each size of cluster."""
    found: dict[str, float | str] = {}
    for size in cluster_sizes(case.student.config.n_features):
        try:
            launch = DeviceModel(case.student).prepare(
                positions.device.index, case.species, case.n_copies, cluster=size
            )
            found[str(size)] = timed(launch, positions)["replayed_ms"]
        except KernelError as error:
            found[str(size)] = str(error)
    return found


def timed(engine: Callable[[Tensor], Energies], positions: Tensor) -> dict[str, Any]:
    """An engine launched, and replayed as a CUDA graph."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(_WARM_UP):
        wanted = engine(positions)
    row: dict[str, Any] = {"launched_ms": milliseconds(lambda: engine(positions))}
    row["peak_MB"] = round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    try:
        graph, found = captured(engine, positions)
        graph.replay()
        torch.cuda.synchronize()
        row["replayed_is_launched"] = all(map(torch.equal, wanted, found))
        row["replayed_ms"] = milliseconds(graph.replay)
    except RuntimeError as error:
        row["replayed_ms"] = f"no graph: {str(error).splitlines()[0]}"
    return row


def captured(
    engine: Callable[[Tensor], Energies], positions: Tensor
) -> tuple[torch.cuda.CUDAGraph, Energies]:
    """A graph of one evaluation, and where its results lie."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            engine(positions)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = engine(positions)
    return graph, found


def milliseconds(call: Callable[[], Any]) -> float:
    """Of one call, the median of some blocks of calls; by the device's clock."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    once = time.perf_counter() - started
    n = max(1, min(1000, int(_BLOCK_S / max(once, 1e-6))))
    blocks: list[float] = []
    for _ in range(_REPETITIONS):
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(n):
            call()
        end.record()
        end.synchronize()
        blocks.append(begin.elapsed_time(end) / n)
    return round(float(statistics.median(blocks)), 4)


def deviation(found: Energies, wanted: Energies, n_atoms: int) -> dict[str, float]:
    """The largest differences."""
    energy = float((found[0] - wanted[0]).abs().max()) / KJMOL_PER_EV / n_atoms
    force = float((found[1] - wanted[1]).abs().max()) / KJMOL_NM_PER_EV_ANGSTROM
    return {"off_eV_per_atom": energy, "off_eV_per_angstrom": force}


def profile(case: Subject) -> dict[str, float]:
    """Where the time of the first block goes: thousands of clock ticks an evaluation, by phase."""
    index = torch.cuda.current_device()
    launch: Launch = DeviceModel(case.student).prepare(
        index, case.species, case.n_copies, profile=True
    )
    positions = case.positions.float().to(launch.device)
    assert launch.stamps is not None
    for _ in range(_WARM_UP):
        launch(positions)
    torch.cuda.synchronize()
    launch.stamps.zero_()
    for _ in range(_PROFILED_CALLS):
        launch(positions)
    torch.cuda.synchronize()
    ticks = launch.stamps.cpu().tolist()
    return {phase: round(ticks[k] / _PROFILED_CALLS / 1000.0, 2) for k, phase in enumerate(PHASES)}


def table(rows: list[dict[str, Any]]) -> str:
    """Rows for people."""
    head = (
        "student     molecule           copies  C  G  blocks |  kernel, ms launched / replayed, "
        "MB |  scripted, the same |  off eV/atom, eV/angstrom"
    )
    lines = [head]
    for row in rows:
        if "error" in row:
            lines.append(
                f"{row['student']:11} {row['molecule']:18} {row['n_copies']:6}  {row['error']}"
            )
            continue
        line = (
            f"{row['student']:11} {row['molecule']:18} {row['n_copies']:6} {row['cluster']:2} "
            f"{row['group']:2} {row['n_blocks']:6}  | {_times(row['kernel'])} |"
        )
        if "scripted" in row:
            line += (
                f" {_times(row['scripted'])} | {row['off_eV_per_atom']:.1e} "
                f"{row['off_eV_per_angstrom']:.1e}"
            )
        lines.append(line)
        if "kernel_by_cluster_ms" in row:
            lines.append(f"{'':31}by cluster: {row['kernel_by_cluster_ms']}")
    return "\n".join(lines)


def _times(row: dict[str, Any]) -> str:
    replayed = row["replayed_ms"]
    shown = f"{replayed:9.4f}" if isinstance(replayed, float) else str(replayed)[:40]
    note = "" if row.get("replayed_is_launched", True) else " (differs)"
    return f"{row['launched_ms']:9.4f} / {shown}{note} {row['peak_MB']:8.1f}"


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("."))
@click.option("--students", default="", help="Comma-separated; by default all.")
@click.option("--molecules", default="", help="Comma-separated; by default all.")
@click.option("--copies", default=",".join(map(str, COPIES)), show_default=True)
@click.option("--scripted/--no-scripted", default=True, show_default=True)
@click.option("--profile/--no-profile", "with_profile", default=True, show_default=True)
@click.option("--limit-s", default=240.0, show_default=True, help="Ends there, whatever is left.")
@click.option("--compile", "architecture", default="", help="Fill the cache, for such as sm_90.")
def main(
    out: Path,
    students: str,
    molecules: str,
    copies: str,
    scripted: bool,
    with_profile: bool,
    limit_s: float,
    architecture: str,
) -> None:
    """Time the CUDA kernel of the shipped students, beside the scripted engine."""
    cases = [
        (student, molecule)
        for student, molecule in CASES
        if student in (students.split(",") if students else [student])
        and molecule in (molecules.split(",") if molecules else [molecule])
    ]
    if architecture:
        _fill_cache(architecture, (student for student, _ in cases), profiled=with_profile)
        return
    assert sys.__stderr__ is not None
    faulthandler.dump_traceback_later(limit_s * 1.25 + 30.0, exit=True, file=sys.__stderr__)
    ends = time.monotonic() + limit_s
    rows: list[dict[str, Any]] = []
    document: dict[str, Any] = {"rows": rows, "profiles": {}}
    out.mkdir(parents=True, exist_ok=True)
    try:
        document["device"] = torch.cuda.get_device_name()
        document["torch"] = torch.__version__
        here = device_of(torch.cuda.current_device())
        architecture = f"sm_{here.architecture}"
        _fill_cache(architecture, (student for student, _ in cases), profiled=with_profile)
        for n_copies in map(int, copies.split(",")):
            for student, molecule in cases:
                if time.monotonic() > ends:
                    break
                rows.append(_row(student, molecule, n_copies, scripted))
                click.echo(f"{time.monotonic() - ends + limit_s:6.1f} s  {rows[-1]}")
                (out / FILE_NAME).write_text(json.dumps(document, indent=1), encoding="utf-8")
        for n_copies in (1, 256) if with_profile else ():
            for student, molecule in cases[:2]:
                if time.monotonic() > ends:
                    break
                ticks = _profile_or_reason(student, molecule, n_copies)
                document["profiles"][f"{student}, {molecule}, {n_copies}"] = ticks
        (out / FILE_NAME).write_text(json.dumps(document, indent=1), encoding="utf-8")
    except (RuntimeError, AssertionError, OmmMlffError) as error:
        click.echo(f"error: CUDA cannot be used: {str(error).splitlines()[0]}", err=True)
        raise SystemExit(PlatformError.exit_code) from error
    finally:
        click.echo(table(rows))
        for name, ticks in document["profiles"].items():
            click.echo(f"{name}: thousands of ticks by phase {ticks}")
        faulthandler.cancel_dump_traceback_later()


def _row(student: str, molecule: str, n_copies: int, scripted: bool) -> dict[str, Any]:
    case = subject(student, molecule, n_copies)
    try:
        return measure(case, with_scripted=scripted)
    except OmmMlffError as error:
        return {
            "student": student,
            "molecule": molecule,
            "n_copies": n_copies,
            "error": str(error),
        }


def _profile_or_reason(student: str, molecule: str, n_copies: int) -> dict[str, float] | str:
    try:
        return profile(subject(student, molecule, n_copies))
    except OmmMlffError as error:
        return str(error)


def _fill_cache(architecture: str, students: Iterable[str], *, profiled: bool) -> None:
    """Compile what the table needs, side by side: one after another it would take minutes."""
    variants = [
        variant_of(student, cluster, profile=profile)
        for student in map(load_student, sorted(set(students)))
        for cluster in cluster_sizes(student.config.n_features)
        for profile in (
            (False, True) if profiled and student.config.name == "original" else (False,)
        )
        if cluster == 1 or int(architecture.removeprefix("sm_")) >= _CLUSTER_ARCHITECTURE
    ]
    started = time.perf_counter()
    with ThreadPoolExecutor(min(len(variants), os.cpu_count() or 1)) as pool:
        list(pool.map(lambda variant: compiled_kernel(architecture, variant), variants))
    click.echo(f"{len(variants)} kernels for {architecture}: {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
