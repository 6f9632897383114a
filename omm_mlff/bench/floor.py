"""The least time that a student can take: its multiply-adds at the rate of matrix products.

Counted is what PaiNN's matrix products need for an energy and the gradient of the positions; sums
over neighbours, activations, radial functions, and everything around the network are left out. The
rate is measured here and now, by torch in float32, at the shapes that the student has.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from omm_mlff.schema import MolecularSystem
from omm_mlff.students.engine import BoxEngine
from omm_mlff.students.student import Student, StudentConfig

_BLOCK_S = 0.02
_REPETITIONS = 7
_WORTH_THREADS_S = 2.0e-3
"""Below this, threads wait for one another longer than they work."""


@dataclass(frozen=True)
class Floor:
    """The floor of one evaluation.

    Attributes
    ----------
    multiply_adds : of energy and forces of one replica
    rate : multiply-adds a second
    """

    multiply_adds: float
    rate: float
    n_threads: int

    @property
    def seconds(self) -> float:
        return self.multiply_adds / self.rate


def multiply_adds(config: StudentConfig, n_atoms: int, n_pairs: int) -> float:
    """Of one energy and the gradient of the positions.

    The way back has one product for each of the way there, since parameters need no gradient. The
    first layer's messages come from a table by species and have no way back; its vectors are zero,
    so that one third of its filter has nothing to do. A filter serves both directions of a pair,
    and comes with its derivative.

    Parameters
    ----------
    n_pairs : directed, within the cutoff
    """
    width, readout = config.n_features, config.n_readout
    phi, mix, gate = 4 * width**2, 6 * width**2, 5 * width**2
    read = 3 * width**2 + 2 * width * readout
    later = config.n_layers - 1
    an_atom = later * phi + config.n_layers * (mix + gate) + read
    a_filter = (3 * later + 2) * width * (config.n_radial + 1)
    return 2.0 * n_atoms * an_atom + 2.0 * (n_pairs / 2) * a_filter


def floor(
    student: Student,
    system: MolecularSystem,
    n_replicas: int,
    *,
    n_threads: int = 1,
    device: str = "cpu",
) -> Floor:
    """The floor of a system's replica: at one thread or at `n_threads`, whichever is lower.

    Of a few atoms, the call of a product costs torch more than the product: a kernel that makes no
    such calls, or takes its filters from a table, is below this floor.

    Parameters
    ----------
    n_replicas : evaluated together; sets the height of the matrices whose rate is measured
    n_threads : that the engine may use whose time is held against it
    device : where it computes
    """
    config = student.config
    needed = multiply_adds(config, system.n_atoms, n_pairs(student, system))
    n_rows = n_replicas * system.n_atoms
    rates = {1: product_rate(n_rows, config.n_features, device)}
    if n_threads > 1 and needed / rates[1] > _WORTH_THREADS_S:
        before = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        try:
            rates[n_threads] = product_rate(n_rows, config.n_features, device)
        finally:
            torch.set_num_threads(before)
    best = max(rates, key=lambda tried: rates[tried])
    return Floor(needed, rates[best], best)


def n_pairs(student: Student, system: MolecularSystem) -> int:
    """Directed pairs of one replica within the student's cutoff, images in a small box included."""
    engine = BoxEngine(student, torch.from_numpy(system.species), system.periodic)
    box = None if system.box_vectors is None else torch.from_numpy(system.box_vectors)
    return len(engine.pairs(torch.from_numpy(system.positions), box)[0])


def product_rate(n_rows: int, width: int, device: str = "cpu") -> float:
    """Multiply-adds a second of torch.mm in float32: (n_rows, width) by (width, 3 width)."""
    left = torch.rand(n_rows, width, device=device)
    right = torch.rand(width, 3 * width, device=device)
    out = torch.empty(n_rows, 3 * width, device=device)

    def seconds(n_calls: int) -> float:
        began = time.perf_counter()
        for _ in range(n_calls):
            torch.mm(left, right, out=out)
        if out.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    n_calls = 1
    while seconds(n_calls) < _BLOCK_S:
        n_calls *= 2
    rates = [n_calls / seconds(n_calls) for _ in range(_REPETITIONS)]
    return statistics.median(rates) * float(n_rows * width * 3 * width)
