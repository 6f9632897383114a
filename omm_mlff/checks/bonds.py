"""Does the molecule keep its bonds, and the run its feet?

Two witnesses are heard, which share thresholds and nothing else. *Events*: why the simulation
stopped a replica (an error of the potential's code, not a number, exploding energy, a bond far too
long or short, atoms on top of each other). *Frames*: a bond is broken where its length is more than
0.5 angstrom off its length at rest for longer than 10 fs; a bond is new where two atoms without one
are closer than 1.2 times the sum of their covalent radii for longer than 10 fs. Ten femtoseconds
are one period of the fastest vibration (O-H, 9 fs), so that a collision or a hot stretch is not
taken for chemistry. A hydrogen whose bond breaks while it makes a new one is named as a transfer.

`broken_bonds` counts bonds (each once a replica), of either witness; `new_bonds` counts pairs;
`crashes` counts replicas stopped by anything but a bond. Each comes with the time that was
watched, and with Garwood's interval for the expectation of the count.

Covalent radii: Cordero et al., Dalton Trans. 2832 (2008), as RDKit tabulates them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import (
    SPOILS_DYNAMICS,
    SPOILS_EVALUATION,
    WHOLE,
    Check,
    Evidence,
    counted,
    for_each_run,
    run_where,
)
from omm_mlff.checks.frames import Sample, frames_longer_than, stretches
from omm_mlff.dynamics.stability_watch import BOND_TIME_PS
from omm_mlff.geometry.distances import BOND_LIMIT_NM, covalent_radii, pair_lengths
from omm_mlff.schema import (
    Criterion,
    Declaration,
    Event,
    EventKind,
    Measurement,
    MolecularSystem,
    Reason,
    Symptom,
    Where,
)
from omm_mlff.units import ANGSTROM_PER_NM, PS_PER_FS

if TYPE_CHECKING:
    from omm_mlff.record.rundir import RunRecord

NEW_RADII = 1.2
_LOOK_PS = 2.5 * PS_PER_FS  # between looks at the pairs without a bond; a quarter of BOND_TIME_PS
_PIECE_NUMBERS = 300_000  # held at a time, so that they stay in the processor's cache
_INCIDENT_BYTES = 4096

_HYDROGEN = 1
CRASH_KINDS: frozenset[EventKind] = frozenset({"raised", "nan", "energy", "overlap"})
"""Kinds of event that are not a bond's."""

_REASONS: Mapping[EventKind, tuple[Reason, ...]] = {
    "raised": (Reason.RAISED,),
    "nan": (Reason.NOT_FINITE,),
}

BROKEN = Declaration(
    "stability.broken_bonds",
    "count",
    "1",
    "bonds broken, each once a replica",
    "bonds",
    failure="bonds break",
    symptom=Symptom.BROKEN_BOND,
)
NEW = Declaration(
    "stability.new_bonds",
    "count",
    "1",
    "pairs bonded that were not, each once a replica",
    "bonds",
    failure="bonds form that should not",
    symptom=Symptom.BROKEN_BOND,
)
CRASHES = Declaration(
    "stability.crashes",
    "count",
    "1",
    "replicas stopped by an error, a NaN, an exploding energy or an overlap of atoms",
    "bonds",
    failure="a run stops by itself",
    symptom=Symptom.CRASH,
)


@dataclass(frozen=True)
class Incident:
    """One bond broken or made.

    Attributes
    ----------
    frame : the first in which it was so; None for an event of the simulation
    length_nm : there
    kind : of the event that the simulation was stopped by; "bond" where frames alone tell
    """

    replica: int
    atoms: tuple[int, ...]
    frame: int | None
    time_ps: float
    length_nm: float
    detail: str
    kind: EventKind = "bond"

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """What it says of the potential."""
        return _REASONS.get(self.kind, ())


class Streaks:
    """Which columns of flags stay true in enough consecutive frames, and since when first.

    Parameters
    ----------
    n_frames : how many consecutive frames are enough
    """

    def __init__(self, n_frames: int) -> None:
        self.n_frames = n_frames
        self._seen = 0
        self._streak = np.empty(0, dtype=np.int64)  # frames up to now that each has been true
        self._began = np.empty(0, dtype=np.int64)

    def add(self, flags: NDArray[np.bool_]) -> None:
        """The next frames, shape (n_frames_of_piece, n_columns)."""
        if not len(self._began):
            self._streak = np.zeros(flags.shape[1], dtype=np.int64)
            self._began = np.full(flags.shape[1], -1, dtype=np.int64)
        up = np.flatnonzero(flags.any(axis=0))
        if len(up) and len(flags):
            frames = np.arange(1, len(flags) + 1)[:, None]
            last_false = np.maximum.accumulate(np.where(flags[:, up], 0, frames), axis=0)
            streak = frames - last_false + np.where(last_false == 0, self._streak[up], 0)
            enough = streak == self.n_frames
            fresh = enough.any(axis=0) & (self._began[up] < 0)
            first = enough.argmax(axis=0)[fresh]
            self._began[up[fresh]] = self._seen + first - self.n_frames + 1
            self._streak[:] = 0
            self._streak[up] = streak[-1]
        elif len(flags):
            self._streak[:] = 0
        self._seen += len(flags)

    def found(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Columns, sorted, and the frame at which the first lasting stretch of each began."""
        columns = np.flatnonzero(self._began >= 0)
        return columns, self._began[columns]


def lengths_by_pair(
    positions: NDArray[np.float64],
    pairs: NDArray[np.int64],
    box_vectors: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """What `pair_lengths` gives, for many frames of few atoms in a fraction of the time.

    Parameters
    ----------
    positions : shape (n_frames, n_atoms, 3), nm
    pairs : shape (n_pairs, 2)

    Returns
    -------
    shape (n_pairs, n_frames), nm
    """
    if box_vectors is not None:
        return pair_lengths(positions, pairs, box_vectors).T
    by_axis = np.ascontiguousarray(positions.transpose(2, 1, 0))  # frames next to each other
    square = np.zeros((len(pairs), len(positions)))
    for x in by_axis:
        r = x[pairs[:, 1]]
        r -= x[pairs[:, 0]]
        r *= r
        square += r
    lengths: NDArray[np.float64] = np.sqrt(square, out=square)
    return lengths


def unbonded_pairs(n_atoms: int, bonds: NDArray[np.int64]) -> NDArray[np.int64]:
    """All pairs of atoms that have no bond, shape (n_pairs, 2)."""
    free = np.triu(np.ones((n_atoms, n_atoms), dtype=np.bool_), k=1)
    free[bonds.min(axis=1, initial=n_atoms), bonds.max(axis=1, initial=0)] = False
    return np.argwhere(free)


@dataclass(frozen=True, eq=False)
class IncidentScan:
    """Looks for incidents in the frames of a run; what only the molecule decides is made once.

    Attributes
    ----------
    names : of the atoms, such as "O0"
    rest : shape (n_bonds,), nm, in the system's structure
    pairs : shape (n_pairs, 2), all without a bond
    contact : shape (n_pairs,), nm; closer is a new bond
    """

    system: MolecularSystem
    run: RunRecord
    names: tuple[str, ...]
    rest: NDArray[np.float64]
    pairs: NDArray[np.int64]
    contact: NDArray[np.float64]

    @classmethod
    def of(cls, system: MolecularSystem, run: RunRecord) -> IncidentScan:
        """The scan of one run of a system."""
        rest = pair_lengths(system.positions[None], system.bonds, system.box_vectors)[0]
        pairs = unbonded_pairs(system.n_atoms, system.bonds)
        radii = covalent_radii(system.species)
        contact = NEW_RADII * (radii[pairs[:, 0]] + radii[pairs[:, 1]])
        return cls(system, run, atom_names(system), rest, pairs, contact)

    def incidents(self, index: int) -> tuple[list[Incident], list[Incident]]:
        """Bonds broken and bonds made in one replica, each sorted by time.

        A bond that only the simulation itself has seen broken is there too.
        """
        key = ("incidents", id(self.system), index, self.run.replica(index).n_frames)
        _, broken, new = self.run.kept.of(key, _INCIDENT_BYTES, lambda: self._looked(index))
        return list(broken), list(new)

    def _looked(self, index: int) -> tuple[MolecularSystem, list[Incident], list[Incident]]:
        """The system, which what is kept belongs to, and the incidents of a replica in it."""
        replica = self.run.replica(index)
        sample = Sample(index, replica, replica.n_frames)
        broken, new = self._in_frames(sample)
        event = self.run.events.get(index)
        if event is not None and event.kind not in CRASH_KINDS:
            atoms = (min(event.atoms[:2]), max(event.atoms[:2])) if len(event.atoms) > 1 else ()
            if atoms not in {item.atoms for item in broken}:
                broken.append(from_event(index, event))
        return self.system, sorted(broken, key=_by_time), sorted(new, key=_by_time)

    def _in_frames(self, sample: Sample) -> tuple[list[Incident], list[Incident]]:
        bonds, pairs, box = self.system.bonds, self.pairs, self.system.box_vectors
        every = max(1, round(_LOOK_PS / self.run.dt_ps))
        stretched = Streaks(frames_longer_than(BOND_TIME_PS, self.run.dt_ps))
        close = Streaks(frames_longer_than(BOND_TIME_PS, self.run.dt_ps * every))
        at_a_time = _PIECE_NUMBERS // 3
        size = max(1, at_a_time // max(len(bonds), len(self.names)))
        size = min(size, max(1, at_a_time // max(1, len(pairs))) * every)
        rest, contact = self.rest[:, None], self.contact[:, None]
        seen = 0
        for piece in stretches(sample, size, ("positions",)):
            positions = piece["positions"]
            if len(bonds):
                off = lengths_by_pair(positions, bonds, box)
                off -= rest
                stretched.add((np.abs(off, out=off) > BOND_LIMIT_NM).T)
            looked_at = positions[(-seen) % every :: every]
            seen += len(positions)
            if len(pairs) and len(looked_at):
                close.add((lengths_by_pair(looked_at, pairs, box) < contact).T)
        broken = [
            _incident(sample, bonds[column], int(frame), self.names, self.rest[column], box)
            for column, frame in zip(*stretched.found(), strict=True)
        ]
        new = [
            _incident(sample, pairs[column], int(look) * every, self.names, None, box)
            for column, look in zip(*close.found(), strict=True)
        ]
        return broken, new


def _by_time(item: Incident) -> float:
    return item.time_ps


def _of_run(evidence: Evidence, run: RunRecord) -> list[Measurement]:
    """Broken bonds, new bonds and crashes of one run."""
    system = evidence.system
    scan = IncidentScan.of(system, run)
    broken: list[Incident] = []
    new: list[Incident] = []
    exposure = 0.0
    for index in range(run.n_replicas):
        exposure += run.replica(index).n_frames * run.dt_ps
        lost, made = scan.incidents(index)
        broken += lost
        new += made
    crashes = [
        from_event(index, event)
        for index, event in sorted(run.events.items())
        if event.kind in CRASH_KINDS
    ]
    broken.sort(key=_by_time)
    new.sort(key=_by_time)
    moved = transfers(broken, new, system.species, scan.names)
    where = run_where(evidence, run)
    return [
        _counted(declaration, incidents, where, run.n_replicas, exposure, moved)
        for declaration, incidents in ((BROKEN, broken), (NEW, new), (CRASHES, crashes))
    ]


def _incident(
    sample: Sample,
    pair: NDArray[np.int64],
    frame: int,
    names: Sequence[str],
    rest_nm: float | None,
    box_vectors: NDArray[np.float64] | None,
) -> Incident:
    found = sample.replica.frames([frame], ("time", "positions"))
    time, positions = float(found["time"][0]), found["positions"][0]
    length = float(pair_lengths(positions[None], pair[None], box_vectors)[0, 0])
    i, j = int(pair[0]), int(pair[1])
    angstrom = length * ANGSTROM_PER_NM
    if rest_nm is None:
        what = f"{names[i]} and {names[j]} bonded at {angstrom:.2f} angstrom"
    else:
        at_rest = rest_nm * ANGSTROM_PER_NM
        what = f"bond {names[i]}-{names[j]} at {angstrom:.2f} angstrom ({at_rest:.2f} at rest)"
    return Incident(sample.index, (i, j), frame, time, length, what)


def from_event(replica: int, event: Event) -> Incident:
    """What a simulation saw when it stopped a replica, as an incident."""
    return Incident(
        replica, event.atoms, None, event.time_ps, event.value, event.detail, event.kind
    )


def transfers(
    broken: Sequence[Incident],
    new: Sequence[Incident],
    species: NDArray[np.int64],
    names: Sequence[str],
) -> dict[tuple[int, tuple[int, ...]], str]:
    """Hydrogens that lose their bond and make another, in words.

    Returns
    -------
    by (replica, atoms) of either incident
    """
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
    moved: dict[tuple[int, tuple[int, ...]], str],
) -> Measurement:
    cause = ""
    reasons: tuple[Reason, ...] = ()
    if incidents:
        first = incidents[0]
        reasons = first.reasons
        words = first.detail
        transfer = moved.get((first.replica, first.atoms))
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
        reasons=reasons,
    )


def atom_names(system: MolecularSystem) -> tuple[str, ...]:
    """Element and index of every atom, such as "O0"."""
    from rdkit.Chem import GetPeriodicTable

    table = GetPeriodicTable()
    return tuple(f"{table.GetElementSymbol(int(z))}{i}" for i, z in enumerate(system.species))


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
    use=WHOLE,
    explained_by=(
        *SPOILS_EVALUATION,
        *SPOILS_DYNAMICS,
    ),
)
