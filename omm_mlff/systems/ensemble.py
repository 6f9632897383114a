"""The reference ensemble of a shipped system: configurations in equilibrium by another method.

A file `ensemble.npz` beside the structure. It says of itself how it was made, and holds a hash of
its own arrays, so that a file that was cut short or changed is not believed.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omm_mlff.errors import StructureError
from omm_mlff.schema import MolecularSystem

ENSEMBLE = "ensemble.npz"


@dataclass(frozen=True, eq=False)
class ReferenceEnsemble:
    """Frames of independent replicas in equilibrium, by a reference method.

    Attributes
    ----------
    positions : shape (n_replicas, n_frames, n_atoms, 3), nm, each frame about its centroid
    temperature_K : of the thermostat
    spacing_ps : between the frames of a replica
    method : whose energy surface it is, such as "ANI-1ccx"
    dynamics : how it was sampled, one line
    seed : of the sampling
    sha256 : of the arrays, see `content_hash`
    """

    positions: NDArray[np.float64]
    temperature_K: float
    spacing_ps: float
    method: str
    dynamics: str
    seed: int
    sha256: str

    @property
    def n_replicas(self) -> int:
        return len(self.positions)


def reference_ensemble(system: MolecularSystem) -> ReferenceEnsemble | None:
    """The ensemble that is shipped with a system; None where there is none.

    Raises
    ------
    StructureError : the file is damaged, or is not of this molecule
    """
    path = Path(system.source) / ENSEMBLE
    if not path.is_file():
        return None
    try:
        # From memory: numpy leaves a file open that proves to be no archive.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            positions = stored["positions"]
            replica = stored["replica"]
            texts = {key: str(stored[key]) for key in ("method", "dynamics", "sha256")}
            temperature, spacing = float(stored["temperature_K"]), float(stored["spacing_ps"])
            seed = int(stored["seed"])
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise StructureError(
            f"the reference ensemble {path} cannot be read ({error}); reinstall omm-mlff"
        ) from error
    found = content_hash(positions, replica)
    if found != texts["sha256"]:
        raise StructureError(
            f"the reference ensemble {path} has changed: wanted sha256 {texts['sha256'][:12]}..., "
            f"got {found[:12]}...; reinstall omm-mlff, or make it anew"
        )
    n_replicas = len(np.unique(replica))
    shape = (n_replicas, len(replica) // max(1, n_replicas), system.n_atoms, 3)
    in_order = np.array_equal(replica, np.repeat(np.arange(n_replicas), shape[1]))
    if positions.shape != (len(replica), *shape[2:]) or not in_order:
        raise StructureError(
            f"the reference ensemble {path}: wanted replicas of equal length, one after another, "
            f"of {system.n_atoms} atoms; got positions of {positions.shape}; make it anew"
        )
    return ReferenceEnsemble(
        positions=positions.reshape(shape).astype(np.float64),
        temperature_K=temperature,
        spacing_ps=spacing,
        seed=seed,
        **texts,
    )


def content_hash(positions: NDArray[np.float32], replica: NDArray[np.int16]) -> str:
    """SHA-256 of the arrays as they are stored.

    Parameters
    ----------
    positions : shape (n_frames, n_atoms, 3), nm
    replica : shape (n_frames,)
    """
    digest = hashlib.sha256(np.ascontiguousarray(positions).tobytes())
    digest.update(np.ascontiguousarray(replica).tobytes())
    return digest.hexdigest()
