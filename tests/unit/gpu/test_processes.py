"""Which processes use CUDA, what is done to all of them at once, and which have ended meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.cuda import VARIABLE, FakeCuda

from shim.errors import GpuFailed, GpuLost
from shim.gpu.driver import Driver
from shim.gpu.processes import all_of, cuda_processes, each, within


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


def test_one_that_does_not_come_to_its_end(limited: Callable[..., None]) -> None:
    """It is ended, which makes the call return; the others are none the worse for it."""
    limited(2)
    killed = threading.Event()
    ended: list[int] = []

    def act(pid: int) -> None:
        if pid == 2:
            killed.wait(30)
            ended.append(pid)
            raise GpuFailed("process 2: broke off")

    def kill(pid: int) -> None:
        assert pid == 2
        killed.set()

    failures = each(act, [1, 2, 3], 0.2, kill)
    assert ended == [2], "it was waited for"
    assert list(failures) == [2]
    assert isinstance(failures[2], GpuLost)
    assert failures[2].message == "process 2: the NVIDIA driver is not done with it after 0.2 s"
    told = all_of({1: GpuFailed("process 1: no"), **failures})
    assert isinstance(told, GpuLost)


def test_an_answer_in_time() -> None:
    assert within(30, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(30, lambda: 1 // 0)
    held = threading.Event()
    with pytest.raises(GpuFailed, match=r"has not answered within 0\.1 s"):
        within(0.1, held.wait)
    held.set()


def test_nobody() -> None:
    assert each(lambda _: pytest.fail("asked"), []) == {}
