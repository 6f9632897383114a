"""Plans the runs and checks that a profile needs, executes them, and resumes what was interrupted.

Layout of a campaign's folder:

    campaign.json          what was asked for; a resumed campaign must ask for the same
    runs/<run>/            one run directory for each planned run
    measurements.json      what the checks found
    failures/<run>/        what happened in a run that failed, with scripts that replay it

A run keeps its folder when it is extended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omm_mlff.campaign.references import DISAGREEMENT, disagreement, with_landmarks
from omm_mlff.campaign.request import CampaignRequest
from omm_mlff.checks.base import Check, Evidence, absent
from omm_mlff.checks.registry import all_checks
from omm_mlff.dynamics.contexts import Contexts
from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.dynamics.platform_choice import (
    AUTO,
    refuse_fallback,
    require_recorded,
    where_runs_are,
)
from omm_mlff.dynamics.provenance import package_versions
from omm_mlff.dynamics.reference_method import ReferenceMethod
from omm_mlff.dynamics.simulate import simulate
from omm_mlff.errors import InputError, OutputExistsError
from omm_mlff.failures import explain as failures
from omm_mlff.forces.platforms import choose_platform
from omm_mlff.forces.threads import threads_for
from omm_mlff.potentials.base import Potential, refuse_unsupported
from omm_mlff.potentials.bound_to_systems import bound
from omm_mlff.potentials.registry import content_hash
from omm_mlff.record import rundir
from omm_mlff.record.documents import read_document, write_document
from omm_mlff.record.rundir import RunRecord
from omm_mlff.record.storage import storage_errors
from omm_mlff.schema import ExplainedFailure, Measurement, MolecularSystem, RunSpec, Where
from omm_mlff.systems import load_system
from omm_mlff.verdict.measurement_file import MeasurementFile, Planned
from omm_mlff.verdict.profiles import PlannedRun, Profile
from omm_mlff.verdict.provenance import (
    LabelsUsed,
    SimulatedRun,
    TeacherUsed,
    ValidationProvenance,
)

log = logging.getLogger(__name__)

REQUEST_FILE = "campaign.json"
MEASUREMENTS_FILE = "measurements.json"
FAILURES = "failures"

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Campaign:
    """Everything that one validation will run and measure.

    Attributes
    ----------
    systems : by spec; each is measured once
    runs : in the order of the profile
    teacher : the reference method that the user has named
    """

    potential: Potential
    profile: Profile
    systems: dict[str, MolecularSystem]
    runs: tuple[PlannedRun, ...]
    seed: int
    platform: str
    folder: Path
    allow_fallback: bool = False
    teacher: ReferenceMethod | None = None

    def run_folder(self, run: PlannedRun) -> Path:
        """Where a planned run lives, however often it is extended."""
        return self.folder / "runs" / self.spec(run).name

    def spec(self, run: PlannedRun, factor: int = 1) -> RunSpec:
        """A planned run as `simulate` takes it, `factor` times as long as planned."""
        # Runs that differ in anything but their system draw different velocities.
        words = f"{run.temperature_K}/{run.timestep_fs}/{run.length_ps}/{run.n_replicas}"
        if run.purpose != "production":
            words += f"/{run.purpose}"
        digest = hashlib.sha256(f"{self.seed}/{words}".encode()).digest()
        spec = run.spec(
            self.potential.spec, int.from_bytes(digest[:4], "big"), platform=self.platform
        )
        return dataclasses.replace(spec, length_ps=run.length_ps * factor)


def plan(
    potential: Potential,
    profile: Profile,
    *,
    given: Mapping[str, MolecularSystem] | None = None,
    seed: int,
    platform: str,
    folder: Path,
    resume: bool,
    allow_fallback: bool = False,
    teacher: ReferenceMethod | None = None,
    progress: Progress | None = None,
) -> Campaign:
    """Check that everything asked for can be done, then write down what it is.

    Parameters
    ----------
    given : systems that are already loaded, by the name that the profile has for them
    allow_fallback : see `simulate`
    teacher : asked along the runs, and for the minima, vibrations and torsions of each system
    progress : told where that takes long

    Raises
    ------
    UnknownNameError, StructureError : a system that cannot be used
    UnsupportedSystemError : a system that the potential cannot serve
    PlatformError : the platform is not available
    OutputExistsError : the folder holds another run, or this one and `resume` is false
    """
    specs = dict.fromkeys((*profile.static_systems, *(run.system for run in profile.runs)))
    loaded = dict(given or {})
    systems = {spec: loaded.get(spec) or load_system(spec) for spec in specs}
    names = [system.name for system in systems.values()]
    if len(set(names)) < len(names):
        raise InputError(f"two systems have one name ({', '.join(names)}); rename a file")
    potential = bound(potential, systems.values())
    for system in systems.values():
        refuse_unsupported(potential, system)
        refuse_fallback(potential, system, platform, allowed=allow_fallback)
        if potential.card.knows_atoms_by == "index" and (
            system.charge or system.spin_multiplicity != 1
        ):
            log.warning(
                "notice: %s is told neither charge nor spin: that it was made for charge %+d and "
                "spin multiplicity %d is taken from you",
                potential.card.name,
                system.charge,
                system.spin_multiplicity,
            )
    choose_platform(platform, max(system.n_atoms for system in systems.values()))
    campaign = Campaign(
        potential, profile, systems, profile.runs, seed, platform, folder, allow_fallback
    )
    labels = {
        spec: f"{system.reference.sha256} {system.reference.held_out}"
        for spec, system in systems.items()
        if system.reference is not None and system.reference.source
    }
    request = CampaignRequest(
        model=potential.spec,
        sha256=content_hash(potential),
        profile=profile.name,
        systems={spec: _digest(system) for spec, system in systems.items()},
        runs=profile.runs,
        seed=seed,
        platform=platform,
        labels=labels,
        teacher=None if teacher is None else (teacher.spec, content_hash(teacher.potential)),
    )
    _claim(folder, request, resume=resume)
    if platform == AUTO:
        for record in _begun(campaign):
            require_recorded(record.folder, record.provenance.platform)
    if teacher is None:
        return campaign
    say = progress or _silent
    known = {spec: with_landmarks(system, teacher, folder, say) for spec, system in systems.items()}
    for system in known.values():
        off = disagreement(system, teacher)
        if off is not None and off > DISAGREEMENT:
            log.warning(
                "notice: the labels of %s differ from %s by %.0f%% of the forces: they are not by "
                "one method, and along the run the model is held against %s",
                system.name,
                teacher.name,
                100.0 * off,
                teacher.name,
            )
    return dataclasses.replace(campaign, systems=known, teacher=teacher)


def execute(campaign: Campaign, progress: Progress | None = None) -> MeasurementFile:
    """Run what is planned and measure it.

    Runs that a former attempt completed are taken as they are; one that was interrupted goes on.
    """
    say = progress or _silent
    measurements: list[Measurement] = []
    with _contexts(campaign.systems) as contexts:
        for run in campaign.runs:
            _simulate(campaign, run, say, contexts[run.system])
        for spec in campaign.systems:
            measurements += _measure(campaign, spec, all_checks(), say, contexts[spec])
    return _written(campaign, measurements)


def extend(
    campaign: Campaign,
    measured: MeasurementFile,
    run_names: Iterable[str],
    progress: Progress | None = None,
) -> MeasurementFile:
    """Double the runs that are named, and measure anew what depends on them.

    The rungs of a ladder, and runs at several temperatures under a thermostat, are read together:
    where one of them is named all are doubled.

    Parameters
    ----------
    run_names : as measurements name them
    """
    say = progress or _silent
    wanted = set(run_names)
    records = {run: RunRecord.open(campaign.run_folder(run)) for run in campaign.runs}
    ladders = {
        (run.system, run.purpose)
        for run, record in records.items()
        if record.spec.name in wanted and run.purpose != "production"
    }
    touched = {
        run.system: campaign.systems[run.system].name
        for run, record in records.items()
        if record.spec.name in wanted or (run.system, run.purpose) in ladders
    }
    checks = [check for check in all_checks() if "runs" in check.needs]
    renewed = {row.name for check in checks for row in check.declares}
    kept = [
        row
        for row in measured.measurements
        if not (row.name in renewed and row.where.system in touched.values())
    ]
    with _contexts(campaign.systems) as contexts:
        for run, record in records.items():
            if record.spec.name in wanted or (run.system, run.purpose) in ladders:
                factor = round(record.spec.length_ps / run.length_ps) * 2
                _simulate(campaign, run, say, contexts[run.system], factor)
        for spec in touched:
            kept += _measure(campaign, spec, checks, say, contexts[spec])
    return _written(campaign, kept)


def explain(
    campaign: Campaign, run_names: Iterable[str], progress: Progress | None = None
) -> tuple[ExplainedFailure, ...]:
    """Say what happened in the runs that are named, and write it to `failures/` in the folder.

    Parameters
    ----------
    run_names : as measurements name them
    """
    say = progress or _silent
    wanted = set(run_names)
    explained = []
    for run in campaign.runs:
        record = RunRecord.open(campaign.run_folder(run))
        if record.spec.name not in wanted:
            continue
        system = campaign.systems[run.system]
        say(f"{system.name}: what happened", 0, 1)
        place = campaign.folder / FAILURES / campaign.run_folder(run).name
        with threads_for(system.n_atoms):
            found = failures.explain(record, system, campaign.potential, place)
        explained += [
            ExplainedFailure(
                system.name,
                item.run,
                item.replica,
                item.diagnosis,
                item.sentence,
                item.n_failed,
                str(item.folder.relative_to(campaign.folder)),
                str(item.replay.relative_to(campaign.folder)) if item.replay else "",
            )
            for item in found
        ]
        say(f"{system.name}: what happened", 1, 1)
    return tuple(explained)


@contextlib.contextmanager
def _contexts(systems: Iterable[str]) -> Iterator[dict[str, Contexts]]:
    """For each system its own; what a system was measured with goes before the next one's turn."""
    with contextlib.ExitStack() as stack:
        yield {spec: stack.enter_context(Contexts()) for spec in systems}


def _simulate(
    campaign: Campaign, run: PlannedRun, say: Progress, contexts: Contexts, factor: int = 1
) -> None:
    folder = campaign.run_folder(run)
    spec = campaign.spec(run, factor)
    if (folder / rundir.STATUS_FILE).exists():
        record = RunRecord.open(folder)
        _require_same(record, spec, campaign.systems[run.system])
        if record.status.state == "complete" and record.spec.length_ps >= spec.length_ps:
            return
        # An extension that was interrupted goes on to where it was meant to go.
        spec = dataclasses.replace(spec, length_ps=max(spec.length_ps, record.spec.length_ps))
    system = campaign.systems[run.system]
    label = f"{system.name}: {spec.n_replicas} x {spec.length_ps:g} ps at {spec.temperature_K:g} K"
    simulate(
        spec,
        campaign.potential,
        system,
        folder,
        resume=True,
        allow_fallback=campaign.allow_fallback,
        progress=lambda done, total: say(label, done, total),
        contexts=contexts,
    )


def _require_same(record: RunRecord, spec: RunSpec, system: MolecularSystem) -> None:
    """Refuse a run directory that is not this run's: its frames would be judged as if it were."""
    kept = record.spec
    asked = dataclasses.replace(spec, length_ps=kept.length_ps, platform=kept.platform)
    different = [name for name, value in vars(asked).items() if vars(kept)[name] != value]
    arrays = {
        "species": (system.species, record.species),
        "masses": (system.masses, record.masses),
        "bonds": (system.bonds, record.bonds),
    }
    different += [name for name, pair in arrays.items() if not np.array_equal(*pair)]
    if different:
        raise OutputExistsError(
            f"{record.folder} holds another run (different: {', '.join(different)}); use another "
            "--out"
        )


def _measure(
    campaign: Campaign, spec: str, checks: Sequence[Check], say: Progress, contexts: Contexts
) -> list[Measurement]:
    system = campaign.systems[spec]
    potential = campaign.potential
    records = tuple(
        RunRecord.open(campaign.run_folder(run)) for run in campaign.runs if run.system == spec
    )
    used = [record.provenance.platform for record in records]
    static = spec in campaign.profile.static_systems
    measurements: list[Measurement] = []
    with (
        threads_for(system.n_atoms),
        contexts,
        Evaluator(
            potential, system, where_runs_are(campaign.platform, used), contexts=contexts
        ) as evaluator,
    ):
        evidence = Evidence(
            system=system,
            card=potential.card,
            runs=records,
            evaluator=evaluator,
            seed=campaign.seed,
            reference_energy_kjmol=potential.reference_energy(system),
            teacher=campaign.teacher,
        )
        purposes = {record.spec.purpose for record in records}
        due = [check for check in checks if _is_due(check, static, purposes)]
        for done, check in enumerate(due):
            say(f"{system.name}: {check.name}", done, len(due))
            measurements += check.measure(evidence)
        for check in (check for check in checks if check not in due):
            reason = f"profile {campaign.profile.name} has nothing for it to look at"
            measurements += [
                absent(row, Where(system=system.name), reason) for row in check.declares
            ]
        say(f"{system.name}: checks", len(due), len(due))
    return measurements


def _begun(campaign: Campaign) -> list[RunRecord]:
    """The runs of which something is there."""
    folders = [campaign.run_folder(run) for run in campaign.runs]
    return [RunRecord.open(folder) for folder in folders if (folder / rundir.STATUS_FILE).exists()]


def _is_due(check: Check, static: bool, purposes: Set[str]) -> bool:
    return bool(check.reads & purposes) if "runs" in check.needs else static


def _planned(campaign: Campaign) -> tuple[Planned, ...]:
    """Every measurement that a criterion may ask for, system by system, run by run."""
    planned = []
    for spec, system in campaign.systems.items():
        runs = [run for run in campaign.runs if run.system == spec]
        static = spec in campaign.profile.static_systems
        for check in all_checks():
            if not _is_due(check, static, {run.purpose for run in runs}):
                continue
            places = [Where(system=system.name)]
            if "runs" in check.needs and not check.joint:
                read = [run for run in runs if run.purpose in check.reads]
                specs = [RunRecord.open(campaign.run_folder(run)).spec for run in read]
                places = [
                    Where(system=system.name, run=item.name, length_ps=item.length_ps)
                    for item in specs
                ]
            planned += [Planned(row.name, place) for row in check.declares for place in places]
    return tuple(planned)


def _written(campaign: Campaign, measurements: Sequence[Measurement]) -> MeasurementFile:
    checks = all_checks()
    records = [RunRecord.open(campaign.run_folder(run)) for run in campaign.runs]
    measured = MeasurementFile(
        card=campaign.potential.card,
        scope=campaign.profile.scope,
        declarations=tuple(row for check in checks for row in check.declares),
        default_criteria=tuple(row for check in checks for row in check.criteria),
        planned=_planned(campaign),
        measurements=tuple(measurements),
        provenance=_provenance(campaign, records),
        runs={
            record.spec.name: campaign.spec(run)
            for run, record in zip(campaign.runs, records, strict=True)
        },
    )
    path = campaign.folder / MEASUREMENTS_FILE
    with storage_errors(path):
        measured.write(path)
    return measured


def _provenance(campaign: Campaign, records: Sequence[RunRecord]) -> ValidationProvenance:
    first = records[0].provenance if records else None
    return ValidationProvenance(
        versions=dict(package_versions()),
        platform=first.platform if first else None,
        precision=first.precision if first else None,
        force=first.force if first else None,
        engine=first.engine if first else None,
        recording=first.recording if first else None,
        notices=tuple(sorted({line for row in records for line in row.provenance.notices})),
        seed=campaign.seed,
        runs={
            record.spec.name: SimulatedRun(
                record.provenance.platform, record.spec.length_ps * record.n_replicas
            )
            for record in records
        },
        reference={
            system.name: system.reference.method if system.reference else None
            for system in campaign.systems.values()
        },
        labels=_user_labels(campaign),
        teacher=_user_teacher(campaign),
    )


def _user_labels(campaign: Campaign) -> dict[str, LabelsUsed]:
    """The labels that the user has brought, by system, and what was said of them."""
    return {
        system.name: LabelsUsed(
            file=system.reference.source,
            sha256=system.reference.sha256,
            units=system.reference.units,
            method=system.reference.method,
            n_frames=system.reference.n_frames,
            held_out=f"{system.reference.held_out} (the user's word)",
            zero_of_energy="a constant for the composition removed",
        )
        for system in campaign.systems.values()
        if system.reference is not None and system.reference.source
    }


def _user_teacher(campaign: Campaign) -> TeacherUsed | None:
    """The method that the user has named for what no file has."""
    if campaign.teacher is None:
        return None
    card = campaign.teacher.potential.card
    return TeacherUsed(
        spec=campaign.teacher.spec,
        name=card.name,
        sha256=card.sha256,
        labels_differ_from_it_by={
            system.name: disagreement(system, campaign.teacher)
            for system in campaign.systems.values()
        },
    )


def _digest(system: MolecularSystem) -> str:
    """Changes with everything of a system that its runs depend on."""
    digest = hashlib.sha256()
    box = np.zeros(0) if system.box_vectors is None else system.box_vectors
    for array in (system.species, system.masses, system.positions, system.bonds, box):
        digest.update(np.ascontiguousarray(array).tobytes())
    if system.charge or system.spin_multiplicity != 1:
        digest.update(f"{system.charge} {system.spin_multiplicity}".encode())
    return digest.hexdigest()


def _claim(folder: Path, request: CampaignRequest, *, resume: bool) -> None:
    path = folder / REQUEST_FILE
    if path.exists():
        if not resume:
            raise OutputExistsError(
                f"{folder} already holds a validation; use --resume to go on with it, "
                "or another --out"
            )
        # Where it is computed may change: what was begun goes on where it was, or where asked.
        found = dataclasses.replace(read_document(path, CampaignRequest), platform=request.platform)
        different = request.differs_in(found)
        if different:
            raise OutputExistsError(
                f"{folder} holds another validation (different: {', '.join(different)}); "
                "use another --out"
            )
        return
    rundir.make_folder(folder)
    write_document(path, request)


def _silent(label: str, done: int, total: int) -> None:
    """Nobody watches."""
