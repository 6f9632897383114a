r"""Does a thermostat get from it the canonical ensemble?

Runs under OpenMM's LangevinMiddleIntegrator, without what is left of the start: `FORGOTTEN` times
1/friction, after which e^-7 of it remains. Everything is a deviation from what statistical
mechanics says, in percent:

*Temperature error*: 2 <K> / (3N k) against the target. A force that heats shows here (a power P
an atom lifts the temperature by P / (3 k friction)), though `nve.drift` sees it far sooner.

*Equipartition*: the same for the atoms of each element, and for translation, rotation and inner
motion of the molecules, each with its own degrees of freedom (rotation: L . I^-1 L / 2 with the
inertia I of the frame). Of all these groups the one is reported that is off by most beyond doubt,
|T - target| less its half width. The intervals are simultaneous (Bonferroni: level 1 - alpha / m
for m groups), the interval given is the hull of all of them, and the standard error is the one that
belongs to it: it passes when every group does.

*Kinetic distribution*: the temperature that the width of K tells, sqrt(2 / 3N) sigma(K) / k, since
K follows a gamma distribution of shape 3N / 2 and scale k T. This is T(sigma) of
`physical_validation.kinetic_energy.distribution`, and the temperature above is its T(mu).

*Ensemble*: of runs at two temperatures the densities of states cancel in

    ln [P_2(E) / P_1(E)] = constant + (1 / kT_1 - 1 / kT_2) E

for the potential energy E. The slope is found by maximum likelihood (logistic regression of the
run on E: no bins) and compared with the exact one. Energies that do not belong to the forces
sample another ensemble than they claim: forces of half the gradient give half the slope. So may a
barrier that is crossed at one temperature only. Of several pairs of neighbouring temperatures the
one is reported as above.

Intervals come from the replicas (Student's t, or the jackknife that leaves out one replica at a
time): correlated frames are never counted as independent, and no correlation time need be known.

Bounds. None of the four is as sharp as the checks of energies and forces; they ask whether a user
of a thermostat gets what he paid for. 10% is that of `nve.temperature_error`; 20% for what rests on
fewer degrees of freedom (three for the translation of a molecule) or on second moments, 30% for the
slope. `tiny` on water, 10 ps x 16 replicas at 300 and 500 K, has standard errors of 1%
(temperature), 1.5% (width) and 7% (slope), is within two of them of zero everywhere, and is
decided; 2 ps x 8 decide little. A force of half the gradient is 50% off, a swirl that turns the
molecule 200% and more.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components
from scipy.special import expit, stdtrit

from omm_mlff.checks.base import (
    SPOILS_DYNAMICS,
    SPOILS_EVALUATION,
    Check,
    Evidence,
    absent,
    bounds,
    run_where,
    sampled,
)
from omm_mlff.checks.frames import (
    MIN_FRAMES,
    Sample,
    in_words,
    none_lasted,
    stretches,
    usable_replicas,
)
from omm_mlff.errors import AnalysisError
from omm_mlff.geometry.distances import minimum_image
from omm_mlff.schema import CONFIDENCE, Declaration, Measurement, Symptom, Where
from omm_mlff.statistics.intervals import Estimate, jackknife, mean_over_replicas
from omm_mlff.units import BOLTZMANN

if TYPE_CHECKING:
    from omm_mlff.record.rundir import RunRecord

FORGOTTEN = 7.0
"""Energy relaxes at the rate of the friction: e^-7 is a thousandth of the start."""

SPACING_PS = 0.005
"""Between frames that are looked at: a twentieth of the time in which energy is exchanged."""

_PIECE = 4096
_LINEAR = 1.0e-6
_NEWTON_STEPS = 50

TEMPERATURE_ERROR = Declaration(
    "thermostat.temperature_error",
    "sampled",
    "%",
    "deviation of the mean kinetic temperature from the target",
    "thermostat",
    failure="the thermostat does not hold the temperature",
)
EQUIPARTITION = Declaration(
    "thermostat.equipartition",
    "sampled",
    "%",
    "the same of the element or kind of motion that is off by most beyond doubt",
    "thermostat",
    failure="motions have different temperatures",
)
ATOM = Declaration(
    "thermostat.atom_temperature",
    "info",
    "%",
    "the same of the atom that is off by most beyond doubt",
    "thermostat",
)
KINETIC_DISTRIBUTION = Declaration(
    "thermostat.kinetic_distribution",
    "sampled",
    "%",
    "deviation of the temperature of the kinetic energy's width from the target",
    "thermostat",
    failure="kinetic energies are distributed otherwise",
)
ENSEMBLE = Declaration(
    "thermostat.ensemble",
    "sampled",
    "%",
    "deviation of the slope of ln P_2(E) / P_1(E) from 1 / kT_1 - 1 / kT_2",
    "thermostat",
    failure="energies are not distributed as in the canonical ensemble",
)
_OF_A_RUN = (TEMPERATURE_ERROR, EQUIPARTITION, ATOM, KINETIC_DISTRIBUTION)


@dataclass(frozen=True)
class Equilibrated:
    """The part of a run that the thermostat has made.

    Attributes
    ----------
    samples : the replicas that lasted
    first : frame of each from which on it counts
    stride : frames from one that is looked at to the next
    """

    run: RunRecord
    samples: list[Sample]
    left_out: list[str]
    first: int
    stride: int

    def series(self, name: str) -> list[NDArray[np.float64]]:
        """A scalar such as "kinetic_energy" for every replica, each of shape (n_frames,)."""
        return [
            getattr(sample.replica, name)[self.first : sample.n_frames : self.stride]
            for sample in self.samples
        ]

    def pieces(self, sample: Sample) -> Iterator[dict[str, NDArray[np.float64]]]:
        """Positions and velocities of one replica, piece by piece."""
        seen = 0
        for piece in stretches(sample, _PIECE, ("positions", "velocities")):
            n = len(piece["positions"])
            start = self.first - seen if seen < self.first else (self.first - seen) % self.stride
            seen += n
            if start < n:
                yield {name: array[start :: self.stride] for name, array in piece.items()}


@dataclass(frozen=True, eq=False)
class Molecules:
    """Which atoms move together.

    Attributes
    ----------
    of_atom : shape (n_atoms,), the molecule of each atom
    shift : shape (n_atoms, 3), nm, makes every molecule whole that a box's face has cut
    """

    of_atom: NDArray[np.int64]
    shift: NDArray[np.float64]

    @property
    def n_molecules(self) -> int:
        return int(self.of_atom.max()) + 1


def equilibrated(run: RunRecord) -> Equilibrated:
    """What of a run is a sample of the ensemble."""
    first = math.ceil(forgotten_ps(run) / run.dt_ps)
    stride = max(1, round(SPACING_PS / run.dt_ps))
    samples, left_out = usable_replicas(run, first + MIN_FRAMES * stride)
    return Equilibrated(run, samples, left_out, first, stride)


def forgotten_ps(run: RunRecord) -> float:
    """How long the start of a run is remembered."""
    friction = run.provenance.integrator.friction_per_ps
    if not friction:
        raise AnalysisError(f"run {run.spec.name} was under no thermostat")
    return FORGOTTEN / friction


def molecules(
    n_atoms: int,
    bonds: NDArray[np.int64],
    positions: NDArray[np.float64],
    box_vectors: NDArray[np.float64] | None,
) -> Molecules:
    """Molecules by their bonds; positions of shape (n_atoms, 3), nm."""
    ones = np.ones(len(bonds))
    graph = coo_matrix((ones, (bonds[:, 0], bonds[:, 1])), shape=(n_atoms, n_atoms)).tocsr()
    n_found, of_atom = connected_components(graph, directed=False)
    shift = np.zeros((n_atoms, 3))
    if box_vectors is not None:
        for molecule in range(n_found):
            start = int(np.flatnonzero(of_atom == molecule)[0])
            order, parent = breadth_first_order(graph, start, directed=False)
            for atom in order[1:]:
                apart = positions[atom] - positions[parent[atom]]
                shift[atom] = shift[parent[atom]] + minimum_image(apart, box_vectors) - apart
    return Molecules(np.asarray(of_atom, dtype=np.int64), shift)


def energies_by_motion(
    positions: NDArray[np.float64],
    velocities: NDArray[np.float64],
    masses: NDArray[np.float64],
    parts: Molecules,
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Kinetic energy and degrees of freedom of translation, rotation and inner motion.

    Parameters
    ----------
    positions, velocities : shape (n_frames, n_atoms, 3), nm and nm/ps

    Returns
    -------
    by motion: energy in kJ/mol and number of degrees of freedom, each of shape (n_frames,)
    """
    n_molecules = parts.n_molecules
    member = np.zeros((n_molecules, len(masses)))
    member[parts.of_atom, np.arange(len(masses))] = 1.0
    total_mass = member @ masses
    weight = member * masses / total_mass[:, None]
    centre = np.einsum("ma,fax->fmx", weight, positions + parts.shift)
    flow = np.einsum("ma,fax->fmx", weight, velocities)
    r = positions + parts.shift - centre[:, parts.of_atom]
    v = velocities - flow[:, parts.of_atom]
    spin = np.einsum("ma,fax->fmx", member * masses, np.cross(r, v))
    second = np.einsum("ma,fax,fay->fmxy", member * masses, r, r, optimize=True)
    inertia = np.trace(second, axis1=2, axis2=3)[..., None, None] * np.eye(3) - second
    moments, axes = np.linalg.eigh(inertia)
    turns = (moments > _LINEAR * moments[..., -1:]) & (moments[..., -1:] > 0.0)
    along = np.einsum("fmxk,fmx->fmk", axes, spin)
    inverse = np.divide(1.0, moments, out=np.zeros_like(moments), where=turns)
    translation = 0.5 * (total_mass * (flow**2).sum(2)).sum(1)
    rotation = 0.5 * (along**2 * inverse).sum((1, 2))
    whole = 0.5 * (masses * (velocities**2).sum(2)).sum(1)
    n_turns = turns.sum((1, 2)).astype(np.float64)
    n_frames = len(positions)
    inner = 3.0 * (len(masses) - n_molecules) - n_turns
    return {
        "translation": (translation, np.full(n_frames, 3.0 * n_molecules)),
        "rotation": (rotation, n_turns),
        "inner motion": (whole - translation - rotation, inner),
    }


@dataclass(frozen=True, eq=False)
class Temperatures:
    """Mean kinetic temperatures, one row a replica.

    Attributes
    ----------
    groups : names of elements and motions
    by_group : shape (n_replicas, n_groups), K
    by_atom : shape (n_replicas, n_atoms), K
    """

    groups: tuple[str, ...]
    by_group: NDArray[np.float64]
    by_atom: NDArray[np.float64]


def temperatures(part: Equilibrated, evidence: Evidence) -> Temperatures:
    """Kinetic temperatures of atoms, elements and kinds of motion."""
    run, masses = part.run, part.run.masses
    parts = molecules(len(masses), run.bonds, run.rest_positions, evidence.system.box_vectors)
    symbols = [atom.element.symbol for atom in evidence.system.topology.atoms()]
    atoms, groups = [], []
    for sample in part.samples:
        energy = np.zeros(len(masses))
        motion: dict[str, NDArray[np.float64]] = {}
        n_frames = 0
        for piece in part.pieces(sample):
            energy += 0.5 * masses * (piece["velocities"] ** 2).sum((0, 2))
            n_frames += len(piece["velocities"])
            found = energies_by_motion(piece["positions"], piece["velocities"], masses, parts)
            for name, pair in found.items():
                motion[name] = motion.get(name, np.zeros(2)) + np.array([x.sum() for x in pair])
        per_atom = 2.0 * energy / (3.0 * n_frames * BOLTZMANN)
        row = {
            f"element {symbol}": float(per_atom[[s == symbol for s in symbols]].mean())
            for symbol in dict.fromkeys(symbols)
        }
        for name, (kinetic, n_dof) in motion.items():
            if n_dof > 0.5 * n_frames:  # a mean of less than one half is none at all
                row[name] = float(2.0 * kinetic / (n_dof * BOLTZMANN))
        atoms.append(per_atom)
        groups.append(row)
    names = tuple(name for name in groups[0] if all(name in row for row in groups))
    table = np.array([[row[name] for name in names] for row in groups])
    return Temperatures(names, table, np.array(atoms))


def simultaneous(n_groups: int) -> float:
    """The level of each of several intervals that are to hold all at once.

    References
    ----------
    Dunn, J. Am. Stat. Assoc. 56, 52 (1961): Bonferroni's inequality.
    """
    return 1.0 - (1.0 - CONFIDENCE) / n_groups


def most_certain(estimates: Sequence[Estimate]) -> tuple[Estimate, int]:
    """The estimate that is off zero by most beyond doubt, with the hull of all intervals.

    Parameters
    ----------
    estimates : their intervals simultaneous

    Returns
    -------
    the estimate, whose standard error is the one that gives its simultaneous interval at
    `CONFIDENCE`, and its index
    """
    values = np.array([estimate.value for estimate in estimates])
    halves = np.array([estimate.ci_high - estimate.value for estimate in estimates])
    if not np.isfinite(halves).all():
        index = int(np.abs(values).argmax())
        return estimates[index], index
    index = int((np.abs(values) - halves).argmax())
    chosen = estimates[index]
    quantile = float(stdtrit(chosen.dof, 0.5 + 0.5 * CONFIDENCE))
    return (
        Estimate(
            chosen.value,
            float(halves[index]) / quantile,
            chosen.dof,
            float((values - halves).min()),
            float((values + halves).max()),
            chosen.n_samples,
        ),
        index,
    )


def width_temperature(kinetic_energy: NDArray[np.float64], n_dof: int) -> float:
    """The temperature at which a kinetic energy fluctuates as much as this one, K."""
    return math.sqrt(2.0 / n_dof) * float(kinetic_energy.std()) / BOLTZMANN


def log_ratio_slope(low: NDArray[np.float64], high: NDArray[np.float64]) -> float | None:
    """Slope of ln P_high(E) / P_low(E) by maximum likelihood; None where they do not overlap.

    Parameters
    ----------
    low, high : energies of shape (n,) and (m,), kJ/mol, in two ensembles

    Returns
    -------
    in 1 / (kJ/mol)

    References
    ----------
    Shirts, J. Chem. Theory Comput. 9, 909 (2013), eq. 8; Merz & Shirts, PLoS ONE 13, e0202764
    (2018).
    """
    energy = np.concatenate((low, high))
    is_high = np.concatenate((np.zeros(len(low)), np.ones(len(high))))
    scale = float(energy.std())
    apart = not len(low) or not len(high) or low.max() <= high.min() or high.max() <= low.min()
    if apart or not scale > 0.0:
        return None
    x = np.stack((np.ones(len(energy)), (energy - energy.mean()) / scale))  # (2, n)
    beta = np.array([math.log(len(high) / len(low)), 0.0])
    for _ in range(_NEWTON_STEPS):
        p = expit(beta @ x)
        hessian = (x * (p * (1.0 - p))) @ x.T
        gradient = x @ (is_high - p)
        if not np.linalg.det(hessian) > 0.0:
            return None
        step = np.linalg.solve(hessian, gradient)
        # A full step far from the maximum can overshoot; the likelihood is concave.
        step *= min(1.0, 2.0 / float(np.abs(step).max() or 1.0))
        beta = beta + step
        if np.abs(step).max() < 1.0e-10:
            return float(beta[1]) / scale
    return None


def take(evidence: Evidence) -> list[Measurement]:
    """Temperature, equipartition and width of every run; the ensemble of all of them."""
    found: list[Measurement] = []
    parts = []
    for run in evidence.runs:
        where = run_where(evidence, run)
        obstacle = _obstacle(run)
        part = None if obstacle else equilibrated(run)
        if part is not None and not part.samples:
            obstacle = none_lasted(part.left_out)
        if obstacle or part is None:
            found += [absent(row, where, obstacle) for row in _OF_A_RUN]
            continue
        parts.append(part)
        found += _of_run(evidence, part, where)
    found.append(_ensemble(evidence, parts))
    return found


def _obstacle(run: RunRecord) -> str:
    if run.spec.ensemble != "nvt":
        return f"the run has no thermostat (ensemble {run.spec.ensemble})"
    needed = forgotten_ps(run) + MIN_FRAMES * max(SPACING_PS, run.dt_ps)
    if run.spec.length_ps < needed:
        return (
            f"the start of a run is remembered for {forgotten_ps(run):.3g} ps and this one lasts "
            f"{run.spec.length_ps:g} ps; run {needed:.3g} ps or more"
        )
    return ""


def _of_run(evidence: Evidence, part: Equilibrated, where: Where) -> list[Measurement]:
    target = part.run.spec.temperature_K
    n_dof = part.run.n_dof
    lost = in_words(part.left_out)
    kinetic = part.series("kinetic_energy")
    means = np.array([2.0 * series.mean() / (n_dof * BOLTZMANN) for series in kinetic])
    mean = mean_over_replicas(means)
    cause = _joined(f"the mean kinetic temperature is {mean.value:.4g} K", lost)
    found = [sampled(TEMPERATURE_ERROR, mean.scaled(100.0 / target, -100.0), where, cause)]

    here = temperatures(part, evidence)
    symbols = [atom.element.symbol for atom in evidence.system.topology.atoms()]
    names = [f"{symbol}{i}" for i, symbol in enumerate(symbols)]
    for row, words, table in (
        (EQUIPARTITION, here.groups, here.by_group),
        (ATOM, tuple(names), here.by_atom),
    ):
        level = simultaneous(len(words))
        estimates = [
            mean_over_replicas(column, level).scaled(100.0 / target, -100.0) for column in table.T
        ]
        estimate, index = most_certain(estimates)
        kelvin = target * (1.0 + 0.01 * estimate.value)
        cause = _joined(f"{words[index]} is at {kelvin:.4g} K, the target is {target:g} K", lost)
        found.append(sampled(row, estimate, where, cause))

    together = np.concatenate(kinetic)
    blocks = np.split(np.arange(len(together)), np.cumsum([len(s) for s in kinetic])[:-1])
    width = jackknife(lambda frames: width_temperature(together[frames], n_dof), blocks)
    cause = _joined(f"the kinetic energy is as wide as at {width.value:.4g} K", lost)
    found.append(sampled(KINETIC_DISTRIBUTION, width.scaled(100.0 / target, -100.0), where, cause))
    return found


def _ensemble(evidence: Evidence, parts: Sequence[Equilibrated]) -> Measurement:
    """Pairs of neighbouring temperatures against the Boltzmann factor."""
    where = Where(system=evidence.system.name)
    by_temperature = {part.run.spec.temperature_K: part for part in parts}
    kelvin = sorted(by_temperature)
    if len(kelvin) < 2:
        reason = "two temperatures are needed, with replicas that last, and there are fewer"
        return absent(ENSEMBLE, where, reason)
    pairs = list(itertools.pairwise(kelvin))
    estimates = []
    for cold, warm in pairs:
        estimate = slope_error(
            by_temperature[cold].series("potential_energy"),
            by_temperature[warm].series("potential_energy"),
            cold,
            warm,
            simultaneous(len(pairs)),
        )
        if estimate is None:
            reason = (
                f"the energies at {cold:g} and {warm:g} K do not overlap; "
                "run at temperatures that are closer"
            )
            return absent(ENSEMBLE, where, reason)
        estimates.append(estimate)
    estimate, index = most_certain(estimates)
    cold, warm = pairs[index]
    spec = by_temperature[cold].run.spec
    where = dataclasses.replace(where, run=spec.name, length_ps=spec.length_ps)
    cause = (
        f"the energies at {cold:g} and {warm:g} K differ by {1.0 + 0.01 * estimate.value:.3g} "
        "times the Boltzmann factor"
    )
    lost = in_words([line for part in parts for line in part.left_out])
    return sampled(ENSEMBLE, estimate, where, _joined(cause, lost))


def slope_error(
    cold: Sequence[NDArray[np.float64]],
    warm: Sequence[NDArray[np.float64]],
    cold_K: float,
    warm_K: float,
    confidence: float = CONFIDENCE,
) -> Estimate | None:
    """Deviation in percent of `log_ratio_slope` from what two temperatures ask for.

    Parameters
    ----------
    cold, warm : potential energies of every replica, each of shape (n_frames,), kJ/mol

    Returns
    -------
    with the error that leaving out one replica of each shows; None where nothing overlaps
    """
    series = [*cold, *warm]
    energy = np.concatenate(series)
    is_warm = np.repeat([False] * len(cold) + [True] * len(warm), [len(s) for s in series])
    frames = np.split(np.arange(len(energy)), np.cumsum([len(s) for s in series])[:-1])
    # The replicas of one temperature are as independent of the other's as of one another, so a
    # block may hold one of each.
    n_blocks = min(len(cold), len(warm))
    blocks = [
        np.concatenate([*frames[: len(cold)][b::n_blocks], *frames[len(cold) :][b::n_blocks]])
        for b in range(n_blocks)
    ]
    exact = (1.0 / cold_K - 1.0 / warm_K) / BOLTZMANN
    separable = False

    def percent(chosen: NDArray[np.int64]) -> float:
        nonlocal separable
        warm_ones = is_warm[chosen]
        slope = log_ratio_slope(energy[chosen][~warm_ones], energy[chosen][warm_ones])
        separable |= slope is None
        return math.nan if slope is None else 100.0 * (slope / exact - 1.0)

    estimate = jackknife(percent, blocks, confidence)
    return None if separable else estimate


def _joined(first: str, second: str) -> str:
    return f"{first}; {second}" if second else first


_SAMPLING = "omm_mlff/checks/thermostat.py: what a user of a thermostat is promised, and the ten "
_SAMPLING += "times of DESIGN section 4"

CHECK = Check(
    name="thermostat",
    question="Does a thermostat get from it the canonical ensemble?",
    formula="2 <K> / (3N k), in all and by group; sqrt(2 / 3N) sigma(K) / k; ln P_2(E) / P_1(E)",
    source="Merz & Shirts, PLoS ONE 13, e0202764 (2018)",
    declares=(*_OF_A_RUN, ENSEMBLE),
    criteria=(
        *bounds(
            TEMPERATURE_ERROR,
            "as nve.temperature_error: DESIGN section 5",
            low=(-10.0, None),
            high=(10.0, 100.0),
        ),
        *bounds(EQUIPARTITION, _SAMPLING, low=(-20.0, None), high=(20.0, 200.0)),
        *bounds(KINETIC_DISTRIBUTION, _SAMPLING, low=(-20.0, None), high=(20.0, 200.0)),
        *bounds(ENSEMBLE, _SAMPLING, low=(-30.0, None), high=(30.0, 300.0)),
    ),
    needs=frozenset({"runs"}),
    take=take,
    reads=frozenset({"thermostat"}),
    joint=True,
    use="the canonical ensemble, under a thermostat",
    explained_by=(
        *SPOILS_EVALUATION,
        *SPOILS_DYNAMICS,
    ),
    symptom=Symptom.TEMPERATURE,
)
