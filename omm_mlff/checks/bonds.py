"""Does the molecule keep its bonds, and the run its feet?

Two witnesses are heard, which share thresholds and nothing else. *Events*: why the simulation
stopped a replica (not a number, exploding energy, a bond far too long or short, atoms on top of
each other). *Frames*: a bond is broken where its length is more than 0.5 angstrom off its length
at rest for longer than 10 fs; a bond is new where two atoms without one are closer than 1.2 times
the sum of their covalent radii for longer than 10 fs. Ten femtoseconds are one period of the
fastest vibration (O-H, 9 fs), so that a collision or a hot stretch is not taken for chemistry. A
hydrogen whose bond breaks while it makes a new one is named as a transfer.

`broken_bonds` counts bonds (each once a replica), of either witness; `new_bonds` counts pairs;
`crashes` counts replicas stopped by anything but a bond. Each comes with the time that was
watched, and with Garwood's interval for the expectation of the count.

Covalent radii: Cordero et al., Dalton Trans. 2832 (2008), as RDKit tabulates them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import Check, Evidence, counted, for_each_run, run_where
from omm_mlff.checks.frames import Sample, frames_longer_than, stretches
from omm_mlff.schema import Criterion, Declaration, Event, Measurement, Where
from omm_mlff.units import ANGSTROM_PER_NM, PS_PER_FS
from omm_mlff.watch import BOND_LIMIT_NM, BOND_TIME_PS, covalent_radii, pair_lengths

if TYPE_CHECKING:
    from omm_mlff.rundir import RunRecord

NEW_RADII = 1.2
_LOOK_PS = 2.5 * PS_PER_FS  # between looks at the pairs without a bond; a quarter of BOND_TIME_PS
_PIECE_NUMBERS = 2_000_000  # distances held at a time

_HYDROGEN = 1
_CRASHES = frozenset({"nan", "energy", "overlap"})

BROKEN = Declaration(
    "stability.broken_bonds", "count", "1", "bonds broken, each once a replica", "bonds"
)
NEW = Declaration(
    "stability.new_bonds", "count", "1", "pairs bonded that were not, each once a replica", "bonds"
)
CRASHES = Declaration(
    "stability.crashes",
    "count",
    "1",
    "replicas stopped by a NaN, an exploding energy or an overlap of atoms",
    "bonds",
)


@dataclass(frozen=True)
class Incident:
    """One bond broken or made.

    Attributes
    ----------
    frame : the first in which it was so; None for an event of the simulation
    length_nm : there
    """

    replica: int
    atoms: tuple[int, ...]
    frame: int | None
    time_ps: float
    length_nm: float
    detail: str


def first_lasting(
    flags: Iterator[NDArray[np.bool_]], n_frames: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which columns are true in enough consecutive frames, and since when first.

    Parameters
    ----------
    flags : pieces of shape (n_frames_of_piece, n_columns), consecutive in time
    n_frames : how many consecutive frames are enough

    Returns
    -------
    columns, sorted, and the frame at which the first lasting stretch of each began
    """
    streak: NDArray[np.int64] | None = None
    began: NDArray[np.int64] | None = None
    frame = 0
    for piece in flags:
        if streak is None or began is None:
            streak = np.zeros(piece.shape[1], dtype=np.int64)
            began = np.full(piece.shape[1], -1, dtype=np.int64)
        if not piece.any():
            streak[:] = 0
            frame += len(piece)
            continue
        for row in piece:
            streak = np.where(row, streak + 1, 0)
            fresh = (streak == n_frames) & (began < 0)
            began[fresh] = frame - n_frames + 1
            frame += 1
    if began is None:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    columns = np.flatnonzero(began >= 0)
    return columns, began[columns]


def unbonded_pairs(n_atoms: int, bonds: NDArray[np.int64]) -> NDArray[np.int64]:
    """All pairs of atoms that have no bond, shape (n_pairs, 2)."""
    free = np.triu(np.ones((n_atoms, n_atoms), dtype=np.bool_), k=1)
    free[bonds.min(axis=1, initial=n_atoms), bonds.max(axis=1, initial=0)] = False
    return np.argwhere(free)


def _of_run(evidence: Evidence, run: RunRecord) -> list[Measurement]:
    """Broken bonds, new bonds and crashes of one run."""
    system = evidence.system
    names = [f"{symbol}{i}" for i, symbol in enumerate(_symbols(system.species.tolist()))]
    bonds = system.bonds
    rest = pair_lengths(system.positions[None], bonds, system.box_vectors)[0]
    pairs = unbonded_pairs(system.n_atoms, bonds)
    radii = covalent_radii(system.species)
    contact = NEW_RADII * (radii[pairs[:, 0]] + radii[pairs[:, 1]])

    broken: list[Incident] = []
    new: list[Incident] = []
    exposure = 0.0
    for index in range(run.n_replicas):
        replica = run.replica(index)
        exposure += replica.n_frames * run.dt_ps
        sample = Sample(index, replica, replica.n_frames)
        broken += _broken(sample, run, bonds, rest, names, system.box_vectors)
        new += _new(sample, run, pairs, contact, names, system.box_vectors)
    seen = {(item.replica, item.atoms) for item in broken}
    crashes = []
    for index, event in sorted(run.events.items()):
        atoms = (min(event.atoms[:2]), max(event.atoms[:2])) if len(event.atoms) > 1 else ()
        if event.kind in _CRASHES:
            crashes.append(_from_event(index, event))
        elif (index, atoms) not in seen:
            broken.append(_from_event(index, event))
    broken.sort(key=lambda item: item.time_ps)
    new.sort(key=lambda item: item.time_ps)
    transfers = _transfers(broken, new, bonds, system.species, names)
    where = run_where(evidence, run)
    return [
        _counted(declaration, incidents, where, run.n_replicas, exposure, transfers)
        for declaration, incidents in ((BROKEN, broken), (NEW, new), (CRASHES, crashes))
    ]


def _broken(
    sample: Sample,
    run: RunRecord,
    bonds: NDArray[np.int64],
    rest: NDArray[np.float64],
    names: list[str],
    box_vectors: NDArray[np.float64] | None,
) -> list[Incident]:
    if not len(bonds):
        return []
    size = max(1, _PIECE_NUMBERS // (3 * max(len(bonds), len(names))))
    flags = (
        np.abs(pair_lengths(piece["positions"], bonds, box_vectors) - rest) > BOND_LIMIT_NM
        for piece in stretches(sample, size, ("positions",))
    )
    columns, frames = first_lasting(flags, frames_longer_than(BOND_TIME_PS, run.dt_ps))
    return [
        _incident(sample, run, bonds[column], int(frame), names, rest[column], box_vectors)
        for column, frame in zip(columns, frames, strict=True)
    ]


def _new(
    sample: Sample,
    run: RunRecord,
    pairs: NDArray[np.int64],
    contact: NDArray[np.float64],
    names: list[str],
    box_vectors: NDArray[np.float64] | None,
) -> list[Incident]:
    if not len(pairs):
        return []
    every = max(1, round(_LOOK_PS / run.dt_ps))
    size = max(1, _PIECE_NUMBERS // (3 * len(pairs))) * every

    def flags() -> Iterator[NDArray[np.bool_]]:
        seen = 0
        for piece in stretches(sample, size, ("positions",)):
            looked_at = piece["positions"][(-seen) % every :: every]
            seen += len(piece["positions"])
            if len(looked_at):
                yield pair_lengths(looked_at, pairs, box_vectors) < contact

    columns, looks = first_lasting(flags(), frames_longer_than(BOND_TIME_PS, run.dt_ps * every))
    return [
        _incident(sample, run, pairs[column], int(look) * every, names, None, box_vectors)
        for column, look in zip(columns, looks, strict=True)
    ]


def _incident(
    sample: Sample,
    run: RunRecord,
    pair: NDArray[np.int64],
    frame: int,
    names: list[str],
    rest_nm: float | None,
    box_vectors: NDArray[np.float64] | None,
) -> Incident:
    positions = sample.replica.positions[frame : frame + 1]
    length = float(pair_lengths(positions, pair[None], box_vectors)[0, 0])
    i, j = int(pair[0]), int(pair[1])
    time = float(sample.replica.time[frame])
    angstrom = length * ANGSTROM_PER_NM
    if rest_nm is None:
        what = f"{names[i]} and {names[j]} bonded at {angstrom:.2f} angstrom"
    else:
        at_rest = rest_nm * ANGSTROM_PER_NM
        what = f"bond {names[i]}-{names[j]} at {angstrom:.2f} angstrom ({at_rest:.2f} at rest)"
    return Incident(sample.index, (i, j), frame, time, length, what)


def _from_event(replica: int, event: Event) -> Incident:
    return Incident(replica, event.atoms, None, event.time_ps, event.value, event.detail)


def _transfers(
    broken: list[Incident],
    new: list[Incident],
    bonds: NDArray[np.int64],
    species: NDArray[np.int64],
    names: list[str],
) -> dict[tuple[int, tuple[int, ...]], str]:
    """Hydrogens that lose their bond and make another, in the words for either incident."""
    found: dict[tuple[int, tuple[int, ...]], str] = {}
    for lost in broken:
        for made in new:
            if made.replica != lost.replica:
                continue
            for atom in set(lost.atoms) & set(made.atoms):
                giver, taker = sum(lost.atoms) - atom, sum(made.atoms) - atom
                if species[atom] == _HYDROGEN and _HYDROGEN not in (species[giver], species[taker]):
                    words = (
                        f"hydrogen transfer: {names[atom]} from {names[giver]} to {names[taker]}"
                    )
                    found[lost.replica, lost.atoms] = words
                    found[made.replica, made.atoms] = words
    return found


def _counted(
    declaration: Declaration,
    incidents: list[Incident],
    where: Where,
    n_replicas: int,
    exposure: float,
    transfers: dict[tuple[int, tuple[int, ...]], str],
) -> Measurement:
    cause = ""
    if incidents:
        first = incidents[0]
        words = first.detail
        transfer = transfers.get((first.replica, first.atoms))
        if transfer and declaration is not CRASHES:
            words = f"{transfer} ({words})"
        cause = f"{words}, replica {first.replica} at {first.time_ps:.4g} ps"
        if len(incidents) > 1:
            n_hit = len({item.replica for item in incidents})
            cause += f"; {len(incidents)} in {n_hit} of {n_replicas} replicas"
        where = dataclasses.replace(
            where, replica=first.replica, frame=first.frame, atoms=first.atoms
        )
    return counted(
        declaration,
        len(incidents),
        where,
        n_replicas=n_replicas,
        exposure_ps=exposure,
        cause=cause,
    )


def _symbols(species: list[int]) -> list[str]:
    from rdkit.Chem import GetPeriodicTable

    table = GetPeriodicTable()
    return [str(table.GetElementSymbol(int(number))) for number in species]


_NO_CHEMISTRY = (
    "DESIGN sections 4 and 8: no broken bond, no crash; nothing shipped is meant to react, so the "
    "first event fails"
)

CHECK = Check(
    name="bonds",
    question="Does the molecule keep its bonds, and the run its feet?",
    formula="|d - d_rest| > 0.5 angstrom, or d < 1.2 (r_i + r_j) without a bond, for over 10 fs",
    source="Cordero et al., Dalton Trans. 2832 (2008); Garwood, Biometrika 28, 437 (1936)",
    declares=(BROKEN, NEW, CRASHES),
    criteria=tuple(
        Criterion(f"{row.name}-reject", row.name, None, 0.0, row.unit, "reject", _NO_CHEMISTRY)
        for row in (BROKEN, NEW, CRASHES)
    ),
    needs=frozenset({"runs"}),
    take=for_each_run(_of_run),
)
