"""A restore and the cache: it is filled from there, or by the engine, and always with the same."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import pytest
from fakes.cuda import FakeCuda
from fakes.gpu_snapshots import saved
from fakes.nvml import H100, numbered
from fakes.regions import content, pattern, put
from fakes.settled import eventually

from shim.cache.client import Lost
from shim.errors import GpuFailed
from shim.gpu.memory import resume
from shim.gpu.memory.device import Memory, Region
from shim.gpu.memory.index import stored
from shim.gpu.memory.making import Batch, Wanted
from shim.gpu.memory.resume import Refill
from shim.snapshot import store as snapshots
from shim.snapshot.snapshot import Snapshot

pytestmark = pytest.mark.usefixtures("nobody_is_left")

MARKS = [("x" * 48, 1), ("1.x" * 20, 3)]
WANTED = [pattern(*mark) for mark in MARKS]
HERE = {numbered(H100, 0).uuid: numbered(H100, 0).uuid}
OUT_OF_MEMORY = 2


class Cache:
    """What stands in for the client: it does what a test says."""

    def __init__(self, here: bool, fill: Callable[[Sequence[Region]], bool]) -> None:
        self.here = here
        self.filled = fill
        self.said: list[str] = []

    def has(self) -> bool:
        return self.here

    def fill(self, wanted: Sequence[Wanted], coming: Iterable[Batch]) -> bool:
        self.said.append("fill")
        come = dict(chain.from_iterable(coming))
        assert [(come[n].uuid, come[n].size) for n in sorted(come)] == [w[:2] for w in wanted]
        return self.filled([come[number] for number in sorted(come)])

    def offer(self) -> None:
        self.said.append("offer")

    def cancel(self) -> None:
        self.said.append("cancel")


@pytest.fixture
def snapshot(stores: snapshots.Store) -> Snapshot:
    return saved(stores, "one", WANTED)


def refill_of(snapshot: Snapshot, cuda: FakeCuda, cache: Any) -> Refill:
    found = stored(snapshot)
    assert found is not None
    memory = lambda: Memory.open(cuda.library)  # noqa: E731
    return Refill(memory, found, snapshot.config.gpu, cache)


def filled(refill: Refill) -> list[bytes]:
    """What there is in the end; nobody gets it."""
    refill.prefetch()
    refill.begin(HERE)
    refill.give({})
    return [content(region) for region in refill._all().regions]


def from_there(regions: Sequence[Region]) -> bool:
    for region, data in zip(regions, WANTED, strict=True):
        put(region, data)
    return True


def test_from_the_cache(cuda: FakeCuda, snapshot: Snapshot) -> None:
    """No file is read."""
    cache = Cache(True, from_there)
    refill = refill_of(snapshot, cuda, cache)
    cuda.trace()
    assert filled(refill) == WANTED
    assert refill.figures().cached
    assert cuda.count("cuMemcpyHtoDAsync_v2") == 0
    assert refill._copy is not None
    assert refill._copy.progress().direct == refill._copy.progress().cached == 0
    refill.close()
    assert cache.said == ["fill", "cancel"]


def test_by_the_engine_if_it_is_not_there(cuda: FakeCuda, snapshot: Snapshot) -> None:
    """The next one shall find it."""
    cache = Cache(False, lambda _: False)
    refill = refill_of(snapshot, cuda, cache)
    assert filled(refill) == WANTED
    assert not refill.figures().cached
    refill.close()
    assert cache.said == ["fill", "offer", "cancel"]


def test_by_the_engine_if_it_fails_half_way(cuda: FakeCuda, snapshot: Snapshot) -> None:
    def half(regions: Sequence[Region]) -> bool:
        put(regions[0], WANTED[0])
        return False

    refill = refill_of(snapshot, cuda, Cache(True, half))
    assert filled(refill) == WANTED
    refill.close()


def test_other_memory_if_nobody_knows_who_writes_to_it(cuda: FakeCuda, snapshot: Snapshot) -> None:
    late: list[int] = []

    def lose(regions: Sequence[Region]) -> bool:
        late.extend(region.descriptor() for region in regions)
        raise Lost

    refill = refill_of(snapshot, cuda, Cache(True, lose))
    assert filled(refill) == WANTED
    for fd in late:
        os.pwrite(fd, b"late" * 1000, 0)
        os.close(fd)
    assert [content(region) for region in refill._all().regions] == WANTED
    refill.close()


def test_there_is_no_room_for_a_while(cuda: FakeCuda, snapshot: Snapshot) -> None:
    """The dead one's memory is his until the driver has seen that he is dead."""

    def lose(regions: Sequence[Region]) -> bool:
        cuda.answer("cuMemCreate", OUT_OF_MEMORY, OUT_OF_MEMORY)
        raise Lost

    refill = refill_of(snapshot, cuda, Cache(True, lose))
    assert filled(refill) == WANTED
    refill.close()


def test_there_is_no_room_for_good(
    cuda: FakeCuda, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "_ROOM", 0.0)

    def lose(regions: Sequence[Region]) -> bool:
        cuda.answer("cuMemCreate", OUT_OF_MEMORY, always=True)
        raise Lost

    refill = refill_of(snapshot, cuda, Cache(True, lose))
    with pytest.raises(GpuFailed, match="OUT_OF_MEMORY"):
        filled(refill)
    refill.close()


def test_nothing_but_zeros(cuda: FakeCuda, stores: snapshots.Store) -> None:
    """For that nobody is asked."""
    cache = Cache(True, lambda _: False)
    refill = refill_of(saved(stores, "zeros", [bytes(2 << 20)]), cuda, cache)
    assert filled(refill) == [bytes(2 << 20)]
    refill.close()
    assert cache.said == []


def test_it_is_closed_while_it_is_filled(cuda: FakeCuda, snapshot: Snapshot) -> None:
    began, cancelled = threading.Event(), threading.Event()

    def wait(regions: Sequence[Region]) -> bool:
        began.set()
        assert cancelled.wait(60)
        raise Lost

    cache = Cache(True, wait)
    cache.cancel = cancelled.set  # type: ignore[method-assign]
    refill = refill_of(snapshot, cuda, cache)
    refill.begin(HERE)
    eventually(began.is_set)
    refill.close()
