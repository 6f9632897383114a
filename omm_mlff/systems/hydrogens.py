"""Finds hydrogens that a structure lacks.

The question is asked the other way round: what is the least number of hydrogens with which the
structure has a closed-shell Lewis structure? Every atom takes one of the valences of its element
(with a formal charge where that is usual), bonds may be double or triple where they are short
enough and the angle at a carbon allows it, and the charges add up. That is a small integer
program; atoms whose bonds already satisfy them, which is nearly all, never enter it.

Valence alone would not do: a benzene or cyclohexane ring stripped of its hydrogens is a ring of
cumulated double bonds to it. Lengths and angles tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from omm_mlff.errors import StructureError
from omm_mlff.units import ANGSTROM_PER_NM

Float = NDArray[np.float64]

REMEDY = (
    "add them with pdbfixer or openmm.app.Modeller.addHydrogens, or export the file with hydrogens"
)
_ELSE_SDF = (
    "; if none is missing, give an SDF file, whose bond orders settle it, or --spin for a radical"
)

# Covalent radii of double and triple bonds, angstrom: Pyykkö & Atsumi, Chem. Eur. J. 15, 12770
# (2009). A bond up to the margin longer than their sum may still be of that order: aromatic bonds
# and thermal motion need it; ethane (1.53), methanol (1.42), hydrazine (1.45) and hydrogen
# peroxide (1.46) lie beyond.
_DOUBLE = {5: 0.78, 6: 0.67, 7: 0.60, 8: 0.57, 14: 1.07, 15: 1.02, 16: 0.94, 33: 1.14, 34: 1.07}
_TRIPLE = {5: 0.73, 6: 0.60, 7: 0.54, 8: 0.53, 14: 1.02, 15: 0.94, 16: 0.95}
_DOUBLE_MARGIN = 0.15
# Tighter, so that phenols and anilines that lack hydrogens do not pass for quinones; wider for
# ozone, far from any peroxide.
_DOUBLE_MARGINS = {(6, 7): 0.10, (6, 8): 0.07, (8, 8): 0.20}
_TRIPLE_MARGIN = 0.07

_LINEAR_DEGREES = 150.0
"""A carbon with two neighbours that is bent more than this has a third one."""

_NEUTRAL: dict[int, tuple[int, ...]] = {
    1: (1,), 2: (0,), 5: (3,), 6: (4,), 7: (3,), 8: (2,), 9: (1,), 10: (0,), 14: (4,),
    15: (3, 5), 16: (2, 4, 6), 17: (1,), 18: (0,), 33: (3, 5), 34: (2, 4, 6), 35: (1,),
    36: (0,), 53: (1,), 54: (0,),
}  # fmt: skip
_HALOGENS = (9, 17, 35, 53)
_CATIONS = {3: 1, 11: 1, 19: 1, 37: 1, 55: 1, 4: 2, 12: 2, 20: 2, 38: 2, 56: 2, 30: 2}

_HYDROGEN_COST = 1000.0  # far above any number of charges: they only decide between equals
_TIME_LIMIT_S = 20.0


@dataclass(frozen=True)
class _State:
    charge: int
    valence: int


@dataclass
class _Program:
    """Rows of `low <= A x <= high` over non-negative integers."""

    rows: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)

    def variable(self, cost: float, upper: float) -> int:
        self.cost.append(cost)
        self.upper.append(upper)
        return len(self.cost) - 1

    def constrain(self, terms: list[tuple[int, float]], low: float, high: float) -> None:
        for column, value in terms:
            self.rows.append(len(self.low))
            self.columns.append(column)
            self.values.append(value)
        self.low.append(low)
        self.high.append(high)

    def solve(self) -> NDArray[np.int64] | None:
        """The best values found, or None where there are none."""
        matrix = coo_array(
            (self.values, (self.rows, self.columns)), shape=(len(self.low), len(self.cost))
        )
        result = milp(
            np.array(self.cost),
            integrality=np.ones(len(self.cost), dtype=np.int64),
            bounds=Bounds(0.0, np.array(self.upper)),
            constraints=LinearConstraint(matrix.tocsr(), np.array(self.low), np.array(self.high)),
            options={"time_limit": _TIME_LIMIT_S},
        )
        return None if result.x is None else np.round(result.x).astype(np.int64)


def require_hydrogens(
    source: str,
    labels: list[str],
    species: NDArray[np.int64],
    positions: Float,
    bonds: set[tuple[int, int]],
    *,
    charge: int | None = None,
    biopolymer: NDArray[np.bool_] | None = None,
    box_vectors: Float | None = None,
    n_unpaired: int = 0,
) -> int:
    """The total charge of a structure that lacks no hydrogen.

    Parameters
    ----------
    labels : a name for every atom, for the message
    species : shape (n_atoms,), atomic numbers
    positions : shape (n_atoms, 3), nm
    bonds : pairs of atom indices
    charge : as the file states it; None where it states none
    biopolymer : shape (n_atoms,), atoms of residues in which acids and bases may be charged: what
        charge they have follows from their hydrogens, where none is stated
    box_vectors : shape (3, 3), nm
    n_unpaired : electrons of a radical that have no partner: it may lack as many hydrogens

    Raises
    ------
    StructureError : hydrogens are missing, or the structure is an ion whose charge is not stated
    """
    geometry = _Geometry(species, positions, bonds, box_vectors)
    total, missing = _least_hydrogens(geometry, charge or 0, biopolymer, stated=charge is not None)
    if missing is not None and sum(missing.values()) <= n_unpaired:
        return total
    if charge is None:
        everything = np.ones(len(species), dtype=bool)
        implied, without = _least_hydrogens(geometry, 0, everything, stated=False)
        if without is not None and not without and (missing is None or len(missing) > 0):
            remedy = (
                f"as it stands it would be an ion of charge {implied:+d}: if it is one, state "
                f"formal charges in an SDF or PDB file, or give --charge {implied}; if "
                f"hydrogens are missing, {REMEDY}"
            )
            if missing is None:
                raise StructureError(f"{source}: no neutral molecule has these atoms; {remedy}")
            raise StructureError(describe_missing(source, labels, missing, remedy))
    if missing is None:
        raise StructureError(
            f"{source}: no closed-shell molecule of charge {charge or 0:+d} has these atoms; "
            "check for missing hydrogens, wrong bonds, or a charge that is not stated (--charge)"
        )
    raise StructureError(describe_missing(source, labels, missing, REMEDY + _ELSE_SDF))


def describe_missing(
    source: str, labels: list[str], missing: dict[int, int], remedy: str = REMEDY
) -> str:
    """One line that says how many hydrogens are missing, and where.

    Parameters
    ----------
    missing : atom index -> hydrogens that it lacks
    """
    total = sum(missing.values())
    named = [f"{missing[index]} at {labels[index]}" for index in sorted(missing)[:4]]
    more = len(missing) - len(named)
    where = ", ".join(named) + (f" and at {more} other atoms" if more > 0 else "")
    noun = "hydrogen is" if total == 1 else "hydrogens are"
    return f"{source}: at least {total} {noun} missing ({where}); {remedy}"


class _Geometry:
    """Neighbours, lengths, angles."""

    def __init__(
        self,
        species: NDArray[np.int64],
        positions: Float,
        bonds: set[tuple[int, int]],
        box_vectors: Float | None,
    ) -> None:
        self.species = species
        self.bonds = sorted(bonds)
        self.neighbours: list[list[int]] = [[] for _ in species]
        self._positions = positions * ANGSTROM_PER_NM
        self._box = None if box_vectors is None else box_vectors * ANGSTROM_PER_NM
        for i, j in self.bonds:
            self.neighbours[i].append(j)
            self.neighbours[j].append(i)

    def degree(self, atom: int) -> int:
        return len(self.neighbours[atom])

    def vector(self, i: int, j: int) -> Float:
        """From i to the nearest image of j, angstrom."""
        r_ij: Float = self._positions[j] - self._positions[i]
        if self._box is not None:
            for axis in (2, 1, 0):
                r_ij = r_ij - self._box[axis] * np.round(r_ij[axis] / self._box[axis, axis])
        return r_ij

    def length(self, i: int, j: int) -> float:
        return float(np.linalg.norm(self.vector(i, j)))

    def angle(self, atom: int) -> float:
        """At an atom with two neighbours, degrees."""
        a, b = (self.vector(atom, other) for other in self.neighbours[atom])
        cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))

    def largest_order(self, i: int, j: int) -> int:
        z_i, z_j = int(self.species[i]), int(self.species[j])
        length = self.length(i, j)
        margin = _DOUBLE_MARGINS.get((min(z_i, z_j), max(z_i, z_j)), _DOUBLE_MARGIN)
        never = -np.inf
        if length <= _TRIPLE.get(z_i, never) + _TRIPLE.get(z_j, never) + _TRIPLE_MARGIN:
            return 3
        if length <= _DOUBLE.get(z_i, never) + _DOUBLE.get(z_j, never) + margin:
            return 2
        return 1

    def states(self, atom: int) -> list[_State]:
        """The valences that the atom may take; none where they are not known (metals)."""
        z, near = int(self.species[atom]), self.neighbours[atom]
        around = [int(self.species[other]) for other in near]
        n = len(near)
        if z in _CATIONS:
            return [_State(_CATIONS[z], 0)] if n == 0 else []
        if z not in _NEUTRAL:
            return []
        states = [_State(0, valence) for valence in _NEUTRAL[z]]
        if z in _HALOGENS and n == 0:
            states.append(_State(-1, 0))
        if z in _HALOGENS[1:] and n > 1:
            states += [_State(0, valence) for valence in (3, 5, 7)]
        if z in (7, 15):
            states.append(_State(1, 4))
        if z == 7 and n == 1 and around == [7]:  # the end of an azide or of diazomethane
            states.append(_State(-1, 2))
        if z in (8, 16) and n == 1:
            states.append(_State(-1, 1))
        if z == 8 and (n == 3 or (n == 2 and 8 in around) or (n == 1 and around == [6])):
            states.append(_State(1, 3))  # oxonium, ozone, carbon monoxide
        if z == 16 and n == 3:
            states.append(_State(1, 3))
        if z == 5 and n == 4:
            states.append(_State(-1, 4))
        if z == 6 and n == 1 and around[0] in (7, 8):  # isocyanides, carbon monoxide
            states.append(_State(-1, 3))
        return [state for state in states if state.valence >= n]

    def titrates(self, atom: int) -> bool:
        """Whether the atom's charge is a matter of pH: acids, ammonium, guanidine, imidazole, ions.

        Any other charge in a biopolymer would stand for a hydrogen that is missing.
        """
        z, near = int(self.species[atom]), self.neighbours[atom]
        if not near:
            return True
        if z == 8 and len(near) == 1:
            terminal = [
                other
                for other in self.neighbours[near[0]]
                if self.species[other] == 8 and self.degree(other) == 1
            ]
            return int(self.species[near[0]]) in (15, 16) or len(terminal) > 1
        if z == 7 and len(near) == 3:
            return any(
                sum(self.species[third] == 7 for third in self.neighbours[other]) > 1
                for other in near
                if self.species[other] == 6
            )
        return z == 7 and len(near) == 4


def _least_hydrogens(
    geometry: _Geometry, charge: int, biopolymer: NDArray[np.bool_] | None, *, stated: bool
) -> tuple[int, dict[int, int] | None]:
    """The charge, then hydrogens missing by atom; None where no number of them would do."""
    free = np.zeros(len(geometry.species), dtype=bool)
    if biopolymer is not None and not stated:
        free = biopolymer
    possible = [geometry.states(atom) for atom in range(len(geometry.species))]
    unjudged = not all(possible)
    unsatisfied = [
        atom
        for atom, found in enumerate(possible)
        if found and _State(0, geometry.degree(atom)) not in found
    ]
    # A neighbour that is satisfied may take more: S in a sulfone, N in a nitro group, O in ozone.
    active = set(unsatisfied).union(*(geometry.neighbours[atom] for atom in unsatisfied))
    states = {
        atom: [
            state
            for state in possible[atom]
            if not (free[atom] and state.charge and not geometry.titrates(atom))
        ]
        for atom in sorted(active)
        if possible[atom]
    }
    # What is bound to an atom of unknown valence (a metal) is not judged either.
    for atom in list(states):
        if not all(possible[other] for other in geometry.neighbours[atom]):
            del states[atom]
    if not states:
        return charge, {} if charge == 0 or unjudged else None

    program = _Program()
    extra: dict[int, list[int]] = {atom: [] for atom in states}
    for i, j in geometry.bonds:
        if i in states and j in states:
            order = geometry.largest_order(i, j)
            if order > 1:
                column = program.variable(0.0, order - 1.0)
                extra[i].append(column)
                extra[j].append(column)
    hydrogens: dict[int, int] = {}
    charges_free: list[tuple[int, float]] = []
    charges_fixed: list[tuple[int, float]] = []
    anionic: dict[int, list[int]] = {}
    for atom, allowed in states.items():
        chosen = [program.variable(float(abs(state.charge)), 1.0) for state in allowed]
        hydrogens[atom] = program.variable(_HYDROGEN_COST, 4.0)
        program.constrain([(column, 1.0) for column in chosen], 1.0, 1.0)
        terms = [(column, 1.0) for column in extra[atom]]
        terms.append((hydrogens[atom], 1.0))
        terms += [
            (column, -float(state.valence)) for column, state in zip(chosen, allowed, strict=True)
        ]
        program.constrain(terms, -float(geometry.degree(atom)), -float(geometry.degree(atom)))
        if (
            geometry.species[atom] == 6
            and geometry.degree(atom) == 2
            and geometry.angle(atom) < _LINEAR_DEGREES
        ):
            program.constrain([(column, 1.0) for column in extra[atom]], 0.0, 1.0)
        charged = [
            (column, float(state.charge))
            for column, state in zip(chosen, allowed, strict=True)
            if state.charge
        ]
        (charges_free if free[atom] else charges_fixed).extend(charged)
        if geometry.species[atom] == 8 and geometry.degree(atom) == 1:
            anionic.setdefault(geometry.neighbours[atom][0], []).extend(
                column for column, value in charged if value < 0.0
            )
    for center, oxygens in anionic.items():
        # An acid's carbon keeps one C=O: else an enediolate would excuse a hydrogen beside it.
        if geometry.species[center] == 6 and len(oxygens) > 1:
            program.constrain([(column, 1.0) for column in oxygens], 0.0, len(oxygens) - 1.0)
    if not unjudged:
        program.constrain(charges_fixed, float(charge), float(charge))
    solution = program.solve()
    if solution is None:
        return charge, None
    missing = {
        atom: int(solution[column]) for atom, column in hydrogens.items() if solution[column]
    }
    implied = sum(round(value) * int(solution[column]) for column, value in charges_free)
    return charge + implied, missing
