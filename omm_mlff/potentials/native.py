"""Native force fields: OpenMM's XML files, serialised Systems, committed parameters.

    native:amber14                                    a short name, see `FORCE_FIELDS`
    native:amber14-all.xml+amber14/tip3p.xml+mine.xml files of one's own and of OpenMM, joined by +
    native:amber14?nonbondedCutoff_nm=0.7             with options
    native:system.xml                                 a serialised openmm.System
    native:sage                                       OpenFF Sage, for the shipped systems

Molecules are flexible: no constraints, water neither. In vacuum there is no cutoff; a periodic box
has PME, whose mesh breaks translation invariance as rounding would: at OpenMM's own tolerance of
5e-4 by 1e-4 of the forces, at the 1e-5 used here by 4e-6 (64 waters). The criteria of rounding that
are meant for float32 let the latter pass: `?dtype=float32`. Lennard-Jones ends in a step at the
cutoff, which the check `jumps` sees; `switchDistance_nm` smooths it.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import openmm
from openmm import app, unit

from omm_mlff.errors import CheckpointError, InputError, UnknownNameError, UnsupportedSystemError
from omm_mlff.forces.faults import one_line
from omm_mlff.potentials.cloned import (
    SOURCE,
    ClonedPotential,
    formula_of,
    narrow_for,
    no_more_options,
)
from omm_mlff.potentials.committed import SAGE, CommittedPotential, committed_for
from omm_mlff.potentials.content import content_digest
from omm_mlff.potentials.serialised import TORCH_FORCE, WITH_TORCH_FORCE, SystemPotential
from omm_mlff.potentials.spec import card_options, positive, split_options
from omm_mlff.schema import MolecularSystem, PotentialCard

FORCE_FIELDS: Mapping[str, tuple[str, ...]] = {
    "amber14": ("amber14-all.xml", "amber14/tip3p.xml"),
    "amber19": ("amber19-all.xml", "amber19/tip3p.xml"),
    "charmm36": ("charmm36_2024.xml", "charmm36_2024/water.xml"),
    "tip3p": ("amber14/tip3p.xml",),
    "tip3pfb": ("amber14/tip3pfb.xml",),
    "spce": ("amber14/spce.xml",),
    "opc3": ("amber14/opc3.xml",),
}
"""Files of OpenMM behind each short name: proteins, nucleic acids and lipids with TIP3P water and
ions (charmm36 is the release of July 2024, with CHARMM's TIP3P; OpenMM needs a minute or more to
load it), or water and ions alone. Every water here has bond and angle terms of its own, so that it
can be flexible; water of four and five sites needs virtual sites and is refused."""

SAGE_NAMES = ("sage", SAGE)
FORMS = (
    f"native:NAME ({', '.join((*FORCE_FIELDS, *SAGE_NAMES))})",
    "native:FORCEFIELD.xml+WATER.xml",
    "native:SYSTEM.xml",
)

DEFAULT_CUTOFF_NM = 0.9
DEFAULT_EWALD_TOLERANCE = 1.0e-5
METHODS = ("PME", "LJPME", "Ewald", "CutoffPeriodic")
_RESERVED = ("dtype", "cutoff_nm")
_OPTIONS = (
    "nonbondedMethod",
    "nonbondedCutoff_nm",
    "switchDistance_nm",
    "ewaldErrorTolerance",
    "useDispersionCorrection",
    *_RESERVED,
)
_SCRIPTS = ("Script", "InitializationScript")
_RUNS_CODE = {
    "PythonForce": "a PythonForce: loading it unpickles a Python function, which can run code",
}


@dataclass(frozen=True)
class BoxSettings:
    """How non-bonded forces are computed in a periodic box; in vacuum all pairs count.

    Attributes
    ----------
    switch_nm : where Lennard-Jones starts to fall to zero at the cutoff; None leaves a step
    dispersion_correction : None leaves OpenMM's default
    """

    method: str = "PME"
    cutoff_nm: float = DEFAULT_CUTOFF_NM
    switch_nm: float | None = None
    ewald_tolerance: float = DEFAULT_EWALD_TOLERANCE
    dispersion_correction: bool | None = None

    def arguments(self) -> dict[str, Any]:
        """For `ForceField.createSystem`."""
        given = {
            "nonbondedMethod": getattr(app, self.method),
            "nonbondedCutoff": self.cutoff_nm * unit.nanometer,
            "switchDistance": None if self.switch_nm is None else self.switch_nm * unit.nanometer,
            "ewaldErrorTolerance": self.ewald_tolerance,
            "useDispersionCorrection": self.dispersion_correction,
        }
        return {name: value for name, value in given.items() if value is not None}


class ForceFieldPotential(ClonedPotential):
    """An openmm.app.ForceField, flexible.

    Parameters
    ----------
    files : what it was read from, for the card
    sha256 : of the contents of all files, one after the other; of one file, its own; of an object,
        of what it holds
    """

    def __init__(
        self,
        force_field: app.ForceField,
        *,
        spec: str,
        name: str,
        files: Sequence[str] = (),
        sha256: str | None = None,
        box: BoxSettings | None = None,
        said: Mapping[str, Any] | None = None,
    ) -> None:
        self._force_field = force_field
        self._box = box or BoxSettings()
        card = PotentialCard(
            name=name,
            source=SOURCE,
            species=None,
            training_domain={"files": list(files)} if files else {},
            sha256=sha256,
            knows_atoms_by="bond",
            **({"dtype": "float64", "cutoff_nm": None} | dict(said or {})),
        )
        super().__init__(spec, card)
        self._known: dict[tuple[Any, ...], openmm.System | str] = {}

    def unsupported(self, system: MolecularSystem) -> str | None:
        """Why it cannot serve this system, in one line; None if it can."""
        known = self._made_or_not(system)
        return known if isinstance(known, str) else None

    def made(self, system: MolecularSystem) -> openmm.System:
        known = self._made_or_not(system)
        if isinstance(known, str):
            raise UnsupportedSystemError(known)
        return known

    def _made_or_not(self, system: MolecularSystem) -> openmm.System | str:
        """The System, or why there is none; kept, since CHARMM's patches can take a minute."""
        narrow = narrow_for(system, self._box.cutoff_nm)
        if narrow:
            return f"{narrow}; take a larger box, or ?nonbondedCutoff_nm=..."
        key = _template_key(system)
        if key not in self._known:
            try:
                self._known[key] = self._make(system)
            except UnsupportedSystemError as error:
                self._known[key] = str(error)
        return self._known[key]

    def _make(self, system: MolecularSystem) -> openmm.System:
        in_box = self._box.arguments() if system.periodic else {"nonbondedMethod": app.NoCutoff}
        try:
            made = self._force_field.createSystem(
                system.topology,
                constraints=None,
                rigidWater=False,
                removeCMMotion=False,
                **in_box,
            )
        except Exception as error:  # a force field's own scripts raise what they will
            raise UnsupportedSystemError(_why(one_line(error), system)) from error
        if made.getNumConstraints() or any(
            made.isVirtualSite(i) for i in range(made.getNumParticles())
        ):
            raise UnsupportedSystemError("it needs constraints or virtual sites; a run has none")
        loose = _loose_bond(made, system)
        if loose:
            raise UnsupportedSystemError(loose)
        return made


def _template_key(system: MolecularSystem) -> tuple[Any, ...]:
    """All of a system that templates are chosen by."""
    residues = tuple((row.name, len(list(row.atoms()))) for row in system.topology.residues())
    bonds = tuple((one.index, other.index) for one, other in system.topology.bonds())
    return system.species.tobytes(), bonds, residues, system.periodic


def _why(said: str, system: MolecularSystem) -> str:
    """What OpenMM says of a molecule that it has no template for, shortened and made useful."""
    said = said.removeprefix("ValueError: ")
    found = re.match(
        r"No template found for residue (\d+) \((.*?)\)\.\s*(.*?)\.?\s*(For more|$)", said
    )
    if not found:
        return said
    if "extra site" in said:
        return (
            f"its {found[2]} has virtual sites, which a run here does not have; take water of "
            "three sites, such as native:tip3p"
        )
    residue = list(system.topology.residues())[int(found[1])]
    atoms = formula_of([atom.element.symbol for atom in residue.atoms()])
    reason = found[3][:1].lower() + found[3][1:]
    if _is_neutral_amino_acid(residue) and "not supported" not in said:
        reason = "it knows amino acids inside chains, not a neutral one by itself"
    shipped = committed_for(system)
    elsewhere = f"; native:sage has parameters for {shipped}" if shipped else ""
    return f"no template for residue {residue.name} {residue.id} ({atoms}): {reason}{elsewhere}"


def _is_neutral_amino_acid(residue: app.topology.Residue) -> bool:
    """Whether it is H2N-C-COOH with something, bonded to no other residue."""
    if any(True for _ in residue.external_bonds()):
        return False
    neighbours: dict[Any, list[Any]] = {atom: [] for atom in residue.atoms()}
    for one, other in residue.internal_bonds():
        neighbours[one].append(other)
        neighbours[other].append(one)

    def has(atom: Any, wanted: str) -> bool:
        return sorted(found.element.symbol for found in neighbours[atom]) == sorted(wanted)

    amines = {atom for atom in neighbours if atom.element.symbol == "N" and has(atom, "CHH")}
    acids = {
        atom
        for atom in neighbours
        if atom.element.symbol == "C"
        and has(atom, "COO")
        and any(has(found, "CH") for found in neighbours[atom] if found.element.symbol == "O")
    }
    return any(
        amines & set(neighbours[atom]) and acids & set(neighbours[atom]) for atom in neighbours
    )


def _loose_bond(made: openmm.System, system: MolecularSystem) -> str | None:
    """A bond that nothing holds, in one line: without its constraints the molecule falls apart."""
    held: set[frozenset[int]] = set()
    for force in made.getForces():
        if not hasattr(force, "getBondParameters"):
            continue
        for k in range(force.getNumBonds()):
            first, second, *_ = force.getBondParameters(k)
            together = first if isinstance(first, list | tuple) else (first, second)
            held |= {frozenset((int(i), int(j))) for i in together for j in together if i != j}
    loose = [(i, j) for i, j in system.bonds.tolist() if frozenset((i, j)) not in held]
    if not loose:
        return None
    atoms = list(system.topology.atoms())
    i, j = loose[0]
    return (
        f"{len(loose)} of {len(system.bonds)} bonds have no term, the first "
        f"{atoms[i].name}-{atoms[j].name} of {atoms[i].residue.name}: it is meant to be rigid"
    )


def names() -> list[str]:
    """Nothing: native force fields do not ship, they come with OpenMM."""
    return []


def matches(spec: str) -> bool:
    """Whether this source reads the spec."""
    return spec.startswith(f"{SOURCE}:")


def executes(spec: str) -> str | None:
    """What of the files could run code when they are loaded; OpenMM's own are trusted."""
    what, _ = split_options(spec.removeprefix(f"{SOURCE}:"))
    if what in SAGE_NAMES:
        return None
    for path, root in _read(spec, what):
        if any(path.is_relative_to(folder) for folder in _openmm_folders()):
            continue
        if any(root.find(tag) is not None for tag in _SCRIPTS):
            return f"{path} has Python scripts, which run as parts of the force field"
        for force in root.iter("Force"):
            if force.get("type") in _RUNS_CODE:
                return f"{path} has {_RUNS_CODE[str(force.get('type'))]}"
    return None


def load(spec: str) -> ClonedPotential:
    """The potential behind a spec.

    Raises
    ------
    UnknownNameError : neither a short name nor a file
    CheckpointError : a file that cannot be used
    InputError : an option that is not known, or has no such value
    """
    what, options = split_options(spec.removeprefix(f"{SOURCE}:"))
    said = card_options(spec, options, dtype="float64")
    if what in SAGE_NAMES:
        no_more_options(spec, options, _RESERVED)
        return CommittedPotential(spec, said)
    read = _read(spec, what)
    content = [path.read_bytes() for path, _ in read]
    sha256 = hashlib.sha256(b"".join(content)).hexdigest()
    if any(root.tag == "System" for _, root in read):
        no_more_options(spec, options, _RESERVED)
        if len(read) > 1:
            raise InputError(f"{spec!r}: a serialised System stands alone; leave out the others")
        path, root = read[0]
        system = _deserialised(path, root, content[0].decode())
        return SystemPotential(system, spec=spec, name=path.stem, sha256=sha256, said=said)
    box = _box_settings(spec, options)
    files = _listed(what)
    name = "+".join(part if part in FORCE_FIELDS else Path(part).stem for part in _parts(what))
    return ForceFieldPotential(
        _force_field(tuple(str(_found(file)) for file in files), sha256),
        spec=spec,
        name=name,
        files=files,
        sha256=sha256,
        box=box,
        said=said,
    )


def takes(thing: Any) -> bool:
    """Whether this source makes a potential of an object: a System or a ForceField of OpenMM."""
    return isinstance(thing, openmm.System | app.ForceField)


def wrap(thing: openmm.System | app.ForceField) -> ClonedPotential:
    """The potential behind a System, which is copied, or a ForceField."""
    if isinstance(thing, openmm.System):
        return SystemPotential(thing, spec="an openmm.System object", name="System")
    return ForceFieldPotential(
        thing,
        spec="an openmm.app.ForceField object",
        name="ForceField",
        sha256=content_digest(thing),
    )


def _parts(what: str) -> list[str]:
    return [what] if Path(what).is_file() else what.split("+")


def _listed(what: str) -> list[str]:
    """The files behind short names and files joined by +."""
    return [file for part in _parts(what) for file in FORCE_FIELDS.get(part, (part,))]


@functools.cache
def _openmm_folders() -> tuple[Path, ...]:
    """Where OpenMM looks for force fields: its own, and those of packages that bring some."""
    others = (point.load()() for point in entry_points(group="openmm.forcefielddir"))
    return (Path(app.__file__).parent / "data", *map(Path, others))


def _found(file: str, beside: Path | None = None) -> Path | None:
    """A file where OpenMM would find it; None where there is none."""
    folders: Iterable[Path] = (*([] if beside is None else [beside]), Path(), *_openmm_folders())
    return next((folder / file for folder in folders if (folder / file).is_file()), None)


def _read(spec: str, what: str) -> list[tuple[Path, ElementTree.Element]]:
    """Every file of a spec with its root element, what is included after what includes it."""
    wanted: list[tuple[str, Path | None]] = [(file, None) for file in _listed(what)]
    read: dict[Path, ElementTree.Element] = {}
    for file, beside in wanted:  # grows while it is read
        if file in SAGE_NAMES:
            raise InputError(f"{spec!r}: native:{file} stands alone; leave out the others")
        path = _found(file, beside)
        if path is None:
            raise UnknownNameError(
                "native force field",
                file,
                (*FORCE_FIELDS, *SAGE_NAMES),
                hint=f"or an XML file, by its path or as OpenMM calls it (in {spec!r})",
            )
        if path in read:
            continue
        try:
            read[path] = ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, UnicodeDecodeError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read as XML: {one_line(error)}") from None
        if read[path].tag not in ("ForceField", "System"):
            raise CheckpointError(
                f"{path}: wanted OpenMM's <ForceField> or a serialised <System>, "
                f"got <{read[path].tag}>"
            )
        wanted += [(node.get("file", ""), path.parent) for node in read[path].findall("Include")]
    return list(read.items())


def _deserialised(path: Path, root: ElementTree.Element, text: str) -> openmm.System:
    if any(force.get("type") == TORCH_FORCE for force in root.iter("Force")):
        raise CheckpointError(f"{path} {WITH_TORCH_FORCE}")
    try:
        return openmm.XmlSerializer.deserialize(text)
    except Exception as error:  # a pickled function raises what it will
        raise CheckpointError(f"{path} cannot be made a System: {one_line(error)}") from None


@functools.lru_cache(maxsize=8)
def _force_field(paths: tuple[str, ...], sha256: str) -> app.ForceField:
    """Read once, as long as the content is the same."""
    try:
        return app.ForceField(*paths)
    except Exception as error:  # OpenMM raises many kinds, down to Exception itself
        names = ", ".join(Path(path).name for path in paths)
        raise CheckpointError(f"{names} cannot be read by OpenMM: {one_line(error)}") from None


def _box_settings(spec: str, options: dict[str, Any]) -> BoxSettings:
    method = options.pop("nonbondedMethod", "PME")
    if method not in METHODS:
        raise InputError(
            f"{spec!r}: nonbondedMethod is for periodic boxes, one of {', '.join(METHODS)}, "
            f"not {method!r}; in vacuum there is no cutoff"
        )
    cutoff = positive(
        spec, "nonbondedCutoff_nm", options.pop("nonbondedCutoff_nm", DEFAULT_CUTOFF_NM)
    )
    tolerance = positive(
        spec,
        "ewaldErrorTolerance",
        options.pop("ewaldErrorTolerance", DEFAULT_EWALD_TOLERANCE),
    )
    switch = options.pop("switchDistance_nm", None)
    if switch is not None:
        switch = positive(spec, "switchDistance_nm", switch)
    if switch is not None and switch >= cutoff:
        raise InputError(f"{spec!r}: switchDistance_nm must be below the cutoff of {cutoff:g} nm")
    dispersion = options.pop("useDispersionCorrection", None)
    if dispersion not in (None, True, False):
        raise InputError(f"{spec!r}: useDispersionCorrection is True or False, not {dispersion!r}")
    no_more_options(spec, options, _OPTIONS)
    return BoxSettings(method, cutoff, switch, tolerance, dispersion)
