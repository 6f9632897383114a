"""The command `export`, and what it writes where this package is not."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

import numpy as np
import pytest

from omm_mlff.cli.export import in_order
from omm_mlff.cli.main import main
from omm_mlff.potentials.registry import load_potential
from omm_mlff.systems import load_system

PLUGIN = re.compile(r"acellera-openmmtorch-\w+")


def required(names: list[str]) -> set[str]:
    """These distributions and all that they require, as far as it is installed."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        try:
            one = distribution(waiting.pop())
        except PackageNotFoundError:
            continue
        name = one.name.lower()
        if name not in found:
            found.add(name)
            waiting += [
                re.match(r"[\w.-]+", line).group()
                for line in one.requires or ()
                if "extra ==" not in line
            ]
    return found


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """The Python of a new environment with torch, openmm, openmm-torch and what they require."""
    plugin = [d.name for d in distributions() if PLUGIN.fullmatch(d.name or "")]
    if not plugin:
        pytest.skip("openmm-torch is not installed")
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    names = required(["torch", "openmm", *plugin])
    assert names.isdisjoint({"omm-mlff", "vesin-torch", "vesin"})
    for name in names:
        for file in distribution(name).files or ():
            if file.parts[0] in ("..", "__pycache__"):
                continue
            link = site / file.parts[0]
            if not link.exists():
                link.symlink_to(Path(file.locate()).parents[len(file.parts) - 1] / file.parts[0])
    return folder / "bin" / "python"


PRECISELY = """
import importlib.util, json
for absent in ("omm_mlff", "vesin", "vesin_torch"):
    assert importlib.util.find_spec(absent) is None, absent
found = {}
for name in ("Reference", "CPU"):
    platform = openmm.Platform.getPlatformByName(name)
    again = openmm.Context(system, openmm.VerletIntegrator(0.0005), platform)
    again.setPositions(pdb.positions)
    state = again.getState(energy=True, forces=True)
    found[name] = (state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value.tolist())
positions = pdb.getPositions(asNumpy=True)._value.tolist()
vectors = pdb.topology.getPeriodicBoxVectors()
box = None if vectors is None else [list(v) for v in vectors._value]
print(json.dumps([found, positions, box]))
"""


@pytest.mark.parametrize(("name", "forces"), [("ethanol", False), ("water-box:64", True)])
def test_the_printed_script_gives_the_students_numbers_without_this_package(
    tmp_path, capsys, elsewhere, name, forces
):
    words = ["export", "--model", "tiny", "--system", name, "--out", str(tmp_path / "there.pt")]
    assert main(words + ["--forces"] * forces) == 0
    printed = capsys.readouterr().out
    usage = printed[printed.index("import torch") : printed.index("\nJudge it with")]
    assert len(usage.strip().splitlines()) <= 13
    system = load_system(name)
    rng = np.random.default_rng(1)
    moved = system.positions + rng.normal(scale=0.004, size=system.positions.shape)
    dataclasses.replace(system, positions=moved).to_pdb(tmp_path / "there.pdb")
    (tmp_path / "use.py").write_text(usage + PRECISELY)
    done = subprocess.run(
        [elsewhere, "-I", "-W", "ignore", "use.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    found, positions, box = json.loads(lines[-1])
    there = dataclasses.replace(
        system, box_vectors=None if box is None else np.array(box), positions=np.array(positions)
    )
    energies, given = load_potential("tiny").energies_and_forces(np.array([positions]), there)
    assert float(lines[-2].split()[0]) == pytest.approx(energies[0], abs=1e-3)
    for energy, forces_there in found.values():
        assert energy == pytest.approx(energies[0], abs=1e-3)
        error = np.linalg.norm(np.array(forces_there) - given[0]) / np.linalg.norm(given[0])
        assert error < 1e-5


@pytest.mark.parametrize(("name", "forces"), [("ethanol", False), ("water-box:64", True)])
def test_the_printed_script_runs_as_it_stands_without_this_package(
    tmp_path, capsys, elsewhere, monkeypatch, name, forces
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my models").mkdir()
    words = ["export", "--model", "tiny", "--system", name, "--out", "my models/t.pt"]
    assert main(words + ["--forces"] * forces) == 0
    printed = capsys.readouterr().out
    usage = printed[printed.index("import torch") : printed.index("\nJudge it with")]
    (tmp_path / "use.py").write_text(usage)
    done = subprocess.run(
        [elsewhere, "-I", "-W", "ignore", "use.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    system = load_system(name)
    energies, given = load_potential("tiny").energies_and_forces(system.positions[None], system)
    told, unit = done.stdout.split()
    assert unit == "kJ/mol"
    # A PDB file rounds a coordinate by up to 5e-5 nm: the energy follows the forces.
    assert float(told) == pytest.approx(energies[0], abs=5e-5 * np.abs(given[0]).sum() + 0.05)


def test_an_existing_file_is_kept_unless_told_otherwise(tmp_path, capsys):
    words = ["export", "--model", "tiny", "--system", "water", "--out", str(tmp_path / "w.pt")]
    assert main(words) == 0
    before = (tmp_path / "w.pt").read_bytes()
    assert main([*words, "--forces"]) == 2
    assert "is there already; take another name, or --overwrite" in capsys.readouterr().err
    assert (tmp_path / "w.pt").read_bytes() == before
    (tmp_path / "w.pt").unlink()
    assert main(words) == 2
    assert "w.pdb is there already" in capsys.readouterr().err
    assert main([*words, "--forces", "--overwrite"]) == 0
    assert (tmp_path / "w.pt").read_bytes() != before


def test_what_is_printed_names_the_atoms_and_the_units(tmp_path, capsys):
    path = tmp_path / "e.pt"
    assert main(["export", "--model", "tiny", "--system", "ethanol", "--out", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "tiny (76,993 parameters, cutoff 0.5 nm) for 9 atoms in this order" in printed
    assert "C x2 O H x6" in printed
    assert "takes positions in nm, gives energy in kJ/mol" in printed
    assert f"omm-mlff validate --model {path} --system ethanol" in printed


def test_elements_are_written_briefly_and_in_order():
    assert in_order(list("OHHOHH")) == "O H H (2 times)"
    assert in_order(list("CCOHHHHHH")) == "C x2 O H x6"
    assert in_order(list("HOH")) == "H O H"
