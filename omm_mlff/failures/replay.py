"""A script that lets a failure happen again, with the state that it starts from beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omm_mlff.dynamics.platform_choice import where_runs_are
from omm_mlff.errors import OmmMlffError
from omm_mlff.forces.platforms import choose_platform
from omm_mlff.potentials.registry import sources
from omm_mlff.record.storage import storage_errors
from omm_mlff.schema import MolecularSystem
from omm_mlff.systems import load_system, split_spec, with_options
from omm_mlff.units import PS_PER_FS

if TYPE_CHECKING:
    from omm_mlff.record.rundir import RunRecord

SCRIPT, STATE = "replay.py", "state.npz"

_TEMPLATE = '''"""{title}"""
from pathlib import Path
import numpy as np, openmm
from omm_mlff import load_potential, load_system
from omm_mlff.potentials.base import build_system

{notes}system, start = load_system({system!r}), np.load(Path(__file__).with_name({state!r}))
integrator = openmm.VerletIntegrator({timestep_ps!r})
platform = openmm.Platform.getPlatformByName({platform!r})
context = openmm.Context(build_system(load_potential({potential!r}), system), integrator, platform)
context.setPositions(start["positions"])
context.setVelocities(start["velocities"])  # half a step behind, as a leapfrog wants them
for step in range({n_steps} + 1):
    try:
        state = context.getState(energy=True, forces=True)
    except openmm.OpenMMException as error:
        raise SystemExit(f"{{{start_ps!r} + step * {timestep_ps!r}:.4f}} ps: {{error}}") from None
    energies = [e._value for e in (state.getPotentialEnergy(), state.getKineticEnergy())]
    print(f"{{{start_ps!r} + step * {timestep_ps!r}:.4f}} ps", *energies, sum(energies), "kJ/mol")
    if not np.isfinite([*energies, np.abs(state.getForces(asNumpy=True)._value).max()]).all():
        break  # energy or forces are not finite
    integrator.step(1)
'''


def write_replay(
    folder: Path,
    run: RunRecord,
    system: MolecularSystem,
    *,
    title: str,
    start_ps: float,
    positions: NDArray[np.float64],
    velocities: NDArray[np.float64],
    n_steps: int,
) -> None:
    """Write `replay.py` and `state.npz`.

    Parameters
    ----------
    title : one line, what is replayed
    start_ps : time of the state
    positions, velocities : shape (n_atoms, 3), nm and nm/ps, velocities half a step earlier
    n_steps : to take
    """
    notes = []
    if run.spec.ensemble != "nve":
        notes.append("# The run was under a thermostat; from the same state this goes on without.")
    potential = run.spec.potential
    if not any(source.matches(potential) for source in sources()):
        notes.append(
            f"# {potential!r} is no model spec that load_potential reads: put your potential there."
        )
    elif Path(potential).exists():
        potential = str(Path(potential).resolve())
    wanted = _system_spec(run, system)
    if wanted is None:
        notes.append(
            f"# {run.spec.system!r} is no system that load_system reads: put your system there, "
            "atoms in the order of before.pdb."
        )
    text = _TEMPLATE.format(
        title=title.replace("\\", "/").replace('"', "'"),
        notes="".join(f"{note}\n" for note in notes),
        system=wanted or run.spec.system,
        state=STATE,
        timestep_ps=run.spec.timestep_fs * PS_PER_FS,
        platform=choose_platform(
            where_runs_are(run.spec.platform, [run.provenance.platform]), system.n_atoms
        ),
        potential=potential,
        n_steps=n_steps,
        start_ps=round(start_ps, 6),
    )
    with storage_errors(folder):
        np.savez(folder / STATE, positions=positions, velocities=velocities)
        (folder / SCRIPT).write_text(text, encoding="utf-8")


def _system_spec(run: RunRecord, system: MolecularSystem) -> str | None:
    """What `load_system` reads to get this system, from any folder; None where nothing does."""
    for spec in (run.spec.system, system.source):
        plain, options = split_spec(spec)
        path = Path(plain)
        absolute = with_options(str(path.resolve()), **options) if path.is_file() else spec
        try:
            found = load_system(absolute)
        except OmmMlffError:
            continue
        same_box = (found.box_vectors is None) == (system.box_vectors is None)
        if same_box and np.array_equal(found.species, system.species):
            return absolute
    return None
