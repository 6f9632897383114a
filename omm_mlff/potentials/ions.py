"""Whether a potential takes the charge and the spin of a system.

A model that computes an ion or a radical as if it were neither gives numbers that look sound. So
one that was made for neutral closed shells refuses them, and one that is told charge and spin is
tried: where another charge changes nothing, it does not listen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from omm_mlff.schema import MolecularSystem


def no_neutral_singlet(system: MolecularSystem) -> str | None:
    """Why a potential for neutral closed shells cannot serve a system; None where it can."""
    if system.charge != 0:
        return f"it is for neutral molecules, this one has charge {system.charge:+d}"
    if system.spin_multiplicity != 1:
        return (
            "it is for closed shells (singlets), this one has spin multiplicity "
            f"{system.spin_multiplicity}"
        )
    return None


def deaf_to(
    energy: Callable[[MolecularSystem], float | None], system: MolecularSystem
) -> tuple[str, int] | None:
    """What of a system a potential does not take: ("charge", -1) or ("spin", 2); None: nothing.

    Parameters
    ----------
    energy : of the potential, told the charge and the spin of the system; None where it fails,
        which it may for a number of electrons that does not fit: then it has listened
    """
    if system.charge == 0 and system.spin_multiplicity == 1:
        return None
    told = energy(system)
    if told is None:
        return None
    if system.charge != 0 and energy(dataclasses.replace(system, charge=0)) == told:
        return "charge", system.charge
    singlet = dataclasses.replace(system, spin_multiplicity=1)
    if system.spin_multiplicity != 1 and energy(singlet) == told:
        return "spin", system.spin_multiplicity
    return None
