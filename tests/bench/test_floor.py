"""Multiply-adds against torch's own count, and against a count by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from omm_mlff.bench.floor import floor, multiply_adds, product_rate
from omm_mlff.students.checkpoint import load_student
from omm_mlff.students.engine import MoleculeEngine
from omm_mlff.students.student import StudentConfig
from omm_mlff.systems import load_system


def test_products_of_the_nodes_by_hand():
    config = StudentConfig("x", n_features=10, n_layers=2, n_radial=20, n_readout=7)
    # phi of the second layer, two updates, the readout; there and back; no pair.
    an_atom = 4 * 100 + 2 * 11 * 100 + 3 * 100 + 2 * 10 * 7
    assert multiply_adds(config, 3, 0) == 2 * 3 * an_atom
    # Filters of 2 and 3 sections and their derivatives, one for both directions.
    assert multiply_adds(config, 0, 6) == 2 * 3 * (2 + 3) * 10 * 21


def test_torch_counts_no_less_for_the_scripted_student():
    """It has what the floor leaves out: filters of both directions, the first layer's messages."""
    student, system = load_student("original"), load_system("alanine")
    engine = MoleculeEngine(student, torch.from_numpy(system.species))
    with FlopCounterMode(display=False) as counter:
        engine(torch.from_numpy(system.positions))
    counted = counter.get_total_flops() / 2
    needed = floor(student, system, 1).multiply_adds
    assert 0.6 * counted < needed < counted


def test_rate_is_that_of_this_machine():
    assert 1e8 < product_rate(64, 128) < 1e15


def test_pairs_beyond_the_cutoff_are_not_counted():
    student = load_student("tiny")
    dipeptide = load_system("alanine-dipeptide")
    everything = multiply_adds(student.config, 22, 22 * 21)
    assert floor(student, dipeptide, 1).multiply_adds < everything
    assert floor(student, dipeptide, 1).multiply_adds == pytest.approx(everything, rel=0.3)
