"""The frozen dataclasses that pass between stages.

Arrays are float64 in nm, ps, kJ/mol, dalton and K unless a name says otherwise.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from openmm.app import Topology
    from openmm.unit import Quantity

Kind = Literal["deterministic", "sampled", "count", "info"]
Severity = Literal["reject", "limit", "info"]
FindingStatus = Literal["pass", "fail", "undecided", "not-measured", "not-applicable"]
VerdictName = Literal["APPROVED", "NOT RECOMMENDED", "REJECTED", "UNDECIDED"]
Precision = Literal["single", "mixed", "double"]
Purpose = Literal["production", "survival", "timestep", "thermostat"]
HeldOut = Literal["yes", "no", "unknown"]
Identity = Literal["element", "bond", "index"]
EventKind = Literal["raised", "nan", "energy", "bond", "overlap"]

EXACT_KEYS: Mapping[str, str] = {"extra": "forbid"}
"""For a dataclass that is read from a file: a key that it does not have is an error."""

SIGNIFICANCE = 0.05
"""Family-wise error of one verdict over all of its looks."""

MAX_LOOKS = 3
"""A run is looked at as planned, doubled and quadrupled."""

CONFIDENCE = 1.0 - SIGNIFICANCE / MAX_LOOKS
"""Level of every interval: looking three times does not inflate errors."""


class Reason(StrEnum):
    """Why a measurement is what it is, or a finding has its status: what later code decides by.

    Texts say the same for people, and may be reworded.
    """

    # What a check has seen of the potential.
    RAISED = "raised"  # its own code stopped with an error
    NOT_FINITE = "not-finite"  # energy or forces were not finite
    # What a drift of the energy was put down to.
    TIMESTEP = "timestep"
    ROUNDING = "rounding"
    NON_CONSERVATIVE = "non-conservative"
    DISCONTINUITY = "discontinuity"
    UNEXPLAINED = "unexplained"
    # How the judge came to a finding.
    BEYOND_BOUND = "beyond-bound"
    ACROSS_BOUND = "across-bound"  # the interval reaches across it
    NOT_SURELY = "not-surely"  # beyond the bound, but not surely so among all criteria
    NO_INTERVAL = "no-interval"
    # Why there is nothing to judge.
    OUT_OF_SCOPE = "out-of-scope"  # the profile leaves the criterion out
    OTHER_DTYPE = "other-dtype"
    OTHER_SYSTEM = "other-system"
    NO_RUN = "no-run"  # none of this length or temperature
    MISSING = "missing"  # planned or asked for, and no check measured it
    TOO_FEW_SYSTEMS = "too-few-systems"


class Fault(StrEnum):
    """What may be wrong with a potential, as far as the failures of other checks follow from it."""

    NONDETERMINISM = "nondeterminism"
    HISTORY = "history"
    RAISES = "raises"
    NAN = "nan"
    UNITS = "units"
    ATOM_ORDER = "atom-order"
    NOISE = "noise"  # of forces, of energies or of both
    ORIENTATION = "orientation"
    BOX = "box"
    CUTOFF = "cutoff"
    JUMP = "jump"
    KINK = "kink"
    FORCE_SCALE = "force-scale"
    CURL = "curl"
    RAISES_IN_REACH = "raises-in-reach"  # at places that only a search has come to
    NAN_IN_REACH = "nan-in-reach"
    WALL = "wall"  # atoms can pass through each other
    SLOWING_DOWN = "slowing-down"
    ATTRIBUTED = "attributed"  # a drift that was put down to something


class Symptom(StrEnum):
    """What a failure is called that no fault explains, in the order in which it is looked for."""

    BROKEN_BOND = "broken-bond"
    CRASH = "crash"
    ROUGH = "rough"
    DRIFT = "drift"
    TEMPERATURE = "temperature"
    ACCURACY = "accuracy"
    COST = "cost"


@dataclass(frozen=True)
class PotentialCard:
    """What a potential says of itself.

    Attributes
    ----------
    name : such as "tiny"
    source : the source it came from, such as "student"
    species : atomic numbers that it knows; None means those of the system
    cutoff_nm : None where it has none or does not say
    dtype : of the network, "float32" or "float64"
    n_parameters : None where it does not say
    training_domain : free-form, from the model card
    sha256 : of the file with the parameters
    knows_atoms_by : what tells its atoms apart. By "element", like atoms may be exchanged and any
        molecule is served; by "bond", as in a native force field, they may not be exchanged; by
        "index", as in a file that was made for one molecule, it serves what it was given for alone
    charge, spin_multiplicity : the only ones that it was made for, such as 0 and 1; None where it
        takes those of the system, or is not known to
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    name: str
    source: str
    species: tuple[int, ...] | None
    cutoff_nm: float | None
    dtype: str
    n_parameters: int | None = None
    training_domain: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None
    knows_atoms_by: Identity = "element"
    charge: int | None = None
    spin_multiplicity: int | None = None


@dataclass(frozen=True, eq=False)
class ReferenceLabels:
    """Energies and forces from a reference method; shipped ones are on frames that trained nobody.

    Attributes
    ----------
    positions : shape (n_frames, n_atoms, 3), nm
    energies : shape (n_frames,), kJ/mol
    forces : shape (n_frames, n_atoms, 3), kJ/mol/nm
    trajectory : shape (n_frames,), int: frames of one trajectory are correlated
    temperature_K : shape (n_frames,), of the dynamics that a frame was taken from; NaN where that
        is not known
    method : the method that made the labels, such as "ANI-1ccx"
    source, sha256 : the file of a user that they are from, and a hash of it; empty for shipped ones
    units : of that file
    held_out : whether they trained the model, as whoever brought them says: "yes" they did not
    """

    positions: NDArray[np.float64]
    energies: NDArray[np.float64]
    forces: NDArray[np.float64]
    trajectory: NDArray[np.int64]
    temperature_K: NDArray[np.float64]
    method: str
    source: str = ""
    sha256: str = ""
    units: str = ""
    held_out: HeldOut = "yes"

    @property
    def n_frames(self) -> int:
        return len(self.energies)


@dataclass(frozen=True, eq=False)
class TorsionScan:
    """Geometries relaxed by a reference method while one torsion, or two, are held on a grid.

    Attributes
    ----------
    torsions : shape (n_torsions, 4), atom indices; one torsion is a line, two are a map
    shape : points along each torsion, evenly spaced over the circle from -180 degrees on
    positions : shape (n_points, n_atoms, 3), nm; the last torsion varies fastest
    energies : shape (n_points,), kJ/mol
    forces : shape of `positions`, kJ/mol/nm, of the method alone, without what holds the torsions
    """

    torsions: NDArray[np.int64]
    shape: tuple[int, ...]
    positions: NDArray[np.float64]
    energies: NDArray[np.float64]
    forces: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ReferenceLandmarks:
    """A reference method's own minima, normal modes and torsional profiles of a molecule.

    Attributes
    ----------
    minima : shape (n_minima, n_atoms, 3), nm; the lowest first, mirror images and permutations of
        like atoms left out
    energies : shape (n_minima,), kJ/mol
    frequencies : shape (n_modes,), 1/cm, harmonic, of the lowest minimum, ascending
    scans : every rotatable bond, or the two backbone torsions of a peptide
    method : the method that made them, such as "ANI-1ccx"
    """

    minima: NDArray[np.float64]
    energies: NDArray[np.float64]
    frequencies: NDArray[np.float64]
    scans: tuple[TorsionScan, ...]
    method: str


@dataclass(frozen=True, eq=False, repr=False)
class MolecularSystem:
    """A molecule or box that a potential is asked to serve.

    Attributes
    ----------
    name : such as "alanine"; for a file, its stem
    source : the folder or file it came from
    topology : one chain or more, every atom with its element
    positions : shape (n_atoms, 3), nm, without a unit. A Context takes that for nm, but
        `PDBFile.writeFile` for angstrom: give it `positions_quantity`, or use `to_pdb`
    species : shape (n_atoms,), atomic numbers
    masses : shape (n_atoms,), dalton
    bonds : shape (n_bonds, 2), atom indices, first < second, sorted
    box_vectors : shape (3, 3), nm, or None for a molecule in vacuum
    charge : total charge, elementary charges
    spin_multiplicity : 2 S + 1: 1 for closed shells, 2 for a radical
    reference : None where there are no labels
    landmarks : None where the reference method's own minima are not known
    """

    name: str
    source: str
    topology: Topology
    positions: NDArray[np.float64]
    species: NDArray[np.int64]
    masses: NDArray[np.float64]
    bonds: NDArray[np.int64]
    box_vectors: NDArray[np.float64] | None = None
    charge: int = 0
    reference: ReferenceLabels | None = None
    landmarks: ReferenceLandmarks | None = None
    spin_multiplicity: int = 1

    def __repr__(self) -> str:
        box = "periodic" if self.periodic else "in vacuum"
        labels = self.reference.n_frames if self.reference is not None else "no"
        return f"<MolecularSystem {self.name}: {self.n_atoms} atoms, {box}, {labels} labels>"

    @property
    def n_atoms(self) -> int:
        return len(self.species)

    @property
    def periodic(self) -> bool:
        return self.box_vectors is not None

    @property
    def positions_quantity(self) -> Quantity:
        """The positions with their unit, as every function of OpenMM takes them right."""
        from openmm import unit

        return unit.Quantity(self.positions, unit.nanometer)

    def to_pdb(self, path: str | Path) -> None:
        """Write a PDB file, with the box, that has the same atoms in the same order when read.

        A file that is there is replaced. Where two atoms of a residue would have one name, which
        readers take for one atom, they are named by element and number.
        """
        from openmm.app import PDBFile

        topology = _with_distinct_names(self.topology)
        if self.box_vectors is not None:
            topology.setPeriodicBoxVectors(self.box_vectors)
        with Path(path).open("w", encoding="utf-8") as file:
            PDBFile.writeFile(topology, self.positions_quantity, file)


def _with_distinct_names(topology: Topology) -> Topology:
    """A copy; a PDB file keeps four letters of an atom's name."""
    copied = type(topology)()
    atoms = {}
    for chain in topology.chains():
        new_chain = copied.addChain(chain.id)
        for residue in chain.residues():
            new_residue = copied.addResidue(
                residue.name, new_chain, residue.id, residue.insertionCode
            )
            names = [atom.name for atom in residue.atoms()]
            if len({name[:4] for name in names}) < len(names):
                symbols = [atom.element.symbol for atom in residue.atoms()]
                names = [f"{s}{np.base_repr(i, 36)}" for i, s in enumerate(symbols, start=1)]
            for name, atom in zip(names, residue.atoms(), strict=True):
                atoms[atom] = copied.addAtom(name, atom.element, new_residue)
    for bond in topology.bonds():
        copied.addBond(atoms[bond.atom1], atoms[bond.atom2], bond.type, bond.order)
    return copied


@dataclass(frozen=True)
class RunSpec:
    """One simulation: what is run, how, and how long.

    `potential` and `system` are the specs as a user would write them. `purpose` says which checks
    read the run: "production" is the run that a user would do, and every check of runs reads it;
    a "survival" run belongs to the temperature ladder, a "timestep" run to the timestep ladder, a
    "thermostat" run (ensemble "nvt") to the ensemble.
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    potential: str
    system: str
    length_ps: float
    temperature_K: float
    n_replicas: int
    seed: int
    timestep_fs: float = 0.5
    ensemble: str = "nve"
    platform: str = "auto"
    precision: Precision = "double"
    record_stride: int = 1
    purpose: Purpose = "production"

    @property
    def n_steps(self) -> int:
        return round(self.length_ps * 1000.0 / self.timestep_fs)

    @property
    def name(self) -> str:
        """Unique among the runs of one campaign; also the run's folder."""
        aside = "" if self.purpose == "production" else f"-{self.purpose}"
        return (
            f"{_folder_name(self.system)}{aside}-{self.ensemble}-{self.temperature_K:g}K"
            f"-{self.timestep_fs:g}fs-{self.length_ps:g}ps-x{self.n_replicas}"
        )

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunSpec:
        return cls(**data)


def _folder_name(system: str) -> str:
    """What a system's spec is called in a folder's name: two specs never have one.

    A spec that is no name for a folder is written in other letters, with a hash of what it was.
    """
    plain = re.sub(r"[^\w.+:=@,-]", "_", system)[-100:]
    if plain == system:
        return plain
    return f"{plain}-{hashlib.sha256(system.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Event:
    """Why a replica was stopped: data, not an exception.

    Attributes
    ----------
    step : steps completed when it was seen; frames up to here are in the record
    time_ps : the same in ps
    atoms : the first atoms at fault, indices within the molecule
    value, unit : what was measured there, such as a bond length in nm
    detail : one line for a person, such as "bond O0-H1 is 0.153 nm long (0.096 at rest)"
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = EXACT_KEYS

    kind: EventKind
    step: int
    time_ps: float
    atoms: tuple[int, ...]
    value: float
    unit: str
    detail: str


@dataclass(frozen=True)
class Where:
    """Where a measurement was taken; None where it has no meaning.

    Attributes
    ----------
    length_ps : of the run
    """

    system: str | None = None
    run: str | None = None
    temperature_K: float | None = None
    replica: int | None = None
    frame: int | None = None
    element: str | None = None
    atoms: tuple[int, ...] = ()
    length_ps: float | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Where:
        """A place from a file; one that does not tell a run's length is from before it was kept."""
        where = cls(**{**data, "atoms": tuple(data.get("atoms", ()))})
        if where.run is None or "length_ps" in data:
            return where
        found = re.search(r"-([0-9.]+(?:e[+-]?[0-9]+)?)ps-x[0-9]+", where.run)
        return dataclasses.replace(where, length_ps=float(found.group(1)) if found else None)


@dataclass(frozen=True)
class Measurement:
    """One number that a check has measured, or the reason why it has no meaning here.

    Attributes
    ----------
    name : one that the check declares, such as "nve.drift"
    kind : decides how a criterion on it is judged (DESIGN, section 4)
    value : None exactly when `not_applicable` says why
    ci_low, ci_high : at `CONFIDENCE`; equal to the value when deterministic
    n_samples : independent samples behind the interval (for a count: replicas)
    standard_error, dof : of a sampled value, for its p-value (Student's t); dof may be inf
    exposure_ps : of a count: total simulated time that was watched
    cause : what a failure of this measurement is put down to, one line
    reasons : the same where it is one of a closed set
    """

    name: str
    kind: Kind
    value: float | None
    unit: str
    ci_low: float | None
    ci_high: float | None
    n_samples: int
    where: Where
    standard_error: float | None = None
    dof: float | None = None
    exposure_ps: float | None = None
    cause: str = ""
    not_applicable: str = ""
    reasons: tuple[Reason, ...] = ()

    def __post_init__(self) -> None:
        if (self.value is None) != bool(self.not_applicable):
            raise ValueError(f"{self.name}: a value, or a reason for having none; never both")

    @classmethod
    def exact(
        cls,
        name: str,
        value: float,
        unit: str,
        where: Where,
        n_samples: int,
        cause: str = "",
        reasons: tuple[Reason, ...] = (),
    ) -> Measurement:
        """A deterministic measurement: the maximum over a fixed set of frames."""
        return cls(
            name,
            "deterministic",
            value,
            unit,
            value,
            value,
            n_samples,
            where,
            cause=cause,
            reasons=reasons,
        )

    @classmethod
    def inapplicable(
        cls, name: str, kind: Kind, unit: str, where: Where, reason: str
    ) -> Measurement:
        """A measurement that has no meaning here."""
        return cls(name, kind, None, unit, None, None, 0, where, not_applicable=reason)

    def to_json(self) -> dict[str, Any]:
        return dict(finite(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        return cls(**_restored(data, ("value", "ci_low", "ci_high", "standard_error", "dof")))


@dataclass(frozen=True)
class Declaration:
    """A measurement that a check promises to emit.

    Attributes
    ----------
    error_exponent : the standard error of a run's value falls with the run's length to the minus
        this power: 1/2 for a mean, 3/2 for a slope over time, 0 for what a longer run does not
        sharpen (a difference of two frames). None: by the unit, 3/2 for one that is per ps or
        ns, else 1/2.
    failure : what a failure is called in plain words, such as "forces are off"; else the meaning
    use : what a force field is used for that rests on it, such as "periodic boxes"
    explained_by : faults that a failure follows from
    symptom : what a failure is called that no fault explains; None: it is named after its check
    """

    name: str
    kind: Kind
    unit: str
    meaning: str
    check: str
    error_exponent: float | None = None
    failure: str = ""
    use: str = ""
    explained_by: tuple[Fault, ...] = ()
    symptom: Symptom | None = None

    @property
    def plainly(self) -> str:
        """What a failure is called."""
        return self.failure or f"{self.name} ({self.meaning})"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Declaration:
        faults = tuple(Fault(item) for item in data.get("explained_by", ()))
        symptom = data.get("symptom")
        return cls(
            **{
                **data,
                "explained_by": faults,
                "symptom": Symptom(symptom) if symptom is not None else None,
            }
        )


@dataclass(frozen=True)
class Criterion:
    """A bound on one measurement.

    Attributes
    ----------
    name : unique within its policy, such as "drift-limit"
    measurement : the declared measurement that it bounds
    low, high : the closed interval in which the value must lie; None leaves a side open
    unit : must equal the measurement's
    source : where the bound comes from
    systems : names of the systems it applies to; empty means all
    dtypes : dtypes of the potential it applies to; empty means all
    min_length_ps : it applies to runs of this length or longer only
    temperatures_K : it applies to runs at these temperatures only, and each must be there
    min_systems : it is not measured before this many systems have the measurement
    """

    name: str
    measurement: str
    low: float | None
    high: float | None
    unit: str
    severity: Severity
    source: str
    systems: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    min_length_ps: float | None = None
    temperatures_K: tuple[float, ...] = ()
    min_systems: int | None = None

    def to_json(self) -> dict[str, Any]:
        return dict(finite(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Criterion:
        fields: dict[str, Any] = dict(data)
        for key in ("systems", "dtypes", "temperatures_K"):
            fields[key] = tuple(fields.get(key, ()))
        return cls(**fields)


@dataclass(frozen=True)
class Finding:
    """What one criterion came to, for one measurement.

    Attributes
    ----------
    bound : in words, such as "<= 0.2"; the unit stands in `unit`
    cause : of a failure, or why it is not decided, measured or applicable; one line
    low, high : the bound as numbers; None leaves a side open
    source : where the bound comes from
    p_value : of a sampled measurement, Holm-adjusted over the criteria of its severity
    n_samples, exposure_ps : as in the measurement
    more_ps : of an undecided run: how much longer each replica must run to be decided
    more_samples : of another undecided measurement: how many more samples decide it
    check : that measures it; empty in a file from before it was kept
    reasons : of the cause, those of a closed set; the measurement's own first
    note : the measurement's own part of the cause
    """

    policy: str
    criterion: str
    measurement: str
    system: str | None
    run: str | None
    temperature_K: float | None
    status: FindingStatus
    kind: Kind | None
    value: float | None
    unit: str
    ci_low: float | None
    ci_high: float | None
    bound: str
    severity: Severity
    cause: str
    where: Where
    low: float | None = None
    high: float | None = None
    source: str = ""
    p_value: float | None = None
    n_samples: int = 0
    exposure_ps: float | None = None
    more_ps: float | None = None
    more_samples: int | None = None
    check: str = ""
    reasons: tuple[Reason, ...] = ()
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return dict(finite(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Finding:
        return cls(**_restored(data, ("value", "ci_low", "ci_high", "p_value", "more_ps")))


@dataclass(frozen=True)
class Cause:
    """What failed findings are put down to.

    Attributes
    ----------
    slug : its name, such as "force-scale"
    sentence : the same for a person
    severity : the gravest of the failures that show it
    evidence : the measurements that show it
    system : where it shows first; None where that has no meaning
    detail : what the first of these findings says
    """

    slug: str
    sentence: str
    severity: Severity
    evidence: tuple[str, ...]
    system: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class ExplainedFailure:
    """What happened to one replica of a run that failed.

    Attributes
    ----------
    kind : of the first symptom, such as "broken-bond"
    sentence : the same for a person, with its time
    n_failed : replicas of this run that have symptoms
    folder : with the evidence, within the validation's folder
    replay : the script that lets it happen again; empty where it failed before its first frame
    """

    system: str
    run: str
    replica: int
    kind: str
    sentence: str
    n_failed: int
    folder: str
    replay: str = ""


@dataclass(frozen=True)
class Verdict:
    """The judgement under one policy, with a finding for every criterion."""

    policy: str
    name: VerdictName
    findings: tuple[Finding, ...]


def finite(value: Any) -> Any:
    """The value as plain JSON, which has no NaN: "nan", "inf" and "-inf" stand in as text."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def _restored(data: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        key: float(item) if key in names and isinstance(item, str) else item
        for key, item in data.items()
    }
    fields["where"] = Where.from_json(fields["where"])
    fields["reasons"] = tuple(Reason(item) for item in fields.get("reasons", ()))
    return fields
