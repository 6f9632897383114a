"""The device kernel's own source, compiled as plain C++ and run on the host."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from omm_mlff.students.kernel.build import find_compiler
from omm_mlff.students.kernel.layout import (
    Call,
    Choice,
    Variant,
    packed_constants,
    packed_weights,
    plan_call,
    variant_of,
)
from omm_mlff.students.student import Student

HERE = Path(__file__).parent
SOURCE = Path(str(files("omm_mlff.students.kernel"))) / "painn.cu"
BLOCK_BYTES = 100_000


@dataclass
class Emulator:
    """Compiles each variant once.

    Attributes
    ----------
    flags : of the compiler, such as a sanitizer's
    source : the kernel's text
    """

    folder: Path
    flags: tuple[str, ...] = ("-O1",)
    source: str = field(default_factory=lambda: SOURCE.read_text(encoding="utf-8"))

    def program(self, variant: Variant) -> Path:
        defined = [f"-D{name}={value}" for name, value in variant.definitions().items()]
        key = "".join((*self.flags, *defined, self.source))
        built = self.folder / f"emulate-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        if not built.exists():
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "painn.cu").write_text(self.source, encoding="utf-8")
                flags = ("-std=c++17", "-pthread", "-Wall", "-Wno-unknown-pragmas", "-Werror")
                paths = ("-I", folder, "-I", str(HERE), str(HERE / "emulate.cpp"))
                command = [find_compiler(), *flags, *self.flags, *defined, *paths, "-o", str(built)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr
        return built

    def run(
        self,
        student: Student,
        species: torch.Tensor,
        positions: torch.Tensor,
        n_copies: int = 1,
        *,
        cluster: int = 1,
        n_threads: int = 1,
        n_teams: int = 1,
        group: int | None = None,
        block_bytes: int = BLOCK_BYTES,
        threads: int = 256,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Energies and forces, as the kernel gives them on a device."""
        variant = variant_of(student, Choice(cluster, threads))
        call = plan_call(
            variant, len(species), n_copies, n_teams=n_teams, block_bytes=block_bytes, group=group
        )
        done, energies, forces = self.launch(
            student, variant, call, species, positions, n_threads, n_teams
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return energies, forces

    def launch(
        self,
        student: Student,
        variant: Variant,
        call: Call,
        species: torch.Tensor,
        positions: torch.Tensor,
        n_threads: int,
        n_teams: int,
    ) -> tuple[subprocess.CompletedProcess[str], torch.Tensor, torch.Tensor]:
        n_teams = min(n_teams, call.n_groups)
        arguments = call.arguments()
        arguments.doubles = int(positions.dtype == torch.float64)
        x = positions.numpy()
        rows = student.species_index[species].numpy().astype(np.int32)
        given = (rows, packed_weights(student, variant), packed_constants(student, species))
        sizes = [
            n_teams * variant.cluster,
            n_threads,
            call.shared_bytes,
            len(bytes(arguments)),
            x.nbytes,
            call.n_copies * 8,
            x.nbytes,
            *(array.nbytes for array in given),
            n_teams * call.team_bytes,
        ]
        with tempfile.TemporaryDirectory() as folder:
            came, went = Path(folder, "in"), Path(folder, "out")
            with came.open("wb") as file:
                file.write(np.array(sizes, dtype=np.int64).tobytes() + bytes(arguments))
                for array in (x, *given):
                    file.write(np.ascontiguousarray(array).tobytes())
            command = [str(self.program(variant)), str(came), str(went)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            out = went.read_bytes() if went.exists() else b"\0" * (call.n_copies * 8 + x.nbytes)
        energies = np.frombuffer(out, dtype=np.float64, count=call.n_copies).copy()
        forces = np.frombuffer(out, dtype=x.dtype, offset=call.n_copies * 8).copy()
        return done, torch.from_numpy(energies), torch.from_numpy(forces.reshape(x.shape))
