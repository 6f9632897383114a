"""Order: atoms that were exchanged are named, other faults are not called so."""

from __future__ import annotations

import numpy as np
import pytest
from checks.fakes import FakeEvaluator, by_name, card, labels, with_labels
from springs import molecule

from omm_mlff.checks import order
from omm_mlff.checks.base import Evidence

SYMBOLS = ["C", "O", "H", "H", "H", "H"]
"""Methanol; the hydrogens have different places."""
POSITIONS = [
    [0.0, 0.0, 0.0],
    [0.14, 0.0, 0.0],
    [-0.04, 0.1, 0.0],
    [-0.04, -0.05, 0.09],
    [-0.04, -0.05, -0.09],
    [0.17, 0.09, 0.01],
]


def bonded(positions, system):
    """Springs that know their atoms by index, all different."""
    i, j = np.triu_indices(len(positions), k=1)
    start = np.array(POSITIONS)
    rest = np.linalg.norm(start[j] - start[i], axis=1)
    r = positions[j] - positions[i]
    d = np.linalg.norm(r, axis=1)
    stiff = 1e5 * (1.0 + 0.1 * np.arange(len(i)))
    pull = (stiff * (d - rest) / d)[:, None] * r
    forces = np.zeros_like(positions)
    np.add.at(forces, i, pull)
    np.add.at(forces, j, -pull)
    return float(0.5 * (stiff * (d - rest) ** 2).sum()), forces


def system():
    bare = molecule([6, 8, 1, 1, 1, 1], POSITIONS, [[0, 1], [0, 2], [0, 3], [0, 4], [1, 5]])
    return with_labels(
        bare, labels(bonded, bare, temperature_K=[300.0] * 6, trajectory=range(6), spread=0.004)
    )


def in_order(atoms, *, positions=True, forces=True):
    """The model with atoms of its input, of its forces, or of both, in another order."""
    inverse = np.argsort(atoms)

    def function(x, of):
        energy, force = bonded(x[atoms] if positions else x, of)
        return energy, force[inverse] if forces else force

    return function


def measured(function):
    of = system()
    evaluator = FakeEvaluator(function, of)
    evidence = Evidence(of, card(), evaluator=evaluator)
    return by_name(order.CHECK.measure(evidence))["order.swap"], evaluator


def test_the_right_order_is_seen_at_once() -> None:
    found, evaluator = measured(bonded)
    assert found.value == 0.0
    assert evaluator.n_evaluations == order.N_FRAMES
    assert "not gross" in found.cause


@pytest.mark.parametrize(("i", "j"), [(0, 1), (2, 5), (3, 5), (1, 4)])
def test_two_exchanged_atoms_are_named(i: int, j: int) -> None:
    atoms = np.arange(6)
    atoms[[i, j]] = j, i
    found, _ = measured(in_order(atoms))
    assert found.value == 1.0
    assert found.where.atoms == (i, j)
    assert f"{SYMBOLS[i]}{i} and {SYMBOLS[j]}{j} have changed places" in found.cause
    assert "positions and forces" in found.cause


@pytest.mark.parametrize("what", ["positions", "forces"])
def test_an_exchange_in_positions_or_forces_alone_is_found(what: str) -> None:
    atoms = np.array([0, 1, 5, 3, 4, 2])
    found, _ = measured(in_order(atoms, positions=what == "positions", forces=what == "forces"))
    assert found.value == 1.0
    assert f"in its {what}:" in found.cause


@pytest.mark.parametrize("inverse", [False, True])
def test_blocks_of_elements_are_found(inverse: bool) -> None:
    """H4 O C in place of C O H4."""
    atoms = np.array([2, 3, 4, 5, 1, 0])
    found, _ = measured(in_order(np.argsort(atoms) if inverse else atoms))
    assert found.value == 1.0
    assert "blocks H, O, C" in found.cause


def test_a_wrong_unit_is_no_exchange() -> None:
    found, _ = measured(lambda x, of: tuple(20.0 * part for part in bonded(x, of)))
    assert found.value == 0.0
    assert "none of" in found.cause


def test_a_small_error_is_not_looked_into() -> None:
    found, evaluator = measured(lambda x, of: (0.0, 1.3 * bonded(x, of)[1]))
    assert found.value == 0.0
    assert evaluator.n_evaluations == order.N_FRAMES


def test_nan_is_no_exchange() -> None:
    found, _ = measured(lambda x, of: (np.nan, np.full_like(x, np.nan)))
    assert found.value == 0.0


def test_every_pair_and_every_order_of_the_blocks_is_tried() -> None:
    tried = list(order.orders(["O", "H", "H"]))
    assert {tuple(o.atoms.tolist()) for o in tried} == {
        (1, 0, 2),
        (2, 1, 0),
        (0, 2, 1),
        (1, 2, 0),
        (2, 0, 1),
    }


def test_without_labels_it_is_not_applicable() -> None:
    bare = molecule([1, 1], [[0, 0, 0], [0.1, 0, 0]], [[0, 1]])
    (row,) = order.CHECK.measure(Evidence(bare, card(), evaluator=FakeEvaluator(bonded, bare)))
    assert "no reference labels" in row.not_applicable
