"""Documents of a made-up run directory, for tests that need no simulation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from omm_mlff.record.documents import write_document
from omm_mlff.record.provenance import (
    RecordedIntegrator,
    RecordedMolecule,
    RecordedPotential,
    RunProvenance,
)
from omm_mlff.record.rundir import PROVENANCE_FILE, SPEC_FILE, STATUS_FILE
from omm_mlff.record.status import RunStatus
from omm_mlff.schema import RunSpec

WATER = RecordedMolecule(
    name="water",
    species=(8, 1, 1),
    masses=(16.0, 1.0, 1.0),
    bonds=((0, 1), (0, 2)),
    positions=((0.0, 0.0, 0.0), (0.0958, 0.0, 0.0), (-0.024, 0.0927, 0.0)),
)

PROVENANCE = RunProvenance(
    versions={"omm-mlff": "0.1.0"},
    python="3.11.7",
    machine="x86_64",
    platform="Reference",
    precision="double",
    recording="tap",
    torch_threads=1,
    potential=RecordedPotential("tiny", "student"),
    start="minimum",
    n_dof=3,
    molecule=WATER,
    integrator=RecordedIntegrator("VerletIntegrator", "on the step"),
)


COMPLETE = RunStatus("complete", 0, {}, {})


def write_documents(
    folder: Path, spec: RunSpec, status: RunStatus = COMPLETE, **changes: object
) -> None:
    """The three documents of a run directory, the provenance with changes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_document(folder / SPEC_FILE, spec)
    provenance = dataclasses.replace(PROVENANCE, **changes)  # type: ignore[arg-type]
    write_document(folder / PROVENANCE_FILE, provenance)
    write_document(folder / STATUS_FILE, status)
