"""The holder, over its socket: what it has it copies, and nobody gets anything wrong."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fakes.cuda import FakeCuda
from fakes.gpu_snapshots import saved
from fakes.nvml import H100, numbered
from fakes.regions import UUIDS, fill, pattern
from fakes.settled import eventually

from shim.cache import client, copying, holder, wire
from shim.cache.client import Cached, Lost
from shim.cache.holder import Driver, Holder, listening
from shim.cache.intake import Intake
from shim.cache.reading import Reading
from shim.cache.store import Store
from shim.config import Config
from shim.errors import Cancelled, Damaged, InvalidArgument, NoSuchSnapshot, NotFound
from shim.gpu.memory.index import stored
from shim.gpu.memory.making import Wanted
from shim.snapshot import store as snapshots
from shim.snapshot.snapshot import Snapshot

from .conftest import SEGMENT

pytestmark = pytest.mark.usefixtures("nobody_is_left")

MARKS = [("x" * 48, 1), ("." * 32, 2), ("1.x" * 20, 3)]
OPERATING_SYSTEM = 304


@dataclass
class Running:
    """A holder in this process, and the engine's side of it."""

    config: Config
    store: Store
    stop: Callable[[], None]

    def of(self, snapshot: Snapshot) -> Cached:
        found = stored(snapshot)
        assert found is not None
        made = client.of(self.config, snapshot, found)
        assert made is not None
        return made

    def regions(self, snapshot: Snapshot, gpus: Sequence[int] = (0, 0, 0)) -> list[Wanted]:
        sizes = [region.size for region in snapshot.config.gpu.regions]
        return [Wanted(UUIDS[gpu], size) for gpu, size in zip(gpus, sizes, strict=False)]

    def warm(self, snapshot: Snapshot) -> None:
        said = list(self.ask("take", path=str(snapshot.path), wait=True))
        assert said[0] == {"queued": True}
        assert said[-1]["taken"] is True

    def ask(self, verb: str, **fields: Any) -> Iterator[dict[str, Any]]:
        return client.ask(self.config, {"verb": verb, **fields})


@pytest.fixture
def running(config: Config, tmp_path: Path, cuda: FakeCuda) -> Iterator[Running]:
    with ExitStack() as stack:
        driver = Driver(config.text("gpu.library"), lambda: [numbered(H100, 0)])
        stack.callback(driver.close)
        store = Store(
            tmp_path / "cache",
            3 * SEGMENT,
            segment=SEGMENT,
            pin=driver.pin,
            free=lambda: 1 << 40,
        )
        stack.callback(store.close)
        reading = Reading(config, store, 2)
        stack.callback(reading.close)
        listener = stack.enter_context(closing(listening(wire.socket_path(config))))
        made = Holder(store, driver, reading)
        serving = threading.Thread(target=made.serve, args=(listener,))
        serving.start()
        stack.callback(serving.join)
        stop = partial(made.stop, listener)
        stack.callback(stop)
        yield Running(config, store, stop)


@pytest.fixture
def snapshot(stores: snapshots.Store) -> Snapshot:
    return saved(stores, "one", [pattern(*mark) for mark in MARKS])


WANTED = [pattern(*mark) for mark in MARKS]


def test_what_it_has_it_copies(running: Running, snapshot: Snapshot) -> None:
    cached, regions = running.of(snapshot), running.regions(snapshot)
    assert not cached.has()
    assert fill(cached, regions) is None
    running.warm(snapshot)
    assert cached.has()
    assert fill(cached, regions) == WANTED
    assert running.store.accounts().pinned == running.store.accounts().held > 0


def test_several_gpus(running: Running, snapshot: Snapshot) -> None:
    """Also others than those it came from."""
    running.warm(snapshot)
    regions = running.regions(snapshot, (2, 0, 1))
    assert fill(running.of(snapshot), regions) == WANTED


def test_more_descriptors_than_a_message_takes(
    running: Running, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "BATCH", 1)
    running.warm(snapshot)
    regions = running.regions(snapshot)
    assert fill(running.of(snapshot), regions) == WANTED


def test_many_at_the_same_time(running: Running, snapshot: Snapshot) -> None:
    running.warm(snapshot)
    regions, done = running.regions(snapshot), list[object]()
    threads = [
        threading.Thread(target=lambda: done.append(fill(running.of(snapshot), regions)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [WANTED] * 4


def test_one_that_is_offered_comes_in(running: Running, snapshot: Snapshot) -> None:
    cached = running.of(snapshot)
    cached.offer()
    eventually(cached.has)


def test_another_snapshot(running: Running, snapshot: Snapshot, stores: snapshots.Store) -> None:
    """It has the same bytes, but is not the one that was read."""
    running.warm(snapshot)
    other = saved(stores, "other", [pattern(*mark) for mark in MARKS])
    assert not running.of(other).has()
    assert fill(running.of(other), running.regions(other)) is None


def test_regions_that_are_not_its_own(running: Running, snapshot: Snapshot) -> None:
    running.warm(snapshot)
    regions = running.regions(snapshot)
    assert fill(running.of(snapshot), regions[:2]) is None
    assert fill(running.of(snapshot), [regions[1], regions[0], regions[2]]) is None


@pytest.mark.parametrize("call", ["cuMemCreate", "cuMemMap", "cuMemcpyHtoDAsync_v2"])
def test_the_driver_refuses(
    running: Running, snapshot: Snapshot, cuda: FakeCuda, call: str
) -> None:
    """Then the engine does it."""
    running.warm(snapshot)
    regions = running.regions(snapshot)
    cuda.answer(call, OPERATING_SYSTEM)
    assert fill(running.of(snapshot), regions) is None
    assert fill(running.of(snapshot), regions) == WANTED


def test_memory_that_cannot_be_pinned(running: Running, snapshot: Snapshot, cuda: FakeCuda) -> None:
    cuda.answer("cuMemHostRegister_v2", OPERATING_SYSTEM, always=True)
    running.warm(snapshot)
    regions = running.regions(snapshot)
    assert fill(running.of(snapshot), regions) == WANTED
    assert running.store.accounts().pinned == 0


def test_a_damaged_snapshot(running: Running, snapshot: Snapshot) -> None:
    path = snapshot.piece("gpu-1.img.0000")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(Damaged, match="another checksum"):
        running.warm(snapshot)
    assert not running.of(snapshot).has()


def test_what_it_says_it_has(running: Running, snapshot: Snapshot) -> None:
    running.warm(snapshot)
    (found,) = running.ask("list")
    (account,) = found["snapshots"]
    assert account["path"] == str(snapshot.path)
    assert (found["limit"], account["busy"]) == (3 * SEGMENT, False)
    assert list(running.ask("drop", key=account["key"])) == [{"dropped": True}]
    with pytest.raises(NotFound, match="no such snapshot"):
        list(running.ask("drop", key=account["key"]))
    assert not running.of(snapshot).has()


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({}, InvalidArgument),
        ({"verb": "nothing"}, InvalidArgument),
        ({"verb": "has"}, InvalidArgument),
        ({"verb": "fill", "key": 1, "gpus": ["zz"], "regions": []}, InvalidArgument),
        ({"verb": "fill", "key": 1, "gpus": [], "regions": [[0, 1, False]]}, InvalidArgument),
        ({"verb": "fill", "key": 1, "gpus": [], "regions": [5]}, InvalidArgument),
        ({"verb": "take", "path": "/etc", "wait": True}, NoSuchSnapshot),
        ({"verb": "drop", "key": None}, NotFound),
    ],
)
def test_requests_that_make_no_sense(
    running: Running, message: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        list(client.ask(running.config, message))
    assert len(list(running.ask("list"))) == 1, "it is well"


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x05\0\0\0x", b"\x02\0\0\0[]", b"\1"])
def test_messages_that_are_none(running: Running, data: bytes) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.connect(wire.socket_path(running.config))
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    assert len(list(running.ask("list"))) == 1, "it is well"


def test_an_engine_that_dies_over_it(running: Running, snapshot: Snapshot) -> None:
    """The snapshot is not in use any more then."""
    running.warm(snapshot)
    regions = running.regions(snapshot)
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.connect(wire.socket_path(running.config))
        assert running.of(snapshot)._is_here(sock, regions)
        (account,) = running.store.accounts().snapshots
        assert account.busy
    eventually(lambda: not running.store.accounts().snapshots[0].busy)


def test_nobody_waits_any_more(running: Running, snapshot: Snapshot, cuda: FakeCuda) -> None:
    running.warm(snapshot)
    regions, cached = running.regions(snapshot), running.of(snapshot)
    ended: list[object] = []

    def try_it() -> None:
        try:
            ended.append(fill(cached, regions))
        except Lost:
            ended.append(Lost)

    with cuda.held("cuEventSynchronize"):
        cuda.trace()
        thread = threading.Thread(target=try_it)
        thread.start()
        eventually(lambda: cuda.count("cuEventSynchronize"))
        cached.cancel()
        thread.join()
    assert ended == [Lost]
    assert fill(cached, regions) is None, "it was cancelled for good"


def test_the_socket_is_roots(running: Running) -> None:
    assert Path(wire.socket_path(running.config)).stat().st_mode & 0o777 == 0o600


class Refusing:
    """A listener that refuses once, as it does when there are no descriptors left."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.refused = threading.Event()

    def accept(self) -> tuple[socket.socket, Any]:
        if not self.refused.is_set():
            self.refused.set()
            raise OSError(errno.EMFILE, "too many open files")
        return self._listener.accept()

    def shutdown(self, how: int) -> None:
        self._listener.shutdown(how)


def test_nobody_can_connect_for_a_while(
    config: Config, cache: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on: what it has is of use to whoever comes next."""
    monkeypatch.setattr(holder, "_PAUSE", 0.01)
    reading = Reading(config, cache, 1)
    with closing(listening(wire.socket_path(config))) as listener:
        refusing: Any = Refusing(listener)
        made = Holder(cache, Driver("/none"), reading)
        serving = threading.Thread(target=made.serve, args=(refusing,))
        serving.start()
        assert refusing.refused.wait(60)
        try:
            assert len(list(client.ask(config, {"verb": "list"}))) == 1
        finally:
            made.stop(refusing)
            serving.join()
            reading.close()


def test_a_guess_lets_nobody_go_who_was_here_lately(
    running: Running, snapshot: Snapshot, stores: snapshots.Store
) -> None:
    large = saved(stores, "large", [pattern("x" * 180, 5)])
    running.warm(large)
    running.of(snapshot).offer()
    other = saved(stores, "small", [pattern("1", 6)])
    running.of(other).offer()
    eventually(running.of(other).has)  # so the one before has been tried
    assert (running.of(large).has(), running.of(snapshot).has()) == (True, False)
    running.warm(snapshot)
    assert (running.of(large).has(), running.of(snapshot).has()) == (False, True)


def test_those_that_wait_when_it_ends(
    config: Config, snapshot: Snapshot, cache: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are told so."""
    began, go_on = threading.Event(), threading.Event()

    def run(self: Intake, store: Store, threads: int) -> None:
        began.set()
        assert go_on.wait(60)
        if self._stop.is_set():
            raise Cancelled("on purpose")

    monkeypatch.setattr(Intake, "run", run)
    reading = Reading(config, cache, 1)
    first = reading.add(snapshot.path, asked=False)
    eventually(began.is_set)
    second = reading.add(snapshot.path, asked=True)
    assert reading.add(snapshot.path, asked=True) is second
    closing_it = threading.Thread(target=reading.close)
    closing_it.start()
    assert second.ended.wait(60)
    assert first.intake._stop.wait(60)  # it is told a moment later
    go_on.set()
    closing_it.join()
    assert [type(job.error) for job in (first, second)] == [Cancelled, Cancelled]
    with pytest.raises(Cancelled):
        reading.add(snapshot.path, asked=True)


def test_who_waits_when_it_ends(
    running: Running, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He is told at once, and nobody waits for him."""

    def run(self: Intake, store: Store, threads: int) -> None:
        running.stop()
        assert self._stop.wait(60)
        raise Cancelled("on purpose")

    monkeypatch.setattr(Intake, "run", run)
    with pytest.raises(Cancelled, match="on purpose"):
        running.warm(snapshot)
