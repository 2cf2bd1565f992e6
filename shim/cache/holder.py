"""The holder: the process that has the node's cache, and makes GPU memory with what is there.

    python -m shim.cache.holder [--config FILE]

One a node, started by the service manager: it outlives pods and engines, and what it has outlives
it. When something is pinned for the first time, it makes a CUDA context on every GPU and keeps it,
which costs about half a GiB of the GPU's memory: rather then than amid a restore, which has counted
what is free. Whoever asks must be root, as whoever answers can read every snapshot.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from shim import log
from shim.cache import copying, loading, place
from shim.cache.pinned import PinnedMemory
from shim.cache.reading import Reading
from shim.cache.segments import SEGMENT, Segment
from shim.cache.store import HUGE, Store
from shim.cache.wire import as_error, peer, receive, send, socket_path
from shim.config import Config, load
from shim.errors import FailedPrecondition, GpuFailed, InvalidArgument, ThawError
from shim.gpu.memory.making import Wanted
from shim.gpu.nvml import Gpu, gpus

_GIB = 1 << 30
_PATIENCE = 10.0  # seconds for what somebody is about to say
_BETWEEN = 60.0  # seconds between two looks for what has changed
_LOOK = 0.2  # seconds between two words about how far something is
_PAUSE = 1.0  # seconds without accepting when that was refused
_MOST_READERS = 8

Reply = Callable[[Mapping[str, Any]], None]


class Driver:
    """The CUDA driver: loaded when it is first needed, and tried again when it was not there."""

    def __init__(self, library: str, look: Callable[[], Sequence[Gpu]] = gpus) -> None:
        self._library = library
        self._look = look
        self._lock = threading.Lock()
        self._memory: PinnedMemory | None = None
        self._said: dict[str, str] = {}

    @property
    def memory(self) -> PinnedMemory:
        """Its memory calls. Raises Unfit if there is none."""
        with self._lock:
            if self._memory is None:
                self._memory = PinnedMemory.open(self._library)
            return self._memory

    def pin(self, segment: Segment) -> None:
        """Pin a segment, if that can be done: copies from there are slow otherwise."""
        try:
            used = self._use(self._look())
            if used is not None:
                segment.unpin = self.memory.pin(used.uuid_bytes, segment.memory)
        except (ThawError, OSError) as error:
            self._complain("memory of the cache is not pinned", str(error))

    def _use(self, found: Sequence[Gpu]) -> Gpu | None:
        """The first GPU on which there is a context, once there is one on all where that can be."""
        used: list[Gpu] = []
        for gpu in found:
            try:
                self.memory.use(gpu.uuid_bytes)
                used.append(gpu)
            except GpuFailed as error:
                self._complain(f"the cache cannot use {gpu}", str(error))
        return used[0] if used else None

    def _complain(self, what: str, reason: str) -> None:
        """Once: it is tried again and again."""
        if self._said.get(what) != reason:
            self._said[what] = reason
            log.warning(what, reason=reason)

    def close(self) -> None:
        """Give the contexts back."""
        with self._lock:
            memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()


class Holder:
    """What is answered to whom; each connection has a thread of its own."""

    def __init__(self, store: Store, driver: Driver, reading: Reading) -> None:
        self._store = store
        self._driver = driver
        self._reading = reading
        self._connections: set[threading.Thread] = set()
        self._closing = threading.Event()

    def serve(self, listener: socket.socket) -> None:
        """Answer whoever connects, until `stop`; nothing is read in any more then."""
        threading.Thread(target=self._sweep, daemon=True).start()
        while not self._closing.is_set():
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if not self._closing.is_set():  # there are no descriptors left, say
                    log.warning("nobody can connect to the cache", reason=error.strerror)
                    time.sleep(_PAUSE)
                continue
            thread = threading.Thread(target=self._converse, args=(connection,), daemon=True)
            self._connections.add(thread)
            thread.start()
        self._reading.close()  # some of them wait for that
        for thread in list(self._connections):
            thread.join(_PATIENCE)

    def stop(self, listener: socket.socket) -> None:
        """Make `serve` return when what is under way has ended."""
        self._closing.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)

    def _converse(self, connection: socket.socket) -> None:
        try:
            with closing(connection):
                connection.settimeout(_PATIENCE)
                _check_peer(connection)
                request = receive(connection)
                if request is not None:
                    self._answer(connection, request)
        except (OSError, ValueError) as error:
            log.debug("a connection to the cache has ended", reason=str(error))
        finally:
            self._connections.discard(threading.current_thread())

    def _answer(self, connection: socket.socket, request: Mapping[str, Any]) -> None:
        verbs = {
            "has": self._has,
            "fill": self._fill,
            "take": self._take,
            "list": self._list,
            "drop": self._drop,
        }
        try:
            verb = verbs.get(str(request.get("verb")))
            if verb is None:
                raise InvalidArgument(f"the cache has no verb {request.get('verb')!a:.40}")
            verb(connection, request)
        except (LookupError, TypeError, ValueError) as error:
            send(connection, as_error(InvalidArgument(f"a request to the cache: {error!r:.200}")))
        except (ThawError, OSError) as error:
            send(connection, as_error(error))
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of everything
            log.exception(error)
            send(connection, as_error(error))

    def _has(self, connection: socket.socket, request: Mapping[str, Any]) -> None:
        send(connection, {"here": self._store.has(str(request["key"]))})

    def _fill(self, connection: socket.socket, request: Mapping[str, Any]) -> None:
        uuids = [bytes.fromhex(uuid) for uuid in request["gpus"]]
        wanted = [
            Wanted(uuids[int(gpu)], int(size), rdma is True)
            for gpu, size, rdma in request["regions"]
        ]
        with self._store.using(str(request["key"])) as record:
            if record is None or [region.size for region in wanted] != record.regions:
                send(connection, {"here": False})
                return
            memory = self._driver.memory
            send(connection, {"here": True})
            began = time.monotonic()
            with copying.copied(connection, memory, wanted, record, self._store.memory(record)):
                seconds = time.monotonic() - began
                send(connection, {"filled": record.bytes, "seconds": seconds})
        rate = record.bytes / _GIB / seconds if seconds else 0.0
        log.info("filled from the cache", path=record.path, bytes=record.bytes, gib_s=f"{rate:.1f}")

    def _take(self, connection: socket.socket, request: Mapping[str, Any]) -> None:
        waits = request["wait"] is True
        job = self._reading.add(Path(str(request["path"])), asked=waits)
        with suppress(OSError):  # nobody has to wait for it
            send(connection, {"queued": True})
            while waits and not job.ended.wait(_LOOK):
                send(connection, {"done": job.intake.done, "total": job.intake.total})
            if waits and job.error is not None:
                send(connection, as_error(job.error))
            elif waits:
                send(connection, {"taken": True, "total": job.intake.total})

    def _list(self, connection: socket.socket, request: Mapping[str, Any]) -> None:
        found = self._store.accounts()
        snapshots = [account._asdict() for account in found.snapshots]
        send(connection, found._asdict() | {"snapshots": snapshots})

    def _drop(self, connection: socket.socket, request: Mapping[str, Any]) -> None:
        self._store.drop(str(request["key"]))
        send(connection, {"dropped": True})

    def _sweep(self) -> None:
        while not self._closing.wait(_BETWEEN):
            loading.sweep(self._store)
            self._store.pin_rest()


def _check_peer(connection: socket.socket) -> None:
    """Raise OSError unless it is root (or whoever we are)."""
    _, uid = peer(connection)
    if uid not in (0, os.geteuid()):
        raise PermissionError(f"user {uid} has no business with the cache")


def listening(path: str) -> socket.socket:
    """The socket, root's alone. Whoever listened there before is gone."""
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen(64)
    return listener


def owned(folder: Path) -> int:
    """A descriptor that keeps others from the cache in that folder. Raises FailedPrecondition."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise FailedPrecondition(f"another holder has {folder}") from None
    return fd


def run(config: Config, folder: Path, *, segment: int = SEGMENT) -> None:
    """Hold the cache that is in `folder`, until SIGTERM or SIGINT. Raises ThawError and OSError."""
    size = int(config.number("cache.size") * _GIB)
    threads = max(1, min(_MOST_READERS, (os.cpu_count() or 1) // 2))
    with ExitStack() as stack:
        stack.callback(os.close, owned(folder))
        driver = Driver(config.text("gpu.library"))
        stack.callback(driver.close)
        store = Store(folder, size, segment=segment, pin=driver.pin)
        stack.callback(store.close)
        loading.load(store, threads)
        place.fit(folder, store.limit)
        reading = Reading(config, store, threads)
        stack.callback(reading.close)
        listener = stack.enter_context(closing(listening(socket_path(config))))
        stack.callback(Path(socket_path(config)).unlink, missing_ok=True)
        holder = Holder(store, driver, reading)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: holder.stop(listener))
        log.info("the cache is ready", folder=folder, bytes=store.limit, snapshots=len(store.held))
        _notify("READY=1")
        holder.serve(listener)


def main() -> int:
    """The program; its exit status."""
    parser = argparse.ArgumentParser(description="Holds the node's cache of GPU memory.")
    parser.add_argument("--config", default="", metavar="FILE")
    parser.add_argument("--remove", action="store_true", help="give all memory back, and end")
    args = parser.parse_args()
    try:
        config = load(args.config)
        log.set_level(config.text("log.level"))
        size, folder = int(config.number("cache.size") * _GIB), place.folder_of(config)
        if args.remove:
            place.remove(folder)
            return 0
        if size < HUGE:
            place.remove(folder)
            print("thaw: cache.size is 0: there is no cache", file=sys.stderr)
            _notify("READY=1")  # or that would be a failure
            return 0
        place.make(folder, size)
        run(config, folder)
    except (ThawError, OSError) as error:
        print(f"thaw: {error}", file=sys.stderr)
        return 1
    return 0


def _notify(state: str) -> None:
    """Tell the service manager: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), f"\0{address[1:]}" if address[0] == "@" else address)


if __name__ == "__main__":
    sys.exit(main())
