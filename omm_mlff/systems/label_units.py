"""Units of labels: named by the user or known by the format, and tried on what nature allows.

Forces are tried by the stiffness of bonds to hydrogen, which is 17 to 55 eV/angstrom^2 whatever the
molecule (Si-H to O-H: Shimanouchi, Tables of Molecular Vibrational Frequencies, NSRDS-NBS 39
(1972)). Units that are confused differ by a factor of 10 and more. Energies are tried on the
forces: between two frames close to each other the energy falls by the mean force times the way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omm_mlff.errors import InputError
from omm_mlff.units import (
    ANGSTROM_PER_BOHR,
    KJMOL_NM_PER_EV_ANGSTROM,
    KJMOL_PER_EV,
    KJMOL_PER_HARTREE,
    KJMOL_PER_KCALMOL,
    NM_PER_ANGSTROM,
)

Float = NDArray[np.float64]

ENERGY_UNITS = {
    "kJ/mol": 1.0,
    "kcal/mol": KJMOL_PER_KCALMOL,
    "meV": KJMOL_PER_EV / 1000.0,
    "eV": KJMOL_PER_EV,
    "hartree": KJMOL_PER_HARTREE,
}
"""In kJ/mol."""

LENGTH_UNITS = {"nm": 1.0, "angstrom": NM_PER_ANGSTROM, "bohr": ANGSTROM_PER_BOHR * NM_PER_ANGSTROM}
"""In nm."""

_OTHER_NAMES = {
    "ev": "eV",
    "ha": "hartree",
    "eh": "hartree",
    "a": "angstrom",
    "å": "angstrom",
    "ang": "angstrom",
    "a0": "bohr",
    "nanometer": "nm",
}

_USUAL_FORCES = (
    ("eV", "angstrom"),
    ("kcal/mol", "angstrom"),
    ("kJ/mol", "angstrom"),
    ("kJ/mol", "nm"),
    ("hartree", "bohr"),
)

SOFTEST, STIFFEST = 10.0, 85.0
"""eV/angstrom^2: beyond, no bond to hydrogen is; by a regression on thermal frames."""

_MIN_POINTS = 8
_MIN_SPREAD_NM = 5.0e-4
_MAX_FRAMES = 60
_SAME_NM = 1.0e-4
_CLOSEST = 20
_TELLING = 0.85
"""Of energies and work over the closest pairs; below, the frames are too far apart to tell."""
_NEAR = 1.6
"""A slope within this factor of 1 is that of the same unit; frames far apart leave it uncertain."""


@dataclass(frozen=True)
class LabelUnits:
    """Units of energies, lengths and forces in a file, by name.

    `force` is an energy over a length, such as "eV/angstrom"; by default of the other two.
    """

    energy: str
    length: str
    force: str = ""

    @property
    def kjmol(self) -> float:
        """Of one unit of energy."""
        return ENERGY_UNITS[self.energy]

    @property
    def nm(self) -> float:
        """Of one unit of length."""
        return LENGTH_UNITS[self.length]

    @property
    def kjmol_nm(self) -> float:
        """Of one unit of force."""
        energy, _, length = (self.force or f"{self.energy}/{self.length}").rpartition("/")
        return ENERGY_UNITS[energy] / LENGTH_UNITS[length]

    def __str__(self) -> str:
        return f"{self.energy}, {self.length}, {self.force or f'{self.energy}/{self.length}'}"


def stated_units(
    known: LabelUnits | None, energy: str | None, length: str | None, force: str | None, what: str
) -> LabelUnits:
    """The units that a user names, and for the rest those that the format knows.

    Raises
    ------
    InputError : a unit that is not known, or one that neither says
    """
    energy = _name(energy, ENERGY_UNITS, "energy") if energy else None
    length = _name(length, LENGTH_UNITS, "length") if length else None
    if force:
        numerator, slash, denominator = force.rpartition("/")
        if not slash:
            raise InputError(
                f"unit of force {force!r}: wanted an energy over a length, such as eV/angstrom"
            )
        above = _name(numerator, ENERGY_UNITS, "energy")
        force = f"{above}/{_name(denominator, LENGTH_UNITS, 'length')}"
    if known is None and not (energy and length):
        raise InputError(
            f"{what} does not say its units; give --energy-unit and --length-unit "
            f"({', '.join(ENERGY_UNITS)}; {', '.join(LENGTH_UNITS)})"
        )
    implied = known.force if known is not None and not (energy or length) else ""
    return LabelUnits(
        energy or (known.energy if known else ""),
        length or (known.length if known else ""),
        force or implied,
    )


def _name(said: str, units: dict[str, float], what: str) -> str:
    name = said.strip()
    name = _OTHER_NAMES.get(name.lower(), name)
    for unit in units:
        if name.lower() == unit.lower():
            return unit
    raise InputError(f"unknown unit of {what} {said!r}; known: {', '.join(units)}")


def hydrogen_stiffness(
    positions: Float, forces: Float, pairs: list[tuple[int, int]]
) -> float | None:
    """Median over bonds of -d(force on the hydrogen along the bond)/d(length), eV/angstrom^2.

    Parameters
    ----------
    positions : shape (n_frames, n_atoms, 3), nm
    forces : kJ/mol/nm
    pairs : other atom, hydrogen

    Returns
    -------
    None where the frames do not tell: too few, or bonds that do not move
    """
    found = []
    for other, hydrogen in pairs:
        r = positions[:, hydrogen] - positions[:, other]
        length = np.linalg.norm(r, axis=1)
        along = (forces[:, hydrogen] * r).sum(axis=1) / length
        if len(length) < _MIN_POINTS or length.std() < _MIN_SPREAD_NM:
            continue
        found.append(-float(np.polyfit(length, along, 1)[0]))
    if not found:
        return None
    return float(np.median(found)) / (KJMOL_NM_PER_EV_ANGSTROM / NM_PER_ANGSTROM)


def forces_look_like(stiffness: float, declared: LabelUnits) -> str | None:
    """What unit the forces are in by a stiffness; None where it is that of a bond to hydrogen."""
    if stiffness <= 0.0 or not math.isfinite(stiffness):
        return "the other sign: they push bonds to hydrogen further from rest (gradients, perhaps)"
    if SOFTEST <= stiffness <= STIFFEST:
        return None
    typical = math.sqrt(SOFTEST * STIFFEST)
    best = min(
        (abs(math.log(stiffness * LabelUnits(*unit).kjmol_nm / declared.kjmol_nm / typical)), unit)
        for unit in _USUAL_FORCES
    )
    if best[0] > math.log(STIFFEST / SOFTEST) / 2.0:
        return "no unit that is known here"
    return "/".join(best[1])


def energy_slope(positions: Float, energies: Float, forces: Float) -> float | None:
    """Slope of energy differences on the work of the forces, over pairs of frames that are close.

    Parameters
    ----------
    positions : shape (n_frames, n_atoms, 3), nm
    energies : shape (n_frames,), kJ/mol
    forces : kJ/mol/nm

    Returns
    -------
    1 where energies and forces are of one unit; None where frames are too few or too far apart
    """
    n = min(len(energies), _MAX_FRAMES)
    if n < _MIN_POINTS:
        return None
    chosen = np.linspace(0, len(energies) - 1, n).round().astype(np.int64)
    x = positions[chosen] - positions[chosen].mean(axis=1, keepdims=True)
    energy, force = energies[chosen], forces[chosen]
    pairs = []
    for i in range(n):
        for j in range(i + 1, n):
            turn = _turn(x[j], x[i])
            way = x[j] @ turn - x[i]
            work = -0.5 * float(((force[i] + force[j] @ turn) * way).sum())
            if np.abs(way).max() > _SAME_NM:
                pairs.append((float((way**2).sum()), work, float(energy[j] - energy[i])))
    if len(pairs) < _MIN_POINTS:
        return None
    closest = np.array(sorted(pairs)[:_CLOSEST])
    product = float((closest[:, 1] * closest[:, 2]).sum())
    squares = (closest[:, 1:] ** 2).sum(axis=0)
    if abs(product) < _TELLING * math.sqrt(float(squares.prod())) or not squares[0]:
        return None
    return product / float(squares[0])


def _turn(moved: Float, still: Float) -> Float:
    """The rotation that lays one centred structure on another: moved @ turn is nearest to still."""
    u, _, vt = np.linalg.svd(moved.T @ still)
    if np.linalg.det(u @ vt) < 0.0:
        u[:, -1] *= -1.0
    return np.asarray(u @ vt)


def energies_look_like(slope: float, declared: LabelUnits) -> str | None:
    """What unit the energies are in beside the forces; None where it is the declared one."""
    if 1.0 / _NEAR < slope < _NEAR:
        return None
    if slope <= 0.0:
        return "the other sign"
    best = min(
        (abs(math.log(slope * per_unit / declared.kjmol)), unit)
        for unit, per_unit in ENERGY_UNITS.items()
    )
    return best[1] if best[0] < math.log(_NEAR) else "no unit that is known here"
