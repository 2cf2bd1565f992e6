"""Regions made for an engine, and filled from the cache: the holder's side of `fill`.

The holder makes them because it has a context on every GPU: an engine would need a fifth of a
second for one (H100), and half a GiB of the GPU's memory, while CRIU and the driver are at work.
Descriptors go to the engine while bytes are being copied, by several threads: what the driver does
besides for one region goes on beside the copies of others.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

from shim.cache.pinned import PinnedMemory, put
from shim.cache.records import Record, by_region
from shim.cache.wire import BATCH, send, send_files
from shim.gpu.memory.device import Region
from shim.gpu.memory.making import Batch, Making, Wanted

_THREADS = 4  # for each GPU


@contextmanager
def copied(
    connection: socket.socket,
    memory: PinnedMemory,
    wanted: Sequence[Wanted],
    record: Record,
    sources: Sequence[memoryview],
) -> Iterator[None]:
    """A block in which an engine, at the other end, has all regions, with the record's data.

    They are made in the order in which the record has data for them; the others, which are all
    zeros, come last. Leaving the block, or a failure, lets go of them here: what the engine has got
    is its own, and nobody here touches it. Raises GpuFailed; OSError if the engine hangs up.
    """
    data = by_region(record.extents)
    order = [*data, *(number for number in range(len(wanted)) if number not in data)]
    with closing(Making(memory, wanted, order)) as making:
        with closing(_Copies(connection, data, sources)) as copies:
            copies.run(making, _THREADS * max(1, len({region.uuid for region in wanted})))
        yield


class _Copies:
    """Under way, of one request. Whatever happens, none is when `run` returns."""

    def __init__(
        self, connection: socket.socket, data: Mapping[int, bytes], sources: Sequence[memoryview]
    ) -> None:
        self._connection = connection
        self._data = data
        self._sources = sources
        self._ended = os.eventfd(0, os.EFD_CLOEXEC)  # counts copies
        self._lock = threading.Lock()  # of what follows
        self._over = False  # something has failed
        self._failures: list[BaseException] = []

    def run(self, making: Making, threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            try:
                for batch in making.batches():
                    for number, region in batch:
                        if number in self._data:
                            pool.submit(self._copy, region, self._data[number])
                    for at in range(0, len(batch), BATCH):
                        self._hand_over(batch[at : at + BATCH])
                    self._check()
                self._wait()
            except BaseException:
                self._over = True
                raise

    def close(self) -> None:
        os.close(self._ended)

    def _hand_over(self, batch: Batch) -> None:
        files: list[int] = []
        try:
            files.extend(region.descriptor() for _, region in batch)
            send(self._connection, {"made": [number for number, _ in batch]})
            send_files(self._connection, files)
        finally:
            for fd in files:
                os.close(fd)

    def _wait(self) -> None:
        """For all copies. Raises ConnectionResetError if nobody waits for them any more."""
        left = len(self._data)
        poll = select.poll()
        for fd in (self._ended, self._connection.fileno()):
            poll.register(fd, select.POLLIN)
        while left:
            ready = [fd for fd, _ in poll.poll()]
            if self._ended in ready:
                left -= os.eventfd_read(self._ended)
                self._check()
            elif ready:  # it has nothing more to say
                raise ConnectionResetError("the engine has hung up")

    def _copy(self, region: Region, extents: bytes) -> None:
        try:
            if not self._over:
                put([region], self._sources, extents)
        except BaseException as error:  # noqa: BLE001 - raised by `_check`
            with self._lock:
                self._over = True
                self._failures.append(error)
        finally:
            os.eventfd_write(self._ended, 1)

    def _check(self) -> None:
        """Raise the first failure; it is not kept, nor what it was about."""
        with self._lock:
            failures, self._failures = self._failures, []
        if failures:
            failure = failures[0]
            failures.clear()
            try:
                raise failure
            finally:
                del failure
