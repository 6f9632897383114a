"""What an evaluation needs, against what a process was seen to take."""

import numpy as np
import pytest

from omm_mlff.bench.memory import peak_memory
from omm_mlff.errors import UnsupportedSystemError
from omm_mlff.potentials import student as student_potentials
from omm_mlff.potentials.base import build_system
from omm_mlff.potentials.student import StudentPotential
from omm_mlff.students.footprint import available_bytes, directed_pairs, evaluation_bytes
from omm_mlff.students.student import STUDENT_CONFIGS
from omm_mlff.systems import load_system


def test_pairs_of_a_box_are_those_that_a_search_finds() -> None:
    import torch
    from vesin_torch import NeighborList

    system = load_system("water-box:200")
    found = NeighborList(cutoff=0.5, full_list=True).compute(
        points=torch.from_numpy(system.positions),
        box=torch.from_numpy(system.box_vectors),
        periodic=True,
        quantities="i",
    )
    estimate = directed_pairs(system.positions, system.box_vectors, 0.5)
    assert estimate == pytest.approx(len(found[0]), rel=0.05)


def test_pairs_in_vacuum_are_counted() -> None:
    line = np.arange(100.0)[:, None] * [0.1, 0.0, 0.0]
    assert directed_pairs(line, None, 0.25) == 2 * 99 + 2 * 98
    assert directed_pairs(line[:10], None, 0.25) == 90  # a small molecule takes all of them


@pytest.mark.parametrize("compiled", [True, False])
def test_memory_grows_with_the_atoms_and_no_faster(compiled: bool) -> None:
    config = STUDENT_CONFIGS["original"]
    some, more = (
        evaluation_bytes(config, n, 52.0 * n, compiled=compiled, itemsize=4)
        for n in (10_000, 20_000)
    )
    assert some < more <= 2.0 * some


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["tiny?engine=compiled", "tiny?engine=scripted"])
def test_estimate_is_what_a_process_takes_within_a_factor(spec: str) -> None:
    system = load_system("water-box:1000")
    n_pairs = directed_pairs(system.positions, system.box_vectors, 0.5)
    compiled = "compiled" in spec
    estimate = evaluation_bytes(
        STUDENT_CONFIGS["tiny"], system.n_atoms, n_pairs, compiled=compiled, itemsize=4
    )
    peak = peak_memory(spec, "water-box:1000", n_steps=2)
    assert 0.5 < estimate / (peak.host - peak.imported) < 2.0


def test_a_system_too_large_for_the_memory_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    system = load_system("water-box:1000")
    monkeypatch.setattr(student_potentials, "available_bytes", lambda: 2.0**30)
    reason = StudentPotential("tiny", engine="scripted").unsupported(system)
    assert reason is not None
    assert "one step of 3000 atoms needs about 1." in reason
    assert "1.0 GiB are free; take a smaller one, or the compiled engine" in reason
    assert StudentPotential("tiny").unsupported(system) is None
    monkeypatch.setattr(student_potentials, "available_bytes", lambda: 2.0**20)
    assert "take a smaller one" in (StudentPotential("tiny").unsupported(system) or "")


def test_too_many_replicas_for_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student_potentials, "available_bytes", lambda: 2.0**30)
    system = load_system("alanine")
    with pytest.raises(UnsupportedSystemError, match="take fewer replicas"):
        build_system(StudentPotential("original", engine="scripted"), system, n_replicas=1000)


def test_available_memory_is_that_of_the_machine_or_less() -> None:
    import psutil

    assert 0 < available_bytes() <= psutil.virtual_memory().total
