"""A worker whose network is ours, and whose commands run beside us."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest
from fakes.pod import FAKES

from shim.runc import Runc
from shim.worker.actions import Worker


class Beside:
    """A runtime that runs commands on this machine."""

    def __init__(self, folder: str) -> None:
        self.env = dict(os.environ)
        self.folder = folder

    def inside(self, command: Sequence[str], pid_file: str) -> list[str]:
        return [sys.executable, "-IS", str(FAKES / "execing.py"), pid_file, *command]


def worker_of(pid: int, folder: str = "/nowhere") -> Worker:
    return Worker("c", pid, cast(Runc, Beside(folder)))


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as made:
        yield made
        made.kill()


@pytest.fixture
def worker(process: subprocess.Popen[bytes], tmp_path: Path) -> Iterator[Worker]:
    folder = tmp_path / "bundle"
    folder.mkdir()
    yield worker_of(process.pid, str(folder))
    assert list(folder.iterdir()) == []
