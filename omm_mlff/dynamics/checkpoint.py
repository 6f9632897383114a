"""Where a batch of replicas goes on: a file, replaced as a whole once its segments are closed."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from omm_mlff.errors import RunDirectoryError
from omm_mlff.record import rundir


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything that Verlet's next step, and the watch, depend on.

    Attributes
    ----------
    step : steps completed
    segment : number of the next segment
    positions, velocities : shape (n_replicas, n_atoms, 3), nm and nm/ps, as the integrator has them
    alive : shape (n_replicas,)
    first_energy, steps_stretched : of the `Watch`
    checkpoint : OpenMM's own, shape (n_bytes,), for the random stream of a thermostat; else empty
    """

    step: int
    segment: int
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]
    alive: NDArray[np.bool_]
    first_energy: NDArray[np.float64]
    steps_stretched: NDArray[np.int64]
    checkpoint: NDArray[np.uint8]

    @classmethod
    def read(cls, path: Path) -> Checkpoint | None:
        """What a file holds; None where there is none.

        Raises
        ------
        RunDirectoryError : it is damaged
        """
        if not path.exists():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                arrays = {field.name: kept[field.name] for field in fields(cls)}
            arrays["step"], arrays["segment"] = int(arrays["step"]), int(arrays["segment"])
            arrays["alive"] = arrays["alive"].astype(bool)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise RunDirectoryError(
                f"{path} is damaged ({error}); remove the run's folder and repeat it"
            ) from error
        return cls(**arrays)

    def write(self, path: Path) -> None:
        """Put it in the place of the one before.

        Raises
        ------
        StorageError : it cannot be written; the one before is still there
        """
        partial = path.with_suffix(".partial.npz")
        with rundir.storage_errors(path):
            np.savez(partial, **{field.name: getattr(self, field.name) for field in fields(self)})
            os.replace(partial, path)
