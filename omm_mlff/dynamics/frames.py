"""What is recorded of steps in a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of every replica, in the order of time.

    Attributes
    ----------
    time_ps : shape (n_frames,)
    positions, velocities, forces : shape (n_frames, n_replicas, n_atoms, 3), nm, nm/ps, kJ/mol/nm
    potential_energy, kinetic_energy : shape (n_frames, n_replicas), kJ/mol
    """

    time_ps: NDArray[np.float64]
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]
    forces: NDArray[np.float64]
    potential_energy: NDArray[np.float64]
    kinetic_energy: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.time_ps)

    def every(self, stride: int, first: int) -> Frames:
        """Those whose steps are multiples of `stride`, the first of all being step `first`."""
        kept = slice(-first % stride, len(self), stride)
        return Frames(
            self.time_ps[kept],
            self.positions[kept],
            self.velocities[kept],
            self.forces[kept],
            self.potential_energy[kept],
            self.kinetic_energy[kept],
        )
