"""The least time that a student can take: its multiply-adds at the rate of matrix products.

Counted is what PaiNN's matrix products need for an energy and the gradient of the positions; sums
over neighbours, activations, radial functions, and everything around the network are left out. The
rate is measured here and now, by torch in float32, at the shapes that the student has.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch

from omm_mlff.schema import MolecularSystem
from omm_mlff.students.pairs import pairs_within
from omm_mlff.students.student import Student, StudentConfig
from omm_mlff.units import ANGSTROM_PER_NM

_MEASURE_S = 0.1
_REPETITIONS = 7


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


def floor(student: Student, system: MolecularSystem, n_replicas: int) -> Floor:
    """The floor of a system's replica, at torch's present number of threads.

    Parameters
    ----------
    n_replicas : evaluated together; sets the height of the matrices whose rate is measured
    """
    cutoff = student.config.cutoff_angstrom
    box = system.box_vectors
    idx_i, _ = pairs_within(
        torch.from_numpy(system.positions * ANGSTROM_PER_NM),
        None if box is None else torch.from_numpy(box * ANGSTROM_PER_NM),
        cutoff,
    )
    needed = multiply_adds(student.config, system.n_atoms, len(idx_i))
    rate = product_rate(n_replicas * system.n_atoms, student.config.n_features)
    return Floor(needed, rate, torch.get_num_threads())


def product_rate(n_rows: int, width: int) -> float:
    """Multiply-adds a second of torch.mm in float32: (n_rows, width) by (width, 3 width)."""
    left = torch.rand(n_rows, width)
    right = torch.rand(width, 3 * width)
    out = torch.empty(n_rows, 3 * width)
    torch.mm(left, right, out=out)
    began, n_calls = time.perf_counter(), 0
    while time.perf_counter() - began < _MEASURE_S:
        torch.mm(left, right, out=out)
        n_calls += 1
    rates = []
    for _ in range(_REPETITIONS):
        began = time.perf_counter()
        for _ in range(n_calls):
            torch.mm(left, right, out=out)
        rates.append(n_calls / (time.perf_counter() - began))
    return statistics.median(rates) * float(np.prod([n_rows, width, 3 * width]))
