"""Labels of a user's own: every format gives the same numbers, and wrong units are recognised."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
import pytest
import tables
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write as ase_write

from omm_mlff.errors import InputError, StructureError
from omm_mlff.schema import MolecularSystem, ReferenceLabels
from omm_mlff.systems import load_system
from omm_mlff.systems.labels import LabelOptions, labelled_systems

# CODATA 2018
EV = 96.48533212331  # kJ/mol
HARTREE = 27.211386245988 * EV
KCAL = 4.184
BOHR = 0.0529177210903  # nm

N_FRAMES = 40


def reference(name: str) -> tuple[MolecularSystem, ReferenceLabels]:
    """A shipped system, and frames of its labels at 500 K and below."""
    system = load_system(name)
    assert system.reference is not None
    cool = np.flatnonzero(system.reference.temperature_K <= 500.0)
    chosen = cool[np.linspace(0, len(cool) - 1, N_FRAMES).round().astype(int)]
    labels = system.reference
    return system, dataclasses.replace(
        labels,
        positions=labels.positions[chosen],
        energies=labels.energies[chosen],
        forces=labels.forces[chosen],
        trajectory=labels.trajectory[chosen],
        temperature_K=labels.temperature_K[chosen],
    )


def as_atoms(name: str, **info: Any) -> list[Atoms]:
    system, labels = reference(name)
    frames = []
    for x, energy, forces in zip(labels.positions, labels.energies, labels.forces, strict=True):
        atoms = Atoms(numbers=system.species, positions=x * 10.0, info=dict(info))
        atoms.calc = SinglePointCalculator(atoms, energy=energy / EV, forces=forces / EV / 10.0)
        frames.append(atoms)
    return frames


def write_xyz(path: Path, name: str) -> None:
    ase_write(path, as_atoms(name), format="extxyz")


def write_database(path: Path, name: str) -> None:
    with ase.db.connect(path) as database:
        for atoms in as_atoms(name):
            database.write(atoms)


def write_spice(path: Path, name: str) -> None:
    system, labels = reference(name)
    with tables.open_file(str(path), "w") as file:
        group = file.create_group("/", "molecule")
        file.create_array(group, "atomic_numbers", system.species.astype(np.int16))
        file.create_array(group, "conformations", (labels.positions / BOHR).astype(np.float32))
        file.create_array(group, "dft_total_energy", labels.energies / HARTREE)
        file.create_array(group, "dft_total_gradient", -labels.forces / HARTREE * BOHR)


def write_torchmd(path: Path, name: str) -> None:
    system, labels = reference(name)
    with tables.open_file(str(path), "w") as file:
        group = file.create_group("/", "molecule")
        file.create_array(group, "types", system.species)
        file.create_array(group, "pos", labels.positions * 10.0)
        file.create_array(group, "energy", labels.energies / EV)
        file.create_array(group, "forces", labels.forces / EV / 10.0)


def write_rmd17(path: Path, name: str) -> None:
    system, labels = reference(name)
    np.savez(
        path,
        nuclear_charges=system.species,
        coords=labels.positions * 10.0,
        energies=labels.energies / KCAL,
        forces=labels.forces / KCAL / 10.0,
    )


EV_ANGSTROM = LabelOptions(energy_unit="eV", length_unit="angstrom")
FORMATS = {
    "frames.xyz": (write_xyz, None),
    "frames.db": (write_database, None),
    "spice.hdf5": (write_spice, None),
    "torchmd.h5": (write_torchmd, EV_ANGSTROM),
    "rmd17.npz": (write_rmd17, None),
}


@pytest.mark.parametrize("name", ["ethanol", "water"])
@pytest.mark.parametrize("file", FORMATS)
def test_every_format_gives_the_same_labels(file: str, name: str, tmp_path: Path) -> None:
    write, options = FORMATS[file]
    write(tmp_path / file, name)
    (system,) = labelled_systems(tmp_path / file, options)
    shipped, expected = reference(name)
    found = system.reference
    assert found is not None
    assert system.species.tolist() == shipped.species.tolist()
    assert system.bonds.tolist() == shipped.bonds.tolist()
    assert system.name == {"ethanol": "C2H6O", "water": "H2O"}[name]
    np.testing.assert_allclose(found.positions, expected.positions, atol=1e-7)
    np.testing.assert_allclose(found.energies, expected.energies, rtol=1e-9)
    np.testing.assert_allclose(found.forces, expected.forces, atol=2e-3)
    assert found.n_frames == N_FRAMES
    assert len(found.sha256) == 64
    assert found.held_out == "unknown"
    assert np.isnan(found.temperature_K).all()


def test_arrays_are_labels_too() -> None:
    system, labels = reference("ethanol")
    arrays = {
        "species": system.species,
        "positions": labels.positions * 10.0,
        "energies": labels.energies / EV,
        "forces": labels.forces / EV / 10.0,
        "temperature_K": labels.temperature_K,
    }
    (found,) = labelled_systems(arrays)
    assert found.reference is not None
    np.testing.assert_allclose(found.reference.forces, labels.forces, rtol=1e-12)
    assert found.reference.temperature_K.tolist() == labels.temperature_K.tolist()
    (same,) = labelled_systems(arrays)
    assert same.reference.sha256 == found.reference.sha256
    (other,) = labelled_systems({**arrays, "energies": arrays["energies"] + 1.0})
    assert other.reference.sha256 != found.reference.sha256
    with pytest.raises(InputError, match="forces is not there"):
        labelled_systems({key: value for key, value in arrays.items() if key != "forces"})
    with pytest.raises(InputError, match="got 'force'"):
        labelled_systems({**arrays, "force": arrays["forces"]})
    with pytest.raises(InputError, match=r"positions and forces of \(40, 9, 3\)"):
        labelled_systems({**arrays, "forces": arrays["forces"][:, :4]})


def test_labels_go_onto_a_system_of_the_same_atoms(tmp_path: Path) -> None:
    write_xyz(tmp_path / "frames.xyz", "ethanol")
    options = LabelOptions(held_out="yes", method="ANI-1ccx")
    (system,) = labelled_systems(tmp_path / "frames.xyz", options, [load_system("ethanol")])
    assert system.name == "ethanol"
    assert system.reference is not None
    assert (system.reference.held_out, system.reference.method) == ("yes", "ANI-1ccx")
    assert system.reference.source == str(tmp_path / "frames.xyz")
    assert system.landmarks is not None  # of the same method
    (other,) = labelled_systems(tmp_path / "frames.xyz", None, [load_system("ethanol")])
    assert other.landmarks is None
    with pytest.raises(InputError, match="no frame with the atoms of methane"):
        labelled_systems(tmp_path / "frames.xyz", None, [load_system("methane")])


def test_each_composition_with_the_same_bonds_is_a_system(tmp_path: Path) -> None:
    ethanol, ether = load_system("smiles:CCO"), load_system("smiles:COC")
    frames = as_atoms("water")[:3] + as_atoms("ethanol")[:5]
    for system in (ethanol, ether):
        atoms = Atoms(numbers=ether.species, positions=system.positions * 10.0)
        atoms.numbers = system.species
        atoms.calc = SinglePointCalculator(
            atoms, energy=-4000.0, forces=np.zeros((system.n_atoms, 3))
        )
        frames.append(atoms)
    ase_write(tmp_path / "mixed.xyz", frames, format="extxyz")
    systems = labelled_systems(tmp_path / "mixed.xyz")
    assert sorted(system.name for system in systems) == ["C2H6O", "C2H6O-2", "H2O"]
    counts = {system.name: system.reference.n_frames for system in systems}
    assert sorted(counts.values()) == [1, 3, 6]
    bonds = {tuple(map(tuple, system.bonds.tolist())) for system in systems}
    assert len(bonds) == 3


def test_a_frame_with_a_broken_bond_is_of_another_system(tmp_path: Path) -> None:
    frames = as_atoms("water")
    broken = frames[3]
    energy, forces = broken.get_potential_energy() + 5.0, broken.get_forces()
    broken.positions[1] += 2.0 * (broken.positions[1] - broken.positions[0])
    broken.calc = SinglePointCalculator(broken, energy=energy, forces=forces)
    ase_write(tmp_path / "broken.xyz", frames, format="extxyz")
    with pytest.raises(StructureError, match=r"broken\.xyz"):
        labelled_systems(tmp_path / "broken.xyz")  # OH and H: not a molecule
    (whole,) = labelled_systems(tmp_path / "broken.xyz", None, [load_system("water")])
    assert whole.reference is not None
    assert whole.reference.n_frames == N_FRAMES - 1


def test_more_frames_than_sharpen_anything_are_thinned_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    system, labels = reference("water")
    arrays = {
        "species": system.species,
        "positions": np.tile(labels.positions * 10.0, (30, 1, 1)),
        "energies": np.tile(labels.energies / EV, 30),
        "forces": np.tile(labels.forces / EV / 10.0, (30, 1, 1)),
    }
    with caplog.at_level(logging.WARNING):
        (found,) = labelled_systems(arrays)
    assert found.reference.n_frames == 1000
    assert "1200 frames of H2O; 1000 of them are taken" in caplog.text


# ---------------------------------------------------------------------------------------------- uni


def in_units(energy: float, length: float, name: str = "ethanol") -> dict[str, Any]:
    """Arrays in units of so many kJ/mol and nm."""
    system, labels = reference(name)
    return {
        "species": system.species,
        "positions": labels.positions / length,
        "energies": labels.energies / energy,
        "forces": labels.forces / energy * length,
    }


UNITS = {
    ("eV", "angstrom"): (EV, 0.1),
    ("kcal/mol", "angstrom"): (KCAL, 0.1),
    ("kJ/mol", "nm"): (1.0, 1.0),
    ("hartree", "bohr"): (HARTREE, BOHR),
}


@pytest.mark.parametrize("name", ["ethanol", "water", "methane", "aspirin", "alanine-dipeptide"])
@pytest.mark.parametrize("units", UNITS)
def test_declared_units_that_are_right_pass(units: tuple[str, str], name: str) -> None:
    arrays = in_units(*UNITS[units], name)
    options = LabelOptions(energy_unit=units[0], length_unit=units[1])
    (system,) = labelled_systems(arrays, options)
    _, labels = reference(name)
    np.testing.assert_allclose(system.reference.forces, labels.forces, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("name", ["ethanol", "water", "methane", "aspirin"])
@pytest.mark.parametrize(
    ("energy", "words"),
    [(KCAL, "kcal/mol/angstrom"), (1.0, "kJ/mol/angstrom"), (HARTREE * 0.1 / BOHR, "hartree/bohr")],
)
def test_forces_in_another_unit_are_recognised(energy: float, words: str, name: str) -> None:
    with pytest.raises(InputError, match=f"these look like {words}, not eV/angstrom") as caught:
        labelled_systems(in_units(energy, 0.1, name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ethanol", "water", "methane"])
@pytest.mark.parametrize(("unit", "word"), [(KCAL, "kcal/mol"), (HARTREE, "hartree")])
def test_energies_in_another_unit_than_the_forces_are_recognised(
    unit: float, word: str, name: str
) -> None:
    arrays = in_units(EV, 0.1, name)
    arrays["energies"] = arrays["energies"] * EV / unit
    with pytest.raises(InputError, match=f"these look like {word}, not eV"):
        labelled_systems(arrays)


def test_gradients_for_forces_are_recognised() -> None:
    arrays = in_units(EV, 0.1)
    arrays["forces"] = -arrays["forces"]
    with pytest.raises(InputError, match="the other sign"):
        labelled_systems(arrays)


def test_units_that_the_user_names_are_taken_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        labelled_systems(in_units(KCAL, 0.1), LabelOptions(energy_unit="eV"))
    assert "these look like kcal/mol/angstrom" in caplog.text


def test_a_format_without_units_asks_for_them(tmp_path: Path) -> None:
    write_torchmd(tmp_path / "frames.h5", "water")
    with pytest.raises(InputError, match="give --energy-unit and --length-unit"):
        labelled_systems(tmp_path / "frames.h5")
    with pytest.raises(InputError, match="unknown unit of energy 'calories'"):
        labelled_systems(
            tmp_path / "frames.h5", LabelOptions(energy_unit="calories", length_unit="nm")
        )
    with pytest.raises(InputError, match="wanted an energy over a length"):
        labelled_systems(in_units(EV, 0.1), LabelOptions(force_unit="newton"))


# ---------------------------------------------------------------------------------------- bad files


def test_keys_that_are_not_there_are_named_with_those_that_are(tmp_path: Path) -> None:
    frames = as_atoms("water")
    for atoms in frames:
        atoms.info["REF_energy"] = atoms.get_potential_energy()
        atoms.arrays["REF_forces"] = atoms.get_forces()
        atoms.calc = None
    path = tmp_path / "keys.xyz"
    ase_write(path, frames, format="extxyz")
    with pytest.raises(InputError, match=r"no energy under 'energy' .*REF_energy.*--energy-key"):
        labelled_systems(path)
    with pytest.raises(InputError, match=r"no forces under 'forces' .*REF_forces.*--forces-key"):
        labelled_systems(path, LabelOptions(energy_key="REF_energy"))
    options = LabelOptions(energy_key="REF_energy", forces_key="REF_forces")
    (system,) = labelled_systems(path, options)
    np.testing.assert_allclose(system.reference.energies, reference("water")[1].energies)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("frames.csv", b"1,2", "not a file of labels that is read here"),
        ("frames.npz", b"not a zip", "not an NPZ file"),
        ("frames.h5", b"not hdf5", "not an HDF5 file"),
        ("frames.db", b"not a database", "not a database that ASE can read"),
        ("absent.xyz", None, "no such file of labels"),
    ],
)
def test_files_that_are_no_labels_are_refused(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        labelled_systems(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_label_that_is_not_finite_is_refused() -> None:
    arrays = in_units(EV, 0.1)
    arrays["energies"][3] = np.nan
    with pytest.raises(InputError, match="a label is not finite"):
        labelled_systems(arrays)


def test_charge_and_box_of_labels_are_those_of_their_system(tmp_path: Path) -> None:
    rows = "N 0 0 0\nH 0.595 0.595 0.595\nH -0.595 -0.595 0.595\n"
    rows += "H -0.595 0.595 -0.595\nH 0.595 -0.595 -0.595\n"
    table = "".join(f"{row} 0 0 0\n" for row in rows.splitlines())
    words = "Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.0 charge=1"
    (tmp_path / "ion.xyz").write_text(f'5\n{words} Lattice="0 9 0 0 0 9 9 0 0"\n{table}')
    (system,) = labelled_systems(tmp_path / "ion.xyz")
    assert system.charge == 1
    np.testing.assert_allclose(system.box_vectors, 0.9 * np.eye(3), atol=1e-12)
    np.testing.assert_allclose(system.reference.positions[0], system.positions, atol=1e-12)


def test_deuterium_in_labels_has_its_mass(tmp_path: Path) -> None:
    words = "Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.0"
    rows = "O 0 0 0.1173 0 0 0\nD 0 0.7572 -0.4692 0 0 0\nD 0 -0.7572 -0.4692 0 0 0\n"
    (tmp_path / "heavy.xyz").write_text(f"3\n{words}\n{rows}")
    (system,) = labelled_systems(tmp_path / "heavy.xyz")
    np.testing.assert_allclose(system.masses, [15.999, 2.0141, 2.0141], atol=1e-3)


def test_a_library_is_refused_unless_a_system_is_named(tmp_path: Path) -> None:
    helium = [
        Atoms("He" * (k + 1), positions=[[5.0 * n, 0, 0] for n in range(k + 1)]) for k in range(60)
    ]
    for atoms in helium:
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((len(atoms), 3)))
    ase_write(tmp_path / "many.xyz", helium + as_atoms("water"), format="extxyz")
    with pytest.raises(InputError, match="more than 50 systems"):
        labelled_systems(tmp_path / "many.xyz")
    (water,) = labelled_systems(tmp_path / "many.xyz", None, [load_system("water")])
    assert water.reference.n_frames == N_FRAMES


def test_labels_in_a_turned_box_are_turned_with_it(tmp_path: Path) -> None:
    """Forces that are as long as the positions stay so, in every direction."""
    words = "Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.0"
    lattice = 'Lattice="0 9 0 1 0 10 11 2 0"'
    rows = ["O 1.0 2.0 3.1173", "H 1.0 2.7572 2.5308", "H 1.0 1.2428 2.5308"]
    table = "".join(f"{row} {row[2:]}\n" for row in rows)
    (tmp_path / "turned.xyz").write_text(f"3\n{words} {lattice}\n{table}")
    (labelled,) = labelled_systems(tmp_path / "turned.xyz")
    read = load_system(str(tmp_path / "turned.xyz"))
    np.testing.assert_allclose(labelled.box_vectors, read.box_vectors, atol=1e-12)
    (positions,), (forces,) = labelled.reference.positions, labelled.reference.forces
    np.testing.assert_allclose(positions, read.positions, atol=1e-12)
    assert not np.allclose(positions[0], [0.1, 0.2, 0.31173])
    np.testing.assert_allclose(forces / EV / 10.0, positions * 10.0, atol=1e-9)
