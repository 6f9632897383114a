"""Radial functions: the basis that describes a distance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn


def envelope(x: Tensor) -> Tensor:
    """A polynomial that falls from 1 to 0 with two continuous derivatives at the cutoff.

    Parameters
    ----------
    x : any shape, distance over cutoff

    Returns
    -------
    same shape; exactly 0 from x = 1 on

    References
    ----------
    Gasteiger, Gross & Guennemann, ICLR 2020 (arXiv:2003.03123), eq. 8 with p = 5.
    """
    x5 = x * x * x * x * x
    value = 1.0 + x5 * (-21.0 + x * (35.0 - 15.0 * x))
    return torch.where(x < 1.0, value, torch.zeros_like(value))


class BesselBasis(nn.Module):
    """Spherical Bessel functions of order zero that vanish at the cutoff.

    References
    ----------
    Gasteiger, Gross & Guennemann, ICLR 2020 (arXiv:2003.03123), eq. 7.
    """

    if TYPE_CHECKING:
        wave_numbers: Tensor

    def __init__(self, n_radial: int, cutoff_angstrom: float) -> None:
        super().__init__()
        self.cutoff = cutoff_angstrom
        orders = torch.arange(1, n_radial + 1, dtype=torch.float64)
        self.register_buffer("wave_numbers", (orders * math.pi / cutoff_angstrom).float())

    def forward(self, d_ij: Tensor) -> Tensor:
        """Basis values, shape (n_pairs, n_radial), of distances of shape (n_pairs,)."""
        d = d_ij.unsqueeze(-1)
        return math.sqrt(2.0 / self.cutoff) * torch.sin(d * self.wave_numbers) / d
