"""Every format gives the same system; topologies take their coordinates from a second file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import pytest
from ase.build import molecule as ase_molecule
from ase.io import write as ase_write
from openmm import app, unit
from rdkit import Chem
from rdkit.Chem import AllChem

from omm_mlff.cli.main import main
from omm_mlff.errors import StructureError
from omm_mlff.schema import MolecularSystem
from omm_mlff.systems import load_system

# ------------------------------------------------------------------------ files with bonds or witho


def save(system: MolecularSystem, path: Path) -> str:
    """A system as a file of the format that the suffix names, by somebody else's writer."""
    positions = system.positions * unit.nanometer
    if path.suffix == ".cif":
        with path.open("w") as file:
            app.PDBxFile.writeFile(system.topology, positions, file)
    elif path.suffix == ".pdb":
        with path.open("w") as file:
            app.PDBFile.writeFile(system.topology, positions, file)
    else:
        topology = mdtraj.Topology.from_openmm(system.topology)
        trajectory = mdtraj.Trajectory(system.positions[None], topology)
        trajectory.save(str(path))
    return str(path)


@pytest.mark.parametrize("suffix", [".pdb", ".cif", ".gro", ".h5"])
@pytest.mark.parametrize("name", ["alanine-dipeptide", "water"])
def test_a_peptide_and_water_survive_every_format(name: str, suffix: str, tmp_path: Path) -> None:
    system = load_system(name)
    read = load_system(save(system, tmp_path / f"copy{suffix}"))
    assert read.species.tolist() == system.species.tolist()
    assert read.bonds.tolist() == system.bonds.tolist()
    assert read.charge == 0
    moved = read.positions - read.positions[0] - system.positions + system.positions[0]
    assert np.abs(moved).max() < (1e-3 if suffix == ".gro" else 1e-4)


def test_ions_survive_mdtraj(tmp_path: Path) -> None:
    rows = "Li 0 0 0\nNa 8 0 0\nF 0 8 0\nCl 0 0 8\n"
    (tmp_path / "salt.xyz").write_text("4\ncharge=0\n" + rows)
    salt = load_system(str(tmp_path / "salt.xyz"))
    assert salt.species.tolist() == [3, 11, 9, 17]
    for suffix in (".pdb", ".h5", ".gro"):
        read = load_system(save(salt, tmp_path / f"salt{suffix}"))
        assert read.species.tolist() == salt.species.tolist(), suffix
        assert len(read.bonds) == 0


def test_a_gro_box_of_zero_is_vacuum_and_another_a_box(tmp_path: Path) -> None:
    gro = "water\n    3\n" + "".join(
        f"    1SOL  {name:>5}{k:5d}{x:8.3f}{y:8.3f}{z:8.3f}\n"
        for k, (name, (x, y, z)) in enumerate(
            zip(
                ("OW", "HW1", "HW2"),
                [(0, 0, 0.012), (0, 0.076, -0.047), (0, -0.076, -0.047)],
                strict=True,
            ),
            1,
        )
    )
    path = tmp_path / "water.gro"
    path.write_text(gro + "   0.00000   0.00000   0.00000\n")
    vacuum = load_system(str(path))
    assert vacuum.species.tolist() == [8, 1, 1]
    assert vacuum.bonds.tolist() == [[0, 1], [0, 2]]
    assert vacuum.box_vectors is None
    path.write_text(gro + "   2.00000   2.00000   2.50000\n")
    boxed = load_system(str(path))
    np.testing.assert_allclose(boxed.box_vectors, np.diag([2.0, 2.0, 2.5]))
    path.write_text(gro * 1 + "   2 2 2\n" + gro + "   2 2 2\n")
    with pytest.raises(StructureError, match=r"2 frames; .*--frame"):
        load_system(str(path))
    assert load_system(str(path), frame=1).n_atoms == 3


def test_a_gro_name_of_two_meanings_is_a_question(tmp_path: Path) -> None:
    path = tmp_path / "hcl.gro"
    rows = "    1LIG    CL1    1   0.000   0.000   0.000\n"
    rows += "    1LIG     H1    2   0.128   0.000   0.000\n"
    path.write_text("hcl\n    2\n" + rows + "   0 0 0\n")
    with pytest.raises(StructureError, match="CL1 could be Cl or C"):
        load_system(str(path))
    path.write_text("hcl\n    2\n" + rows.replace("CL1", "Cl1") + "   0 0 0\n")
    assert load_system(str(path)).species.tolist() == [17, 1]


def test_alternate_locations_in_mmcif_are_refused(tmp_path: Path) -> None:
    text = Path(save(load_system("water"), tmp_path / "water.cif")).read_text()
    rows = [line for line in text.splitlines() if line.startswith(("ATOM", "HETATM"))]
    index = [f.strip() for f in text.splitlines() if f.startswith("_atom_site.")].index(
        "_atom_site.label_alt_id"
    )
    changed = rows[0].split()
    changed[index] = "A"
    other = rows[1].split()
    other[index] = "B"
    text = text.replace(rows[0], " ".join(changed)).replace(rows[1], " ".join(other))
    (tmp_path / "alt.cif").write_text(text)
    with pytest.raises(StructureError, match=r"alternate locations \(A, B\)"):
        load_system(str(tmp_path / "alt.cif"))


@pytest.mark.parametrize(("models", "frame"), [(1, None), (2, 0), (2, 1)])
def test_a_model_of_a_pdb_file_is_named(models: int, frame: int | None, tmp_path: Path) -> None:
    water = load_system("water")
    path = tmp_path / "models.pdb"
    with path.open("w") as file:
        app.PDBFile.writeHeader(water.topology, file)
        for k in range(models):
            shifted = (water.positions + 0.1 * k) * unit.nanometer
            app.PDBFile.writeModel(water.topology, shifted, file, modelIndex=k + 1)
        app.PDBFile.writeFooter(water.topology, file)
    read = load_system(str(path), frame=frame)
    np.testing.assert_allclose(read.positions, water.positions + 0.1 * (frame or 0), atol=1e-4)
    assert read.bonds.tolist() == water.bonds.tolist()


# --------------------------------------------------------------------------------------------- MOL2

ACETATE_MOL2 = """@<TRIPOS>MOLECULE
acetate
 7 6 1 0 0
SMALL
USER_CHARGES

@<TRIPOS>ATOM
 1 C1 -1.3500 0.0000 0.0000 C.3 1 ACT -0.15
 2 C2 0.1700 0.0000 0.0000 C.2 1 ACT 0.75
 3 O1 0.7200 1.1200 0.0000 O.co2 1 ACT -0.83
 4 O2 0.7200 -1.1200 0.0000 O.co2 1 ACT -0.83
 5 H1 -1.7300 1.0200 0.0000 H 1 ACT 0.02
 6 H2 -1.7300 -0.5100 0.8850 H 1 ACT 0.02
 7 H3 -1.7300 -0.5100 -0.8850 H 1 ACT 0.02
@<TRIPOS>BOND
 1 1 2 1
 2 2 3 ar
 3 2 4 ar
 4 1 5 1
 5 1 6 1
 6 1 7 1
"""


def test_a_mol2_has_the_charge_that_its_partial_charges_add_up_to(tmp_path: Path) -> None:
    path = tmp_path / "acetate.mol2"
    path.write_text(ACETATE_MOL2)
    system = load_system(str(path))
    assert (system.n_atoms, system.charge, len(system.bonds)) == (7, -1, 6)
    path.write_text(ACETATE_MOL2.replace("0.75", "0.40"))
    with pytest.raises(StructureError, match=r"add up to -1.35"):
        load_system(str(path))
    path.write_text(ACETATE_MOL2.replace("USER_CHARGES", "NO_CHARGES"))
    with pytest.raises(StructureError, match="--charge -1"):
        load_system(str(path))
    assert load_system(str(path), charge=-1).charge == -1


# --------------------------------------------------------------------------------- Amber and CHARMM

PRMTOP = """%VERSION  VERSION_STAMP = V0001.000  DATE = 01/01/26  00:00:00
%FLAG TITLE
%FORMAT(20a4)
acetate
%FLAG POINTERS
%FORMAT(10I8)
       7       4       3       3       0       0       0       0       0       0
       0       1       3       0       0       4       0       0       4       0
       0       0       0       0       0       0       0       0       7       0
       0
%FLAG ATOM_NAME
%FORMAT(20a4)
C1  C2  O1  O2  H1  H2  H3
%FLAG CHARGE
%FORMAT(5E16.8)
 -2.73334500E+00  1.36667250E+01 -1.51245090E+01 -1.51245090E+01  3.64446000E-01
  3.64446000E-01  3.64446000E-01
%FLAG ATOMIC_NUMBER
%FORMAT(10I8)
       6       6       8       8       1       1       1
%FLAG MASS
%FORMAT(5E16.8)
  1.20100000E+01  1.20100000E+01  1.60000000E+01  1.60000000E+01  3.02400000E+00
  3.02400000E+00  3.02400000E+00
%FLAG RESIDUE_LABEL
%FORMAT(20a4)
ACT
%FLAG RESIDUE_POINTER
%FORMAT(10I8)
       1
%FLAG BOND_FORCE_CONSTANT
%FORMAT(5E16.8)
  3.00000000E+02  3.00000000E+02  3.00000000E+02
%FLAG BOND_EQUIL_VALUE
%FORMAT(5E16.8)
  1.09000000E+00  1.52000000E+00  1.25000000E+00
%FLAG BONDS_INC_HYDROGEN
%FORMAT(10I8)
       0      12       1       0      15       1       0      18       1
%FLAG BONDS_WITHOUT_HYDROGEN
%FORMAT(10I8)
       0       3       2       3       6       3       3       9       3
"""

POSITIONS = np.array(
    [
        (-1.35, 0, 0), (0.17, 0, 0), (0.72, 1.12, 0), (0.72, -1.12, 0),
        (-1.73, 1.02, 0), (-1.73, -0.51, 0.885), (-1.73, -0.51, -0.885),
    ]
)  # fmt: skip


def inpcrd(positions: np.ndarray) -> str:
    values = positions.ravel()
    rows = [values[k : k + 6] for k in range(0, len(values), 6)]
    body = "\n".join("".join(f"{x:12.7f}" for x in row) for row in rows)
    return f"acetate\n{len(positions):5d}\n{body}\n"


def test_amber_files_are_read_together(tmp_path: Path) -> None:
    (tmp_path / "acetate.prmtop").write_text(PRMTOP)
    with pytest.raises(StructureError, match=r"no coordinates; wanted one file .*got none"):
        load_system(str(tmp_path / "acetate.prmtop"))
    (tmp_path / "acetate.inpcrd").write_text(inpcrd(POSITIONS))
    (tmp_path / "other.rst7").write_text(inpcrd(POSITIONS + 1.0))
    beside = load_system(str(tmp_path / "acetate.prmtop"))
    named = load_system(f"{tmp_path}/acetate.prmtop+{tmp_path}/other.rst7")
    for system, shift in ((beside, 0.0), (named, 1.0)):
        assert (system.charge, system.species.tolist()) == (-1, [6, 6, 8, 8, 1, 1, 1])
        assert system.bonds.tolist() == [[0, 1], [0, 4], [0, 5], [0, 6], [1, 2], [1, 3]]
        np.testing.assert_allclose(system.positions, (POSITIONS + shift) / 10.0, atol=1e-7)
        assert system.masses[4] == pytest.approx(1.008, abs=1e-3)  # not the repartitioned 3.024
    (tmp_path / "other.rst7").write_text(inpcrd(POSITIONS[:6]))
    with pytest.raises(StructureError, match=r"7 atoms, .* has 6"):
        load_system(f"{tmp_path}/acetate.prmtop+{tmp_path}/other.rst7")
    (tmp_path / "bad.prmtop").write_text("nothing of the kind\n")
    with pytest.raises(StructureError, match="not Amber files that OpenMM can read"):
        load_system(f"{tmp_path}/bad.prmtop+{tmp_path}/acetate.inpcrd")


PSF = """PSF

       1 !NTITLE
 REMARKS acetate

       7 !NATOM
       1 A    1    ACT  C1   CT3   -0.150000       12.0110           0
       2 A    1    ACT  C2   CC     0.750000       12.0110           0
       3 A    1    ACT  O1   OC    -0.830000       15.9990           0
       4 A    1    ACT  O2   OC    -0.830000       15.9990           0
       5 A    1    ACT  H1   HA     0.020000        1.0080           0
       6 A    1    ACT  H2   HA     0.020000        1.0080           0
       7 A    1    ACT  H3   HA     0.020000        1.0080           0

       6 !NBOND: bonds
       1       2       2       3       2       4       1       5
       1       6       1       7

       0 !NTHETA: angles


       0 !NPHI: dihedrals


       0 !NIMPHI: impropers


       0 !NDON: donors


       0 !NACC: acceptors


       0 !NNB

       0       0       0       0       0       0       0

       1       0 !NGRP
       0       0       0

"""


def test_charmm_files_are_read_together(tmp_path: Path) -> None:
    (tmp_path / "acetate.psf").write_text(PSF)
    rows = "".join(
        f"{k + 1:5d}{1:5d} ACT  {name:<4}{x:10.5f}{y:10.5f}{z:10.5f} A    1      0.00000\n"
        for k, (name, (x, y, z)) in enumerate(
            zip(["C1", "C2", "O1", "O2", "H1", "H2", "H3"], POSITIONS, strict=True)
        )
    )
    (tmp_path / "acetate.crd").write_text(f"* acetate\n*\n    7\n{rows}")
    system = load_system(str(tmp_path / "acetate.psf"))
    assert (system.charge, system.species.tolist()) == (-1, [6, 6, 8, 8, 1, 1, 1])
    assert system.bonds.tolist() == [[0, 1], [0, 4], [0, 5], [0, 6], [1, 2], [1, 3]]
    np.testing.assert_allclose(system.positions, POSITIONS / 10.0, atol=1e-6)


# ----------------------------------------------------------------------------- SMILES, trajectories


@pytest.mark.parametrize(
    ("smiles", "formula", "charge", "spin"),
    [
        ("CCO", {6: 2, 1: 6, 8: 1}, 0, 1),
        ("CC(=O)[O-]", {6: 2, 1: 3, 8: 2}, -1, 1),
        ("[CH3]", {6: 1, 1: 3}, 0, 2),
        ("[NH4+]", {7: 1, 1: 4}, 1, 1),
    ],
)
def test_a_smiles_string_is_a_molecule(
    smiles: str, formula: dict[int, int], charge: int, spin: int
) -> None:
    system = load_system(f"smiles:{smiles}")
    assert Counter(system.species.tolist()) == formula
    assert (system.charge, system.spin_multiplicity) == (charge, spin)
    again = load_system(f"smiles:{smiles}")
    np.testing.assert_array_equal(system.positions, again.positions)


def test_isotopes_in_a_smiles_string_have_their_masses() -> None:
    system = load_system("smiles:[2H]O[2H]")
    assert sorted(system.masses.round(3)) == [2.014, 2.014, 15.999]


def test_ethanol_from_smiles_has_the_bond_lengths_of_ethanol() -> None:
    system = load_system("smiles:CCO")
    i, j = system.bonds.T
    lengths = np.linalg.norm(system.positions[i] - system.positions[j], axis=1)
    assert {(0, 1): 0.1512, (1, 2): 0.1431}.items() <= {
        (int(a), int(b)): pytest.approx(d, abs=0.003) for a, b, d in zip(i, j, lengths, strict=True)
    }.items()


@pytest.mark.parametrize(
    ("smiles", "message"),
    [("", "wanted a SMILES string"), ("C(C", "wanted a SMILES string"), ("C.C", "2 molecules"),
     ("*C", "not an element"), ("C" * 600, "600 heavy atoms")],
)  # fmt: skip
def test_a_bad_smiles_string_is_refused(smiles: str, message: str) -> None:
    with pytest.raises(StructureError, match=message) as caught:
        load_system(f"smiles:{smiles}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["dcd", "xtc", "h5"])
def test_a_frame_of_a_trajectory_is_the_start(suffix: str, tmp_path: Path) -> None:
    ethanol = load_system("ethanol")
    path = tmp_path / "start.pdb"
    with path.open("w") as file:
        app.PDBFile.writeFile(ethanol.topology, ethanol.positions * unit.nanometer, file)
    assert ethanol.reference is not None
    frames = ethanol.reference.positions[:5]
    topology = mdtraj.Topology.from_openmm(ethanol.topology)
    mdtraj.Trajectory(frames, topology).save(str(tmp_path / f"run.{suffix}"))
    spec = f"{path}+{tmp_path}/run.{suffix}"
    with pytest.raises(StructureError, match=r"5 frames; .*--frame \(0 to 4\)"):
        load_system(spec)
    system = load_system(spec, frame=3)
    np.testing.assert_allclose(system.positions, frames[3], atol=1e-3 if suffix == "xtc" else 1e-6)
    assert system.bonds.tolist() == ethanol.bonds.tolist()
    if suffix == "h5":
        alone = load_system(str(tmp_path / "run.h5"), frame=3)
        np.testing.assert_allclose(alone.positions, frames[3], atol=1e-6)
    with pytest.raises(StructureError, match="no such file"):
        load_system(f"{path}+{tmp_path}/absent.{suffix}", frame=0)


def test_a_trajectory_of_another_molecule_is_refused(tmp_path: Path) -> None:
    water = load_system("water")
    topology = mdtraj.Topology.from_openmm(water.topology)
    mdtraj.Trajectory(water.positions[None], topology).save(str(tmp_path / "water.dcd"))
    spec = f"{save(load_system('ethanol'), tmp_path / 'ethanol.pdb')}+{tmp_path}/water.dcd"
    with pytest.raises(StructureError, match=r"not a trajectory of these atoms|has 3 atoms"):
        load_system(spec)


# ------------------------------------------------------------------------------- another program's


@pytest.mark.parametrize("name", ["CH3CHO", "C6H6", "CH3SH", "SiH4", "CH3Cl"])
def test_what_ase_writes_is_read(name: str, tmp_path: Path) -> None:
    atoms = ase_molecule(name)
    for suffix in ("xyz", "extxyz"):
        path = tmp_path / f"molecule.{suffix}"
        ase_write(path, atoms, format="extxyz" if suffix == "extxyz" else "xyz")
        system = load_system(str(path))
        assert system.species.tolist() == atoms.numbers.tolist()
        np.testing.assert_allclose(system.positions, atoms.positions / 10.0, atol=1e-8)


def embedded(smiles: str) -> Any:
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(molecule, randomSeed=7) == 0
    return molecule


def test_a_v3000_file_is_the_same_molecule(tmp_path: Path) -> None:
    molecule = embedded("CC(=O)Oc1ccccc1C(=O)O")
    Chem.MolToMolFile(molecule, str(tmp_path / "old.sdf"))
    Chem.MolToMolFile(molecule, str(tmp_path / "new.sdf"), forceV3000=True)
    old, new = load_system(str(tmp_path / "old.sdf")), load_system(str(tmp_path / "new.sdf"))
    np.testing.assert_allclose(old.positions, new.positions, atol=1e-5)
    assert old.bonds.tolist() == new.bonds.tolist()


def test_a_record_of_an_sdf_library_is_named(tmp_path: Path) -> None:
    path = tmp_path / "library.sdf"
    with Chem.SDWriter(str(path)) as writer:
        for smiles in ("C", "CC"):
            writer.write(embedded(smiles))
    assert load_system(str(path), frame=1).n_atoms == 8


def test_the_command_line_names_frame_charge_and_spin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.xyz").write_text(
        "4\n\nC 0 0 0\nH 1.079 0 0\nH -0.5395 0.9344 0\nH -0.5395 -0.9344 0\n"
    )
    words = ["systems", str(tmp_path / "m.xyz"), "--json"]
    assert main(words) == 2
    assert main([*words, "--spin", "2"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["charge"], shown["spin_multiplicity"]) == (0, 2)
