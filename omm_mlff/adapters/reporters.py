"""Reporters that drop into any openmm.app.Simulation."""

from __future__ import annotations

import atexit
import contextlib
import csv
import dataclasses
import json
import os
import shutil
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openmm
import tables
from numpy.typing import NDArray
from openmm import app

from omm_mlff.dynamics.stability_watch import Watch
from omm_mlff.errors import InputError, OmmMlffError, OutputExistsError
from omm_mlff.record import rundir
from omm_mlff.record.rundir import FrameFile, mdtraj_topology, storage_errors
from omm_mlff.schema import Event, MolecularSystem

_SAME_TIME_PS = 1e-6
_LONG_PS = 1.0  # between looks; longer than any stretch that is forgiven
_CSV_COLUMNS = ("step", "time_ps", "kind", "atoms", "value", "unit", "detail")
_COPIED_FRAMES = 256


class TrajectoryReporter:
    """Writes energies, forces, positions and velocities in MDTraj's HDF5 layout, in float64.

    The file appears under its name when the reporter is closed, goes out of a `with`, or goes away:
    with the last name for it, or with the interpreter. Before, closed segments lie in `NAME.parts`,
    each of at most 30 s of running or 10,000 frames: that is what a kill leaves. `mdtraj.load` and
    `omm-mlff convert` read them, and a reporter with `append` goes on from them.

    Every report asks the Context for energy and forces, which evaluates the model once more than
    stepping does: `simulate` records every step without that. Positions are as the Context has
    them, not wrapped into the box. Velocities are those of the State: half a step behind the
    positions under a leapfrog such as VerletIntegrator, while the kinetic energy is OpenMM's own,
    at the time of the positions. The box is recorded with every frame.

    Parameters
    ----------
    file : ending in .h5; not there yet, unless `append`
    interval : steps between reports
    append : go on with what is there. Frames at the simulation's time and later are dropped: they
        were written after the checkpoint from which it goes on

    Raises
    ------
    OutputExistsError : the file is there already
    InputError : another ending, or an interval below 1; with `append`, at the first report, a
        trajectory of other atoms, or one that begins later than the simulation is
    """

    def __init__(self, file: str | Path, interval: int, *, append: bool = False) -> None:
        self.file = Path(file)
        self.interval = _checked_interval(interval)
        self.parts = self.file.with_name(self.file.name + ".parts")
        self._append = append
        if self.file.suffix != ".h5":
            raise InputError(f"a trajectory is an .h5 file; got {self.file}")
        for path in () if append else (self.file, self.parts):
            if path.exists():
                raise OutputExistsError(
                    f"{path} is already there; choose another name, or append=True to go on with it"
                )
        self._topology = ""
        self._segment: FrameFile | None = None
        self._segment_began = 0.0
        self._n_in_segment = 0
        self._index = 0
        # Nobody closes a reporter of OpenMM's, and nobody need close this one. It comes before
        # PyTables closes every file at exit: what is registered later runs earlier.
        atexit.register(_close_if_there, weakref.ref(self))

    def __repr__(self) -> str:
        return f"<TrajectoryReporter {self.file}: every {self.interval} steps>"

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # half made, or at the interpreter's end
            self.close()

    def describeNextReport(self, simulation: Any) -> dict[str, Any]:
        """What OpenMM asks a reporter before it steps on."""
        include = ["positions", "velocities", "forces", "energy"]
        return {
            "steps": self.interval - simulation.currentStep % self.interval,
            "periodic": False,
            "include": include,
        }

    def report(self, simulation: Any, state: openmm.State) -> None:
        """Append one frame."""
        positions = _values(state.getPositions(asNumpy=True))
        periodic = simulation.system.usesPeriodicBoundaryConditions()
        box = _values(state.getPeriodicBoxVectors(asNumpy=True)) if periodic else None
        time_ps = float(state.getTime()._value)
        if not self._topology:
            self._begin(simulation, time_ps)
        if self._segment is None:
            path = self.parts / f"{self._index:05d}.h5"
            self._segment = FrameFile(path, self._topology, len(positions), box)
            self._segment_began, self._n_in_segment = time.monotonic(), 0
        self._segment.box_vectors = box
        self._segment.append(
            {
                "time": np.array([time_ps]),
                "potential_energy": np.array([state.getPotentialEnergy()._value]),
                "kinetic_energy": np.array([state.getKineticEnergy()._value]),
                "positions": positions[None],
                "velocities": _values(state.getVelocities(asNumpy=True))[None],
                "forces": _values(state.getForces(asNumpy=True))[None],
            }
        )
        self._n_in_segment += 1
        if (
            self._n_in_segment >= rundir.SEGMENT_FRAMES
            or time.monotonic() - self._segment_began > rundir.SEGMENT_SECONDS
        ):
            self._close_segment()

    def close(self) -> None:
        """Close the file and give it its name."""
        self._close_segment()
        if self._topology:
            _join(self.parts, self.file)
            self._topology, self._append = "", True

    def __enter__(self) -> TrajectoryReporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _close_segment(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None
            self._index += 1

    def _begin(self, simulation: Any, time_ps: float) -> None:
        if self._append:
            self._take_up(simulation.topology.getNumAtoms(), time_ps)
        with storage_errors(self.parts):
            self.parts.mkdir(parents=True, exist_ok=True)
        self._topology = _topology_json(simulation)

    def _take_up(self, n_atoms: int, time_ps: float) -> None:
        """Make of what is there one first segment that ends before this time."""
        if self.parts.exists() and not self.file.exists():
            _join(self.parts, self.file)  # what a kill left
        if not self.file.exists():
            return
        with tables.open_file(str(self.file), "r") as handle:
            found = handle.root.coordinates.shape[1]
            times = handle.root.time[:]
        if found != n_atoms:
            raise InputError(f"{self.file} has {found} atoms, the simulation {n_atoms}")
        if len(times) and time_ps <= times[0] + _SAME_TIME_PS:
            raise InputError(
                f"{self.file} begins at {times[0]:g} ps and the simulation is at {time_ps:g} "
                "ps; load the checkpoint to go on from, or choose another file"
            )
        n_kept = int((times < time_ps - _SAME_TIME_PS).sum())
        first = self.parts / "00000.h5"
        with storage_errors(self.parts):
            shutil.rmtree(self.parts, ignore_errors=True)
            self.parts.mkdir(parents=True)
            if n_kept == len(times):
                os.replace(self.file, first)
            else:  # on a copy: a kill in the middle leaves the file as it was
                partial = first.with_name(first.name + ".partial")
                shutil.copyfile(self.file, partial)
                _truncate(partial, n_kept)
                os.replace(partial, first)
                self.file.unlink()
        self._index = 1


class UnstableSimulationError(OmmMlffError):
    """A simulation that a StabilityReporter watches has become unstable; `event` says how."""

    def __init__(self, event: Event) -> None:
        super().__init__(f"{event.detail} (step {event.step}, {event.time_ps:g} ps)")
        self.event = event


class StabilityReporter:
    """Watches a running simulation as `simulate` does, and stops it where it has become unstable.

    What it looks for, every so many steps: positions that are not finite ("nan"), atoms closer than
    0.6 of the sum of their covalent radii ("overlap"), a bond more than 0.5 angstrom off its length
    at rest ("bond"; by single looks 10 fs apart or less, for longer than that). With `energy`, also
    a total energy that has left its start by more than 0.1 eV an atom ("energy").

    Without `energy` it asks for positions alone, and evaluates nothing. Bonds are those of the
    topology; atoms without an element, such as virtual sites, are left out. A platform that raises
    by itself at the first NaN does so before the next look: 10 to 100 steps are a good interval.

    Parameters
    ----------
    interval : steps between looks
    atoms : indices of those to be watched, such as the region under a model in a mixed system; all
        by default. Pairs of a watched and another atom are not looked at
    energy : also watch the total energy of the whole System; only where the dynamics conserves it.
        Each look then evaluates the model once more
    on_event : "raise" ends the run by an UnstableSimulationError; "record" goes on
    file : a new CSV file for the events, written as they happen
    rest_positions : shape (n_atoms_of_the_system, 3), nm, for bond lengths at rest; by default
        those with which stepping begins

    Attributes
    ----------
    events : what has happened, of each look the gravest; the same to the same atoms only once

    Raises
    ------
    OutputExistsError : the file is there already
    InputError : an interval below 1, atoms that are not there, `energy` under a thermostat
    UnstableSimulationError : from within `step()`
    """

    def __init__(
        self,
        interval: int = 100,
        *,
        atoms: Sequence[int] | None = None,
        energy: bool = False,
        on_event: Literal["raise", "record"] = "raise",
        file: str | Path | None = None,
        rest_positions: NDArray[np.float64] | None = None,
    ) -> None:
        if on_event not in ("raise", "record"):
            raise InputError(f"on_event is 'raise' or 'record'; got {on_event!r}")
        self.interval = _checked_interval(interval)
        self.energy = energy
        self.on_event = on_event
        self.file = None if file is None else Path(file)
        self.events: list[Event] = []
        self._atoms = atoms
        self._rest_positions = rest_positions
        self._watch: _PartialWatch | None = None
        if self.file is not None and self.file.exists():
            raise OutputExistsError(f"{self.file} is already there; choose another name")

    def __repr__(self) -> str:
        return f"<StabilityReporter every {self.interval} steps: {len(self.events)} events>"

    def describeNextReport(self, simulation: Any) -> dict[str, Any]:
        """What OpenMM asks a reporter before it steps on."""
        if self._watch is None:
            self._watch = self._begin(simulation)
        return {
            "steps": self.interval - simulation.currentStep % self.interval,
            "periodic": False,
            "include": ["positions", "energy"] if self.energy else ["positions"],
        }

    def report(self, simulation: Any, state: openmm.State) -> None:
        """Look once.

        Raises
        ------
        UnstableSimulationError : it is unstable, and no record was asked for
        """
        if self._watch is None:
            self._watch = self._begin(simulation)
        event = self._watch.look_at(state)
        if event is None:
            return
        event = dataclasses.replace(
            event, step=int(simulation.currentStep), time_ps=float(state.getTime()._value)
        )
        if not any(_is_same(event, earlier) for earlier in self.events):
            self.events.append(event)
            self._write(event)
        if self.on_event == "raise":
            raise UnstableSimulationError(event)

    def _begin(self, simulation: Any) -> _PartialWatch:
        if self.energy:
            _require_conserved_energy(simulation)
        state = simulation.context.getState(positions=True, energy=self.energy)
        rest = self._rest_positions
        if rest is None:
            rest = _values(state.getPositions(asNumpy=True))
        watch = _PartialWatch(
            simulation, self._atoms, np.asarray(rest, dtype=np.float64), self.interval, self.energy
        )
        if self.energy:
            watch.look_at(state)  # where the energy starts
        if self.file is not None:
            with storage_errors(self.file), self.file.open("x", newline="") as file:
                csv.writer(file).writerow(_CSV_COLUMNS)
        return watch

    def _write(self, event: Event) -> None:
        if self.file is None:
            return
        atoms = " ".join(map(str, event.atoms))
        row = (event.step, event.time_ps, event.kind, atoms, event.value, event.unit, event.detail)
        with storage_errors(self.file), self.file.open("a", newline="") as file:
            csv.writer(file).writerow(row)


class _PartialWatch(Watch):
    """A watch over some atoms of a bigger system, whose names and box it takes."""

    def __init__(
        self,
        simulation: Any,
        chosen: Sequence[int] | None,
        rest_positions: NDArray[np.float64],
        interval: int,
        energy: bool,
    ) -> None:
        topology, n_atoms = simulation.topology, simulation.topology.getNumAtoms()
        if rest_positions.shape != (n_atoms, 3):
            raise InputError(
                f"rest_positions: expected shape ({n_atoms}, 3), got {rest_positions.shape}"
            )
        indices = range(n_atoms) if chosen is None else sorted(int(i) for i in chosen)
        if not indices or indices[0] < 0 or indices[-1] >= n_atoms:
            raise InputError(
                f"atoms: expected indices from 0 to {n_atoms - 1}, one at least; got {chosen}"
            )
        of_all = list(topology.atoms())
        watched = sorted({i for i in indices if of_all[i].element is not None})
        if not watched:
            raise InputError("atoms: expected one with an element at least; all are virtual sites")
        self.atoms = np.array(watched)
        self.fraction = len(self.atoms) / sum(atom.element is not None for atom in of_all)
        self.energy = energy
        step_size = simulation.integrator.getStepSize()
        looks_ps = interval * float(getattr(step_size, "_value", step_size))
        if "Variable" in type(simulation.integrator).__name__:
            looks_ps = _LONG_PS  # not known beforehand: one look decides
        super().__init__(
            _part_of(topology, self.atoms, simulation.system.usesPeriodicBoundaryConditions()),
            rest_positions[self.atoms],
            n_replicas=1,
            timestep_ps=looks_ps,
            conserves_energy=energy,
        )

    def look_at(self, state: openmm.State) -> Event | None:
        """What is wrong with a state; its step and time are left for the caller to say."""
        positions = _values(state.getPositions(asNumpy=True))[self.atoms]
        potential = kinetic = 0.0
        if self.energy:
            potential = float(state.getPotentialEnergy()._value)
            kinetic = float(state.getKineticEnergy()._value)
        unbounded = np.flatnonzero(~np.isfinite(positions).all(1))
        if len(unbounded):
            atom = int(unbounded[0])
            detail = f"the position of {self._name(atom)} is not finite"
            return Event("nan", 0, 0.0, (int(self.atoms[atom]),), float("nan"), "nm", detail)
        if not np.isfinite(potential + kinetic):
            detail = "the energy is not finite"
            return Event("nan", 0, 0.0, (), float("nan"), "kJ/mol", detail)
        if self.system.periodic:
            box = _values(state.getPeriodicBoxVectors(asNumpy=True))
            self.system = dataclasses.replace(self.system, box_vectors=box)
        # The limit is an atom's share of the whole energy, of which this part has its share.
        energies = np.array([potential]) * self.fraction, np.array([kinetic]) * self.fraction
        one = np.ones(1, dtype=bool)
        event = self.look(0, positions[None], *energies, finite=one, alive=one).get(0)
        if event is None:
            return None
        return dataclasses.replace(event, atoms=tuple(int(self.atoms[i]) for i in event.atoms))

    def _name(self, atom: int) -> str:
        return f"{self.symbols[atom]}{self.atoms[atom]}"


def _close_if_there(reporter: weakref.ref[TrajectoryReporter]) -> None:
    there = reporter()
    if there is not None:
        there.close()


def _part_of(topology: app.Topology, atoms: NDArray[np.int64], periodic: bool) -> MolecularSystem:
    """Some atoms of a topology and the bonds between them; the watch needs no positions of it."""
    part = app.Topology()
    residue = part.addResidue("PART", part.addChain())
    of_all = list(topology.atoms())
    elements = [of_all[i].element for i in atoms]
    for element in elements:
        part.addAtom(element.symbol, element, residue)
    place = {int(atom): i for i, atom in enumerate(atoms)}
    bonds = [
        sorted((place[a.index], place[b.index]))
        for a, b in topology.bonds()
        if a.index in place and b.index in place
    ]
    return MolecularSystem(
        name="simulation",
        source="openmm.app.Simulation",
        topology=part,
        positions=np.zeros((len(atoms), 3)),
        species=np.array([element.atomic_number for element in elements]),
        masses=np.array([element.mass._value for element in elements]),
        bonds=np.array(sorted(bonds), dtype=np.int64).reshape(-1, 2),
        box_vectors=np.eye(3) if periodic else None,
    )


def _require_conserved_energy(simulation: Any) -> None:
    changing = ("Langevin", "Brownian", "NoseHoover", "DPD")
    integrator = type(simulation.integrator).__name__
    culprits = [integrator] if any(word in integrator for word in changing) else []
    for force in simulation.system.getForces():
        if any(word in type(force).__name__ for word in ("Thermostat", "Barostat")):
            culprits.append(type(force).__name__)
    if culprits:
        raise InputError(
            f"energy=True needs dynamics that conserves the energy; {' and '.join(culprits)} does "
            "not: leave energy out"
        )


def _is_same(event: Event, earlier: Event) -> bool:
    """Whether the same has happened already; energy and NaN concern all atoms."""
    of_atoms = event.kind in ("bond", "overlap")
    return event.kind == earlier.kind and (not of_atoms or event.atoms == earlier.atoms)


def _join(parts: Path, file: Path) -> None:
    """Make one file of the closed segments in a folder, then remove the folder."""
    segments = sorted(parts.glob("*.h5"))
    with storage_errors(file):
        if len(segments) > 1:
            partial = parts / "joined.partial"
            shutil.copyfile(segments[0], partial)
            with tables.open_file(str(partial), "a") as joined:
                for dataset, block in _datasets(segments[1:]):
                    joined.get_node("/", dataset).append(block)
            os.replace(partial, file)
        elif segments:
            os.replace(segments[0], file)
        shutil.rmtree(parts, ignore_errors=True)


def _truncate(file: Path, n_frames: int) -> None:
    with tables.open_file(str(file), "a") as handle:
        for column in handle.list_nodes("/", classname="EArray"):
            column.truncate(n_frames)


def _datasets(segments: Sequence[Path]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    for segment in segments:
        with tables.open_file(str(segment), "r") as handle:
            for column in handle.list_nodes("/", classname="EArray"):
                for start in range(0, column.shape[0], _COPIED_FRAMES):
                    yield column.name, column[start : start + _COPIED_FRAMES]


def _topology_json(simulation: Any) -> str:
    """MDTraj's topology, with the mass of every atom as the System has it."""
    atoms = list(simulation.topology.atoms())
    bonds = sorted(sorted((a.index, b.index)) for a, b in simulation.topology.bonds())
    topology = json.loads(
        mdtraj_topology(
            [atom.name for atom in atoms],
            [atom.element.symbol if atom.element else "VS" for atom in atoms],
            [(atom.residue.name, atom.residue.index) for atom in atoms],
            np.array(bonds, dtype=np.int64).reshape(-1, 2),
        )
    )
    for residue in topology["chains"][0]["residues"]:
        for atom in residue["atoms"]:
            mass = simulation.system.getParticleMass(atom["index"])
            atom["mass"] = float(mass._value)
    return json.dumps(topology)


def _checked_interval(interval: int) -> int:
    if not isinstance(interval, int | np.integer) or interval < 1:
        raise InputError(f"a reporter needs an interval of one step or more; got {interval}")
    return interval


def _values(quantity: Any) -> NDArray[np.float64]:
    return np.array(quantity._value, dtype=np.float64)
