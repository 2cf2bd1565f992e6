"""The driver of a machine without a GPU."""

from __future__ import annotations

import pytest
from fakes.cuda import FakeCuda

from shim.gpu.driver import Driver


@pytest.fixture
def driver(cuda: FakeCuda) -> Driver:
    """The driver of `cuda`, opened, not initialized."""
    return Driver.open(cuda.library)
