"""Regions that come to the holder one after the other; and what else may come instead."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes.cuda import FakeCuda
from fakes.host import open_fds
from fakes.regions import MIB, UUIDS, content, pattern
from fakes.settled import eventually, own_threads

from shim.cache import copying
from shim.cache.client import Cached, Lost
from shim.cache.pinned import PinnedMemory
from shim.cache.records import Record
from shim.cache.store import Store
from shim.cache.wire import receive, send, send_files
from shim.errors import GpuFailed
from shim.gpu.memory.device import Memory, Region
from shim.gpu.memory.making import Batch, Wanted

from .conftest import Saved, taken

MARKS = [("x" * 48, 1), ("." * 32, 2), ("1.x" * 20, 3), ("x", 4)]
DATA = [pattern(*mark) for mark in MARKS]
GPUS = [0, 0, 1, 0]
OPERATING_SYSTEM = 304


@dataclass
class Talk:
    """The holder's end of a connection, in a thread, and ours."""

    ours: socket.socket
    regions: list[Region]
    wait: Callable[[], BaseException | None]  # for its end

    def send(self, *numbers: int) -> None:
        send(self.ours, {"made": list(numbers)})
        self.hand([self.regions[number] for number in numbers])

    def hand(self, regions: Sequence[Region]) -> None:
        files = [region.descriptor() for region in regions]
        with suppress(BrokenPipeError, ConnectionResetError):  # it may have hung up already
            send_files(self.ours, files)
        for fd in files:
            os.close(fd)


@pytest.fixture
def talk(cache: Store, save: Saved, cuda: FakeCuda) -> Iterator[Talk]:
    """Whatever is said, in the end nobody has anything of it: no descriptor, no thread."""
    cuda.reset()
    key = taken(cache, save("one", *MARKS))
    holder, engine = PinnedMemory.open(cuda.library), Memory.open(cuda.library)
    for uuid in UUIDS[:2]:
        holder.use(uuid)
    with ExitStack() as stack:
        stack.callback(engine.close)
        stack.callback(holder.close)
        record = stack.enter_context(cache.using(key))
        assert record is not None
        regions = [
            stack.enter_context(engine.create(UUIDS[gpu], len(data)))
            for gpu, data in zip(GPUS, DATA, strict=True)
        ]
        for region in regions:
            region.share()  # it keeps a descriptor of its own
        before, threads = open_fds(), own_threads()
        ours, theirs = socket.socketpair()
        ended: list[BaseException | None] = []
        thread = threading.Thread(target=lambda: ended.append(of(theirs, holder, record, cache)))
        thread.start()

        def wait() -> BaseException | None:
            thread.join()
            return ended[0]

        yield Talk(ours, regions, wait)
        ours.close()
        thread.join()
        cuda.reset()
        eventually(lambda: own_threads() <= threads)
        assert open_fds() == before


def of(
    sock: socket.socket, memory: PinnedMemory, record: Record, store: Store
) -> BaseException | None:
    sock.settimeout(60)
    wanted = [(UUIDS[gpu], len(data)) for gpu, data in zip(GPUS, DATA, strict=True)]
    with closing(sock):
        try:
            copying.copy(sock, memory, wanted, record, store.memory(record))
        except (GpuFailed, OSError, ValueError) as error:
            return error
    return None


def test_each_is_filled_as_it_comes(talk: Talk) -> None:
    """In any order; one without data does not come."""
    talk.send(2)
    eventually(lambda: content(talk.regions[2]) == DATA[2])
    assert content(talk.regions[0]) == bytes(len(DATA[0]))
    talk.send(3, 0)
    assert talk.wait() is None
    assert [content(region) for region in talk.regions] == DATA


def test_the_driver_refuses_one(talk: Talk, cuda: FakeCuda) -> None:
    """It does not wait for the others, nor take them."""
    cuda.answer("cuMemcpyHtoDAsync_v2", OPERATING_SYSTEM, always=True)
    talk.send(0)
    failure = talk.wait()
    with pytest.raises(BrokenPipeError):
        talk.send(2, 3)
    assert isinstance(failure, GpuFailed)
    assert "cuMemcpyHtoDAsync: CUDA_ERROR_OPERATING_SYSTEM" in str(failure)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"made": []},
        {"made": 2},
        {"made": {"0": 1}},
        {"made": [0, 0]},
        {"made": [1]},  # there is nothing for it
        {"made": [4]},
        {"made": [-1]},
        {"made": [True]},
        {"made": ["0"]},
        {"made": [[0]]},
        {"made": [0] * 201},
        {"filled": [0]},
    ],
)
def test_regions_that_make_no_sense(talk: Talk, said: dict[str, Any]) -> None:
    talk.send(2)
    send(talk.ours, said)
    talk.hand(talk.regions[:1])
    assert isinstance(talk.wait(), ValueError)
    assert content(talk.regions[0]) == bytes(len(DATA[0]))


def test_one_that_has_come_already(talk: Talk) -> None:
    talk.send(2)
    talk.send(2)
    assert isinstance(talk.wait(), ValueError)


@pytest.mark.parametrize("data", [b"", b"\x05\0", b"\x02\0\0\0[]", b"\x02\0\0\0{]", b"\xff" * 4])
def test_an_engine_that_says_no_more(talk: Talk, data: bytes) -> None:
    talk.send(2)
    talk.ours.sendall(data)
    talk.ours.close()
    assert isinstance(talk.wait(), ValueError)


def test_descriptors_that_are_missing(talk: Talk) -> None:
    send(talk.ours, {"made": [0, 2, 3]})
    talk.hand(talk.regions[:1])
    talk.ours.close()
    assert isinstance(talk.wait(), ValueError)


def test_a_descriptor_of_something_else(talk: Talk) -> None:
    send(talk.ours, {"made": [0]})
    with open(__file__, "rb") as file:
        send_files(talk.ours, [file.fileno()])
    assert isinstance(talk.wait(), GpuFailed)


# ---- the engine's side ---------------------------------------------------------------------------


@pytest.fixture
def regions(cuda: FakeCuda) -> Iterator[list[Region]]:
    cuda.reset()
    memory = Memory.open(cuda.library)
    with ExitStack() as stack:
        stack.callback(memory.close)
        yield [stack.enter_context(memory.create(UUIDS[0], 2 * MIB)) for _ in range(3)]


class Holder:
    """Somebody who answers once, as a test wants it."""

    def __init__(self, folder: str, act: Callable[[socket.socket], None]) -> None:
        self.address = f"{folder}/socket"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen()
        self._act = act
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        with closing(self._listener), closing(self._listener.accept()[0]) as sock:
            sock.settimeout(60)
            receive(sock)
            send(sock, {"here": True})
            self._act(sock)


def wanted(regions: Sequence[Region]) -> list[Wanted]:
    return [Wanted(region.uuid, region.size) for region in regions]


def test_a_holder_that_gives_up_amid_the_making(tmp_path: Path, regions: list[Region]) -> None:
    """Its word is believed: it touches nothing any more."""
    told = threading.Event()

    def fail(sock: socket.socket) -> None:
        receive(sock)
        sock.recv(1)
        send(sock, {"error": {"class": "GpuFailed", "message": "no", "hint": ""}})

    def coming() -> Iterator[Batch]:
        yield [(0, regions[0])]
        holder.thread.join()
        told.set()
        yield [(2, regions[2])]
        yield [(1, regions[1])]

    holder = Holder(str(tmp_path), fail)
    cached = Cached(holder.address, "key", tmp_path, {0, 1, 2})
    assert not cached.fill(wanted(regions), coming())
    assert told.is_set()


def test_a_holder_that_dies_amid_the_making(tmp_path: Path, regions: list[Region]) -> None:
    def coming() -> Iterator[Batch]:
        yield [(0, regions[0])]
        holder.thread.join()
        yield [(2, regions[2])]
        yield [(1, regions[1])]

    holder = Holder(str(tmp_path), lambda sock: None)
    with pytest.raises(Lost):
        Cached(holder.address, "key", tmp_path, {0, 1, 2}).fill(wanted(regions), coming())


def test_a_region_that_cannot_be_made(tmp_path: Path, regions: list[Region]) -> None:
    """Then nothing of it is of use to anybody, and the holder sees that nobody is there."""
    ended: list[object] = []

    def listen(sock: socket.socket) -> None:
        ended.append((receive(sock) or {}).get("made"))
        sock.recv(1)
        ended.append(receive(sock))

    def coming() -> Iterator[Batch]:
        yield [(1, regions[1])]
        raise GpuFailed("there is no room")

    holder = Holder(str(tmp_path), listen)
    with pytest.raises(GpuFailed, match="no room"):
        Cached(holder.address, "key", tmp_path, {0, 1}).fill(wanted(regions), coming())
    holder.thread.join()
    assert ended == [[1], None]


def test_what_has_no_data_is_not_waited_for(tmp_path: Path, regions: list[Region]) -> None:
    come: list[object] = []

    def listen(sock: socket.socket) -> None:
        come.append((receive(sock) or {}).get("made"))
        sock.recv(1)
        send(sock, {"filled": 0, "seconds": 0.0})

    def coming() -> Iterator[Batch]:
        yield [(0, regions[0])]
        yield [(2, regions[2]), (1, regions[1])]
        raise AssertionError("nobody asks for more")

    holder = Holder(str(tmp_path), listen)
    assert Cached(holder.address, "key", tmp_path, {2}).fill(wanted(regions), coming())
    holder.thread.join()
    assert come == [[2]]


def test_nobody_is_asked_before_there_is_a_region(tmp_path: Path) -> None:
    """A driver may take seconds to load, and the holder would wait for us."""

    def fail(_: int) -> Batch:
        raise GpuFailed("there is no GPU")

    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        listener.settimeout(0)
        with pytest.raises(GpuFailed, match="no GPU"):
            Cached(str(tmp_path / "socket"), "key", tmp_path, {0}).fill([], map(fail, [0]))
        with pytest.raises(BlockingIOError):
            listener.accept()
