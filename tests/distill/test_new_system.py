"""A SMILES becomes a system's folder: structure, bonds, labels, landmarks, in one go."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from omm_mlff import data
from omm_mlff.distill import new_system
from omm_mlff.distill.landmarks import LandmarkPlan
from omm_mlff.distill.new_system import make_structure
from omm_mlff.distill.reference import ReferencePlan
from omm_mlff.errors import InputError, OutputExistsError, UnsupportedSystemError
from omm_mlff.systems import load_system
from omm_mlff.systems.shipped import read_card
from omm_mlff.units import ANGSTROM_PER_NM

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_system.py"


@pytest.fixture
def systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `systems/`."""
    (tmp_path / "systems").mkdir()
    monkeypatch.setattr(new_system, "N_STARTS", 4)
    monkeypatch.setattr(data, "_PACKAGE", tmp_path / "omm_mlff")
    return tmp_path / "systems"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/make_system.py, with few frames and few conformers."""
    spec = importlib.util.spec_from_file_location("make_system", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    few = ReferencePlan(
        trajectories=((300.0, 2),), frames=2, stride_ps=0.005, equilibration_ps=0.005
    )
    monkeypatch.setattr(module, "ReferencePlan", lambda: few)
    monkeypatch.setattr(module, "LandmarkPlan", lambda: LandmarkPlan(n_starts=2))
    return module


def test_formaldehyde_is_made_in_one_go(teacher, systems, script, capsys) -> None:
    words = ["formaldehyde", "--smiles", "C=O", "--title", 'The "smallest" aldehyde']
    assert script.main(words) == 0
    told = capsys.readouterr().out
    assert "make_native.py formaldehyde" in told
    card = read_card("formaldehyde")
    assert (card.title, card.formula, card.charge) == ('The "smallest" aldehyde', "CH2O", 0)
    assert card.bonds == ((0, 1), (0, 2), (0, 3))
    system = load_system("formaldehyde")
    assert system.species.tolist() == [6, 8, 1, 1]
    bonds = np.linalg.norm(system.positions[1:] - system.positions[0], axis=1) * ANGSTROM_PER_NM
    # Takagi & Oka, J. Phys. Soc. Jpn. 18, 1174 (1963): 1.203 and 1.101 angstrom.
    assert bonds == pytest.approx([1.203, 1.101, 1.101], abs=0.015)
    assert system.reference is not None
    assert (system.reference.n_frames, system.reference.method) == (4, "ANI-1ccx")
    assert system.landmarks is not None
    assert len(system.landmarks.frequencies) == 6
    # The structure is at rest, to the three decimals of a PDB file.
    _, forces, _ = teacher.label(system.species, system.positions[None] * ANGSTROM_PER_NM)
    assert np.abs(forces).max() < 0.1


def test_one_part_of_a_system_is_made_anew_and_the_others_stay(
    teacher, systems, script, capsys
) -> None:
    make_structure("water", "O", teacher)
    assert script.main(["water", "--only", "landmarks"]) == 0
    assert sorted(path.name for path in (systems / "water").iterdir()) == [
        "landmarks.npz",
        "landmarks.toml",
        "structure.pdb",
        "system.toml",
    ]
    assert script.main(["watr"]) == 2
    assert "unknown system 'watr'" in capsys.readouterr().err


def test_the_structure_is_the_lowest_minimum(teacher, systems) -> None:
    """Formic acid: the hydroxyl's hydrogen towards the other oxygen, by 0.17 eV."""
    make_structure("formic-acid", "OC=O", teacher)
    system = load_system("formic-acid")
    hydroxyl, carbon, carbonyl = 0, 1, 2
    (hydrogen,) = (int(j) for i, j in system.bonds if i == hydroxyl and j > carbonyl)
    x = system.positions
    one, axis, other = x[hydrogen] - x[hydroxyl], x[carbon] - x[hydroxyl], x[carbonyl] - x[carbon]
    assert np.dot(np.cross(one, axis), np.cross(axis, other)) < 0.0  # cis: the same side
    energies, _, _ = teacher.label(system.species, x[None] * ANGSTROM_PER_NM)
    turned = x.copy()
    turned[hydrogen] = x[hydroxyl] + one - 2.0 * (one - axis * (one @ axis) / (axis @ axis))
    higher, _, _ = teacher.label(system.species, turned[None] * ANGSTROM_PER_NM)
    assert higher[0] > energies[0] + 0.1


@pytest.mark.parametrize(
    ("name", "smiles", "error", "words"),
    [
        ("Water!", "O", InputError, "small letters, digits and hyphens"),
        ("../water", "O", InputError, "small letters, digits and hyphens"),
        ("water", "not a SMILES", InputError, "no SMILES that RDKit reads"),
        ("water-twice", "O.O", InputError, "several molecules"),
        ("hydronium", "[OH3+]", InputError, r"the charge \+1"),
        ("methyl", "[CH3]", InputError, "unpaired electrons"),
        ("chloromethane", "CCl", UnsupportedSystemError, "17|Cl"),
    ],
)
def test_what_cannot_be_made_leaves_no_folder(teacher, systems, name, smiles, error, words) -> None:
    with pytest.raises(error, match=words):
        make_structure(name, smiles, teacher)
    assert list(systems.iterdir()) == []


def test_a_system_that_is_there_is_not_overwritten(teacher, systems) -> None:
    (systems / "water").mkdir()
    with pytest.raises(OutputExistsError, match="is there already"):
        make_structure("water", "O", teacher)
