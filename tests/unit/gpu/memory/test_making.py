"""Regions that are made by several threads; whatever fails, nothing of them stays."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from itertools import chain

import pytest
from fakes.cuda import FakeCuda
from fakes.regions import MIB, UUIDS, content, used
from fakes.settled import eventually, own_threads

from shim.errors import GpuFailed, RestoreFailed
from shim.gpu.memory.device import Memory, Region
from shim.gpu.memory.making import Making, Wanted

OUT_OF_MEMORY = 2


@pytest.fixture
def memory(gpus: FakeCuda) -> Iterator[Memory]:
    """Nothing of it is left in the end: no memory, no thread."""
    gpus.reset()
    gpus.trace()
    before, opened = own_threads(), Memory.open(gpus.library)
    yield opened
    gpus.reset()
    assert [used(gpus, gpu) for gpu in range(3)] == [0, 0, 0]
    opened.close()
    eventually(lambda: own_threads() <= before)


def wanted(*gpus: int) -> list[Wanted]:
    """Each has a size of its own."""
    return [Wanted(UUIDS[gpu], (n + 1) * 2 * MIB) for n, gpu in enumerate(gpus)]


def test_all_of_them(gpus: FakeCuda, memory: Memory) -> None:
    listed, said = wanted(0, 1, 0, 2, 1, 0), threading.Event()
    making = Making(memory, listed, [5, 4, 3, 2, 1, 0], made=said.set)
    come = dict(chain.from_iterable(making.batches()))
    assert said.wait(60)
    making.wait()
    assert sorted(come) == list(range(6))
    assert making.regions == [come[number] for number in range(6)]
    for region, (uuid, size, _) in zip(making.regions, listed, strict=True):
        assert (region.uuid, content(region)) == (uuid, bytes(size))
    assert dict(chain.from_iterable(making.batches())) == come, "whoever comes late gets all"
    making.close()
    making.close()
    with pytest.raises(ValueError, match="closed"):
        come[0].descriptor()


def test_one_thread_keeps_to_the_order(memory: Memory) -> None:
    making = Making(memory, wanted(0, 0, 0, 0), [2, 0, 3, 1], makers=1)
    assert [number for number, _ in chain.from_iterable(making.batches())] == [2, 0, 3, 1]
    making.close()


def test_none(memory: Memory) -> None:
    said = threading.Event()
    making = Making(memory, [], [], made=said.set)
    making.wait()
    assert (list(making.batches()), making.regions, said.is_set()) == ([], [], True)
    making.close()


def test_those_that_are_there_do_not_wait_for_others(gpus: FakeCuda, memory: Memory) -> None:
    """And several are under way on each GPU, but no more than was said."""
    under_way = threading.Semaphore(0)
    go_on, lock = threading.Event(), threading.Lock()
    now: dict[bytes, int] = {}
    most: dict[bytes, int] = {}
    create = memory.create

    def slow(uuid: bytes, size: int, *, rdma: bool = False) -> Region:
        if size == 2 * MIB:
            return create(uuid, size, rdma=rdma)
        with lock:
            now[uuid] = now.get(uuid, 0) + 1
            most[uuid] = max(now[uuid], most.get(uuid, 0))
        under_way.release()
        assert go_on.wait(60)
        with lock:
            now[uuid] -= 1
        return create(uuid, size, rdma=rdma)

    memory.create = slow  # type: ignore[method-assign]
    making = Making(memory, wanted(0, 0, 1, 0, 1, 0, 1), range(7), makers=2)
    batches = making.batches()
    assert [number for number, _ in next(batches)] == [0]
    for _ in range(4):
        assert under_way.acquire(timeout=60)
    go_on.set()
    assert sorted(number for number, _ in chain.from_iterable(batches)) == [1, 2, 3, 4, 5, 6]
    assert most == {UUIDS[0]: 2, UUIDS[1]: 2}
    making.close()


def test_there_is_no_room_for_all(gpus: FakeCuda, memory: Memory) -> None:
    (gpus.folder / "memory").write_text(str(9 * MIB))
    said = threading.Event()
    making = Making(memory, wanted(0, 0, 0), [0, 1, 2], made=said.set)
    with pytest.raises(GpuFailed, match="OUT_OF_MEMORY"):
        list(making.batches())
    with pytest.raises(GpuFailed, match="OUT_OF_MEMORY"):
        making.wait()
    making.close()
    assert not said.is_set()
    (gpus.folder / "memory").unlink()


def test_it_is_cancelled(gpus: FakeCuda, memory: Memory) -> None:
    """Whoever waits hears of it at once; closing waits for what the driver is at."""
    with gpus.held("cuMemCreate"):
        making = Making(memory, wanted(0, 0, 0), [0, 1, 2], makers=1)
        eventually(lambda: gpus.count("cuMemCreate"))
        making.cancel()
        with pytest.raises(RestoreFailed, match="cancelled"):
            making.wait()
        closing = threading.Thread(target=making.close)
        closing.start()
        assert closing.is_alive()
    closing.join()
    assert (gpus.count("cuMemCreate"), gpus.count("cuMemRelease")) == (1, 1)


def test_there_are_no_threads(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second cannot be started: what the first has made goes, too."""
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def once(self: threading.Thread) -> None:
        if started:
            eventually(lambda: not started[0].is_alive())
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", once)
    with pytest.raises(RuntimeError, match="new thread"):
        Making(memory, wanted(0, 0), [0, 1])


def test_descriptors_are_made_ahead_of_need(gpus: FakeCuda, memory: Memory) -> None:
    """And whoever asks gets one of his own, that outlives the region's."""
    making = Making(memory, wanted(0, 1, 0), [0, 1, 2])
    making.wait()
    making.settle()
    assert gpus.count("cuMemExportToShareableHandle") == 3
    fds = [region.descriptor() for region in making.regions for _ in range(2)]
    assert gpus.count("cuMemExportToShareableHandle") == 3
    making.close()
    assert len({os.fstat(fd).st_ino for fd in fds}) == 3
    assert not any(os.get_inheritable(fd) for fd in fds)
    for fd in fds:
        os.close(fd)


def test_a_descriptor_that_fails_ahead_of_need_is_asked_for_again(
    gpus: FakeCuda, memory: Memory
) -> None:
    gpus.answer("cuMemExportToShareableHandle", OUT_OF_MEMORY, OUT_OF_MEMORY)  # the second for us
    making = Making(memory, wanted(0), [0])
    making.wait()
    making.settle()
    (region,) = making.regions
    with pytest.raises(GpuFailed, match="OUT_OF_MEMORY"):
        region.descriptor()
    os.close(region.descriptor())
    making.close()
