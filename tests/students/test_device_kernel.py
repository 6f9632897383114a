"""The CUDA kernel without a device: its source emulated on the host, and compiled by NVRTC."""

import subprocess
from pathlib import Path

import pytest
import torch
from students.emulation import Emulator
from students.test_compiled import random_student, scattered, shipped

from omm_mlff.students import compiled
from omm_mlff.students.engine import MoleculeEngine
from omm_mlff.students.kernel import build, layout
from omm_mlff.students.student import Student, StudentConfig
from omm_mlff.units import KJMOL_NM_PER_EV_ANGSTROM, KJMOL_PER_EV

ATOMS = torch.tensor([6, 8, 1, 7, 1, 1]).repeat(11)
ONE_LAYER = StudentConfig("one layer", n_features=5, n_layers=1, n_radial=7, n_readout=3)
THREE_LAYERS = StudentConfig("three", n_features=24, n_layers=3, n_radial=16, n_readout=17)
WIDE = StudentConfig("wide", n_features=130, n_layers=2, n_radial=20, n_readout=140)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp("emulator"))


def off(
    found: tuple[torch.Tensor, torch.Tensor], student: Student, x: torch.Tensor, n_copies: int
) -> tuple[float, float]:
    """How far from the scripted engine, in eV an atom and eV/angstrom."""
    n_atoms = len(x) // n_copies
    wanted = MoleculeEngine(student, ATOMS[:n_atoms], n_copies)(x)
    energy = float((found[0] - wanted[0]).abs().max()) / KJMOL_PER_EV / n_atoms
    return energy, float((found[1] - wanted[1]).abs().max()) / KJMOL_NM_PER_EV_ANGSTROM


@pytest.mark.parametrize(
    ("student", "n_atoms", "n_copies", "cluster", "n_threads", "n_teams"),
    [
        pytest.param("original", 22, 1, 16, 2, 1, id="original-alone-in-16-blocks"),
        pytest.param("original", 13, 3, 1, 4, 2, id="original"),
        pytest.param("tiny", 9, 9, 4, 3, 2, id="tiny-in-4-blocks"),
        pytest.param("tiny", 64, 1, 4, 4, 1, id="tiny-64-atoms"),
        pytest.param("ultra-tiny", 2, 9, 1, 5, 1, id="ultra-tiny-two-atoms"),
        pytest.param("ultra-tiny", 64, 1, 1, 4, 1, id="ultra-tiny-64-atoms"),
        pytest.param(ONE_LAYER, 6, 5, 1, 7, 2, id="one-layer"),
        pytest.param(ONE_LAYER, 3, 2, 2, 1, 2, id="one-layer-in-2-blocks"),
        pytest.param(THREE_LAYERS, 11, 4, 2, 3, 2, id="three-layers-in-2-blocks"),
        pytest.param(WIDE, 7, 2, 8, 2, 1, id="130-features-in-8-blocks"),
    ],
)
def test_source_computes_what_the_scripted_student_computes_in_float64(
    emulator: Emulator,
    student: str | StudentConfig,
    n_atoms: int,
    n_copies: int,
    cluster: int,
    n_threads: int,
    n_teams: int,
) -> None:
    made = shipped(student, torch.float64) if isinstance(student, str) else random_student(student)
    x = scattered(n_atoms, n_copies)
    found = emulator.run(
        made,
        ATOMS[:n_atoms],
        x,
        n_copies,
        cluster=cluster,
        n_threads=n_threads,
        n_teams=n_teams,
    )
    energy, force = off(found, made, x, n_copies)
    assert energy < 1e-10
    assert force < 1e-9


@pytest.mark.parametrize(("name", "cluster"), [("original", 8), ("tiny", 1), ("ultra-tiny", 1)])
def test_source_in_float32_stays_within_1e_5_of_forces_of_ordinary_size(
    emulator: Emulator, name: str, cluster: int
) -> None:
    student = shipped(name, torch.float32)
    x = torch.from_numpy(0.1 * compiled._trial(20)[0])
    found = emulator.run(student, ATOMS[:20], x, cluster=cluster, n_threads=4)
    energy, force = off(found, shipped(name, torch.float64), x, 1)
    assert energy < 1e-6
    assert force < 1e-5


def test_copy_has_the_same_bits_whatever_the_copies_teams_and_threads(emulator: Emulator) -> None:
    student = shipped("ultra-tiny", torch.float32)
    n, n_copies = 3, 9
    x = scattered(n, n_copies)
    alone = [
        emulator.run(student, ATOMS[:n], copy.contiguous(), n_threads=3)
        for copy in x.reshape(n_copies, n, 3)
    ]
    for group, n_teams, n_threads in ((1, 2, 5), (4, 1, 2), (9, 1, 16)):
        energies, forces = emulator.run(
            student, ATOMS[:n], x, n_copies, group=group, n_teams=n_teams, n_threads=n_threads
        )
        assert torch.equal(energies, torch.cat([energy for energy, _ in alone]))
        assert torch.equal(forces, torch.cat([force for _, force in alone]))


def test_little_shared_memory_changes_no_bit(emulator: Emulator) -> None:
    student = shipped("ultra-tiny", torch.float32)
    x = scattered(40)
    roomy = emulator.run(student, ATOMS[:40], x, n_threads=4, block_bytes=200_000)
    narrow = emulator.run(student, ATOMS[:40], x, n_threads=4, block_bytes=45_000)
    assert torch.equal(roomy[0], narrow[0])
    assert torch.equal(roomy[1], narrow[1])


def test_float32_positions_give_float32_forces(emulator: Emulator) -> None:
    student = shipped("ultra-tiny", torch.float32)
    x = torch.from_numpy(0.1 * compiled._trial(9)[0]).float()
    energies, forces = emulator.run(student, ATOMS[:9], x, n_threads=2)
    wanted_energies, wanted_forces = MoleculeEngine(student, ATOMS[:9])(x)
    assert (energies.dtype, forces.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(energies, wanted_energies, rtol=0.0, atol=1e-2)
    torch.testing.assert_close(forces, wanted_forces, rtol=0.0, atol=1e-2)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_positions_that_are_not_finite_spoil_their_own_copy_alone(
    emulator: Emulator, bad: float
) -> None:
    student = shipped("ultra-tiny", torch.float32)
    x = scattered(6, 3)
    clean = emulator.run(student, ATOMS[:6], x, 3, group=3)
    x[6 + 2, 1] = bad
    energies, forces = emulator.run(student, ATOMS[:6], x, 3, group=3)
    assert torch.isnan(energies[1])
    assert forces.reshape(3, -1)[1].isnan().all()
    assert torch.equal(energies[[0, 2]], clean[0][[0, 2]])
    assert torch.equal(forces.reshape(3, -1)[[0, 2]], clean[1].reshape(3, -1)[[0, 2]])


def test_atoms_at_one_place_and_pairs_beyond_the_cutoff_are_the_scripted_ones(
    emulator: Emulator,
) -> None:
    student = shipped("ultra-tiny", torch.float64)
    x = torch.tensor([[0.0, 0, 0], [0.0, 0, 1e-9], [0.1, 0, 0], [0.7, 0, 0]]).double()
    found = emulator.run(student, ATOMS[:4], x)
    wanted = MoleculeEngine(student, ATOMS[:4])(x)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-9, atol=0.0)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-9, atol=1e-3)


def sanitized(folder: Path, sanitizer: str, source: str | None = None) -> Emulator:
    """An emulator with a sanitizer, or a skip where the compiler lacks it."""
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    command = [build.find_compiler(), f"-fsanitize={sanitizer}", str(probe), "-o", f"{probe}.out"]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{build.find_compiler()} has no -fsanitize={sanitizer}")
    made = Emulator(folder, ("-O1", "-g", f"-fsanitize={sanitizer}"))
    if source is not None:
        made.source = source
    return made


SMALL = StudentConfig("small", n_features=12, n_layers=2, n_radial=5, n_readout=9)
SANITIZED = [(1, 13, 3, 2), (2, 5, 1, 2)]
"""Cluster, threads, copies, teams."""


@pytest.mark.parametrize(("cluster", "n_threads", "n_copies", "n_teams"), SANITIZED)
def test_thread_sanitizer_finds_no_race(
    tmp_path: Path, cluster: int, n_threads: int, n_copies: int, n_teams: int
) -> None:
    student = random_student(SMALL, torch.float32)
    x = scattered(5, n_copies)
    found = sanitized(tmp_path, "thread").run(
        student,
        ATOMS[:5],
        x,
        n_copies,
        cluster=cluster,
        n_threads=n_threads,
        n_teams=n_teams,
    )
    assert off(found, student, x, n_copies)[0] < 1e-5


def test_thread_sanitizer_sees_a_barrier_that_is_missing(tmp_path: Path) -> None:
    source = Emulator(tmp_path).source
    barrier = "    if (wait) sync_team();\n"
    assert source.count(barrier) == 1
    broken = sanitized(tmp_path, "thread", source.replace(barrier, "    if (wait) {}\n"))
    student = random_student(SMALL, torch.float32)
    variant = layout.variant_of(student, 2)
    call = layout.plan_call(variant, 5, 1, n_teams=1, block_bytes=100_000)
    done, _, _ = broken.launch(student, variant, call, ATOMS[:5], scattered(5), 5, 1)
    assert done.returncode != 0
    assert "data race" in done.stderr


@pytest.mark.parametrize(("cluster", "n_threads", "n_copies", "n_teams"), SANITIZED)
def test_address_sanitizer_finds_no_access_out_of_bounds(
    tmp_path: Path, cluster: int, n_threads: int, n_copies: int, n_teams: int
) -> None:
    emulator = sanitized(tmp_path, "address,undefined")
    student = random_student(SMALL, torch.float32)
    for n_atoms, block_bytes in ((5, 100_000), (64, 100_000), (64, 40_000)):
        x = scattered(n_atoms, n_copies)
        found = emulator.run(
            student,
            ATOMS[:n_atoms],
            x,
            n_copies,
            cluster=cluster,
            n_threads=n_threads,
            n_teams=n_teams,
            block_bytes=block_bytes,
        )
        assert off(found, student, x, n_copies)[0] < 1e-5
