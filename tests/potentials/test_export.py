"""A student as a file for openmm-torch users: what stands in it, and where it is refused."""

from __future__ import annotations

import dataclasses
import json
import zipfile

import numpy as np
import pytest
import torch

from omm_mlff.dynamics.evaluator import Evaluator
from omm_mlff.errors import InputError, OutputExistsError, UnsupportedSystemError
from omm_mlff.forces.scripting import read_script
from omm_mlff.potentials.export import export_student
from omm_mlff.potentials.registry import load_potential
from omm_mlff.systems import load_system


def disturbed(system, n_frames=4, seed=0):
    rng = np.random.default_rng(seed)
    return system.positions + rng.normal(scale=0.004, size=(n_frames, system.n_atoms, 3))


@pytest.mark.parametrize("forces", [False, True])
@pytest.mark.parametrize("name", ["ethanol", "water-box:64"])
def test_an_exported_student_gives_through_openmm_what_the_student_gives(tmp_path, name, forces):
    system = load_system(name)
    exported = export_student("tiny", system, tmp_path / "tiny-there.pt", forces=forces)
    there = load_potential(str(exported.path))
    frames = disturbed(system, 1 if system.periodic else 4)
    results = []
    for potential in (there, load_potential("tiny")):
        with Evaluator(potential, system, "Reference") as evaluator:
            results.append(evaluator.evaluate(frames))
    (energies, given), (expected, expected_forces) = results
    np.testing.assert_allclose(energies, expected, rtol=0, atol=1e-3)
    error = np.linalg.norm(given - expected_forces) / np.linalg.norm(expected_forces)
    assert error < 1e-5
    assert exported.energy_kjmol == pytest.approx(
        there.energies_and_forces(system.positions[None], system)[0][0], abs=1e-3
    )


@pytest.mark.parametrize("name", ["ethanol", "water-box:64"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_forces_in_a_file_are_as_the_plugin_reads_them(tmp_path, name, dtype):
    """Others run it without this package: of the positions' dtype, contiguous, without a graph."""
    system = load_system(name)
    exported = export_student("tiny", system, tmp_path / "tiny.pt", forces=True)
    module = read_script(exported.path.read_bytes())
    positions = torch.from_numpy(system.positions).to(dtype)
    box = [] if system.box_vectors is None else [torch.from_numpy(system.box_vectors).to(dtype)]
    for given in (positions, positions.t().contiguous().t(), positions.clone().requires_grad_()):
        energy, forces = module(given, *box)
        assert (forces.dtype, forces.shape) == (dtype, positions.shape)
        assert forces.is_contiguous()
        assert not forces.requires_grad
        assert not energy.requires_grad
        assert float(energy) == pytest.approx(exported.energy_kjmol, rel=1e-6)


def test_an_exported_student_keeps_its_card(tmp_path):
    ethanol = load_system("ethanol")
    tiny = load_potential("tiny")
    there = load_potential(str(export_student("tiny", ethanol, tmp_path / "e.pt").path))
    assert there.card.n_parameters == tiny.card.n_parameters
    assert there.card.cutoff_nm == tiny.card.cutoff_nm
    assert there.card.dtype == tiny.card.dtype
    assert there.card.training_domain == tiny.card.training_domain
    assert there.reference_energy(ethanol) == tiny.reference_energy(ethanol)


def test_card_elements_units_and_usage_travel_in_the_file(tmp_path):
    exported = export_student("tiny", load_system("ethanol"), tmp_path / "e.pt")
    with zipfile.ZipFile(exported.path) as archive:
        stored = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    description = json.loads(stored["extra/omm-mlff.json"])
    assert description["elements"] == list("CCOHHHHHH")
    assert description["units"]["energy"] == "kJ/mol"
    assert description["model"]["name"] == "tiny"
    told = stored["extra/usage.py"].decode()
    assert told.replace('"e.', f'"{tmp_path.as_posix()}/e.') == exported.usage
    compile(told, "usage.py", "exec")
    compile(exported.usage, "usage.py", "exec")


def test_other_atoms_or_another_order_are_refused(tmp_path):
    ethanol = load_system("ethanol")
    there = load_potential(str(export_student("tiny", ethanol, tmp_path / "e.pt").path))
    assert there.unsupported(ethanol) is None
    turned = dataclasses.replace(ethanol, species=ethanol.species[::-1].copy())
    assert "exported for 9 atoms, C C O H H H H H H in this order" in there.unsupported(turned)
    assert "this system has 3, O H H" in there.unsupported(load_system("water"))


def test_what_cannot_be_written_is_refused(tmp_path):
    water = load_system("water")
    export_student("tiny", water, tmp_path / "w.pt")
    with pytest.raises(OutputExistsError, match="is there already"):
        export_student("tiny", water, tmp_path / "w.pt")
    export_student("tiny", water, tmp_path / "w.pt", overwrite=True)
    with pytest.raises(InputError, match=r"wanted a file named \*\.pt"):
        export_student("tiny", water, tmp_path / "w.onnx")
    with pytest.raises(InputError, match="there is no folder"):
        export_student("tiny", water, tmp_path / "nowhere" / "w.pt")
    with pytest.raises(UnsupportedSystemError, match="twice the cutoff"):
        export_student("tiny", load_system("water-box:8"), tmp_path / "b.pt")
    with pytest.raises(UnsupportedSystemError, match="charge"):
        export_student("tiny", dataclasses.replace(water, charge=1), tmp_path / "c.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.pdb", "w.pt"]
