"""Times the CUDA kernel of students by itself, beside the scripted engine on the same device.

    python -m omm_mlff.bench.device_engine --out FOLDER
    python -m omm_mlff.bench.device_engine --sweep --out FOLDER
    python -m omm_mlff.bench.device_engine --compile sm_90     (needs no device)

The first prints a table and writes `device_engine.json`; it ends by itself when its time is up. The
second does so for ways to share out the work, `device_sweep.json`, of which layout.RULES is to name
the quickest; it leaves out what is not compiled. The third fills the cache of compiled kernels with
what the others need, for a machine that is to spend no time on it.
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
from omm_mlff.students.kernel.device import (
    DeviceModel,
    Launch,
    compiled_kernel,
    device_of,
    is_compiled,
)
from omm_mlff.students.kernel.layout import (
    PHASES,
    RULES,
    Choice,
    Variant,
    choices,
    cluster_sizes,
    variant_of,
)
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
FILE_NAME, SWEEP_FILE_NAME = "device_engine.json", "device_sweep.json"

# Of a student, a molecule and a number of copies: what to try.
TRIALS: dict[tuple[str, str, int], tuple[Choice, ...]] = {
    ("original", "alanine-dipeptide", 1): (
        Choice(16, 256, 1),
        Choice(16, 512, 1),
        Choice(16, 1024, 1),
        Choice(8, 256, 2),
        Choice(8, 512, 1),
    ),
    ("original", "alanine", 256): (
        Choice(1, 256, 2),
        Choice(1, 256, 2, group=2),
        Choice(1, 512, 1, group=1),
        Choice(1, 512, 1, group=2),
        Choice(1, 384, 1, group=1),
        Choice(1, 384, 1, group=2),
        Choice(1, 256, 3),
        Choice(1, 512, 2),
    ),
    ("original", "alanine-dipeptide", 256): (
        Choice(1, 256, 2),
        Choice(1, 512, 1, group=1),
        Choice(1, 512, 1, group=2),
    ),
    ("original", "alanine-dipeptide", 16): (
        Choice(8, 256, 2),
        Choice(8, 512, 1),
        Choice(4, 256, 2),
        Choice(4, 512, 1),
    ),
    ("original", "alanine-dipeptide", 64): (
        Choice(2, 256, 2),
        Choice(2, 512, 1),
        Choice(1, 512, 1),
    ),
    ("tiny", "alanine-dipeptide", 1): (
        Choice(8, 256, 2),
        Choice(8, 512, 1),
        Choice(4, 256, 2),
        Choice(4, 512, 1),
    ),
    ("tiny", "alanine", 256): (
        Choice(1, 256, 2),
        Choice(1, 256, 3),
        Choice(1, 512, 1, group=1),
        Choice(1, 512, 1, group=2),
        Choice(1, 512, 1, group=4),
    ),
    ("ultra-tiny", "water", 1): (
        Choice(4, 256, 2),
        Choice(1, 256, 2),
        Choice(1, 512, 1),
    ),
    ("ultra-tiny", "alanine", 256): (
        Choice(1, 256, 2),
        Choice(1, 256, 3),
        Choice(1, 512, 1, group=2),
    ),
}
_MOST_OFF = {"off_eV_per_atom": 1e-6, "off_eV_per_angstrom": 1e-4}
_TRIAL_S = 0.25
_NOISE_NM = 0.003
_BLOCK_S = 0.05
_REPETITIONS = 5
_WARM_UP = 4
_PROFILED_CALLS = 20
_PROFILED_COPIES = (1, 256)
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
                positions.device.index, case.species, case.n_copies, choice=known_choice(size)
            )
            found[str(size)] = timed(launch, positions)["replayed_ms"]
        except KernelError as error:
            found[str(size)] = str(error)
    return found


def known_choice(cluster: int) -> Choice:
    """What the rules say of clusters of this size."""
    return next(rule.choice for rule in RULES if rule.choice.cluster == cluster)


def sweep(case: Subject, tried: Iterable[Choice], architecture: str) -> list[dict[str, Any]]:
    """Each way's time and how far it is from the scripted student."""
    device = torch.device("cuda", torch.cuda.current_device())
    positions, exact = case.positions.float().to(device), case.positions.to(device)
    model = DeviceModel(case.student)
    scripted = MoleculeEngine(case.student, case.species, case.n_copies).to(device)
    wanted = scripted(exact)
    rows: list[dict[str, Any]] = []
    for choice in tried:
        row: dict[str, Any] = {
            "student": case.name,
            "molecule": case.molecule,
            "n_copies": case.n_copies,
            "cluster": choice.cluster,
            "threads": choice.threads,
            "blocks": choice.blocks,
            "group": choice.group,
        }
        rows.append(row)
        if not is_compiled(architecture, variant_of(case.student, choice)):
            row["error"] = "not compiled"
            continue
        try:
            launch = model.prepare(device.index, case.species, case.n_copies, choice=choice)
        except KernelError as error:
            row["error"] = str(error)
            continue
        row |= deviation(launch(exact), wanted, len(case.species))
        graph, _ = captured(launch, positions)
        row |= {
            "group": launch.call.group,
            "n_blocks": launch.n_blocks,
            "shared_KB": round(launch.call.shared_bytes / 1024, 1),
            "replayed_ms": milliseconds(graph.replay, seconds=_TRIAL_S),
            "right": all(row[name] <= most for name, most in _MOST_OFF.items()),
        }
    return rows


def sweep_table(rows: list[dict[str, Any]]) -> str:
    """Rows for people; the quickest right one of each subject has a star."""
    lines = [
        "student     molecule           copies   C threads  b  G  launched  shared KB        ms "
        "  off eV/atom, eV/angstrom"
    ]
    best: dict[tuple[str, str, int], float] = {}
    for row in rows:
        if row.get("right"):
            key = (row["student"], row["molecule"], row["n_copies"])
            best[key] = min(best.get(key, row["replayed_ms"]), row["replayed_ms"])
    for row in rows:
        key = (row["student"], row["molecule"], row["n_copies"])
        line = (
            f"{row['student']:11} {row['molecule']:18} {row['n_copies']:6}  {row['cluster']:2} "
            f"{row['threads']:7} {row['blocks']:2} {row['group'] or '-':>2}"
        )
        if "error" in row:
            lines.append(f"{line}  {row['error']}")
            continue
        star = " *" if row["right"] and row["replayed_ms"] == best[key] else ""
        lines.append(
            f"{line}  {row['n_blocks']:8} {row['shared_KB']:10} {row['replayed_ms']:9.4f}   "
            f"{row['off_eV_per_atom']:.1e} {row['off_eV_per_angstrom']:.1e}"
            f"{star if row['right'] else ' WRONG'}"
        )
    return "\n".join(lines)


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


def milliseconds(call: Callable[[], Any], *, seconds: float = _BLOCK_S * _REPETITIONS) -> float:
    """Of one call, the median of some blocks of calls; by the device's clock."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    once = time.perf_counter() - started
    n = max(1, min(1000, int(seconds / _REPETITIONS / max(once, 1e-6))))
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
@click.option("--sweep", "with_sweep", is_flag=True, help="Time ways to share out the work.")
@click.option("--compile", "architecture", default="", help="Fill the cache, for such as sm_90.")
def main(
    out: Path,
    students: str,
    molecules: str,
    copies: str,
    scripted: bool,
    with_profile: bool,
    limit_s: float,
    with_sweep: bool,
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
        _fill_cache(architecture, {student for student, _ in cases}, profiled=with_profile)
        return
    if with_sweep:
        _sweep_all(out, limit_s)
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
        _fill_cache(architecture, {student for student, _ in cases}, profiled=with_profile)
        for n_copies in map(int, copies.split(",")):
            for student, molecule in cases:
                if time.monotonic() > ends:
                    break
                rows.append(_row(student, molecule, n_copies, scripted))
                click.echo(f"{time.monotonic() - ends + limit_s:6.1f} s  {rows[-1]}")
                (out / FILE_NAME).write_text(json.dumps(document, indent=1), encoding="utf-8")
        for n_copies in _PROFILED_COPIES if with_profile else ():
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


def _sweep_all(out: Path, limit_s: float) -> None:
    assert sys.__stderr__ is not None
    faulthandler.dump_traceback_later(limit_s * 1.25 + 30.0, exit=True, file=sys.__stderr__)
    ends = time.monotonic() + limit_s
    rows: list[dict[str, Any]] = []
    document: dict[str, Any] = {"rows": rows}
    out.mkdir(parents=True, exist_ok=True)
    try:
        document["device"] = torch.cuda.get_device_name()
        architecture = f"sm_{device_of(torch.cuda.current_device()).architecture}"
        for (student, molecule, n_copies), tried in TRIALS.items():
            if time.monotonic() > ends:
                break
            rows += sweep(subject(student, molecule, n_copies), tried, architecture)
            (out / SWEEP_FILE_NAME).write_text(json.dumps(document, indent=1), encoding="utf-8")
    except (RuntimeError, AssertionError, OmmMlffError) as error:
        click.echo(f"error: CUDA cannot be used: {str(error).splitlines()[0]}", err=True)
        raise SystemExit(PlatformError.exit_code) from error
    finally:
        click.echo(sweep_table(rows))
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


def _fill_cache(architecture: str, students: set[str], *, profiled: bool) -> None:
    """Compile what the tables need, side by side: one after another it would take minutes."""
    clusters = int(architecture.removeprefix("sm_")) >= _CLUSTER_ARCHITECTURE
    variants: dict[Variant, None] = {}
    for name in sorted(students):
        student = load_student(name)
        n = student.config.n_features
        usual = [known_choice(size) for size in (cluster_sizes(n) if clusters else (1,))]
        tried = [c for key, of_key in TRIALS.items() if key[0] == name for c in of_key]
        wanted = usual + (tried if clusters else [])
        variants |= dict.fromkeys(variant_of(student, choice) for choice in wanted)
        if profiled and name == CASES[0][0]:
            variants |= dict.fromkeys(
                variant_of(student, choices(n, 22, n_copies, 132 * clusters)[0], profile=True)
                for n_copies in _PROFILED_COPIES
            )
    started = time.perf_counter()
    with ThreadPoolExecutor(min(len(variants), os.cpu_count() or 1)) as pool:
        list(pool.map(lambda variant: compiled_kernel(architecture, variant), variants))
    click.echo(f"{len(variants)} kernels for {architecture}: {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
