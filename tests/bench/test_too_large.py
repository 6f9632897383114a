"""What has no room is left out, and said."""

import pytest

from omm_mlff.bench.bench import QUICK, run_bench
from omm_mlff.potentials.student import StudentPotential
from omm_mlff.schema import MolecularSystem


@pytest.mark.slow
@pytest.mark.timed
def test_script_that_has_no_room_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    served = StudentPotential.unsupported

    def unsupported(potential: StudentPotential, system: MolecularSystem) -> str:
        if potential.engine == "scripted":
            return "one step needs about 9.9 GiB of memory"
        return served(potential, system)

    monkeypatch.setattr(StudentPotential, "unsupported", unsupported)
    result = run_bench(["ultra-tiny"], ["water"], n_replicas=2, effort=QUICK)["results"][0]
    left_out = {row["way"] for row in result["skipped"] if "9.9 GiB" in row["reason"]}
    assert left_out == {"yardstick", "plain TorchScript", "ASE"}
    assert {row["way"] for row in result["ways"]} >= {"single", "recorded"}
    assert result["analysis"]["ratio"]["value"] > 1.0
