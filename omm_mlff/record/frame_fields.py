"""What a recorded frame holds: the one list of its fields.

Run directory, recorder, reporters and whoever reads whole frames go by it. A field more is one row
here, a value of that name in `dynamics.frames.Frames`, and a property of `ReplicaRecord` where it
is to be read by name.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FrameField:
    """One field of a frame.

    Attributes
    ----------
    name : ours
    dataset : MDTraj's, in the HDF5 file
    unit : as MDTraj's layout spells it
    per_atom : a vector for each atom; else one number
    getter : of an openmm.State
    asked_as : what a reporter of OpenMM asks for, so that the State has it; empty: it always has
    """

    name: str
    dataset: str
    unit: str
    per_atom: bool
    getter: str
    asked_as: str


FRAME_FIELDS = (
    FrameField("time", "time", "picoseconds", False, "getTime", ""),
    FrameField(
        "potential_energy",
        "potentialEnergy",
        "kilojoules_per_mole",
        False,
        "getPotentialEnergy",
        "energy",
    ),
    FrameField(
        "kinetic_energy",
        "kineticEnergy",
        "kilojoules_per_mole",
        False,
        "getKineticEnergy",
        "energy",
    ),
    FrameField("positions", "coordinates", "nanometers", True, "getPositions", "positions"),
    FrameField(
        "velocities", "velocities", "nanometers/picosecond", True, "getVelocities", "velocities"
    ),
    FrameField("forces", "forces", "kilojoules_per_mole/nanometer", True, "getForces", "forces"),
)

FIELDS = tuple(row.name for row in FRAME_FIELDS)
"""Their names."""
