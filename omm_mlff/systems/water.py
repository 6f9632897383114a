"""Periodic boxes of water, cut from the equilibrated one that OpenMM brings along."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit
from scipy.spatial import cKDTree

from omm_mlff.schema import MolecularSystem
from omm_mlff.systems.build import build_system
from omm_mlff.units import GRAM_PER_CM3_PER_DALTON_NM3

Float = NDArray[np.float64]

DENSITY_GRAM_PER_CM3 = 0.997
"""Of liquid water at 298 K and 1 bar."""

_CLASH_NM = 0.25  # oxygens come no closer than this in the liquid
_MAX_ITERATIONS = 25


def water_box(n_molecules: int, seed: int = 0) -> MolecularSystem:
    """A cube with exactly this many water molecules, at 0.997 g/cm^3.

    The equilibrated box of OpenMM (895 rigid TIP3P molecules at 300 K) is tiled, a cube is cut from
    it at a place drawn from the seed, molecules that would overlap across its faces are left out,
    and what remains is scaled to the density, molecule by molecule, then relaxed with TIP3P. The
    molecules keep TIP3P's geometry; no equilibration replaces yours.

    Parameters
    ----------
    n_molecules : 1 or more; below 34 the cube is narrower than 1 nm

    Returns
    -------
    named `water-box:N`; residues HOH with atoms O, H1, H2, molecules whole, oxygens in the cell
    """
    mass = _water_mass()
    side = (n_molecules * mass * GRAM_PER_CM3_PER_DALTON_NM3 / DENSITY_GRAM_PER_CM3) ** (1.0 / 3.0)
    molecules = _cut(n_molecules, side, np.random.default_rng(seed))
    topology = _topology(n_molecules, side)
    positions = _relaxed(topology, molecules.reshape(-1, 3), side)
    first = 3 * np.arange(n_molecules)
    bonds = np.stack([np.repeat(first, 2), np.stack([first + 1, first + 2], 1).ravel()], axis=1)
    return build_system(
        name=f"water-box:{n_molecules}",
        source="the water box of OpenMM",
        topology=topology,
        positions=positions,
        bonds=bonds,
        box_vectors=np.eye(3) * side,
    )


def _cut(n_molecules: int, side: float, rng: np.random.Generator) -> Float:
    """Molecules of (n_molecules, 3, 3), nm, with no overlap in a cube of this side."""
    tile, period = _equilibrated()
    origin = rng.random(3) * period
    cut = side
    while True:
        chosen = _without_overlaps(_inside(tile, period, origin, cut), cut)
        if len(chosen) >= n_molecules:
            break
        cut *= 1.005
    # What is left over goes from one face, so that the rest stays a liquid.
    chosen = chosen[np.argsort(chosen[:, 0, 0], kind="stable")][:n_molecules]
    oxygen = chosen[:, :1]
    return chosen - oxygen + oxygen * (side / cut)


def _inside(tile: Float, period: float, origin: Float, side: float) -> Float:
    """Molecules whose oxygen lies in the cube [0, side)^3 of the tiled liquid moved by `origin`."""
    oxygen = (tile[:, 0] - origin) % period
    shape = tile - tile[:, :1]
    n = int(np.ceil(side / period))
    shifts = period * np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1).reshape(-1, 3)
    everywhere = (oxygen[None] + shifts[:, None]).reshape(-1, 3)
    shapes = np.tile(shape, (len(shifts), 1, 1))
    kept = (everywhere < side).all(axis=1)
    return np.asarray(everywhere[kept, None] + shapes[kept], dtype=np.float64)


def _without_overlaps(molecules: Float, side: float) -> Float:
    """Molecules none of which comes too close to another one's image across a face."""
    if len(molecules) == 0:
        return molecules
    pairs = cKDTree(molecules[:, 0], boxsize=np.full(3, side)).query_pairs(
        _CLASH_NM, output_type="ndarray"
    )
    dropped: set[int] = set()
    for i, j in sorted(pairs.tolist()):
        if i not in dropped and j not in dropped:
            dropped.add(j)
    kept = [index for index in range(len(molecules)) if index not in dropped]
    return np.asarray(molecules[kept], dtype=np.float64)


@functools.cache
def _equilibrated() -> tuple[Float, float]:
    """OpenMM's box: molecules (895, 3, 3) as O, H, H, whole, nm; its side, nm."""
    pdb = app.PDBFile(str(Path(app.__file__).parent / "data" / "tip3p.pdb"))
    positions = np.array(pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    vectors = pdb.topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer)
    return positions.reshape(-1, 3, 3), float(vectors[0][0])


def _relaxed(topology: app.Topology, positions: Float, side: float) -> Float:
    """Water molecules, rigid, after a few steps downhill with TIP3P; oxygens in the cell."""
    system = app.ForceField("tip3p.xml").createSystem(
        topology,
        nonbondedMethod=app.CutoffPeriodic,
        nonbondedCutoff=min(0.6, 0.49 * side),
        removeCMMotion=False,
    )
    # One thread and ordered sums: the same box everywhere, not one for each number of cores.
    platform = openmm.Platform.getPlatformByName("CPU")
    properties = {"Threads": "1", "DeterministicForces": "true"}
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform, properties)
    context.setPositions(positions)
    context.applyConstraints(1e-8)
    openmm.LocalEnergyMinimizer.minimize(context, 10.0, _MAX_ITERATIONS)
    context.applyConstraints(1e-8)
    state = context.getState(positions=True)
    relaxed = np.array(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    molecules = relaxed.reshape(-1, 3, 3)
    oxygen = molecules[:, :1]
    return np.asarray(molecules - np.floor(oxygen / side) * side).reshape(-1, 3)


def _topology(n_molecules: int, side: float) -> app.Topology:
    topology = app.Topology()
    chain = topology.addChain("A")
    oxygen, hydrogen = app.element.oxygen, app.element.hydrogen
    for index in range(n_molecules):
        residue = topology.addResidue("HOH", chain, str(index + 1))
        atoms = [
            topology.addAtom(name, element, residue)
            for name, element in (("O", oxygen), ("H1", hydrogen), ("H2", hydrogen))
        ]
        topology.addBond(atoms[0], atoms[1])
        topology.addBond(atoms[0], atoms[2])
    topology.setPeriodicBoxVectors(np.eye(3) * side * unit.nanometer)
    return topology


def _water_mass() -> float:
    oxygen, hydrogen = app.element.oxygen.mass, app.element.hydrogen.mass
    return float((oxygen + 2.0 * hydrogen).value_in_unit(unit.dalton))
