"""The CUDA kernel without a device: its source emulated on the host, and compiled by NVRTC."""

import contextlib
import dataclasses
import logging
import subprocess
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from students.emulation import Emulator
from students.test_compiled import random_student, scattered, shipped

from omm_mlff.bench.ptxas import Usage
from omm_mlff.errors import KernelError
from omm_mlff.students import compiled
from omm_mlff.students.checkpoint import load_student
from omm_mlff.students.compiled import compiled_engine, engine_on
from omm_mlff.students.engine import BoxEngine, MoleculeEngine, SubsetEngine
from omm_mlff.students.kernel import build, device, layout
from omm_mlff.students.student import Student, StudentConfig
from omm_mlff.units import KJMOL_NM_PER_EV_ANGSTROM, KJMOL_PER_EV

ATOMS = torch.tensor([6, 8, 1, 7, 1, 1]).repeat(11)
ONE_LAYER = StudentConfig("one layer", n_features=5, n_layers=1, n_radial=7, n_readout=3)
THREE_LAYERS = StudentConfig("three", n_features=24, n_layers=3, n_radial=16, n_readout=17)
SMALL = StudentConfig("small", n_features=12, n_layers=2, n_radial=5, n_readout=9)
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
        pytest.param("tiny", 13, 1, 8, 3, 1, id="tiny-alone-in-8-blocks"),
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


@pytest.mark.parametrize(("cluster", "threads"), [(1, 512), (2, 64), (4, 1024)])
def test_source_is_right_for_any_number_of_threads(
    emulator: Emulator, cluster: int, threads: int
) -> None:
    student = random_student(SMALL)
    x = scattered(7, 2)
    found = emulator.run(
        student, ATOMS[:7], x, 2, cluster=cluster, n_threads=5, threads=threads, group=2
    )
    energy, force = off(found, student, x, 2)
    assert energy < 1e-10
    assert force < 1e-9


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


SANITIZED = [(1, 7, 3, 2), (2, 3, 2, 2)]
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
    variant = layout.variant_of(student, layout.Choice(2))
    call = layout.plan_call(variant, 5, 1, n_teams=1, block_bytes=100_000)
    done, _, _ = broken.launch(student, variant, call, ATOMS[:5], scattered(5), 5, 1)
    assert done.returncode != 0
    assert "data race" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("cluster", "n_threads", "n_copies", "n_teams"), SANITIZED)
def test_address_sanitizer_finds_no_access_out_of_bounds(
    tmp_path: Path, cluster: int, n_threads: int, n_copies: int, n_teams: int
) -> None:
    emulator = sanitized(tmp_path, "address,undefined")
    student = random_student(SMALL, torch.float32)
    for n_atoms, block_bytes in ((5, 100_000), (64, 40_000)):
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


TINIEST = layout.Variant(4, 1, 3, 4, float64=False, cluster=1)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [75, 80, 86, 90, 100, 120])
def test_nvrtc_compiles_for_every_architecture(architecture: int) -> None:
    clusters = architecture >= 90
    variant = dataclasses.replace(TINIEST, cluster=1 + clusters, profile=clusters)
    cubin, log = device.compile_kernel(f"sm_{architecture}", variant)
    assert cubin[:4] == b"\x7fELF"
    assert 0 < Usage.read(log).registers <= 255


def test_architecture_that_nvrtc_does_not_know_is_told_in_one_line() -> None:
    with pytest.raises(KernelError, match=r"NVRTC does not know sm_30 \(it knows .*sm_90"):
        device.compile_kernel("sm_30", TINIEST)


def test_source_that_nvrtc_refuses_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_source", lambda: "int answer( { }")
    with pytest.raises(KernelError, match=r"NVRTC failed: painn\.cu") as caught:
        device.compile_kernel("sm_90", TINIEST)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda content: content[:100], id="truncated"),
        pytest.param(lambda content: content[:-1] + b"?", id="changed"),
        pytest.param(lambda content: b"", id="empty"),
    ],
)
def test_damaged_kernel_in_the_cache_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path))
    made: list[bytes] = []

    def make() -> bytes:
        made.append(b"kernel " * 100)
        return made[-1]

    assert device._stored("kernel.cubin", make) == made[0]
    assert device._stored("kernel.cubin", make) == made[0]
    assert len(made) == 1
    kept = tmp_path / "kernel.cubin"
    kept.write_bytes(spoil(kept.read_bytes()))
    assert device._stored("kernel.cubin", make) == made[0]
    assert len(made) == 2
    assert device._stored("kernel.cubin", make) == made[0]
    assert len(made) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["kernel.cubin"]


def test_cache_that_cannot_be_written_is_no_obstacle_for_the_device_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path / "file" / "below"))
    assert device._stored("kernel.cubin", lambda: b"made") == b"made"


def test_kernel_in_the_cache_is_found_by_student_and_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path))
    asked: list[str] = []

    def compile_it(architecture: str, options: tuple[str, ...]) -> tuple[bytes, str]:
        asked.append(architecture)
        return architecture.encode(), ""

    monkeypatch.setattr(device, "_compile", compile_it)
    for _ in range(2):
        assert device.compiled_kernel("sm_90", TINIEST) == b"sm_90"
        assert device.compiled_kernel("sm_80", TINIEST) == b"sm_80"
        device.compiled_kernel("sm_90", dataclasses.replace(TINIEST, float64=True))
    assert asked == ["sm_90", "sm_80", "sm_90"]


class FakeDriver:
    """The bindings' own types and enumerations, around calls that only write down what came."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        self.real = driver
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.context = 1
        self.refuses = ""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            return getattr(self.real, name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, arguments))
            status = self.real.CUresult.CUDA_SUCCESS
            if name == self.refuses:
                return (self.real.CUresult.CUDA_ERROR_INVALID_VALUE,)
            return status, {"cuCtxGetCurrent": self.context}.get(name, 0)

        call.__name__ = name
        return call


def fake_function(driver: FakeDriver, cluster: int) -> device.Function:
    function = object.__new__(device.Function)
    function._driver = driver  # type: ignore[assignment]
    function._cluster = cluster
    function._threads = 256
    function._carveout = 0
    function._device = device.Device(0, 90, 132, 232_448, 233_472)
    function._configs = {}
    function._context = 1
    function._handle = 7
    return function


@pytest.mark.parametrize("cluster", [1, 16])
def test_launch_names_grid_cluster_shared_memory_and_stream(cluster: int) -> None:
    driver = FakeDriver()
    arguments = layout.Arguments()
    fake_function(driver, cluster).launch(32, 99_000, 0xABC0, arguments)
    assert [name for name, _ in driver.calls] == ["cuCtxGetCurrent", "cuLaunchKernelEx"]
    config, handle, _, extra = driver.calls[-1][1]
    assert (config.gridDimX, config.gridDimY, config.gridDimZ) == (32, 1, 1)
    assert (config.blockDimX, config.blockDimY, config.blockDimZ) == (256, 1, 1)
    assert (config.sharedMemBytes, int(config.hStream), handle, extra) == (99_000, 0xABC0, 7, 0)
    assert config.numAttrs == (cluster > 1)
    if cluster > 1:
        (attribute,) = config.attrs
        size = attribute.value.clusterDim
        wanted = driver.real.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        assert attribute.id == wanted
        assert (size.x, size.y, size.z) == (16, 1, 1)


def test_launch_from_another_context_goes_into_torchs_and_back() -> None:
    driver = FakeDriver()
    driver.context = 5
    fake_function(driver, 1).launch(1, 0, 0, layout.Arguments())
    names = [name for name, _ in driver.calls]
    assert names == ["cuCtxGetCurrent", "cuCtxPushCurrent", "cuLaunchKernelEx", "cuCtxPopCurrent"]


def test_what_the_driver_refuses_is_told_in_one_line() -> None:
    driver = FakeDriver()
    driver.refuses = "cuLaunchKernelEx"
    with pytest.raises(KernelError, match="cuLaunchKernelEx failed: CUDA_ERROR_INVALID_VALUE"):
        fake_function(driver, 1).launch(1, 0, 0, layout.Arguments())


@pytest.mark.parametrize("cluster", [1, 8, 16])
def test_function_is_loaded_with_all_shared_memory_and_large_clusters_allowed(
    monkeypatch: pytest.MonkeyPatch, cluster: int
) -> None:
    driver = FakeDriver()
    monkeypatch.setattr(device, "_bindings", lambda name: driver)
    here = device.Device(0, 90, 132, 232_448, 233_472)
    function = device.Function(here, b"cubin", cluster, 256)
    names = driver.real.CUfunction_attribute
    set_to = {given[1]: given[2] for name, given in driver.calls if name == "cuFuncSetAttribute"}
    assert function.most_bytes == 232_448
    assert set_to[names.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES] == 232_448
    allowed = names.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
    assert set_to.get(allowed, 0) == (cluster > 8)
    with pytest.raises(KernelError, match="no room for a block of 97 KB"):
        function.teams_at_once(100_000)


def test_small_call_leaves_a_larger_one_of_the_same_kernel_its_two_blocks() -> None:
    class Counting(FakeDriver):
        carveout = 100

        def __getattr__(self, name: str) -> Any:
            if name == "cuFuncSetAttribute":
                return self.set_attribute
            if name == "cuOccupancyMaxActiveBlocksPerMultiprocessor":
                return self.count
            return super().__getattr__(name)

        def set_attribute(self, handle: int, attribute: Any, value: int) -> tuple[Any]:
            self.carveout = value
            return (self.real.CUresult.CUDA_SUCCESS,)

        def count(self, handle: int, threads: int, shared_bytes: int) -> tuple[Any, int]:
            # What a preference leaves room for, but for one block at least.
            room = self.carveout * 233_472 // 100
            each = max(1, min(2, room // (shared_bytes + 1024)))
            return self.real.CUresult.CUDA_SUCCESS, each

    driver = Counting()
    function = fake_function(driver, 1)
    assert function.teams_at_once(28_000) == 264
    assert function.teams_at_once(101_000) == 264
    assert driver.carveout == 88
    assert function.teams_at_once(28_000) == 264
    assert driver.carveout == 88


def test_launch_tells_the_choice_that_makes_another_like_it() -> None:
    launch = object.__new__(device.Launch)
    taken = layout.Choice(2, 512, 1, group=1)
    launch.variant = layout.variant_of(random_student(SMALL, torch.float32), taken)
    launch.call = layout.plan_call(launch.variant, 5, 3, n_teams=3, block_bytes=100_000)
    assert launch.choice == taken


def test_variants_that_a_student_needs_are_compiled_at_the_same_time_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    together = threading.Barrier(2, timeout=60)
    asked: list[tuple[str, int]] = []

    def compile_it(architecture: str, variant: layout.Variant) -> bytes:
        asked.append((architecture, variant.cluster))
        together.wait()
        return b""

    monkeypatch.setattr(device, "compiled_kernel", compile_it)
    h100 = device.Device(0, 90, 132, 232_448, 233_472)
    model = device.DeviceModel(load_student("tiny"))
    for n_copies in (1, 8, 16, 256):
        model._compile_ahead(h100, 22, model._choices(h100, 22, n_copies)[0])
    assert sorted(asked) == [("sm_90", 1), ("sm_90", 8)]


def test_threads_that_are_many_share_the_sums_of_a_molecule_alone() -> None:
    student = load_student("original")

    def sharers(threads: int) -> list[int]:
        variant = layout.variant_of(student, layout.Choice(16, threads, 1))
        call = layout.plan_call(variant, 13, 1, n_teams=1, block_bytes=200_000)
        return [parts for _, parts in call.plans]

    few, many = sharers(256), sharers(1024)
    assert sum(many) > sum(few)
    assert max(many) <= 8


def test_one_copy_gets_the_largest_cluster_and_many_get_none() -> None:
    model = device.DeviceModel(load_student("original"))
    h100 = device.Device(0, 90, 132, 232_448, 233_472)
    ampere = device.Device(0, 86, 84, 101_376, 102_400)

    def clusters(here: device.Device, n_copies: int) -> list[int]:
        return [choice.cluster for choice in model._choices(here, 22, n_copies)]

    assert clusters(h100, 1) == [16, 8, 4, 2, 1]
    assert clusters(h100, 16) == [8, 4, 2, 1]
    assert clusters(h100, 256) == [1]
    assert clusters(ampere, 1) == [1]


@pytest.mark.parametrize("shared_KB", [(64, 64), (99, 100), (163, 164), (227, 228)])
@pytest.mark.parametrize("name", ["original", "tiny"])
def test_every_molecule_finds_room_on_every_device(name: str, shared_KB: tuple[int, int]) -> None:
    for dtype in (torch.float32, torch.float64):
        student = shipped(name, dtype)
        for cluster in layout.cluster_sizes(student.config.n_features):
            variant = layout.variant_of(student, layout.Choice(cluster))
            budget = layout.block_budget(variant, *(1024 * size for size in shared_KB))
            for n_atoms in (2, 22, 64):
                call = layout.plan_call(variant, n_atoms, 300, n_teams=50, block_bytes=budget)
                assert call.shared_bytes <= budget


def test_memory_of_1024_dipeptides_is_that_of_the_blocks_that_run() -> None:
    variant = layout.variant_of(load_student("original"), layout.Choice(1))
    call = layout.plan_call(variant, 22, 1024, n_teams=264, block_bytes=115_000)
    assert call.n_groups == 1024
    assert 264 * call.team_bytes < 400e6


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine is known yet."""
    monkeypatch.setattr(compiled, "_models", OrderedDict())
    monkeypatch.setattr(compiled, "_known", {})
    monkeypatch.setattr(compiled, "_verified", set())
    monkeypatch.setattr(compiled, "_verified_on_device", set())
    compiled._say_scripted_on_device.cache_clear()


def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the kernel had been prepared on device 0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    def prepare(work: compiled._Work, index: int) -> object:
        work._on_device[index] = object.__new__(device.Launch)
        return work._on_device[index]

    monkeypatch.setattr(compiled._Work, "_prepare_device", prepare)


@pytest.mark.usefixtures("fresh")
def test_with_a_device_the_hosts_kernel_waits_for_positions_on_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted = MoleculeEngine(random_student(ONE_LAYER), ATOMS[:6], 2)
    on_a_device(monkeypatch)
    fast = compiled_engine(scripted)
    (model,) = compiled._models.values()
    assert fast.scripted is None
    assert "host" not in vars(model)
    assert engine_on(fast, "cuda") == "compiled (CUDA)"
    assert engine_on(fast, "cpu") == "compiled (C++)"
    x = scattered(6, 2)
    torch.testing.assert_close(fast(x)[1], scripted(x)[1], rtol=1e-9, atol=1e-6)
    assert "host" in vars(model)


@pytest.mark.usefixtures("fresh")
def test_with_a_device_and_no_compiler_the_host_runs_scripted_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scripted = MoleculeEngine(random_student(ONE_LAYER), ATOMS[:6], 2)
    box = BoxEngine(random_student(ONE_LAYER), ATOMS[:12], periodic=True)
    on_a_device(monkeypatch)

    def refuse(model: object) -> None:
        raise KernelError("no C++ compiler here")

    monkeypatch.setattr(compiled, "KernelModel", refuse)
    x, cell = scattered(6, 2), torch.eye(3).double()
    with caplog.at_level(logging.WARNING, logger="omm_mlff.students.compiled"):
        fast, fast_box = compiled_engine(scripted), compiled_engine(box)
        for _ in range(2):
            torch.testing.assert_close(fast(x), scripted(x), rtol=1e-12, atol=1e-9)
            torch.testing.assert_close(fast_box(x, cell), box(x, cell), rtol=1e-9, atol=1e-7)
    assert [record.message for record in caplog.records] == [
        "notice: on the host students run scripted: no C++ compiler here"
    ] * 2
    assert engine_on(fast, "cpu") == engine_on(fast_box, "cpu") == "scripted"
    assert engine_on(fast_box, "cuda") == "scripted"


@pytest.mark.usefixtures("fresh")
def test_device_that_cannot_be_had_leaves_the_scripted_engine_and_one_notice(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scripted = MoleculeEngine(random_student(ONE_LAYER), ATOMS[:6], 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", no_driver)
    with caplog.at_level(logging.WARNING, logger="omm_mlff.students.compiled"):
        for _ in range(2):
            fast = SubsetEngine(compiled_engine(scripted), torch.arange(12))
    assert fast.engine.scripted is scripted
    assert engine_on(fast, "cuda") == "scripted"
    assert engine_on(fast, "cpu") == "compiled (C++)"
    assert [record.message for record in caplog.records] == [
        "notice: on CUDA students run scripted, several times slower: no driver at all"
    ]


def no_driver() -> int:
    raise RuntimeError("no driver at all\nand more of it")


def test_without_a_device_positions_on_one_are_served_scripted() -> None:
    fast = compiled_engine(MoleculeEngine(random_student(ONE_LAYER), ATOMS[:6]))
    assert engine_on(fast, "cuda") == "scripted"
    assert engine_on(MoleculeEngine(random_student(ONE_LAYER), ATOMS[:6]), "cpu") == "scripted"


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_device_kernel_is_held_against_the_scripted_engine_before_its_first_use(
    monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    student, species = random_student(ONE_LAYER, torch.float32), ATOMS[:6]
    asked: list[tuple[int, layout.Choice | None]] = []

    class Launch:
        device = torch.device("cpu")
        variant = layout.variant_of(student, layout.Choice(1))
        call = layout.plan_call(variant, 6, 40, n_teams=20, block_bytes=100_000)
        choice = layout.Choice(1, group=2)

        def __init__(self, n_copies: int) -> None:
            self.n_copies = n_copies

        def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            energies, forces = MoleculeEngine(student, species, self.n_copies)(x)
            return energies, forces * factor

    def prepare(
        model: object,
        index: int,
        atoms: torch.Tensor,
        n_copies: int,
        *,
        choice: layout.Choice | None = None,
    ) -> Launch:
        asked.append((n_copies, choice))
        return Launch(n_copies)

    monkeypatch.setattr(device.DeviceModel, "prepare", prepare)
    model = compiled._model(student)
    launch: Any = Launch(40)
    if factor == 1.0:
        for _ in range(2):
            compiled._verify_on_device(model, launch, species, 0)
        assert asked == [(5, layout.Choice(1, group=2))]
    else:
        with pytest.raises(KernelError, match=r"its forces by .* eV/angstrom"):
            compiled._verify_on_device(model, launch, species, 0)


@pytest.mark.usefixtures("fresh")
def test_nothing_is_prepared_while_a_cuda_graph_is_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = compiled._work(random_student(ONE_LAYER), ATOMS[:6], 1, periodic=False)
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(KernelError, match="while a CUDA graph is captured; evaluate once before"):
        work._prepare_device(0)


@pytest.mark.cuda
@pytest.mark.parametrize("n_copies", [1, 16, 300])
@pytest.mark.parametrize("name", ["original", "tiny", "ultra-tiny"])
def test_device_computes_what_the_scripted_engine_computes_and_a_graph_repeats_it(
    name: str, n_copies: int
) -> None:
    student = load_student(name)
    fast = compiled_engine(MoleculeEngine(student, ATOMS[:13], n_copies))
    assert engine_on(fast, "cuda") == "compiled (CUDA)"
    trial = torch.from_numpy(0.1 * compiled._trial(13)[0])
    x = torch.cat([trial + 0.001 * k / n_copies for k in range(n_copies)]).cuda()
    found = fast(x)
    energy, force = off((found[0].cpu(), found[1].cpu()), student, x.cpu(), n_copies)
    assert energy < 1e-6
    assert force < 1e-4
    again = fast(x)
    assert torch.equal(again[0], found[0])
    assert torch.equal(again[1], found[1])
    graph = torch.cuda.CUDAGraph()
    moved = x.clone()
    with torch.cuda.graph(graph):
        replayed = fast(moved)
    moved.copy_(x * 1.01)
    graph.replay()
    wanted = fast(x * 1.01)
    torch.cuda.synchronize()
    assert torch.equal(replayed[0], wanted[0])
    assert torch.equal(replayed[1], wanted[1])


@pytest.mark.cuda
def test_on_a_device_positions_that_are_not_finite_spoil_their_own_copy_alone() -> None:
    fast = compiled_engine(MoleculeEngine(load_student("original"), ATOMS[:6], 3))
    x = scattered(6, 3).float().cuda()
    clean_energies, clean_forces = fast(x)
    x[6 + 2, 1] = torch.nan
    energies, forces = fast(x)
    assert forces.dtype == torch.float32
    assert torch.isnan(energies[1])
    assert forces.reshape(3, -1)[1].isnan().all()
    assert torch.equal(energies[[0, 2]], clean_energies[[0, 2]])
    assert torch.equal(forces.reshape(3, -1)[[0, 2]], clean_forces.reshape(3, -1)[[0, 2]])
