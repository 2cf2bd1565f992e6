"""Restored processes get their GPU state back: nothing is unlocked unless all are restored."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from fakes.cuda import FakeCuda
from fakes.cuda_worker import Workers
from fakes.settled import eventually

from shim.errors import GpuFailed, Unfit
from shim.gpu.driver import Driver
from shim.gpu.resumption import Resumption

OUT_OF_MEMORY, NO_DEVICE, NOT_SUPPORTED = 2, 100, 801
HERE, THERE = bytes(range(16)), bytes(range(16, 32))


@pytest.fixture
def workers(cuda: FakeCuda) -> Iterator[Workers]:
    """Three, as CRIU has restored them."""
    with Workers(cuda, 3) as made:
        for pid in made.pids:
            cuda.add(pid, "checkpointed")
        yield made


@pytest.fixture
def resumption(cuda: FakeCuda) -> Resumption:
    return Resumption(partial(Driver.open, cuda.library))


def test_all_are_restored_then_all_unlocked(
    cuda: FakeCuda, workers: Workers, resumption: Resumption
) -> None:
    resumption.prepare()
    resumption.check()
    with cuda.together(len(workers.pids), "Restore", "Unlock"):
        resumption.resume(workers.pids)
    assert workers.states == ["running"] * 3
    restored = [call for call in cuda.calls if call.short == "Restore"]
    unlocked = [call for call in cuda.calls if call.short == "Unlock"]
    assert max(call.ended for call in restored) <= min(call.begun for call in unlocked)
    for calls in (restored, unlocked):
        assert all(calls[0].overlaps(other) for other in calls[1:])
    assert [span.name for span in resumption.timeline.spans] == ["init", "restore", "unlock"]


def test_cuinit_may_come_after_something_else(cuda: FakeCuda, resumption: Resumption) -> None:
    """Whoever asks whether the driver will do does not wait for that."""
    asked = threading.Event()
    resumption.prepare(after=asked.wait)
    resumption.check()
    assert [call.short for call in cuda.calls] == ["cuDriverGetVersion"]
    asked.set()
    resumption.resume([])
    assert [call.short for call in cuda.calls] == ["cuDriverGetVersion", "cuInit"]


def test_cuinit_waits_for_nobody(cuda: FakeCuda, workers: Workers, resumption: Resumption) -> None:
    """It is under way while CRIU works; only who needs it waits for it."""
    with cuda.held("cuInit"):
        resumption.prepare()
        resumption.prepare()
        resumption.check()
        assert [call.ended for call in cuda.calls if call.name == "cuInit"] in ([], [0.0])
    resumption.resume(workers.pids)
    inits = [call for call in cuda.calls if call.name == "cuInit"]
    assert len(inits) == 1
    assert all(call.begun >= inits[0].ended for call in cuda.calls if call.pid)


def test_it_need_not_have_been_prepared(workers: Workers, resumption: Resumption) -> None:
    resumption.resume(workers.pids)
    assert workers.states == ["running"] * 3


def test_other_gpus(cuda: FakeCuda, workers: Workers, resumption: Resumption) -> None:
    resumption.resume(workers.pids, [(HERE, THERE), (THERE, HERE)])
    moves = {call.detail for call in cuda.calls if call.short == "Restore"}
    assert moves == {f"{HERE.hex()}>{THERE.hex()},{THERE.hex()}>{HERE.hex()}"}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("result", [OUT_OF_MEMORY, NOT_SUPPORTED])
def test_one_is_not_restored(
    cuda: FakeCuda, workers: Workers, resumption: Resumption, place: int, result: int
) -> None:
    pid = workers.pids[place]
    cuda.answer("Restore", result, pid=pid)
    with pytest.raises(GpuFailed, match=f"of process {pid}") as failed:
        resumption.resume(workers.pids)
    assert failed.value.hint
    states = dict(zip(workers.pids, workers.states, strict=True))
    assert states.pop(pid) == "checkpointed"
    assert set(states.values()) == {"locked"}, "all of them were tried, and none goes on"
    assert not [call for call in cuda.calls if call.short == "Unlock"]


def test_one_is_not_unlocked(cuda: FakeCuda, workers: Workers, resumption: Resumption) -> None:
    cuda.answer("Unlock", NOT_SUPPORTED, pid=workers.pids[1])
    with pytest.raises(GpuFailed, match=f"Unlock of process {workers.pids[1]}"):
        resumption.resume(workers.pids)


@pytest.mark.parametrize("call", ["restore", "unlock"])
def test_one_is_killed_meanwhile(
    cuda: FakeCuda, workers: Workers, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Whether the driver notices or not."""
    killed = workers.pids[1]
    driver = Driver.open(cuda.library)
    real = getattr(driver, call)

    def instead(pid: int, *rest: object) -> None:
        real(pid, *rest)
        if pid == killed:
            workers.kill(killed)

    monkeypatch.setattr(driver, call, instead)
    with pytest.raises(GpuFailed, match=f"process {killed} ended"):
        Resumption(lambda: driver).resume(workers.pids)
    unlocked = [made for made in cuda.calls if made.short == "Unlock"]
    assert bool(unlocked) == (call == "unlock")


def test_one_was_killed_before(cuda: FakeCuda, workers: Workers, resumption: Resumption) -> None:
    killed = workers.pids[2]
    pids = workers.pids
    workers.kill(killed)
    with pytest.raises(GpuFailed, match=f"process {killed} ended before it ran on: .*{killed}"):
        resumption.resume(pids)
    assert not [made for made in cuda.calls if made.short == "Unlock"]


def test_no_driver(tmp_path: Path) -> None:
    """It is known before anything is touched."""
    resumption = Resumption(partial(Driver.open, str(tmp_path / "none")))
    for _ in range(2):
        with pytest.raises(Unfit, match="no CUDA driver"):
            resumption.check()
    with pytest.raises(Unfit):
        resumption.resume([1])


def test_a_driver_that_does_not_start(
    cuda: FakeCuda, workers: Workers, resumption: Resumption
) -> None:
    cuda.answer("cuInit", NO_DEVICE, always=True)
    resumption.check()
    with pytest.raises(GpuFailed, match=r"cuInit: .*NO_DEVICE"):
        resumption.resume(workers.pids)
    assert workers.states == ["checkpointed"] * 3


def test_a_fault_of_ours_is_told_where_it_matters(workers: Workers) -> None:
    def broken() -> Driver:
        raise ZeroDivisionError

    resumption = Resumption(broken)
    resumption.prepare()
    with pytest.raises(ZeroDivisionError):
        resumption.resume(workers.pids)


def test_nothing_is_left_running(workers: Workers, resumption: Resumption) -> None:
    before = set(threading.enumerate())
    resumption.resume(workers.pids)
    eventually(lambda: set(threading.enumerate()) <= before)  # one may just have said its last word
