"""The public `validate()`: campaign, then judge, then report; no logic of its own."""

from __future__ import annotations

import dataclasses
import datetime
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omm_mlff.campaign import campaign as campaigns
from omm_mlff.campaign.campaign import Progress
from omm_mlff.checks.registry import all_declarations, default_criteria
from omm_mlff.dynamics.reference_method import ReferenceMethod
from omm_mlff.errors import InputError
from omm_mlff.forces.platforms import device_asked
from omm_mlff.potentials.registry import as_potential
from omm_mlff.report import Judged, write_reports
from omm_mlff.schema import MAX_LOOKS, Cause, MolecularSystem, Verdict
from omm_mlff.systems import load_system
from omm_mlff.systems.labels import LabelOptions, labelled_systems
from omm_mlff.verdict.diagnosis import diagnose
from omm_mlff.verdict.judge import (
    POLICIES,
    check_scope,
    exit_code,
    judge_all,
    undecided_runs,
)
from omm_mlff.verdict.measurement_file import MeasurementFile
from omm_mlff.verdict.policies import load_policies
from omm_mlff.verdict.profiles import load_profile

SystemLike = str | os.PathLike[str] | MolecularSystem
"""What `validate` takes for a system: a shipped name, a file, or a system that is loaded."""


@dataclass(frozen=True, repr=False)
class Validation:
    """What a validation came to.

    Attributes
    ----------
    judged : the verdicts, with their findings
    measured : what they rest on
    folder : with the run directories and reports
    reports : the files that were written
    """

    judged: Judged
    measured: MeasurementFile
    folder: Path
    reports: tuple[Path, ...]

    @property
    def verdict(self) -> Verdict:
        """Under the policy that was asked for."""
        return self.judged.verdict

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        """Under every policy, by its name."""
        return self.judged.verdicts

    @property
    def diagnosis(self) -> tuple[Cause, ...]:
        """What its failures come from, the most fundamental cause first."""
        return self.judged.diagnosis

    def __repr__(self) -> str:
        judged = self.judged
        name = judged.model.name
        return f"<Validation of {name}, {judged.profile}: {self.verdict.name}, in {self.folder}>"

    @property
    def exit_code(self) -> int:
        """Of `omm-mlff validate`."""
        return exit_code(self.verdict.name)


def validate(
    model: Any,
    *,
    systems: SystemLike | Iterable[SystemLike] = (),
    profile: str | Path = "quick",
    policy: str | Path = "strict",
    platform: str = "auto",
    allow_fallback: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    labels: str | Path | Mapping[str, Any] | None = None,
    label_options: LabelOptions | None = None,
    teacher: Any = None,
    progress: Progress | None = None,
) -> Validation:
    """Run a potential in OpenMM and judge whether it is safe to use.

    Parameters
    ----------
    model : a model spec such as "tiny" or a checkpoint's folder, a Potential, or what a model
        source takes: an ASE calculator, a TorchScript module, an openmm.System
    systems : in place of the profile's, one or many: shipped names, structure files, `water-box:N`,
        or systems already loaded, each under its own name
    profile : a shipped name, or the path of a TOML file
    policy : likewise; its verdict counts, and its undecided runs are the ones that are extended
    platform : of OpenMM, or "auto": the faster one for this potential, system by system. One device
        of several is taken inside `forces.platforms.on_device`
    allow_fallback : where a platform is named, go on through a PythonForce, which computes on the
        host, if TorchForce cannot be had; otherwise that is an error
    out : a new folder; by default a fresh one under `runs/`
    resume : go on with what `out` holds
    seed : of velocities and of every random choice in the checks
    labels : energies and forces to compare with, in place of shipped ones: a file, or arrays
        (`omm_mlff.systems.labels.labelled_systems`). Without `systems` its own are taken
    label_options : what the file does not say of itself: keys, units, whether it was held out
    teacher : a reference method, as `model` is given: asked along the runs, and for conformers,
        torsions and vibrations
    progress : called with what is being done, how much of it is done, and how much there is

    Returns
    -------
    the verdict with everything it rests on; reports are in its folder

    Raises
    ------
    InputError : what was asked for cannot be done as asked
    ValidationFailure : the validation itself failed; this says nothing about the model
    """
    if resume and (out is None or not Path(out).is_dir()):
        raise InputError(
            f"there is nothing to go on with in {out}; name the folder of an earlier "
            "validation, or leave --resume out"
        )
    if seed < 0:
        raise InputError(f"a validation needs a seed of 0 or more; got {seed}")
    potential = as_potential(model)
    chosen = load_profile(profile)
    method = None if teacher is None else ReferenceMethod(as_potential(teacher), platform)
    asked = [systems] if isinstance(systems, str | os.PathLike | MolecularSystem) else list(systems)
    given = {system.name: system for system in asked if isinstance(system, MolecularSystem)}
    said = names = [s.name if isinstance(s, MolecularSystem) else os.fspath(s) for s in asked]
    if len(set(names)) < len(names) and given:
        raise InputError(f"two systems have one name ({', '.join(names)}); rename one of them")
    if labels is not None:
        onto = [given[name] if name in given else load_system(name) for name in names]
        labelled = labelled_systems(labels, label_options, onto)
        names = names or [system.name for system in labelled]
        given = dict(zip(names, labelled, strict=True))
    elif label_options is not None and label_options != LabelOptions():
        raise InputError("keys and units of labels, and no labels; name their file with --labels")
    if names:
        chosen = chosen.for_systems(names)
    elif potential.card.knows_atoms_by == "index":
        raise InputError(
            f"{potential.card.name} carries no elements: name the system whose atoms it knows, in "
            "their order, with --system"
        )
    # Before anything runs, and once: a file that is edited meanwhile changes no look at the runs.
    policies = load_policies([policy, *POLICIES], all_declarations(), default_criteria())
    for item in policies:
        check_scope(item, chosen.scope)
    folder = Path(out) if out is not None else _fresh_folder(potential.card.name, chosen.name)
    campaign = campaigns.plan(
        potential,
        chosen,
        given=given,
        seed=seed,
        platform=platform,
        folder=folder,
        resume=resume,
        allow_fallback=allow_fallback,
        teacher=method,
        progress=progress,
    )
    measured = campaigns.execute(campaign, progress)
    verdicts = judge_all(measured, policies)
    for _ in range(MAX_LOOKS - 1):
        longer = undecided_runs([next(iter(verdicts.values()))])
        if not longer:
            break
        measured = campaigns.extend(campaign, measured, longer, progress)
        verdicts = judge_all(measured, policies)
    findings = next(iter(verdicts.values())).findings  # of the policy that was asked for
    failed = {f.run for f in findings if f.status == "fail" and f.severity != "info" and f.run}
    judged = Judged(
        model=potential.card,
        profile=chosen.name,
        policy=next(iter(verdicts)),
        verdicts=verdicts,
        diagnosis=diagnose(findings, measured.measurements, measured.declarations),
        failures=campaigns.explain(campaign, failed, progress) if failed else (),
        provenance=dataclasses.replace(
            measured.provenance,
            command=_command(
                potential.spec,
                names if labels is None else said,
                profile,
                policy,
                platform,
                seed,
                [
                    *["--allow-fallback"] * allow_fallback,
                    *_label_words(labels, label_options, method),
                ],
            ),
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        ),
    )
    return Validation(judged, measured, folder, tuple(write_reports(judged, folder)))


LABEL_WORDS = {
    "energy_key": "--energy-key",
    "forces_key": "--forces-key",
    "energy_unit": "--energy-unit",
    "force_unit": "--force-unit",
    "length_unit": "--length-unit",
    "held_out": "--labels-held-out",
    "method": "--labels-method",
}
"""What the command line calls the fields of `LabelOptions`."""


def _fresh_folder(model: str, profile: str) -> Path:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path("runs") / f"{model}-{profile}-{stamp}"
    number = 1
    while folder.exists():
        number += 1
        folder = folder.with_name(f"{model}-{profile}-{stamp}-{number}")
    return folder


def _command(
    model: str,
    systems: Sequence[str],
    profile: str | Path,
    policy: str | Path,
    platform: str,
    seed: int,
    others: Sequence[str],
) -> str:
    words = ["omm-mlff validate", f"--model {model}"]
    words += [f"--system {system}" for system in systems]
    words += [f"--profile {profile}", f"--policy {policy}"]
    words += [f"--platform {platform}"] if platform != "auto" else []
    words += [f"--device {device_asked()}"] if device_asked() is not None else []
    words += [f"--seed {seed}"] if seed else []
    return " ".join([*words, *others])


def _label_words(
    labels: str | Path | Mapping[str, Any] | None,
    options: LabelOptions | None,
    teacher: ReferenceMethod | None,
) -> list[str]:
    words = []
    if labels is not None:
        file = "ARRAYS" if isinstance(labels, Mapping) else shlex.quote(str(labels))
        words.append(f"--labels {file}")
    for key, option in LABEL_WORDS.items():
        value = getattr(options or LabelOptions(), key)
        if value != getattr(LabelOptions(), key):
            words.append(f"{option} {shlex.quote(value)}")
    if teacher is not None:
        words.append(f"--teacher {shlex.quote(teacher.spec)}")
    return words
