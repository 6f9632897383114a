"""Does it know that space has no preferred place or direction, and that like atoms are alike?

Frames are rotated at random (uniformly over all rotations), moved by some nanometres, and like
atoms exchanged; the energy must stay, the forces must follow. The largest change of the energy is
reported per atom, that of the forces as rms(F' - F_expected) / rms(F). Without any reference
geometry, forces of a molecule add up to no net force and no torque:

    |sum F| / F_rms          |sum (r - R) x F| / (F_rms R_gyration)

with F_rms the root mean square length of an atom's force, over all frames: at a minimum there is
none to compare with. In a periodic box there is neither a
torque nor, with OpenMM's form of the box, another orientation; translations stay inside the box. A
force field that knows atoms by their bonds is not meant to let like atoms be exchanged.

The bounds follow from rounding: some hundred roundings of 6e-8 in a float32 network, of 1e-16 in
float64. What is really broken (a grid, an unsummed channel, a wrong frame) is far above one
percent.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import (
    FREE,
    SPOILS_EVALUATION,
    Check,
    Evidence,
    absent,
    bounds,
    exact,
    worst,
)
from omm_mlff.checks.frames import static_frames
from omm_mlff.schema import Criterion, Declaration, Fault, Measurement, Where
from omm_mlff.units import MEV_PER_KJMOL

N_FRAMES = 16
TRANSLATION_NM = 3.0


def _declared(name: str, unit: str, meaning: str, failure: str) -> Declaration:
    return Declaration(
        f"invariance.{name}", "deterministic", unit, meaning, "invariance", failure=failure
    )


ENERGY = {
    name: _declared(
        f"{name}_energy",
        "meV/atom",
        f"largest change of the energy under {name}",
        f"the energy depends on {what}",
    )
    for name, what in (
        ("rotation", "the orientation"),
        ("translation", "the position"),
        ("permutation", "the order of like atoms"),
    )
}
FORCE = {
    name: _declared(
        f"{name}_force", "1", f"largest relative change of the forces under {name}", failure
    )
    for name, failure in (
        ("rotation", "forces do not turn with the molecule"),
        ("translation", "forces depend on the position"),
        ("permutation", "forces depend on the order of like atoms"),
    )
}
NET_FORCE = _declared(
    "net_force",
    "1",
    "|sum F| over the rms force",
    failure="the molecule pulls on itself",
)
NET_TORQUE = dataclasses.replace(
    _declared(
        "net_torque",
        "1",
        "|sum r x F| over rms force times radius of gyration",
        "the molecule turns itself",
    ),
    explained_by=(Fault.CURL,),
)

Transformed = tuple[NDArray[np.float64], NDArray[np.float64]]


def take(evidence: Evidence) -> list[Measurement]:
    """Changes under rotation, translation and permutation; net force and torque."""
    frames = static_frames(evidence, CHECK.name, N_FRAMES)
    energies, forces = evidence.live.evaluate(frames)
    random = evidence.random(CHECK.name)
    where = Where(system=evidence.system.name)
    size = np.sqrt((forces**2).sum(axis=2).mean())
    found: list[Measurement] = []
    for name in ENERGY:
        obstacle = _obstacle(evidence, name)
        if obstacle:
            found += [absent(row, where, obstacle) for row in (ENERGY[name], FORCE[name])]
            continue
        moved, expected = _transformed(evidence, name, frames, forces, random)
        new_energies, new_forces = evidence.live.evaluate(moved)
        per_atom = MEV_PER_KJMOL / evidence.system.n_atoms
        energy, frame = worst(np.abs(new_energies - energies) * per_atom)
        spot = dataclasses.replace(where, frame=frame)
        found.append(exact(ENERGY[name], energy, spot, len(frames)))
        change = np.sqrt(((new_forces - expected) ** 2).sum(axis=2).mean(axis=1))
        force, frame = worst(relative(change, size))
        spot = dataclasses.replace(where, frame=frame)
        found.append(exact(FORCE[name], force, spot, len(frames)))

    net, frame = worst(relative(np.linalg.norm(forces.sum(axis=1), axis=1), size))
    found.append(exact(NET_FORCE, net, dataclasses.replace(where, frame=frame), len(frames)))
    if evidence.system.periodic:
        found.append(absent(NET_TORQUE, where, "a periodic box has no torque"))
    else:
        r = frames - frames.mean(axis=1, keepdims=True)
        torque = np.linalg.norm(np.cross(r, forces).sum(axis=1), axis=1)
        gyration = np.sqrt((r**2).sum(axis=2).mean(axis=1))
        value, frame = worst(relative(torque, size * gyration))
        spot = dataclasses.replace(where, frame=frame)
        found.append(exact(NET_TORQUE, value, spot, len(frames)))
    return found


def relative(
    part: NDArray[np.float64], whole: NDArray[np.float64] | np.float64
) -> NDArray[np.float64]:
    """part / whole; 0 for 0/0, infinity for anything else over 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = part / whole
    return np.where((part == 0.0) & (whole == 0.0), 0.0, ratio)


def like_atoms_exchanged(
    species: NDArray[np.int64], random: np.random.Generator
) -> NDArray[np.int64]:
    """A random permutation that maps every atom to one of its species, shape (n_atoms,)."""
    order = np.arange(len(species))
    for number in np.unique(species):
        atoms = np.flatnonzero(species == number)
        order[atoms] = random.permutation(atoms)
    return order


def _obstacle(evidence: Evidence, name: str) -> str:
    if name == "rotation" and evidence.system.periodic:
        return "OpenMM's box vectors have one orientation"
    if name == "permutation" and evidence.card.knows_atoms_by != "element":
        return f"{evidence.card.name} knows its atoms by {evidence.card.knows_atoms_by}"
    return ""


def _transformed(
    evidence: Evidence,
    name: str,
    frames: NDArray[np.float64],
    forces: NDArray[np.float64],
    random: np.random.Generator,
) -> Transformed:
    """Frames after the operation, and the forces that they should have."""
    if name == "rotation":
        from scipy.spatial.transform import Rotation

        matrices = Rotation.random(len(frames), rng=random).as_matrix()
        centre = frames.mean(axis=1, keepdims=True)
        turned = np.einsum("fxy,fay->fax", matrices, frames - centre) + centre
        return turned, np.einsum("fxy,fay->fax", matrices, forces)
    if name == "translation":
        box = evidence.system.box_vectors
        shift = random.uniform(-1.0, 1.0, size=(len(frames), 3))
        shift = shift * TRANSLATION_NM if box is None else shift @ box
        return frames + shift[:, None], forces
    orders = [like_atoms_exchanged(evidence.system.species, random) for _ in frames]
    pairs = list(enumerate(orders))
    return (
        np.array([frames[i][order] for i, order in pairs]),
        np.array([forces[i][order] for i, order in pairs]),
    )


_ROUNDING = "rounding (derived in omm_mlff/checks/invariance.py)"
_RELATIVE = (*FORCE.values(), NET_FORCE, NET_TORQUE)


def _criteria() -> tuple[Criterion, ...]:
    rows: list[Criterion] = []
    for row in ENERGY.values():
        rows += bounds(row, _ROUNDING, dtypes=("float64",), high=(1.0e-6, 1.0e-3))
        rows += bounds(row, _ROUNDING, dtypes=("float32",), high=(0.01, 1.0))
    for row in _RELATIVE:
        rows += bounds(row, _ROUNDING, dtypes=("float64",), high=(1.0e-8, 1.0e-4))
        rows += bounds(row, _ROUNDING, dtypes=("float32",), high=(1.0e-4, 1.0e-2))
    return tuple(rows)


CHECK = Check(
    name="invariance",
    question="Does it treat every place, direction and like atom alike?",
    formula="E(Rx) - E(x), F(Rx) - R F(x); |sum F| / F_rms; |sum r x F| / (F_rms R_gyration)",
    source="Noether's theorem; Shoemake, Graphics Gems III, 124 (1992), for uniform rotations",
    declares=(*ENERGY.values(), *FORCE.values(), NET_FORCE, NET_TORQUE),
    criteria=_criteria(),
    needs=frozenset({"evaluator"}),
    take=take,
    use=FREE,
    explained_by=(
        *SPOILS_EVALUATION,
        Fault.ATOM_ORDER,
        Fault.ORIENTATION,
        Fault.BOX,
    ),
)
