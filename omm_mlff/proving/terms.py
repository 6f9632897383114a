"""Terms of a pair potential in closed form: energy and slope of every pair (nm, kJ/mol).

A term maps the distances of all pairs of all copies to an energy and its derivative with respect
to the distance. A pair that a term does not concern has parameters that make both vanish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Float = NDArray[np.float64]


class Morse(nn.Module):
    """D (1 - exp(-a (d - d0)))^2: a bond that stretches as it should and can break."""

    if TYPE_CHECKING:
        depth: Tensor
        steepness: Tensor
        rest: Tensor

    def __init__(self, depth: Float, steepness: Float, rest: Float) -> None:
        super().__init__()
        self.register_buffer("depth", torch.from_numpy(depth))
        self.register_buffer("steepness", torch.from_numpy(steepness))
        self.register_buffer("rest", torch.from_numpy(rest))

    def forward(self, d: Tensor) -> tuple[Tensor, Tensor]:
        decay = torch.exp(-self.steepness * (d - self.rest))
        energy = self.depth * (1.0 - decay) ** 2
        return energy, 2.0 * self.depth * self.steepness * (1.0 - decay) * decay


class Spring(nn.Module):
    """k (d - d0)^2 / 2."""

    if TYPE_CHECKING:
        stiffness: Tensor
        rest: Tensor

    def __init__(self, stiffness: Float, rest: Float) -> None:
        super().__init__()
        self.register_buffer("stiffness", torch.from_numpy(stiffness))
        self.register_buffer("rest", torch.from_numpy(rest))

    def forward(self, d: Tensor) -> tuple[Tensor, Tensor]:
        stretch = d - self.rest
        return 0.5 * self.stiffness * stretch**2, self.stiffness * stretch


class Wall(nn.Module):
    """(w / d)^12 kJ/mol, so that no two atoms come together."""

    if TYPE_CHECKING:
        width: Tensor

    def __init__(self, width: Float) -> None:
        super().__init__()
        self.register_buffer("width", torch.from_numpy(width))

    def forward(self, d: Tensor) -> tuple[Tensor, Tensor]:
        energy = (self.width / d) ** 12
        return energy, -12.0 * energy / d


class LennardJones(nn.Module):
    """4 epsilon [(s/d)^12 - (s/d)^6], brought to zero between `switch` and `cutoff`.

    The switch 1 - 126 x^5 + 420 x^6 - 540 x^7 + 315 x^8 - 70 x^9 has four continuous derivatives,
    so that no difference of higher order takes its ends for noise. With `switch` equal to the
    cutoff the interaction is cut off as it stands.
    """

    if TYPE_CHECKING:
        epsilon: Tensor
        sigma: Tensor

    def __init__(self, epsilon: Float, sigma: Float, switch: float, cutoff: float) -> None:
        super().__init__()
        self.switch = switch
        self.cutoff = cutoff
        self.width = max(cutoff - switch, 1.0e-12)
        self.register_buffer("epsilon", torch.from_numpy(epsilon))
        self.register_buffer("sigma", torch.from_numpy(sigma))

    def forward(self, d: Tensor) -> tuple[Tensor, Tensor]:
        six = (self.sigma / d) ** 6
        energy = 4.0 * self.epsilon * (six * six - six)
        slope = -24.0 * self.epsilon * (2.0 * six * six - six) / d
        x = ((d - self.switch) / self.width).clamp(0.0, 1.0)
        s = 1.0 - x**5 * (126.0 + x * (-420.0 + x * (540.0 + x * (-315.0 + 70.0 * x))))
        ds = -630.0 * (x * (1.0 - x)) ** 4 / self.width
        inside = (d < self.cutoff).to(d.dtype)
        return energy * s * inside, (slope * s + energy * ds) * inside
