"""Thinning by a stride: the steps that are its multiples, wherever a block begins."""

from __future__ import annotations

import numpy as np
import pytest

from omm_mlff.dynamics.frames import Frames


@pytest.mark.parametrize("stride", [1, 2, 7, 50])
@pytest.mark.parametrize("first", [0, 1, 6, 7, 13])
def test_every_so_many_th_step_is_kept_in_all_arrays(first: int, stride: int) -> None:
    steps = np.arange(first, first + 20, dtype=float)
    vectors = np.tile(steps[:, None, None, None], (1, 2, 3, 3))
    frames = Frames(steps, vectors, vectors + 0.25, vectors + 0.5, vectors[..., 0, 0], -steps)
    kept = frames.every(stride, first)
    wanted = [step for step in range(first, first + 20) if step % stride == 0]
    assert len(kept) == len(wanted)
    assert kept.time_ps.tolist() == wanted
    for name, offset in (("positions", 0.0), ("velocities", 0.25), ("forces", 0.5)):
        assert getattr(kept, name)[:, 1, 2, 0].tolist() == [step + offset for step in wanted]
    assert kept.potential_energy[:, 1].tolist() == wanted
    assert kept.kinetic_energy.tolist() == [-step for step in wanted]
