"""Files that are easily read wrongly: each is read as its author meant it, or refused by name."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from openmm.app import Element

from omm_mlff.errors import StructureError
from omm_mlff.schema import MolecularSystem
from omm_mlff.systems import load_system

CASES = Path(__file__).with_name("cases")

WATER = "O 0.0 0.0 0.1173\nH 0.0 0.7572 -0.4692\nH 0.0 -0.7572 -0.4692\n"
WATER_NM = np.array([[0.0, 0.0, 0.01173], [0.0, 0.07572, -0.04692], [0.0, -0.07572, -0.04692]])


def case(name: str, **options: int) -> MolecularSystem:
    return load_system(str(CASES / name), **options)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, str], str]:
    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def refused(spec: str, message: str, **options: int) -> None:
    start = time.perf_counter()
    with pytest.raises(StructureError, match=message) as caught:
        load_system(spec, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert time.perf_counter() - start < 5.0  # a second by hand; a busy machine has more time


# --------------------------------------------------------------------------- the cases, one by one


@pytest.mark.parametrize("name", ["d2o-iso.sdf", "d2o-v3000.sdf", "d2o.xyz"])
def test_deuterium_is_hydrogen_of_another_mass(name: str) -> None:
    system = case(name)
    assert system.species.tolist() == [8, 1, 1]
    np.testing.assert_allclose(system.masses, [15.999, 2.0141, 2.0141], atol=1e-3)
    assert system.charge == 0
    assert system.bonds.tolist() == [[0, 1], [0, 2]]
    assert [atom.element for atom in system.topology.atoms()][1] is Element.getBySymbol("H")


def test_deuterium_in_a_pdb_has_the_same_mass(written: Callable[[str, str], str]) -> None:
    rows = [
        f"HETATM{k + 1:5d}  {name:<3} HOH A   1    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00"
        + f"{s:>12}"
        for k, (name, s, (x, y, z)) in enumerate(
            zip(("O", "D1", "D2"), "ODD", WATER_NM * 10.0, strict=True)
        )
    ]
    system = load_system(written("heavy.pdb", "\n".join([*rows, "END\n"])))
    np.testing.assert_allclose(system.masses[1:], 2.0141, atol=1e-4)
    assert system.species.tolist() == [8, 1, 1]


def test_a_methyl_radical_is_a_doublet() -> None:
    system = case("methyl-radical.sdf")
    assert (system.charge, system.spin_multiplicity) == (0, 2)
    assert system.n_atoms == 4


def test_acetate_has_a_charge_of_minus_one() -> None:
    system = case("acetate.sdf")
    assert (system.charge, system.spin_multiplicity) == (-1, 1)


@pytest.mark.parametrize("name", ["box-pbc-cell.xyz", "box-lattice.xyz"])
def test_a_box_in_a_comment_is_a_box(name: str) -> None:
    system = case(name)
    np.testing.assert_allclose(system.box_vectors, np.eye(3), atol=1e-12)
    assert system.topology.getPeriodicBoxVectors() is not None


@pytest.mark.parametrize(
    "name",
    [
        *("ase-forces.xyz", "lower-case.xyz", "numbers.xyz", "byte-order-mark.xyz"),
        *("fortran-exponents.xyz", "columns-charges.xyz"),
    ],
)
def test_water_in_another_dialect_is_water(name: str) -> None:
    system = case(name)
    assert system.species.tolist() == [8, 1, 1]
    np.testing.assert_allclose(system.positions, WATER_NM, atol=1e-12)
    assert system.bonds.tolist() == [[0, 1], [0, 2]]
    assert system.box_vectors is None
    assert system.reference is None


def test_columns_that_nobody_declared_are_left_out_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        case("columns-charges.xyz")
    assert "4 more column(s)" in caplog.text
    caplog.clear()
    case("ase-forces.xyz")
    assert caplog.text == ""


def test_one_of_several_frames_must_be_named() -> None:
    refused(str(CASES / "two-frames.xyz"), r"2 frames; .*--frame \(0 to 1\)")
    assert case("two-frames.xyz", frame=0).positions[0, 2] == pytest.approx(0.01173)
    assert case("two-frames.xyz", frame=1).positions[0, 2] == pytest.approx(0.01273)
    refused(str(CASES / "two-frames.xyz"), "from 0 to 1, got 2", frame=2)


def test_a_charge_in_a_comment_is_the_charge() -> None:
    system = case("ammonium-charge.xyz")
    assert (system.charge, len(system.bonds)) == (1, 4)
    assert case("ammonium-charge.xyz", charge=1).charge == 1
    refused(str(CASES / "ammonium-charge.xyz"), "says charge 1, .* --charge says 0", charge=0)


def test_a_missing_comment_line_is_named() -> None:
    refused(str(CASES / "no-comment-line.xyz"), "line 2, where the comment belongs, is an atom")


def test_a_name_in_column_13_is_a_symbol_of_two_letters() -> None:
    assert case("no-element-columns.pdb").species.tolist() == [35, 1]


def test_alternate_locations_and_virtual_sites_are_refused() -> None:
    refused(str(CASES / "altloc.pdb"), r"alternate locations \(A, B\)")
    refused(str(CASES / "tip4p.pdb"), r"M \(atom 4\) has no known element")


def test_one_atom_is_a_system() -> None:
    system = case("helium.xyz")
    assert (system.n_atoms, len(system.bonds), system.charge) == (1, 0, 0)


def test_two_molecules_far_apart_do_not_feel_each_other() -> None:
    from omm_mlff.potentials.registry import load_potential

    pair, potential = case("far-apart.xyz"), load_potential("ultra-tiny")
    one = load_system(str(CASES / "lower-case.xyz"))
    energies, forces = potential.energies_and_forces(pair.positions[None], pair)
    alone, force = potential.energies_and_forces(one.positions[None], one)
    assert energies[0] == pytest.approx(2.0 * alone[0], rel=1e-7)
    np.testing.assert_allclose(forces[0].reshape(2, 3, 3), np.tile(force, (2, 1, 1)), atol=1e-2)


# ----------------------------------------------------------------------------- what else is refused


def sdf(counts: str, rows: str = "") -> str:
    return f"name\n  program\n\n{counts}\n{rows}M  END\n$$$$\n"


MILLION = sdf(
    "  0  0  0     0  0            999 V3000", "M  V30 BEGIN CTAB\nM  V30 COUNTS 1000000 0 0 0 0\n"
)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("million.sdf", MILLION, "says that it has 1000000 atoms"),
        ("many.sdf", MILLION.replace("1000000", "100000"), "100000 atoms, and has"),
        ("short.sdf", sdf("999  0  0  0  0  0  0  0  0  0999 V2000"), "999 atoms, and has 1 lines"),
        ("million.xyz", "1000000\n\n" + WATER, "1000000 atoms; wanted at most"),
        ("number.xyz", "9" * 5000 + "\n\n" + WATER, "atoms; wanted at most"),
        ("line.xyz", "3\n" + "x" * 10_000_000 + "\n" + WATER, "a line of 10000000 characters"),
        ("line.pdb", "REMARK " + "x" * 10_000_000 + "\n", "a line of 10000007 characters"),
        ("million.gro", "t\n1000000\n", "1000000 atoms; wanted at most"),
        ("million.mol2", "@<TRIPOS>MOLECULE\nm\n 1000000 1\n", "1000000 atoms; wanted at most"),
        ("commas.xyz", "3\n\n" + WATER.replace(".", ","), "decimal comma"),
        ("cell.xyz", '3\nLattice="0 0 0 0 0 0 0 0 0" pbc="T T T"\n' + WATER, "box has no volume"),
        ("flat.xyz", '3\nLattice="5 0 0 5 0 0 0 0 5"\n' + WATER, "box has no volume"),
        ("left.xyz", '3\nLattice="0 5 0 5 0 0 0 0 5"\n' + WATER, "left-handed"),
        ("slab.xyz", '3\nLattice="5 0 0 0 5 0 0 0 5" pbc="T T F"\n' + WATER, "two? of three|2 of"),
        ("nobox.xyz", '3\npbc="T T T"\n' + WATER, "no box; wanted Lattice="),
        ("cell.pdb", "CRYST1    0.000    0.000    0.000  90.00  90.00  90.00 P 1           1\n"
         "HETATM    1 HE   HE  A   1       0.000   0.000   0.000  1.00  0.00          HE\n",
         "its cell has no volume"),
        ("oganesson.xyz", "1\n\nOg 0 0 0\n", "'Og' is not an element that OpenMM knows"),
        ("number118.xyz", "1\n\n118 0 0 0\n", "'Og' is not an element that OpenMM knows"),
        ("number0.xyz", "1\n\n0 0 0 0\n", "'0' .* not the symbol"),
        ("dummy.xyz", "1\n\nX 0 0 0\n", "'X' .* not the symbol"),
        ("spin.xyz", "3\nspin=0\n" + WATER, "wanted spin as the multiplicity"),
        ("parity.xyz", "3\nspin=2\n" + WATER, "10 electrons .* no spin multiplicity 2"),
        ("half.xyz", "3\ncharge=0.5\n" + WATER, "wanted charge as a whole number"),
        ("declared.xyz", "3\nProperties=species:S:1:pos:R:3:f:R:3\n" + WATER, "wanted 7 columns"),
        ("nowhere.xyz", "3\nProperties=species:S:1:forces:R:3\n" + WATER, "declares no pos:R:3"),
        ("odd.xyz", "3\nProperties=species:S:pos:R:3\n" + WATER, "is not understood"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(
    name: str, text: str, message: str, written: Callable[[str, str], str]
) -> None:
    refused(written(name, text), message)


@pytest.mark.parametrize("count", ["99999999", "9" * 5000])
def test_a_box_that_no_memory_holds_is_refused(count: str) -> None:
    refused(f"water-box:{count}", "wanted at most 166666 molecules")


def test_coordinates_in_bohr_are_recognised(written: Callable[[str, str], str]) -> None:
    rows = [(s, *(WATER_NM[k] / 0.0529177210903)) for k, s in enumerate("OHH")]
    text = "3\n\n" + "".join(f"{s} {x:.6f} {y:.6f} {z:.6f}\n" for s, x, y, z in rows)
    refused(written("bohr.xyz", text), "in bohr; wanted angstrom: multiply them by 0.529177")


def test_an_exponent_without_a_fortran_d_and_latin_1_are_read(tmp_path: Path) -> None:
    path = tmp_path / "latin.xyz"
    text = "3\nEau distillée à 20 °C\n" + WATER.replace("0.7572", "7.572E-01")
    path.write_bytes(text.encode("latin-1"))
    np.testing.assert_allclose(load_system(str(path)).positions, WATER_NM, atol=1e-12)


def test_an_equals_sign_in_prose_is_no_key(written: Callable[[str, str], str]) -> None:
    text = '3\nE = -76.4 "at MP2, d(OH)=0.96 {\n' + WATER
    assert load_system(written("prose.xyz", text)).n_atoms == 3


def test_a_box_in_any_orientation_is_turned_and_reduced(written: Callable[[str, str], str]) -> None:
    # A turned cell: every distance, also through its faces, is what it was.
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    cell = np.array([[9.0, 0.0, 0.0], [1.0, 10.0, 0.0], [-2.0, 3.0, 11.0]])
    lattice = " ".join(f"{x:.12f}" for x in (cell @ turn).ravel())
    rows = "".join(
        f"{s} {x:.12f} {y:.12f} {z:.12f}\n"
        for s, (x, y, z) in zip("OHH", WATER_NM * 10.0 @ turn, strict=True)
    )
    system = load_system(written("turned.xyz", f'3\nLattice="{lattice}"\n{rows}'))
    assert system.box_vectors is not None
    np.testing.assert_allclose(np.tril(system.box_vectors), system.box_vectors)
    np.testing.assert_allclose(np.linalg.det(system.box_vectors), 0.99, rtol=1e-9)
    np.testing.assert_allclose(
        system.positions @ system.positions.T, WATER_NM @ WATER_NM.T, atol=1e-9
    )
    gram = system.box_vectors @ system.positions.T
    np.testing.assert_allclose(gram[0], cell[0] / 10.0 @ WATER_NM.T, atol=1e-9)


# ---------------------------------------------------------------------- PDB without element columns

HETATM = "HETATM{0:5d} {1:<4} {2:<3} A   1    {3:8.3f}   0.000   0.000  1.00  0.00\n"


def linear(name: str, residue: str, length: float) -> str:
    return HETATM.format(1, name, residue, 0.0) + HETATM.format(2, " H1", residue, length) + "END\n"


@pytest.mark.parametrize(
    ("name", "residue", "length", "number"),
    [("CL1 ", "HCL", 1.275, 17), (" F1 ", "HF", 0.917, 9), ("Br1 ", "UNL", 1.414, 35)],
)
def test_an_element_follows_from_the_columns_of_a_name(
    name: str, residue: str, length: float, number: int, written: Callable[[str, str], str]
) -> None:
    system = load_system(written("hx.pdb", linear(name, residue, length)))
    assert system.species.tolist() == [number, 1]


@pytest.mark.parametrize(("name", "number", "hydride"), [("SI1 ", 14, 1.48), ("SE  ", 34, 1.46)])
def test_silicon_and_selenium_are_not_sulfur(
    name: str, number: int, hydride: float, written: Callable[[str, str], str]
) -> None:
    corners = np.array([[1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]]) / np.sqrt(3.0) * hydride
    corners = corners[: {14: 4, 34: 2}[number]]
    rows = f"HETATM    1 {name} UNL A   1       0.000   0.000   0.000  1.00  0.00\n"
    for k, (x, y, z) in enumerate(corners):
        rows += f"HETATM{k + 2:5d}  H{k + 1}  UNL A   1    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00\n"
    system = load_system(written("hydride.pdb", rows + "END\n"))
    assert system.species.tolist() == [number] + [1] * len(corners)


def test_a_name_of_two_meanings_is_a_question(written: Callable[[str, str], str]) -> None:
    refused(written("co.pdb", linear("CO1 ", "UNL", 1.1)), "no element columns, and CO1 could be")


def test_what_was_guessed_is_said_where_the_structure_is_not_whole(
    written: Callable[[str, str], str],
) -> None:
    rows = HETATM.format(1, "SI1 ", "UNL", 0.0) + "END\n"
    refused(written("si.pdb", rows), "hydrogens are missing.*no element columns.*SI1 as Si")


# --------------------------------------------------------------------------------- charge and spin


def test_hydronium_with_its_charge_in_the_comment_is_read(
    written: Callable[[str, str], str],
) -> None:
    rows = "O 0 0 0.07\nH 0.94 0 -0.19\nH -0.47 0.814 -0.19\nH -0.47 -0.814 -0.19\n"
    assert load_system(written("h3o.xyz", "4\ncharge=1\n" + rows)).charge == 1
    bare = written("bare.xyz", "4\n\n" + rows)
    refused(bare, r"no closed-shell molecule of charge \+0 .*--charge")
    assert load_system(bare, charge=1).charge == 1


METHYL = "C 0 0 0\nH 1.079 0 0\nH -0.5395 0.9344 0\nH -0.5395 -0.9344 0\n"


def test_a_radical_is_read_where_its_spin_is_stated(written: Callable[[str, str], str]) -> None:
    assert load_system(written("m.xyz", "4\nspin=2\n" + METHYL)).spin_multiplicity == 2
    bare = written("bare.xyz", "4\n\n" + METHYL)
    refused(bare, "1 hydrogen is missing.*--spin")
    assert load_system(bare, spin_multiplicity=2).spin_multiplicity == 2
    refused(bare, "9 electrons .*wanted an even number", spin_multiplicity=3)


def test_triplet_oxygen_keeps_its_double_bond(written: Callable[[str, str], str]) -> None:
    system = load_system(written("o2.xyz", "2\nmultiplicity=3\nO 0 0 0\nO 0 0 1.208\n"))
    assert (system.spin_multiplicity, system.charge) == (3, 0)


def test_a_singlet_carbene_is_a_singlet(written: Callable[[str, str], str]) -> None:
    atoms = "    0.0000    0.0000    0.0000 C   0  0\n    1.1070    0.0000    0.0000 H   0  0\n"
    atoms += "   -0.2300    1.0830    0.0000 H   0  0\n"
    bonds = "  1  2  1  0\n  1  3  1  0\n"
    for word, spin in ((1, 1), (3, 3)):
        text = sdf(
            "  3  2  0  0  0  0  0  0  0  0999 V2000", atoms + bonds + f"M  RAD  1   1   {word}\n"
        )
        system = load_system(written(f"ch2-{word}.sdf", text))
        assert system.spin_multiplicity == spin


def test_options_are_refused_where_a_system_has_its_own() -> None:
    with pytest.raises(StructureError, match="leave out --charge"):
        load_system("water", charge=0)
    with pytest.raises(StructureError, match="leave out --frame"):
        load_system("water-box:8", frame=1)


@pytest.mark.parametrize("spec", ["tiny?engine=scripted", "tiny"])
def test_a_box_smaller_than_twice_the_cutoff_is_eight_of_its_copies(spec: str) -> None:
    from openmm.app import Topology

    from omm_mlff.dynamics.evaluator import Evaluator
    from omm_mlff.potentials.registry import load_potential
    from omm_mlff.systems.build import build_system

    small, potential = load_system("water-box:8"), load_potential(spec)
    assert small.box_vectors is not None
    side = small.box_vectors[0, 0]
    assert potential.card.cutoff_nm is not None
    assert side < 2.0 * potential.card.cutoff_nm
    shifts = side * np.stack(np.meshgrid(*[[0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
    topology = Topology()
    residue = topology.addResidue("UNL", topology.addChain())
    for k in range(8):
        for atom in small.topology.atoms():
            topology.addAtom(f"{atom.name}-{k}", atom.element, residue)
    large = build_system(
        name="copies",
        source="test",
        topology=topology,
        positions=(small.positions[None] + shifts[:, None]).reshape(-1, 3),
        bonds=np.concatenate([small.bonds + k * small.n_atoms for k in range(8)]),
        box_vectors=2.0 * small.box_vectors,
    )
    with (
        Evaluator(potential, small, "Reference") as one,
        Evaluator(potential, large, "Reference") as eight,
    ):
        energy, forces = one.evaluate(small.positions[None])
        energies, all_forces = eight.evaluate(large.positions[None])
    assert energies[0] == pytest.approx(8.0 * energy[0], rel=1e-6)
    np.testing.assert_allclose(
        all_forces.reshape(8, -1, 3), np.tile(forces, (8, 1, 1)), atol=0.05
    )  # float32; forces are some 1000 kJ/mol/nm


@pytest.mark.parametrize("option", ["charge=x", "colour=1", "charge=1&charge=2", "frame=1.5"])
def test_an_option_that_is_none_is_refused(option: str) -> None:
    refused(f"{CASES}/helium.xyz?{option}", "wanted whole numbers for frame, charge, spin")


def test_options_may_stand_in_the_spec() -> None:
    spec = f"{CASES}/two-frames.xyz?frame=1"
    assert load_system(spec).positions[0, 2] == pytest.approx(0.01273)
    with pytest.raises(StructureError, match="says frame 1, and --frame says 0"):
        load_system(spec, frame=0)
