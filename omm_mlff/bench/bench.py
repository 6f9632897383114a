"""Times potentials on systems, side by side, and says what a step costs and why."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from omm_mlff.bench import document as documents
from omm_mlff.bench.analysis import analysis_row
from omm_mlff.bench.breakdown import breakdown
from omm_mlff.bench.floor import floor
from omm_mlff.bench.memory import peak_memory
from omm_mlff.bench.others import AseVerlet, TorchSim
from omm_mlff.bench.pareto import Point, force_rmse
from omm_mlff.bench.scaling import box_of, exponent
from omm_mlff.bench.timing import (
    BUSY_LIMIT,
    Timing,
    Way,
    busy_now,
    inconclusive,
    load_per_core,
    speedup,
    time_ways,
)
from omm_mlff.bench.ways import Recorded, Unrecorded, Yardstick
from omm_mlff.dynamics.platform_choice import AUTO, choose, refuse_fallback, why_not_meant
from omm_mlff.errors import (
    AnalysisError,
    InputError,
    MissingPackageError,
    OmmMlffError,
    ValidationFailure,
)
from omm_mlff.forces.platforms import GPU_PLATFORMS, choose_platform
from omm_mlff.potentials.base import Potential
from omm_mlff.potentials.registry import load_potential
from omm_mlff.potentials.student import StudentPotential
from omm_mlff.schema import MolecularSystem, Precision
from omm_mlff.students.kernel.threads import kernel_threads
from omm_mlff.systems import load_system
from omm_mlff.units import BYTES_PER_MIB

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

PLAIN, SINGLE, UNRECORDED, RECORDED, YARDSTICK = (
    "plain TorchScript",
    "single",
    "unrecorded",
    "recorded",
    "yardstick",
)
ASE, ASE_COMPILED, TORCH_SIM = "ASE", "ASE, compiled engine", "torch-sim"


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long it may take.

    Attributes
    ----------
    n_rounds : blocks of each way
    block_s : seconds a block
    """

    n_rounds: int = 9
    block_s: float = 0.4


_ANALYSED_BLOCKS = 20
"""A run that is analysed goes on for about so many blocks."""

QUICK = Effort(n_rounds=5, block_s=0.1)


def run_bench(
    models: Sequence[str],
    systems: Sequence[str],
    *,
    against: Sequence[str] = (),
    n_replicas: int = 16,
    sizes: Sequence[int] = (),
    platform: str = "auto",
    precision: Precision = "double",
    n_threads: int | None = None,
    allow_fallback: bool = False,
    effort: Effort | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time potentials in every way that they can be run.

    Parameters
    ----------
    models : specs; students are timed in every way, others in OpenMM
    systems : specs; each model on each of them
    against : specs of potentials that are timed beside the models, where they serve the system
    n_replicas : of the ways that run many
    sizes : atoms of the water boxes on which growth with the size is measured; none by default
    n_threads : of the compiled engine; by default what the user chose, else every core. Torch
        always runs on one: a small network gains nothing from more
    allow_fallback : see `simulate`
    effort : how long it may take

    Returns
    -------
    the content of bench.json, see `document`

    Raises
    ------
    InputError : nothing to time, or something that a model cannot serve
    """
    if not models or not systems:
        raise InputError("nothing to time; name a model and a system")
    if n_replicas < 2:
        raise InputError(f"wanted two replicas or more, got {n_replicas}")
    chosen = effort or Effort()
    say = progress or (lambda label, done, total: None)
    loaded = {name: load_system(name) for name in systems}
    subjects = [(load_potential(spec), name) for spec in models for name in loaded]
    others = [load_potential(spec) for spec in against]
    boxes = {name: load_system(name) for name in (box_of(size) for size in sorted(sizes))}
    for potential, system in (
        *((potential, loaded[name]) for potential, name in subjects),
        *((load_potential(spec), box) for spec in models for box in boxes.values()),
    ):
        reason = potential.unsupported(system)
        if reason:
            raise InputError(f"{potential.card.name} cannot serve {system.name}: {reason}")
        refuse_fallback(potential, system, platform, allowed=allow_fallback)
    with _threads(n_threads):
        return _run(
            subjects, loaded, others, boxes, models, n_replicas, platform, precision, chosen, say
        )


def _run(
    subjects: Sequence[tuple[Potential, str]],
    systems: Mapping[str, MolecularSystem],
    others: Sequence[Potential],
    boxes: Mapping[str, MolecularSystem],
    models: Sequence[str],
    n_replicas: int,
    platform: str,
    precision: Precision,
    effort: Effort,
    say: Progress,
) -> dict[str, Any]:
    busy = busy_now()
    chosen, notices = _platform(subjects, systems, n_replicas, platform, precision)
    reasons = []
    if busy > BUSY_LIMIT:
        reasons.append(
            f"others were at work before the start: {busy:.0%} of the cores "
            f"(wanted {BUSY_LIMIT:.0%} or less)"
        )
    origin = documents.provenance(chosen, precision, effort.n_rounds, effort.block_s)
    origin["notices"] = notices
    results: list[dict[str, Any]] = []
    points: list[Point] = []
    for potential, name in subjects:
        subject = _Subject(
            potential, name, systems[name], others, n_replicas, chosen, precision, effort, say
        )
        result, timings = subject.measure()
        results.append(result)
        points += subject.points(timings)
        why = inconclusive(timings)
        if why:
            reasons.append(f"{subject.label}: {why}")
    scaling = [_scaling(spec, boxes, platform, precision, effort, say) for spec in models if boxes]
    unique = {(point.potential, point.system): point for point in points}
    return {
        "schema": documents.SCHEMA,
        "provenance": {**origin, "load_per_core_after": round(load_per_core(), 3)},
        "conclusive": not reasons,
        "reasons": reasons,
        "results": results,
        "scaling": scaling,
        "pareto": _pareto(list(unique.values())),
    }


def _platform(
    subjects: Sequence[tuple[Potential, str]],
    systems: Mapping[str, MolecularSystem],
    n_replicas: int,
    requested: str,
    precision: Precision,
) -> tuple[str, list[str]]:
    """Where everything is timed, decided for the largest system, and what is to be known of it."""
    potential, name = max(subjects, key=lambda subject: systems[subject[1]].n_atoms)
    system = systems[name]
    chosen = choose_platform(requested, system.n_atoms)
    fallback = {why for one, _ in subjects if (why := why_not_meant(one, system))}
    if requested != AUTO or chosen not in GPU_PLATFORMS:
        return chosen, sorted(fallback)
    many = min(n_replicas, potential.capabilities(system).max_replicas)
    choice = choose(potential, system, n_replicas=many, precision=precision)
    return choice.platform, [*choice.notices, *sorted(fallback)]


@contextlib.contextmanager
def _threads(n_threads: int | None) -> Iterator[None]:
    """One thread for torch; so many for the compiled engine, which goes by the environment."""
    before, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    if n_threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if n_threads is not None:
            os.environ.pop("OMP_NUM_THREADS")
            if variable is not None:
                os.environ["OMP_NUM_THREADS"] = variable


@dataclasses.dataclass(eq=False)
class _Subject:
    """One potential on one system, with those that are timed beside it."""

    potential: Potential
    name: str
    system: MolecularSystem
    others: Sequence[Potential]
    n_replicas: int
    platform: str
    precision: Precision
    effort: Effort
    say: Progress
    skipped: list[dict[str, str]] = dataclasses.field(default_factory=list)

    @property
    def label(self) -> str:
        return f"{self.potential.spec} on {self.system.name}"

    def measure(self) -> tuple[dict[str, Any], dict[str, Timing]]:
        failed: dict[str, str] = {}
        with contextlib.ExitStack() as made:
            ways = []
            for way in self._ways():
                made.callback(way.close)
                ways.append(way)
            timings = time_ways(
                ways,
                n_rounds=self.effort.n_rounds,
                block_s=self.effort.block_s,
                failed=failed,
                progress=lambda done, total: self.say(f"{self.label}: timing", done, total),
            )
        self.skipped += [{"way": name, "reason": reason} for name, reason in failed.items()]
        for name in (SINGLE, UNRECORDED):  # everything else is held against these
            if name in failed:
                raise AnalysisError(f"{self.label}: {failed[name]}")
        n_atoms = self.system.n_atoms
        result: dict[str, Any] = {
            "model": self.potential.spec,
            "system": self.system.name,
            "n_atoms": n_atoms,
            "n_parameters": self.potential.card.n_parameters,
            "ways": [documents.timing_row(timing, n_atoms) for timing in timings.values()],
            "ratios": list(_ratios(timings)),
            "skipped": self.skipped,
        }
        if isinstance(self.potential, StudentPotential):
            result |= self._student(self.potential, timings)
        if RECORDED in timings:
            result["analysis"] = self._analysis(timings[RECORDED])
        result["memory"] = self._memory(timings[UNRECORDED].n_replicas)
        return result, timings

    def points(self, timings: dict[str, Timing]) -> Iterator[Point]:
        """Accuracy against cost, of the model and of those beside it."""
        timed = [(self.potential, SINGLE), *((other, other.spec) for other in self.others)]
        for potential, way in timed:
            if way not in timings:
                continue
            error = force_rmse(potential, self.system, self.platform)
            if error is not None:
                yield Point(
                    potential.spec,
                    potential.card.source,
                    self.system.name,
                    error,
                    1000.0 * timings[way].step.value,
                )

    def _ways(self) -> Iterator[Way]:
        potential, system = self.potential, self.system
        where = (system, self.platform, self.precision)
        plain = potential
        if isinstance(potential, StudentPotential):
            plain = StudentPotential(potential.student, potential.backend, "scripted")
        too_much = plain.unsupported(system)  # a script may need memory that is not there
        if too_much:
            self.skipped += [{"way": name, "reason": too_much} for name in (YARDSTICK, PLAIN, ASE)]
        else:
            yield Yardstick(plain, *where, name=YARDSTICK)
            yield Yardstick(plain, *where, name=PLAIN, recorded=False)
        yield Unrecorded(potential, *where, name=SINGLE)
        many = min(self.n_replicas, potential.capabilities(system).max_replicas)
        yield Unrecorded(potential, *where, name=UNRECORDED, n_replicas=many)
        yield Recorded(potential, *where, name=RECORDED, n_replicas=many)
        if isinstance(potential, StudentPotential):
            yield from self._elsewhere(potential, many, scripted=not too_much)
        for other in self.others:
            reason = other.unsupported(system)
            if reason:
                self.skipped.append({"way": other.spec, "reason": reason})
            else:
                yield Unrecorded(other, *where, name=other.spec)

    def _elsewhere(
        self, potential: StudentPotential, many: int, *, scripted: bool
    ) -> Iterator[Way]:
        student, system = potential.student, self.system
        makers: dict[str, Callable[[], Way]] = {}
        if scripted:
            makers[ASE] = lambda: AseVerlet(student, system, name=ASE, engine="scripted")
        if not system.periodic:  # in a cell the calculator is scripted, for its stress
            makers[ASE_COMPILED] = lambda: AseVerlet(
                student, system, name=ASE_COMPILED, engine="auto"
            )
            makers[TORCH_SIM] = lambda: TorchSim(student, system, name=TORCH_SIM, n_replicas=many)
        for name, make in makers.items():
            try:
                yield make()
            except MissingPackageError as error:
                self.skipped.append({"way": name, "reason": str(error)})

    def _student(self, potential: StudentPotential, timings: dict[str, Timing]) -> dict[str, Any]:
        self.say(f"{self.label}: where the time goes", 0, 1)
        many = timings[UNRECORDED].n_replicas
        found: dict[str, Any] = {}
        if RECORDED in timings:
            parts = breakdown(
                potential.student,
                self.system,
                self.platform,
                engine=potential.engine,
                n_replicas=many,
                unrecorded_s=timings[UNRECORDED].step.value,
                recorded_s=timings[RECORDED].step.value,
            )
            found["breakdown_ms"] = {
                name: float(f"{1000.0 * seconds:.4g}")
                for name, seconds in dataclasses.asdict(parts).items()
            }
        least = floor(
            potential.student,
            self.system,
            1,
            n_threads=kernel_threads(),
            device="cuda" if self.platform == "CUDA" else "cpu",
        )
        single = timings[SINGLE].step.value
        found["floor"] = {
            "multiply_adds": least.multiply_adds,
            "multiply_adds_per_s": float(f"{least.rate:.4g}"),
            "threads": least.n_threads,
            "ms": float(f"{1000.0 * least.seconds:.4g}"),
            "ratio": float(f"{single / least.seconds:.4g}"),
        }
        self.say(f"{self.label}: where the time goes", 1, 1)
        return found

    def _analysis(self, recorded: Timing) -> dict[str, Any]:
        """How much faster a run is measured than it went."""
        return analysis_row(
            self.potential,
            self.system,
            self.platform,
            self.precision,
            n_replicas=recorded.n_replicas,
            step_s=recorded.step.value,
            wanted_s=_ANALYSED_BLOCKS * self.effort.block_s,
            progress=lambda done, total: self.say(f"{self.label}: analysis", done, total),
        )

    def _memory(self, n_replicas: int) -> dict[str, Any]:
        try:
            peak = peak_memory(
                self.potential.spec,
                self.name,
                platform=self.platform,
                precision=self.precision,
                n_replicas=n_replicas,
            )
        except ValidationFailure as error:
            return {"reason": str(error)}
        return _memory_row(peak.host, peak.imported, peak.device)


def _memory_row(host: int, imported: int, device: int | None) -> dict[str, Any]:
    return {
        "host_MiB": round(host / BYTES_PER_MIB, 1),
        "imported_MiB": round(imported / BYTES_PER_MIB, 1),
        "device_MiB": None if device is None else round(device / BYTES_PER_MIB, 1),
    }


def _ratios(timings: dict[str, Timing]) -> Iterator[dict[str, Any]]:
    """How many times as many replica-steps a second the second of two ways takes."""
    wanted = (
        (YARDSTICK, RECORDED),
        (YARDSTICK, UNRECORDED),
        (YARDSTICK, SINGLE),
        (RECORDED, UNRECORDED),
        (PLAIN, SINGLE),
        (ASE, SINGLE),
        (ASE_COMPILED, SINGLE),
        (TORCH_SIM, UNRECORDED),
    )
    known = {name for pair in wanted for name in pair}
    beside = tuple((SINGLE, name) for name in timings if name not in known)
    for slow, fast in (*wanted, *beside):
        if slow in timings and fast in timings:
            ratio = documents.interval_row(speedup(timings[slow], timings[fast]))
            yield {"slow": slow, "fast": fast, **ratio}


def _scaling(
    spec: str,
    boxes: Mapping[str, MolecularSystem],
    platform: str,
    precision: Precision,
    effort: Effort,
    say: Progress,
) -> dict[str, Any]:
    """Seconds a step and memory over the sizes; the boxes are timed in rounds, like ways."""
    potential = load_potential(spec)
    counts = [box.n_atoms for box in boxes.values()]
    label = f"{spec}: water boxes of {counts[0]} to {counts[-1]} atoms"
    ways = [
        Unrecorded(
            potential, box, choose_platform(platform, box.n_atoms), precision, name=str(box.n_atoms)
        )
        for box in boxes.values()
    ]
    try:
        timings = time_ways(
            ways,
            n_rounds=effort.n_rounds,
            block_s=effort.block_s,
            progress=lambda done, total: say(label, done, total),
        )
    finally:
        for way in ways:
            way.close()
    rows: list[dict[str, Any]] = []
    for name, box in boxes.items():
        timing = timings[str(box.n_atoms)]
        try:
            peak = peak_memory(spec, name, platform=platform, precision=precision)
            memory = _memory_row(peak.host, peak.imported, peak.device)
        except OmmMlffError as error:
            memory = {"reason": str(error)}
        rows.append(
            {
                "system": name,
                "n_atoms": box.n_atoms,
                "ms_per_step": documents.interval_row(timing.step, 1000.0),
                "spread": round(timing.spread, 4),
                "memory": memory,
            }
        )
    sizes = [row["n_atoms"] for row in rows]
    found: dict[str, Any] = {"model": spec, "sizes": rows}
    if len(rows) > 1:
        times = [row["ms_per_step"]["value"] for row in rows]
        found["time_exponent"] = _exponent_row(sizes, times)
        held = [row["memory"].get("host_MiB") for row in rows]
        if None not in held:
            slope = (held[-1] - held[0]) / (sizes[-1] - sizes[0])
            found["KiB_per_atom"] = round(slope * 1024.0, 3)
    return found


def _exponent_row(sizes: Sequence[float], values: Sequence[float]) -> dict[str, float | None]:
    fit = exponent(sizes, values)
    ends = (fit.low, fit.high) if len(sizes) > 2 else (None, None)
    return {
        "value": round(fit.value, 4),
        "low": None if ends[0] is None else round(ends[0], 4),
        "high": None if ends[1] is None else round(ends[1], 4),
    }


def _pareto(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Every point, and whether another on its system is better."""
    rows = []
    for point in points:
        rivals = [other for other in points if other.system == point.system]
        rows.append(
            {
                "potential": point.potential,
                "source": point.source,
                "system": point.system,
                "force_rmse_eV_angstrom": float(f"{point.force_rmse:.4g}"),
                "step_ms": float(f"{point.step_ms:.4g}"),
                "dominated_by": [r.potential for r in rivals if point.dominated_by(r)],
            }
        )
    return rows
