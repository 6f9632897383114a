"""Native parameters that ship with the systems that they were made for: OpenFF Sage."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openmm

from omm_mlff.data import data_folder, shipped_names
from omm_mlff.errors import CheckpointError, UnsupportedSystemError
from omm_mlff.potentials.cloned import SOURCE, ClonedPotential, formula
from omm_mlff.schema import MolecularSystem, PotentialCard
from omm_mlff.systems.shipped import read_card

SAGE = "openff-2.2.1"
PARAMETER_SUFFIX = ".xml"
CARD_SUFFIX = ".toml"

WITHOUT = {"water": "Sage's water is TIP3P, held rigid; native:tip3p is the same, flexible"}
"""Shipped systems that are left without parameters on purpose, and why."""


@dataclass(frozen=True)
class ParameterCard:
    """What is recorded of one system's parameters; the attributes are those of the file.

    Attributes
    ----------
    species : atomic numbers in the order of the parameters
    charges : how the partial charges were made
    """

    force_field: str
    sha256: str
    species: tuple[int, ...]
    charges: str
    form: str
    licence: str
    cite: str
    made_with: str


def committed_names() -> list[str]:
    """Names of the shipped systems that have parameters, sorted."""
    return shipped_names("systems", SAGE + CARD_SUFFIX)


def read_parameter_card(name: str) -> ParameterCard:
    """The card of one system's parameters."""
    fields = tomllib.loads(_path(name, CARD_SUFFIX).read_text(encoding="utf-8"))
    return ParameterCard(**{**fields, "species": tuple(fields["species"])})


def committed_for(system: MolecularSystem) -> str | None:
    """The shipped name whose parameters fit a system atom by atom; None where none do."""
    if system.periodic:
        return None
    species = tuple(system.species.tolist())
    bonds = {(int(i), int(j)) for i, j in system.bonds.tolist()}
    for name in committed_names():
        if read_parameter_card(name).species == species and set(read_card(name).bonds) == bonds:
            return name
    return None


def read_parameters(name: str) -> openmm.System:
    """The System of one shipped system, with its forces.

    Raises
    ------
    CheckpointError : the file is not the one that its card was written for
    """
    path, wanted = _path(name, PARAMETER_SUFFIX), read_parameter_card(name).sha256
    content = path.read_bytes() if path.is_file() else b""
    found = hashlib.sha256(content).hexdigest()
    if found != wanted:
        raise CheckpointError(
            f"native parameters {path} are not those of their card: wanted sha256 "
            f"{wanted[:12]}..., got {found[:12]}...; reinstall omm-mlff, or make them anew"
        )
    return openmm.XmlSerializer.deserialize(content.decode())


def _path(name: str, suffix: str) -> Path:
    return data_folder("systems") / name / (SAGE + suffix)


class CommittedPotential(ClonedPotential):
    """OpenFF Sage, for the shipped systems whose parameters are committed.

    It tells by elements and bonds, atom by atom, whether it is shown one of them.
    """

    def __init__(self, spec: str, said: Mapping[str, Any]) -> None:
        digests = [read_parameter_card(name).sha256 for name in committed_names()]
        card = PotentialCard(
            name=SAGE,
            source=SOURCE,
            species=None,
            training_domain={
                "molecules": committed_names(),
                "cite": read_parameter_card(committed_names()[0]).cite,
                "licence": read_parameter_card(committed_names()[0]).licence,
            },
            sha256=hashlib.sha256("".join(digests).encode()).hexdigest(),
            knows_atoms_by="bond",
            **said,
        )
        super().__init__(spec, card)

    def unsupported(self, system: MolecularSystem) -> str | None:
        """Why it cannot serve this system, in one line; None if it can."""
        if committed_for(system) is not None:
            return None
        if system.name in WITHOUT:
            return WITHOUT[system.name]
        return (
            f"{SAGE} is here for the shipped {', '.join(committed_names())}, one molecule in "
            f"vacuum in the shipped order of atoms, and not for {formula(system)}; "
            "scripts/make_native.py makes a System of another molecule for native:FILE.xml"
        )

    def made(self, system: MolecularSystem) -> openmm.System:
        name = committed_for(system)
        if name is None:
            raise UnsupportedSystemError(str(self.unsupported(system)))
        return read_parameters(name)
