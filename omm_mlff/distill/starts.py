"""Structures to start dynamics from, or to label as they are, packed to travel to a GPU."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.distill.packed import GRID, STRATA
from omm_mlff.errors import InputError
from omm_mlff.record.replacing import replaced

if TYPE_CHECKING:
    from omm_mlff.distill.placing import Body

Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Starts:
    """Structures of any molecules, one after another.

    Attributes
    ----------
    species : shape (n_atoms,), int8, atomic numbers
    positions : shape (n_atoms, 3), int16, in units of `GRID`
    n_atoms : shape (n,), int16
    molecule : shape (n,), int32, row of `names`
    stratum : shape (n,), int8, row of `STRATA`; "thermal" is moved, the others labelled as they are
    temperature_K : shape (n,), float32, of the dynamics, 0 where there is none
    names : shape (n_names,)
    n_parts : shape (n_names,), int16, molecules in each
    n_bonds : shape (n_names,), int32
    bonds : shape (n_bonds_in_all, 2), int16
    lengths : shape (n_bonds_in_all,), float32, angstrom
    """

    species: NDArray[np.int8]
    positions: NDArray[np.int16]
    n_atoms: NDArray[np.int16]
    molecule: NDArray[np.int32]
    stratum: NDArray[np.int8]
    temperature_K: NDArray[np.float32]
    names: NDArray[np.str_]
    n_parts: NDArray[np.int16]
    n_bonds: NDArray[np.int32]
    bonds: NDArray[np.int16]
    lengths: NDArray[np.float32]

    @property
    def n_structures(self) -> int:
        return len(self.n_atoms)


def save_starts(path: Path, starts: Starts) -> None:
    """Write structures; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file, allow_pickle=False, **{i.name: getattr(starts, i.name) for i in fields(Starts)}
        )


def load_starts(path: Path) -> Starts:
    """Read what `save_starts` wrote.

    Raises
    ------
    InputError : not such a file, or damaged
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            return Starts(**{item.name: archive[item.name] for item in fields(Starts)})
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"{path} cannot be read ({error}); make it again") from error


def make_starts(seed: int, n_copies: int = 20) -> Starts:
    """Starts of every molecule that is trained on or watched, of pairs, and of clusters.

    Parameters
    ----------
    seed : of everything; a molecule's structures do not depend on the others
    n_copies : of each library molecule; the rest goes in proportion
    """
    from omm_mlff.distill.library import TEST, embed, library
    from omm_mlff.distill.placing import (
        MAIN,
        MONOMERS,
        approach,
        cluster,
        merged,
        single_body,
        temperatures,
        twisted,
        varied,
    )

    def stream(name: str) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(f"{seed}/starts/{name}".encode()))

    made: list[tuple[str, Body, Float, Float]] = []
    singles = [(name, smiles, n) for name, (smiles, n) in MAIN.items()]
    singles += [(e.smiles, e.smiles, 0) for e in library() if e.role != TEST]
    for name, smiles, n_main in singles:
        rng = stream(name)
        n = 6 * n_main or n_copies
        try:
            molecule = embed(smiles, min(40, max(3, n // 3)), int(rng.integers(2**31)))
        except ValueError:
            continue
        x = np.stack([twisted(molecule, k, rng) for k in range(n)])
        body = single_body(name, molecule, x, temperatures(n, rng, 0.75 if n_main else 0.6))
        made.append(("thermal", body, x, body.temperature_K))
        shaken = x + rng.uniform(0.0, 0.05, (n, 1, 1)) * rng.standard_normal(x.shape)
        changed = np.stack([varied(frame, body, molecule, rng) for frame in shaken])
        made.append(("varied", body, changed, np.zeros(n)))
    embedded = {m: embed(m, 6, int(stream(m).integers(2**31))) for m in MONOMERS}
    for row, a in enumerate(MONOMERS):
        for b in MONOMERS[row:]:
            name = f"{a}.{b}"
            rng = stream(name)
            first, second = embedded[a], embedded[b]
            kinds = 3 if first.rings and second.rings else 2
            paths = [approach(first, second, kind, rng) for kind in range(kinds)]
            x = np.concatenate(paths)
            x = x + 0.02 * rng.standard_normal(x.shape)
            build = merged(name, [first, second])
            made.append(("approach", build(x, np.zeros(len(x))), x, np.zeros(len(x))))
            n = max(2, n_copies // 2)
            factors = rng.uniform(0.75, 1.15, n)
            x = np.stack(
                [approach(first, second, k % kinds, rng, factors[k : k + 1])[0] for k in range(n)]
            )
            kelvin = rng.uniform(150.0, 600.0, n)
            made.append(("thermal", build(x, kelvin), x, kelvin))
    clusters = [f"{k}*O" for k in (*range(2, 13), 14, 16, 18, 20)]
    clusters += [f"{k}*CO" for k in (2, 3, 4, 5, 6, 8)]
    clusters += [f"{m}+{2 + k % 7}*O" for k, m in enumerate(MONOMERS[1:])]
    for name in clusters:
        rng = stream(name)
        n = 2 * n_copies if "+" not in name else n_copies
        body = cluster(name, n, rng)
        made.append(("thermal", body, body.positions, body.temperature_K))
    return packed_starts(made)


def packed_starts(made: list[tuple[str, Body, Float, Float]]) -> Starts:
    """Pack structures.

    Parameters
    ----------
    made : stratum, the body of all of these, positions (n, n_atoms, 3) in angstrom, and the
        temperatures (n,) in K
    """
    bodies: dict[str, Body] = {}
    for _, body, _, _ in made:
        bodies.setdefault(body.name, body)
    row = {name: k for k, name in enumerate(bodies)}
    species, positions, n_atoms, molecule, stratum, kelvin = [], [], [], [], [], []
    for name, body, x, temperature in made:
        centred = np.round((x - x.mean(1, keepdims=True)) / GRID)
        inside = np.abs(centred).max((1, 2)) < 2**15 - 1
        n = int(inside.sum())
        species.append(np.tile(body.species, n).astype(np.int8))
        positions.append(centred[inside].astype(np.int16).reshape(-1, 3))
        n_atoms.append(np.full(n, body.n_atoms, dtype=np.int16))
        molecule.append(np.full(n, row[body.name], dtype=np.int32))
        stratum.append(np.full(n, STRATA.index(name), dtype=np.int8))
        kelvin.append(temperature[inside].astype(np.float32))
    return Starts(
        np.concatenate(species),
        np.concatenate(positions),
        np.concatenate(n_atoms),
        np.concatenate(molecule),
        np.concatenate(stratum),
        np.concatenate(kelvin),
        np.array(list(bodies)),
        np.array([body.parts.max() + 1 for body in bodies.values()], dtype=np.int16),
        np.array([len(body.bonds) for body in bodies.values()], dtype=np.int32),
        np.concatenate([body.bonds for body in bodies.values()]).astype(np.int16),
        np.concatenate([body.lengths for body in bodies.values()]).astype(np.float32),
    )
