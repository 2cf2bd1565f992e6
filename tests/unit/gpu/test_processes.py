"""Which processes use CUDA, what is done to all of them at once, and which have ended meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.cuda import VARIABLE, FakeCuda

from shim.errors import GpuFailed
from shim.gpu.driver import Driver
from shim.gpu.processes import Watch, all_of, cuda_processes, each


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def test_those_that_the_driver_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(tmp_path)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    cuda.add(30)
    cuda.add(7, "checkpointed")
    driver = Driver.open(cuda.library)
    assert cuda_processes(driver, [30, 8, 7, 30]) == [7, 30]
    assert cuda_processes(driver, []) == []


def test_all_at_the_same_time() -> None:
    """Each waits for all the others."""
    together = threading.Barrier(5, timeout=30)

    def act(_: int) -> None:
        together.wait()

    assert each(act, range(5)) == {}
    assert not together.broken


def test_each_whatever_becomes_of_the_others() -> None:
    asked: list[int] = []

    def act(pid: int) -> None:
        asked.append(pid)
        if pid % 2:
            raise GpuFailed(f"process {pid}: no", hint=f"hint {pid}")

    failures = each(act, [4, 3, 2, 1])
    assert sorted(asked) == [1, 2, 3, 4]
    assert list(failures) == [1, 3]
    said = all_of(failures)
    assert (said.message, said.hint) == ("process 1: no; process 3: no", "hint 1")


@pytest.mark.parametrize("count", [1, 3])
def test_a_fault_of_ours_is_not_taken_for_the_drivers(count: int) -> None:
    def act(_: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        each(act, range(count))


def test_nobody() -> None:
    assert each(lambda _: pytest.fail("asked"), []) == {}


def test_what_has_ended(sleeper: subprocess.Popen[bytes]) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    with Watch([os.getpid(), sleeper.pid, gone.pid]) as watch:
        assert watch.ended() == {gone.pid}
        sleeper.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
        assert watch.ended() == {gone.pid, sleeper.pid}, "a zombie"
    assert watch.ended() == {gone.pid, sleeper.pid}, "as it was when it was closed"
