"""What is wrong with each known-bad potential, from gross to subtle, and what should be named.

Adding a kind is one more row of `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from omm_mlff.proving import faults
from omm_mlff.proving.field import (
    LENNARD_JONES,
    PairEngine,
    bond_lengths,
    pairs_of,
    sound_terms,
)
from omm_mlff.proving.grounds import (
    BOX,
    CLUSTER,
    FOUR,
    LONG_METHANOL,
    METHANOL,
    SLOW_METHANOL,
    Ground,
)
from omm_mlff.proving.potential import ProvingPotential
from omm_mlff.proving.terms import Float, LennardJones
from omm_mlff.schema import MolecularSystem
from omm_mlff.units import (
    KJMOL_NM_PER_EV_ANGSTROM,
    KJMOL_PER_EV,
    KJMOL_PER_HARTREE,
    KJMOL_PER_KCALMOL,
    MEV_PER_KJMOL,
    NM_PER_ANGSTROM,
)

_NEON = 10
_OXYGEN_HYDROGEN = (1, 8)
_STIFFNESS = 3.0e5  # kJ/mol/nm^2, of a bond: the curl's dial is a fraction of it
_NOISE_WAVELENGTH = 0.001 * NM_PER_ANGSTROM
_HOLE_WIDTH_NM = 0.02
_KILO = 1024


@dataclass(frozen=True)
class Kind:
    """One way of being wrong.

    Attributes
    ----------
    name : such as "curl"
    what : one line for a person
    cause : the slug that the diagnosis should name
    unit : of the dial
    strengths : from gross to subtle
    ground : where it is tried
    fault : (system, n_copies, strength) to the faulty engine
    dtype : as the card claims it
    has_memory : its answers depend on earlier ones
    """

    name: str
    what: str
    cause: str
    unit: str
    strengths: tuple[float, ...]
    ground: Ground
    fault: Callable[[MolecularSystem, int, float], nn.Module]
    dtype: str = "float64"
    has_memory: bool = False

    def potential(self, strength: float) -> ProvingPotential:
        """The potential at one setting of the dial."""

        def build(system: MolecularSystem, n_copies: int) -> nn.Module:
            return self.fault(system, n_copies, strength)

        return ProvingPotential(
            f"{self.name} {strength:g}",
            build,
            cutoff_nm=self.ground.cutoff_nm,
            knows_atoms_by=self.ground.knows_atoms_by,
            dtype=self.dtype,
            has_memory=self.has_memory,
        )


def _terms(ground: Ground, system: MolecularSystem) -> list[nn.Module]:
    return sound_terms(system, ground.cutoff_nm, ground.harmonic)


def _with_term(system: MolecularSystem, n_copies: int, term: nn.Module) -> nn.Module:
    return PairEngine(system, n_copies, [*_terms(METHANOL, system), term])


def _hydroxyl(system: MolecularSystem, beyond: float) -> Float:
    """Length of every O-H bond plus so much, nm; infinite for the other pairs."""
    pairs = pairs_of(system)
    kinds = np.sort(np.stack((system.species[pairs.i], system.species[pairs.j]), axis=1), axis=1)
    chosen = (pairs.apart == 1) & (kinds == _OXYGEN_HYDROGEN).all(axis=1)
    return np.where(chosen, bond_lengths(system) + beyond, np.inf)


def _energy_unit(system: MolecularSystem, n_copies: int, strength: float) -> nn.Module:
    return faults.Scaled(METHANOL.engine(system, n_copies), energy=1.0 / strength)


def _forces_scaled(system: MolecularSystem, n_copies: int, strength: float) -> nn.Module:
    return faults.Scaled(METHANOL.engine(system, n_copies), force=1.0 + strength)


def _curl(system: MolecularSystem, n_copies: int, strength: float) -> nn.Module:
    engine = METHANOL.engine(system, n_copies)
    return faults.AlongBonds(engine, system, n_copies, strength * _STIFFNESS)


def _force_noise(system: MolecularSystem, n_copies: int, strength: float) -> nn.Module:
    size = strength * KJMOL_NM_PER_EV_ANGSTROM
    engine = METHANOL.engine(system, n_copies)
    return faults.AlongBonds(engine, system, n_copies, size, _NOISE_WAVELENGTH)


def _stale_list(system: MolecularSystem, n_copies: int, strength: float) -> nn.Module:
    cutoff = CLUSTER.cutoff_nm
    terms = _terms(CLUSTER, system)
    stale: list[nn.Module] = [faults.StaleList(term, cutoff, round(strength)) for term in terms]
    return PairEngine(system, n_copies, stale)


def _hard_cutoff(system: MolecularSystem, n_copies: int, strength: float) -> nn.Module:
    terms: list[nn.Module] = []
    for term in _terms(CLUSTER, system):
        assert isinstance(term, LennardJones)
        cutoff = strength * float(term.sigma.max())
        terms.append(LennardJones(term.epsilon.numpy(), term.sigma.numpy(), cutoff, cutoff))
    return PairEngine(system, n_copies, terms)


def _rotation(system: MolecularSystem, n_copies: int, strength: float) -> nn.Module:
    size = strength / MEV_PER_KJMOL
    return faults.Oriented(METHANOL.engine(system, n_copies), system, n_copies, size)


def _atom_order(system: MolecularSystem, n_copies: int, strength: float) -> nn.Module:
    # In methanol (C0 O1 H2 H3 H4 H5): carbon for oxygen, or a hydrogen of one for that of the other
    first, second = (0, 1) if strength > 1.0 else (4, 5)
    order = np.arange(system.n_atoms)
    n_atoms = METHANOL.system().n_atoms
    for start in range(0, system.n_atoms - n_atoms + 1, n_atoms):
        order[[start + first, start + second]] = [start + second, start + first]
    return faults.Reordered(METHANOL.engine(system, n_copies), n_copies, order.tolist())


def _few_digits(system: MolecularSystem, n_copies: int, strength: float) -> nn.Module:
    rounded: list[nn.Module] = [
        faults.Rounded(term, round(strength)) for term in _terms(METHANOL, system)
    ]
    return PairEngine(system, n_copies, rounded)


def _offset(system: MolecularSystem, n_copies: int, strength: float) -> nn.Module:
    return faults.Offset(METHANOL.engine(system, n_copies), -strength)


def _no_repulsion(system: MolecularSystem, n_copies: int, strength: float) -> nn.Module:
    cap = strength * KJMOL_PER_EV
    capped: list[nn.Module] = [faults.Capped(term, cap) for term in _terms(FOUR, system)]
    return PairEngine(system, n_copies, capped)


def _hole_centre(rim: float) -> float:
    """Where the hole has to be for its rim to be so high (kJ/mol), nm; by bisection."""
    epsilon, sigma = (np.array([value]) for value in LENNARD_JONES[_NEON])
    wall = LennardJones(epsilon, sigma, FOUR.cutoff_nm, FOUR.cutoff_nm)
    low, high = 0.5 * _HOLE_WIDTH_NM, float(sigma[0])
    for _ in range(40):
        centre = 0.5 * (low + high)
        hole = faults.Hole(wall, KJMOL_PER_EV, centre, _HOLE_WIDTH_NM, np.ones(1))
        d = torch.linspace(centre, centre + 3.0 * _HOLE_WIDTH_NM, 301, dtype=torch.float64)
        if float(hole(d)[0].max()) > rim:
            low = centre
        else:
            high = centre
    return centre


def _hole(system: MolecularSystem, n_copies: int, strength: float) -> nn.Module:
    centre = _hole_centre(strength * KJMOL_PER_EV)
    everywhere = np.ones(len(pairs_of(system).i))
    holes: list[nn.Module] = [
        faults.Hole(term, KJMOL_PER_EV, centre, _HOLE_WIDTH_NM, everywhere)
        for term in _terms(FOUR, system)
    ]
    return PairEngine(system, n_copies, holes)


def _cone(system: MolecularSystem, n_copies: int, strength: float) -> nn.Module:
    # The force turns by twice the slope; the tip stands a little off the minimum.
    tip = _hydroxyl(system, 0.01 * NM_PER_ANGSTROM)
    slope = np.where(np.isfinite(tip), 0.5 * strength * KJMOL_NM_PER_EV_ANGSTROM, 0.0)
    cone = faults.Cone(slope, np.where(np.isfinite(tip), tip, 0.0))
    return _with_term(system, n_copies, cone)


def _nondeterministic(system: MolecularSystem, n_copies: int, strength: float) -> nn.Module:
    size = strength * KJMOL_NM_PER_EV_ANGSTROM
    return faults.Random(METHANOL.engine(system, n_copies), n_copies, size)


def _jump(system: MolecularSystem, n_copies: int, strength: float) -> nn.Module:
    edge = _hydroxyl(system, 0.03 * NM_PER_ANGSTROM)
    return _with_term(system, n_copies, faults.Jump(strength / MEV_PER_KJMOL, edge))


def _nan(system: MolecularSystem, n_copies: int, strength: float) -> nn.Module:
    return _with_term(
        system, n_copies, faults.NotANumber(_hydroxyl(system, strength * NM_PER_ANGSTROM))
    )


def _raises(system: MolecularSystem, n_copies: int, strength: float) -> nn.Module:
    edge = _hydroxyl(system, strength * NM_PER_ANGSTROM)
    return _with_term(system, n_copies, faults.Raises(edge))


def _box(system: MolecularSystem, n_copies: int, strength: float) -> nn.Module:
    image = faults.WrongImage(1.0 + 0.01 * strength)
    return PairEngine(system, n_copies, _terms(BOX, system), image)


def _leak(system: MolecularSystem, n_copies: int, strength: float) -> nn.Module:
    burden = faults.Burden(bytes_per_call=round(strength * _KILO))
    return faults.Burdened(METHANOL.engine(system, n_copies), burden)


def _slowing(system: MolecularSystem, n_copies: int, strength: float) -> nn.Module:
    burden = faults.Burden(seconds_per_call=strength * 1.0e-9)
    return faults.Burdened(METHANOL.engine(system, n_copies), burden)


KINDS: tuple[Kind, ...] = (
    Kind(
        "energy-unit",
        "the energy is in hartree, eV or kcal/mol, the forces are in kJ/mol/nm",
        "units",
        "kJ/mol in its unit",
        (KJMOL_PER_HARTREE, KJMOL_PER_EV, KJMOL_PER_KCALMOL),
        METHANOL,
        _energy_unit,
    ),
    Kind(
        "forces-scaled",
        "the forces are a multiple of the gradient",
        "force-scale",
        "relative",
        (0.5, 0.1, 0.01, 0.005),
        METHANOL,
        _forces_scaled,
    ),
    Kind(
        "hidden-scale",
        "the forces are a little larger than the gradient",
        "force-scale",
        "relative",
        (1.0e-3, 5.0e-4, 2.0e-4),
        METHANOL,
        _forces_scaled,
    ),
    Kind(
        "curl",
        "the forces have a part that is the gradient of nothing",
        "curl",
        "of a bond's stiffness",
        (0.1, 0.01, 1.0e-3, 1.0e-4),
        METHANOL,
        _curl,
    ),
    Kind(
        "stale-list",
        "the list of neighbours is made anew only every so many calls",
        "history",
        "calls between two lists",
        (20.0, 10.0, 5.0, 2.0),
        CLUSTER,
        _stale_list,
        has_memory=True,
    ),
    Kind(
        "hard-cutoff",
        "argon is cut off as it stands",
        "cutoff",
        "sigma",
        (1.5, 2.0, 2.5, 4.0),
        CLUSTER,
        _hard_cutoff,
    ),
    Kind(
        "rotation",
        "bonds along x have another energy",
        "orientation",
        "meV for a bond",
        (100.0, 1.0, 0.01, 1.0e-4),
        METHANOL,
        _rotation,
    ),
    Kind(
        "atom-order",
        "two atoms are exchanged: C and O (2), or hydrogens of C and of O (1)",
        "atom-order",
        "1",
        (2.0, 1.0),
        METHANOL,
        _atom_order,
    ),
    Kind(
        "half-precision",
        "distances, energies and forces of pairs are kept with few binary digits",
        "rounding",
        "digits (bfloat16 8, float16 11, float32 24)",
        (8.0, 11.0, 15.0, 19.0),
        METHANOL,
        _few_digits,
        dtype="float32",
    ),
    Kind(
        "energy-offset",
        "the total energy is a float32 with a huge constant in it",
        "energy-offset",
        "kJ/mol",
        (2.0e7, 1.0e6, 1.0e5, 1.0e4),
        METHANOL,
        _offset,
        dtype="float32",
    ),
    Kind(
        "no-repulsion",
        "the repulsion saturates",
        "no-repulsion",
        "eV",
        (0.01, 0.1, 0.5, 1.0),
        FOUR,
        _no_repulsion,
    ),
    Kind(
        "hole",
        "a well of 1 eV inside the repulsive wall, behind a rim",
        "hole",
        "eV, height of the rim",
        (0.2, 0.5, 0.8, 1.5),
        FOUR,
        _hole,
    ),
    Kind(
        "cone",
        "a norm with a tip: the force on O-H turns over where the bond passes a length",
        "kink",
        "eV/angstrom",
        (1.0, 0.1, 0.01, 1.0e-3),
        METHANOL,
        _cone,
    ),
    Kind(
        "nondeterministic",
        "the forces carry fresh noise in every call",
        "nondeterminism",
        "eV/angstrom",
        (0.1, 1.0e-2, 1.0e-3, 1.0e-4),
        METHANOL,
        _nondeterministic,
    ),
    Kind(
        "jump",
        "the energy steps where O-H is 0.03 angstrom too long",
        "jump",
        "meV",
        (100.0, 10.0, 1.0, 0.1),
        METHANOL,
        _jump,
    ),
    Kind(
        "nan",
        "NaN where O-H is too long by this much",
        "nan",
        "angstrom",
        (0.03, 0.1, 0.15, 0.25),
        METHANOL,
        _nan,
    ),
    Kind(
        "raises",
        "an error instead of an answer where O-H is too long by this much",
        "raises",
        "angstrom",
        (0.03, 0.1, 0.15, 0.25),
        METHANOL,
        _raises,
    ),
    Kind(
        "force-noise",
        "the forces carry a frozen noise with a period of 0.001 angstrom",
        "force-noise",
        "eV/angstrom",
        (0.1, 1.0e-2, 1.0e-3, 1.0e-4),
        METHANOL,
        _force_noise,
    ),
    Kind(
        "box",
        "images are looked for in a box that is too long",
        "box",
        "% (100: no image is found)",
        (100.0, 5.0, 1.0, 0.1),
        BOX,
        _box,
    ),
    Kind(
        "memory-leak",
        "every call keeps some memory",
        "memory-leak",
        "KiB a call",
        (10.0, 1.0, 0.1),
        LONG_METHANOL,
        _leak,
    ),
    Kind(
        "slowing-down",
        "every call takes longer than the one before",
        "slowing-down",
        "ns more in every call",
        (1000.0, 100.0, 10.0),
        SLOW_METHANOL,
        _slowing,
    ),
)


def kind_names() -> list[str]:
    """Of every kind, in order."""
    return [kind.name for kind in KINDS]
