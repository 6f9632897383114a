"""ASE calculators as potentials: ase:module:factory, or the calculator itself from a script.

The factory is a class, a function or a calculator that exists already. Options after the question
mark are its keyword arguments, save three that are this package's own: `dtype` ("float32" or
"float64", what the model computes with; the criteria of rounding go by it), `cutoff_nm`, and
`knows_atoms_by` ("element", or "bond" or "index" for a calculator that goes by the order of the
atoms). The current directory can be imported from while the calculator is made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import openmm
from numpy.typing import NDArray

from omm_mlff.errors import InputError, MissingPackageError
from omm_mlff.forces.built import Built
from omm_mlff.forces.faults import one_line
from omm_mlff.forces.python_force import make_python_force
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials.base import Capabilities
from omm_mlff.potentials.content import content_digest
from omm_mlff.potentials.ions import deaf_to
from omm_mlff.potentials.probe import Probe
from omm_mlff.potentials.spec import card_options, split_options
from omm_mlff.schema import Identity, MolecularSystem, PotentialCard
from omm_mlff.units import ANGSTROM_PER_NM, KJMOL_NM_PER_EV_ANGSTROM, KJMOL_PER_EV

SOURCE = "ase"
FORMS = ("ase:module:factory[?option=value]", "ase:path/to/file.py:factory[?option=value]")

INSTALL = "pip install 'omm-mlff[ase]'"
_EXTRAS = {"ase": "ase", "tblite": "xtb", "torchani": "teacher"}
_OBJECT = " (object)"
_CHARGE = ("charge",)
_SPIN = ("multiplicity", "spin")
_ATOMIC = {"charge": "charges", "spin": "magnetic moments"}
_MAX_REPLICAS = 256
_N_SUGGESTIONS = 8

log = logging.getLogger(__name__)


class AsePotential:
    """A calculator, through OpenMM's own PythonForce; copies are evaluated one after another.

    Parameters
    ----------
    spec : what a user writes to get it
    calculator : with `get_potential_energy(atoms)` in eV and `get_forces(atoms)` in eV/angstrom
    card : what is known of it
    charge, spin : the total charge and the spin multiplicity that it was made for, where that was
        said; else each structure has them in `atoms.info["charge"]` and `atoms.info["spin"]`, and
        in the sums of its initial charges and magnetic moments

    Raises
    ------
    MissingPackageError : ase is not installed
    InputError : it gives no forces
    """

    def __init__(
        self,
        spec: str,
        calculator: Any,
        card: PotentialCard,
        charge: float | None = None,
        spin: float | None = None,
    ) -> None:
        _require_ase()
        implemented = getattr(calculator, "implemented_properties", None)
        if implemented is not None and "forces" not in implemented:
            raise InputError(
                f"{spec}: wanted a calculator of energies and forces, got one of "
                f"{', '.join(implemented) or 'nothing'}; dynamics needs forces"
            )
        self.spec = spec
        self.calculator = calculator
        self.charge = charge
        self.spin = spin
        self._card = card
        self._probe = Probe(self)
        self._gives_free_energy = True  # until it says otherwise

    @property
    def card(self) -> PotentialCard:
        return self._card

    def unsupported(self, system: MolecularSystem) -> str | None:
        if self.charge is not None and self.charge != system.charge:
            return (
                f"the calculator was made for charge {self.charge:g}, this system has charge "
                f"{system.charge:d}"
            )
        if self.spin is not None and self.spin != system.spin_multiplicity:
            return (
                f"the calculator was made for spin multiplicity {self.spin:g}, this system has "
                f"{system.spin_multiplicity:d}"
            )
        return self._probe.failure(system) or self._deaf(system)

    def _deaf(self, system: MolecularSystem) -> str | None:
        """Why a charge or spin that nobody named to the factory does not reach the calculator."""
        open_questions = dataclasses.replace(
            system,
            charge=0 if self.charge is not None else system.charge,
            spin_multiplicity=1 if self.spin is not None else system.spin_multiplicity,
        )
        deaf = deaf_to(self._probe.energy, open_questions)
        if deaf is None:
            return None
        what, value = deaf
        option = "charge" if what == "charge" else "multiplicity"
        return (
            f"it has {what} {value:+d}, and the calculator gives the same without: it reads "
            f'neither atoms.info["{what}"] nor initial {_ATOMIC[what]}; name it to the factory, '
            f"such as ?{option}={value}"
        )

    def capabilities(self, system: MolecularSystem) -> Capabilities:
        return Capabilities(
            tap=True,
            max_replicas=1 if system.periodic else _MAX_REPLICAS,
            reads_box=True,
            force="pythonforce",
        )

    def add_to(
        self,
        openmm_system: openmm.System,
        system: MolecularSystem,
        *,
        n_replicas: int = 1,
        tap: Tap | None = None,
    ) -> Built:
        openmm_system.addForce(
            make_python_force(
                lambda frames, box: self._evaluate(frames, box, system),
                n_replicas=n_replicas,
                n_atoms=system.n_atoms,
                periodic=system.periodic,
                tap=tap,
            )
        )
        return Built("pythonforce")

    def energies_and_forces(
        self, positions: NDArray[np.float64], system: MolecularSystem
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self._evaluate(np.asarray(positions), system.box_vectors, system)

    def reference_energy(self, system: MolecularSystem) -> float | None:
        """None: a calculator does not say what part of its energy belongs to free atoms."""
        return None

    def _evaluate(
        self,
        frames: NDArray[np.float64],
        box_vectors: NDArray[np.float64] | None,
        system: MolecularSystem,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        from ase import Atoms

        said: dict[str, Any] = {}
        if system.charge and self.charge is None:
            said["charges"] = np.full(system.n_atoms, system.charge / system.n_atoms)
        if system.spin_multiplicity > 1 and self.spin is None:
            said["magmoms"] = np.full(
                system.n_atoms, (system.spin_multiplicity - 1) / system.n_atoms
            )
        cell = None if box_vectors is None else box_vectors * ANGSTROM_PER_NM
        energies = np.empty(len(frames))
        forces = np.empty(frames.shape)
        for i, frame in enumerate(frames):
            # New atoms a frame: a calculator that keeps hold of the last ones would take those for
            # unchanged if they were moved.
            atoms = Atoms(
                numbers=system.species,
                positions=frame * ANGSTROM_PER_NM,
                cell=cell,
                pbc=cell is not None,
                info={"charge": system.charge, "spin": system.spin_multiplicity},
                **said,
            )
            energy, force = self._of(atoms)
            energies[i] = energy * KJMOL_PER_EV
            forces[i] = force * KJMOL_NM_PER_EV_ANGSTROM
        return energies, forces

    def _of(self, atoms: Any) -> tuple[float, NDArray[np.float64]]:
        """Energy (eV) and forces (eV/angstrom) as the calculator gives them, checked for form."""
        if isinstance(getattr(self.calculator, "results", None), dict):
            # Asked for the same structure twice, ASE repeats what it remembers; then every
            # calculator would seem to give the same answer always.
            self.calculator.results = {}
        try:
            forces, energy = self.calculator.get_forces(atoms), self._energy(atoms)
        except SystemExit as stop:  # nobody else may end the process
            raise RuntimeError(f"it called sys.exit: SystemExit: {stop}") from stop
        return self._checked_energy(energy), self._checked_forces(forces, len(atoms))

    def _energy(self, atoms: Any) -> Any:
        """The energy whose gradient the forces are.

        Where electrons are smeared out, that is the free energy; "energy" is then extrapolated to
        zero temperature. A calculator without a free energy has one energy alone.
        """
        from ase.calculators.calculator import PropertyNotImplementedError

        if self._gives_free_energy:
            try:
                return self.calculator.get_potential_energy(atoms, force_consistent=True)
            except (PropertyNotImplementedError, TypeError):
                self._gives_free_energy = False
        return self.calculator.get_potential_energy(atoms)

    def _checked_energy(self, energy: Any) -> float:
        value = np.asarray(energy)
        if value.dtype.kind not in "fi" or value.size != 1:
            raise InputError(
                f"{self.spec}: wanted the energy as one real number in eV, got {_described(energy)}"
            )
        return float(value.reshape(()))

    def _checked_forces(self, forces: Any, n_atoms: int) -> NDArray[np.float64]:
        value = np.asarray(forces)
        if value.dtype.kind != "f" or value.shape != (n_atoms, 3):
            raise InputError(
                f"{self.spec}: wanted forces as floats of shape ({n_atoms}, 3) in eV/angstrom, got "
                f"{_described(forces)}"
            )
        if self._card.dtype == "float64" and value.dtype.itemsize < 8:
            raise InputError(
                f"{self.spec}: wanted forces in float64, as its dtype says, got {value.dtype}; "
                f"write dtype={value.dtype}, or have the calculator compute in float64"
            )
        return value.astype(np.float64)


_RESULTS = ("results", "atoms")
"""Where ASE's calculators keep what they were asked for last."""


def names() -> list[str]:
    """Nothing: which calculators are installed is not known."""
    return []


def matches(spec: str) -> bool:
    """Whether this source reads the spec."""
    return spec.startswith(f"{SOURCE}:")


def executes(spec: str) -> str | None:
    """On whose code loading will run; nothing is imported to find that out."""
    where, factory = _parts(split_options(spec)[0])
    with _current_directory_importable():
        file = str(Path(where).resolve()) if _is_file(where) else _origin(where)
    if file is None or not Path(file).exists():
        return None
    return f"{SOURCE}:{where}:{factory} runs the code of {where} ({file})"


def load(spec: str) -> AsePotential:
    """The potential behind a spec.

    Raises
    ------
    MissingPackageError : ase, or the package of the calculator, is not installed
    InputError : no such factory, one that raises, or one that makes no calculator of forces
    """
    target, options = split_options(spec)
    where, factory = _parts(target)
    said = {**card_options(spec, options), "knows_atoms_by": _identity(spec, options)}
    _require_ase()
    with _current_directory_importable():
        made = _attribute(_module(where, spec), where, factory, spec)
        calculator = _made(made, options, spec)
    card = PotentialCard(
        name=_name(factory, options),
        source=SOURCE,
        species=None,
        sha256=hashlib.sha256(Path(where).read_bytes()).hexdigest() if _is_file(where) else None,
        **said,
    )
    charge, spin = (_said(calculator, options, words) for words in (_CHARGE, _SPIN))
    return AsePotential(spec, calculator, card, charge, spin)


def _identity(spec: str, options: dict[str, Any]) -> str:
    """`knows_atoms_by` of the card, taken out of the options."""
    identity = options.pop("knows_atoms_by", "element")
    if identity not in get_args(Identity):
        known = ", ".join(get_args(Identity))
        raise InputError(f"{spec}: wanted knows_atoms_by as one of {known}; got {identity!r}")
    return str(identity)


def takes(thing: Any) -> bool:
    """Whether it is a calculator."""
    return _is_calculator(thing)


def wrap(thing: Any) -> AsePotential:
    """The potential of a calculator from a script."""
    name = type(thing).__name__
    card = PotentialCard(
        name=name,
        source=SOURCE,
        species=None,
        cutoff_nm=None,
        dtype="float32",
        sha256=content_digest(thing, without=_RESULTS),
    )
    return AsePotential(
        f"{SOURCE}:{name}{_OBJECT}",
        thing,
        card,
        *(_said(thing, {}, words) for words in (_CHARGE, _SPIN)),
    )


def _parts(target: str) -> tuple[str, str]:
    """`ase:where:factory` in its parts."""
    if target.endswith(_OBJECT):
        raise InputError(
            f"{target!r} was handed over by a script, and no spec makes it again; name a factory: "
            f"{FORMS[0]}"
        )
    where, colon, factory = target.removeprefix(f"{SOURCE}:").rpartition(":")
    if not (colon and where and factory):
        raise InputError(
            f"{target!r}: wanted {FORMS[0]} or {FORMS[1]}, such as ase:ase.calculators.emt:EMT"
        )
    return where, factory


def _is_file(where: str) -> bool:
    return where.endswith(".py") or "/" in where


def _name(factory: str, options: Mapping[str, Any]) -> str:
    """The factory's, and what its options call by a name: TBLite-GFN2-xTB."""
    said = [Path(value).name for value in options.values() if isinstance(value, str)]
    return re.sub(r"[^\w.+-]+", "_", "-".join([factory.rpartition(".")[2], *said]))


def _said(calculator: Any, options: Mapping[str, Any], words: tuple[str, ...]) -> float | None:
    """A number that was given to the factory, or that stands among the parameters."""
    parameters = getattr(calculator, "parameters", None)
    for word in words:
        said = options.get(word)
        if said is None and isinstance(parameters, Mapping):
            said = parameters.get(word)
        if isinstance(said, int | float):
            return said
    return None


def _require_ase() -> None:
    if importlib.util.find_spec("ase") is None:
        raise MissingPackageError("ase", "an ASE calculator", INSTALL)


@contextlib.contextmanager
def _current_directory_importable() -> Iterator[None]:
    """What Python does for `python -m`; afterwards sys.path is as it was."""
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


def _origin(module: str) -> str | None:
    """The file of a module; unlike importlib's own search this imports no parent package."""
    top, *rest = module.split(".")
    found: ModuleSpec | None
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    name = top
    for part in rest:
        if found is None or found.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        found = PathFinder.find_spec(name, list(found.submodule_search_locations))
    return None if found is None else found.origin


def _module(where: str, spec: str) -> ModuleType:
    try:
        return _from_file(Path(where), spec) if _is_file(where) else importlib.import_module(where)
    except InputError:
        raise
    except ModuleNotFoundError as error:
        absent = error.name or where
        package = absent.split(".")[0]
        if package in _EXTRAS and importlib.util.find_spec(package) is None:
            install = f"pip install 'omm-mlff[{_EXTRAS[package]}]'"
            raise MissingPackageError(package, spec, install) from None
        if where == absent or where.startswith(f"{absent}."):
            raise InputError(
                f"{spec}: there is no module {absent!r} (looked in {Path.cwd()} and among the "
                "installed packages); install the package that has it, or name a file, as in "
                f"{FORMS[1]}"
            ) from None
        raise InputError(
            f"{spec}: {where} needs {absent!r}, which is not installed; install it"
        ) from None
    except (Exception, SystemExit) as error:  # somebody else's code
        raise InputError(f"{spec}: importing {where} failed: {one_line(error)}") from error


def _from_file(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise InputError(f"{spec}: there is no file {path}; check the path")
    name = f"_{SOURCE}_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise InputError(f"{spec}: wanted a Python file, named .py, got {path}")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # pickling and dataclasses look it up
    sys.path.insert(1, str(path.resolve().parent))  # taken back by the caller
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _attribute(module: ModuleType, owner: str, name: str, spec: str) -> Any:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            there = [n for n, a in vars(value).items() if n[0] != "_" and _may_be_meant(a)]
            near = difflib.get_close_matches(part, there, n=3, cutoff=0.5)
            near = near or sorted(n for n in there if part.lower() in n.lower())[:3]
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {_some(there)}"
            raise InputError(f"{spec}: {owner} has no {part!r}; {hint}")
        value, owner = getattr(value, part), part
    return value


def _may_be_meant(thing: Any) -> bool:
    return callable(thing) or _is_calculator(thing)


def _some(there: list[str]) -> str:
    more = ", ..." if len(there) > _N_SUGGESTIONS else ""
    return (", ".join(sorted(there)[:_N_SUGGESTIONS]) + more) or "nothing that can be called"


def _made(factory: Any, options: Mapping[str, Any], spec: str) -> Any:
    if _is_calculator(factory):
        if options:
            raise InputError(
                f"{spec}: it is a calculator already and takes no options (got "
                f"{', '.join(options)}); name a class or a function, or leave them out"
            )
        return factory
    if not callable(factory):
        raise InputError(
            f"{spec}: wanted a class or function that makes a calculator, or a calculator, got "
            f"{_described(factory)}"
        )
    try:
        calculator = factory(**options)
    except MissingPackageError:
        raise
    except (Exception, SystemExit) as error:  # somebody else's code
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise InputError(f"{spec}: called with ({given}), it raised {one_line(error)}") from error
    _warn_of_typing_errors(factory, calculator, options, spec)
    if not _is_calculator(calculator):
        raise InputError(
            f"{spec}: wanted an ASE calculator, with get_potential_energy and get_forces, got "
            f"{_described(calculator)}"
        )
    return calculator


def _warn_of_typing_errors(
    factory: Any, calculator: Any, options: Mapping[str, Any], spec: str
) -> None:
    """ASE's base class takes whatever name it is given and does nothing with those unknown.

    Which names are known is never wholly listed, so that this is no error.
    """
    known = set(getattr(calculator, "default_parameters", ()))
    with contextlib.suppress(ValueError, TypeError):
        known |= set(inspect.signature(factory).parameters)
    for option in options:
        near = difflib.get_close_matches(option, sorted(known - set(options)), n=1, cutoff=0.7)
        if option not in known and near:
            log.warning("%s does not list the option %r; did you mean %r?", spec, option, near[0])


def _is_calculator(thing: Any) -> bool:
    """ASE's calculators have no common base class; atoms have these methods too."""
    return (
        not isinstance(thing, type)
        and callable(getattr(thing, "get_potential_energy", None))
        and callable(getattr(thing, "get_forces", None))
        and not hasattr(thing, "get_positions")
    )


def _described(thing: Any) -> str:
    if thing is None:
        return "None"
    shape = getattr(thing, "shape", None)
    if shape is not None:
        return f"{thing.dtype} of shape {tuple(shape)}"
    kind = type(thing)
    return f"a {kind.__module__}.{kind.__qualname__}".replace("a builtins.", "a ")
