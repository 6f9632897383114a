r"""Does it visit the configurations that its reference visits, as often?

Bond lengths, angles, dihedrals and distances of a run at constant temperature are compared with an
ensemble that was sampled with the reference method's own dynamics (`systems.ensemble`): the same
integrator up to a shift of its cycle, the same timestep, the same start. Equivalent coordinates are
pooled (the four C-H bonds of methane are one group): atoms are alike when their elements and
neighbours are, to any depth. Distances are those of atoms three bonds or more apart, since one bond
is a bond and two are an angle. A dihedral about a methyl group is folded to a third of the circle.

*Wasserstein distance*, W = int |F(x) - G(x)| dx over the cumulative distributions F of the run and
G of the reference, in units of the reference's standard deviation sigma: 0.1 is a shift of the
whole distribution by a tenth of its thermal width. On a circle W is the least over where the circle
is cut, int |F - G - c| dx with c the median of F - G (Rabin, Delon & Gousseau, J. Math. Imaging
Vis. 41, 147 (2011)). Two samples of one distribution are not at distance 0. That *null* is what
whole replicas of the reference, split in halves at random, are apart, scaled by the root of the
effective sizes to those of this comparison; W is reported in excess of its mean. The error is the
larger of the null's standard deviation and the jackknife's over the replicas of both.

The *effective sample* is the number of independent draws that would know the distribution as well:
the variance of the coordinate over that of the sample's mean (is the place known?), or p (1 - p)
over the variance of p, the part between the quartiles (is the width? a vibration forgets its phase
at once, its energy only by friction); the smaller of the two. Two estimates of each variance are
made and the worse is believed: from the autocorrelation within replicas (Geyer's initial positive
sequence), and from the scatter between replicas, less what is chance in 19 of 20 cases. A torsion
that is trapped in different rotamers has an effective sample as small as the number of replicas,
whatever its autocorrelation says, and so has one that turned in one replica: dihedrals and
distances of slow rotors drop out by themselves. A group counts for W with an effective sample of
`MIN_EFFECTIVE` in the run and in the reference; there W of two samples is itself some 0.06 sigma,
below the bound.

*Mean shift* is what shorter runs are held to: the largest difference of a group's mean, in
angstrom, over bonds and over the distances that span an angle, with Student's interval over the
replicas of both. The same in degrees over angles (`angle_shift`). Stiff coordinates only, which a
picosecond samples.

Rotamers move what is near them, and replicas that all start in one rotamer share its bias, which no
scatter between them shows. So where a dihedral has not the effective sample, in the run or in the
reference, nothing but bonds is judged (rotamers move them by 0.002 angstrom); W of what has the
sample is for information (`wasserstein_known`), and the angle that is farthest off is named. In
alanine, whose carboxyl group turns too slowly for the shipped ensemble, that is C-C-N, by 1.2
(tiny) and 1.9 degrees (ultra-tiny): they prefer an amino rotamer, a minimum of tiny's 0.01 eV above
the lowest, from which the teacher slides down. `conformers.*` and `torsions.*` are to judge that.

Of all groups the largest is reported. Being chosen biases a value made of noise alone upward, by
less than its interval; pooling equivalents keeps the number of groups small (3 in water and in
methane, 9 bonds in alanine).

Measured (5 ps x 16 of water with tiny, else 2 ps x 8), for original, tiny and ultra-tiny alike:
mean shifts of water and methane 0.0003 to 0.0015 angstrom with intervals that end below 0.004,
angles below 0.2 degrees, W below 0.03 sigma; bonds of alanine 0.0016 angstrom (tiny) and 0.0025
(ultra-tiny).

Bounds. W: a shift by 0.1 sigma costs kT / 200. Means: 0.01 angstrom and 1 degree are less than MP2
itself is off from experiment (0.014 angstrom, 1.8 degrees: Johnson, Gill & Pople, J. Chem. Phys.
98, 5612 (1993)). A bond whose mean is off by 0.1 angstrom costs 6 kT at 300 K (30 eV/angstrom^2):
reject. W has no bound for reject: what is beyond is a wrong mean or a wrong rotamer, and the second
one may be the slowness of a run.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from omm_mlff.checks.base import (
    GEOMETRY,
    SPOILS_SURFACE,
    Check,
    Evidence,
    absent,
    bounds,
    for_each_run,
    run_where,
    sampled,
)
from omm_mlff.checks.frames import Sample, in_words, none_lasted, stretches, usable_replicas
from omm_mlff.schema import Declaration, Measurement, MolecularSystem, Symptom, Where
from omm_mlff.statistics.intervals import Estimate, mean_over_replicas, t_estimate
from omm_mlff.units import ANGSTROM_PER_NM, PS_PER_FS

if TYPE_CHECKING:
    from omm_mlff.record.rundir import RunRecord
    from omm_mlff.systems.ensemble import ReferenceEnsemble

Float = NDArray[np.float64]
Kind = Literal["bond", "span", "angle", "dihedral", "distance"]

MIN_EFFECTIVE = 1000.0
"""Independent draws, of the run and of the reference, below which W says nothing of 0.1 sigma."""

START_PS = 1.0
"""Of a run, discarded at most (a quarter of a short one): it starts at the minimum."""

TEMPERATURE_K = 1.0
"""A run is compared with an ensemble whose temperature differs by no more."""

N_SPLITS = 200
"""Random halvings of the reference's replicas; the mean of the null is then known to 3%."""

N_BINS = 512
_LOOK_PS = 10.0 * PS_PER_FS  # the period of the fastest vibration
_MOST_LOOKS = 1024  # of a replica: memory does not grow with a run's length
_PIECE = 4096

WASSERSTEIN = Declaration(
    "distribution.wasserstein",
    "sampled",
    "1",
    "largest Wasserstein-1 distance of a coordinate, in sigma, above the null",
    "distribution",
    failure="bonds and angles are distributed otherwise",
)
MEAN_SHIFT = Declaration(
    "distribution.mean_shift",
    "sampled",
    "angstrom",
    "largest shift of the mean of a bond or of a distance that spans an angle",
    "distribution",
    failure="bonds have another mean length at constant temperature",
)
ANGLE_SHIFT = Declaration(
    "distribution.angle_shift",
    "sampled",
    "degree",
    "largest shift of the mean of an angle",
    "distribution",
    failure="angles have another mean",
)
WASSERSTEIN_INFO = Declaration(
    "distribution.wasserstein_known",
    "info",
    "1",
    "the same over what has the sample, even if a torsion of the molecule has not",
    "distribution",
)
EFFECTIVE = Declaration(
    "distribution.effective_sample",
    "info",
    "1",
    "independent draws of the group that has fewest, of those that a picosecond samples",
    "distribution",
    0.0,
)


@dataclass(frozen=True, eq=False)
class Group:
    """Equivalent internal coordinates.

    Attributes
    ----------
    kind : "span" is the distance between the ends of an angle
    atoms : shape (n_coordinates, 2, 3 or 4)
    label : for a person, such as "bond C0-H1 and 3 like it"
    period : of the circle in degrees; None for what is not on a circle
    """

    kind: Kind
    atoms: NDArray[np.int64]
    label: str
    period: float | None = None


def like_atoms(system: MolecularSystem) -> list[int]:
    """A class for every atom: alike are those with one element and like neighbours, to any depth.

    References
    ----------
    Morgan, J. Chem. Doc. 5, 107 (1965).
    """
    neighbours = _neighbours(system)
    classes = [int(z) for z in system.species]
    for _ in range(system.n_atoms):
        keys = [
            (classes[i], tuple(sorted(classes[j] for j in near)))
            for i, near in enumerate(neighbours)
        ]
        ranks = {key: rank for rank, key in enumerate(sorted(set(keys)))}
        finer = [ranks[key] for key in keys]
        if len(set(finer)) == len(set(classes)):
            return finer
        classes = finer
    return classes


def coordinate_groups(system: MolecularSystem) -> list[Group]:
    """Every bond, angle, dihedral and distance, equivalent ones together."""
    classes = like_atoms(system)
    neighbours = _neighbours(system)
    names = [f"{atom.element.symbol}{atom.index}" for atom in system.topology.atoms()]
    found: dict[tuple[str, tuple[int, ...]], list[tuple[int, ...]]] = {}
    for kind, atoms in _coordinates(system, neighbours):
        forward = tuple(classes[i] for i in atoms)
        found.setdefault((kind, min(forward, forward[::-1])), []).append(atoms)
    groups = []
    for (kind, _), members in found.items():
        first = "-".join(names[i] for i in members[0])
        more = f" and {len(members) - 1} like it" if len(members) > 1 else ""
        what = "distance" if kind == "span" else kind
        period = None
        if kind == "dihedral":
            folded = _methyl(members[0], classes, neighbours)
            period = 120.0 if folded else 360.0
        groups.append(
            Group(kind, np.array(members), f"{what} {first}{more}", period)  # type: ignore[arg-type]
        )
    return groups


def _neighbours(system: MolecularSystem) -> list[list[int]]:
    neighbours: list[list[int]] = [[] for _ in range(system.n_atoms)]
    for i, j in system.bonds.tolist():
        neighbours[i].append(j)
        neighbours[j].append(i)
    return neighbours


def _coordinates(
    system: MolecularSystem, neighbours: list[list[int]]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    near = {(i, j) for i, row in enumerate(neighbours) for j in row}
    for i, j in system.bonds.tolist():
        yield "bond", (i, j)
    for centre, row in enumerate(neighbours):
        for i, k in itertools.combinations(sorted(row), 2):
            yield "angle", (i, centre, k)
            if (i, k) not in near:
                yield "span", (i, k)
            near |= {(i, k), (k, i)}
    for j, k in system.bonds.tolist():
        for i in neighbours[j]:
            for last in neighbours[k]:
                if len({i, j, k, last}) == 4:
                    yield "dihedral", (i, j, k, last)
    for i, j in itertools.combinations(range(system.n_atoms), 2):
        if (i, j) not in near:
            yield "distance", (i, j)


def _methyl(dihedral: tuple[int, ...], classes: list[int], neighbours: list[list[int]]) -> bool:
    """Whether either end of the bond that is turned about carries three like atoms."""
    _, j, k, _ = dihedral
    for centre, other in ((j, k), (k, j)):
        rest = [classes[i] for i in neighbours[centre] if i != other]
        if len(rest) == 3 and len(set(rest)) == 1:
            return True
    return False


def values(group: Group, positions: Float) -> Float:
    """The group's coordinates, angstrom or degrees.

    Parameters
    ----------
    positions : shape (..., n_atoms, 3), nm

    Returns
    -------
    shape (..., n_coordinates); on a circle from 0 to its period
    """
    at = [positions[..., column, :] for column in group.atoms.T]
    if len(at) == 2:
        return np.asarray(np.linalg.norm(at[1] - at[0], axis=-1) * ANGSTROM_PER_NM)
    if len(at) == 3:
        one, two = at[0] - at[1], at[2] - at[1]
        dot = (one * two).sum(-1)
        product = np.linalg.norm(one, axis=-1) * np.linalg.norm(two, axis=-1)
        # Atoms on top of each other make no angle: a right one.
        cosine = np.divide(dot, product, out=np.zeros_like(dot), where=product != 0.0)
        return np.asarray(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))
    first, axis, last = at[1] - at[0], at[2] - at[1], at[3] - at[2]
    left, right = np.cross(first, axis), np.cross(axis, last)
    sine = (first * right).sum(-1) * np.linalg.norm(axis, axis=-1)
    angle = np.degrees(np.arctan2(sine, (left * right).sum(-1)))
    return np.asarray(np.mod(angle, group.period or 360.0))


@dataclass(frozen=True, eq=False)
class Distributions:
    """Cumulative distributions of one coordinate, replica by replica, on one grid.

    Attributes
    ----------
    run, reference : shape (n_replicas, N_BINS), F at the right edges of the bins
    width : of a bin
    circle : whether the last bin is next to the first
    """

    run: Float
    reference: Float
    width: float
    circle: bool

    def distance(self, difference: Float) -> Float:
        """W from differences of two cumulative distributions, shape (..., N_BINS)."""
        if self.circle:
            difference = difference - np.median(difference, axis=-1, keepdims=True)
        return np.asarray(np.abs(difference).sum(-1) * self.width)


def distributions(run: list[Float], reference: Float, period: float | None) -> Distributions:
    """Both samples of a coordinate as cumulative distributions.

    Parameters
    ----------
    run : of each replica, shape (n_frames, n_coordinates)
    reference : shape (n_replicas, n_frames, n_coordinates)
    """
    if period is None:
        low = min(float(reference.min()), *(float(one.min()) for one in run))
        high = max(float(reference.max()), *(float(one.max()) for one in run))
        high += 1.0e-9 * max(1.0, abs(high))
    else:
        low, high = 0.0, period

    def cumulative(sample: Float) -> Float:
        counts, _ = np.histogram(sample, bins=N_BINS, range=(low, high))
        return np.asarray(counts.cumsum() / sample.size)

    return Distributions(
        np.array([cumulative(one) for one in run]),
        np.array([cumulative(one) for one in reference]),
        (high - low) / N_BINS,
        period is not None,
    )


def null_distances(found: Distributions, rng: np.random.Generator) -> Float:
    """How far halves of the reference's replicas are apart, one number for each split."""
    n = len(found.reference)
    signs = np.tile(
        np.where(np.arange(n) < n // 2, 1.0 / (n // 2), -1.0 / (n - n // 2)), (N_SPLITS, 1)
    )
    return found.distance(rng.permuted(signs, axis=1) @ found.reference)


def effective_sample(sample: list[Float], centre: float, period: float | None) -> float:
    """Independent draws that would give as noisy a distribution.

    Parameters
    ----------
    sample : of each replica, shape (n_frames, n_coordinates), evenly spaced in time
    centre : where a circle is opposite to being cut

    References
    ----------
    Geyer, Stat. Sci. 7, 473 (1992), for the initial positive sequence.
    """
    lengths = np.array([len(one) for one in sample])
    n_draws = float(lengths.sum() * sample[0].shape[1])
    if period is not None:
        sample = [_around(one, centre, period) for one in sample]
    pooled = np.concatenate(sample)
    low, high = np.quantile(pooled, (0.25, 0.75))
    inside = [((one >= low) & (one < high)).mean(axis=1) for one in sample]  # (n_frames,) each
    mean_inside = float(np.concatenate(inside).mean())
    least = n_draws
    for series, ideal in (
        ([one.mean(axis=1) for one in sample], float(pooled.var())),
        (inside, mean_inside * (1.0 - mean_inside)),
    ):
        mean = float(np.concatenate(series).mean())
        variance = _variance_of_mean(series, mean)
        if len(sample) > 1:
            shares = lengths / lengths.sum()
            spread = np.array([one.mean() for one in series]) - mean
            n = len(sample)
            between = float((shares**2 * spread**2).sum()) * n / (n - 1.0)
            # Few replicas scatter by chance: what counts is more than 19 of 20 times that.
            variance = max(variance, between * (n - 1.0) / float(chdtri(n - 1, 0.05)))
        if variance <= 0.0:
            return 1.0
        least = min(least, ideal / variance)
    return least


def _variance_of_mean(series: list[Float], mean: float) -> float:
    """Of all replicas' mean, from the autocorrelation within them about the common mean."""
    shortest = min(len(one) for one in series)
    n_frames = sum(len(one) for one in series)
    covariance = np.zeros(shortest)
    for one in series:
        centred = one - mean
        power = np.abs(np.fft.rfft(centred, 2 * len(one))) ** 2
        covariance += np.fft.irfft(power)[:shortest]
    covariance /= n_frames
    if covariance[0] <= 0.0:
        return 0.0
    rho = covariance / covariance[0]
    pairs = rho[: 2 * (shortest // 2)].reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs <= 0.0)
    kept = pairs[: negative[0]] if len(negative) else pairs
    inefficiency = max(1.0, 2.0 * float(kept.sum()) - 1.0)
    return float(covariance[0]) * inefficiency / n_frames


def _around(angles: Float, centre: float, period: float) -> Float:
    """Angles as deviations from the centre, between minus and plus half a period."""
    return np.asarray(np.mod(angles - centre + 0.5 * period, period) - 0.5 * period)


def _centre_and_sigma(reference: Float, period: float | None) -> tuple[float, float]:
    if period is None:
        return float(reference.mean()), float(reference.std())
    turns = np.exp(2.0j * np.pi * reference / period)
    centre = float(np.angle(turns.mean()) * period / (2.0 * np.pi))
    deviation = _around(reference, centre, period)
    return centre, float(np.sqrt((deviation**2).mean()))


@dataclass(frozen=True)
class Compared:
    """One group of the run against the reference.

    Attributes
    ----------
    excess : W in sigma above the null
    effective_run, effective_reference : independent draws
    """

    group: Group
    excess: Estimate
    effective_run: float
    effective_reference: float

    @property
    def effective(self) -> float:
        return min(self.effective_run, self.effective_reference)


def compared(
    group: Group, run: list[Float], reference: Float, rng: np.random.Generator
) -> Compared:
    """Wasserstein's distance of one group, in excess of the null.

    Parameters
    ----------
    run : of each replica, shape (n_frames, n_coordinates)
    reference : shape (n_replicas, n_frames, n_coordinates)
    """
    centre, sigma = _centre_and_sigma(reference, group.period)
    n_run = effective_sample(run, centre, group.period)
    n_reference = effective_sample(list(reference), centre, group.period)
    found = distributions(run, reference, group.period)
    null = null_distances(found, rng)
    # Halves have half the sample each: 2/n + 2/n in place of 1/n_run + 1/n_reference.
    scale = math.sqrt((1.0 / n_run + 1.0 / n_reference) / (4.0 / n_reference))
    weights = np.array([one.size for one in run], dtype=np.float64)
    ours = weights @ found.run / weights.sum()
    theirs = found.reference.mean(axis=0)
    distance = float(found.distance(ours - theirs))
    error = scale * float(null.std(ddof=1))
    if len(run) > 1:
        less = (weights @ found.run - weights[:, None] * found.run) / (
            weights.sum() - weights[:, None]
        )
        n = len(found.reference)
        other = (n * theirs - found.reference) / (n - 1)
        variance = _jackknife_variance(found.distance(less - theirs))
        variance += _jackknife_variance(found.distance(ours - other))
        error = max(error, math.sqrt(variance))
    excess = t_estimate(
        (distance - scale * float(null.mean())) / sigma,
        error / sigma,
        max(1.0, min(len(run), len(reference)) - 1.0),
        len(run),
    )
    return Compared(group, excess, n_run, n_reference)


def _jackknife_variance(left_out: Float) -> float:
    n = len(left_out)
    return (n - 1) / n * float(((left_out - left_out.mean()) ** 2).sum())


def mean_difference(run: list[Float], reference: Float) -> Estimate:
    """Shift of the mean, never negative, with the interval over the replicas of both.

    Parameters
    ----------
    run : of each replica, shape (n_frames, n_coordinates)
    reference : shape (n_replicas, n_frames, n_coordinates)
    """
    ours = mean_over_replicas(np.array([one.mean() for one in run]))
    theirs = mean_over_replicas(reference.mean(axis=(1, 2)))
    error = math.hypot(ours.standard_error, theirs.standard_error)
    # Welch & Satterthwaite: degrees of freedom of a difference with unequal errors
    parts = ((ours.standard_error, ours.dof), (theirs.standard_error, theirs.dof))
    dof = min(ours.dof, theirs.dof)
    if 0.0 < error < math.inf:
        dof = error**4 / sum(one**4 / n for one, n in parts)
    n_samples = min(ours.n_samples, theirs.n_samples)
    return t_estimate(abs(ours.value - theirs.value), error, dof, n_samples)


def _of_run(evidence: Evidence, run: RunRecord) -> list[Measurement]:
    """The distributions of one run."""
    where = run_where(evidence, run)
    system = evidence.system
    ensemble = _ensemble(system)
    reason = _not_comparable(system, ensemble, run)
    if ensemble is None or reason is not None:
        return [absent(row, where, reason or "") for row in CHECK.declares]
    samples, left_out = usable_replicas(run)
    if not samples:
        return [absent(row, where, none_lasted(left_out)) for row in CHECK.declares]
    looks = [_looks(sample, run.dt_ps) for sample in samples]
    rng = evidence.random(CHECK.name)
    rows: list[Compared] = []
    shifts: dict[Kind, list[tuple[Group, Estimate]]] = {}
    for group in coordinate_groups(system):
        ours = [values(group, one) for one in looks]
        theirs = values(group, ensemble.positions)
        if group.kind in ("bond", "span", "angle"):
            shifts.setdefault(group.kind, []).append((group, mean_difference(ours, theirs)))
        rows.append(compared(group, ours, theirs, rng))
    more = in_words(left_out)
    trapped = _trapped(rows)
    if trapped is None:
        lengths = [*shifts.get("bond", []), *shifts.get("span", [])]
        found = [
            _largest_shift(MEAN_SHIFT, lengths, where, more, system),
            _largest_shift(ANGLE_SHIFT, shifts.get("angle", []), where, more, system),
            _largest_distance(WASSERSTEIN, rows, where, more),
        ]
    else:
        bonds_alone = "; ".join(filter(None, (more, f"bonds alone, since {trapped}")))
        found = [
            _largest_shift(MEAN_SHIFT, shifts.get("bond", []), where, bonds_alone, system),
            absent(ANGLE_SHIFT, where, _in_passing(trapped, shifts.get("angle", []))),
            absent(WASSERSTEIN, where, f"{trapped}: its rotamers move the other coordinates"),
        ]
    found.append(_largest_distance(WASSERSTEIN_INFO, rows, where, more))
    stiff = [row for row in rows if row.group.kind in ("bond", "angle")]
    if stiff:
        least = min(stiff, key=lambda row: row.effective)
        known = Estimate(
            least.effective, 0.0, math.inf, least.effective, least.effective, len(samples)
        )
        words = (
            f"{least.group.label}: {least.effective_run:.0f} in the run, "
            f"{least.effective_reference:.0f} in the reference"
        )
        found.append(sampled(EFFECTIVE, known, where, words))
    else:
        found.append(absent(EFFECTIVE, where, f"system {system.name!r} has no bonds"))
    return found


def _trapped(rows: list[Compared]) -> str | None:
    """The torsion that is sampled worst, in words, if it has not the sample; else None."""
    torsions = [row for row in rows if row.group.kind == "dihedral"]
    worst = min(torsions, key=lambda row: row.effective, default=None)
    if worst is None or worst.effective >= MIN_EFFECTIVE:
        return None
    return (
        f"{worst.group.label} has an effective sample of {worst.effective_run:.0f} in the run and "
        f"{worst.effective_reference:.0f} in the reference, less than {MIN_EFFECTIVE:g}"
    )


def _in_passing(trapped: str, shifts: list[tuple[Group, Estimate]]) -> str:
    words = f"{trapped}: its rotamers move the angles"
    if shifts:
        group, shift = max(shifts, key=lambda pair: pair[1].value)
        words += (
            f"; not judged: {group.label} is off by {shift.value:.2g} degrees "
            f"({shift.ci_low:.2g} to {shift.ci_high:.2g})"
        )
    return words


def _largest_shift(
    row: Declaration,
    shifts: list[tuple[Group, Estimate]],
    where: Where,
    more: str,
    system: MolecularSystem,
) -> Measurement:
    if not shifts:
        return absent(row, where, f"system {system.name!r} has nothing of the kind")
    group, shift = max(shifts, key=lambda pair: pair[1].value)
    spot = dataclasses.replace(where, atoms=tuple(int(i) for i in group.atoms[0]))
    return sampled(row, shift, spot, "; ".join(filter(None, (group.label, more))))


def _largest_distance(
    declaration: Declaration, rows: list[Compared], where: Where, more: str
) -> Measurement:
    counted = [row for row in rows if row.effective >= MIN_EFFECTIVE]
    if not counted:
        best = max(rows, key=lambda row: row.effective)
        return absent(
            declaration,
            where,
            f"the effective sample is {best.effective:.0f} at most ({best.group.label}), less than "
            f"{MIN_EFFECTIVE:g}; the means are compared instead, or run longer",
        )
    worst = max(counted, key=lambda row: row.excess.value)
    spot = dataclasses.replace(where, atoms=tuple(int(i) for i in worst.group.atoms[0]))
    words = [f"{worst.group.label}; {len(counted)} of {len(rows)} groups have the sample", more]
    return sampled(declaration, worst.excess, spot, "; ".join(filter(None, words)))


def _not_comparable(
    system: MolecularSystem, ensemble: ReferenceEnsemble | None, run: RunRecord
) -> str | None:
    if ensemble is None:
        return f"system {system.name!r} has no reference ensemble"
    if not len(system.bonds):
        return f"system {system.name!r} has no bonds"
    if abs(run.spec.temperature_K - ensemble.temperature_K) > TEMPERATURE_K:
        return (
            f"the reference ensemble is at {ensemble.temperature_K:g} K, the run at "
            f"{run.spec.temperature_K:g} K"
        )
    if run.spec.ensemble != "nvt":
        return f"the run is not at constant temperature (ensemble {run.spec.ensemble!r})"
    return None


@functools.lru_cache(maxsize=8)
def _ensemble(system: MolecularSystem) -> ReferenceEnsemble | None:
    from omm_mlff.systems.ensemble import reference_ensemble

    return reference_ensemble(system)


def _looks(sample: Sample, dt_ps: float) -> Float:
    """Frames of one replica after its start, evenly spaced; shape (n_looks, n_atoms, 3), nm."""
    skipped = min(round(START_PS / dt_ps), sample.n_frames // 4)
    every = max(1, round(_LOOK_PS / dt_ps), math.ceil((sample.n_frames - skipped) / _MOST_LOOKS))
    kept, seen = [], 0
    for piece in stretches(sample, _PIECE, ("positions",)):
        first = skipped - seen if seen < skipped else (skipped - seen) % every
        kept.append(piece["positions"][first::every])
        seen += len(piece["positions"])
    return np.concatenate(kept)


CHECK = Check(
    name="distribution",
    question="Does it visit the configurations that its reference visits, as often?",
    formula="W1 = int |F_run - F_reference| dx / sigma above the null; |<x>_run - <x>_reference|",
    source="Vaserstein (1969); Rabin, Delon & Gousseau (2011) on a circle; Geyer (1992)",
    declares=(MEAN_SHIFT, ANGLE_SHIFT, WASSERSTEIN, WASSERSTEIN_INFO, EFFECTIVE),
    criteria=(
        *bounds(
            WASSERSTEIN,
            "a tenth of the thermal width: a shift by it costs kT/200",
            high=(0.1, None),
        ),
        *bounds(
            MEAN_SHIFT,
            "limit: less than the error of MP2's bond lengths, 0.014 angstrom (Johnson, Gill & "
            "Pople, J. Chem. Phys. 98, 5612 (1993)); reject: 6 kT for a stretch of 30 "
            "eV/angstrom^2 at 300 K",
            high=(0.01, 0.1),
        ),
        *bounds(
            ANGLE_SHIFT,
            "less than the error of MP2's bond angles, 1.8 degrees (Johnson, Gill & Pople, J. "
            "Chem. Phys. 98, 5612 (1993)); between bonds of 1 angstrom about 0.01 angstrom",
            high=(1.0, None),
        ),
    ),
    needs=frozenset({"runs"}),
    take=for_each_run(_of_run),
    reads=frozenset({"thermostat"}),
    use=GEOMETRY,
    explained_by=SPOILS_SURFACE,
    symptom=Symptom.ACCURACY,
)
