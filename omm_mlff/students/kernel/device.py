"""Compiles the device kernel, keeps what was compiled, loads it, and launches it.

NVRTC and the driver are reached through cuda-bindings; both come with torch's own wheels, so that
no CUDA toolkit is needed. What was compiled is kept beside the host's kernel, by architecture and
by what it was made of, with a hash of its content.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from omm_mlff.errors import KernelError
from omm_mlff.students.kernel.build import cache_folder
from omm_mlff.students.kernel.layout import (
    PHASES,
    Arguments,
    Call,
    Choice,
    Variant,
    block_budget,
    choices,
    foreseen,
    packed_constants,
    packed_weights,
    plan_call,
    variant_of,
)
from omm_mlff.students.kernel.model import check_parts
from omm_mlff.students.student import Student

_SOURCE = "painn.cu"
_FUNCTION = b"student_molecules"
_OPTIONS = ("--std=c++17", "--ptxas-options=-v")
_DIGEST_BYTES = 64
_CLUSTER_ARCHITECTURE = 90
_PORTABLE_CLUSTER = 8
_CONFIGS_KEPT = 64
_RESERVED_BYTES = 1024
"""Shared memory that the system keeps of each block."""


class DeviceModel:
    """A student on the devices of this process.

    Parameters
    ----------
    student : in float32 or float64; later changes of its parameters do not reach the kernel

    Raises
    ------
    KernelError : the student is not made of what the kernel knows
    """

    def __init__(self, student: Student) -> None:
        check_parts(student)
        self._student = student = copy.deepcopy(student).cpu()
        self._weights: dict[tuple[int, int], Tensor] = {}
        self._compiled_ahead: set[int] = set()
        self._lock = threading.Lock()

    def weights(self, index: int, cluster: int) -> Tensor:
        """Packed for a cluster, on device `index`."""
        with self._lock:
            found = self._weights.get((index, cluster))
            if found is None:
                variant = variant_of(self._student, Choice(cluster))
                packed = torch.from_numpy(packed_weights(self._student, variant))
                found = self._weights[index, cluster] = packed.to(f"cuda:{index}")
        return found

    def prepare(
        self,
        index: int,
        species: Tensor,
        n_copies: int,
        *,
        choice: Choice | None = None,
        profile: bool = False,
    ) -> Launch:
        """Everything that calls on a device need, compiled and in place.

        Not for use while a CUDA graph is captured: it allocates, copies and compiles.

        Parameters
        ----------
        index : of the device
        species : shape (n_atoms,), atomic numbers of one copy
        choice : by default what suits so many copies
        profile : whether the time of each phase is taken

        Raises
        ------
        KernelError : no driver, no compiler, or a device that the kernel is not for; in one line
        """
        device = device_of(index)
        n_atoms = len(species)
        wanted = self._choices(device, n_atoms, n_copies) if choice is None else [choice]
        if choice is None:
            self._compile_ahead(device, n_atoms, wanted[0])
        reason = ""
        with torch.cuda.device(index):
            for taken in wanted:
                variant = variant_of(self._student, taken, profile=profile)
                try:
                    function, n_teams, call = self._fitted(
                        device, variant, n_atoms, n_copies, taken.group
                    )
                except KernelError as error:
                    reason = str(error)
                    continue
                constants = torch.from_numpy(packed_constants(self._student, species))
                rows = self._student.species_index[species].to(torch.int32)
                return Launch(
                    device,
                    function,
                    variant,
                    call,
                    n_blocks=min(n_teams, call.n_groups) * variant.cluster,
                    weights=self.weights(index, variant.cluster),
                    constants=constants.to(f"cuda:{index}"),
                    species=rows.to(f"cuda:{index}"),
                )
        raise KernelError(reason)

    def _choices(self, device: Device, n_atoms: int, n_copies: int) -> list[Choice]:
        processors = device.n_processors if device.architecture >= _CLUSTER_ARCHITECTURE else 0
        return choices(self._student.config.n_features, n_atoms, n_copies, processors)

    def _compile_ahead(self, device: Device, n_atoms: int, wanted: Choice) -> None:
        """Where one variant has to be compiled, those that will follow are, at the same time."""
        architecture = f"sm_{device.architecture}"
        with self._lock:
            if device.architecture in self._compiled_ahead:
                return
            self._compiled_ahead.add(device.architecture)
        processors = device.n_processors if device.architecture >= _CLUSTER_ARCHITECTURE else 0
        ahead = foreseen(self._student.config.n_features, n_atoms, processors)
        variants = [variant_of(self._student, choice) for choice in dict.fromkeys((wanted, *ahead))]
        compile_side_by_side(architecture, variants)

    def _fitted(
        self, device: Device, variant: Variant, n_atoms: int, n_copies: int, group: int | None
    ) -> tuple[Function, int, Call]:
        function = device.function(variant)
        shared = block_budget(variant, function.most_bytes, device.processor_bytes)
        # A cluster takes all that a multiprocessor has, unless more of them must share it.
        budgets = (function.most_bytes, shared) if variant.cluster > 1 else (shared,)
        for budget in budgets:
            # Planned once to know what a block needs, and once more with how many then run at once.
            n_teams = device.n_processors
            for _ in range(2):
                call = plan_call(
                    variant, n_atoms, n_copies, n_teams=n_teams, block_bytes=budget, group=group
                )
                n_teams = function.teams_at_once(call.shared_bytes)
            if n_teams >= n_copies or variant.cluster == 1:
                return function, n_teams, call
        raise KernelError(
            f"the device runs {n_teams} clusters of {variant.cluster} blocks at once, "
            f"and there are {n_copies} copies"
        )


class Launch:
    """One kind of call on one device: what is launched, with everything that stays the same."""

    def __init__(
        self,
        device: Device,
        function: Function,
        variant: Variant,
        call: Call,
        *,
        n_blocks: int,
        weights: Tensor,
        constants: Tensor,
        species: Tensor,
    ) -> None:
        self.variant = variant
        self.call = call
        self.n_blocks = n_blocks
        self.device = torch.device("cuda", device.index)
        self._index = device.index
        self._function = function
        self._kept = (weights, constants, species)
        self._arguments = bytes(self._template())
        self._workspace_bytes = n_blocks // variant.cluster * call.team_bytes
        self.stamps: Tensor | None = None
        if variant.profile:
            self.stamps = torch.zeros(len(PHASES) + 1, dtype=torch.int64, device=self.device)

    @property
    def choice(self) -> Choice:
        """What it was made by."""
        v = self.variant
        return Choice(v.cluster, v.threads, v.blocks, self.call.group)

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Energies and forces; nothing waits for the device, and a CUDA graph may capture it.

        Parameters
        ----------
        positions : shape (n_copies * n_atoms, 3), float32 or float64, nm, on this device

        Returns
        -------
        energies : shape (n_copies,), float64, kJ/mol, reference energies included; NaN where a
            position is not finite
        forces : as `positions`, kJ/mol/nm
        """
        x = positions.contiguous()
        if x.dtype not in (torch.float32, torch.float64):
            raise KernelError(f"positions are float32 or float64, not {x.dtype}")
        if x.numel() != 3 * self.call.n_atoms * self.call.n_copies:
            raise KernelError(
                f"positions have shape {tuple(x.shape)}, wanted "
                f"({self.call.n_atoms * self.call.n_copies}, 3)"
            )
        energies = torch.empty(self.call.n_copies, dtype=torch.float64, device=self.device)
        forces = torch.empty_like(x)
        workspace = torch.empty(self._workspace_bytes, dtype=torch.uint8, device=self.device)
        a = Arguments.from_buffer_copy(self._arguments)
        a.positions, a.energies, a.forces = x.data_ptr(), energies.data_ptr(), forces.data_ptr()
        a.workspace = workspace.data_ptr()
        a.doubles = int(x.dtype == torch.float64)
        if self.stamps is not None:
            a.stamps = self.stamps.data_ptr()
        stream = torch.cuda.current_stream(self._index).cuda_stream
        self._function.launch(self.n_blocks, self.call.shared_bytes, stream, a)
        return energies, forces

    def _template(self) -> Arguments:
        weights, constants, species = self._kept
        a = self.call.arguments()
        a.weights, a.constants = weights.data_ptr(), constants.data_ptr()
        a.species = species.data_ptr()
        return a


@dataclass(frozen=True)
class Device:
    """What the kernel wants to know of a device.

    Attributes
    ----------
    architecture : such as 90
    block_bytes : shared memory that a block may have
    processor_bytes : shared memory of a multiprocessor
    """

    index: int
    architecture: int
    n_processors: int
    block_bytes: int
    processor_bytes: int

    def function(self, variant: Variant) -> Function:
        """The kernel for a variant, compiled and loaded if it was not yet.

        Raises
        ------
        KernelError : in one line
        """
        return _function(self, variant)


@functools.cache
def device_of(index: int) -> Device:
    """A device of this process.

    Raises
    ------
    KernelError : no driver, or no such device; in one line
    """
    driver = _bindings("driver")
    try:
        torch.zeros(1, device=f"cuda:{index}")  # torch's context, which the kernel is loaded into
    except (RuntimeError, AssertionError) as error:
        raise KernelError(f"CUDA device {index} cannot be used: {_first_line(error)}") from error
    names = driver.CUdevice_attribute
    handle = _done(driver.cuDeviceGet, index)

    def attribute(name: str) -> int:
        return int(_done(driver.cuDeviceGetAttribute, getattr(names, name), handle))

    return Device(
        index=index,
        architecture=10 * attribute("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR")
        + attribute("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR"),
        n_processors=attribute("CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT"),
        block_bytes=attribute("CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
        processor_bytes=attribute("CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR"),
    )


class Function:
    """A kernel that is loaded on a device.

    Attributes
    ----------
    most_bytes : of shared memory that a launch may ask for
    """

    def __init__(self, device: Device, cubin: bytes, cluster: int, threads: int) -> None:
        self._driver = driver = _bindings("driver")
        self._device = device
        self._cluster = cluster
        self._threads = threads
        self._carveout = 0
        self._configs: dict[tuple[int, int, int], Any] = {}
        handle = _done(driver.cuDeviceGet, device.index)
        self._context = _done(driver.cuDevicePrimaryCtxRetain, handle)  # torch's
        with self._in_context():
            self._module = _done(driver.cuModuleLoadData, cubin)  # as long as the process lasts
            self._handle = _done(driver.cuModuleGetFunction, self._module, _FUNCTION)
            names = driver.CUfunction_attribute
            own = _done(
                driver.cuFuncGetAttribute,
                names.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
                self._handle,
            )
            self.most_bytes = most = device.block_bytes - int(own)
            self._set(names.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most)
            if cluster > _PORTABLE_CLUSTER:
                self._set(names.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)

    def teams_at_once(self, shared_bytes: int) -> int:
        """Blocks, or clusters of them, that the device runs at the same time.

        Raises
        ------
        KernelError : none
        """
        with self._in_context():
            n = self._count_teams(shared_bytes)
        if n < 1:
            raise KernelError(
                f"the device has no room for a block of {shared_bytes // 1024} KB"
                + (f" in clusters of {self._cluster}" if self._cluster > 1 else "")
            )
        return n

    def _count_teams(self, shared_bytes: int) -> int:
        driver = self._driver
        if self._cluster > 1:
            config = self._config(self._cluster, shared_bytes, 0)
            return int(_done(driver.cuOccupancyMaxActiveClusters, self._handle, config))
        # The driver counts with the shared memory that was last asked for, which may be too little.
        self._set_carveout(100)
        count = driver.cuOccupancyMaxActiveBlocksPerMultiprocessor
        each = int(_done(count, self._handle, self._threads, shared_bytes))
        # As much shared memory as any call wants, and all the rest for the cache.
        wanted = each * (shared_bytes + _RESERVED_BYTES)
        percent = min(100, -(-100 * wanted // self._device.processor_bytes))
        self._carveout = max(self._carveout, percent)
        self._set_carveout(self._carveout)
        return each * self._device.n_processors

    def launch(self, n_blocks: int, shared_bytes: int, stream: int, arguments: Arguments) -> None:
        """Put a launch into a stream of torch's context on this device.

        Raises
        ------
        KernelError : the driver refused it
        """
        driver = self._driver
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        config = self._config(n_blocks, shared_bytes, stream)
        with self._in_context():
            _done(driver.cuLaunchKernelEx, config, self._handle, ctypes.addressof(pointers), 0)

    @contextlib.contextmanager
    def _in_context(self) -> Iterator[None]:
        """With torch's context: a thread that torch has not met, or OpenMM, may have another."""
        driver = self._driver
        if int(_done(driver.cuCtxGetCurrent)) == int(self._context):
            yield
            return
        _done(driver.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            _done(driver.cuCtxPopCurrent)

    def _config(self, n_blocks: int, shared_bytes: int, stream: int) -> Any:
        key = (n_blocks, shared_bytes, stream)
        found = self._configs.get(key)
        if found is None:
            if len(self._configs) >= _CONFIGS_KEPT:
                self._configs.clear()
            found = self._configs[key] = self._new_config(*key)
        return found

    def _new_config(self, n_blocks: int, shared_bytes: int, stream: int) -> Any:
        driver = self._driver
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = n_blocks, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = self._threads, 1, 1
        config.sharedMemBytes = shared_bytes
        config.hStream = driver.CUstream(stream)
        config.numAttrs = 0
        if self._cluster > 1:
            dimension = driver.CUlaunchAttribute()
            dimension.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            size = dimension.value.clusterDim  # a view: what is set here is set in `dimension`
            size.x, size.y, size.z = self._cluster, 1, 1
            config.attrs = [dimension]
            config.numAttrs = 1
        return config

    def _set_carveout(self, percent: int) -> None:
        names = self._driver.CUfunction_attribute
        self._set(names.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, percent)

    def _set(self, attribute: Any, value: int) -> None:
        _done(self._driver.cuFuncSetAttribute, self._handle, attribute, value)


@functools.cache
def _function(device: Device, variant: Variant) -> Function:
    cubin = compiled_kernel(f"sm_{device.architecture}", variant)
    return Function(device, cubin, variant.cluster, variant.threads)


def compiled_kernel(architecture: str, variant: Variant) -> bytes:
    """The kernel for an architecture such as "sm_90"; needs no device.

    It is compiled once a machine and then found in the user's cache.

    Raises
    ------
    KernelError : no NVRTC, an architecture that it does not know, or a source that it refuses
    """
    options = _options(architecture, variant)
    return _stored(_kept_name(architecture, options), lambda: _compile(architecture, options)[0])


def is_compiled(architecture: str, variant: Variant) -> bool:
    """Whether the cache has the kernel.

    Raises
    ------
    KernelError : no NVRTC
    """
    return (cache_folder() / _kept_name(architecture, _options(architecture, variant))).exists()


def compile_side_by_side(architecture: str, variants: Iterable[Variant]) -> None:
    """Fill the cache; what cannot be compiled is told when it is asked for.

    One takes seconds, and NVRTC compiles several at the same time.
    """

    def attempt(variant: Variant) -> None:
        with contextlib.suppress(KernelError):
            compiled_kernel(architecture, variant)

    with ThreadPoolExecutor() as pool:
        list(pool.map(attempt, variants))


def compile_kernel(architecture: str, variant: Variant) -> tuple[bytes, str]:
    """The kernel, and what the assembler says of it: registers and spills by function.

    Raises
    ------
    KernelError : no NVRTC, an architecture that it does not know, or a source that it refuses
    """
    return _compile(architecture, _options(architecture, variant))


def _kept_name(architecture: str, options: tuple[str, ...]) -> str:
    version = ".".join(str(part) for part in _nvrtc("nvrtcVersion"))
    parts = (_source(), version, *options)
    digest = hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]
    return f"painn-{architecture}-{digest}.cubin"


def _options(architecture: str, variant: Variant) -> tuple[str, ...]:
    definitions = (f"--define-macro={k}={v}" for k, v in variant.definitions().items())
    return (f"--gpu-architecture={architecture}", *_OPTIONS, *definitions)


@functools.cache
def _source() -> str:
    return files(__package__).joinpath(_SOURCE).read_text(encoding="utf-8")


def _compile(architecture: str, options: tuple[str, ...]) -> tuple[bytes, str]:
    known = _nvrtc("nvrtcGetSupportedArchs")[-1]
    if int(architecture.removeprefix("sm_")) not in known:
        raise KernelError(
            f"NVRTC does not know {architecture} (it knows {', '.join(f'sm_{k}' for k in known)}); "
            "take a torch that is made for this GPU"
        )
    (program,) = _nvrtc("nvrtcCreateProgram", _source().encode(), _SOURCE.encode(), 0, [], [])
    module = _bindings("nvrtc")
    try:
        encoded = [option.encode() for option in options]
        status = module.nvrtcCompileProgram(program, len(encoded), encoded)[0]
        (size,) = _nvrtc("nvrtcGetProgramLogSize", program)
        log = bytearray(size)
        _nvrtc("nvrtcGetProgramLog", program, log)
        text = log.decode(errors="replace").rstrip("\0 \n")
        if int(status) != 0:
            errors = [line for line in text.splitlines() if "error" in line]
            raise KernelError(f"NVRTC failed: {next(iter(errors), status.name)}")
        (size,) = _nvrtc("nvrtcGetCUBINSize", program)
        cubin = bytearray(size)
        _nvrtc("nvrtcGetCUBIN", program, cubin)
        return bytes(cubin), text
    finally:
        module.nvrtcDestroyProgram(program)


def _stored(name: str, make: Callable[[], bytes]) -> bytes:
    """What lies in the cache under a name, made anew where it is absent or damaged."""
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = folder / name
        content = kept.read_bytes() if kept.exists() else b""
    except OSError:
        return make()  # no home, or one that cannot be read: made again in every process
    digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if data and digest == hashlib.sha256(data).hexdigest().encode():
        return data
    data = make()
    with contextlib.suppress(OSError):
        # Written beside its place and moved there, so that nobody reads half of it.
        descriptor, beside = tempfile.mkstemp(prefix="build-", dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(data).hexdigest().encode() + data)
            os.replace(beside, kept)
        except OSError:
            os.unlink(beside)
            raise
    return data


def _bindings(name: str) -> ModuleType:
    try:
        if name == "nvrtc":
            from cuda.bindings import nvrtc

            return nvrtc  # type: ignore[no-any-return]
        from cuda.bindings import driver
    except ImportError as error:
        raise KernelError(
            f"cuda-bindings is not there ({_first_line(error)}); pip install cuda-bindings"
        ) from error
    return driver  # type: ignore[no-any-return]


def _nvrtc(name: str, *arguments: Any) -> tuple[Any, ...]:
    try:
        status, *values = getattr(_bindings("nvrtc"), name)(*arguments)
    except RuntimeError as error:
        raise KernelError(f"NVRTC cannot be loaded: {_first_line(error)}") from error
    if int(status) != 0:
        raise KernelError(f"{name} failed: {status.name}")
    return tuple(values)


def _done(call: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """The value of a driver's call, or None where it has none."""
    try:
        status, *values = call(*arguments)
    except RuntimeError as error:
        raise KernelError(f"no CUDA driver: {_first_line(error)}") from error
    if int(status) != 0:
        raise KernelError(f"{call.__name__} failed: {status.name}")
    return values[0] if values else None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
