from __future__ import annotations

from pathlib import Path

import pytest
from fakes.command import Thaw


@pytest.fixture
def thaw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Thaw:
    """`thaw` with two empty stores."""
    return Thaw(tmp_path, capsys)
