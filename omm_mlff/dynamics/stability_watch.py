"""Watches a running simulation for replicas that diverge.

A replica is stopped when the potential's own code raises for it ("raised"), its energy or forces
are not finite ("nan"), its total energy has left its start by more than `ENERGY_LIMIT_EV` an atom
("energy"; not under a thermostat), a bond has been `BOND_LIMIT_NM` off its length at rest for
longer than `BOND_TIME_PS` ("bond"), or two atoms are closer than `OVERLAP_FRACTION` of the sum of
their covalent radii ("overlap").
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from omm_mlff.forces.potential_errors import RAISED
from omm_mlff.geometry.distances import BOND_LIMIT_NM, covalent_radii, pair_lengths
from omm_mlff.schema import Event, MolecularSystem
from omm_mlff.units import ANGSTROM_PER_NM, EV_PER_KJMOL

ENERGY_LIMIT_EV = 0.1
BOND_TIME_PS = 0.010
OVERLAP_FRACTION = 0.6
_ALL_PAIRS_ATOMS = 64
_SEARCH_INTERVAL = 10
_SAMPLED = 4
"""Of many frames in a row every so many-th is searched for overlaps, with a margin for how far
atoms can have come in between."""


class Watch:
    """Looks at every step of every replica.

    Parameters
    ----------
    system : one copy
    rest_positions : shape (n_atoms, 3), nm; bond lengths at rest are taken here
    n_replicas : how many copies are watched
    timestep_ps : between looks
    conserves_energy : whether the dynamics should; else the total energy may go where it likes
    """

    def __init__(
        self,
        system: MolecularSystem,
        rest_positions: NDArray[np.float64],
        n_replicas: int,
        timestep_ps: float,
        *,
        conserves_energy: bool = True,
    ) -> None:
        self.system = system
        self.conserves_energy = conserves_energy
        self.timestep_ps = timestep_ps
        self.symbols = [atom.element.symbol for atom in system.topology.atoms()]
        self.bonds = system.bonds
        self.rest_lengths = self._lengths(rest_positions[None], self.bonds)[0]
        radii = covalent_radii(system.species)
        self.first_energy = np.full(n_replicas, np.nan)
        self.steps_stretched = np.zeros((n_replicas, len(self.bonds)), dtype=int)
        self.radii = radii
        if system.n_atoms <= _ALL_PAIRS_ATOMS:
            i, j = np.triu_indices(system.n_atoms, k=1)
            self.pairs = np.stack([i, j], axis=1)
            self.overlap = OVERLAP_FRACTION * (radii[i] + radii[j])

    def look(
        self,
        step: int,
        positions: NDArray[np.float64],
        potential_energy: NDArray[np.float64],
        kinetic_energy: NDArray[np.float64],
        finite: NDArray[np.bool_],
        alive: NDArray[np.bool_],
        raised: Mapping[int, str] | None = None,
    ) -> dict[int, Event]:
        """The replicas to stop at this step, with the reason.

        Parameters
        ----------
        step : steps completed
        positions : shape (n_replicas, n_atoms, 3), nm
        potential_energy, kinetic_energy : shape (n_replicas,), kJ/mol
        finite : shape (n_replicas,), whether energy, forces and positions are
        alive : shape (n_replicas,), those still watched
        raised : by replica, what the potential's own code raised; its energy is not finite
        """
        total = potential_energy + kinetic_energy
        unset = np.isnan(self.first_energy)
        self.first_energy[unset] = total[unset]
        stretch = self._lengths(positions, self.bonds) - self.rest_lengths
        self.steps_stretched = np.where(
            np.abs(stretch) > BOND_LIMIT_NM, self.steps_stretched + 1, 0
        )
        off_eV = (total - self.first_energy) * EV_PER_KJMOL / self.system.n_atoms
        broken = np.asarray((self.steps_stretched * self.timestep_ps > BOND_TIME_PS).any(1))
        overlaps = self._overlaps(step, positions, alive & finite)
        suspects = alive & (
            ~finite
            | broken
            | (self.conserves_energy & (np.abs(off_eV) > ENERGY_LIMIT_EV))
            | np.isin(np.arange(len(alive)), list(overlaps))
        )
        return {
            r: self._raised(step, raised[r])
            if raised and r in raised
            else self._event(r, step, finite, stretch, broken, off_eV, overlaps)
            for r in np.flatnonzero(suspects).tolist()
        }

    def passes(
        self,
        step: int,
        positions: NDArray[np.float64],
        velocities: NDArray[np.float64],
        potential_energy: NDArray[np.float64],
        kinetic_energy: NDArray[np.float64],
        alive: NDArray[np.bool_],
    ) -> bool:
        """Whether `look` would stop no replica at any of many steps in a row.

        Then it counts as having looked at each of them; else it has looked at none.

        Parameters
        ----------
        step : of the first frame
        positions, velocities : shape (n_frames, n_replicas, n_atoms, 3), nm, nm/ps
        potential_energy, kinetic_energy : shape (n_frames, n_replicas), kJ/mol; finite only where
            positions and forces are
        alive : shape (n_replicas,), those still watched
        """
        total = potential_energy + kinetic_energy
        if not np.isfinite(total[:, alive]).all():
            return False
        first = np.where(np.isnan(self.first_energy), total[0], self.first_energy)
        off_eV = np.abs(total - first)[:, alive] * EV_PER_KJMOL / self.system.n_atoms
        if self.conserves_energy and (off_eV > ENERGY_LIMIT_EV).any():
            return False
        stretch = self._lengths(positions, self.bonds) - self.rest_lengths
        stretched = self.steps_stretched
        far = np.abs(stretch) > BOND_LIMIT_NM
        if not (far & alive[:, None]).any():
            stretched = np.where(far[-1], 1, 0)
        else:
            for frame in far:
                stretched = np.where(frame, stretched + 1, 0)
                if (stretched[alive] * self.timestep_ps > BOND_TIME_PS).any():
                    return False
        if self._any_overlap(step, positions, velocities, alive):
            return False
        self.first_energy, self.steps_stretched = first, stretched
        return True

    def restore(
        self, first_energy: NDArray[np.float64], steps_stretched: NDArray[np.int64]
    ) -> None:
        """Go on from what an earlier watch had in the attributes of these names."""
        self.first_energy = first_energy
        self.steps_stretched = steps_stretched

    def _raised(self, step: int, message: str) -> Event:
        detail = f"{RAISED} {message}"
        return Event("raised", step, step * self.timestep_ps, (), float("nan"), "1", detail)

    def _event(
        self,
        r: int,
        step: int,
        finite: NDArray[np.bool_],
        stretch: NDArray[np.float64],
        broken: NDArray[np.bool_],
        off_eV: NDArray[np.float64],
        overlaps: dict[int, tuple[int, int, float]],
    ) -> Event:
        time_ps = step * self.timestep_ps
        worst = int(np.argmax(np.abs(stretch[r]))) if stretch.shape[1] else -1
        bond = tuple(int(a) for a in self.bonds[worst]) if worst >= 0 else ()
        if not finite[r]:
            detail = "energy or forces are not finite"
            if bond and np.isfinite(stretch[r, worst]):
                detail += f"; {self._bond_text(bond, stretch[r, worst], worst)} just then"
            return Event("nan", step, time_ps, bond, float("nan"), "kJ/mol", detail)
        if r in overlaps:
            i, j, d = overlaps[r]
            limit = OVERLAP_FRACTION * (self.radii[i] + self.radii[j])
            detail = (
                f"atoms {self._name(i)} and {self._name(j)} are {d * ANGSTROM_PER_NM:.2f} angstrom "
                f"apart (less than {limit * ANGSTROM_PER_NM:.2f})"
            )
            return Event("overlap", step, time_ps, (i, j), d, "nm", detail)
        if broken[r]:
            length = float(self.rest_lengths[worst] + stretch[r, worst])
            detail = self._bond_text(bond, stretch[r, worst], worst)
            return Event("bond", step, time_ps, bond, length, "nm", detail)
        detail = f"total energy is off by {off_eV[r]:+.3f} eV/atom from its start"
        if bond:
            detail += f"; most strained: {self._bond_text(bond, stretch[r, worst], worst)}"
        return Event("energy", step, time_ps, bond, float(off_eV[r]), "eV/atom", detail)

    def _bond_text(self, bond: tuple[int, ...], stretch: float, index: int) -> str:
        rest = self.rest_lengths[index] * ANGSTROM_PER_NM
        return (
            f"bond {self._name(bond[0])}-{self._name(bond[1])} is "
            f"{rest + stretch * ANGSTROM_PER_NM:.2f} angstrom long ({rest:.2f} at rest)"
        )

    def _name(self, atom: int) -> str:
        return f"{self.symbols[atom]}{atom}"

    def _lengths(
        self, positions: NDArray[np.float64], pairs: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        return pair_lengths(positions, pairs, self.system.box_vectors)

    def _overlaps(
        self, step: int, positions: NDArray[np.float64], looked_at: NDArray[np.bool_]
    ) -> dict[int, tuple[int, int, float]]:
        """First pair of atoms on top of each other, by replica."""
        found: dict[int, tuple[int, int, float]] = {}
        if self.system.n_atoms <= _ALL_PAIRS_ATOMS and not self.system.periodic:
            distances = self._lengths(positions, self.pairs)
            close = (distances < self.overlap) & looked_at[:, None]
            for r in np.flatnonzero(close.any(1)):
                p = int(np.argmin(distances[r] / self.overlap))
                i, j = self.pairs[p].tolist()
                found[int(r)] = (i, j, float(distances[r, p]))
            return found
        if step % _SEARCH_INTERVAL:
            return {}
        for r in np.flatnonzero(looked_at):
            pair = self._closest_pair(positions[r])
            if pair is not None:
                found[int(r)] = pair
        return found

    def _any_overlap(
        self,
        step: int,
        positions: NDArray[np.float64],
        velocities: NDArray[np.float64],
        alive: NDArray[np.bool_],
    ) -> bool:
        """Whether `_overlaps` would find a pair in any of many frames in a row."""
        if self.system.n_atoms > _ALL_PAIRS_ATOMS or self.system.periodic:
            searched = range(-step % _SEARCH_INTERVAL, len(positions), _SEARCH_INTERVAL)
            return any(self._overlaps(step + k, positions[k], alive) for k in searched)
        if not len(self.pairs):
            return False
        watched = positions[:, alive]
        fastest = float(np.sqrt((velocities[:, alive] ** 2).sum(-1).max(initial=0.0)))
        margin = 2.0 * (_SAMPLED - 1) * fastest * self.timestep_ps
        sampled = self._lengths(watched[::_SAMPLED], self.pairs)
        if (sampled >= self.overlap + margin).all():
            return False
        return bool((self._lengths(watched, self.pairs) < self.overlap).any())

    def _closest_pair(self, positions: NDArray[np.float64]) -> tuple[int, int, float] | None:
        reach = 2.0 * OVERLAP_FRACTION * float(self.radii.max())
        box = self.system.box_vectors
        lengths, wrapped = None, positions
        if box is not None and np.allclose(box, np.diag(np.diag(box))):
            lengths = np.diag(box)
            wrapped = (
                np.mod(positions, lengths) % lengths
            )  # twice: -1e-17 becomes the length itself
        tree = cKDTree(wrapped, boxsize=lengths)
        pairs = tree.query_pairs(reach, output_type="ndarray")
        if not len(pairs):
            return None
        distances = self._lengths(positions[None], pairs)[0]
        ratio = distances / (OVERLAP_FRACTION * self.radii[pairs].sum(1))
        p = int(np.argmin(ratio))
        if ratio[p] >= 1.0:
            return None
        return int(pairs[p, 0]), int(pairs[p, 1]), float(distances[p])
