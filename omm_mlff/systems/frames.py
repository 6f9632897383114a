"""Which one of several structures in a file is meant."""

from __future__ import annotations

from pathlib import Path

from omm_mlff.errors import StructureError


def the_frame(path: Path, n_frames: int, frame: int | None, what: str = "frames") -> int:
    """The index of the structure that is meant.

    Parameters
    ----------
    frame : as the user says, from 0; None is enough where there is only one
    what : what the file calls them, such as "models"

    Raises
    ------
    StructureError : there are several and none was named, or not so many
    """
    if frame is None:
        if n_frames > 1:
            raise StructureError(
                f"{path} holds {n_frames} {what}; wanted one structure: name one with --frame "
                f"(0 to {n_frames - 1}), or keep one in the file"
            )
        return 0
    if not 0 <= frame < n_frames:
        raise StructureError(
            f"{path} holds {n_frames} {what}; wanted a --frame from 0 to {n_frames - 1}, got "
            f"{frame}"
        )
    return frame
