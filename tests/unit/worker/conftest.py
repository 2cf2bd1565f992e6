"""A worker whose network is ours, and whose commands run beside us."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import cast

import pytest
from fakes.pod import FAKES

from shim.runc import Runc
from shim.worker.actions import Worker


class Beside:
    """A runtime that runs commands on this machine."""

    def __init__(self) -> None:
        self.env = dict(os.environ)

    def inside(self, command: Sequence[str], pid_file: str) -> list[str]:
        return [sys.executable, "-IS", str(FAKES / "execing.py"), pid_file, *command]


def worker_of(pid: int) -> Worker:
    return Worker("c", pid, cast(Runc, Beside()))


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as made:
        yield made
        made.kill()


@pytest.fixture
def worker(process: subprocess.Popen[bytes]) -> Worker:
    return worker_of(process.pid)
