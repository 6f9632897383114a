"""Which atoms see each other: all of a molecule's pairs, or those within a cutoff."""

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


def minimum_image(r_ij: Tensor, box: Tensor) -> Tensor:
    """Displacements to the nearest image, in any box of OpenMM's reduced form.

    One pass from the last box vector to the first finds every image that is nearer than half of
    the box's smallest diagonal element: such an image has its last coordinate within half of the
    last vector's, which fixes how often that vector is taken away, then the one before, then the
    first. Beyond that distance another image may be nearer.

    Parameters
    ----------
    r_ij : shape (..., 3)
    box : shape (3, 3), lower triangular, the unit of `r_ij`
    """
    for k in (2, 1, 0):
        turns = torch.floor(r_ij[..., k : k + 1] / box[k, k] + 0.5)
        r_ij = r_ij - turns * box[k]
    return r_ij


def pairs_within(
    positions: Tensor, box: Tensor | None, cutoff: float, block_pairs: int = 2**19
) -> tuple[Tensor, Tensor]:
    """Every directed pair nearer than a cutoff, in plain torch: all pairs are looked at.

    Parameters
    ----------
    positions : shape (n_atoms, 3)
    box : see `minimum_image`, each diagonal element twice the cutoff or more; None in vacuum
    block_pairs : looked at in one go, so that memory does not grow with the square of the atoms

    Returns
    -------
    idx_i, idx_j : shape (n_pairs,), int64, sorted by `idx_i`, then by `idx_j`
    """
    n_atoms = positions.shape[0]
    n_rows = max(1, block_pairs // max(1, n_atoms))
    found: list[Tensor] = []
    for first in range(0, n_atoms, n_rows):
        r_ij = positions.unsqueeze(0) - positions[first : first + n_rows].unsqueeze(1)
        if box is not None:
            r_ij = minimum_image(r_ij, box)
        near = ((r_ij * r_ij).sum(-1) < cutoff * cutoff).nonzero()
        found.append(torch.stack([near[:, 0] + first, near[:, 1]], dim=1))
    pairs = torch.cat(found)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return pairs[:, 0], pairs[:, 1]
