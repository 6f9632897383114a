"""The compiled engine against the scripted one, which autograd differentiates."""

import logging
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from omm_mlff.errors import InputError, KernelError
from omm_mlff.students import compiled, engine
from omm_mlff.students.checkpoint import load_student
from omm_mlff.students.compiled import compiled_engine
from omm_mlff.students.engine import BoxEngine, MoleculeEngine, build_engine
from omm_mlff.students.kernel import build
from omm_mlff.students.kernel.model import KernelModel
from omm_mlff.students.painn import smooth_norm
from omm_mlff.students.student import Student, StudentConfig
from omm_mlff.units import KJMOL_NM_PER_EV_ANGSTROM, KJMOL_PER_EV

SPECIES = torch.tensor([6, 8, 1, 7, 1, 1])
SHAPES = [
    StudentConfig("one layer", n_features=5, n_layers=1, n_radial=7, n_readout=3),
    StudentConfig("three layers", n_features=24, n_layers=3, n_radial=16, n_readout=17),
    StudentConfig("wide", n_features=130, n_layers=2, n_radial=20, n_readout=128),
    StudentConfig("far", n_features=16, n_layers=2, n_radial=9, n_readout=16, cutoff_angstrom=8.0),
]


def random_student(config: StudentConfig, dtype: torch.dtype = torch.float64) -> Student:
    torch.manual_seed(3)
    student = Student(config)
    for parameter in student.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)  # biases begin at zero otherwise
    student.network.to(dtype)
    return student.eval().requires_grad_(False)


def shipped(name: str, dtype: torch.dtype) -> Student:
    student = load_student(name)
    student.network.to(dtype)
    return student


def scattered(n_atoms: int, n_copies: int = 1, seed: int = 0) -> torch.Tensor:
    """Copies of a disordered structure, none like another, nm."""
    rng = np.random.default_rng(seed)
    x, _ = compiled._trial(n_atoms)
    x = np.concatenate([x + rng.normal(scale=0.1, size=x.shape) for _ in range(n_copies)])
    return torch.from_numpy(0.1 * x)


@pytest.mark.parametrize("config", SHAPES, ids=lambda config: config.name)
def test_energies_and_forces_are_the_scripted_ones_for_any_shape(config: StudentConfig) -> None:
    scripted = MoleculeEngine(random_student(config), SPECIES, 5)
    x = scattered(len(SPECIES), 5)
    wanted_energies, wanted_forces = scripted(x)
    energies, forces = compiled_engine(scripted)(x)
    scale = float(wanted_forces.abs().max())
    torch.testing.assert_close(energies, wanted_energies, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(forces, wanted_forces, rtol=0.0, atol=1e-11 * scale)


@pytest.mark.parametrize("name", ["original", "tiny", "ultra-tiny"])
def test_shipped_students_agree_with_the_scripted_ones(name: str) -> None:
    x = scattered(len(SPECIES), 3)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 5e-6)):
        scripted = MoleculeEngine(shipped(name, dtype), SPECIES, 3)
        wanted_energies, wanted_forces = scripted(x)
        energies, forces = compiled_engine(scripted)(x)
        scale = float(wanted_forces.abs().max())
        assert float((forces - wanted_forces).abs().max()) < tolerance * scale
        per_atom = float((energies - wanted_energies).abs().max()) / KJMOL_PER_EV / len(SPECIES)
        assert per_atom < (1e-9 if dtype == torch.float64 else 1e-5)


def test_forces_are_minus_the_energys_finite_differences() -> None:
    fast = compiled_engine(MoleculeEngine(random_student(SHAPES[1]), SPECIES))
    x = scattered(len(SPECIES))
    _, forces = fast(x)
    rng = np.random.default_rng(1)
    for _ in range(4):
        u = torch.from_numpy(rng.normal(size=x.shape))
        h = 1e-5
        stencil = [fast(x + k * h * u)[0].item() for k in (-2, -1, 1, 2)]
        slope = (stencil[0] - 8 * stencil[1] + 8 * stencil[2] - stencil[3]) / (12 * h)
        assert slope == pytest.approx(-float((forces * u).sum()), rel=1e-6)


@pytest.mark.parametrize("side_nm", [0.55, 1.4])
def test_box_agrees_with_the_scripted_one_however_many_images_are_near(side_nm: float) -> None:
    scripted = BoxEngine(random_student(SHAPES[1]), SPECIES.repeat(6), periodic=True)
    x = scattered(36) * (side_nm / 0.8)
    box = torch.tensor([[side_nm, 0, 0], [0.1, side_nm, 0], [-0.1, 0.05, side_nm]]).double()
    wanted_energies, wanted_forces = scripted(x, box)
    energies, forces = compiled_engine(scripted)(x, box)
    scale = float(wanted_forces.abs().max())
    torch.testing.assert_close(energies, wanted_energies, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(forces, wanted_forces, rtol=0.0, atol=1e-11 * scale)


def test_large_molecule_agrees_with_the_scripted_one() -> None:
    scripted = BoxEngine(shipped("tiny", torch.float64), SPECIES.repeat(15), periodic=False)
    x = scattered(90)
    wanted_energies, wanted_forces = scripted(x)
    energies, forces = compiled_engine(scripted)(x)
    torch.testing.assert_close(energies, wanted_energies, rtol=1e-12, atol=1e-8)
    torch.testing.assert_close(forces, wanted_forces, rtol=1e-10, atol=1e-6)


def test_pairs_beyond_the_cutoff_leave_no_force() -> None:
    fast = compiled_engine(MoleculeEngine(shipped("tiny", torch.float64), torch.tensor([8, 1])))
    alone = [float(fast(torch.tensor([[0.0, 0, 0], [d, 0, 0]]).double())[0]) for d in (0.51, 90.0)]
    assert alone[0] == alone[1]
    forces = fast(torch.tensor([[0.0, 0, 0], [0.51, 0, 0]]).double())[1]
    assert float(forces.abs().max()) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_copy_is_bit_for_bit_what_it_is_alone_whatever_the_threads(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = shipped("original", dtype)
    x = scattered(len(SPECIES), 24)
    alone = compiled_engine(MoleculeEngine(student, SPECIES))
    each = [alone(copy) for copy in x.reshape(24, -1, 3)]
    for n_threads in ("1", "2", "5"):
        monkeypatch.setenv("OMP_NUM_THREADS", n_threads)
        energies, forces = compiled_engine(MoleculeEngine(student, SPECIES, 24))(x)
        assert torch.equal(energies, torch.cat([energy for energy, _ in each]))
        assert torch.equal(forces, torch.cat([force for _, force in each]))


def test_box_is_bit_for_bit_the_same_whatever_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = compiled_engine(BoxEngine(load_student("tiny"), SPECIES.repeat(20), periodic=True))
    x, box = scattered(120), 1.0 * torch.eye(3).double()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    energy, forces = fast(x, box)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    for _ in range(5):
        again = fast(x, box)
        assert torch.equal(again[0], energy)
        assert torch.equal(again[1], forces)


def test_positions_that_are_not_finite_spoil_their_own_copy_alone() -> None:
    fast = compiled_engine(MoleculeEngine(load_student("tiny"), SPECIES, 3))
    x = scattered(len(SPECIES), 3)
    clean_energies, clean_forces = fast(x)
    x[len(SPECIES) + 2, 1] = torch.nan
    energies, forces = fast(x)
    assert torch.isnan(energies[1])
    assert forces.reshape(3, -1)[1].isnan().all()
    assert torch.equal(energies[[0, 2]], clean_energies[[0, 2]])
    assert torch.equal(forces.reshape(3, -1)[[0, 2]], clean_forces.reshape(3, -1)[[0, 2]])


def test_atoms_at_one_place_give_what_the_scripted_engine_gives() -> None:
    scripted = MoleculeEngine(shipped("tiny", torch.float64), torch.tensor([8, 1, 1]))
    x = torch.tensor([[0.0, 0, 0], [0.0, 0, 1e-9], [0.1, 0, 0]]).double()
    wanted, got = scripted(x), compiled_engine(scripted)(x)
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-9, atol=0.0)
    torch.testing.assert_close(got[1], wanted[1], rtol=1e-9, atol=1e-3)


def test_calls_at_the_same_time_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    fast = compiled_engine(MoleculeEngine(load_student("original"), SPECIES, 16))
    inputs = [scattered(len(SPECIES), 16, seed) for seed in range(4)]
    wanted = [fast(x) for x in inputs]
    wrong: list[int] = []

    def repeat(k: int) -> None:
        for _ in range(50):
            if not torch.equal(fast(inputs[k])[1], wanted[k][1]):
                wrong.append(k)

    threads = [threading.Thread(target=repeat, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_float32_positions_give_float32_forces() -> None:
    fast = compiled_engine(MoleculeEngine(load_student("tiny"), SPECIES))
    energies, forces = fast(scattered(len(SPECIES)).float())
    assert (energies.dtype, forces.dtype) == (torch.float64, torch.float32)


def test_engine_scripts_and_computes_the_same() -> None:
    fast = compiled_engine(MoleculeEngine(load_student("tiny"), SPECIES, 2))
    x = scattered(len(SPECIES), 2)
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        scripted = torch.jit.script(fast)
    assert torch.equal(scripted(x)[1], fast(x)[1])


def test_kernel_that_computes_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    student = random_student(SHAPES[0], torch.float32)
    student.network.basis.cutoff = 4.9  # the radial functions' norm, which the kernel has from 5.0
    with pytest.raises(KernelError, match=r"off by .* eV/atom .*wanted 1e-05 and 0.0001"):
        compiled_engine(MoleculeEngine(student, SPECIES))
    with pytest.raises(InputError, match="engine=scripted"):
        build_engine(student, SPECIES, periodic=False, engine="compiled")
    engine._say_scripted.cache_clear()
    with caplog.at_level(logging.WARNING, logger="omm_mlff.students.engine"):
        for _ in range(2):
            chosen = build_engine(student, SPECIES, periodic=False, engine="auto")
            assert isinstance(chosen, MoleculeEngine)
    assert len(caplog.records) == 1
    assert "students run scripted" in caplog.records[0].message


def test_student_of_other_parts_is_refused() -> None:
    student = random_student(SHAPES[0])
    student.network.messages[0].phi[1] = torch.nn.Tanh()
    with pytest.raises(KernelError, match="knows no Tanh"):
        KernelModel(student)


@pytest.mark.parametrize("part", ["network", "prior", "reference energies"])
def test_changed_student_reaches_the_next_engine(part: str) -> None:
    student = random_student(SHAPES[0])
    x = scattered(len(SPECIES))
    before = compiled_engine(MoleculeEngine(student, SPECIES))(x)[0]
    if part == "network":
        student.network.readout[2].weight.data *= 1.5
    elif part == "prior":
        student.prior.coulomb *= 0.5
    else:
        student.reference_energies += 1.0
    scripted = MoleculeEngine(student, SPECIES)
    after = compiled_engine(scripted)(x)[0]
    assert abs(float(after - before)) > 1.0
    torch.testing.assert_close(after, scripted(x)[0], rtol=1e-12, atol=1e-9)


def test_refused_where_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelError, match=r"no C\+\+ compiler here \(looked for no-such-compiler"):
        build.find_compiler()


def test_library_is_built_once_and_then_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path / "cache"))
    first = build._cached("int answer() { return 42; }", build.find_compiler())
    made = first.stat().st_mtime_ns
    assert build._cached("int answer() { return 42; }", build.find_compiler()) == first
    assert first.stat().st_mtime_ns == made
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    assert build._cached("int answer() { return 43; }", build.find_compiler()) != first


def test_source_that_does_not_compile_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path))
    with pytest.raises(KernelError, match="failed") as caught:
        build._cached("int answer( { }", build.find_compiler())
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_cache_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path / "file" / "below"))
    assert build._cached("int answer() { return 44; }", build.find_compiler()).exists()


def test_smooth_norm_is_what_the_kernel_smooths_with() -> None:
    vectors = torch.zeros(1, 3, 1)
    assert float(smooth_norm(vectors, 0.1)) == pytest.approx(0.1)


def test_trial_forces_are_of_ordinary_size() -> None:
    x, _ = compiled._trial(20)
    forces = MoleculeEngine(load_student("original"), SPECIES.repeat(4)[:20])(
        torch.from_numpy(0.1 * x)
    )[1]
    assert float(forces.abs().max()) / KJMOL_NM_PER_EV_ANGSTROM < 50.0


def test_with_a_device_at_hand_the_engine_scripts_and_computes_on_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted = MoleculeEngine(random_student(SHAPES[0]), SPECIES, 2)
    x = scattered(len(SPECIES), 2)
    wanted_energies, wanted_forces = compiled_engine(scripted)(x)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fast = compiled_engine(scripted)
    assert fast.scripted is scripted
    energies, forces = torch.jit.script(fast.eval())(x)
    torch.testing.assert_close(energies, wanted_energies, rtol=0.0, atol=0.0)
    torch.testing.assert_close(forces, wanted_forces, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("compiler", ["c++", "no-such-compiler"])
def test_a_first_call_on_the_host_comes_from_a_module_that_has_switched_gradients_off(
    compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a device's kernel serves, the host's is built, compared or given up in that call."""
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(compiled, "_models", OrderedDict())
    monkeypatch.setattr(compiled, "_known", {})
    monkeypatch.setattr(compiled, "_verified", set())
    build.library.cache_clear()
    student = random_student(SHAPES[0])
    x = scattered(len(SPECIES), 2)
    wanted_energies, wanted_forces = MoleculeEngine(student, SPECIES, 2)(x)
    work = compiled._work(student, SPECIES, 2, periodic=False)
    with torch.no_grad():
        energies, forces = compiled.evaluate_molecules(work.handle, x)
    build.library.cache_clear()
    assert bool(work.host_refused) == (compiler == "no-such-compiler")
    torch.testing.assert_close(energies, wanted_energies, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(forces, wanted_forces, rtol=1e-9, atol=1e-9)
