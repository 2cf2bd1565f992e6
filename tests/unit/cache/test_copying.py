"""Regions on their way from the holder to an engine; and what becomes of them if one gives up."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fakes.cuda import PASS, FakeCuda
from fakes.host import open_fds
from fakes.regions import MIB, UUIDS, fill, pattern, used
from fakes.settled import eventually, own_threads

from shim.cache import copying
from shim.cache.client import Cached, Lost
from shim.cache.pinned import PinnedMemory
from shim.cache.records import Record
from shim.cache.store import Store
from shim.cache.wire import receive, receive_files, send, send_files
from shim.errors import GpuFailed
from shim.gpu.memory.device import Region
from shim.gpu.memory.making import Making, Wanted

from .conftest import Saved, taken

MARKS = [("." * 32, 2), ("x" * 48, 1), ("1.x" * 20, 3), ("x", 4)]
DATA = [pattern(*mark) for mark in MARKS]
GPUS = [0, 0, 1, 0]
WANTED = [Wanted(UUIDS[gpu], len(data), gpu == 1) for gpu, data in zip(GPUS, DATA, strict=True)]
OUT_OF_MEMORY, OPERATING_SYSTEM = 2, 304


@dataclass
class Talk:
    """The holder's end of a connection, in a thread, and ours."""

    ours: socket.socket
    cuda: FakeCuda
    filled: threading.Event  # it has said so
    wait: Callable[[], BaseException | None]  # for its end

    def take(self) -> dict[int, int]:
        """All regions: a descriptor of each."""
        come: dict[int, int] = {}
        while len(come) < len(WANTED):
            numbers = (receive(self.ours) or {})["made"]
            come |= zip(numbers, receive_files(self.ours, len(numbers)), strict=True)
        return come

    @property
    def held(self) -> int:
        """Bytes on all GPUs."""
        return sum(used(self.cuda, gpu) for gpu in set(GPUS))


@pytest.fixture
def holder(cuda: FakeCuda) -> Iterator[PinnedMemory]:
    """The holder's memory calls."""
    cuda.reset()
    memory = PinnedMemory.open(cuda.library)
    yield memory
    cuda.reset()
    memory.close()


@pytest.fixture
def record(cache: Store, save: Saved) -> Iterator[Record]:
    """What the cache has, in use."""
    with cache.using(taken(cache, save("one", *MARKS))) as found:
        assert found is not None
        yield found


@pytest.fixture
def talk(cache: Store, record: Record, holder: PinnedMemory, cuda: FakeCuda) -> Iterator[Talk]:
    """Whatever happens, nobody has anything of it in the end: no descriptor, memory or thread."""
    cuda.trace()
    for uuid in UUIDS[:2]:
        holder.use(uuid)
    fds, threads = open_fds(), own_threads()
    ours, theirs = socket.socketpair()
    filled, ended = threading.Event(), list[BaseException | None]()
    run = lambda: ended.append(of(theirs, holder, record, cache, filled))  # noqa: E731
    thread = threading.Thread(target=run)
    thread.start()

    def wait() -> BaseException | None:
        thread.join()
        return ended[0]

    made = Talk(ours, cuda, filled, wait)
    yield made
    ours.close()
    thread.join()
    cuda.reset()
    eventually(lambda: own_threads() <= threads)
    assert (open_fds(), made.held) == (fds, 0)


def of(
    sock: socket.socket,
    memory: PinnedMemory,
    record: Record,
    store: Store,
    filled: threading.Event,
) -> BaseException | None:
    sock.settimeout(60)
    with closing(sock):
        try:
            with copying.copied(sock, memory, WANTED, record, store.memory(record)):
                filled.set()
        except (GpuFailed, OSError, ValueError) as error:
            return error
    return None


def test_all_come_and_are_filled(talk: Talk) -> None:
    """What has no data as well; the holder has none of them afterwards."""
    come = talk.take()
    try:
        assert talk.wait() is None
        assert talk.filled.is_set()
        assert talk.held == 0
        assert [os.pread(come[n], len(data), 0) for n, data in enumerate(DATA)] == DATA
    finally:
        for fd in come.values():
            os.close(fd)


def test_a_copy_that_fails(talk: Talk) -> None:
    talk.cuda.answer("cuMemcpyHtoDAsync_v2", OPERATING_SYSTEM, always=True)
    failure = talk.wait()
    assert isinstance(failure, GpuFailed)
    assert "cuMemcpyHtoDAsync: CUDA_ERROR_OPERATING_SYSTEM" in str(failure)
    assert talk.held == 0
    assert not talk.filled.is_set()


@pytest.mark.parametrize("call", ["cuMemCreate", "cuMemExportToShareableHandle"])
def test_one_that_cannot_be_made(
    cache: Store, record: Record, holder: PinnedMemory, cuda: FakeCuda, call: str
) -> None:
    ours, theirs = socket.socketpair()
    with closing(ours):
        cuda.answer(call, *[PASS] * 2, OUT_OF_MEMORY, always=True)
        failure = of(theirs, holder, record, cache, threading.Event())
    assert isinstance(failure, GpuFailed)
    assert "OUT_OF_MEMORY" in str(failure)
    assert used(cuda) == used(cuda, 1) == 0


def test_what_has_data_is_made_first(
    cache: Store, record: Record, holder: PinnedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And as it was: network cards reach what they have reached."""
    made: list[tuple[int, bool]] = []
    create = PinnedMemory.create

    def note(self: PinnedMemory, uuid: bytes, size: int, *, rdma: bool = False) -> Region:
        made.append((size, rdma))
        return create(self, uuid, size, rdma=rdma)

    monkeypatch.setattr(PinnedMemory, "create", note)
    monkeypatch.setattr(copying, "Making", partial(Making, makers=1))
    wanted = [Wanted(UUIDS[0], len(data), data is DATA[2]) for data in DATA]
    ours, theirs = socket.socketpair()
    with (
        closing(ours),
        closing(theirs),
        copying.copied(theirs, holder, wanted, record, cache.memory(record)),
    ):
        pass
    order = [1, 2, 3, 0]
    assert made == [(wanted[number].size, number == 2) for number in order]


def test_an_engine_that_hangs_up_at_once(talk: Talk) -> None:
    talk.ours.close()
    assert isinstance(talk.wait(), OSError)
    assert talk.held == 0


def test_an_engine_that_hangs_up_amid_the_copies(
    cache: Store,
    save: Saved,
    holder: PinnedMemory,
    cuda: FakeCuda,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing more is copied than what is under way: others may want the memory."""
    under_way: list[copying._Copies] = []

    class Noted(copying._Copies):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            under_way.append(self)

    monkeypatch.setattr(copying, "_Copies", Noted)
    key = taken(cache, save("one", *[("x" * 8, seed) for seed in range(1, 16)]))
    wanted = [Wanted(UUIDS[0], 2 * MIB)] * 15
    ours, theirs = socket.socketpair()
    ended: list[BaseException] = []

    def run(record: Record) -> None:
        try:
            with copying.copied(theirs, holder, wanted, record, cache.memory(record)):
                pass
        except OSError as error:
            ended.append(error)

    with closing(theirs), cache.using(key) as record:
        assert record is not None
        with cuda.held("cuEventSynchronize"):
            cuda.trace()
            thread = threading.Thread(target=run, args=(record,))
            thread.start()
            eventually(lambda: cuda.count("cuEventSynchronize") == copying._THREADS)
            eventually(lambda: used(cuda) == 15 * 2 * MIB)
            ours.close()
            eventually(lambda: under_way[0]._over)
        thread.join()
        assert cuda.count("cuEventSynchronize") == copying._THREADS
    assert [type(error) for error in ended] in ([ConnectionResetError], [BrokenPipeError])
    assert used(cuda) == 0


# ---- the engine's side ---------------------------------------------------------------------------

ERROR = {"error": {"class": "GpuFailed", "message": "no", "hint": ""}}
FILLED = {"filled": 0, "seconds": 0.0}
THREE = [Wanted(UUIDS[0], 2 * MIB)] * 3


class Holder:
    """Somebody who answers once, as a test wants it: messages, and numbers of descriptors."""

    def __init__(self, folder: Path, *said: dict[str, Any] | int | bytes) -> None:
        self.cached = Cached(str(folder / "socket"), "key", folder)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "socket"))
        self._listener.listen()
        self._said = said
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with closing(self._listener), closing(self._listener.accept()[0]) as sock:
            sock.settimeout(60)
            receive(sock)
            send(sock, {"here": True})
            with open("/dev/zero", "rb") as zeros, suppress(BrokenPipeError, ConnectionResetError):
                for one in self._said:
                    if isinstance(one, dict):
                        send(sock, one)
                    elif isinstance(one, int):
                        send_files(sock, [zeros.fileno()] * one)
                    else:
                        sock.sendall(one)

    def end(self) -> None:
        self._thread.join()


def made(*numbers: object) -> dict[str, Any]:
    return {"made": list(numbers)}


@pytest.mark.parametrize("before", [(), (made(1), 1), (made(2, 0, 1), 3)])
def test_a_holder_that_gives_up(tmp_path: Path, before: tuple[Any, ...]) -> None:
    """Its word is believed: it has none of them any more."""
    holder, fds = Holder(tmp_path, *before, ERROR), open_fds()
    assert fill(holder.cached, THREE) is None
    holder.end()
    assert len(open_fds()) <= len(fds)


@pytest.mark.parametrize(
    "said",
    [
        (),
        (made(1), 1),
        (made(2, 0, 1), 3),
        (FILLED,),
        (made(1), 1, FILLED),
        (made(), 1),
        ({"made": 1}, 1),
        (made(0, 0), 2),
        (made(0), 1, made(0), 1),
        (made(3), 1),
        (made(-1), 1),
        (made(True), 1),
        (made("0"), 1),
        (made([0]), 1),
        (made(0, 1), 1),
        (made(0), 2),
        ({"nothing": 1},),
        (b"\x05\0",),
        (b"\x02\0\0\0[]",),
        (b"\x02\0\0\0{]",),
        (b"\xff" * 4,),
    ],
)
def test_a_holder_that_is_not_to_be_understood(tmp_path: Path, said: tuple[Any, ...]) -> None:
    """Or that is dead; no descriptor of its is kept."""
    holder, fds = Holder(tmp_path, *said), open_fds()
    with pytest.raises(Lost):
        holder.cached.fill(THREE, lambda: None)
    holder.end()
    assert len(open_fds()) <= len(fds)


def test_it_is_told_when_all_are_there(tmp_path: Path) -> None:
    """Before they are filled."""
    holder, told = Holder(tmp_path, made(1), 1, made(2, 0), 2), list[str]()
    with pytest.raises(Lost):
        holder.cached.fill(THREE, lambda: told.append("all"))
    holder.end()
    assert told == ["all"]
