"""What passes between stages comes back from JSON as it went, and says no more than it knows."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from openmm import app, unit

from omm_mlff.schema import (
    CONFIDENCE,
    MAX_LOOKS,
    SIGNIFICANCE,
    Criterion,
    Finding,
    Measurement,
    MolecularSystem,
    RunSpec,
    Where,
    finite,
)
from omm_mlff.systems import load_system

NAN, INF = float("nan"), float("inf")
PLACE = Where("water", "water-nve-300K-0.5fs-5ps-x16", 300.0, 3, 531, "O", (0, 2))
MEASUREMENTS = (
    Measurement("nve.drift", "sampled", 0.002, "meV/atom/ps", -INF, INF, 1, PLACE, INF, 1.0),
    Measurement("nve.drift", "sampled", NAN, "meV/atom/ps", NAN, NAN, 0, PLACE, cause="it broke"),
    Measurement("stability.crashes", "count", 1.0, "1", 1.0, 1.0, 8, PLACE, exposure_ps=16.0),
    Measurement.exact("gradient.error", 2e-8, "1", PLACE, 32, "one line"),
    Measurement.inapplicable("parity.energy", "deterministic", "meV/atom", PLACE, "no tap"),
)


def through_json(data: dict) -> dict:
    return json.loads(json.dumps(data, allow_nan=False))


def same(one: object, other: object) -> bool:
    """Equal, where two NaN are equal too."""
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("row", MEASUREMENTS)
def test_a_measurement_comes_back_as_it_went(row: Measurement) -> None:
    again = Measurement.from_json(through_json(row.to_json()))
    for field in dataclasses.fields(Measurement):
        assert same(getattr(row, field.name), getattr(again, field.name)), field.name


def test_a_finding_comes_back_as_it_went() -> None:
    row = Finding(
        policy="strict",
        criterion="drift-limit",
        measurement="nve.drift",
        system="water",
        run=PLACE.run,
        temperature_K=300.0,
        status="undecided",
        kind="sampled",
        value=NAN,
        unit="meV/atom/ps",
        ci_low=-INF,
        ci_high=INF,
        bound="<= 0.01",
        severity="limit",
        cause="",
        where=PLACE,
        low=None,
        high=0.01,
        p_value=NAN,
        more_ps=INF,
    )
    again = Finding.from_json(through_json(row.to_json()))
    for field in dataclasses.fields(Finding):
        assert same(getattr(row, field.name), getattr(again, field.name)), field.name


def test_a_criterion_comes_back_as_it_went_and_may_leave_lists_out() -> None:
    row = Criterion(
        "rmse",
        "accuracy.force_rmse",
        None,
        0.2,
        "eV/angstrom",
        "reject",
        "M6",
        systems=("water",),
        dtypes=("float32",),
        temperatures_K=(100.0, 300.0),
    )
    assert Criterion.from_json(through_json(row.to_json())) == row
    short = {key: value for key, value in row.to_json().items() if not isinstance(value, list)}
    bare = Criterion.from_json(short)
    assert (bare.systems, bare.dtypes, bare.temperatures_K) == ((), (), ())


@pytest.mark.parametrize(("value", "reason"), [(None, ""), (1.0, "no tap")])
def test_a_measurement_has_a_value_or_a_reason_and_never_both(
    value: float | None, reason: str
) -> None:
    with pytest.raises(ValueError, match="never both"):
        Measurement("a.b", "info", value, "1", None, None, 0, Where(), not_applicable=reason)


def test_what_is_deterministic_has_its_value_for_an_interval() -> None:
    row = Measurement.exact("gradient.error", 2e-8, "1", PLACE, 32)
    assert (row.ci_low, row.value, row.ci_high, row.kind) == (2e-8, 2e-8, 2e-8, "deterministic")


def test_three_looks_share_the_error_of_one_verdict() -> None:
    assert pytest.approx(SIGNIFICANCE) == MAX_LOOKS * (1.0 - CONFIDENCE)


SPEC = RunSpec("tiny", "water", 5.0, 300.0, 16, seed=7)


@pytest.mark.parametrize(
    ("length_ps", "timestep_fs", "n_steps"),
    [(5.0, 0.5, 10_000), (0.3, 0.1, 3000), (2.0, 0.3, 6667), (0.0005, 0.5, 1)],
)
def test_steps_are_the_nearest_number_to_the_length(
    length_ps: float, timestep_fs: float, n_steps: int
) -> None:
    spec = dataclasses.replace(SPEC, length_ps=length_ps, timestep_fs=timestep_fs)
    assert spec.n_steps == n_steps


def test_a_run_comes_back_as_it_went() -> None:
    spec = dataclasses.replace(SPEC, ensemble="nvt", purpose="thermostat", record_stride=4)
    assert RunSpec.from_json(through_json(spec.to_json())) == spec
    with pytest.raises(TypeError, match="n_walkers"):
        RunSpec.from_json({**SPEC.to_json(), "n_walkers": 3})


def test_a_runs_name_tells_apart_what_a_profile_can_vary_and_is_one_folder() -> None:
    changes = (
        {},
        {"system": "methane"},
        {"length_ps": 10.0},
        {"temperature_K": 500.0},
        {"timestep_fs": 0.25},
        {"n_replicas": 8},
        {"ensemble": "nvt"},
        {"purpose": "survival"},
        {"purpose": "timestep"},
        {"system": "my/own/file.pdb"},
    )
    names = [dataclasses.replace(SPEC, **change).name for change in changes]
    assert names[0] == "water-nve-300K-0.5fs-5ps-x16"
    assert len(set(names)) == len(names)
    assert all(Path(name).name == name for name in names)


def test_nothing_that_json_lacks_is_left() -> None:
    given = {
        1: np.float64(NAN),
        "list": [INF, -INF, 0.5, (1, None)],
        "array": np.array([[1.0, NAN], [2.0, 3.0]]),
        "flag": np.bool_(True),
        "path": Path("a") / "b",
        "word": "nan",
    }
    assert through_json(finite(given)) == {
        "1": "nan",
        "list": ["inf", "-inf", 0.5, [1, None]],
        "array": [[1.0, "nan"], [2.0, 3.0]],
        "flag": True,
        "path": "a/b",
        "word": "nan",
    }


def test_a_system_counts_its_atoms_and_knows_whether_it_is_a_box() -> None:
    system = MolecularSystem(
        "water",
        "tests",
        None,  # type: ignore[arg-type]
        np.zeros((3, 3)),
        np.array([8, 1, 1]),
        np.array([15.999, 1.008, 1.008]),
        np.array([[0, 1], [0, 2]]),
    )
    assert (system.n_atoms, system.periodic) == (3, False)
    assert dataclasses.replace(system, box_vectors=np.eye(3)).periodic


@pytest.mark.parametrize("name", ["alanine-dipeptide", "water-box:64"])
def test_a_pdb_has_the_atoms_where_they_are_and_the_box(tmp_path, name):
    system = load_system(name)
    system.to_pdb(tmp_path / "to.pdb")
    with (tmp_path / "written.pdb").open("w") as file:
        app.PDBFile.writeFile(system.topology, system.positions_quantity, file)
    for path in ("to.pdb", "written.pdb"):
        found = app.PDBFile(str(tmp_path / path))
        positions = found.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        np.testing.assert_allclose(positions, system.positions, atol=5.1e-5)
        elements = [atom.element.atomic_number for atom in found.topology.atoms()]
        assert elements == system.species.tolist()
        box = found.topology.getPeriodicBoxVectors()
        assert (box is not None) == system.periodic
        if box is not None:
            np.testing.assert_allclose(
                box.value_in_unit(unit.nanometer), system.box_vectors, atol=1e-4
            )


def test_atoms_of_one_name_are_told_apart_in_a_pdb(tmp_path):
    ethanol = load_system("ethanol")
    topology = app.Topology()
    residue = topology.addResidue("UNK", topology.addChain())
    for atom in ethanol.topology.atoms():
        topology.addAtom("HHHH1" if atom.element.symbol == "H" else "X", atom.element, residue)
    system = dataclasses.replace(ethanol, topology=topology)
    system.to_pdb(tmp_path / "a.pdb")
    found = app.PDBFile(str(tmp_path / "a.pdb")).topology
    assert [atom.element.symbol for atom in found.atoms()] == list("CCOHHHHHH")
    assert next(system.topology.atoms()).name == "X"
