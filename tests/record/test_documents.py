"""Documents: typed, with a schema, whole or refused by name; older ones are read."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from run_documents import PROVENANCE, write_documents

from omm_mlff.campaign.request import CampaignRequest
from omm_mlff.errors import InputError, RunDirectoryError
from omm_mlff.record.documents import read_document, write_document
from omm_mlff.record.provenance import RunProvenance
from omm_mlff.record.rundir import RunRecord
from omm_mlff.record.status import BatchStatus, RunStatus
from omm_mlff.schema import Event, RunSpec

DATA = Path(__file__).resolve().parent.parent / "data" / "finished"
OLD_RUN = DATA / "runs" / "water-nve-300K-0.5fs-2ps-x8"

SPEC = RunSpec("tiny", "water", 2.0, 300.0, 8, seed=1)
NAN = Event("nan", 531, 0.2655, (0, 1), math.nan, "kJ/mol", "energy or forces are not finite")
STATUS = RunStatus(
    "complete",
    4000,
    {0: BatchStatus((0, 7), 0.382, 4000, 4000, ((0, 256, 9.5e-5, 635.168),), (100,))},
    {3: NAN},
)
REQUEST = CampaignRequest("tiny", None, "quick", {"water": "c6"}, (), 0, "auto")


def test_an_event_whose_value_is_no_number_comes_back_as_a_number(tmp_path: Path) -> None:
    write_documents(tmp_path, SPEC, STATUS)
    text = (tmp_path / "status.json").read_text()
    assert '"value": "nan"' in text  # as JSON has it, and as older versions wrote it
    (event,) = RunRecord.open(tmp_path).events.values()
    assert isinstance(event.value, float)
    assert math.isnan(event.value)
    (old,) = RunRecord.open(OLD_RUN).events.values()
    assert isinstance(old.value, float)
    assert math.isnan(old.value)


@pytest.mark.parametrize("document", [SPEC, PROVENANCE, STATUS, REQUEST])
def test_a_document_is_read_as_it_was_written(tmp_path: Path, document: object) -> None:
    path = tmp_path / "document.json"
    write_document(path, document)
    assert json.loads(path.read_text())["schema"] == 1
    again = read_document(path, type(document))
    assert repr(again) == repr(document)


def test_what_an_older_version_wrote_is_read(tmp_path: Path) -> None:
    record = RunRecord.open(OLD_RUN)
    assert "schema" not in json.loads((OLD_RUN / "status.json").read_text())
    assert record.status.state == "complete"
    assert record.status.batches[0].replicas == (0, 7)
    assert record.pace.memory_MiB.shape == (3,)
    assert record.provenance.molecule.name == "water"
    assert record.provenance.integrator.friction_per_ps is None
    assert (record.n_dof, record.species.tolist()) == (3, [8, 1, 1])
    request = read_document(DATA / "campaign.json", CampaignRequest)
    assert [run.system for run in request.runs] == ["water", "methane", "alanine"]


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("status.json", {"schema": 2}, "is of schema 2, wanted 1; update omm-mlff"),
        ("status.json", {"state": "asleep"}, "is damaged at state"),
        ("status.json", {"moon": 1}, "is damaged at moon"),
        ("status.json", {"batches": {"0": {"wall_s": "long"}}}, "is damaged at batches.0.wall_s"),
        ("status.json", {"events": {"1": {"kind": "bored"}}}, "is damaged at events.1.kind"),
        ("provenance.json", {"n_dof": None}, "is damaged at n_dof"),
        ("provenance.json", {"molecule": {"name": "water"}}, "is damaged at molecule.species"),
        ("spec.json", {"length_ps": "long"}, "is damaged at length_ps"),
        ("spec.json", {"colour": "red"}, "is damaged at colour"),
    ],
)
def test_what_is_unknown_or_damaged_is_refused_by_its_name(
    tmp_path: Path, name: str, change: dict[str, object], complaint: str
) -> None:
    write_documents(tmp_path, SPEC, STATUS)
    path = tmp_path / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RunDirectoryError) as caught:
        RunRecord.open(tmp_path)
    assert f"{path} {complaint}" in str(caught.value)


def test_the_caller_says_which_error_a_bad_document_is(tmp_path: Path) -> None:
    (tmp_path / "campaign.json").write_text("[]")
    with pytest.raises(InputError, match=r"campaign\.json is damaged: expected a JSON object"):
        read_document(tmp_path / "campaign.json", CampaignRequest, InputError)


def test_a_request_names_what_differs() -> None:
    other = dataclasses.replace(REQUEST, seed=1, platform="CPU")
    assert REQUEST.differs_in(other) == ["platform", "seed"]
    assert REQUEST.differs_in(REQUEST) == []


def test_documents_are_read_without_torch_and_the_package_is_imported_without_pydantic() -> None:
    code = (
        "import sys\n"
        "import omm_mlff, omm_mlff.record.rundir, omm_mlff.verdict.judge\n"
        "assert 'pydantic' not in sys.modules\n"
        "for name in ('torch', 'openmm', 'mdtraj', 'rdkit'): sys.modules[name] = None\n"
        f"record = omm_mlff.record.rundir.RunRecord.open({str(OLD_RUN)!r})\n"
        "assert record.status.state == 'complete' and 'pydantic' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_provenance_knows_every_key_that_an_older_version_wrote() -> None:
    written = json.loads((OLD_RUN / "provenance.json").read_text())
    known = {field.name for field in dataclasses.fields(RunProvenance)}
    assert known - set(written) == {"graph", "device", "notices", "earlier"}
    assert set(written) <= known
