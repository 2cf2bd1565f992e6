"""A restore and the cache: it is filled from there, or by the engine, and always with the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from fakes.cuda import FakeCuda
from fakes.gpu_snapshots import saved
from fakes.nvml import H100, numbered
from fakes.regions import UUIDS, content, pattern, put
from fakes.settled import eventually

from shim.cache.client import Lost
from shim.errors import GpuFailed
from shim.gpu.memory import resume
from shim.gpu.memory.device import Memory
from shim.gpu.memory.index import stored
from shim.gpu.memory.making import Delivered, Wanted
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

    def __init__(self, here: bool, fill: Callable[[], list[Delivered] | None]) -> None:
        self.here = here
        self.filled = fill
        self.said: list[str] = []

    def has(self) -> bool:
        return self.here

    def fill(self, wanted: Sequence[Wanted], made: Callable[[], None]) -> list[Delivered] | None:
        self.said.append("fill")
        assert [(one.uuid, one.size) for one in wanted] == [(UUIDS[0], len(d)) for d in WANTED]
        found = self.filled()
        made()
        return found

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


def lose() -> None:
    raise Lost


def filled(refill: Refill) -> list[bytes]:
    """What there is in the end; nobody gets it."""
    refill.prefetch()
    refill.begin(HERE)
    refill.give({})
    return [content(region) for region in refill._regions()]


@pytest.fixture
def there(cuda: FakeCuda) -> Iterator[Callable[[], list[Delivered]]]:
    """What a holder does, in this process."""
    with ExitStack() as stack:
        memory = Memory.open(cuda.library)
        stack.callback(memory.close)

        def make() -> list[Delivered]:
            made = []
            for data in WANTED:
                region = stack.enter_context(memory.create(UUIDS[0], len(data)))
                put(region, data)
                made.append(Delivered(region.uuid, region.size, region.descriptor()))
            return made

        yield make


def test_from_the_cache(
    cuda: FakeCuda, snapshot: Snapshot, there: Callable[[], list[Delivered]]
) -> None:
    """No file is read, and the engine needs no driver."""
    cache = Cache(True, there)
    found = stored(snapshot)
    assert found is not None
    opened: list[object] = []
    refill = Refill(lambda: opened.append(1), found, snapshot.config.gpu, cache)  # type: ignore[arg-type, return-value]
    cuda.trace()
    assert filled(refill) == WANTED
    assert refill.figures().cached
    assert refill._copy is not None
    assert refill._copy.progress().direct == refill._copy.progress().cached == 0
    assert {span.name for span in refill.timeline.spans} == {"make", "fill", "filled", "give"}
    refill.close()
    assert (cache.said, opened) == (["fill", "cancel"], [])


def test_by_the_engine_if_it_is_not_there(cuda: FakeCuda, snapshot: Snapshot) -> None:
    """The next one shall find it."""
    cache = Cache(False, lambda: None)
    refill = refill_of(snapshot, cuda, cache)
    assert filled(refill) == WANTED
    assert not refill.figures().cached
    refill.close()
    assert cache.said == ["fill", "offer", "cancel"]


def test_by_the_engine_if_it_is_lost(cuda: FakeCuda, snapshot: Snapshot) -> None:
    refill = refill_of(snapshot, cuda, Cache(True, lose))
    assert filled(refill) == WANTED
    refill.close()


def test_there_is_no_room_for_a_while(cuda: FakeCuda, snapshot: Snapshot) -> None:
    """The dead one's memory is his until the driver has seen that he is dead."""

    def lose_all() -> None:
        cuda.answer("cuMemCreate", OUT_OF_MEMORY, OUT_OF_MEMORY)
        raise Lost

    refill = refill_of(snapshot, cuda, Cache(True, lose_all))
    assert filled(refill) == WANTED
    refill.close()


def test_there_is_no_room_for_good(
    cuda: FakeCuda, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "_ROOM", 0.0)

    def lose_all() -> None:
        cuda.answer("cuMemCreate", OUT_OF_MEMORY, always=True)
        raise Lost

    refill = refill_of(snapshot, cuda, Cache(True, lose_all))
    with pytest.raises(GpuFailed, match="OUT_OF_MEMORY"):
        filled(refill)
    refill.close()


def test_nothing_but_zeros(cuda: FakeCuda, stores: snapshots.Store) -> None:
    """For that nobody is asked."""
    cache = Cache(True, lambda: None)
    refill = refill_of(saved(stores, "zeros", [bytes(2 << 20)]), cuda, cache)
    assert filled(refill) == [bytes(2 << 20)]
    refill.close()
    assert cache.said == []


def test_it_is_closed_while_it_is_filled(cuda: FakeCuda, snapshot: Snapshot) -> None:
    began, cancelled = threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        assert cancelled.wait(60)
        raise Lost

    cache = Cache(True, wait)
    cache.cancel = cancelled.set  # type: ignore[method-assign]
    refill = refill_of(snapshot, cuda, cache)
    refill.begin(HERE)
    eventually(began.is_set)
    refill.close()
