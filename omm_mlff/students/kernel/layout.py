"""How the device kernel finds a student in memory, and how its work is shared out.

The same numbers stand in painn.cu; nothing here needs a device.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from omm_mlff.errors import KernelError
from omm_mlff.students.kernel.model import kernel_constants
from omm_mlff.students.student import Student, StudentConfig
from omm_mlff.units import ANGSTROM_PER_NM, KJMOL_NM_PER_EV_ANGSTROM, KJMOL_PER_EV

Floats = NDArray[np.float64]

MAX_ATOMS = 64
_ENERGY_PARTS, _PULLS = 8, 4
_GROUP_ROWS = 24
"""Atoms of small molecules that a block takes together, so that weights are read for many."""

_TILES = (1, 2, 3, 5, 7, 10)
_WIDEST_DOUBLE = 5
_WIDEST_SHARED = 3
_MOST_SHARERS = 8
_LEAST_BYTES = 48 * 1024
"""Below this a block is better alone on its multiprocessor."""

_RESERVED_BYTES = 1024
"""Shared memory that the system keeps of each block."""

_CHUNK_ITEMS, _CLUSTER_CHUNK_ITEMS = 4096, 8192


@dataclass(frozen=True)
class Choice:
    """How the kernel is to work on a call.

    Attributes
    ----------
    cluster : blocks that share a molecule
    threads : of a block
    blocks : that a multiprocessor is to hold: registers and shared memory are given out accordingly
    group : copies that a team takes at a time; by default as many as pays
    """

    cluster: int
    threads: int = 256
    blocks: int = 2
    group: int | None = None


@dataclass(frozen=True)
class Rule:
    """A choice, and what it is for: at most so many copies, of at least such a size."""

    choice: Choice
    most_copies: int
    least_features: int = 0
    least_atoms: int = 0


RULES = (
    Rule(Choice(16, threads=256, blocks=1), 8, least_features=96),
    Rule(Choice(8), 16),
    Rule(Choice(4), 33),
    Rule(Choice(2), 66),
    Rule(Choice(1), 2**31),
)
"""The first that fits is taken, and those after it where the device has no room for that one."""

_FORESEEN_COPIES = (1, 16, 256)
PHASES = (
    "table of pairs",
    "send",
    "messages",
    "mix",
    "gates",
    "readout",
    "gates back",
    "mix back",
    "pairs back",
    "messages back",
    "send back",
    "forces",
)
"""What a profile tells apart, in the kernel's order."""


class _Plan(ctypes.Structure):
    _fields_ = (("tile", ctypes.c_int), ("parts", ctypes.c_int))


class Arguments(ctypes.Structure):
    """What comes with a call."""

    _fields_ = (
        ("positions", ctypes.c_void_p),
        ("energies", ctypes.c_void_p),
        ("forces", ctypes.c_void_p),
        ("species", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("constants", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("stamps", ctypes.c_void_p),
        ("team_bytes", ctypes.c_int64),
        *((name, ctypes.c_int) for name in ("n_atoms", "n_copies", "group", "doubles")),
        *((name, ctypes.c_int) for name in ("x_items", "w_items", "share_items")),
        *((name, ctypes.c_int) for name in ("near_shared", "near_bytes")),
        ("plans", _Plan * 10),
    )


@dataclass(frozen=True)
class Variant:
    """What the kernel is compiled for.

    Attributes
    ----------
    float64 : whether the network runs in double precision
    cluster, threads, blocks : see `Choice`
    profile : whether the time of each phase is taken
    """

    n_features: int
    n_layers: int
    n_radial: int
    n_readout: int
    float64: bool
    cluster: int
    threads: int = 256
    blocks: int = 2
    profile: bool = False

    @property
    def slice(self) -> int:
        """Features of one block."""
        return _padded(-(-self.n_features // self.cluster))

    @property
    def readout_slice(self) -> int:
        """Of the readout's hidden layer, of one block."""
        return _padded(-(-self.n_readout // self.cluster))

    @property
    def itemsize(self) -> int:
        return 8 if self.float64 else 4

    def definitions(self) -> dict[str, str | int]:
        """For the compiler."""
        return {
            "REAL": "double" if self.float64 else "float",
            "DOUBLES": int(self.float64),
            "FEATURES": self.n_features,
            "LAYERS": self.n_layers,
            "RADIAL": self.n_radial,
            "READOUT": self.n_readout,
            "CLUSTER": self.cluster,
            "THREADS": self.threads,
            "BLOCKS": self.blocks,
            "PROFILE": int(self.profile),
        }


@dataclass(frozen=True)
class Call:
    """How one call is shared out.

    Attributes
    ----------
    group : copies that a team takes at a time
    n_groups : of them
    shared_bytes : of a block
    team_bytes : of a team's workspace in global memory
    """

    n_atoms: int
    n_copies: int
    group: int
    n_groups: int
    x_items: int
    w_items: int
    share_items: int
    near_shared: bool
    near_bytes: int
    shared_bytes: int
    team_bytes: int
    plans: tuple[tuple[int, int], ...]

    def arguments(self) -> Arguments:
        """With the numbers of this call, and no pointers yet."""
        a = Arguments()
        for name in ("n_atoms", "n_copies", "group", "x_items", "w_items", "share_items"):
            setattr(a, name, getattr(self, name))
        a.near_shared, a.near_bytes = int(self.near_shared), self.near_bytes
        a.team_bytes = self.team_bytes
        for k, (tile, parts) in enumerate(self.plans):
            a.plans[k].tile, a.plans[k].parts = tile, parts
        return a


def variant_of(student: Student, choice: Choice, *, profile: bool = False) -> Variant:
    """What this student needs; in double precision a block has a multiprocessor to itself."""
    c: StudentConfig = student.config
    float64 = student.dtype == torch.float64
    return Variant(
        c.n_features,
        c.n_layers,
        c.n_radial,
        c.n_readout,
        float64,
        choice.cluster,
        256 if float64 else choice.threads,
        1 if float64 else choice.blocks,
        profile,
    )


def choices(n_features: int, n_atoms: int, n_copies: int, n_processors: int) -> list[Choice]:
    """What suits a call on a device that knows clusters, the best first; the last one always runs.

    All copies that share blocks run at the same time.
    """
    sizes = cluster_sizes(n_features)
    return [
        rule.choice
        for rule in RULES
        if n_copies <= rule.most_copies
        and n_features >= rule.least_features
        and n_atoms >= rule.least_atoms
        and rule.choice.cluster in sizes
        and (rule.choice.cluster == 1 or rule.choice.cluster * n_copies <= n_processors)
    ]


def foreseen(n_features: int, n_atoms: int, n_processors: int) -> list[Choice]:
    """What one copy, some and many will need, each once; so that it is compiled side by side."""
    wanted = (choices(n_features, n_atoms, n, n_processors)[0] for n in _FORESEEN_COPIES)
    return list(dict.fromkeys(wanted))


def cluster_sizes(n_features: int) -> tuple[int, ...]:
    """Blocks that may share a molecule: slices of eight features or more, and little padding."""
    sizes = [1]
    for cluster in (2, 4, 8, 16):
        part = _padded(-(-n_features // cluster))
        if part >= 8 and part * cluster < 1.35 * n_features:
            sizes.append(cluster)
    return tuple(sizes)


def block_budget(variant: Variant, block_bytes: int, processor_bytes: int) -> int:
    """Shared memory that a block is given.

    Parameters
    ----------
    block_bytes : the most that the device gives one
    processor_bytes : what a multiprocessor has for all its blocks
    """
    share = max(_LEAST_BYTES, processor_bytes // variant.blocks) - _RESERVED_BYTES
    return min(block_bytes, share)


def plan_call(
    variant: Variant,
    n_atoms: int,
    n_copies: int,
    *,
    n_teams: int,
    block_bytes: int,
    group: int | None = None,
) -> Call:
    """Share out a call.

    Parameters
    ----------
    n_teams : that run at the same time; more copies than that go in groups
    block_bytes : shared memory that a block may have
    group : copies that a team takes at a time; by default as many as pays

    Raises
    ------
    KernelError : too little shared memory, or more atoms than the kernel is for
    """
    if not 2 <= n_atoms <= MAX_ATOMS:
        raise KernelError(f"the device kernel is for 2 to {MAX_ATOMS} atoms, not {n_atoms}")
    if group is None:
        group = 1
        if variant.cluster == 1:
            group = max(1, min(_GROUP_ROWS // n_atoms, -(-n_copies // n_teams)))
    size, rows = variant.itemsize, group * n_atoms
    pairs = group * n_atoms * (n_atoms - 1) // 2
    basis_row = _padded(variant.n_radial + 1)
    near = (2 * pairs * basis_row * size, 4 * pairs * size, pairs * 8, pairs * 8)
    near_bytes = sum(map(_aligned, (*near, rows * n_atoms, rows * 4, group * 4)))

    products = _products(variant, rows)
    w_most = max(k * sections * part for _, k, sections, part in products)
    w_least = 4 * max(sections * part for _, _, sections, part in products)
    target = _CHUNK_ITEMS if variant.cluster == 1 else _CLUSTER_CHUNK_ITEMS
    w_items = max(w_least, min(target * 4 // size, w_most))
    share_items = 4 * _WIDEST_SHARED * variant.threads if variant.cluster > 1 else 0
    x_all = max(n * (k + 4) for n, k, _, _ in products)
    x_least = max(k + 4 for _, k, _, _ in products) + 2 * _PULLS * (variant.slice + 1)
    room = (block_bytes - 16) // size - share_items
    if room - 2 * w_items < x_least:
        w_items = w_least
    left = room - 2 * w_items
    if left < x_least:
        raise KernelError(
            f"the device gives a block {block_bytes // 1024} KB of shared memory, and a student "
            f"of {variant.n_features} features needs {(2 * w_items + x_least) * size // 1024} KB"
        )
    near_shared = near_bytes // size + min(x_all, left // 2) <= left
    x_items = min(x_all, left - (near_bytes // size if near_shared else 0)) // 4 * 4
    shared = (x_items + 2 * w_items + share_items) * size + near_bytes * near_shared

    wide = variant.slice * variant.cluster
    hidden = rows * variant.readout_slice * variant.cluster * size
    arrays = (27 + 19 * variant.n_layers) * rows * wide * size
    ranks = variant.cluster
    team = sum(
        map(
            _aligned,
            (arrays, hidden, hidden, ranks * pairs * _PULLS * 8, ranks * rows * _ENERGY_PARTS * 8),
        )
    )
    if not near_shared:
        team += ranks * near_bytes
    return Call(
        n_atoms=n_atoms,
        n_copies=n_copies,
        group=group,
        n_groups=-(-n_copies // group),
        x_items=x_items,
        w_items=w_items,
        share_items=share_items,
        near_shared=near_shared,
        near_bytes=near_bytes,
        shared_bytes=shared,
        team_bytes=(team + 255) // 256 * 256,
        plans=tuple(_plan(variant, product, x_items) for product in products),
    )


def packed_weights(student: Student, variant: Variant) -> NDArray[np.floating]:
    """Everything that the kernel reads of a student beside `packed_constants`, in its order."""
    parts = list(_weights(student, variant))
    dtype = np.float64 if variant.float64 else np.float32
    return np.concatenate([part.ravel() for part in parts]).astype(dtype)


def packed_constants(student: Student, species: torch.Tensor) -> Floats:
    """What is kept in double precision, for these species of one copy."""
    constants = kernel_constants(student)
    power = constants[7]
    charges = np.array(student.config.species, dtype=np.float64)
    tensors = student.network.state_dict()
    return np.concatenate(
        [
            constants[:7],
            [ANGSTROM_PER_NM, KJMOL_PER_EV, KJMOL_NM_PER_EV_ANGSTROM],
            [float(student.reference_energy(species).sum())],
            _array(tensors["readout.2.bias"]),
            constants[8:16],
            [len(charges)],
            _array(tensors["basis.wave_numbers"]),
            charges,
            charges**power,
        ]
    )


def _products(variant: Variant, rows: int) -> list[tuple[int, int, int, int]]:
    """Of each kind: rows, items of a row of the input, sections, and columns of a section."""
    part, last = variant.slice, variant.readout_slice
    wide, hidden = part * variant.cluster, last * variant.cluster
    return [
        (3 * rows, wide, 2, part),  # mix
        (rows, 2 * wide, 1, part),  # gate in
        (rows, wide, 3, part),  # gate out, phi out
        (rows, wide, 1, part),  # phi in, there and back
        (3 * rows, wide, 1, part),  # the readout's mix, there and back
        (rows, 2 * wide, 1, last),  # readout
        (rows, hidden, 2, part),  # and back
        (rows, 3 * wide, 1, part),  # gate out and phi out, back
        (rows, wide, 2, part),  # gate in, back
        (3 * rows, 2 * wide, 1, part),  # mix, back
    ]


def _plan(variant: Variant, product: tuple[int, int, int, int], x_items: int) -> tuple[int, int]:
    """Rows of a tile, and threads that share a sum: what leaves the fewest threads idle.

    Sums are shared only where a molecule is alone, and by its size and the cluster's: their order
    depends neither on how many copies there are nor on what memory there is.
    """
    all_rows, n_in, sections, part = product
    tiles_a_row = sections * part // 4
    widest = _WIDEST_DOUBLE if variant.float64 else _TILES[-1]

    def cost(tile: int, sharers: int, rows: int) -> float:
        units = -(-rows // tile) * tiles_a_row * sharers
        if sharers > 1 and (units > variant.threads or tile > _WIDEST_SHARED):
            return math.inf
        rounds = -(-units // variant.threads)
        sharing = 300 + 30 * sharers * tile if sharers > 1 else 0
        return rounds * (n_in / sharers * (17 * tile + 20) + 2000) + sharing

    tiles = [tile for tile in _TILES if tile <= widest]
    sharers = 1
    if variant.cluster > 1:
        known = [n for n in (1, 2, 4, _MOST_SHARERS) if n == 1 or n_in >= 16 * n]
        sharers = min(known, key=lambda n: min(cost(tile, n, all_rows) for tile in tiles))
    most = min(all_rows, x_items // (n_in + 4))
    rows = -(-all_rows // -(-all_rows // most))
    return min(tiles, key=lambda tile: cost(tile, sharers, rows)), sharers


def _weights(student: Student, variant: Variant) -> Iterator[Floats]:
    tensors = {name: _array(t) for name, t in student.network.state_dict().items()}
    n, cluster = variant.n_features, variant.cluster
    part, last = variant.slice, variant.readout_slice
    wide = part * cluster

    def linear(name: str) -> Floats:
        return tensors[f"{name}.weight"]

    def bias(name: str, sections: int, width: int, part: int) -> Floats:
        out = np.zeros((sections, part * cluster))
        out[:, :width] = tensors[f"{name}.bias"].reshape(sections, width)
        return out

    def forth(name: str, ins: int, outs: int, part_out: int = part, width: int = n) -> Floats:
        return _packed(linear(name).T, (ins, n, wide), (outs, width, part_out), cluster)

    def back(name: str, ins: int, outs: int) -> Floats:
        return _packed(linear(name), (outs, n, wide), (ins, n, part), cluster)

    for layer in range(variant.n_layers):
        message, update = f"messages.{layer}", f"updates.{layer}"
        filters = np.zeros((variant.n_radial + 1, 3, wide))
        w = linear(f"{message}.filter").reshape(3, n, variant.n_radial)
        filters[:-1, :, :n] = w.transpose(2, 0, 1)
        filters[-1, :, :n] = tensors[f"{message}.filter.bias"].reshape(3, n)
        yield filters
        yield forth(f"{message}.phi.0", 1, 1)
        yield bias(f"{message}.phi.0", 1, n, part)
        yield forth(f"{message}.phi.2", 1, 3)
        yield bias(f"{message}.phi.2", 3, n, part)
        yield forth(f"{update}.mix", 1, 2)
        yield forth(f"{update}.gate.0", 2, 1)
        yield bias(f"{update}.gate.0", 1, n, part)
        yield forth(f"{update}.gate.2", 1, 3)
        yield bias(f"{update}.gate.2", 3, n, part)
        yield back(f"{message}.phi.0", 1, 1)
        yield back(f"{message}.phi.2", 1, 3)
        yield back(f"{update}.mix", 1, 2)
        yield back(f"{update}.gate.0", 2, 1)
        yield back(f"{update}.gate.2", 1, 3)
    hidden = variant.n_readout
    yield forth("readout_mix", 1, 1)
    yield forth("readout.0", 2, 1, last, hidden)
    yield bias("readout.0", 1, hidden, last)
    out = np.zeros(last * cluster)
    out[:hidden] = tensors["readout.2.weight"].ravel()
    yield out
    yield back("readout_mix", 1, 1)
    yield _packed(linear("readout.0"), (1, hidden, last * cluster), (2, n, part), cluster)

    embedding = tensors["embedding.weight"]
    h = embedding @ linear("messages.0.phi.0").T + tensors["messages.0.phi.0.bias"]
    with np.errstate(over="ignore"):
        h = h / (1.0 + np.exp(-h))
    sent = h @ linear("messages.0.phi.2").T + tensors["messages.0.phi.2.bias"]
    table = np.zeros((len(embedding), 4, wide))
    table[:, 0, :n] = embedding
    table[:, 1:, :n] = sent.reshape(-1, 3, n)
    yield table


def _packed(
    matrix: Floats, rows: tuple[int, int, int], columns: tuple[int, int, int], cluster: int
) -> Floats:
    """A matrix (in, out) as a product reads it, the slice of each rank one after another.

    Parameters
    ----------
    rows : sections, their width, and the width they are padded to
    columns : sections, their width, and how much of a section a rank has
    """
    n_in, width_in, padded_in = rows
    n_out, width_out, part = columns
    whole = np.zeros((n_in, padded_in, n_out, part * cluster))
    whole[:, :width_in, :, :width_out] = matrix.reshape(n_in, width_in, n_out, width_out)
    split = whole.reshape(n_in * padded_in, n_out, cluster, part)
    return split.transpose(2, 0, 1, 3)


def _array(tensor: torch.Tensor) -> Floats:
    array: Floats = tensor.detach().cpu().double().numpy()
    return array


def _padded(n: int) -> int:
    return -(-n // 4) * 4


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // 16) * 16
