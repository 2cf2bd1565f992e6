"""Which processes have ended meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from shim.gpu.watch import Watch


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def test_what_has_ended(sleeper: subprocess.Popen[bytes]) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    with Watch([os.getpid(), sleeper.pid, gone.pid]) as watch:
        assert watch.ended() == {gone.pid}
        sleeper.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
        assert watch.ended() == {gone.pid, sleeper.pid}, "a zombie"
    assert watch.ended() == {gone.pid, sleeper.pid}, "as it was when it was closed"
