"""Which atoms see each other: all of a molecule's pairs, or a neighbour list in a box."""

from __future__ import annotations

import torch
from torch import Tensor


def complete_pairs(n_atoms: int, n_copies: int = 1) -> tuple[Tensor, Tensor]:
    """Every directed pair inside each of `n_copies` molecules laid one after another.

    Returns
    -------
    idx_i, idx_j : shape (n_copies * n_atoms * (n_atoms - 1),), int64, sorted by `idx_i`, so that
        every atom has exactly n_atoms - 1 neighbours in a row
    """
    i, j = torch.meshgrid(torch.arange(n_atoms), torch.arange(n_atoms), indexing="ij")
    off_diagonal = i != j
    i, j = i[off_diagonal], j[off_diagonal]
    first_atom = torch.arange(n_copies).unsqueeze(1) * n_atoms
    return (i.unsqueeze(0) + first_atom).reshape(-1), (j.unsqueeze(0) + first_atom).reshape(-1)
