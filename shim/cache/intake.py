"""Reading a snapshot into the cache: every extent is verified, and its digest made, as it comes in.

The files are read past the page cache, where that is possible: what lies in the cache need not lie
there, too.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from shim._native import ffi, lib
from shim.cache import records
from shim.cache.records import Extent, Record
from shim.cache.store import Chunk, Store
from shim.cache.wire import key_of
from shim.errors import Cancelled, Damaged, StoreFull, Unfit
from shim.gpu.memory.index import Stored, stored
from shim.snapshot.config import DAMAGED
from shim.snapshot.extents import SIZE
from shim.snapshot.locks import held
from shim.snapshot.pieces import open_source
from shim.snapshot.snapshot import Snapshot

Read = Callable[[memoryview], tuple[bytes, int]]  # → digest and checksum


class Draft:
    """A snapshot on its way into a store; unless it is published, nothing of it stays.

    `idle`: only snapshots that were not used for so many seconds have to go for it.
    """

    def __init__(
        self, store: Store, key: str, path: Path, regions: list[int], extents: bytes, idle: float
    ) -> None:
        self._store = store
        self._about = (key, path, regions, extents)
        self._idle = idle
        self._chunks: dict[int, tuple[bytes, Chunk]] = {}  # by the numbers of extents
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Give up what was not published."""
        chunks, self._chunks = self._chunks, {}
        for name, _chunk in chunks.values():
            self._store.unsettle(name)

    def add(self, number: int, length: int, read: Read) -> None:
        """Have an extent's bytes read to a place for them. Raises StoreFull."""
        segment, place = self._store.room(length, self._idle)
        try:
            with segment.view(place, length) as view:
                name, checksum = read(view)
        except BaseException:
            self._store.give(segment, place, length)
            raise
        settled = self._store.settle(name, Chunk(segment.number, place, length, checksum))
        with self._lock:
            self._chunks[number] = name, settled

    def publish(self) -> None:
        """All extents have been added: the snapshot is in the cache from here on."""
        key, path, regions, extents = self._about
        found = [self._chunks[number] for number in range(len(extents) // SIZE)]
        lies = records.placed(
            extents, [chunk.segment for _, chunk in found], [chunk.place for _, chunk in found]
        )
        record = Record(key, path, regions, lies, b"".join(name for name, _ in found))
        if self._store.publish(record):
            self._chunks = {}


class Intake:
    """The snapshot in a folder, to be read in once; its data is what `stored` says.

    `done` and `total` are bytes; any thread may look. `idle` as of Draft.
    """

    def __init__(self, path: Path, found: Stored, *, idle: float = 0.0) -> None:
        self.path = path
        self.key = key_of(path, found)
        self.total = found.bytes
        self.done = 0
        self._stored = found
        self._idle = idle
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failure: BaseException | None = None  # the first one

    @classmethod
    def of(cls, snapshot: Snapshot, *, idle: float = 0.0) -> Self:
        """Raises Damaged if it is, and Unfit if there is nothing to read."""
        found = stored(snapshot)
        if found is None:
            raise Unfit(
                f"{snapshot.path} has no GPU memory that could be in the cache",
                hint="what the driver moves by itself cannot",
            )
        return cls(snapshot.path, found, idle=idle)

    def cancel(self) -> None:
        """Make it end soon: `run` raises Cancelled."""
        self._stop.set()

    def run(self, store: Store, threads: int) -> None:
        """Read it. Raises Damaged, StoreFull, Cancelled and OSError: nothing of it stays then."""
        if store.has(self.key):
            return
        found = self._stored
        if found.bytes > store.limit:
            raise StoreFull(
                f"{self.path} has {found.bytes} bytes of GPU memory, the cache {store.limit}",
                hint="cache.size is what it may take",
            )
        with ExitStack() as stack:
            stack.callback(store.release)  # what was needed for a moment only
            stack.enter_context(held(self.path))
            files = []
            for path, blob in zip(found.paths, found.sources, strict=True):
                files.append(_opened(path, blob.size))
                stack.callback(os.close, files[-1])
            draft = stack.enter_context(
                Draft(store, self.key, self.path, found.regions, found.extents, self._idle)
            )
            pool = stack.enter_context(ThreadPoolExecutor(threads, initializer=_step_back))
            adding = [
                pool.submit(self._add, draft, files, number, extent)
                for number, extent in enumerate(records.listed(found.extents))
            ]
            wait(adding)
            if self._failure is not None:
                raise self._failure
            draft.publish()

    def _add(self, draft: Draft, files: list[int], number: int, extent: Extent) -> None:
        try:
            if self._stop.is_set():
                raise Cancelled(f"{self.path} was not read into the cache")
            draft.add(number, extent.length, lambda view: self._read(files, extent, view))
        except BaseException as error:  # noqa: BLE001 - raised by `run`
            with self._lock:
                self._failure = self._failure or error
            self._stop.set()  # the others need not go on
            return
        with self._lock:
            self.done += extent.length

    def _read(self, files: list[int], extent: Extent, view: memoryview) -> tuple[bytes, int]:
        name = self._stored.sources[extent.source].name
        where = f"{name} at {extent.offset} ({extent.length} bytes)"
        if not _read(files[extent.source], extent.offset, view):
            raise Damaged(f"{where} is cut off", hint=DAMAGED)
        if lib.thaw_crc32c(0, ffi.from_buffer("char[]", view), len(view)) != extent.checksum:
            raise Damaged(f"{where} has another checksum", hint=DAMAGED)
        return hashlib.sha256(view).digest(), extent.checksum


def _step_back() -> None:
    """The calling thread, of Linux's, lets those go first who serve somebody."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _opened(path: Path, size: int) -> int:
    """Past the page cache, unless the file system refuses."""
    fd = open_source(path, size)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError:
        pass
    return fd


def _read(fd: int, offset: int, view: memoryview) -> bool:
    """Fill the view; False if the file is too short."""
    done = 0
    while done < len(view):
        try:
            with view[done:] as rest:
                got = os.preadv(fd, [rest], offset + done)
        except OSError as error:
            # As of a disk with larger blocks, or at the ragged end of a file that was cut off.
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
            if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
                raise
            fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
            continue
        if got == 0:
            return False
        done += got
    return True
