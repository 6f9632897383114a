"""How many digits does it compute with?

**Noise floor.** Along a random direction u (rms length 1 over the atoms) energy and forces are
taken at evenly spaced points x + k h u, and their tenth difference is formed,

    d_k = f_k - 10 f_(k+1) + 45 f_(k+2) - ... - 10 f_(k+9) + f_(k+10).

Of a smooth function it is h^10 times the tenth derivative, next to nothing. Of errors that are
independent from point to point, with the standard deviation s, it is random, and its standard
deviation s sqrt(184756): the sum of the squared weights is C(20, 10). So rms(d) / sqrt(184756) is
the standard deviation of one evaluation, whatever the function is, and no reference can hide it:
rounding, a large constant in a float32 number, half precision inside, noise frozen into the forces.

What quantises coarsely does not change at all over a short step, so a longer one is needed, and for
a finer grain a short one: 2e-3 angstrom, the longest at which a sound float64 student has 1e-10,
and 1e-5. Noise is everywhere, a jump in one place: at each step the median over frames is taken,
and the larger of the two counts.

**Against float64.** A potential that offers a `float64_twin` (a student does: the same weights, the
network in double) is compared with that twin: largest difference of the energy, largest relative
difference of the forces of a frame. This is bias as well as noise.

**Precision of the platform.** On CUDA and OpenCL, forces in single and in mixed precision against
those in double. Positions are float32 in both: 1e-8 nm at 0.2 nm from the origin.

Bounds of the noise: forces whose errors are independent from step to step heat at the rate
3 s^2 dt / 2m an atom: 0.01 meV/atom/ps, the limit of the drift, for s = 1e-3 of an rms force
of 1 eV/angstrom on hydrogen at 0.5 fs. That is the order of half precision (2^-11 = 5e-4), which is
rejected in a potential that says float32: 1e-3, and the limit is a tenth of that. Shipped students
in float32 have 7e-7 to 3e-6, tiny in float64 1e-10, and a potential that says float64 and computes
in float32 shall not pass. Energies: 5e-3 meV/atom is the rounding of a float32 number of some 1e5
kJ/mol, such as a total energy with its electrons, for a molecule of three atoms; students, which
leave the reference energies out, have 1e-4 to 4e-4.
"""

from __future__ import annotations

import dataclasses
from math import comb
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import Check, Evidence, absent, bounds, exact, ratio, worst
from omm_mlff.checks.frames import static_frames
from omm_mlff.schema import Criterion, Declaration, Measurement, Precision, Where
from omm_mlff.units import MEV_PER_KJMOL, NM_PER_ANGSTROM

if TYPE_CHECKING:
    from omm_mlff.potentials.base import Potential

N_FRAMES = 5
N_COMPARED = 16
STEPS_ANGSTROM = (2.0e-3, 1.0e-5)
N_POINTS = 24
ORDER = 10


def _declared(name: str, unit: str, meaning: str) -> Declaration:
    return Declaration(f"precision.{name}", "deterministic", unit, meaning, "precision")


ENERGY_NOISE = _declared("energy_noise", "meV/atom", "standard deviation of one energy")
FORCE_NOISE = _declared("force_noise", "1", "standard deviation of one force over the rms force")
FLOAT64_ENERGY = _declared("float64_energy", "meV/atom", "largest difference to the float64 twin")
FLOAT64_FORCE = _declared("float64_force", "1", "largest relative difference to the float64 twin")
PLATFORM_FORCE: dict[Precision, Declaration] = {
    "single": _declared("single_force", "1", "forces in single precision against double"),
    "mixed": _declared("mixed_force", "1", "forces in mixed precision against double"),
}


@np.errstate(all="ignore")  # a broken potential is measured, not warned of
def take(evidence: Evidence) -> list[Measurement]:
    """Noise floor, the float64 twin, and the precisions of the platform."""
    return [*_noise(evidence), *_against_float64(evidence), *_platform(evidence)]


def noise_floor(values: NDArray[np.float64]) -> float:
    """Standard deviation of one evaluation out of an even scan, by the tenth difference.

    Parameters
    ----------
    values : shape (n_points, ...), n_points at least 11

    Returns
    -------
    root mean square over everything; not finite where a value is not
    """
    # A large constant would otherwise take digits from the difference itself.
    difference = np.diff(values - values[0], ORDER, axis=0)
    return float(np.sqrt((difference**2).mean() / comb(2 * ORDER, ORDER)))


def _noise(evidence: Evidence) -> list[Measurement]:
    frames = static_frames(evidence, CHECK.name, N_FRAMES)
    _, forces = evidence.live.evaluate(frames)
    size = float(np.sqrt((forces**2).mean()))
    directions = evidence.random(CHECK.name).normal(size=frames.shape)
    directions /= np.sqrt((directions**2).sum(axis=2).mean(axis=1))[:, None, None]
    points = (np.arange(N_POINTS) - 0.5 * (N_POINTS - 1))[:, None, None]
    # (n_steps, n_frames, n_points, n_atoms, 3)
    scans = np.array(
        [
            [
                frame + step * NM_PER_ANGSTROM * points * direction
                for frame, direction in zip(frames, directions, strict=True)
            ]
            for step in STEPS_ANGSTROM
        ]
    )
    energies, scanned = evidence.live.evaluate(scans.reshape(-1, *frames.shape[1:]))
    per_atom = MEV_PER_KJMOL / evidence.system.n_atoms
    shape = (len(STEPS_ANGSTROM), len(frames), N_POINTS, -1)
    energy = _by_step(energies.reshape(shape)) * per_atom
    force = np.array([ratio(noise, size) for noise in _by_step(scanned.reshape(shape))])
    n = (N_POINTS - ORDER) * len(frames)
    return [
        _larger(ENERGY_NOISE, energy, evidence, n, "energies scatter by", " meV/atom"),
        _larger(FORCE_NOISE, force, evidence, n, "forces scatter by", " of their rms"),
    ]


def _by_step(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median noise over the frames; not finite where a single value is not.

    Parameters
    ----------
    values : shape (n_steps, n_frames, n_points, n_components)

    Returns
    -------
    shape (n_steps,)
    """
    noise = np.array([[noise_floor(scan) for scan in scans] for scans in values])
    return np.where(np.isfinite(noise).all(axis=1), np.median(noise, axis=1), np.inf)


def _larger(
    row: Declaration,
    noise: NDArray[np.float64],
    evidence: Evidence,
    n_samples: int,
    words: str,
    unit: str,
) -> Measurement:
    value, step = worst(noise)
    cause = (
        f"{words} {value:.2g}{unit} between points {STEPS_ANGSTROM[step]:g} angstrom apart, "
        f"from a {evidence.card.dtype} potential"
    )
    return exact(row, value, Where(system=evidence.system.name), n_samples, cause)


def _against_float64(evidence: Evidence) -> list[Measurement]:
    where = Where(system=evidence.system.name)
    twin = evidence.live.potential.capabilities(evidence.system).float64_twin
    if twin is None:
        reason = (
            f"{evidence.card.name} computes in float64 itself"
            if evidence.card.dtype == "float64"
            else f"{evidence.card.name} offers no twin in float64"
        )
        return [absent(row, where, reason) for row in (FLOAT64_ENERGY, FLOAT64_FORCE)]
    frames = static_frames(evidence, CHECK.name, N_COMPARED)
    energies, forces = evidence.live.evaluate(frames)
    exact_energies, exact_forces = _evaluated_by(evidence, twin(), evidence.live.precision, frames)
    per_atom = MEV_PER_KJMOL / evidence.system.n_atoms
    energy, at_energy = worst(np.abs(energies - exact_energies) * per_atom)
    force, at_force = worst(_force_errors(forces, exact_forces))
    cause = f"what rounding in {evidence.card.dtype} costs"
    return [
        exact(
            FLOAT64_ENERGY, energy, dataclasses.replace(where, frame=at_energy), len(frames), cause
        ),
        exact(FLOAT64_FORCE, force, dataclasses.replace(where, frame=at_force), len(frames), cause),
    ]


def _platform(evidence: Evidence) -> list[Measurement]:
    from omm_mlff.forces.platforms import platform_properties

    where = Where(system=evidence.system.name)
    name = getattr(evidence.live, "platform_name", "")
    if not platform_properties(name, "double"):
        reason = f"platform {name or 'unknown'} has one precision"
        return [absent(row, where, reason) for row in PLATFORM_FORCE.values()]
    frames = static_frames(evidence, CHECK.name, N_COMPARED)
    potential = evidence.live.potential
    _, exact_forces = _evaluated_by(evidence, potential, "double", frames)
    found = []
    for precision, row in PLATFORM_FORCE.items():
        _, forces = _evaluated_by(evidence, potential, precision, frames)
        force, frame = worst(_force_errors(forces, exact_forces))
        spot = dataclasses.replace(where, frame=frame)
        cause = f"{name} in {precision} precision instead of double"
        found.append(exact(row, force, spot, len(frames), cause))
    return found


def _evaluated_by(
    evidence: Evidence, potential: Potential, precision: Precision, frames: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    from omm_mlff.dynamics.evaluator import Evaluator

    platform = evidence.live.platform_name
    with Evaluator(potential, evidence.system, platform, precision) as evaluator:
        return evaluator.evaluate(frames)


def _force_errors(
    forces: NDArray[np.float64], exact_forces: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of each frame, over the rms force of all."""
    size = float(np.sqrt((exact_forces**2).mean()))
    error = np.sqrt(((forces - exact_forces) ** 2).mean(axis=(1, 2)))
    return np.array([ratio(float(value), size) for value in error])


_FLOOR = (
    "noise that heats by the limit of the drift, rounding of the dtype below "
    "(derived in omm_mlff/checks/precision.py)"
)
_TWIN = (
    "rounding of the shipped students below (7e-4 meV/atom, 4e-6); the bounds of the noise "
    "(omm_mlff/checks/precision.py)"
)
_POSITIONS = (
    "float32 positions, 1e-8 nm, against the stiffest bond (4e5 kJ/mol/nm^2) give 1e-5 of the rms "
    "force; limit and reject are those of the noise of float32"
)


def _criteria() -> tuple[Criterion, ...]:
    return (
        *bounds(ENERGY_NOISE, _FLOOR, dtypes=("float64",), high=(1.0e-6, 1.0)),
        *bounds(ENERGY_NOISE, _FLOOR, dtypes=("float32",), high=(5.0e-3, 1.0)),
        *bounds(FORCE_NOISE, _FLOOR, dtypes=("float64",), high=(1.0e-6, 1.0e-3)),
        *bounds(FORCE_NOISE, _FLOOR, dtypes=("float32",), high=(1.0e-4, 1.0e-3)),
        *bounds(FLOAT64_ENERGY, _TWIN, high=(5.0e-3, 1.0)),
        *bounds(FLOAT64_FORCE, _TWIN, high=(1.0e-4, 1.0e-3)),
        *bounds(PLATFORM_FORCE["single"], _POSITIONS, high=(1.0e-3, 1.0e-2)),
        *bounds(PLATFORM_FORCE["mixed"], _POSITIONS, high=(1.0e-3, 1.0e-2)),
    )


CHECK = Check(
    name="precision",
    question="How many digits does it compute with?",
    formula="rms of the tenth difference along a line / sqrt(184756); f(float32) - f(float64)",
    source="Hildebrand, Introduction to Numerical Analysis, 2nd ed. (1974), section 1.4, for "
    "errors in differences; More & Wild, SIAM J. Sci. Comput. 33, 1292 (2011), for the noise",
    declares=(
        ENERGY_NOISE,
        FORCE_NOISE,
        FLOAT64_ENERGY,
        FLOAT64_FORCE,
        *PLATFORM_FORCE.values(),
    ),
    criteria=_criteria(),
    needs=frozenset({"evaluator"}),
    take=take,
)
