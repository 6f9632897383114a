"""The floor's products, against what torch itself counts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from omm_mlff.bench.floor import floor, multiply_adds, n_pairs
from omm_mlff.students.engine import build_engine
from omm_mlff.students.student import STUDENT_CONFIGS, Student
from omm_mlff.systems import load_system


def counted_by_torch(student, system):
    """Multiply-adds of every matrix product in one energy and its gradient."""
    engine = build_engine(student, torch.from_numpy(system.species), periodic=False)
    with FlopCounterMode(display=False) as counter:
        engine(torch.from_numpy(system.positions))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", STUDENT_CONFIGS)
@pytest.mark.parametrize("molecule", ["water", "ethanol"])
def test_the_products_are_those_that_torch_takes_but_for_what_need_not_be_done(name, molecule):
    torch.manual_seed(0)
    student, system = Student(STUDENT_CONFIGS[name]), load_system(molecule)
    config, n_atoms = student.config, system.n_atoms
    width, layers = config.n_features, config.n_layers
    pairs = n_atoms * (n_atoms - 1)  # the engine's, whatever the cutoff
    # Torch takes these as well: the first messages of every atom, which have no gradient; every
    # filter whole, for both directions, there and back; the readout's last layer, there and back.
    first_messages = 4 * n_atoms * width**2
    whole_filters = 2 * layers * pairs * config.n_radial * 3 * width
    last = 2 * n_atoms * config.n_readout
    without_pairs = multiply_adds(config, n_atoms, 0)
    counted = counted_by_torch(student, system)
    assert without_pairs + first_messages + whole_filters + last == counted


def test_pairs_of_a_molecule_are_those_within_the_cutoff():
    student, system = Student(STUDENT_CONFIGS["ultra-tiny"]), load_system("aspirin")
    d = np.linalg.norm(system.positions[:, None] - system.positions[None], axis=-1)
    within = (d < 0.5).sum() - system.n_atoms
    assert n_pairs(student, system) == within < system.n_atoms * (system.n_atoms - 1)


def test_pairs_of_a_box_narrower_than_twice_the_cutoff_include_images():
    student, system = Student(STUDENT_CONFIGS["ultra-tiny"]), load_system("water-box:20")
    side = system.box_vectors[0, 0]
    assert side < 1.0
    found = -system.n_atoms  # each atom with itself
    for shift in itertools.product(
        (-2, -1, 0, 1, 2), repeat=3
    ):  # molecules are whole, not atoms wrapped
        r = system.positions[:, None] - system.positions[None] + side * np.array(shift)
        found += int((np.linalg.norm(r, axis=-1) < 0.5).sum())
    assert n_pairs(student, system) == found


def test_the_floor_is_its_multiply_adds_over_the_rate_and_leaves_the_threads_as_they_were():
    student, system = Student(STUDENT_CONFIGS["ultra-tiny"]), load_system("water")
    before = torch.get_num_threads()
    found = floor(student, system, 1, n_threads=2)
    assert torch.get_num_threads() == before
    assert found.n_threads == 1  # three atoms are no work for two
    assert found.multiply_adds == multiply_adds(student.config, 3, 6)
    assert found.rate * found.seconds == pytest.approx(found.multiply_adds)


def test_at_one_rate_a_larger_student_has_a_higher_floor(monkeypatch):
    monkeypatch.setattr("omm_mlff.bench.floor.product_rate", lambda *_: 1e9)
    system = load_system("ethanol")
    seconds = [
        floor(Student(STUDENT_CONFIGS[name]), system, 1).seconds
        for name in ("ultra-tiny", "original")
    ]
    assert seconds[1] > 2.0 * seconds[0] > 0.0
