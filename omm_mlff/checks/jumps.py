r"""Is the energy surface smooth where the model goes?

The other checks look for steps where they are expected: at a cutoff, along a bond. This one looks
everywhere the model has been. Between two frames of a run the work of the forces, by the trapezium
rule, must make up for the change of the energy,

    w_k = U_(k+1) - U_k + (F_k + F_(k+1)) . (x_(k+1) - x_k) / 2

up to the third power of the displacement. Where the energy steps by c, w_k is c. What is smooth in
w is taken out by its fourth difference, what is smooth in the forces by their fifth: a step
stands out from the record of an O-H vibration from some 0.1 meV and 0.02 eV/angstrom on. No
evaluation has been spent so far.

The worst few intervals of all runs (against the median of their replica) are then looked into,
and with them the worst few on straight lines of 0.5 angstrom from one frame towards another, which
do not depend on where a run went. The segment is cut in eight, the part with the largest |w| or
the largest change of a force is cut in eight again, four times. At the place that is left

- *energy* is what w comes to across 2e-5 angstrom, less three times its scatter in repetitions:
  smooth surfaces, however steep, have nothing left there, a step all of itself;
- *force* is the change of the force on an atom across the same, where the energy steps;
- *kink* is F(+d) - F(-d) less what the slopes on both sides explain, d = 5e-4 angstrom, where the
  energy does not step: the crease of a ReLU or the tip of an unsmoothed norm.

A value that is not a number on the way is a hole in the surface: infinite.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import CONSTANT_ENERGY, SPOILS_EVALUATION, Check, Evidence, bounds, exact
from omm_mlff.checks.frames import Sample, static_frames, stretches
from omm_mlff.schema import Declaration, Fault, Measurement, MolecularSystem, Reason, Where
from omm_mlff.units import (
    EV_ANGSTROM_PER_KJMOL_NM,
    MEV_PER_KJMOL,
    NM_PER_ANGSTROM,
    PS_PER_FS,
)

if TYPE_CHECKING:
    from omm_mlff.dynamics.evaluator import Evaluator
    from omm_mlff.record.rundir import RunRecord

N_SUSPECTS = 2
"""Of each kind, along the runs, and again along the lines between frames."""

N_LINES = 3
N_ON_LINE = 40
LINE_NM = 0.5 * NM_PER_ANGSTROM
"""Farther along, an atom may meet another: no model is asked to be smooth there."""

N_PARTS = 8
N_ZOOMS = 4
FINE_NM = 1.0e-5 * NM_PER_ANGSTROM
KINK_NM = 5.0e-4 * NM_PER_ANGSTROM
N_REPEATED = 6
N_SCATTER = 3.0
MANY_ATOMS = 64
"""From here on an evaluation is dear: one suspect of a kind and one line."""

_PIECE = 2048
_WINDOW = 6  # frames, and so five intervals, behind one difference
_FOURTH = np.array([1.0, -4.0, 6.0, -4.0, 1.0]) / 6.0
_FIFTH = np.array([-1.0, 5.0, -10.0, 10.0, -5.0, 1.0]) / 6.0

Kind = Literal["energy", "force"]
KINDS: tuple[Kind, ...] = ("energy", "force")

ENERGY_LIMIT = 0.2  # meV
FORCE_LIMIT = 0.01  # eV/angstrom
ENERGY_STEP_KJMOL = 0.25 * ENERGY_LIMIT / MEV_PER_KJMOL
"""From here on the energy steps; below, a change of the force is a kink."""

ENERGY = Declaration(
    "jumps.energy",
    "deterministic",
    "meV",
    "largest step of the energy",
    "jumps",
    failure="the energy jumps",
)
FORCE = Declaration(
    "jumps.force",
    "deterministic",
    "eV/angstrom",
    "largest step of a force where the energy steps too",
    "jumps",
    failure="forces jump",
)
KINK = Declaration(
    "jumps.kink",
    "deterministic",
    "eV/angstrom",
    "largest step of a force where the energy does not step",
    "jumps",
    failure="the forces turn abruptly",
)


@dataclass(frozen=True, eq=False)
class Segment:
    """A straight line between two geometries on which something may jump.

    Attributes
    ----------
    kind : what stood out, the energy or a force
    strength : against the median along the same replica or line
    start, end : shape (n_atoms, 3), nm
    place : in words
    """

    kind: Kind
    strength: float
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    place: str

    def at(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """Geometries at fractions of the way, shape (len(t), n_atoms, 3), nm."""
        return self.start + t[:, None, None] * (self.end - self.start)

    @property
    def length_nm(self) -> float:
        """How far the atom goes that goes farthest."""
        return float(np.sqrt(((self.end - self.start) ** 2).sum(axis=1)).max())


@dataclass(frozen=True)
class Step:
    """What is left at the end of a zoom.

    Attributes
    ----------
    energy : kJ/mol, not negative
    force, kink : of the atom where it is largest, kJ/mol/nm, not negative
    atom : the one whose force changes most
    place : in words
    """

    energy: float
    force: float
    kink: float
    atom: int
    place: str

    @property
    def of_energy(self) -> bool:
        return self.energy > ENERGY_STEP_KJMOL


def work_defect(
    positions: NDArray[np.float64], energies: NDArray[np.float64], forces: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Change of the energy that the work of the forces does not explain, by the trapezium rule.

    Parameters
    ----------
    positions, forces : shape (..., n_frames, n_atoms, 3), nm and kJ/mol/nm
    energies : shape (..., n_frames), kJ/mol

    Returns
    -------
    shape (..., n_frames - 1), kJ/mol
    """
    mean_force = 0.5 * (forces[..., 1:, :, :] + forces[..., :-1, :, :])
    work = np.einsum("...ax,...ax->...", mean_force, np.diff(positions, axis=-3))
    defect: NDArray[np.float64] = np.diff(energies, axis=-1) + work
    return defect


def roughness(
    positions: NDArray[np.float64], energies: NDArray[np.float64], forces: NDArray[np.float64]
) -> dict[Kind, NDArray[np.float64]]:
    """Size of what is not smooth between the middle two of every six frames.

    A step of the energy by c has size c, a step of one atom's force its own length.

    Parameters
    ----------
    positions, forces : shape (n_frames, n_atoms, 3), nm and kJ/mol/nm, evenly spaced in time
    energies : shape (n_frames,), kJ/mol

    Returns
    -------
    by kind, shape (n_frames - 5,), kJ/mol and kJ/mol/nm
    """
    n = max(0, len(energies) - _WINDOW + 1)
    defect = work_defect(positions, energies, forces)
    energy, force = _weighted(defect, _FOURTH, n), _weighted(forces, _FIFTH, n)
    square = force[..., 0] ** 2 + force[..., 1] ** 2 + force[..., 2] ** 2
    return {"energy": np.abs(energy), "force": np.sqrt(square.max(axis=-1))}


def _weighted(
    values: NDArray[np.float64], weights: NDArray[np.float64], n: int
) -> NDArray[np.float64]:
    """Sum of `n` consecutive values with weights, at every start; first axis the time."""
    total: NDArray[np.float64] = weights[0] * values[:n]
    part = np.empty_like(total)
    for i, weight in enumerate(weights[1:], start=1):
        total += np.multiply(values[i : i + n], weight, out=part)
    return total


def along_runs(runs: Sequence[RunRecord]) -> list[Segment]:
    """The roughest intervals between consecutive frames of all runs, `N_SUSPECTS` of each kind."""
    found: list[Segment] = []
    for run in runs:
        for index in range(run.n_replicas):
            replica = run.replica(index)
            found += _along_replica(run, Sample(index, replica, replica.n_frames))
            found = _roughest(found, N_SUSPECTS)
    return found


def _along_replica(run: RunRecord, sample: Sample) -> list[Segment]:
    fields = ("positions", "potential_energy", "forces")
    sizes: dict[Kind, list[NDArray[np.float64]]] = {"energy": [], "force": []}
    kept: list[tuple[float, Kind, int, NDArray[np.float64], NDArray[np.float64]]] = []
    first = 0
    for piece in stretches(sample, _PIECE, fields, overlap=_WINDOW - 1):
        x, energies = piece["positions"], piece["potential_energy"]
        if len(x) >= _WINDOW:
            for kind, size in roughness(x, energies, piece["forces"]).items():
                sizes[kind].append(size)
                for i in _peaks(size, N_SUSPECTS):
                    frame = i + _WINDOW // 2 - 1
                    kept.append((float(size[i]), kind, first + frame, x[frame], x[frame + 1]))
        first += len(x) - min(len(x), _WINDOW - 1)
    found = []
    medians = {kind: float(np.median(np.concatenate(of))) for kind, of in sizes.items() if of}
    for rough, kind, frame, start, end in kept:
        typical = medians[kind]
        place = (
            f"between frames {frame} and {frame + 1} of replica {sample.index} "
            f"({frame * run.dt_ps / PS_PER_FS:.6g} fs) of {run.spec.name}"
        )
        found.append(Segment(kind, _relative(rough, typical), start, end, place))
    return found


def lines(evidence: Evidence, evaluator: Evaluator, n_lines: int) -> tuple[list[Segment], str]:
    """The roughest parts of straight lines that lead from one frame towards another.

    Returns
    -------
    segments, `N_SUSPECTS` of each kind, and where a value was not finite (empty: nowhere)
    """
    frames = _aligned(static_frames(evidence, CHECK.name, 2 * n_lines), evidence.system)
    t = np.linspace(0.0, 1.0, N_ON_LINE + 1)
    paths: list[Segment] = []
    for start, end in zip(frames[::2], frames[1::2], strict=False):
        path = Segment(
            "energy", 0.0, start, end, f"frames {2 * len(paths)} and {2 * len(paths) + 1}"
        )
        if path.length_nm > LINE_NM:
            end = start + (end - start) * (LINE_NM / path.length_nm)
        paths.append(dataclasses.replace(path, end=end))
    if not paths:
        return [], ""
    positions = np.stack([path.at(t) for path in paths])
    flat = positions.reshape(-1, *positions.shape[2:])
    energies, forces = (
        array.reshape(len(paths), len(t), *array.shape[1:]) for array in evaluator.evaluate(flat)
    )
    found: list[Segment] = []
    for path, x, energy, force in zip(paths, positions, energies, forces, strict=True):
        line = f"on a line between {path.place} of the static ones"
        finite = np.isfinite(energy) & np.isfinite(force).all(axis=(1, 2))
        if not finite.all():
            return [], f"{line}, at {t[int(np.argmin(finite))]:.2f} of the way"
        for kind, size in roughness(x, energy, force).items():
            typical = float(np.median(size))
            for i in _peaks(size, N_SUSPECTS):
                k = i + _WINDOW // 2 - 1
                place = f"{line}, at {t[k]:.2f} of the way"
                found.append(
                    Segment(kind, _relative(float(size[i]), typical), x[k], x[k + 1], place)
                )
    return _roughest(found, N_SUSPECTS), ""


def zoom(evaluator: Evaluator, segments: Sequence[Segment]) -> tuple[list[Step], str]:
    """What is left of each segment's roughness at the smallest interval.

    Returns
    -------
    one step a segment, and where a value was not finite (empty: nowhere; else there are no steps)
    """
    low = np.zeros(len(segments))
    width = np.ones(len(segments))
    for _ in range(N_ZOOMS):
        t = low[:, None] + width[:, None] * np.linspace(0.0, 1.0, N_PARTS + 1)
        x, energies, forces, hole = _on(evaluator, segments, t)
        if hole:
            return [], hole
        defect = np.abs(work_defect(x, energies, forces))
        change = np.diff(forces, axis=1)
        change -= np.median(change, axis=1, keepdims=True)
        bend = np.sqrt((change**2).sum(axis=-1)).max(axis=-1)
        of_energy = np.array([segment.kind == "energy" for segment in segments])
        part = np.where(of_energy[:, None], defect, bend).argmax(axis=1)
        width = width / N_PARTS
        low = low + part * width
    lengths = np.array([segment.length_nm for segment in segments])
    near = np.maximum(FINE_NM / lengths, width)
    far = np.maximum(KINK_NM / lengths, 2.0 * width)
    # Repetitions of the same crossing, none of them at a place that the zoom has chosen: what
    # was picked for being the worst must not be judged by the numbers that it was picked for.
    stretch = 1.0 + 0.5 * (np.arange(N_REPEATED) + 0.5) / N_REPEATED
    middle = low + 0.5 * width
    around = np.concatenate((-stretch[::-1], stretch))[None, :] * near[:, None]
    wide = np.array([-2.0, -1.0, 1.0, 2.0])[None, :] * far[:, None]
    t = middle[:, None] + np.concatenate((around, wide), axis=1)
    x, energies, forces, hole = _on(evaluator, segments, t)
    if hole:
        return [], hole
    return [_step(segments[i], x[i], energies[i], forces[i]) for i in range(len(segments))], ""


def _step(
    segment: Segment,
    x: NDArray[np.float64],
    energies: NDArray[np.float64],
    forces: NDArray[np.float64],
) -> Step:
    """The step across the middle, from points on both sides of it: near ones, then wide ones."""
    left, right = slice(N_REPEATED - 1, None, -1), slice(N_REPEATED, 2 * N_REPEATED)
    mean_force = 0.5 * (forces[left] + forces[right])
    defects = energies[right] - energies[left] + (mean_force * (x[right] - x[left])).sum((1, 2))
    energy, energy_scatter = _mean_and_error(defects)
    far, far_x = forces[2 * N_REPEATED :], x[2 * N_REPEATED :]
    sides = (far[1] - far[0]) + (far[3] - far[2])  # over twice the distance of far[1] and far[0]
    bend = far[2] - far[1] - sides
    way = _length(far_x[2] - far_x[1])
    share = np.array([_length(b - a) / way for a, b in zip(x[left], x[right], strict=True)])
    changes = forces[right] - forces[left] - share[:, None, None] * sides
    change, change_scatter = _mean_and_error(changes)
    beyond = np.sqrt((change**2).sum(-1)) - N_SCATTER * np.sqrt((change_scatter**2).sum(-1))
    bends = np.sqrt((bend**2).sum(-1))
    # A crease somewhere between left and right leaves this much at most of the trapezium.
    creased = 0.5 * float(np.abs((changes * (x[right] - x[left])).sum((1, 2))).mean())
    left_over = max(0.0, abs(float(energy)) - N_SCATTER * float(energy_scatter) - creased)
    return Step(
        left_over,
        max(0.0, float(beyond.max())),
        float(bends.max()),
        int(beyond.argmax() if left_over > ENERGY_STEP_KJMOL else bends.argmax()),
        segment.place,
    )


def _length(displacement: NDArray[np.float64]) -> float:
    return float(np.sqrt((displacement**2).sum()))


def _mean_and_error(
    samples: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return samples.mean(axis=0), samples.std(axis=0, ddof=1) / math.sqrt(len(samples))


def _on(
    evaluator: Evaluator, segments: Sequence[Segment], t: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], str]:
    """Positions, energies and forces at fractions t (n_segments, n_points) of the segments."""
    x = np.stack([segment.at(row) for segment, row in zip(segments, t, strict=True)])
    energies, forces = evaluator.evaluate(x.reshape(-1, *x.shape[2:]))
    energies, forces = energies.reshape(t.shape), forces.reshape(x.shape)
    finite = np.isfinite(energies) & np.isfinite(forces).all(axis=(2, 3))
    broken = np.flatnonzero(~finite.all(axis=1))
    return x, energies, forces, segments[int(broken[0])].place if len(broken) else ""


def _peaks(size: NDArray[np.float64], n: int) -> Iterator[int]:
    """Places of the n largest values, none within another's window."""
    left = size.copy()
    for _ in range(min(n, len(size))):
        i = int(left.argmax())
        if left[i] < 0.0:
            return
        yield i
        left[max(0, i - _WINDOW) : i + _WINDOW + 1] = -1.0


def _relative(size: float, typical: float) -> float:
    if size == 0.0:
        return 0.0
    return size / typical if typical > 0.0 else math.inf


def _roughest(segments: list[Segment], n: int) -> list[Segment]:
    """The n strongest of each kind; those that do not move lead nowhere."""
    kept: list[Segment] = []
    for kind in KINDS:
        some = [s for s in segments if s.kind == kind and s.strength > 0.0 and s.length_nm > 0.0]
        kept += sorted(some, key=lambda segment: -segment.strength)[:n]
    return kept


def _aligned(frames: NDArray[np.float64], system: MolecularSystem) -> NDArray[np.float64]:
    """Frames turned onto the first one, so that the line between two is a deformation.

    References
    ----------
    Kabsch, Acta Cryst. A 32, 922 (1976).
    """
    if system.periodic:
        return frames
    masses = system.masses[:, None] / system.masses.sum()
    centred = frames - (masses * frames).sum(axis=1, keepdims=True)
    turned = [centred[0]]
    for frame in centred[1:]:
        u, _, vt = np.linalg.svd((masses * frame).T @ centred[0])
        u[:, -1] *= np.sign(np.linalg.det(u @ vt))
        turned.append(frame @ (u @ vt))
    return np.stack(turned)


def take(evidence: Evidence) -> list[Measurement]:
    """The largest step of energy and force, along the runs and between frames."""
    where = Where(system=evidence.system.name)
    evaluator = evidence.live
    large = evidence.system.n_atoms > MANY_ATOMS
    segments, hole = lines(evidence, evaluator, 1 if large else N_LINES)
    steps: list[Step] = []
    if not hole:
        segments = _roughest(segments, 1) if large else segments
        visited = along_runs(evidence.runs)
        segments += _roughest(visited, 1) if large else visited
        if segments:
            steps, hole = zoom(evaluator, segments)
    if hole:
        cause = f"NaN in a region: {hole}"
        n = len(segments) or 1
        return [
            exact(row, math.inf, where, n, cause, (Reason.NOT_FINITE,)) for row in CHECK.declares
        ]
    n = max(1, len(steps))
    names = [f"{a.element.symbol}{i}" for i, a in enumerate(evidence.system.topology.atoms())]
    stepping = [step for step in steps if step.of_energy]
    creased = [step for step in steps if not step.of_energy]
    return [
        _largest(ENERGY, MEV_PER_KJMOL, [(s.energy, s) for s in steps], names, where, n),
        _largest(
            FORCE, EV_ANGSTROM_PER_KJMOL_NM, [(s.force, s) for s in stepping], names, where, n
        ),
        _largest(KINK, EV_ANGSTROM_PER_KJMOL_NM, [(s.kink, s) for s in creased], names, where, n),
    ]


def _largest(
    row: Declaration,
    factor: float,
    sizes: list[tuple[float, Step]],
    names: list[str],
    where: Where,
    n_samples: int,
) -> Measurement:
    if not sizes:
        return exact(row, 0.0, where, n_samples)
    size, step = max(sizes, key=lambda item: item[0])
    value = size * factor
    cause = f"step of {value:.3g} {row.unit} {step.place}"
    if row is not ENERGY:
        cause += f", force on {names[step.atom]}"
    return exact(row, value, where, n_samples, cause)


_SOURCE = (
    "measured: tiny, original and ultra-tiny (float32) on water, methane and alanine have at most "
    "2e-4 meV and 2e-4 eV/angstrom; steps of 1 meV and 0.02 eV/angstrom must be seen; a force that "
    "jumps by 0.3 eV/angstrom at every vibration undoes Verlet's conservation"
)

CHECK = Check(
    name="jumps",
    question="Is the energy surface smooth where the model goes?",
    formula="U(b) - U(a) + (F(a) + F(b)) . (b - a) / 2, and F(b) - F(a), over 2e-5 angstrom",
    source="trapezium rule; the fault is looked for by bisection",
    declares=(ENERGY, FORCE, KINK),
    criteria=(
        *bounds(ENERGY, _SOURCE, high=(ENERGY_LIMIT, 10.0)),
        *bounds(FORCE, _SOURCE, high=(FORCE_LIMIT, 0.3)),
        *bounds(KINK, _SOURCE, high=(FORCE_LIMIT, 0.3)),
    ),
    needs=frozenset({"evaluator", "runs"}),
    take=take,
    joint=True,
    use=CONSTANT_ENERGY,
    explained_by=(
        *SPOILS_EVALUATION,
        Fault.UNITS,
        Fault.CUTOFF,
        Fault.JUMP,
        Fault.KINK,
        Fault.RAISES_IN_REACH,
        Fault.NAN_IN_REACH,
        Fault.WALL,
    ),
)
