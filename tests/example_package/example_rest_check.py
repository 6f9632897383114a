"""Is the structure that is shipped with a system at rest on the model?

The root mean square force at the given structure: a structure that was minimised on one method
is close to a minimum of every other that describes the same molecule.
"""

from __future__ import annotations

import numpy as np

from omm_mlff.checks.base import SPOILS_SURFACE, Check, Evidence, bounds, exact
from omm_mlff.schema import Declaration, Measurement, Where
from omm_mlff.units import EV_ANGSTROM_PER_KJMOL_NM

FORCE = Declaration(
    "rest.force",
    "deterministic",
    "eV/angstrom",
    "rms at the structure",
    "rest",
    failure="the shipped structure is pulled apart",
)


def take(evidence: Evidence) -> list[Measurement]:
    _, forces = evidence.live.evaluate(evidence.system.positions[None])
    size = float(np.sqrt((forces**2).mean())) * EV_ANGSTROM_PER_KJMOL_NM
    return [exact(FORCE, size, Where(system=evidence.system.name), 1)]


CHECK = Check(
    name="rest",
    question="Is the structure as given at rest?",
    formula="rms(F) at the given structure",
    source="an example",
    declares=(FORCE,),
    criteria=bounds(FORCE, "as an example: a bond off by 0.03 angstrom pulls so", high=(1.0, 10.0)),
    needs=frozenset({"evaluator"}),
    take=take,
    use="a start from the shipped structure",
    explained_by=SPOILS_SURFACE,
)
