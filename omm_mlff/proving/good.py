"""Known-good potentials: whatever is REJECTED here is a false alarm.

Adding one is one more row of `KNOWN_GOOD`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omm_mlff.potentials.base import Potential
from omm_mlff.potentials.registry import load_potential
from omm_mlff.potentials.teacher import TEACHER_SPEC
from omm_mlff.proving.grounds import BOX, CHAIN, CLUSTER, METHANOL, Ground
from omm_mlff.schema import MolecularSystem
from omm_mlff.systems import load_system

_FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class KnownGood:
    """One potential that is sound, and how often it is tried.

    Attributes
    ----------
    load : the potential and the system that it is tried on
    seeds, short_seeds : how many seeds in full and in short; 0 leaves it out
    """

    name: str
    what: str
    profile: Path
    load: Callable[[], tuple[Potential, MolecularSystem]]
    seeds: int
    short_seeds: int


def _sound(ground: Ground) -> Callable[[], tuple[Potential, MolecularSystem]]:
    return lambda: (ground.sound_potential(), ground.system())


def _on_water(model: str) -> Callable[[], tuple[Potential, MolecularSystem]]:
    return lambda: (load_potential(model), load_system("water"))


def _native() -> tuple[Potential, MolecularSystem]:
    # What it has for comparison is another method's: how far amber14 is from it is not asked here.
    system = load_system("alanine-dipeptide")
    return load_potential("native:amber14"), dataclasses.replace(
        system, reference=None, landmarks=None
    )


KNOWN_GOOD: tuple[KnownGood, ...] = (
    KnownGood(
        "harmonic-chain", "H-O-O-H on harmonic springs", CHAIN.profile, _sound(CHAIN), 200, 2
    ),
    KnownGood(
        "lennard-jones", "a cluster of 13 argon atoms", CLUSTER.profile, _sound(CLUSTER), 200, 2
    ),
    KnownGood(
        "methanol", "Morse bonds, springs, Lennard-Jones", METHANOL.profile, _sound(METHANOL), 50, 2
    ),
    KnownGood("argon-box", "solid argon in a periodic cube", BOX.profile, _sound(BOX), 20, 1),
    KnownGood(
        "amber14",
        "OpenMM's own amber14 on alanine dipeptide",
        _FOLDER / "native.toml",
        _native,
        5,
        1,
    ),
    *(
        KnownGood(
            name,
            f"the shipped student {name} on water",
            _FOLDER / "water.toml",
            _on_water(name),
            5,
            1,
        )
        for name in ("original", "tiny", "ultra-tiny")
    ),
    KnownGood(
        "teacher",
        "ANI-1ccx on water, inside its range",
        _FOLDER / "teacher.toml",
        _on_water(TEACHER_SPEC),
        5,
        0,
    ),
)


def good_names() -> list[str]:
    """Of every known-good potential, in order."""
    return [good.name for good in KNOWN_GOOD]
