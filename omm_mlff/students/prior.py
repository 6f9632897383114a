"""The short-range prior: a repulsion by pairs, so that atoms never pass through each other.

A network knows nothing of distances that its training never visited. The prior does: it is the
screened nuclear repulsion of Ziegler, Biersack and Littmark, and students are trained on labels
minus the prior.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from omm_mlff.students.radial import envelope
from omm_mlff.units import ANGSTROM_PER_BOHR, COULOMB_EV_ANGSTROM

_SCREENING_LENGTH = 0.8854 * ANGSTROM_PER_BOHR
_SCREENING_POWER = 0.23
_COEFFICIENTS = (0.18175, 0.50986, 0.28022, 0.02817)
_EXPONENTS = (3.19980, 0.94229, 0.40290, 0.20162)


class RepulsionPrior(nn.Module):
    """Screened nuclear repulsion, brought smoothly to zero at the cutoff.

    E_ij = k Z_i Z_j / d * phi(d / a) * envelope(d / cutoff),
    a = 0.8854 a0 / (Z_i^0.23 + Z_j^0.23).

    References
    ----------
    Ziegler, Biersack & Littmark, The Stopping and Range of Ions in Matter, Pergamon, 1985.
    """

    if TYPE_CHECKING:
        coefficients: Tensor
        exponents: Tensor

    def __init__(self, cutoff_angstrom: float) -> None:
        super().__init__()
        self.cutoff = cutoff_angstrom
        self.coulomb = COULOMB_EV_ANGSTROM
        self.screening_length = _SCREENING_LENGTH
        self.screening_power = _SCREENING_POWER
        self.register_buffer(
            "coefficients", torch.tensor(_COEFFICIENTS, dtype=torch.float64), persistent=False
        )
        self.register_buffer(
            "exponents", torch.tensor(_EXPONENTS, dtype=torch.float64), persistent=False
        )

    def forward(self, species: Tensor, idx_i: Tensor, idx_j: Tensor, d_ij: Tensor) -> Tensor:
        """Energy of each directed pair: half of the repulsion, in eV.

        Parameters
        ----------
        species : shape (n_atoms,), atomic numbers
        idx_i, idx_j : shape (n_pairs,)
        d_ij : shape (n_pairs,), angstrom

        Returns
        -------
        shape (n_pairs,), dtype of `d_ij`
        """
        z = species.to(d_ij.dtype)
        z_power = z.pow(self.screening_power)
        z_i, z_j = z[idx_i], z[idx_j]
        x = d_ij * (z_power[idx_i] + z_power[idx_j]) / self.screening_length
        terms = torch.exp(-x.unsqueeze(-1) * self.exponents.to(d_ij.dtype))
        phi = (terms * self.coefficients.to(d_ij.dtype)).sum(-1)
        return 0.5 * self.coulomb * z_i * z_j / d_ij * phi * envelope(d_ij / self.cutoff)
