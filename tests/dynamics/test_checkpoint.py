"""Where a batch goes on: what is written is what is read, or an error that says what to do."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from omm_mlff.dynamics.checkpoint import Checkpoint
from omm_mlff.errors import RunDirectoryError, StorageError


def checkpoint(step: int = 7) -> Checkpoint:
    rng = np.random.default_rng(step)
    return Checkpoint(
        step,
        2,
        rng.normal(size=(3, 2, 3)),
        rng.normal(size=(3, 2, 3)),
        np.array([True, False, True]),
        np.array([-1.5, np.nan, 2.0]),
        np.array([[0], [3], [0]]),
        np.frombuffer(b"stream", dtype=np.uint8),
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "batch_000.npz"
    checkpoint().write(path)
    checkpoint(8).write(path)
    found, wanted = Checkpoint.read(path), checkpoint(8)
    assert found is not None
    assert (type(found.step), found.alive.dtype) == (int, bool)
    for field in fields(Checkpoint):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(wanted, field.name))
    assert [file.name for file in tmp_path.iterdir()] == ["batch_000.npz"]


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert Checkpoint.read(tmp_path / "batch_000.npz") is None


def test_one_that_cannot_be_replaced_is_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "batch_000.npz"
    checkpoint().write(path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(StorageError, match="disk is full"):
        checkpoint(8).write(path)
    found = Checkpoint.read(path)
    assert found is not None
    assert found.step == 7


def test_one_that_lacks_something_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "batch_000.npz"
    np.savez(path, step=np.array(1), segment=np.array(1))
    with pytest.raises(RunDirectoryError, match=r"batch_000.npz is damaged .*positions"):
        Checkpoint.read(path)
