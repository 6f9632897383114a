"""What openmm-ml offers as a potential: `openmm-ml:NAME[?option=value]`.

NAME is any that `MLPotential(NAME)` takes, including those that other packages register. The
Forces are the ones that its `createSystem` would add, put straight into our System: a Force that
runs Python can seldom be copied out of another.

An option goes to the constructor where that names it, else to `createSystem`; to both where
neither names it and both take any. openmm-ml's own potentials say nothing of an option that they
do not know. What only an object can say (an ASE calculator, say) is given from a script:
`OpenmmMLPotential(MLPotential("ase"), options={"calculator": ...})`.

There is no tap, and one replica a System. openmm-ml returns the energy of everything in a
topology, not that of each copy, and copies of a molecule would see one another. What its Forces
compute stays inside them.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray

from omm_mlff.errors import (
    InputError,
    MissingPackageError,
    OmmMlffError,
    UnknownNameError,
    UnsupportedSystemError,
)
from omm_mlff.forces.built import Built, kind_in
from omm_mlff.forces.faults import one_line
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials.base import Capabilities
from omm_mlff.potentials.content import content_digest
from omm_mlff.potentials.ions import deaf_to
from omm_mlff.potentials.probe import Probe
from omm_mlff.potentials.spec import card_options, split_options
from omm_mlff.schema import MolecularSystem, PotentialCard

SOURCE = "openmm-ml"
FORMS = ("openmm-ml:NAME[?option=value]",)
GROUP = "openmmml.potentials"
"""The entry points through which packages register potentials with openmm-ml."""

_DISTRIBUTIONS = {
    "OpenMMDeepmdPlugin": "openmm_deepmd_plugin",
    "mace": "mace-torch",
    "orb_models": "orb-models",
    "torchmdnet": "torchmd-net",
}
"""Modules that are installed under another name than their own."""


class OpenmmMLPotential:
    """A potential of openmm-ml.

    Parameters
    ----------
    ml_potential : an MLPotential
    spec : what `load_potential` reads to get it again; an object from a script has none
    options : passed on to its `createSystem`
    dtype : of what it computes with; openmm-ml does not tell
    cutoff_nm : None where it is not known
    path : of the file with its parameters, where there is one
    """

    def __init__(
        self,
        ml_potential: Any,
        spec: str = "",
        *,
        options: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        cutoff_nm: float | None = None,
        path: Path | None = None,
    ) -> None:
        self._impl = ml_potential._impl  # createSystem would only hand over a System of its own
        self._options = dict(options or {})
        name = getattr(self._impl, "name", type(self._impl).__name__)
        self.spec = spec or f"an MLPotential object ({name})"
        shown = {key: str(value) for key, value in self._options.items()}
        self._card = PotentialCard(
            name=str(name),
            source=SOURCE,
            species=None,
            cutoff_nm=cutoff_nm,
            dtype=dtype,
            training_domain={"openmm-ml": _version(), **({"options": shown} if shown else {})},
            sha256=self._content(path, named=bool(spec)),
        )
        self._probe = Probe(self)

    def _content(self, path: Path | None, *, named: bool) -> str | None:
        """Of the file; of an object from a script, of all that it holds."""
        if path is not None:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        return None if named else content_digest([self._impl, self._options])

    @property
    def card(self) -> PotentialCard:
        return self._card

    def unsupported(self, system: MolecularSystem) -> str | None:
        given = self._options.get("charge")
        if given is not None and given != system.charge:
            return f"it was loaded for charge {given}, this one has {system.charge}"
        spin = self._options.get("multiplicity")
        if spin is not None and spin != system.spin_multiplicity:
            return (
                f"it was loaded for spin multiplicity {spin}, this one has "
                f"{system.spin_multiplicity}"
            )
        failure = self._probe.failure(system)
        deaf = None if failure else deaf_to(self._probe.energy, system)
        if deaf is None:
            return failure
        what, value = deaf
        return (
            f"it has {what} {value:+d}, and {self._card.name} gives the same without: it takes no "
            f"{what}; take a model that does"
        )

    def capabilities(self, system: MolecularSystem) -> Capabilities:
        return Capabilities(reads_box=True)

    def add_to(
        self,
        openmm_system: openmm.System,
        system: MolecularSystem,
        *,
        n_replicas: int = 1,
        tap: Tap | None = None,
    ) -> Built:
        topology = copy.copy(system.topology)
        topology.setPeriodicBoxVectors(system.box_vectors)
        options = dict(self._options)
        if system.charge:
            options["charge"] = system.charge  # openmm-ml's word for it
        if system.spin_multiplicity != 1:
            options["multiplicity"] = system.spin_multiplicity
        n_particles, n_constraints = _counts(openmm_system)
        try:
            self._impl.addForces(topology, openmm_system, None, 0, **options)
        except ImportError as error:
            raise unusable(self._card.name, error) from error
        if _counts(openmm_system) != (n_particles, n_constraints) or any(
            openmm_system.isVirtualSite(i) for i in range(n_particles)
        ):
            raise UnsupportedSystemError(
                f"{self._card.name} adds constraints or virtual sites to the System; wanted a "
                "potential that moves every atom by forces alone"
            )
        return Built(kind_in(openmm_system))

    def energies_and_forces(self, positions: NDArray[np.float64], system: MolecularSystem) -> None:
        return None

    def reference_energy(self, system: MolecularSystem) -> None:
        return None


def names() -> list[str]:
    """Nothing: most of what is registered needs a package or a file that is not here."""
    return []


def matches(spec: str) -> bool:
    """Whether this source reads the spec."""
    return spec.startswith(f"{SOURCE}:")


def executes(spec: str) -> str | None:
    """Which package's code loading will run; None for this package's own students."""
    name = split_options(spec.removeprefix(f"{SOURCE}:"))[0]
    package = registered_by(name)
    if package is None or package.replace("-", "_") == __name__.split(".")[0]:
        return None
    return f"{SOURCE}:{name} runs code of the package {package}, and what its model may carry"


def registered_by(name: str) -> str | None:
    """The package that offers a potential to openmm-ml; None where none does.

    Nothing is imported for this.
    """
    module = sys.modules.get("openmmml.mlpotential")
    factory = module.MLPotential._implFactories.get(name) if module else None
    point = _entry_points().get(name)
    if point is not None and point.dist is not None:
        return point.dist.name
    if factory is not None:
        return type(factory).__module__.split(".")[0]
    return None


@functools.lru_cache(maxsize=8)
def load(spec: str) -> OpenmmMLPotential:
    """The potential behind a spec.

    Raises
    ------
    UnknownNameError : no package has registered the name
    MissingPackageError : openmm-ml, or the package behind the name, is absent
    InputError : options that it does not take, or its constructor fails
    """
    name, options = split_options(spec.removeprefix(f"{SOURCE}:"))
    said = card_options(spec, options)
    ml_potential_class = _ml_potential_class()
    factories = ml_potential_class._implFactories
    if name not in factories:
        raise UnknownNameError("potential of openmm-ml", name, factories)
    at_start, later = _shared_out(name, options, factories[name].createImpl)
    try:
        ml_potential = ml_potential_class(name, **at_start)
    except OmmMlffError:
        raise
    except ImportError as error:
        raise unusable(name, error) from error
    except Exception as error:  # what another package raises is not known beforehand
        raise InputError(f"{SOURCE}:{name} cannot be made: {one_line(error)}") from error
    _refuse_unknown(name, options, at_start, ml_potential._impl.addForces)
    _require_packages(name, ml_potential, later)
    path = Path(str(options.get("modelPath", "")))
    return OpenmmMLPotential(
        ml_potential,
        spec,
        options=later,
        **said,
        path=path if path.is_file() else None,
    )


def takes(thing: Any) -> bool:
    """Whether it is an MLPotential."""
    module = sys.modules.get("openmmml.mlpotential")
    return module is not None and isinstance(thing, module.MLPotential)


def wrap(thing: Any) -> OpenmmMLPotential:
    """The potential of an MLPotential."""
    return OpenmmMLPotential(thing)


def unusable(name: str, error: ImportError | AttributeError) -> InputError:
    """The exception for a potential whose packages fail it: one is absent, or does not fit."""
    for cause in (error, error.__cause__, error.__context__):
        module = (cause.name or "").split(".")[0] if isinstance(cause, ImportError) else ""
        if module and importlib.util.find_spec(module) is None:
            said = re.search(r"(?:pip|conda) install [^'`\"\n]*[^'`\"\n. ]", str(error))
            install = said.group() if said else f"pip install {_DISTRIBUTIONS.get(module, module)}"
            return MissingPackageError(module, f"{SOURCE}:{name}", install)
    return InputError(f"{SOURCE}:{name} does not work with the packages here: {one_line(error)}")


def _ml_potential_class() -> Any:
    try:
        from openmmml import MLPotential
    except ImportError as error:
        if importlib.util.find_spec("openmmml") is None:
            raise MissingPackageError(
                "openmmml", f"a model {SOURCE}:NAME", "pip install 'omm-mlff[ml]'"
            ) from None
        raise InputError(
            f"openmm-ml loads every package that registers with it, and one fails: "
            f"{one_line(error)} (registered: {', '.join(sorted(_packages()))})"
        ) from error
    return MLPotential


def _require_packages(name: str, ml_potential: Any, options: Mapping[str, Any]) -> None:
    """Let it say which package it lacks: most import theirs only when they add their Forces.

    A module that lacks a name is there in a version that does not fit.
    """
    topology = openmm.app.Topology()
    residue = topology.addResidue("H2", topology.addChain())
    trial = openmm.System()
    for number in range(2):
        topology.addAtom(f"H{number}", openmm.app.element.hydrogen, residue)
        trial.addParticle(openmm.app.element.hydrogen.mass)
    try:
        ml_potential._impl.addForces(topology, trial, None, 0, **options)
    except (ImportError, AttributeError) as error:
        raise unusable(name, error) from error
    except Exception:
        return  # whether it knows hydrogen is not the question here


def _shared_out(
    name: str, options: Mapping[str, Any], constructor: Callable[..., Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Which options the constructor gets, and which `createSystem`."""
    named, takes_any = _parameters(constructor)
    at_start = {key: value for key, value in options.items() if key in named or takes_any}
    later = {key: value for key, value in options.items() if key not in named}
    return at_start, later


def _refuse_unknown(
    name: str, options: Mapping[str, Any], at_start: Mapping[str, Any], adder: Callable[..., Any]
) -> None:
    named, takes_any = _parameters(adder)
    unknown = [key for key in options if key not in at_start and key not in named]
    if unknown and not takes_any:
        raise InputError(f"{SOURCE}:{name} takes no option {unknown[0]!r}; leave it out")


def _parameters(function: Callable[..., Any]) -> tuple[set[str], bool]:
    """The parameters that a function names, and whether it takes any other by name."""
    parameters = inspect.signature(function).parameters.values()
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return {parameter.name for parameter in parameters} - {"name"}, takes_any


def _counts(openmm_system: openmm.System) -> tuple[int, int]:
    return openmm_system.getNumParticles(), openmm_system.getNumConstraints()


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _packages() -> set[str]:
    return {point.dist.name for point in _entry_points().values() if point.dist is not None}


def _version() -> str:
    try:
        return version("openmmml")
    except PackageNotFoundError:
        return "not known"
