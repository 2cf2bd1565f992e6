"""From the cache into an engine's regions, as these come: the holder's side of `fill`.

Taking part in a region, copying and letting go of it again is one thread's work, and several do it:
what the driver does besides for one region goes on while bytes of others are copied.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from shim.cache.pinned import PinnedMemory, put
from shim.cache.records import Record, by_region
from shim.cache.wire import BATCH, receive, receive_files

_THREADS = 4  # for each GPU

Wanted = Sequence[tuple[bytes, int]]  # of each region, its GPU's UUID and its size in bytes


def copy(
    connection: socket.socket,
    memory: PinnedMemory,
    wanted: Wanted,
    record: Record,
    sources: Sequence[memoryview],
) -> None:
    """Fill all regions that the record has data for, as they come over the connection.

    When it returns, also after a failure, nobody here touches or has any of them. Raises GpuFailed;
    OSError and ValueError if what comes makes no sense, or nothing comes.
    """
    uuids = {uuid for uuid, _ in wanted}
    with ThreadPoolExecutor(_THREADS * max(1, len(uuids))) as pool:
        run = _Run(connection, memory, wanted, by_region(record.extents), sources, pool)
        try:
            run.receive()
        except BaseException:
            if not run.failed():
                raise
    run.check()


class _Run:
    def __init__(
        self,
        connection: socket.socket,
        memory: PinnedMemory,
        wanted: Wanted,
        missing: dict[int, bytes],
        sources: Sequence[memoryview],
        pool: ThreadPoolExecutor,
    ) -> None:
        self._connection = connection
        self._memory = memory
        self._wanted = wanted
        self._missing = missing
        self._sources = sources
        self._pool = pool
        self._lock = threading.Lock()  # of the two that follow
        self._over = False  # something has failed
        self._failures: list[BaseException] = []

    def receive(self) -> None:
        while self._missing:
            numbers = _numbers(receive(self._connection), self._missing)
            files = receive_files(self._connection, len(numbers))
            for number, fd in zip(numbers, files, strict=True):
                extents = self._missing.pop(number)
                self._pool.submit(self._into, number, fd, extents)

    def failed(self) -> bool:
        """No more is copied: there is no more to hear. Whether it is a copy that has failed."""
        with self._lock:
            self._over = True
            return bool(self._failures)

    def check(self) -> None:
        """Once all have ended, raise the first failure; it is not kept, nor what it was about."""
        if self._failures:
            failure = self._failures[0]
            self._failures.clear()
            try:
                raise failure
            finally:
                del failure

    def _into(self, number: int, fd: int, extents: bytes) -> None:
        try:
            if not self._over:
                with self._memory.take(*self._wanted[number], fd) as region:
                    put([region], self._sources, extents)
        except BaseException as error:  # noqa: BLE001 - raised by `check`
            with self._lock:
                self._over = True
                self._failures.append(error)
            with suppress(OSError):  # whoever listens, and the engine, need not go on
                self._connection.shutdown(socket.SHUT_RD)
        finally:
            os.close(fd)


def _numbers(message: Mapping[str, object] | None, missing: Mapping[int, bytes]) -> list[int]:
    """Of the regions whose descriptors come next. Raises ValueError."""
    found = (message or {}).get("made")
    if not isinstance(found, list) or not 0 < len(found) <= BATCH:
        raise ValueError("no regions come")
    numbers = [number for number in found if type(number) is int and number in missing]
    if len(set(numbers)) < len(found):
        raise ValueError("a region comes that nobody waits for")
    return numbers
