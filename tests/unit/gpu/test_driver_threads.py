"""The driver's calls from several threads: nothing of ours stands in a queue."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes.cuda import FakeCuda

from shim.gpu.driver import Driver

PID = 4242
OLD, NEW = b"\x01" * 16, b"\x02" * 16
CHANGES = ["Lock", "Checkpoint", "Restore", "Unlock"]


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The signals SIGUSR1 that have been handled."""
    signals: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: signals.append(number))
    yield signals
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("change", CHANGES)
def test_calls_for_several_processes_overlap(cuda: FakeCuda, driver: Driver, change: str) -> None:
    """Nothing of ours stands in a queue: not the interpreter, and no lock."""
    pids = [PID, PID + 1, PID + 2, PID + 3]
    begins = {"Lock": "running", "Restore": "checkpointed"}.get(change, "locked")
    for pid in pids:
        cuda.add(pid, begins)
    verb: Callable[[int], None] = {
        "Lock": lambda pid: driver.lock(pid, 10),
        "Checkpoint": driver.checkpoint,
        "Restore": lambda pid: driver.restore(pid, [(OLD, NEW)]),
        "Unlock": driver.unlock,
    }[change]
    driver.init()
    cuda.forget()
    with cuda.together(len(pids), change), ThreadPoolExecutor(len(pids)) as pool:
        list(pool.map(verb, pids))
    calls = cuda.calls
    assert {call.pid for call in calls} == set(pids)
    assert all(one.overlaps(other) for one in calls for other in calls)


def test_another_thread_works_on_meanwhile(cuda: FakeCuda, driver: Driver) -> None:
    cuda.add(PID, "locked")
    working = threading.Thread(target=driver.checkpoint, args=(PID,))
    driver.init()
    with cuda.held("Checkpoint"):
        working.start()
        while not cuda.asked():  # Python runs here while the call is under way there
            pass
        assert cuda.calls[-1].result is None
    working.join()
    assert driver.state(PID) == "checkpointed"


def test_no_signal_interrupts_a_call(cuda: FakeCuda, driver: Driver, heard: list[int]) -> None:
    """It waits; and the next one comes as it always did."""
    cuda.add(PID)
    cuda.delay("Lock", 0.2)
    driver.init()
    here = threading.get_ident()
    held = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    disturbing = threading.Timer(0.02, signal.pthread_kill, (here, signal.SIGUSR1))
    disturbing.start()
    driver.lock(PID, 1)
    disturbing.join()
    assert heard == [signal.SIGUSR1]
    call = cuda.calls[-1]
    assert call.ended - call.begun >= 0.2  # the fake one's sleep ends when a signal comes
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == held
