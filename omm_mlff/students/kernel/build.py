"""Builds the C++ kernel once a machine and loads it.

The shared library is kept in the user's cache by what it was made of: source, compiler, flags and
processor. It serves every student and every system, so that there is one to build and no shape to
compile again for.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path

from omm_mlff.errors import KernelError

CACHE_VARIABLE = "OMM_MLFF_CACHE"
"""Names another folder for what is built."""

_SOURCE = "painn.cpp"
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-pthread",
    "-shared",
    "-fPIC",
)
_OPTIONAL_FLAGS = ("-mprefer-vector-width=512", "-march=native")
"""Left out where the compiler does not take them."""
_TIMEOUT_S = 300


@functools.cache
def library() -> ctypes.CDLL:
    """The kernel, built if it was not yet.

    Raises
    ------
    KernelError : no compiler, or the compiler failed; in one line
    """
    compiler = find_compiler()
    source = files(__package__).joinpath(_SOURCE).read_text(encoding="utf-8")
    built = _cached(source, compiler)
    try:
        return ctypes.CDLL(str(built))
    except OSError as error:
        raise KernelError(f"{built} does not load ({error}); remove it") from error


def find_compiler() -> str:
    """Path of a C++ compiler: `CXX` where it is set, else the system's.

    Raises
    ------
    KernelError : there is none
    """
    wanted = os.environ.get("CXX", "")
    for name in (wanted,) if wanted else _COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    looked_for = wanted or ", ".join(_COMPILERS)
    raise KernelError(f"no C++ compiler here (looked for {looked_for})")


def cache_folder() -> Path:
    """Where built kernels are kept."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "omm-mlff"


def _cached(source: str, compiler: str) -> Path:
    parts = (source, compiler, _version(compiler), *_FLAGS, *_OPTIONAL_FLAGS, _processor())
    name = f"painn-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        built = folder / name
        if not built.exists():
            _build(source, compiler, built)
        return built
    except OSError:
        # No home, or one that cannot be written: built again in every process.
        folder = Path(tempfile.mkdtemp(prefix="omm-mlff-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _build(source, compiler, folder / name)
        return folder / name


def _build(source: str, compiler: str, built: Path) -> None:
    """Compile beside its final place and move it there, so that nobody loads half a library."""
    with tempfile.TemporaryDirectory(prefix="build-", dir=built.parent) as folder:
        text = Path(folder) / _SOURCE
        text.write_text(source, encoding="utf-8")
        made = Path(folder) / built.name
        message = ""
        for left_out in range(len(_OPTIONAL_FLAGS) + 1):
            flags = (*_FLAGS, *_OPTIONAL_FLAGS[left_out:])
            command = [compiler, *flags, "-o", str(made), str(text)]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
                )
            except subprocess.TimeoutExpired:
                raise KernelError(f"{compiler} took more than {_TIMEOUT_S} s") from None
            if done.returncode == 0:
                os.replace(made, built)
                return
            message = next(iter(done.stderr.strip().splitlines()), f"exit {done.returncode}")
        raise KernelError(f"{compiler} failed: {message}")


def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return done.stdout


def _processor() -> str:
    """What -march=native goes by."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kept = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return "\n".join(sorted(kept))
