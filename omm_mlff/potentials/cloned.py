"""What every native potential has in common: its forces are copied out of another System."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray

from omm_mlff.errors import InputError
from omm_mlff.forces.built import Built, kind_in
from omm_mlff.forces.tap import Tap
from omm_mlff.potentials.base import Capabilities
from omm_mlff.schema import MolecularSystem, PotentialCard

SOURCE = "native"

_MOVERS = (
    openmm.AndersenThermostat,
    openmm.CMMotionRemover,
    openmm.MonteCarloAnisotropicBarostat,
    openmm.MonteCarloBarostat,
    openmm.MonteCarloFlexibleBarostat,
    openmm.MonteCarloMembraneBarostat,
    openmm.RPMDMonteCarloBarostat,
)
"""They are no part of a potential: they act on velocities and boxes."""


class ClonedPotential:
    """Forces that another openmm.System already has; no tap, one copy a System.

    A subclass says with `made` which System, and raises UnsupportedSystemError from it.
    Thermostats, barostats and removers of centre-of-mass motion are left out, and so are masses:
    those of a run are the elements' own.
    """

    def __init__(self, spec: str, card: PotentialCard) -> None:
        self.spec = spec
        self._card = card

    @property
    def card(self) -> PotentialCard:
        return self._card

    def made(self, system: MolecularSystem) -> openmm.System:
        """The System whose forces are copied.

        Raises
        ------
        UnsupportedSystemError : it cannot be made, with the reason
        """
        raise NotImplementedError

    def capabilities(self, system: MolecularSystem) -> Capabilities:
        return Capabilities(reads_box=True)

    def add_to(
        self,
        openmm_system: openmm.System,
        system: MolecularSystem,
        *,
        n_replicas: int = 1,
        tap: Tap | None = None,
    ) -> Built:
        made = self.made(system)  # named: its forces live no longer than it does
        for force in made.getForces():
            if not isinstance(force, _MOVERS):
                openmm_system.addForce(copy.deepcopy(force))
        return Built(kind_in(openmm_system))

    def energies_and_forces(
        self, positions: NDArray[np.float64], system: MolecularSystem
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        return None

    def reference_energy(self, system: MolecularSystem) -> float | None:
        return 0.0


def no_more_options(spec: str, options: dict[str, Any], known: Iterable[str]) -> None:
    """Refuse options that nothing reads."""
    if options:
        raise InputError(
            f"{spec!r}: unknown option {min(options)!r} (known: {', '.join(sorted(known))})"
        )


def narrow_for(system: MolecularSystem, cutoff_nm: float) -> str | None:
    """Why a periodic box is too small for a cutoff, in one line; None where it is not."""
    if system.box_vectors is None:
        return None
    width = float(np.diag(system.box_vectors).min())
    if width >= 2.0 * cutoff_nm:
        return None
    return f"the box is {width:.3g} nm wide, less than twice the cutoff of {cutoff_nm:g} nm"


def formula(system: MolecularSystem) -> str:
    """Carbon and hydrogen first, then by the alphabet: C3H7NO2."""
    symbols = [openmm.app.Element.getByAtomicNumber(int(z)).symbol for z in system.species]
    return formula_of(symbols)


def formula_of(symbols: list[str]) -> str:
    """The formula of these atoms."""
    order = sorted(set(symbols), key=lambda symbol: (symbol != "C", symbol != "H", symbol))
    counts = [(symbol, symbols.count(symbol)) for symbol in order]
    return "".join(symbol + (str(count) if count > 1 else "") for symbol, count in counts)
