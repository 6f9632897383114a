"""Peak memory: a process's own, and nobody else's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omm_mlff.bench.memory import peak_memory
from omm_mlff.errors import ValidationFailure
from omm_mlff.units import BYTES_PER_MIB

GIB = 1024 * BYTES_PER_MIB


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))


def touch(n_bytes):
    """Hold so many bytes for a moment."""
    np.ones(n_bytes // 8)


@pytest.mark.slow
def test_a_process_is_not_charged_with_what_its_parent_held():
    touch(2 * GIB)
    found = peak_memory("ultra-tiny", "water", platform="Reference", n_steps=2)
    assert found.host < 1.5 * GIB
    assert 0 < found.imported <= found.host


def test_a_process_that_fails_says_why_in_one_line():
    with pytest.raises(ValidationFailure, match="no-such-model") as caught:
        peak_memory("no-such-model", "water")
    assert "\n" not in str(caught.value)
