"""Symptoms in the structure: bonds, hydrogen transfer, overlap, fragmentation, evaporation.

Bonds and transfers are those of `checks.bonds`. *Fragmentation*: a bond that breaks leaves the
graph of bonds with more pieces than it had, bonds made by then included. *Overlap*: the simulation
saw two atoms closer than 0.6 of their covalent radii. *Evaporation*: in a cluster, a molecule that
had neighbours is further than 10 angstrom from every atom of all others. That is beyond the cutoff
of every student, and two water dipoles (1.85 debye) at that distance attract by at most 0.004 eV, a
sixth of kT at 300 K. In a periodic box nothing can leave, and it is not looked for.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from omm_mlff.checks.bonds import Incident, IncidentScan, transfers
from omm_mlff.checks.frames import Sample, stretches
from omm_mlff.failures.symptoms import Symptom
from omm_mlff.units import ANGSTROM_PER_NM, NM_PER_ANGSTROM, PS_PER_FS

if TYPE_CHECKING:
    from omm_mlff.record.rundir import RunRecord
    from omm_mlff.schema import Event, MolecularSystem

APART_NM = 10.0 * NM_PER_ANGSTROM
_LOOK_PS = 50.0 * PS_PER_FS  # a molecule needs some picoseconds to leave
_TOGETHER_PS = 50.0 * PS_PER_FS  # a bond made so soon belongs to the bond that broke
_FRAMES_AT_ONCE = 256
_NAMED = 6  # atoms of a fragment


def structural_symptoms(scan: IncidentScan, index: int, event: Event | None) -> list[Symptom]:
    """Everything that the structure shows of one replica.

    Parameters
    ----------
    event : why the simulation stopped it, if it did
    """
    broken, new = scan.incidents(index)
    moved = transfers(broken, new, scan.system.species, scan.names)
    found = []
    for item in broken:
        words = moved.get((index, item.atoms))
        if words is None:
            found.append(_symptom("broken-bond", item, item.detail))
        else:
            partners = [other.atoms for other in new if moved.get((index, other.atoms)) == words]
            atoms = tuple(dict.fromkeys((*item.atoms, *partners[0])))
            transfer = _symptom("transfer", item, f"{words} ({item.detail})")
            found.append(dataclasses.replace(transfer, atoms=atoms))
    found += [
        _symptom("new-bond", item, item.detail) for item in new if (index, item.atoms) not in moved
    ]
    found += _fragmentation(scan, broken, new)
    if event is not None and event.kind == "overlap":
        found.append(
            Symptom(
                "overlap",
                event.time_ps,
                event.atoms,
                event.value * ANGSTROM_PER_NM,
                "angstrom",
                event.detail,
            )
        )
    return found + _evaporation(scan.run, scan.system, scan.names, index)


def _symptom(kind: str, item: Incident, sentence: str) -> Symptom:
    return Symptom(
        kind, item.time_ps, item.atoms, item.length_nm * ANGSTROM_PER_NM, "angstrom", sentence
    )


def molecules(n_atoms: int, bonds: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
    """How many pieces a graph of bonds has, and the piece of every atom, shape (n_atoms,)."""
    graph = coo_array((np.ones(len(bonds)), (bonds[:, 0], bonds[:, 1])), shape=(n_atoms, n_atoms))
    n, labels = connected_components(graph, directed=False)
    return int(n), np.asarray(labels, dtype=np.int64)


def _fragmentation(
    scan: IncidentScan, broken: list[Incident], new: list[Incident]
) -> list[Symptom]:
    """The first bond broken that leaves more pieces than there were."""
    system = scan.system
    intact = {(int(i), int(j)) for i, j in system.bonds}
    n_before, _ = molecules(system.n_atoms, system.bonds)
    gone: set[tuple[int, ...]] = set()
    for item in broken:
        gone.add(item.atoms)
        made = {other.atoms for other in new if other.time_ps <= item.time_ps + _TOGETHER_PS}
        left = np.array(sorted((intact - gone) | made), dtype=np.int64).reshape(-1, 2)
        n, labels = molecules(system.n_atoms, left)
        if n <= n_before or len(item.atoms) < 2:
            continue
        sides = [np.flatnonzero(labels == labels[atom]) for atom in item.atoms[:2]]
        small = min(sides, key=len)
        names = " ".join(scan.names[atom] for atom in small[:_NAMED])
        more = f" and {len(small) - _NAMED} more" if len(small) > _NAMED else ""
        sentence = f"{n} pieces where there were {n_before}: {names}{more} came off"
        atoms = tuple(int(atom) for atom in small[:_NAMED])
        return [Symptom("fragmentation", item.time_ps, atoms, float(n), "1", sentence)]
    return []


def _evaporation(
    run: RunRecord, system: MolecularSystem, names: tuple[str, ...], index: int
) -> list[Symptom]:
    """The first molecule that leaves a cluster."""
    n, labels = molecules(system.n_atoms, system.bonds)
    if n < 2 or system.periodic:
        return []
    every = max(1, round(_LOOK_PS / run.dt_ps))
    replica = run.replica(index)
    sample = Sample(index, replica, replica.n_frames)
    seen, had_neighbours = 0, np.zeros(n, dtype=np.bool_)
    for piece in stretches(sample, _FRAMES_AT_ONCE, ("time", "positions")):
        for frame in range((-seen) % every, len(piece["time"]), every):
            gaps = _gaps(piece["positions"][frame], n, labels)
            left = np.flatnonzero(had_neighbours & (gaps > APART_NM))
            if len(left):
                way = np.linalg.norm(piece["positions"][frame] - system.positions, axis=1)
                # Of two that are apart, the one that went.
                gone = max(left.tolist(), key=lambda one: float(way[labels == one].mean()))
                atoms = np.flatnonzero(labels == gone)
                gap = float(gaps[gone]) * ANGSTROM_PER_NM
                sentence = (
                    f"the molecule of {names[atoms[0]]} left: {gap:.3g} angstrom from all others"
                )
                return [
                    Symptom(
                        "evaporation",
                        float(piece["time"][frame]),
                        tuple(int(atom) for atom in atoms[:_NAMED]),
                        gap,
                        "angstrom",
                        sentence,
                    )
                ]
            had_neighbours |= gaps <= APART_NM
        seen += len(piece["time"])
    return []


def _gaps(positions: NDArray[np.float64], n: int, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Distance of each molecule to the nearest atom of another, shape (n,), nm."""
    r = positions[:, None] - positions[None]
    d = np.sqrt((r * r).sum(-1))
    d[labels[:, None] == labels[None]] = np.inf
    nearest = d.min(axis=1)
    gaps = np.full(n, np.inf)
    np.minimum.at(gaps, labels, nearest)
    return gaps
