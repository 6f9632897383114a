"""A small system takes one thread, and what was set before comes back."""

from __future__ import annotations

import pytest
import torch

from omm_mlff.forces.threads import SMALL, threads_for


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_small_system_takes_one_thread_and_gives_it_back(two_threads):
    with threads_for(SMALL - 1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with pytest.raises(KeyError), threads_for(SMALL - 1):
        raise KeyError
    assert torch.get_num_threads() == 2


def test_a_large_system_keeps_what_is_set(two_threads):
    with threads_for(SMALL):
        assert torch.get_num_threads() == 2


def test_the_users_choice_is_kept(two_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with threads_for(3):
        assert torch.get_num_threads() == 2
