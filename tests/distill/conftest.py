"""The teacher, loaded once for all tests that need it."""

from __future__ import annotations

import pytest

from omm_mlff.distill.teacher import Teacher
from omm_mlff.errors import MissingPackageError


@pytest.fixture(scope="session")
def teacher() -> Teacher:
    # Not importorskip: torchani warns while it is imported, and Teacher() knows of that.
    try:
        return Teacher()
    except MissingPackageError as error:
        pytest.skip(str(error))
