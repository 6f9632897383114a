"""Systems from names or files are whole; what is not whole is refused in one clear line."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import mdtraj
import numpy as np
import pytest
from openmm import app, unit
from rdkit import Chem
from rdkit.Chem import AllChem, Descriptors, rdMolDescriptors

from omm_mlff.cli.main import main
from omm_mlff.errors import StructureError, UnknownNameError
from omm_mlff.schema import MolecularSystem
from omm_mlff.students.checkpoint import load_card, student_names
from omm_mlff.systems import load_system, system_names
from omm_mlff.systems.files import read_structure
from omm_mlff.systems.shipped import read_card
from omm_mlff.systems.water import water_box
from omm_mlff.units import ANGSTROM_PER_NM, KJMOL_PER_EV, NM_PER_ANGSTROM

SHIPPED = ["alanine", "alanine-dipeptide", "aspirin", "benzene", "ethanol", "methane", "water"]
needs_teacher = pytest.mark.skipif(
    importlib.util.find_spec("torchani") is None, reason="the teacher (torchani) is not installed"
)

OXYGEN_WATER = "O 0.0 0.0 0.1173\nH 0.0 0.7572 -0.4692\nH 0.0 -0.7572 -0.4692\n"


def embedded(smiles: str) -> Any:
    """An RDKit molecule with hydrogens and a relaxed geometry, from its SMILES."""
    parser = Chem.SmilesParserParams()
    parser.removeHs = False
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles, parser))
    assert AllChem.EmbedMolecule(molecule, randomSeed=7) == 0
    AllChem.MMFFOptimizeMolecule(molecule, maxIters=2000)
    return molecule


def as_xyz(molecule: Any, leave_out: tuple[int, ...] = ()) -> str:
    positions = molecule.GetConformer().GetPositions()
    rows = [
        f"{atom.GetSymbol()} {x:.6f} {y:.6f} {z:.6f}"
        for atom, (x, y, z) in zip(molecule.GetAtoms(), positions, strict=True)
        if atom.GetIdx() not in leave_out
    ]
    return "\n".join([str(len(rows)), "made by a test", *rows]) + "\n"


def hydrogens(molecule: Any) -> tuple[int, ...]:
    return tuple(atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetAtomicNum() == 1)


def graph_bonds(molecule: Any) -> set[tuple[int, ...]]:
    return {
        tuple(sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())))
        for bond in molecule.GetBonds()
    }


@pytest.fixture(scope="module")
def teacher() -> Any:
    from omm_mlff.teachers.ani import Teacher

    return Teacher()


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


# ---------------------------------------------------------------------------- shipped systems


def test_seven_systems_ship() -> None:
    assert system_names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_structure_is_the_molecule_of_its_smiles(name: str) -> None:
    system, card = load_system(name), read_card(name)
    expected = Chem.AddHs(Chem.MolFromSmiles(card.smiles))
    assert card.formula == rdMolDescriptors.CalcMolFormula(expected)
    assert system.n_atoms == expected.GetNumAtoms()
    assert system.masses.sum() == pytest.approx(Descriptors.MolWt(expected), abs=0.01)
    assert system.charge == Chem.GetFormalCharge(expected) == 0

    found = Chem.RWMol()
    for number in system.species.tolist():
        found.AddAtom(Chem.Atom(number))
    for i, j in system.bonds.tolist():
        found.AddBond(i, j, Chem.BondType.SINGLE)
    skeleton = Chem.RWMol(expected)
    for bond in skeleton.GetBonds():
        bond.SetBondType(Chem.BondType.SINGLE)
        bond.SetIsAromatic(False)
    for atom in skeleton.GetAtoms():
        atom.SetIsAromatic(False)
    assert len(found.GetSubstructMatch(skeleton)) == system.n_atoms
    assert found.GetNumBonds() == skeleton.GetNumBonds()


@pytest.mark.parametrize("name", SHIPPED)
def test_bonds_of_the_card_are_those_that_rdkit_finds_in_the_structure(name: str) -> None:
    path = read_card(name).folder / "structure.pdb"
    molecule = Chem.MolFromPDBFile(str(path), removeHs=False, proximityBonding=True)
    assert graph_bonds(molecule) == {tuple(pair) for pair in load_system(name).bonds.tolist()}


@pytest.mark.parametrize("name", ["alanine", "alanine-dipeptide"])
def test_amino_acids_are_left_handed(name: str) -> None:
    card = read_card(name)
    molecule = Chem.MolFromPDBFile(str(card.folder / "structure.pdb"), removeHs=False)
    template = Chem.AddHs(Chem.MolFromSmiles(card.smiles))
    molecule = AllChem.AssignBondOrdersFromTemplate(template, molecule)
    Chem.AssignStereochemistryFrom3D(molecule)
    assert Chem.FindMolChiralCenters(molecule) == [
        (next(a.GetIdx() for a in molecule.GetAtoms() if a.GetChiralTag()), "S")
    ]


@pytest.mark.parametrize("name", SHIPPED)
def test_positions_are_those_that_mdtraj_reads(name: str) -> None:
    trajectory = mdtraj.load(str(read_card(name).folder / "structure.pdb"))
    np.testing.assert_allclose(load_system(name).positions, trajectory.xyz[0], atol=1e-6)


def test_alanine_dipeptide_matches_the_templates_of_amber14() -> None:
    system = load_system("alanine-dipeptide")
    assert [residue.name for residue in system.topology.residues()] == ["ACE", "ALA", "NME"]
    created = app.ForceField("amber14-all.xml").createSystem(system.topology)
    assert created.getNumParticles() == 22


def test_water_matches_the_template_of_tip3p() -> None:
    created = app.ForceField("tip3p.xml").createSystem(load_system("water").topology)
    assert created.getNumConstraints() == 3


def test_species_masses_topology_agree() -> None:
    system = load_system("aspirin")
    for atom, number, mass in zip(
        system.topology.atoms(), system.species, system.masses, strict=True
    ):
        assert atom.element.atomic_number == number
        assert atom.element.mass.value_in_unit(unit.dalton) == mass
    pairs = [tuple(sorted((b[0].index, b[1].index))) for b in system.topology.bonds()]
    assert sorted(pairs) == [tuple(pair) for pair in system.bonds.tolist()]


def test_a_shipped_system_is_read_and_not_computed() -> None:
    """12,000 calls as it is, 12 ms; a search for bonds or conformers takes far more."""
    load_system("water")  # what is imported is not what is counted
    n_calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal n_calls
        n_calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        load_system("aspirin")
    finally:
        sys.setprofile(None)
    assert 1_000 < n_calls < 50_000


# --------------------------------------------------------------------------- reference labels


@pytest.mark.parametrize("name", SHIPPED)
def test_labels_have_the_shapes_that_the_card_says(name: str) -> None:
    system, card = load_system(name), read_card(name)
    reference = system.reference
    assert reference is not None
    assert card.reference is not None
    assert reference.n_frames == card.reference.n_frames >= 300
    assert reference.method == "ANI-1ccx"
    assert reference.positions.shape == reference.forces.shape == (368, system.n_atoms, 3)
    assert len(np.unique(reference.trajectory)) == card.reference.n_trajectories
    assert set(reference.temperature_K) == set(card.reference.temperatures_K)
    assert {100.0, 200.0, 300.0, 400.0, 500.0} <= set(reference.temperature_K)
    for trajectory in np.unique(reference.trajectory):
        assert len(set(reference.temperature_K[reference.trajectory == trajectory])) == 1
    assert (card.folder / "reference.npz").stat().st_size < 1_500_000
    for array in (reference.positions, reference.energies, reference.forces):
        assert array.dtype == np.float64
        assert np.isfinite(array).all()


@pytest.mark.parametrize("name", SHIPPED)
def test_forces_of_the_labels_do_not_push_or_turn_the_molecule(name: str) -> None:
    reference = load_system(name).reference
    assert reference is not None
    scale = np.abs(reference.forces).max()
    assert np.abs(reference.forces.sum(axis=1)).max() < 1e-9 * scale
    torque = np.cross(reference.positions, reference.forces).sum(axis=1)
    assert np.abs(torque).max() < 1e-9 * scale


@pytest.mark.parametrize("name", SHIPPED)
def test_bonds_at_300_K_stay_near_those_of_the_structure(name: str) -> None:
    system = load_system(name)
    reference = system.reference
    assert reference is not None
    i, j = system.bonds.T
    at_rest = np.linalg.norm(system.positions[i] - system.positions[j], axis=1)
    warm = reference.positions[reference.temperature_K == 300.0]
    lengths = np.linalg.norm(warm[:, i] - warm[:, j], axis=2)
    assert np.abs(lengths.mean(axis=0) - at_rest).max() < 0.003
    assert (lengths.std(axis=0) < 0.0055).all()
    every = np.linalg.norm(reference.positions[:, i] - reference.positions[:, j], axis=2)
    assert (every < 1.4 * at_rest).all()  # nothing has come apart, at 1000 K neither
    assert (every > 0.75 * at_rest).all()


@pytest.mark.parametrize("name", SHIPPED)
def test_mean_energy_rises_with_temperature_by_equipartition(name: str) -> None:
    # Classical, harmonic at low temperature: the potential energy grows by (3 N - 6) k T / 2.
    # Trajectories start from several minima, so that the comparison is within one conformer:
    # only molecules with a single minimum are held to the number.
    reference = load_system(name).reference
    assert reference is not None
    temperatures = (100.0, 200.0, 300.0, 400.0, 500.0)
    means = [reference.energies[reference.temperature_K == t].mean() for t in temperatures]
    assert (np.diff(means) > 0.0).all()
    if name in ("water", "methane", "benzene"):
        n_dof = 3 * len(load_system(name).species) - 6
        slope = np.polyfit(temperatures, means, 1)[0]
        expected = 0.5 * n_dof * 0.00831446  # kJ/mol/K
        assert slope == pytest.approx(expected, rel=0.25)  # 64 frames a temperature: 4 sigma


def test_frames_of_one_temperature_are_not_copies() -> None:
    reference = load_system("ethanol").reference
    assert reference is not None
    assert len(np.unique(reference.energies)) == reference.n_frames


@needs_teacher
@pytest.mark.parametrize("name", ["water", "alanine"])
def test_labels_are_the_teachers_and_their_forces_the_gradient(name: str, teacher: Any) -> None:
    system = load_system(name)
    reference = system.reference
    assert reference is not None
    rng = np.random.default_rng(0)
    frames = rng.choice(reference.n_frames, 3, replace=False)

    def energy(positions_nm: np.ndarray) -> np.ndarray:
        return teacher.label(system.species, positions_nm * ANGSTROM_PER_NM)[0] * KJMOL_PER_EV

    x = reference.positions[frames]
    np.testing.assert_allclose(energy(x), reference.energies[frames], atol=1e-6)
    direction = rng.standard_normal(x.shape)
    # 1e-5 angstrom, five points: the teacher's second derivatives jump, so that wider steps err
    # in proportion to the step; at this one both sides agree to 7e-8.
    h = 1e-6
    slope = (
        energy(x - 2 * h * direction)
        - 8 * energy(x - h * direction)
        + 8 * energy(x + h * direction)
        - energy(x + 2 * h * direction)
    ) / (12 * h)
    expected = -(reference.forces[frames] * direction).sum(axis=(1, 2))
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


@needs_teacher
def test_making_a_reference_twice_gives_the_same_bytes(
    teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from omm_mlff.distill.reference import ReferencePlan, make_reference

    shutil.copytree(read_card("water").folder, tmp_path / "water")
    for module in ("omm_mlff.systems.shipped.data_folder", "omm_mlff.data.data_folder"):
        monkeypatch.setattr(module, lambda kind: tmp_path)
    plan = ReferencePlan(
        trajectories=((300.0, 2), (500.0, 1)),
        frames=2,
        stride_ps=0.005,
        equilibration_ps=0.005,
        n_conformers=1,
    )
    first = make_reference("water", teacher, plan).read_bytes()
    card = read_card("water")
    assert card.reference is not None
    assert card.reference.sha256 == hashlib.sha256(first).hexdigest()
    assert card.reference.temperatures_K == (300.0, 500.0)
    reference = load_system("water").reference
    assert reference is not None
    assert reference.trajectory.tolist() == [0, 0, 1, 1, 2, 2]
    assert reference.temperature_K.tolist() == [300.0] * 4 + [500.0] * 2
    assert make_reference("water", teacher, plan).read_bytes() == first
    assert (tmp_path / "water" / "system.toml").read_text().count("[reference]") == 1


@pytest.fixture
def altered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a shipped system that a test may damage."""
    shutil.copytree(read_card("water").folder, tmp_path / "water")
    for module in ("omm_mlff.systems.shipped.data_folder", "omm_mlff.data.data_folder"):
        monkeypatch.setattr(module, lambda kind: tmp_path)
    return tmp_path / "water"


def test_one_flipped_bit_in_the_labels_is_noticed(altered: Path) -> None:
    content = bytearray((altered / "reference.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (altered / "reference.npz").write_bytes(content)
    with pytest.raises(StructureError, match="not those of its card: wanted sha256"):
        load_system("water")


def test_labels_that_are_gone_are_noticed(altered: Path) -> None:
    (altered / "reference.npz").unlink()
    with pytest.raises(StructureError, match="cannot be read"):
        load_system("water")


def test_labels_of_another_molecule_are_noticed(altered: Path) -> None:
    content = (read_card("water").folder.parents[0] / "water" / "reference.npz").read_bytes()
    with np.load(altered / "reference.npz") as stored:
        arrays = dict(stored)
    arrays["positions"] = arrays["positions"][:, :2]
    np.savez(altered / "reference.npz", **arrays)
    card = (altered / "system.toml").read_text()
    old, new = (
        hashlib.sha256(data).hexdigest()
        for data in (content, (altered / "reference.npz").read_bytes())
    )
    (altered / "system.toml").write_text(card.replace(old, new))
    with pytest.raises(StructureError, match=r"wanted positions of \(368, 3, 3\)"):
        load_system("water")


# --------------------------------------------------------------------------------- water boxes


@pytest.mark.parametrize("n", [1, 5, 34, 216, 1000])
def test_water_box_has_the_count_and_density_asked_for(n: int) -> None:
    system = load_system(f"water-box:{n}")
    assert system.n_atoms == 3 * n
    assert Counter(system.species.tolist()) == {8: n, 1: 2 * n}
    assert system.bonds.shape == (2 * n, 2)
    assert system.box_vectors is not None
    volume_cm3 = np.linalg.det(system.box_vectors) * 1e-21
    grams = system.masses.sum() / 6.02214076e23
    assert grams / volume_cm3 == pytest.approx(0.997, rel=1e-9)
    assert system.topology.getPeriodicBoxVectors() is not None
    assert system.reference is None


def neighbours(system: MolecularSystem) -> np.ndarray:
    """Distances between atoms of different molecules, nm, by the minimum image."""
    assert system.box_vectors is not None
    side = system.box_vectors[0, 0]
    gaps = system.positions[:, None] - system.positions[None]
    gaps -= side * np.round(gaps / side)
    distances = np.linalg.norm(gaps, axis=-1)
    molecule = np.arange(system.n_atoms) // 3
    return distances[molecule[:, None] < molecule[None]]


def test_molecules_of_a_water_box_are_whole_rigid_apart() -> None:
    system = water_box(216)
    i, j = system.bonds.T
    lengths = np.linalg.norm(system.positions[i] - system.positions[j], axis=1)
    np.testing.assert_allclose(lengths, 0.09572, atol=1e-5)  # TIP3P
    assert neighbours(system).min() > 0.14  # a hydrogen bond is 0.18; nothing overlaps
    assert system.box_vectors is not None
    oxygens = system.positions[::3]
    assert (oxygens >= 0.0).all()
    assert (oxygens < system.box_vectors[0, 0]).all()


def test_water_box_is_a_liquid_to_tip3p() -> None:
    import openmm

    system = water_box(216)
    created = app.ForceField("tip3p.xml").createSystem(
        system.topology, nonbondedMethod=app.CutoffPeriodic, nonbondedCutoff=0.9
    )
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(created, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(system.positions)
    energy = context.getState(energy=True).getPotentialEnergy()
    per_molecule = energy.value_in_unit(unit.kilojoule_per_mole) / 216
    # Liquid TIP3P has -40 kJ/mol at 298 K (Jorgensen et al., J. Chem. Phys. 79, 926 (1983)); a box
    # with one pair of overlapping molecules or random orientations lies far above.
    assert -50.0 < per_molecule < -33.0


def test_water_box_is_the_same_from_the_same_seed_only() -> None:
    np.testing.assert_array_equal(water_box(34).positions, water_box(34).positions)
    assert np.abs(water_box(34).positions - water_box(34, seed=1).positions).max() > 0.1


@pytest.mark.parametrize("spec", ["water-box:0", "water-box:-3", "water-box:many", "water-box:"])
def test_water_box_of_no_number_is_refused(spec: str) -> None:
    with pytest.raises(StructureError, match="number of molecules of 1 or more"):
        load_system(spec)


# --------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".pdb", ".sdf", ".xyz"])
@pytest.mark.parametrize("smiles", ["CC(=O)Oc1ccccc1C(=O)O", "C[N+](=O)[O-]", "CC#N", "O"])
def test_every_format_gives_the_same_molecule(smiles: str, suffix: str, tmp_path: Path) -> None:
    molecule = embedded(smiles)
    path = tmp_path / f"molecule{suffix}"
    if suffix == ".pdb":
        Chem.MolToPDBFile(molecule, str(path))
    elif suffix == ".sdf":
        Chem.MolToMolFile(molecule, str(path))
    else:
        path.write_text(as_xyz(molecule))
    system = load_system(str(path))
    expected = molecule.GetConformer().GetPositions() * NM_PER_ANGSTROM
    np.testing.assert_allclose(system.positions, expected, atol=6e-5)  # 0.001 angstrom in a PDB
    assert system.species.tolist() == [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    assert {tuple(pair) for pair in system.bonds.tolist()} == graph_bonds(molecule)
    assert system.name == "molecule"
    assert system.reference is None
    assert system.charge == 0
    assert system.box_vectors is None


def test_an_xyz_file_has_the_positions_that_mdtraj_reads(tmp_path: Path) -> None:
    path = tmp_path / "ethanol.xyz"
    path.write_text(as_xyz(embedded("CCO")))
    system = load_system(str(path))
    topology = mdtraj.Topology.from_openmm(system.topology)
    trajectory = mdtraj.load(str(path), top=topology)
    np.testing.assert_allclose(system.positions, trajectory.xyz[0], atol=1e-6)


def test_a_pdb_without_conect_gets_its_bonds_from_geometry(tmp_path: Path) -> None:
    source = read_card("aspirin").folder / "structure.pdb"
    bare = [line for line in source.read_text().splitlines() if not line.startswith("CONECT")]
    path = tmp_path / "bare.pdb"
    path.write_text("\n".join(bare) + "\n")
    system = load_system(str(path))
    np.testing.assert_array_equal(system.bonds, load_system("aspirin").bonds)
    assert system.topology.getNumBonds() == len(system.bonds)


def test_a_water_box_survives_being_written_as_pdb(tmp_path: Path) -> None:
    box = water_box(64)
    path = tmp_path / "box.pdb"
    with path.open("w") as file:
        app.PDBFile.writeFile(box.topology, box.positions * unit.nanometer, file)
    system = load_system(str(path))
    assert system.box_vectors is not None
    assert box.box_vectors is not None
    np.testing.assert_allclose(system.box_vectors, box.box_vectors, atol=1e-4)
    np.testing.assert_array_equal(system.bonds, box.bonds)


def test_a_cell_of_one_angstrom_means_no_box(written: Callable[[str, str], Path]) -> None:
    cell = "CRYST1    1.000    1.000    1.000  90.00  90.00  90.00 P 1           1\n"
    text = (read_card("methane").folder / "structure.pdb").read_text()
    assert load_system(str(written("em.pdb", cell + text))).box_vectors is None


def test_total_charge_is_the_files(tmp_path: Path) -> None:
    ion = embedded("C[NH3+]")
    Chem.MolToMolFile(ion, str(tmp_path / "ion.sdf"))
    Chem.MolToPDBFile(ion, str(tmp_path / "ion.pdb"))
    assert load_system(str(tmp_path / "ion.sdf")).charge == 1
    assert load_system(str(tmp_path / "ion.pdb")).charge == 1
    zwitterion = embedded("[NH3+]CC(=O)[O-]")
    (tmp_path / "glycine.xyz").write_text(as_xyz(zwitterion))
    assert load_system(str(tmp_path / "glycine.xyz")).charge == 0


def test_an_ion_whose_charge_is_not_stated_is_refused(written: Callable[[str, str], Path]) -> None:
    path = written("ion.xyz", as_xyz(embedded("C[NH3+]")))
    with pytest.raises(StructureError, match=r"ion of charge \+1.*state formal charges"):
        load_system(str(path))


def test_charge_of_a_protein_follows_from_its_hydrogens() -> None:
    # Villin N68H in water with two chlorides, bundled with OpenMM: protein +2, ions -2.
    path = Path(app.__file__).parent / "data" / "test.pdb"
    system = read_structure(path)
    assert system.n_atoms == 8867
    assert system.charge == 0
    chlorides = np.flatnonzero(system.species == 17)
    assert len(chlorides) == 2
    assert not np.isin(system.bonds, chlorides).any()


VILLIN_HYDROGENS = {  # a hydrogen that is taken away -> whether that is another protonation state
    ("PHE", "H"): False,
    ("PHE", "HB2"): False,
    ("ASP", "HB2"): False,
    ("TRP", "HE1"): False,
    ("LYS", "HZ1"): True,
    ("ARG", "HE"): True,
}


@pytest.fixture(scope="module")
def villin() -> app.Modeller:
    """The protein that OpenMM bundles, without its water and ions: 582 atoms, charge +2."""
    pdb = app.PDBFile(str(Path(app.__file__).parent / "data" / "test.pdb"))
    protein = app.Modeller(pdb.topology, pdb.positions)
    protein.delete([r for r in protein.topology.residues() if r.name in ("HOH", "Cl")])
    return protein


@pytest.mark.parametrize("hydrogen", VILLIN_HYDROGENS, ids="-".join)
def test_a_protein_lacks_a_hydrogen_unless_an_acid_or_base_may(
    hydrogen: tuple[str, str], villin: app.Modeller, tmp_path: Path
) -> None:
    protein = app.Modeller(villin.topology, villin.positions)
    residue, name = hydrogen
    (taken, *_) = [
        atom
        for atom in protein.topology.atoms()
        if atom.residue.name == residue and atom.name == name
    ]
    protein.delete([taken])
    path = tmp_path / "villin.pdb"
    with path.open("w") as file:
        app.PDBFile.writeFile(protein.topology, protein.positions, file)
    if VILLIN_HYDROGENS[hydrogen]:
        assert load_system(str(path)).charge == 1  # whole, it has 2
    else:
        with pytest.raises(StructureError, match=f"at least 1 hydrogen is missing.*{residue}"):
            load_system(str(path))


LEGITIMATE = [
    "C=O",
    "CC=O",
    "OC=O",
    "C=C",
    "CC#C",
    "C=C=C",
    "CC(=O)NC",
    "NN",
    "OO",
    "CO",
    "c1ccncc1",
    "c1cc[nH]c1",
    "c1ccoc1",
    "c1ccsc1",
    "c1ccnnc1",
    "CS(C)=O",
    "CS(=O)(=O)C",
    "CN=[N+]=[N-]",
    "C[N+]#[C-]",
    "N#CC#N",
    "c1ccc(cc1)N=Nc1ccccc1",
    "C1CCCCC1",
    "C1CC1",
    "c1ccc2ccccc2c1",
    "CC(=O)Nc1ccc(O)cc1",
    "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "O=C1C=CC(=O)C=C1",
    "CBr",
    "OP(=O)(O)O",
    "C[N+](C)(C)CC([O-])=O",
]


@pytest.mark.parametrize("smiles", LEGITIMATE)
def test_whole_molecules_pass_but_not_without_their_hydrogens(
    smiles: str, written: Callable[[str, str], Path]
) -> None:
    molecule = embedded(smiles)
    system = load_system(str(written("whole.xyz", as_xyz(molecule))))
    assert {tuple(pair) for pair in system.bonds.tolist()} == graph_bonds(molecule)
    hydrogen = hydrogens(molecule)
    if not hydrogen:
        return
    one = written("one.xyz", as_xyz(molecule, hydrogen[:1]))
    with pytest.raises(StructureError, match="at least 1 hydrogen is missing"):
        load_system(str(one))
    with pytest.raises(StructureError, match="hydrogens are missing"):
        load_system(str(written("none.xyz", as_xyz(molecule, hydrogen))))


# Experimental geometries (NIST CCCBDB), angstrom: no hydrogen belongs to any of them.
BARE = {
    "carbon dioxide": "O 0 0 1.162\nC 0 0 0\nO 0 0 -1.162\n",
    "nitrogen": "N 0 0 0\nN 0 0 1.098\n",
    "carbon monoxide": "C 0 0 0\nO 0 0 1.128\n",
    "oxygen": "O 0 0 0\nO 0 0 1.208\n",
    "nitrous oxide": "N 0 0 -1.128\nN 0 0 0\nO 0 0 1.184\n",
    "ozone": "O 0 0 0\nO 1.0885 0.6697 0\nO -1.0885 0.6697 0\n",
    "sulfur dioxide": "S 0 0 0\nO 1.2349 0.7226 0\nO -1.2349 0.7226 0\n",
    "chlorine": "Cl 0 0 0\nCl 0 0 1.988\n",
    "hydrogen": "H 0 0 0\nH 0 0 0.741\n",
    "helium": "He 0 0 0\n",
    "sodium chloride": "Na 0 0 0\nCl 0 0 2.361\n",
    "hydrogen cyanide": "H 0 0 -1.064\nC 0 0 0\nN 0 0 1.156\n",
}


@pytest.mark.parametrize("name", BARE)
def test_small_molecules_with_few_hydrogens_or_none_pass(
    name: str, written: Callable[[str, str], Path]
) -> None:
    rows = BARE[name]
    system = load_system(str(written("bare.xyz", f"{rows.count(chr(10))}\n\n{rows}")))
    assert system.n_atoms == rows.count("\n")


def fullerene() -> np.ndarray:
    """C60, angstrom: the vertices of a truncated icosahedron with edges of 1.43."""
    golden = (1.0 + 5.0**0.5) / 2.0
    corners = [(0.0, 1.0, 3 * golden), (1.0, 2 + golden, 2 * golden), (golden, 2.0, 2 * golden + 1)]
    points = {
        tuple(round(signed[(axis + turn) % 3], 9) for axis in range(3))
        for corner in corners
        for signs in itertools.product((1, -1), repeat=3)
        for signed in [[s * c for s, c in zip(signs, corner, strict=True)]]
        for turn in range(3)
    }
    return np.array(sorted({tuple(x + 0.0 for x in point) for point in points})) * 1.43 / 2.0


def test_a_fullerene_needs_no_hydrogen(written: Callable[[str, str], Path]) -> None:
    points = fullerene()
    assert len(points) == 60
    rows = "".join(f"C {x:.6f} {y:.6f} {z:.6f}\n" for x, y, z in points)
    system = load_system(str(written("c60.xyz", f"60\n\n{rows}")))
    assert len(system.bonds) == 90


@pytest.mark.parametrize(
    ("smiles", "count"), [("c1ccccc1", 6), ("C1CCCCC1", 12), ("C=O", 2), ("CO", 4), ("NN", 4)]
)
def test_rings_and_pairs_stripped_bare_are_not_taken_for_other_molecules(
    smiles: str, count: int, written: Callable[[str, str], Path]
) -> None:
    # By valence alone: C6 rings of cumulated double bonds, carbon monoxide twice, nitrogen.
    molecule = embedded(smiles)
    path = written("bare.xyz", as_xyz(molecule, hydrogens(molecule)))
    with pytest.raises(StructureError, match=f"at least {count} hydrogens are missing"):
        load_system(str(path))


def test_missing_hydrogens_are_counted_and_placed_in_sdf_and_pdb(tmp_path: Path) -> None:
    whole = embedded("CCO")
    hydroxyl = whole.GetAtomWithIdx(2)
    (taken,) = [a.GetIdx() for a in hydroxyl.GetNeighbors() if a.GetAtomicNum() == 1]
    partial = Chem.RWMol(whole)
    partial.RemoveAtom(taken)
    Chem.MolToMolFile(partial, str(tmp_path / "partial.sdf"))
    Chem.MolToPDBFile(partial, str(tmp_path / "partial.pdb"))
    for suffix in ("sdf", "pdb"):
        with pytest.raises(StructureError) as caught:
            load_system(str(tmp_path / f"partial.{suffix}"))
        message = str(caught.value)
        assert "at least 1 hydrogen is missing (1 at O1 (atom 3))" in message
        assert "pdbfixer" in message
        assert "\n" not in message


def test_crystal_water_without_hydrogens_is_refused(written: Callable[[str, str], Path]) -> None:
    row = "HETATM    1  O   HOH A   1       0.000   0.000   0.000  1.00  0.00           O\nEND\n"
    with pytest.raises(StructureError, match="at least 2 hydrogens are missing"):
        load_system(str(written("crystal.pdb", row)))


# ------------------------------------------------------------------------------------ bad input

ATOM = "HETATM{0:5d} {1:<4} HOH A   1    {2}{3}{4}  1.00  0.00           {5}\n"


def pdb_water(oxygen: str = "   0.000", second: str = "   0.957", names: str = "O H1 H2") -> str:
    zero = "   0.000"
    o, h1, h2 = names.split()
    return (
        ATOM.format(1, f" {o}", oxygen, zero, zero, "O")
        + ATOM.format(2, f" {h1}", second, zero, zero, "H")
        + ATOM.format(3, f" {h2}", "  -0.240", "   0.927", zero, "H")
        + "END\n"
    )


def test_the_plain_pdb_of_these_tests_is_accepted(written: Callable[[str, str], Path]) -> None:
    assert load_system(str(written("water.pdb", pdb_water()))).n_atoms == 3


MODELS = f"MODEL        1\n{pdb_water()}".replace("END\n", "ENDMDL\n")
BAD = {
    "empty.pdb": ("", "is empty"),
    "empty.xyz": ("  \n", "is empty"),
    "prose.pdb": ("once upon a time\n", "no ATOM or HETATM record"),
    "prose.sdf": ("once upon a time\n", "not an SDF file that RDKit can read"),
    "prose.xyz": ("once upon a time\n", "wanted the number of atoms in its first line"),
    "letters.pdb": (pdb_water("   x.yz0"), "not a PDB file that OpenMM can read"),
    "nan.pdb": (pdb_water("     nan"), "not finite in line"),
    "inf.pdb": (pdb_water("    -inf"), "not finite in line"),
    "nan.xyz": ("3\n\n" + OXYGEN_WATER.replace("0.1173", "NaN"), "not finite in line"),
    "overlap.pdb": (pdb_water(second="   0.010"), r"O of HOH 1|O \(atom 1\) and H1 \(atom 2\)"),
    "overlap.xyz": ("4\n\n" + OXYGEN_WATER + "He 0 0 0.1173\n", r"O1?.*0\.000 angstrom apart"),
    "nanometres.xyz": (
        "3\n\nO 0 0 0.01173\nH 0 0.07572 -0.04692\nH 0 -0.07572 -0.04692\n",
        "angstrom apart.*convert the unit",
    ),
    "element.xyz": ("3\n\n" + OXYGEN_WATER.replace("O ", "Xx "), "'Xx' .* not the symbol"),
    "short.xyz": ("4\n\n" + OXYGEN_WATER, "wanted 4 lines"),
    "columns.xyz": ("1\n\nHe 0 0\n", "wanted 4 columns"),
    "frames.xyz": (f"3\n\n{OXYGEN_WATER}3\n\n{OXYGEN_WATER}", "2 frames; .* --frame .0 to 1."),
    "models.pdb": (MODELS + MODELS.replace("1\n", "2\n", 1), "2 models"),
    "names.pdb": (pdb_water(names="O H H"), "share a name"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_line(
    name: str, written: Callable[[str, str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    text, message = BAD[name]
    with pytest.raises(StructureError, match=message) as caught:
        load_system(str(written(name, text)))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    captured = capfd.readouterr()
    assert captured.err == captured.out == ""  # RDKit says nothing beside


def test_alternate_locations_are_refused(written: Callable[[str, str], Path]) -> None:
    rows = pdb_water().splitlines(keepends=True)
    first = rows[0][:16] + "A" + rows[0][17:]
    second = rows[0][:16] + "B" + rows[0][17:].replace("   0.000", "   0.300", 1)
    path = written("alternate.pdb", first + second + "".join(rows[1:]))
    with pytest.raises(StructureError, match=r"alternate locations \(A, B\)"):
        load_system(str(path))


def test_an_atom_without_an_element_is_refused(written: Callable[[str, str], Path]) -> None:
    row = ATOM.format(1, " XX", "   0.000", "   0.000", "   0.000", " ")
    with pytest.raises(StructureError, match="no known element"):
        load_system(str(written("dummy.pdb", row + "END\n")))


def test_several_records_in_an_sdf_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "library.sdf"
    with Chem.SDWriter(str(path)) as writer:
        for smiles in ("C", "CC"):
            writer.write(embedded(smiles))
    with pytest.raises(StructureError, match="2 molecules"):
        load_system(str(path))


def test_a_drawing_is_not_taken_for_a_structure(tmp_path: Path) -> None:
    drawing = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    AllChem.Compute2DCoords(drawing)
    Chem.MolToMolFile(drawing, str(tmp_path / "drawing.sdf"))
    with pytest.raises(StructureError, match="flat drawing"):
        load_system(str(tmp_path / "drawing.sdf"))


def test_a_flat_molecule_is_not_taken_for_a_drawing(tmp_path: Path) -> None:
    benzene = load_system("benzene")
    molecule = Chem.AddHs(Chem.MolFromSmiles("c1ccccc1"))
    AllChem.EmbedMolecule(molecule, randomSeed=7)
    x = benzene.positions - benzene.positions.mean(axis=0)
    flat = x @ np.linalg.svd(x)[2].T * ANGSTROM_PER_NM
    flat[:, 2] = 0.0
    assert np.ptp(flat[:, 0]) > 4.0
    molecule.GetConformer().SetPositions(flat)
    molecule.GetConformer().Set3D(False)
    Chem.MolToMolFile(molecule, str(tmp_path / "benzene.sdf"))
    assert load_system(str(tmp_path / "benzene.sdf")).n_atoms == 12


def test_a_five_valent_carbon_in_an_sdf_is_refused(tmp_path: Path) -> None:
    molecule = embedded("CC")
    text = Chem.MolToMolBlock(molecule).replace("  1  2  1  0", "  1  2  3  0")
    (tmp_path / "wrong.sdf").write_text(text)
    with pytest.raises(StructureError, match="not those of a molecule"):
        load_system(str(tmp_path / "wrong.sdf"))


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match="no such file"):
        load_system(str(tmp_path / "absent.pdb"))
    (tmp_path / "folder.pdb").mkdir()
    with pytest.raises(StructureError, match="cannot be read"):
        load_system(str(tmp_path / "folder.pdb"))
    (tmp_path / "binary.pdb").write_bytes(bytes(range(256)))
    with pytest.raises(StructureError, match="not a text file"):
        load_system(str(tmp_path / "binary.pdb"))
    (tmp_path / "molecule.zmat").write_text("O\nH 1 0.96\n")
    with pytest.raises(StructureError, match=r"wanted: .*\.pdb, .*\.sdf, .*\.xyz"):
        load_system(str(tmp_path / "molecule.zmat"))


def test_an_unknown_name_brings_the_nearest_ones() -> None:
    with pytest.raises(UnknownNameError, match="did you mean ethanol"):
        load_system("etanol")


# --------------------------------------------------------------------------------- command line


def test_the_table_lists_every_system(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systems"]) == 0
    shown = capsys.readouterr().out
    for name in SHIPPED:
        assert name in shown
    assert "C9H8O4" in shown
    assert "100 to 1000" in shown


def test_a_system_is_marked_as_trained_on_where_the_students_cards_name_it() -> None:
    for student in student_names():
        molecules = load_card(student)["training_domain"]["molecules"]
        for name in SHIPPED:
            card = read_card(name)
            known = name in molecules or card.smiles in molecules
            assert card.trained_on is known, f"{student}: {name}"


def test_one_system_is_shown_with_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systems", "aspirin", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["formula"] == "C9H8O4"
    assert shown["atoms"] == 21
    assert shown["trained_on"] is False
    assert shown["reference"]["n_frames"] == 368
    assert main(["systems", "aspirin"]) == 0
    assert "trained_on: no" in capsys.readouterr().out


def test_a_box_is_shown_with_its_sides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systems", "water-box:8", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["formula"] == "H16O8"
    assert shown["box_nm"][0][0] == pytest.approx(0.62148, abs=1e-5)


def test_a_bad_system_exits_with_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systems", "etanol"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "did you mean ethanol" in captured.err
