"""A CUDA driver without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.cuda import VARIABLE, FakeCuda

from shim.gpu.driver import Driver


@pytest.fixture
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A driver's world in which there is no process yet."""
    made = FakeCuda(tmp_path / "cuda")
    monkeypatch.setenv(VARIABLE, str(made.folder))
    return made


@pytest.fixture
def driver(cuda: FakeCuda) -> Driver:
    """The driver of `cuda`, opened, not initialized."""
    return Driver.open(cuda.library)
