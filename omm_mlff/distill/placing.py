"""Places molecules: conformers turned, pairs in contact, clusters as dense as a liquid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omm_mlff.distill.library import Embedded, embed
from omm_mlff.distill.molecules import SINGLE, random_rotation
from omm_mlff.distill.sample import _facing, _rotation, _side_of

Float = NDArray[np.float64]
Int = NDArray[np.int64]

MAIN = {
    "water": (SINGLE["water"], 30),
    "methane": (SINGLE["methane"], 30),
    "ethanol": (SINGLE["ethanol"], 60),
    "benzene": ("c1ccccc1", 40),
    "alanine": (SINGLE["alanine"], 100),
    "alanine-dipeptide": (SINGLE["alanine-dipeptide"], 140),
}
"""What students are asked to serve first: SMILES, and trajectories a pass."""

MONOMERS = [
    "O",
    "C",
    "N",
    "CO",
    "CCO",
    "C=O",
    "OC=O",
    "NC=O",
    "CC#N",
    "C=C",
    "C#C",
    "CC",
    "c1ccccc1",
    "c1cnccn1",
    "c1cc[nH]c1",
    "c1ccoc1",
    "Cc1c[nH]cn1",
    "Oc1ccccc1",
    "CN",
    "COC",
    "CCC(C)=O",
    "CC(=O)O",
    "COC=O",
    "CC(N)=O",
    "CNC(C)=O",
    "CN(C)C",
    "C#N",
    "NCC(=O)O",
    "CCC",
]
"""One for every functional group, and aromatic rings: all pairs of them are brought together."""

CONTACT = {1: 1.10, 6: 1.70, 7: 1.55, 8: 1.52}
"""Van der Waals radii in angstrom.

References
----------
Bondi, J. Phys. Chem. 68, 441 (1964); of hydrogen:
Rowland & Taylor, J. Phys. Chem. 100, 7384 (1996).
"""

APPROACH = np.array([2.0, 1.6, 1.35, 1.2, 1.1, 1.0, 0.92, 0.85, 0.78, 0.72, 0.66, 0.6])
"""Of a contact: where a pair of molecules is placed along a path. Hydrogen bonds rest near 0.7."""

LATTICE_ANGSTROM = {"O": 3.104, "CO": 4.07}
"""Spacing of a cubic lattice with the density of the liquid at 298 K."""


@dataclass(frozen=True, eq=False)
class Body:
    """One molecule, or several, before dynamics.

    Attributes
    ----------
    name : of all its copies
    parts : the molecule each atom belongs to, shape (n_atoms,)
    positions : shape (n_copies, n_atoms, 3), angstrom
    temperature_K : shape (n_copies,)
    """

    name: str
    species: Int
    masses: Float
    bonds: Int
    lengths: Float
    parts: Int
    positions: Float
    temperature_K: Float

    @property
    def n_atoms(self) -> int:
        return len(self.species)


def single_body(name: str, molecule: Embedded, starts: Float, temperature_K: Float) -> Body:
    return Body(
        name,
        molecule.species,
        molecule.masses,
        molecule.bonds,
        molecule.lengths,
        np.zeros(molecule.n_atoms, dtype=np.int64),
        starts,
        temperature_K,
    )


def merged(name: str, members: list[Embedded]) -> Callable[[Float, Float], Body]:
    """Several molecules as one body."""
    starts = np.cumsum([0, *(m.n_atoms for m in members)])
    bonds = np.concatenate([m.bonds + s for m, s in zip(members, starts[:-1], strict=True)])
    parts = np.concatenate([np.full(m.n_atoms, k) for k, m in enumerate(members)])

    def build(positions: Float, temperature_K: Float) -> Body:
        return Body(
            name,
            np.concatenate([m.species for m in members]),
            np.concatenate([m.masses for m in members]),
            bonds,
            np.concatenate([m.lengths for m in members]),
            parts,
            positions,
            temperature_K,
        )

    return build


def temperatures(n: int, rng: np.random.Generator, cold: float) -> Float:
    """200 to 600 K for a share of them, up to 1000 K for the rest."""
    low = rng.random(n) < cold
    return np.where(low, rng.uniform(200.0, 600.0, n), rng.uniform(600.0, 1000.0, n))


def twisted(molecule: Embedded, copy: int, rng: np.random.Generator) -> Float:
    """A conformer; every second with one or two bonds turned by any angle, unless atoms clash."""
    x = molecule.positions[copy % len(molecule.positions)]
    if copy % 2 == 0 or not len(molecule.rotors):
        return np.asarray(x)
    for _ in range(4):
        trial = x
        for i, j in molecule.rotors[rng.integers(len(molecule.rotors), size=rng.integers(1, 3))]:
            side = _side_of(molecule.bonds, int(i), int(j), molecule.n_atoms)
            turn = _rotation(trial[j] - trial[i], float(rng.uniform(0.0, 2.0 * np.pi)))
            trial = np.where(side[:, None], (trial - trial[i]) @ turn.T + trial[i], trial)
        if not _clash(trial, molecule.species, molecule.bonds):
            return np.asarray(trial)
    return np.asarray(x)


def _clash(x: Float, species: Int, bonds: Int) -> bool:
    """Whether two atoms with two bonds or more between them are nearer than 0.62 contacts."""
    radius = np.array([CONTACT[int(z)] for z in species])
    d = np.linalg.norm(x[:, None] - x[None], axis=-1) / (radius[:, None] + radius[None])
    linked = np.eye(len(x), dtype=bool)
    linked[bonds[:, 0], bonds[:, 1]] = linked[bonds[:, 1], bonds[:, 0]] = True
    near = (linked.astype(int) @ linked.astype(int)) > 0  # bonded, or to the same atom
    return bool((np.where(near, 9.0, d) < 0.62).any())


def varied(x: Float, body: Body, molecule: Embedded, rng: np.random.Generator) -> Float:
    """A frame changed in one way: a bond's length, a rotor's angle, or every atom a little."""
    choice = rng.random()
    if choice < 0.4:
        row = int(rng.integers(len(molecule.bonds)))
        return np.asarray(stretched(x, molecule, row, rng.uniform(0.82, 1.33, 1))[0])
    if choice < 0.7 and len(molecule.rotors):
        i, j = (int(k) for k in molecule.rotors[int(rng.integers(len(molecule.rotors)))])
        side = _side_of(molecule.bonds, i, j, molecule.n_atoms)
        turn = _rotation(x[j] - x[i], float(rng.uniform(0.0, 2.0 * np.pi)))
        trial = np.where(side[:, None], (x - x[i]) @ turn.T + x[i], x)
        if not _clash(trial, body.species, body.bonds):
            return np.asarray(trial)
    return np.asarray(x + rng.uniform(0.01, 0.07) * rng.standard_normal(x.shape))


def stretched(x: Float, molecule: Embedded, row: int, ratios: Float) -> Float:
    """A bond at some multiples of its length: shape (n_ratios, n_atoms, 3)."""
    i, j = (int(k) for k in molecule.bonds[row])
    side = _side_of(molecule.bonds, i, j, molecule.n_atoms)
    if side[i]:  # in a ring: its second atom moves alone
        side = np.zeros(molecule.n_atoms, dtype=bool)
        side[j] = True
    axis = x[j] - x[i]
    length = float(np.linalg.norm(axis))
    shift = (ratios * molecule.lengths[row] - length)[:, None] * axis / length
    return np.asarray(x + side[None, :, None] * shift[:, None, :])


def approach(
    first: Embedded,
    second: Embedded,
    kind: int,
    rng: np.random.Generator,
    factors: Float = APPROACH,
) -> Float:
    """Two molecules along a path of contacts: (n, n_atoms, 3).

    kind 0 has a random atom of each face the other, 1 any orientation, 2 two aromatic rings,
    stacked or T-shaped.
    """
    a = first.positions[int(rng.integers(len(first.positions)))]
    b = second.positions[int(rng.integers(len(second.positions)))]
    if kind == 2:
        a, b = _flat(a, first, rng), _flat(b, second, rng)
        spin = _rotation(np.array([0.0, 0.0, 1.0]), float(rng.uniform(0.0, 2.0 * np.pi)))
        if rng.random() < 0.5:
            b = b @ _rotation(np.array([1.0, 0.0, 0.0]), np.pi / 2).T
        b = b @ spin.T
        shift = np.append(rng.uniform(-1.8, 1.8, 2), 0.0)
        a, direction = a - shift, np.array([0.0, 0.0, 1.0])
    elif kind == 0:
        direction = np.array([1.0, 0.0, 0.0])
        # Atoms at the rim and hetero-atoms meet most.
        i, j = (int(rng.choice(m.n_atoms, p=_exposed(m))) for m in (first, second))
        a = _facing(a - a[i], direction, rng)
        b = _facing(b - b[j], -direction, rng)
    else:
        direction = np.array([1.0, 0.0, 0.0])
        a = (a - a.mean(0)) @ random_rotation(rng).T
        b = (b - b.mean(0)) @ random_rotation(rng).T
    radius_a = np.array([CONTACT[int(z)] for z in first.species])
    radius_b = np.array([CONTACT[int(z)] for z in second.species])
    contact = radius_a[:, None] + radius_b[None]
    path = []
    for factor in factors:
        low, high = 0.0, 30.0
        for _ in range(30):
            middle = 0.5 * (low + high)
            d = np.linalg.norm(a[:, None] - (b + middle * direction)[None], axis=-1)
            # From far away inwards: the first contact.
            if (d / contact).min() > factor:
                high = middle
            else:
                low = middle
        path.append(np.concatenate([a, b + high * direction]))
    return np.stack(path)


def _exposed(molecule: Embedded) -> Float:
    degree = np.bincount(molecule.bonds.ravel(), minlength=molecule.n_atoms)
    weight = np.where(molecule.species > 6, 4.0, np.where(degree == 1, 1.0, 0.4))
    polar = np.zeros(molecule.n_atoms)
    for i, j in molecule.bonds:
        for h, x in ((i, j), (j, i)):
            if molecule.species[h] == 1 and molecule.species[x] > 6:
                polar[h] = 3.0
    return np.asarray((weight + polar) / (weight + polar).sum())


def _flat(x: Float, molecule: Embedded, rng: np.random.Generator) -> Float:
    """The first aromatic ring at the origin, its plane normal to z, either face up."""
    ring = list(molecule.rings[0])
    x = x - x[ring].mean(0)
    _, _, axes = np.linalg.svd(x[ring])
    axes = axes * np.array([1.0, 1.0, rng.choice([-1.0, 1.0])])[:, None]
    if np.linalg.det(axes) < 0.0:
        axes[0] = -axes[0]
    return np.asarray(x @ axes.T)


def cluster(name: str, n_copies: int, rng: np.random.Generator) -> Body:
    """Molecules on a lattice of about the liquid's density; `X+n*Y` has X inside."""
    centre, _, shell = name.rpartition("+")
    count, smiles = shell.split("*")
    n = int(count)
    solvent = embed(smiles, 1, int(rng.integers(2**31)))
    inner = [embed(centre, 1, int(rng.integers(2**31)))] if centre else []
    build = merged(name, [*inner, *[solvent] * n])
    frames = []
    for _ in range(n_copies):
        spacing = LATTICE_ANGSTROM[smiles] * rng.uniform(0.9, 1.08)
        cells = np.stack(np.meshgrid(*[np.arange(-4.0, 5.0)] * 3, indexing="ij"), -1).reshape(-1, 3)
        sites = spacing * (cells + rng.uniform(-0.5, 0.5, 3))
        sites = sites[np.argsort(np.linalg.norm(sites, axis=1))]
        placed: list[Float] = []
        if inner:
            x = inner[0].positions[0]
            placed.append((x - x.mean(0)) @ random_rotation(rng).T)
        for site in sites:
            if len(placed) == n + len(inner):
                break
            best, gap = None, 0.0
            for _ in range(12):  # the freest of a few orientations
                y = solvent.positions[0]
                y = (y - y.mean(0)) @ random_rotation(rng).T + site
                near = min(
                    (float(np.linalg.norm(y[:, None] - z[None], axis=-1).min()) for z in placed),
                    default=9.0,
                )
                if near > gap:
                    best, gap = y, near
            if best is not None and gap > 1.45:
                placed.append(best)
        frames.append(np.concatenate(placed))
    return build(np.stack(frames), rng.uniform(200.0, 550.0, n_copies))


def padded_species(species: Int, n_max: int, n_copies: int) -> Int:
    return np.tile(np.pad(species, (0, n_max - len(species))), (n_copies, 1))
