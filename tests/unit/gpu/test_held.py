"""The node's cache beside a lane, as tests/gpu has it for a while."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from bed.lane import Installation
from gpu.held import holding

HOLDER = """#!/bin/sh
echo "$@" >> {0}/started
read _ size < {0}/config
[ "$size" = 0.0 ] && exit 0
touch {0}/there
exec sleep 600
"""


class Lane:
    """One whose holder is a program of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.installation = Installation(folder)
        self.places = SimpleNamespace(thaw_config=folder / "config")
        (folder / "python").write_text(HOLDER.format(folder))
        (folder / "python").chmod(0o755)

    def configure(self, key: str, value: str) -> None:
        (self.folder / "config").write_text(f"{key} {value}")

    def environment(self) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin"}

    def thaw(self, *_: str, check: bool) -> Any:
        return SimpleNamespace(returncode=int(not (self.folder / "there").exists()))


def test_it_is_there_for_the_block(tmp_path: Path) -> None:
    lane = Lane(tmp_path)
    with holding(cast("Any", lane), 1.5) as holder:
        assert holder.poll() is None
        assert (tmp_path / "config").read_text() == "cache.size 1.500"
    assert holder.poll() is not None
    assert (tmp_path / "config").read_text() == "cache.size 0.0"
    started = (tmp_path / "started").read_text().splitlines()
    assert started == [f"-I -m shim.cache.holder --config {tmp_path}/config"] * 2


def test_one_that_does_not_start(tmp_path: Path) -> None:
    lane = Lane(tmp_path)
    (tmp_path / "python").write_text("#!/bin/sh\nexit 3\n")
    with (
        pytest.raises(RuntimeError, match="ended with 3"),
        holding(cast("Any", lane), 1.5),
    ):
        pass
