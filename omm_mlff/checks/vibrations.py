"""Does the molecule vibrate as the reference method says?

The normal modes at the model's own minimum, relaxed from the reference's, against the reference's
at its own: how well second derivatives are learnt, which errors of energies and forces do not show.

- `frequency_rmse`: over modes in ascending order, imaginary ones negative. Pairing by order needs
  no eigenvectors, which are arbitrary among degenerate modes, and no other pairing of the same
  frequencies has a smaller rms: it is a lower bound for the error by character of the mode.
- `zero_point`: |sum of h nu / 2 over real modes| of the difference, per atom: a common bias.
- `imaginary`: modes below -30 1/cm at the model's minimum. A minimum has none. A molecule that
  flies apart on its way there has no minimum, which counts as infinitely many. No landmarks of a
  reference are needed for this one; it starts at the system's structure then.

Both methods are differenced over the same 0.03 angstrom for the comparison (`AMPLITUDE_NM` says
why), the model alone over 0.005 angstrom for its imaginary modes.

The bounds on the first two are bounds of accuracy: a model that fails them runs as stably as
another. Measured on the molecules that they were trained on: frequency errors of 17 to 35 1/cm for
tiny, 13 to 27 for original, 18 to 45 for ultra-tiny; zero-point errors of up to 3.9, 1.4 and 3.3
meV/atom; no imaginary modes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import (
    SPOILS_EVALUATION,
    SPOILS_SURFACE,
    Check,
    Evidence,
    absent,
    bounds,
    exact,
)
from omm_mlff.geometry.normal_modes import (
    AMPLITUDE_NM,
    Minimum,
    Modes,
    hessian,
    minimum_with_modes,
    normal_modes,
)
from omm_mlff.geometry.relaxation import Surface, moved_most
from omm_mlff.schema import Declaration, Fault, Measurement, MolecularSystem, Symptom, Where
from omm_mlff.units import MEV_PER_INVERSE_CM

MAX_ATOMS = 100
"""Beyond, 6 n_atoms evaluations for each set of second derivatives take longer than a check may."""

FREQUENCY_RMSE = Declaration(
    "vibrations.frequency_rmse",
    "deterministic",
    "1/cm",
    "normal modes at its own minimum against the reference's, in ascending order",
    "vibrations",
    failure="vibrations have other frequencies",
)
IMAGINARY = Declaration(
    "vibrations.imaginary",
    "deterministic",
    "1",
    "modes below -30 1/cm at its own minimum; infinite where it has none",
    "vibrations",
    failure="there is no minimum where there should be one",
)
ZERO_POINT = Declaration(
    "vibrations.zero_point",
    "deterministic",
    "meV/atom",
    "error of the harmonic zero-point energy, absolute",
    "vibrations",
    failure="the zero-point energy is off",
)


def take(evidence: Evidence) -> list[Measurement]:
    """Normal modes at the model's minimum, against the reference's where there are any."""
    system, surface = evidence.system, evidence.live.evaluate
    where = Where(system=system.name)
    reason = _no_modes(system)
    if reason:
        return [absent(row, where, reason) for row in CHECK.declares]
    landmarks = system.landmarks
    start = system.positions if landmarks is None else landmarks.minima[0]
    found = minimum_with_modes(surface, system, start)
    rows = [_imaginary(system, found, where)]
    if landmarks is None:
        reason = (
            f"no reference method's normal modes are known for {system.name!r}; a method is named "
            "with --teacher"
        )
        return rows + [absent(row, where, reason) for row in (FREQUENCY_RMSE, ZERO_POINT)]
    target = landmarks.frequencies
    n_modes = len(target)
    modes, cause = _modes_to_compare(surface, system, found, n_modes)
    if modes is None:
        return [
            *rows,
            exact(FREQUENCY_RMSE, np.inf, where, n_modes, cause),
            exact(ZERO_POINT, np.inf, where, n_modes, cause),
        ]
    rmse = float(np.sqrt(((modes.frequencies - target) ** 2).mean()))
    worst = int(np.abs(modes.frequencies - target).argmax())
    cause = (
        f"mode {worst + 1} of {n_modes} (mostly {_movers(system, modes, worst)}) has "
        f"{modes.frequencies[worst]:.0f} 1/cm, the reference's {target[worst]:.0f}; relaxed from "
        f"its minimum, {moved_most(system, start, found.positions)}"
    )
    own, wanted = _zero_point(modes.frequencies), _zero_point(target)
    zero_point = f"zero-point energy {own:.0f} meV, the reference's {wanted:.0f}"
    return [
        *rows,
        exact(FREQUENCY_RMSE, rmse, where, n_modes, cause),
        exact(ZERO_POINT, abs(own - wanted) / system.n_atoms, where, n_modes, zero_point),
    ]


def _modes_to_compare(
    surface: Surface, system: MolecularSystem, found: Minimum, n_modes: int
) -> tuple[Modes | None, str]:
    """The modes by the step that both methods are differenced with, or why there are none."""
    if found.modes is None:
        return None, found.obstacle
    second = hessian(surface, found.positions, AMPLITUDE_NM)
    if not np.isfinite(second).all():
        return None, "its forces are not finite next to the minimum"
    modes = normal_modes(second, found.positions, system.masses)
    if len(modes.frequencies) != n_modes:
        return None, f"its minimum has {len(modes.frequencies)} modes, the reference's {n_modes}"
    return modes, ""


def _no_modes(system: MolecularSystem) -> str:
    if system.periodic:
        return "a periodic box has no normal modes of its own; look at its molecules in vacuum"
    if system.n_atoms == 1:
        return "one atom does not vibrate"
    if system.n_atoms > MAX_ATOMS:
        return f"{system.n_atoms} atoms are more than the {MAX_ATOMS} that this check is made for"
    return ""


def _zero_point(frequencies: NDArray[np.float64]) -> float:
    """meV; an imaginary mode has no level."""
    return float(0.5 * MEV_PER_INVERSE_CM * np.maximum(frequencies, 0.0).sum())


def _imaginary(system: MolecularSystem, found: Minimum, where: Where) -> Measurement:
    if found.modes is None:
        return exact(IMAGINARY, np.inf, where, 1, f"it has no minimum: {found.obstacle}")
    softest = float(found.modes.frequencies[0])
    text = f"{-softest:.0f}i" if softest < 0.0 else f"{softest:.0f}"
    cause = f"the softest mode is {text} 1/cm (mostly {_movers(system, found.modes, 0)})"
    n_modes = len(found.modes.frequencies)
    return exact(IMAGINARY, found.modes.n_imaginary, where, n_modes, cause)


def _movers(system: MolecularSystem, modes: Modes, mode: int) -> str:
    symbols = [atom.element.symbol for atom in system.topology.atoms()]
    return ", ".join(f"{symbols[atom]}{atom}" for atom in modes.movers(mode))


_SCALE = (
    "Scott & Radom, J. Phys. Chem. 100, 16502 (1996): rms errors of scaled frequencies are 34 1/cm "
    "for B3LYP, 50 for HF, 126 to 159 for semi-empirical methods; reject at ten times the limit. "
    "A bound of accuracy"
)
_CHEMICAL = (
    "chemical accuracy, 1 kcal/mol, for a molecule of 12 atoms (the median of the shipped "
    "systems); reject at 1 kcal/mol for every atom. A bound of accuracy"
)
_MINIMUM = (
    "the second derivatives at a minimum are positive; 30 1/cm is what rounding leaves; reject "
    "where three pushes off the saddle leave more than three ways down, or nothing holds together"
)

CHECK = Check(
    name="vibrations",
    question="Does the molecule vibrate as the reference method says?",
    formula="w^2: eigenvalues of M^-1/2 H M^-1/2 without translations and rotations, H from forces",
    source="Wilson, Decius & Cross, Molecular Vibrations (1955), chapter 2",
    declares=(FREQUENCY_RMSE, IMAGINARY, ZERO_POINT),
    criteria=(
        *bounds(FREQUENCY_RMSE, _SCALE, high=(50.0, 500.0)),
        *bounds(IMAGINARY, _MINIMUM, high=(0.0, 3.0)),
        *bounds(ZERO_POINT, _CHEMICAL, high=(3.6, 43.4)),
    ),
    needs=frozenset({"evaluator"}),
    take=take,
    use="the reference method's vibrations",
    explained_by=(
        *SPOILS_EVALUATION,
        *SPOILS_SURFACE,
        Fault.ORIENTATION,
        Fault.JUMP,
        Fault.RAISES_IN_REACH,
    ),
    symptom=Symptom.ACCURACY,
)
