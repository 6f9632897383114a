r"""Does it know what a periodic box is?

*Translation*. Nothing changes when an atom is replaced by one of its images or when everything is
moved: single atoms and whole molecules go to other cells by lattice vectors, the whole system goes
by any vector, everything is wrapped into the cell (a native force field that knows its molecules by
their bonds is only asked for what leaves them whole). The largest change of the energy is reported
per atom, that of the forces as rms(F' - F) / rms(F). A minimum image that is not taken, or taken
wrongly, shows here.

*Resize*. The cell and the positions are stretched, by two percent in all directions and by
another two along the last axis, in the Context that runs; what it then says is compared with a
Context that was made with that cell. A force field that keeps the cell it was made with differs.

*Pressure*, for information: n k T / V - dE/dV at the structure as given, by central difference,
molecules moved as wholes (their inner pressure cancels) at 300 K.

*Density change*: up to 200 steps with OpenMM's MonteCarloBarostat at 1 bar, a move every second
step, and LangevinMiddleIntegrator at 300 K, from the structure as given; |rho / rho_0 - 1|, the
largest on the way, infinite when anything is not finite or OpenMM gives up. A TorchForce tells
OpenMM of no bonds, and the barostat would move every atom as a molecule of its own: here, as in a
production run that wants to move molecules, bonds of no strength tell it. So short a run says that
it goes, and nothing of the density at which it would come to rest.

Bounds. Energies and forces as in `invariance`, and four times as much: an atom that is two cells
away has lost two binary digits. (Shipped students in a box of 64 waters: 6e-5 meV/atom and 6e-7;
without a minimum image a hundred meV/atom, and all of the forces.) A hundred moves of at most a
percent each, a quarter of which is the mean drift of what only shrinks or only grows, change a
density by some 30%: a change by half means that the moves themselves went wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import SPOILS_EVALUATION, Check, Evidence, absent, bounds, exact, sampled
from omm_mlff.checks.frames import static_frames
from omm_mlff.checks.invariance import relative
from omm_mlff.checks.thermostat import molecules
from omm_mlff.errors import AnalysisError, InputError
from omm_mlff.forces.potential_errors import RAISED, is_not_a_number, own_error
from omm_mlff.schema import (
    Criterion,
    Declaration,
    Fault,
    Measurement,
    MolecularSystem,
    Reason,
    Where,
)
from omm_mlff.statistics.intervals import Estimate
from omm_mlff.units import BOLTZMANN, MEV_PER_KJMOL, PS_PER_FS

if TYPE_CHECKING:
    import openmm

    from omm_mlff.dynamics.evaluator import Evaluator

N_FRAMES = 2
STRETCH = 1.02
STRAIN = 1.0e-3
"""Of a length, for the pressure."""

TEMPERATURE_K = 300.0
PRESSURE_BAR = 1.0
FRICTION_PER_PS = 1.0
MAX_STEPS = 200
MIN_STEPS = 20
MOVE_EVERY = 2
"""Steps between the barostat's moves, each two evaluations."""

ATOM_STEPS = 20_000
"""A large system makes fewer steps."""

TRANSLATION_ENERGY = Declaration(
    "box.translation_energy",
    "deterministic",
    "meV/atom",
    "largest change of the energy when atoms, molecules or everything is moved",
    "box",
    failure="the energy depends on the periodic image",
)
TRANSLATION_FORCE = Declaration(
    "box.translation_force",
    "deterministic",
    "1",
    "largest relative change of the forces when atoms, molecules or everything is moved",
    "box",
    failure="forces depend on the periodic image",
)
RESIZE_ENERGY = Declaration(
    "box.resize_energy",
    "deterministic",
    "meV/atom",
    "energy in a changed box against a Context made with that box",
    "box",
    failure="the energy keeps to an old box",
)
RESIZE_FORCE = Declaration(
    "box.resize_force",
    "deterministic",
    "1",
    "relative difference of the forces in a changed box from a Context made with that box",
    "box",
    failure="forces keep to an old box",
)
PRESSURE = Declaration(
    "box.pressure", "info", "bar", "instantaneous, of the structure as given", "box"
)
DENSITY_CHANGE = Declaration(
    "box.npt_density_change",
    "deterministic",
    "1",
    "largest relative change of the density in a short run at constant pressure",
    "box",
    failure="the density runs away at constant pressure",
)


def molecule_of_atom(system: MolecularSystem) -> NDArray[np.int64]:
    """The molecule, by its bonds, of each atom, shape (n_atoms,)."""
    return molecules(system.n_atoms, system.bonds, system.positions, None).of_atom


def images(
    frames: NDArray[np.float64],
    system: MolecularSystem,
    random: np.random.Generator,
    *,
    whole: bool = False,
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Frames written down otherwise: what was done, and shape (n_frames, n_atoms, 3).

    Parameters
    ----------
    whole : leave every molecule in one piece
    """
    box = _cell(system)
    n_frames, n_atoms, _ = frames.shape
    of_atom = molecule_of_atom(system)
    cells = random.integers(-2, 3, size=(n_frames, n_atoms, 3))
    yield "whole molecules in other cells", frames + cells[:, of_atom] @ box
    anywhere = random.uniform(-1.0, 1.0, size=(n_frames, 1, 3))
    yield "everything moved", frames + anywhere @ box
    if whole:
        return
    yield "single atoms in other cells", frames + cells @ box
    fractions = frames @ np.linalg.inv(box)
    yield "everything wrapped into the cell", (fractions - np.floor(fractions)) @ box


def take(evidence: Evidence) -> list[Measurement]:
    """Translations, resizing, pressure, and a run at constant pressure."""
    system, where = evidence.system, Where(system=evidence.system.name)
    if system.box_vectors is None:
        return [absent(row, where, "a molecule in vacuum has no box") for row in CHECK.declares]
    frames = static_frames(evidence, CHECK.name, N_FRAMES)
    energies, forces = evidence.live.evaluate(frames)
    size = np.sqrt((forces**2).sum(axis=2).mean())
    return [
        *_translations(evidence, frames, energies, forces, size),
        *_resized(evidence, frames[0], where),
        _pressure(evidence, frames[0], where),
        _density(evidence, where),
    ]


def _translations(
    evidence: Evidence,
    frames: NDArray[np.float64],
    energies: NDArray[np.float64],
    forces: NDArray[np.float64],
    size: np.float64,
) -> list[Measurement]:
    per_atom = MEV_PER_KJMOL / evidence.system.n_atoms
    worst = {row.name: (-1.0, 0, "") for row in (TRANSLATION_ENERGY, TRANSLATION_FORCE)}
    random = evidence.random(CHECK.name)
    n_compared = 0
    whole = evidence.card.knows_atoms_by != "element"
    for what, moved in images(frames, evidence.system, random, whole=whole):
        new_energies, new_forces = evidence.live.evaluate(moved)
        change = np.sqrt(((new_forces - forces) ** 2).sum(axis=2).mean(axis=1))
        n_compared += len(frames)
        for row, values, unit in (
            (TRANSLATION_ENERGY, np.abs(new_energies - energies) * per_atom, " meV/atom"),
            (TRANSLATION_FORCE, relative(change, size), " of the forces"),
        ):
            values = np.where(np.isfinite(values), values, np.inf)
            frame = int(values.argmax())
            if values[frame] > worst[row.name][0]:
                cause = f"{what}: {values[frame]:.3g}{unit}"
                worst[row.name] = (float(values[frame]), frame, cause)
    where = Where(system=evidence.system.name)
    return [
        exact(row, value, dataclasses.replace(where, frame=frame), n_compared, cause)
        for row in (TRANSLATION_ENERGY, TRANSLATION_FORCE)
        for value, frame, cause in [worst[row.name]]
    ]


def _resized(evidence: Evidence, frame: NDArray[np.float64], where: Where) -> list[Measurement]:
    """A Context whose box was changed against one that was made with that box."""
    import openmm  # here, as below: finished runs are measured again where it is absent

    from omm_mlff.forces.faults import one_line

    system = evidence.system
    stretch = np.diag([STRETCH, STRETCH, STRETCH**2])
    box, positions = _cell(system) @ stretch, frame @ stretch
    changed = _evaluated(evidence.live, positions, box)
    try:
        resized = dataclasses.replace(system, positions=positions, box_vectors=box, reference=None)
        with evidence.live.for_system(resized) as other:
            energies, forces = other.evaluate(positions[None])
            obstacle = "it raises in one" if other.raised else ""
    except (openmm.OpenMMException, InputError) as error:
        obstacle = one_line(error)
    if obstacle:
        reason = f"no Context with a larger box can be made: {obstacle}"
        return [absent(row, where, reason) for row in (RESIZE_ENERGY, RESIZE_FORCE)]
    energy = abs(float(changed[0] - energies[0])) * MEV_PER_KJMOL / system.n_atoms
    size = np.sqrt((forces[0] ** 2).sum(axis=1).mean())
    force = float(relative(np.sqrt(((changed[1] - forces[0]) ** 2).sum(axis=1).mean()), size))
    cause = "the Context whose box was changed differs from one made with that box"
    return [
        exact(RESIZE_ENERGY, energy if np.isfinite(energy) else np.inf, where, 1, cause),
        exact(RESIZE_FORCE, force if np.isfinite(force) else np.inf, where, 1, cause),
    ]


def _evaluated(
    evaluator: Evaluator, positions: NDArray[np.float64], box: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Energy and forces in another box; the evaluator's own is put back."""
    import openmm

    try:
        energies, forces = evaluator.evaluate(positions[None], box)
    except openmm.OpenMMException:
        return np.nan, np.full(positions.shape, np.nan)
    finally:
        evaluator.context.setPeriodicBoxVectors(*_cell(evaluator.system))
    return float(energies[0]), forces[0]


def scaled_by_molecule(
    positions: NDArray[np.float64], factor: float, system: MolecularSystem
) -> NDArray[np.float64]:
    """Positions with the centre of every molecule scaled, and its shape kept."""
    of_atom = molecule_of_atom(system)
    member = np.zeros((int(of_atom.max()) + 1, system.n_atoms))
    member[of_atom, np.arange(system.n_atoms)] = system.masses
    centre = (member @ positions) / member.sum(axis=1, keepdims=True)
    moved: NDArray[np.float64] = positions + (factor - 1.0) * centre[of_atom]
    return moved


def pressure_bar(evaluator: Evaluator, positions: NDArray[np.float64], kelvin: float) -> float:
    """Instantaneous molecular pressure, by central difference of the energy.

    Parameters
    ----------
    positions : shape (n_atoms, 3), nm, molecules whole
    """
    from openmm import unit

    system = evaluator.system
    volume = float(np.linalg.det(_cell(system)))
    energies = [
        _evaluated(
            evaluator,
            scaled_by_molecule(positions, factor, system),
            _cell(system) * factor,
        )[0]
        for factor in (1.0 - STRAIN, 1.0 + STRAIN)
    ]
    slope = (energies[1] - energies[0]) / (((1.0 + STRAIN) ** 3 - (1.0 - STRAIN) ** 3) * volume)
    n_molecules = int(molecule_of_atom(system).max()) + 1
    pressure = n_molecules * BOLTZMANN * kelvin / volume - slope
    quantity = pressure * unit.kilojoule_per_mole / unit.nanometer**3
    return float((quantity / unit.AVOGADRO_CONSTANT_NA).value_in_unit(unit.bar))


def _pressure(evidence: Evidence, frame: NDArray[np.float64], where: Where) -> Measurement:
    bar = pressure_bar(evidence.live, frame, TEMPERATURE_K)
    if not np.isfinite(bar):
        return absent(PRESSURE, where, "the energy of a scaled box is not finite")
    return sampled(PRESSURE, Estimate(bar, 0.0, np.inf, bar, bar, 1), where)


def _density(evidence: Evidence, where: Where) -> Measurement:
    """A short run at constant pressure."""
    import openmm

    from omm_mlff.forces.faults import one_line

    n_steps = int(np.clip(ATOM_STEPS // evidence.system.n_atoms, MIN_STEPS, MAX_STEPS))
    largest, cause = 0.0, ""
    reasons: tuple[Reason, ...] = ()
    try:
        context = _npt_context(evidence)
        volume = context.getState().getPeriodicBoxVolume()._value
        for step in range(MOVE_EVERY, n_steps + 1, MOVE_EVERY):
            context.getIntegrator().step(MOVE_EVERY)
            # Once, at the end, the energy as well: it costs an evaluation.
            last = step + MOVE_EVERY > n_steps
            state = context.getState(positions=True, energy=last)
            ratio = volume / state.getPeriodicBoxVolume()._value
            finite = bool(np.isfinite(state.getPositions(asNumpy=True)._value).all())
            if last:
                finite &= bool(np.isfinite(state.getPotentialEnergy()._value))
            if not (finite and np.isfinite(ratio)):
                largest = np.inf
                cause = f"positions, box or energy are not finite after {step} steps of an NPT run"
                reasons = (Reason.NOT_FINITE,)
                break
            if abs(ratio - 1.0) >= largest:
                largest = abs(ratio - 1.0)
                cause = f"the density is {ratio:.3g} times that of the start after {step} steps"
    except openmm.OpenMMException as error:
        largest = np.inf
        cause = f"OpenMM gave up in an NPT run: {one_line(error)}"
        reasons = (Reason.NOT_FINITE,)
        if not is_not_a_number(error):
            reasons = (Reason.RAISED,)
            cause = f"in an NPT run {RAISED} {own_error(error, evidence.card)}"
    return exact(DENSITY_CHANGE, largest, where, n_steps, cause, reasons)


def _cell(system: MolecularSystem) -> NDArray[np.float64]:
    if system.box_vectors is None:
        raise AnalysisError(f"{system.name} has no box; this is for periodic systems")
    return system.box_vectors


def _npt_context(evidence: Evidence) -> openmm.Context:
    import openmm

    from omm_mlff.forces.platforms import platform_properties
    from omm_mlff.potentials.base import build_system

    evaluator, system = evidence.live, evidence.system
    seed = 1 + int(evidence.random(CHECK.name).integers(2**31 - 2))
    openmm_system = build_system(evaluator.potential, system)
    known = openmm.HarmonicBondForce()
    for i, j in system.bonds.tolist():
        known.addBond(i, j, 0.0, 0.0)
    openmm_system.addForce(known)
    barostat = openmm.MonteCarloBarostat(PRESSURE_BAR, TEMPERATURE_K, MOVE_EVERY)
    barostat.setRandomNumberSeed(seed)
    openmm_system.addForce(barostat)
    integrator = openmm.LangevinMiddleIntegrator(
        TEMPERATURE_K, FRICTION_PER_PS, evaluator.timestep_fs * PS_PER_FS
    )
    integrator.setRandomNumberSeed(seed)
    context = openmm.Context(
        openmm_system,
        integrator,
        openmm.Platform.getPlatformByName(evaluator.platform_name),
        platform_properties(evaluator.platform_name, evaluator.precision),
    )
    context.setPositions(system.positions)
    context.setVelocitiesToTemperature(TEMPERATURE_K, seed)
    return context


_ROUNDING = "rounding: four times the bounds of `invariance`, see omm_mlff/checks/box.py"


def _criteria() -> tuple[Criterion, ...]:
    rows: list[Criterion] = []
    for row in (TRANSLATION_ENERGY, RESIZE_ENERGY):
        rows += bounds(row, _ROUNDING, dtypes=("float64",), high=(4.0e-6, 4.0e-3))
        rows += bounds(row, _ROUNDING, dtypes=("float32",), high=(0.04, 4.0))
    for row in (TRANSLATION_FORCE, RESIZE_FORCE):
        rows += bounds(row, _ROUNDING, dtypes=("float64",), high=(4.0e-8, 4.0e-4))
        rows += bounds(row, _ROUNDING, dtypes=("float32",), high=(4.0e-4, 4.0e-2))
    rows += bounds(
        DENSITY_CHANGE,
        "what a hundred moves of a sound box cannot do (omm_mlff/checks/box.py); ten times that",
        high=(0.5, 5.0),
    )
    return tuple(rows)


CHECK = Check(
    name="box",
    question="Does it know what a periodic box is?",
    formula="E(x + n L) - E(x); E, F in a changed box against a new Context; |rho / rho_0 - 1|",
    source="Allen & Tildesley, Computer Simulation of Liquids, 2nd ed. (2017), section 1.6; "
    "Aqvist et al., Chem. Phys. Lett. 384, 288 (2004), for the barostat",
    declares=(
        TRANSLATION_ENERGY,
        TRANSLATION_FORCE,
        RESIZE_ENERGY,
        RESIZE_FORCE,
        PRESSURE,
        DENSITY_CHANGE,
    ),
    criteria=_criteria(),
    needs=frozenset({"evaluator"}),
    take=take,
    use="periodic boxes",
    explained_by=(
        *SPOILS_EVALUATION,
        Fault.RAISES_IN_REACH,
    ),
)
