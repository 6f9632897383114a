"""One model of every source, for the contract that each must keep."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from unittest import mock

import openmm
import torch
from springs import NativeSpringPotential, SpringEngine, SpringPotential
from torch import Tensor, nn

from omm_mlff.adapters.openmm_ml import register
from omm_mlff.potentials import registry
from omm_mlff.potentials.base import Potential, bare_system
from omm_mlff.systems import load_system

EXAMPLE_PACKAGE = Path(__file__).resolve().parents[1] / "example_package"


class PlainSprings(nn.Module):
    """Springs as somebody writes them for openmm-torch: the energy of the positions, no more."""

    def __init__(self, engine: nn.Module) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, positions: Tensor) -> Tensor:
        energies, _ = self.engine(positions)
        energy: Tensor = energies[0]
        return energy


def torchscript(folder: Path) -> str:
    path = folder / "springs.pt"
    springs = PlainSprings(SpringEngine(load_system("methane")).double())
    torch.jit.script(springs).save(path)
    return str(path)


def serialised(folder: Path) -> str:
    methane = load_system("methane")
    system = bare_system(methane)
    NativeSpringPotential().add_to(system, methane)
    path = folder / "methane.xml"
    path.write_text(openmm.XmlSerializer.serialize(system))
    return f"native:{path}"


@contextmanager
def example_package() -> Iterator[None]:
    """The example package as it is when it is installed: on the path, and among the sources."""
    with mock.patch.object(sys, "path", [str(EXAMPLE_PACKAGE), *sys.path]):
        network = import_module("example_network")
    found = (*registry.sources(), network)
    with mock.patch.object(registry, "sources", return_value=found):
        yield


SPECS: dict[str, str | Callable[[Path], str]] = {
    "tiny": "tiny",
    "original": "original",
    "ultra-tiny": "ultra-tiny",
    "teacher": "teacher:ANI-1ccx",
    "torchscript": torchscript,
    "openmm-ml": "openmm-ml:omm-mlff-tiny",
    "ase": "ase:tblite.ase:TBLite?method=GFN2-xTB&verbosity=0&dtype=float64",
    "native, committed": "native:sage",
    "native, serialised": serialised,
    "example package": "network:50000",
}
OBJECTS: dict[str, Callable[[], object]] = {
    "springs": SpringPotential,
    "springs, of OpenMM": NativeSpringPotential,
}


def load_example(name: str, folder: Path) -> Potential:
    """The potential of this name; `folder` takes the files that it is loaded from."""
    if name in OBJECTS:
        return registry.as_potential(OBJECTS[name]())
    if name == "openmm-ml":
        register()  # an installed package has told openmm-ml already
    spec = SPECS[name]
    with example_package():
        return registry.load_potential(spec if isinstance(spec, str) else spec(folder))
