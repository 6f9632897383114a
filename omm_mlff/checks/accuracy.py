"""How far is it from its reference method?

Errors of energies and forces on labelled frames that trained nobody, computed through the OpenMM
Context that production uses. Frames from dynamics at 500 K or below count; the force error on
hotter ones is reported beside it, for information.

- Energies: methods differ by a constant for each molecule, so the mean difference over the frames
  (`energy_offset`) is removed before RMSE and MAE, per atom.
- Forces: RMSE, MAE and R2 over Cartesian components, R2 = 1 - sum (F - F_ref)^2 /
  sum (F_ref - <F_ref>)^2. Cosine and angle between F and F_ref are means over atoms, without those
  whose reference force is below 0.05 eV/angstrom: the direction of nothing is noise.
- Scale: the least-squares slope of F on F_ref, sum F . F_ref / sum F_ref^2. A potential whose
  energies and forces are both in another unit agrees with itself; the slope names the unit.

Intervals: frames of one trajectory are alike, so trajectories are the unit of repetition. The
block jackknife leaves out one at a time (`intervals.jackknife`; the fitted offset is fitted anew
each time). With fewer than four trajectories each is cut into consecutive parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omm_mlff.checks.base import (
    REFERENCE_FORCES,
    SPOILS_SURFACE,
    Check,
    Evidence,
    absent,
    bounds,
    sampled,
)
from omm_mlff.schema import Criterion, Declaration, Fault, Measurement, Symptom, Where
from omm_mlff.statistics.intervals import Estimate, blocks_of_frames, jackknife
from omm_mlff.units import (
    ANGSTROM_PER_BOHR,
    ANGSTROM_PER_NM,
    EV_ANGSTROM_PER_KJMOL_NM,
    EV_PER_HARTREE,
    KJMOL_NM_PER_EV_ANGSTROM,
    KJMOL_PER_EV,
    KJMOL_PER_HARTREE,
    KJMOL_PER_KCALMOL,
    MEV_PER_KJMOL,
)

HOTTEST_K = 500.0
"""Frames above count as hot: reported, not judged."""

WEAK_FORCE = 0.05
"""eV/angstrom: below, a force has no direction worth comparing."""

ENERGY_RMSE = Declaration(
    "accuracy.energy_rmse",
    "sampled",
    "meV/atom",
    "a constant per system removed",
    "accuracy",
    failure="energies are off",
    use="the reference method's energy differences",
)
ENERGY_MAE = Declaration(
    "accuracy.energy_mae",
    "sampled",
    "meV/atom",
    "a constant per system removed",
    "accuracy",
    use="the reference method's energy differences",
)
ENERGY_OFFSET = Declaration(
    "accuracy.energy_offset",
    "info",
    "meV/atom",
    "the constant that was removed",
    "accuracy",
    use="the reference method's energy differences",
)
FORCE_RMSE = Declaration(
    "accuracy.force_rmse",
    "sampled",
    "eV/angstrom",
    "over Cartesian components",
    "accuracy",
    failure="forces are off",
    use=REFERENCE_FORCES,
)
FORCE_MAE = Declaration(
    "accuracy.force_mae",
    "sampled",
    "eV/angstrom",
    "over Cartesian components",
    "accuracy",
    use=REFERENCE_FORCES,
)
FORCE_R2 = Declaration(
    "accuracy.force_r2",
    "sampled",
    "1",
    "explained variance of the components",
    "accuracy",
    use=REFERENCE_FORCES,
)
FORCE_COSINE = Declaration(
    "accuracy.force_cosine",
    "sampled",
    "1",
    "mean cosine of the angle to the reference",
    "accuracy",
    use=REFERENCE_FORCES,
)
FORCE_ANGLE = Declaration(
    "accuracy.force_angle",
    "sampled",
    "degree",
    "mean angle to the reference force",
    "accuracy",
    use=REFERENCE_FORCES,
)
FORCE_RMSE_ELEMENT = Declaration(
    "accuracy.force_rmse_element",
    "sampled",
    "eV/angstrom",
    "the RMSE of one element",
    "accuracy",
    use=REFERENCE_FORCES,
)
FORCE_RMSE_HOT = Declaration(
    "accuracy.force_rmse_hot",
    "info",
    "eV/angstrom",
    "the RMSE on frames above 500 K",
    "accuracy",
    use=REFERENCE_FORCES,
)
FORCE_SCALE = Declaration(
    "accuracy.force_scale",
    "sampled",
    "1",
    "slope of the forces on the reference",
    "accuracy",
    failure="forces are out of proportion to the reference's",
    use=REFERENCE_FORCES,
)

Frames = NDArray[np.int64]

_WRONG_UNITS = {
    ("eV", "kJ/mol"): KJMOL_PER_EV,
    ("kcal/mol", "kJ/mol"): KJMOL_PER_KCALMOL,
    ("hartree", "kJ/mol"): KJMOL_PER_HARTREE,
    ("hartree", "eV"): EV_PER_HARTREE,
    ("eV", "kcal/mol"): KJMOL_PER_EV / KJMOL_PER_KCALMOL,
    ("angstrom", "nm"): ANGSTROM_PER_NM,
    ("bohr", "angstrom"): 1.0 / ANGSTROM_PER_BOHR,
    ("eV/angstrom", "kJ/mol/nm"): KJMOL_NM_PER_EV_ANGSTROM,
    ("kcal/mol/angstrom", "kJ/mol/nm"): KJMOL_PER_KCALMOL * ANGSTROM_PER_NM,
    ("hartree/bohr", "eV/angstrom"): EV_PER_HARTREE / ANGSTROM_PER_BOHR,
    ("hartree/bohr", "kJ/mol/nm"): EV_PER_HARTREE / ANGSTROM_PER_BOHR * KJMOL_NM_PER_EV_ANGSTROM,
}
_NEAR = 0.08
"""Of a factor, relative: forces of an inaccurate model; the nearest two factors are 18% apart."""


def take(evidence: Evidence) -> list[Measurement]:
    """Errors of energies and forces on the reference frames."""
    reference = evidence.reference
    energies, forces = evidence.live.evaluate(reference.positions)
    where = Where(system=evidence.system.name)
    cool = ~(reference.temperature_K > HOTTEST_K)  # one that is not known counts
    found = []
    rows = [row for row in CHECK.declares if row is not FORCE_RMSE_HOT]
    if cool.any():
        n_atoms = evidence.system.n_atoms
        energy_error = (energies - reference.energies)[cool] * (MEV_PER_KJMOL / n_atoms)
        force = forces[cool] * EV_ANGSTROM_PER_KJMOL_NM
        target = reference.forces[cool] * EV_ANGSTROM_PER_KJMOL_NM
        blocks = blocks_of_frames(reference.trajectory[cool])
        for row, statistic in {
            **_energy_statistics(energy_error),
            **_force_statistics(force, target),
        }.items():
            estimate = jackknife(statistic, blocks)
            cause = scale_in_words(estimate.value) if row is FORCE_SCALE else ""
            if reference.source and row in (ENERGY_RMSE, FORCE_RMSE):
                cause = _whose(evidence, float(energy_error.mean()))
            found.append(sampled(row, estimate, where, cause))
        for symbol, atoms in _elements(evidence).items():
            estimate = force_rmse((force - target)[:, atoms], blocks)
            spot = dataclasses.replace(where, element=symbol)
            found.append(sampled(FORCE_RMSE_ELEMENT, estimate, spot))
    else:
        reason = f"every reference frame is hotter than {HOTTEST_K:g} K"
        found += [absent(row, where, reason) for row in rows]
    if cool.all():
        reason = f"no reference frame is hotter than {HOTTEST_K:g} K"
        found.append(absent(FORCE_RMSE_HOT, where, reason))
    else:
        error = (forces - reference.forces)[~cool] * EV_ANGSTROM_PER_KJMOL_NM
        hot = force_rmse(error, blocks_of_frames(reference.trajectory[~cool]))
        found.append(sampled(FORCE_RMSE_HOT, hot, where))
    return found


def force_rmse(error: NDArray[np.float64], blocks: list[Frames]) -> Estimate:
    """Root mean square over Cartesian components, with its interval over blocks of frames.

    Parameters
    ----------
    error : shape (n_frames, n_atoms, 3)
    blocks : frame indices of each independent block
    """
    square = (error**2).mean(axis=(1, 2))
    return jackknife(lambda frames: float(np.sqrt(square[frames].mean())), blocks)


def _energy_statistics(
    error: NDArray[np.float64],
) -> dict[Declaration, Callable[[Frames], float]]:
    return {
        ENERGY_RMSE: lambda frames: float(error[frames].std()),
        ENERGY_MAE: lambda frames: float(np.abs(error[frames] - error[frames].mean()).mean()),
        ENERGY_OFFSET: lambda frames: float(error[frames].mean()),
    }


def _force_statistics(
    force: NDArray[np.float64], target: NDArray[np.float64]
) -> dict[Declaration, Callable[[Frames], float]]:
    error = force - target
    square = (error**2).mean(axis=(1, 2))
    absolute = np.abs(error).mean(axis=(1, 2))
    norms = np.linalg.norm(target, axis=2)
    strong = norms > WEAK_FORCE
    product = norms * np.linalg.norm(force, axis=2)
    dot = (force * target).sum(axis=2)
    # No force at all where there should be one: at a right angle to it.
    cosine = np.divide(dot, product, out=np.zeros_like(dot), where=product != 0.0)
    cosine = np.clip(cosine, -1.0, 1.0)
    angle = np.degrees(np.arccos(cosine))

    def r2(frames: Frames) -> float:
        variance = target[frames].var()
        return float(1.0 - square[frames].mean() / variance) if variance else float("nan")

    def scale(frames: Frames) -> float:
        whole = (target[frames] ** 2).sum()
        return float((force[frames] * target[frames]).sum() / whole) if whole else float("nan")

    def mean_of(values: NDArray[np.float64]) -> Callable[[Frames], float]:
        def mean(frames: Frames) -> float:
            chosen = values[frames][strong[frames]]
            return float(chosen.mean()) if len(chosen) else float("nan")

        return mean

    return {
        FORCE_RMSE: lambda frames: float(np.sqrt(square[frames].mean())),
        FORCE_MAE: lambda frames: float(absolute[frames].mean()),
        FORCE_R2: r2,
        FORCE_COSINE: mean_of(cosine),
        FORCE_ANGLE: mean_of(angle),
        FORCE_SCALE: scale,
    }


def scale_in_words(scale: float) -> str:
    """What a slope of forces on reference forces says of their units, one line."""
    text = f"forces are {scale:.4g} times the reference's"
    for (one, other), factor in _WRONG_UNITS.items():
        for exact, there, wanted in ((1.0 / factor, one, other), (factor, other, one)):
            if abs(scale / exact - 1.0) < _NEAR:
                return f"{text}, as if in {there} for {wanted} ({exact:.5g})"
    if abs(scale + 1.0) < _NEAR:
        return f"{text}: their sign is wrong"
    return text


def _whose(evidence: Evidence, offset: float) -> str:
    """Which labels of a user these are, in words: the report repeats what was said of them."""
    reference = evidence.reference
    said = {
        "yes": "held out, as the user says",
        "no": "the model was trained on them, as the user says",
        "unknown": "whether the model was trained on them, nobody has said",
    }[reference.held_out]
    if reference.method != Path(reference.source).name:  # which stands for it where none is named
        said = f"{reference.method}; {said}"
    constant = offset * evidence.system.n_atoms / 1000.0
    return (
        f"{reference.n_frames} frames of {reference.source} ({said}); a "
        f"constant of {constant:.6g} eV for this composition is removed from the energies"
    )


def _elements(evidence: Evidence) -> dict[str, NDArray[np.int64]]:
    symbols = [atom.element.symbol for atom in evidence.system.topology.atoms()]
    return {
        symbol: np.flatnonzero([other == symbol for other in symbols])
        for symbol in sorted(set(symbols))
    }


_CHEMICAL_FORCE = (
    "1 kcal/mol/angstrom, the usual measure of an accurate force (Chmiela et al., Nat. Commun. 9, "
    "3887 (2018)); reject at ten times that"
)
_CHEMICAL_ENERGY = (
    "chemical accuracy, 1 kcal/mol, for a molecule of 12 atoms (the median of the shipped "
    "systems); reject at 1 kcal/mol for every atom"
)
_WRONG_UNIT = (
    "the units that lie closest, bohr and angstrom, differ by 1.89; a distilled model is within "
    "some percent of 1 (0.983 to 1.005 in the shipped students)"
)
_TEN_PERCENT = "an error of 10% of the force: R2 = 1 - 0.1^2, angle about 0.1 rad"

CHECK = Check(
    name="accuracy",
    question="How far is it from its reference method?",
    formula="RMSE, MAE, R2, cosine and angle against the labels; block jackknife over trajectories",
    source="Kuensch, Ann. Stat. 17, 1217 (1989), for the intervals",
    declares=(
        ENERGY_RMSE,
        ENERGY_MAE,
        ENERGY_OFFSET,
        FORCE_RMSE,
        FORCE_MAE,
        FORCE_R2,
        FORCE_COSINE,
        FORCE_ANGLE,
        FORCE_SCALE,
        FORCE_RMSE_ELEMENT,
        FORCE_RMSE_HOT,
    ),
    criteria=(
        *bounds(FORCE_RMSE, _CHEMICAL_FORCE, high=(0.0434, 0.434)),
        *bounds(ENERGY_RMSE, _CHEMICAL_ENERGY, high=(3.6, 43.4)),
        *bounds(FORCE_SCALE, _WRONG_UNIT, low=(None, 0.55), high=(None, 1.8)),
        Criterion("accuracy.force_r2-info", FORCE_R2.name, 0.99, None, "1", "info", _TEN_PERCENT),
        Criterion(
            "accuracy.force_angle-info",
            FORCE_ANGLE.name,
            None,
            5.7,
            FORCE_ANGLE.unit,
            "info",
            _TEN_PERCENT,
        ),
    ),
    needs=frozenset({"evaluator", "reference"}),
    take=take,
    explained_by=(
        *SPOILS_SURFACE,
        Fault.ORIENTATION,
    ),
    symptom=Symptom.ACCURACY,
)
