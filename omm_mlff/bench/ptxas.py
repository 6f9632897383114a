"""What the assembler says of the device kernel on each architecture; needs no device.

python -m omm_mlff.bench.ptxas > analysis/bench/cuda/ptxas.md
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import click

from omm_mlff.students.kernel.device import compile_kernel
from omm_mlff.students.kernel.layout import Variant, block_budget, plan_call
from omm_mlff.students.student import STUDENT_CONFIGS

# Of an architecture: the most shared memory of a block, and of a multiprocessor, KB.
# CUDA C++ Programming Guide 13.0, table of technical specifications by compute capability.
SHARED_KB = {
    75: (64, 64),
    80: (163, 164),
    86: (99, 100),
    90: (227, 228),
    100: (227, 228),
    120: (99, 100),
}
CLUSTERS = {90: 16, 100: 16, 120: 8}
MOLECULES = {"water": 3, "alanine": 13, "alanine-dipeptide": 22, "64 atoms": 64}


@dataclass(frozen=True)
class Usage:
    """What a kernel takes; spills are bytes of code, summed over its functions."""

    registers: int
    stack_bytes: int
    spill_stores: int
    spill_loads: int

    @staticmethod
    def read(log: str) -> Usage:
        """From the log of NVRTC with --ptxas-options=-v."""
        spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
        registers = re.search(r"Used (\d+) registers", log)
        stack = re.search(r"(\d+) bytes cumulative stack size", log)
        if registers is None:
            raise ValueError(f"no registers in the assembler's log: {log[:200]}")
        return Usage(
            int(registers[1]),
            int(stack[1]) if stack else 0,
            sum(int(stores) for stores, _ in spills),
            sum(int(loads) for _, loads in spills),
        )


def variant(name: str, float64: bool, cluster: int) -> Variant:
    """Of a shipped student."""
    c = STUDENT_CONFIGS[name]
    blocks = 1 if float64 or cluster > 8 else 2
    shape = (c.n_features, c.n_layers, c.n_radial, c.n_readout)
    return Variant(*shape, float64, cluster, blocks=blocks)


def row(architecture: int, name: str, float64: bool, cluster: int) -> str:
    """One line of the table."""
    made = variant(name, float64, cluster)
    cubin, log = compile_kernel(f"sm_{architecture}", made)
    usage = Usage.read(log)
    block, processor = (1024 * size for size in SHARED_KB[architecture])
    budget = block_budget(made, block, processor)
    shared = " / ".join(
        f"{plan_call(made, n, 1, n_teams=1, block_bytes=budget).shared_bytes / 1024:.0f}"
        for n in MOLECULES.values()
    )
    return (
        f"| sm_{architecture} | {name} | {'float64' if float64 else 'float32'} | {cluster} "
        f"| {made.blocks} | {usage.registers} | {usage.stack_bytes} | {usage.spill_stores} / "
        f"{usage.spill_loads} | {shared} | {len(cubin) / 1024:.0f} |"
    )


@click.command()
def main() -> None:
    """Compile for every architecture, and print the table."""
    click.echo(
        "# The device kernel, as the assembler sees it\n\n"
        "Made by `python -m omm_mlff.bench.ptxas > analysis/bench/cuda/ptxas.md`, which needs no "
        "device. 256 threads a block; spills are bytes of spill instructions over all functions of "
        "the kernel, none of which counts how often it runs. Shared memory is that of one block, "
        f"for {', '.join(MOLECULES)}.\n\n"
        "| architecture | student | precision | blocks a molecule | blocks a multiprocessor | "
        "registers | stack, bytes | spilled stores / loads, bytes | shared memory, KB | code, KB |"
        "\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    for architecture in SHARED_KB:
        click.echo(row(architecture, "original", False, 1))
        if architecture in CLUSTERS:
            click.echo(row(architecture, "original", False, CLUSTERS[architecture]))
    for name, float64 in (("original", True), ("tiny", False), ("ultra-tiny", False)):
        click.echo(row(90, name, float64, 1))


if __name__ == "__main__":
    main()
