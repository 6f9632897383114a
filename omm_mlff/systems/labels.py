"""A file of energies and forces becomes reference labels of systems.

Frames of the same atoms in the same order, with the same bonds, are one system; a frame belongs to
it where no bond is longer than 1.4 times what it is in the frame of lowest energy. The structure is
that frame. Energies keep their zero: a constant for each composition is removed where they are
compared (`checks.accuracy`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import logging
import pkgutil
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omm_mlff.errors import InputError, StructureError
from omm_mlff.schema import HeldOut, MolecularSystem, ReferenceLabels
from omm_mlff.systems import label_formats
from omm_mlff.systems.label_units import (
    LabelUnits,
    energies_look_like,
    energy_slope,
    forces_look_like,
    hydrogen_stiffness,
    stated_units,
)
from omm_mlff.systems.labelled import LabelKeys, LabelledFrames
from omm_mlff.systems.molecules import plain_topology
from omm_mlff.systems.structure import Structure, cell_rotation, whole

log = logging.getLogger(__name__)

Float = NDArray[np.float64]

MAX_FRAMES = 1000
"""Of a system: more do not sharpen what the intervals over them say, and each is evaluated."""

BROKEN = 1.4
"""A bond longer than this many times its length at rest belongs to another molecule."""

MAX_SYSTEMS = 50
"""Each is measured by itself; a file of more is a training set, and a part of it is meant."""


@dataclass(frozen=True)
class LabelOptions:
    """What a user says of labels.

    Attributes
    ----------
    energy_key, forces_key : what the file calls them, where not as its format does
    energy_unit, force_unit, length_unit : "eV", "eV/angstrom", "angstrom" and others; where None,
        those of the format
    held_out : whether the frames trained the model: "yes" they are held out, "no", or "unknown"
    method : that made the labels, such as "wB97M-D3BJ/def2-TZVPPD"; by default the name of the file
    charge, spin_multiplicity : where the file does not say them
    """

    energy_key: str | None = None
    forces_key: str | None = None
    energy_unit: str | None = None
    force_unit: str | None = None
    length_unit: str | None = None
    held_out: HeldOut = "unknown"
    method: str | None = None
    charge: int | None = None
    spin_multiplicity: int | None = None


def formats() -> list[ModuleType]:
    """The modules of `label_formats`."""
    return [
        importlib.import_module(f"{label_formats.__name__}.{module.name}")
        for module in pkgutil.iter_modules(label_formats.__path__)
    ]


def labelled_systems(
    labels: str | Path | Mapping[str, Any],
    options: LabelOptions | None = None,
    onto: Sequence[MolecularSystem] = (),
) -> tuple[MolecularSystem, ...]:
    """Systems with reference labels.

    Parameters
    ----------
    labels : a file (extended XYZ, ASE database, HDF5 of SPICE's or of TorchMD-Net's layout, NPZ of
        rMD17), or arrays: `species` (n_atoms,), `positions` (n_frames, n_atoms, 3), `energies`
        (n_frames,), `forces` of the shape of positions, in eV and angstrom unless the options say
        otherwise; also `charge`, `spin_multiplicity`, `box_vectors`, `temperature_K` (n_frames,)
    onto : systems that get the labels of their atoms; without any, those in the file are found

    Raises
    ------
    InputError : a file that is not read here, keys or units that are not there or cannot be, or a
        system that the labels are not of
    StructureError : frames that are no whole structure
    """
    options = options or LabelOptions()
    frames, known, source, sha256 = _read(labels, options)
    units = stated_units(
        known, options.energy_unit, options.length_unit, options.force_unit, source
    )
    wanted = {system.species.tobytes() for system in onto}
    groups = [_converted(source, part, units) for part in _gathered(source, frames, wanted)]
    if not groups and wanted:
        raise InputError(_none_fits(source, onto[0]))
    if not groups:
        raise InputError(f"{source} holds no labelled frame; wanted energies and forces")
    if onto:
        systems = [_attached(system, groups, source, sha256, options) for system in onto]
    else:
        systems = _found(groups, source, sha256, options)
    declared = bool(options.force_unit or options.energy_unit)
    for system in systems:
        _require_units(system, units, source, declared=declared)
    return tuple(
        dataclasses.replace(
            system, reference=dataclasses.replace(system.reference, units=str(units))
        )
        for system in systems
        if system.reference is not None
    )


def _read(
    labels: str | Path | Mapping[str, Any], options: LabelOptions
) -> tuple[Iterable[LabelledFrames], LabelUnits | None, str, str]:
    """Frames, the units that their format has, where they are from, and a hash of the content."""
    if isinstance(labels, Mapping):
        part = _from_arrays(labels)
        digest = hashlib.sha256()
        for array in (part.species, part.positions, part.energies, part.forces):
            digest.update(np.ascontiguousarray(array).tobytes())
        return [part], LabelUnits("eV", "angstrom"), "arrays", digest.hexdigest()
    path = Path(labels)
    if not path.is_file():
        raise InputError(f"no such file of labels: {path} (from {Path.cwd()}); check the path")
    for module in formats():
        if module.matches(path):
            keys = LabelKeys(options.energy_key, options.forces_key)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
            return module.read(path, keys), module.UNITS, str(path), digest.hexdigest()
    known = ", ".join(module.FORMAT for module in formats())
    raise InputError(f"{path} is not a file of labels that is read here (wanted: {known})")


def _from_arrays(arrays: Mapping[str, Any]) -> LabelledFrames:
    wanted = {field.name for field in dataclasses.fields(LabelledFrames)} - {"frame", "isotopes"}
    unknown = sorted(set(arrays) - wanted)
    lacking = [key for key in ("species", "positions", "energies", "forces") if key not in arrays]
    if unknown or lacking:
        raise InputError(
            f"labels: wanted arrays {', '.join(sorted(wanted))}, "
            + (f"got {unknown[0]!r}" if unknown else f"and {lacking[0]} is not there")
        )
    species = np.asarray(arrays["species"], dtype=np.int64).ravel()
    given = {
        key: None if value is None else np.asarray(value, dtype=np.float64)
        for key, value in arrays.items()
        if key not in ("species", "charge", "spin_multiplicity")
    }
    numbers = {key: arrays.get(key) for key in ("charge", "spin_multiplicity")}
    return LabelledFrames(species=species, **given, **numbers)  # type: ignore[arg-type]


def _gathered(
    source: str, parts: Iterable[LabelledFrames], wanted: Set[bytes]
) -> list[LabelledFrames]:
    """Frames of the same atoms in the same order, charge, spin and box, put together.

    Parameters
    ----------
    wanted : species that are looked for; all where it is empty, and then not too many
    """
    found: dict[tuple[Any, ...], list[LabelledFrames]] = {}
    for part in parts:
        if wanted and part.species.tobytes() not in wanted:
            continue
        n, n_atoms = len(part.positions), len(part.species)
        shapes = (part.positions.shape, part.energies.shape, part.forces.shape)
        if shapes != ((n, n_atoms, 3), (n,), (n, n_atoms, 3)):
            raise InputError(
                f"{source}: wanted positions and forces of ({n}, {n_atoms}, 3) and {n} energies, "
                f"got {shapes[0]}, {shapes[2]} and {shapes[1]}"
            )
        box = None if part.box_vectors is None else part.box_vectors.tobytes()
        isotopes = tuple(sorted(part.isotopes.items()))
        key = (part.species.tobytes(), part.charge, part.spin_multiplicity, box, isotopes)
        found.setdefault(key, []).append(part)
        if len(found) > MAX_SYSTEMS and not wanted:
            raise InputError(_too_many(source))
    return [_joined(group) for group in found.values()]


def _joined(parts: list[LabelledFrames]) -> LabelledFrames:
    if len(parts) == 1:
        return parts[0]
    temperatures = [_temperatures(part) for part in parts]
    return dataclasses.replace(
        parts[0],
        positions=np.concatenate([part.positions for part in parts]),
        energies=np.concatenate([part.energies for part in parts]),
        forces=np.concatenate([part.forces for part in parts]),
        temperature_K=np.concatenate(temperatures),
        frame=None,
    )


def _temperatures(part: LabelledFrames) -> Float:
    n = len(part.energies)
    return np.full(n, np.nan) if part.temperature_K is None else part.temperature_K


def _converted(source: str, part: LabelledFrames, units: LabelUnits) -> LabelledFrames:
    """In nm, kJ/mol and kJ/mol/nm; a box turned as OpenMM wants it, and all else with it."""
    positions, forces = part.positions * units.nm, part.forces * units.kjmol_nm
    box = None if part.box_vectors is None else part.box_vectors * units.nm
    finite = np.isfinite(positions).all() and np.isfinite(forces).all()
    if not (finite and np.isfinite(part.energies).all()):
        raise InputError(f"{source}: a label is not finite; leave that frame out")
    if box is not None:
        turn = cell_rotation(source, box)
        positions, forces = positions @ turn, forces @ turn
        box = np.tril(box @ turn)
    return dataclasses.replace(
        part,
        positions=positions,
        energies=part.energies * units.kjmol,
        forces=forces,
        box_vectors=box,
        temperature_K=_temperatures(part),
    )


def _found(
    groups: list[LabelledFrames], source: str, sha256: str, options: LabelOptions
) -> list[MolecularSystem]:
    """The systems in a file: each composition with the same bonds."""
    systems: list[MolecularSystem] = []
    for group in groups:
        left = np.arange(len(group.energies))
        while len(left):
            lowest = int(left[group.energies[left].argmin()])
            system = _structure(group, lowest, source, options, systems)
            same = left[_with_these_bonds(system, group.positions[left])]
            systems.append(_labelled(system, group, same, source, sha256, options))
            left = np.setdiff1d(left, same)
            if len(systems) > MAX_SYSTEMS:
                raise InputError(_too_many(source))
    return systems


def _structure(
    group: LabelledFrames,
    frame: int,
    source: str,
    options: LabelOptions,
    others: Sequence[MolecularSystem],
) -> MolecularSystem:
    from openmm.app import Element

    atoms = []
    for number in group.species.tolist():
        if not 1 <= number <= 118:
            raise StructureError(f"{source}: atomic number {number} is no element")
        symbol = Element.getByAtomicNumber(number).symbol if number <= 116 else str(number)
        atoms.append((number, symbol))
    structure = Structure(
        name=_name([symbol for _, symbol in atoms], others),
        source=source,
        topology=plain_topology(source, atoms),
        positions=group.positions[frame],
        bonds=set(),
        box_vectors=group.box_vectors,
        charge=group.charge,
        spin_multiplicity=group.spin_multiplicity,
        masses=dict(group.isotopes),
        unit_is_stated=False,
    )
    return whole(structure, options.charge, options.spin_multiplicity)


def _name(symbols: list[str], others: Sequence[MolecularSystem]) -> str:
    """The formula, in Hill's order; a number after it where another system has it too."""
    first = [symbol for symbol in ("C", "H") if "C" in symbols and symbol in symbols]
    ordered = first + sorted(set(symbols) - set(first))
    counts = {symbol: symbols.count(symbol) for symbol in ordered}
    formula = "".join(f"{symbol}{n if n > 1 else ''}" for symbol, n in counts.items())
    taken = {system.name for system in others}
    number = 1
    name = formula
    while name in taken:
        number += 1
        name = f"{formula}-{number}"
    return name


def _with_these_bonds(system: MolecularSystem, positions: Float) -> NDArray[np.bool_]:
    """Which frames have every bond of a system unbroken; its own structure always."""
    if not len(system.bonds):
        return np.ones(len(positions), dtype=bool)
    i, j = system.bonds.T

    def lengths(frames: Float) -> Float:
        r = frames[:, i] - frames[:, j]
        if system.box_vectors is not None:
            for axis in (2, 1, 0):
                row = system.box_vectors[axis]
                r = r - row * np.round(r[..., axis : axis + 1] / row[axis])
        return np.asarray(np.linalg.norm(r, axis=2), dtype=np.float64)

    at_rest = lengths(system.positions[None])
    return np.asarray((lengths(positions) < BROKEN * at_rest).all(axis=1))


def _attached(
    system: MolecularSystem,
    groups: list[LabelledFrames],
    source: str,
    sha256: str,
    options: LabelOptions,
) -> MolecularSystem:
    for group in groups:
        if np.array_equal(group.species, system.species):
            same = np.flatnonzero(_with_these_bonds(system, group.positions))
            if len(same):
                return _labelled(system, group, same, source, sha256, options)
    raise InputError(_none_fits(source, system))


def _none_fits(source: str, system: MolecularSystem) -> str:
    return (
        f"{source} has no frame with the atoms of {system.name} in its order and with its bonds; "
        "leave out --system, or name the structure that the labels are of"
    )


def _too_many(source: str) -> str:
    return (
        f"{source} holds more than {MAX_SYSTEMS} systems (compositions, or bonds that differ); "
        "wanted fewer: choose some, or name them with --system"
    )


def _labelled(
    system: MolecularSystem,
    group: LabelledFrames,
    frames: NDArray[np.int64],
    source: str,
    sha256: str,
    options: LabelOptions,
) -> MolecularSystem:
    if len(frames) > MAX_FRAMES:
        log.warning(
            "notice: %s has %d frames of %s; %d of them are taken, spread evenly",
            source,
            len(frames),
            system.name,
            MAX_FRAMES,
        )
        frames = frames[np.linspace(0, len(frames) - 1, MAX_FRAMES).round().astype(np.int64)]
    name = Path(source).name
    labels = ReferenceLabels(
        positions=group.positions[frames],
        energies=group.energies[frames],
        forces=group.forces[frames],
        trajectory=np.zeros(len(frames), dtype=np.int64),
        temperature_K=_temperatures(group)[frames],
        method=options.method or name,
        source=source,
        sha256=sha256,
        held_out=options.held_out,
    )
    same_method = system.landmarks is not None and system.landmarks.method == labels.method
    return dataclasses.replace(
        system, reference=labels, landmarks=system.landmarks if same_method else None
    )


def _require_units(
    system: MolecularSystem, units: LabelUnits, source: str, *, declared: bool
) -> None:
    """Refuse labels whose numbers are those of another unit; warn where the user has named it."""
    labels = system.reference
    if labels is None:
        return
    species = system.species
    pairs = [(i, j) if species[j] == 1 else (j, i) for i, j in system.bonds.tolist()]
    pairs = [(i, j) for i, j in pairs if species[j] == 1]
    stiffness = hydrogen_stiffness(labels.positions, labels.forces, pairs[:30])
    looks = None if stiffness is None else forces_look_like(stiffness, units)
    complaint = ""
    if looks is not None:
        complaint = (
            f"the forces on {system.name} give its bonds to hydrogen a stiffness of "
            f"{stiffness:.3g} eV/angstrom^2 (usual: 17 to 55); these look like {looks}, not "
            f"{units.force or f'{units.energy}/{units.length}'}: give --energy-unit, --length-unit "
            "or --force-unit"
        )
    else:
        slope = energy_slope(labels.positions, labels.energies, labels.forces)
        looks = None if slope is None else energies_look_like(slope, units)
        if looks is not None:
            complaint = (
                f"the energies of {system.name} change by {slope:.3g} times the work of its "
                f"forces; these look like {looks}, not {units.energy}: give --energy-unit and "
                "--force-unit"
            )
    if not complaint:
        return
    if not declared:
        raise InputError(f"{source}: {complaint}")
    log.warning("notice: %s: %s", source, complaint)
