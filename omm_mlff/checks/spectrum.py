r"""What does it vibrate at?

The density of vibrational states is the spectrum of the mass-weighted velocities: by the theorem of
Wiener and Khinchin the power spectrum is the Fourier transform of their autocorrelation, and one
FFT of the velocities themselves gives it,

    D(nu) = sum_i m_i |sum_t w_t v_i(t) exp(-2 pi i nu t)|^2 dt / sum_t w_t^2,

with Hann's window w, averaged over stretches and replicas. It is normalised so that its integral
over nu >= 0 is the kinetic energy (Parseval; each time weighted by w^2); divided by it, it says
which part of the motion a band holds. In NVE neither the whole molecule's motion nor its
rotation is in it, since runs start without either.

*Resolution* is 1 / (length of a stretch), at most 16,384 frames (8 ps, 4 cm^-1, at 0.5 fs): memory
does not grow with the run. Hann's window, and a Gaussian of one bin over a ragged periodogram, show
a single frequency 2.8 times as wide at half height.

*Peak* is the highest-frequency line: of the local maxima that stand out by a tenth of the highest,
the one of highest frequency, at the centroid of the density over its half-height. Verlet's
algorithm advances a harmonic vibration of angular frequency omega at the frequency omega' with
sin(omega' dt / 2) = omega dt / 2, faster by (omega dt)^2 / 24 of it: 20 cm^-1 at 3800 cm^-1 and
0.5 fs. The peak is corrected for it. *Width* is its full width at half height, window included.
These are classical vibrations at the run's temperature: below the harmonic frequencies of the
minimum, and neither are the observed ones, which hold zero-point motion.

*High* is the part of the kinetic energy above 4,500 cm^-1. No molecule has a fundamental there (the
fastest, H2, has 4,401 cm^-1: Huber & Herzberg, Constants of Diatomic Molecules, 1979): overtones of
anharmonic stretches (0.002 at 300 K for the shipped students, growing with the temperature), and
motion that a rough surface excites.

All of it is information: frequencies that have a reference are judged by `vibrations.*`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import Check, Evidence, absent, for_each_run, run_where, sampled
from omm_mlff.checks.frames import Sample, in_words, none_lasted, stretches, usable_replicas
from omm_mlff.schema import Declaration, Measurement
from omm_mlff.statistics.intervals import Estimate, jackknife
from omm_mlff.units import INVERSE_CM_PER_RADIAN_PER_PS, PS_PER_FS

if TYPE_CHECKING:
    from omm_mlff.record.rundir import RunRecord

LONGEST_FRAMES = 16_384
HIGHEST_PER_CM = 4500.0
"""Above, there are overtones only."""

LOWEST_PEAK_PER_CM = 100.0
"""Below, a line is not told from slow motion by a run of picoseconds."""

_PROMINENCE = 0.1  # of the highest point
_MIN_FRAMES = 256
_SMOOTHING = 1.0  # bins, standard deviation: a periodogram of few replicas is ragged
_PIECE = 4096

PEAK = Declaration(
    "spectrum.peak", "info", "1/cm", "highest-frequency line, Verlet's shift removed", "spectrum"
)
WIDTH = Declaration(
    "spectrum.width", "info", "1/cm", "full width of that line at half height", "spectrum"
)
RESOLUTION = Declaration(
    "spectrum.resolution", "info", "1/cm", "1 / length of a stretch", "spectrum", 0.0
)
HIGH = Declaration(
    "spectrum.high",
    "info",
    "1",
    "part of the kinetic energy above 4500 cm^-1: overtones and roughness",
    "spectrum",
)


@dataclass(frozen=True, eq=False)
class Density:
    """A density of vibrational states.

    Attributes
    ----------
    wavenumber : shape (n,), 1/cm, from 0, evenly spaced; as the integrator has them
    density : shape (n,), kJ/mol per 1/cm; times the spacing it sums to the kinetic energy
    """

    wavenumber: NDArray[np.float64]
    density: NDArray[np.float64]

    @property
    def spacing(self) -> float:
        return float(self.wavenumber[1])


def density_of_states(
    velocities: NDArray[np.float64],
    masses: NDArray[np.float64],
    dt_ps: float,
    window: NDArray[np.float64] | None = None,
) -> Density:
    """Power spectrum of the mass-weighted velocities of one stretch.

    Parameters
    ----------
    velocities : shape (n_frames, n_atoms, 3), nm/ps, evenly spaced
    masses : shape (n_atoms,), dalton
    window : shape (n_frames,); none is a rectangle

    References
    ----------
    Dickey & Paskin, Phys. Rev. 188, 1407 (1969).
    """
    n_frames = len(velocities)
    w = np.ones(n_frames) if window is None else window
    weighted = velocities * (w[:, None, None] * np.sqrt(0.5 * masses)[None, :, None])
    power = (np.abs(np.fft.rfft(weighted, axis=0)) ** 2).sum(axis=(1, 2))
    # A real series: every frequency but the first (and an even length's last) stands for two.
    power[1 : (n_frames + 1) // 2] *= 2.0
    step = 2.0 * math.pi * INVERSE_CM_PER_RADIAN_PER_PS / (n_frames * dt_ps)
    wavenumber = np.arange(len(power)) * step
    scale = n_frames * float((w**2).sum()) * step
    return Density(wavenumber.astype(np.float64), power / scale)


def without_verlet_shift(wavenumber: float, timestep_ps: float) -> float:
    """The frequency whose motion Verlet's algorithm shows at `wavenumber`, both 1/cm.

    References
    ----------
    Hairer, Lubich & Wanner, Acta Numerica 12, 399 (2003), on the harmonic oscillator.
    """
    half = 0.5 * timestep_ps / INVERSE_CM_PER_RADIAN_PER_PS
    return math.sin(wavenumber * half) / half


def highest_line(density: Density) -> tuple[float, float] | None:
    """Position and full width at half height of the highest-frequency line, 1/cm.

    None where no maximum stands out.
    """
    from scipy.ndimage import gaussian_filter1d

    smooth = gaussian_filter1d(density.density, _SMOOTHING)
    first = int(np.searchsorted(density.wavenumber, LOWEST_PEAK_PER_CM))
    if not np.isfinite(smooth).all() or smooth[first:].max(initial=0.0) <= 0.0:
        return None
    peak = last_peak(smooth[first:], _PROMINENCE * float(smooth[first:].max()))
    if peak is None:
        return None
    top = first + peak
    half = 0.5 * smooth[top]
    below, above = np.flatnonzero(smooth[:top] < half), np.flatnonzero(smooth[top:] < half)
    low = int(below[-1]) if len(below) else 0
    high = top + int(above[0]) if len(above) else len(smooth) - 1
    # Where the flanks cross half the height, between two bins
    left = low + _crossing(smooth[low], smooth[low + 1], half) if low < top else float(low)
    right = high - _crossing(smooth[high], smooth[high - 1], half)
    band = slice(low, high + 1)
    weight = density.density[band]
    centroid = float((density.wavenumber[band] * weight).sum() / weight.sum())
    return centroid, (right - left) * density.spacing


def last_peak(values: NDArray[np.float64], prominence: float) -> int | None:
    """The last local maximum that stands out by so much; of a flat top the middle.

    A maximum stands out by its height above the higher of the two lowest points that have to be
    passed, to the left and to the right, before the values are higher or end.

    Parameters
    ----------
    values : shape (n,), finite
    """
    steps = np.flatnonzero(np.diff(values))  # the last point of each level but the last level
    begins = np.concatenate(([0], steps + 1))
    ends = np.concatenate((steps, [len(values) - 1]))
    level = values[begins]
    above = (level[1:-1] > level[:-2]) & (level[1:-1] > level[2:])
    tops = np.flatnonzero(above & (level[1:-1] >= level.min() + prominence)) + 1
    for top in tops[::-1]:
        height = level[top]
        higher = np.flatnonzero(level > height)
        before, after = higher[higher < top], higher[higher > top]
        left = level[before[-1] if len(before) else 0 : top].min()
        right = level[top + 1 : after[0] + 1 if len(after) else len(level)].min()
        if height - max(left, right) >= prominence:
            return int((begins[top] + ends[top]) // 2)
    return None


def _crossing(outside: float, inside: float, height: float) -> float:
    return float((height - outside) / (inside - outside)) if inside != outside else 0.0


def _of_run(evidence: Evidence, run: RunRecord) -> list[Measurement]:
    """Lines of one run's spectrum."""
    where = run_where(evidence, run)
    samples, left_out = usable_replicas(run, min_frames=_MIN_FRAMES)
    if not samples:
        return [absent(row, where, none_lasted(left_out)) for row in CHECK.declares]
    nyquist = math.pi * INVERSE_CM_PER_RADIAN_PER_PS / run.dt_ps
    if nyquist < HIGHEST_PER_CM:
        reason = (
            f"frames are {run.dt_ps / PS_PER_FS:.3g} fs apart, which shows nothing above "
            f"{nyquist:.0f} cm^-1; record at a smaller stride"
        )
        return [absent(row, where, reason) for row in CHECK.declares]
    length = min(LONGEST_FRAMES, min(sample.n_frames for sample in samples))
    window = np.hanning(length + 1)[:-1]  # periodic: it begins where it would begin again
    densities = []
    for sample in samples:
        parts = [
            density_of_states(velocities, run.masses, run.dt_ps, window)
            for velocities in _velocities(sample, length)
        ]
        densities.append(np.mean([part.density for part in parts], axis=0))
    wavenumber = parts[0].wavenumber
    by_replica = np.array(densities)
    resolution = float(wavenumber[1])
    cause = in_words(left_out)
    whole = by_replica.sum(axis=1)
    found = [sampled(RESOLUTION, _known(resolution, len(samples)), where, cause)]
    if not np.isfinite(whole).all() or not (whole > 0.0).all():
        reason = "a replica does not move, or its velocities are not finite"
        return found + [absent(row, where, reason) for row in (PEAK, WIDTH, HIGH)]
    replicas = [np.array([index]) for index in range(len(samples))]
    high = by_replica[:, wavenumber > HIGHEST_PER_CM].sum(axis=1)
    fraction = jackknife(lambda rows: float(high[rows].sum() / whole[rows].sum()), replicas)
    found.append(sampled(HIGH, fraction, where, cause))
    line = highest_line(Density(wavenumber, by_replica.mean(axis=0)))
    if line is None:
        reason = "no line stands out of the spectrum"
        return found + [absent(row, where, reason) for row in (PEAK, WIDTH)]

    @functools.cache
    def of_replicas(rows: tuple[int, ...]) -> tuple[float, float]:
        some = by_replica[list(rows)].mean(axis=0)
        return highest_line(Density(wavenumber, some)) or line

    def part_of_line(which: int) -> Estimate:
        return jackknife(lambda rows: of_replicas(tuple(rows.tolist()))[which], replicas)

    at = part_of_line(0)
    true = without_verlet_shift(at.value, run.spec.timestep_fs * PS_PER_FS)
    found.append(sampled(PEAK, at.scaled(1.0, true - at.value), where, cause))
    found.append(sampled(WIDTH, part_of_line(1), where, cause))
    return found


def _known(value: float, n_samples: int) -> Estimate:
    return Estimate(value, 0.0, math.inf, value, value, n_samples)


def _velocities(sample: Sample, length: int) -> Iterator[NDArray[np.float64]]:
    """Consecutive stretches of exactly `length` frames, (length, n_atoms, 3) each."""
    held: list[NDArray[np.float64]] = []
    n_held = 0
    for piece in stretches(sample, min(_PIECE, length), ("velocities",)):
        held.append(piece["velocities"])
        n_held += len(held[-1])
        while n_held >= length:
            joined = np.concatenate(held)
            yield joined[:length]
            held, n_held = [joined[length:]], n_held - length


CHECK = Check(
    name="spectrum",
    question="What does it vibrate at?",
    formula="sum_i m_i |FFT(w v_i)|^2 / sum w^2; the highest-frequency line and its width",
    source="Dickey & Paskin, Phys. Rev. 188, 1407 (1969), for the density of states",
    declares=(PEAK, WIDTH, RESOLUTION, HIGH),
    criteria=(),
    needs=frozenset({"runs"}),
    take=for_each_run(_of_run),
)
