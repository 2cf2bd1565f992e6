"""A CRIU that is played, and the container that it dumps."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.dumping import Criu, work_of

from shim.runc import Runc
from shim.work import Work


@pytest.fixture
def criu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Criu:
    made = Criu(tmp_path)
    monkeypatch.setattr(Runc, "checkpoint", lambda _self, options: made.dump(options))
    return made


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """A running container that has written a file; this process stands for its init."""
    made = work_of(tmp_path)
    (tmp_path / "upper" / "written").write_text("by the worker")
    return made
