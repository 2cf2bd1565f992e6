"""A command in the container, told what to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
from fakes.pod import FAKES
from fakes.settled import PATIENCE

from shim.conduct import Registration
from shim.errors import RegistrationFailed
from shim.registration.script import Script
from shim.runc import Runc
from shim.worker.actions import Worker


class Beside:
    env = os.environ

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def inside(self, command: Sequence[str], pid_file: str) -> list[str]:
        return [sys.executable, "-IS", str(FAKES / "execing.py"), pid_file, *command]


def script(command: str, folder: Path) -> Script:
    worker = Worker("c", os.getpid(), cast(Runc, Beside(folder)))
    return Script(Registration("exec", command, must=False), worker)


def test_both_ways(tmp_path: Path) -> None:
    made = script(f'echo "$1 $#" >>{tmp_path}/log', tmp_path)
    made.register(PATIENCE)
    made.deregister(PATIENCE)
    assert (tmp_path / "log").read_text() == "register 1\nderegister 1\n"


def test_failures(tmp_path: Path) -> None:
    with pytest.raises(RegistrationFailed, match="register: exit status 4: no room"):
        script("echo no room >&2; exit 4", tmp_path).register(PATIENCE)
    with pytest.raises(RegistrationFailed, match=r"deregister: .*not done after 0.2 s, killed"):
        script("sleep 1000", tmp_path).deregister(0.2)
