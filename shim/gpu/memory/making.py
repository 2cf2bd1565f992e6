"""Regions of GPU memory that are made by several threads, and used as they come.

Making one, and a descriptor of it, takes the driver about a millisecond (H100), more or less
whatever its size is, and a worker may have hundreds: so whoever fills them begins with the first,
and descriptors are made while they are being filled.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from shim.errors import GpuFailed, RestoreFailed
from shim.gpu.memory.device import Memory, Region

MAKERS = 4  # threads for each GPU: the driver does a part of it for one at a time

Batch = list[tuple[int, Region]]


class Wanted(NamedTuple):
    """A region that is to be."""

    uuid: bytes  # of its GPU, 16 bytes
    size: int  # bytes
    rdma: bool = False  # network cards are to reach it


class Delivered:
    """A region that another process has made, for us: a descriptor, and no context is needed."""

    def __init__(self, uuid: bytes, size: int, fd: int) -> None:
        self.uuid = uuid  # the GPU's
        self.size = size  # bytes
        self._fd = fd

    def descriptor(self) -> int:
        """A new one, the caller's to close: see Region."""
        return os.dup(self._fd)

    def opened(self, memory: Memory) -> Region:
        """Here, to be worked with: the caller's to close. Raises GpuFailed."""
        return memory.take(self.uuid, self.size, self._fd)

    def close(self) -> None:
        """Let go of it; again is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


Shared = Region | Delivered  # what can be handed on


class Making:
    """Regions under way from here on, on each GPU in the given order; `close` lets go of them all.

    `order` has the number in `wanted` of each. `made` is called once, when all are there, and must
    not wait for anybody. At the first failure no more are begun. Any thread may call anything.
    """

    def __init__(
        self,
        memory: Memory,
        wanted: Sequence[Wanted],
        order: Sequence[int],
        *,
        makers: int = MAKERS,
        made: Callable[[], None] = lambda: None,
    ) -> None:
        self._memory = memory
        self._wanted = wanted
        self._call = made
        self._changed = threading.Condition()  # of all that follows
        self._come: Batch = []  # in the order in which they were made
        self._failure: BaseException | None = None
        queues: dict[bytes, deque[int]] = {}
        for number in order:
            queues.setdefault(wanted[number].uuid, deque()).append(number)
        self._threads = [
            threading.Thread(target=self._work, args=(queue,), daemon=True)
            for queue in queues.values()
            for _ in range(min(makers, len(queue)))
        ]
        if not self._threads:
            made()
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self.close()
            raise

    @property
    def regions(self) -> list[Region]:
        """All, by number, once all are there."""
        with self._changed:
            return [region for _, region in sorted(self._come, key=lambda one: one[0])]

    def batches(self) -> Iterator[Batch]:
        """All with their numbers, as they come: each time those that are new, at least one.

        Raises what `wait` raises, whatever has come before.
        """
        at = 0
        while at < len(self._wanted):
            with self._changed:
                self._wait(at + 1)
                new = self._come[at:]
            yield new
            at += len(new)

    def wait(self) -> None:
        """Wait until all are there. Raises GpuFailed, and RestoreFailed if they never will be."""
        with self._changed:
            self._wait(len(self._wanted))

    def settle(self) -> None:
        """Wait until nothing is done with the regions here any more."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def cancel(self) -> None:
        """No more are begun, and nobody waits for them."""
        self._fail(RestoreFailed("making GPU memory was cancelled"))

    def close(self) -> None:
        """Cancel it, and let go of what was made; again is fine."""
        self.cancel()
        self.settle()
        for region in self.regions:
            with suppress(GpuFailed):  # it goes with this process
                region.close()

    def _wait(self, count: int) -> None:
        """Until there are so many. With the lock held."""
        self._changed.wait_for(lambda: len(self._come) >= count or self._failure is not None)
        if self._failure is not None:
            raise self._failure

    def _fail(self, failure: BaseException) -> None:
        with self._changed:
            if self._failure is None:
                self._failure = failure
            self._changed.notify_all()

    def _work(self, queue: deque[int]) -> None:
        try:
            mine = []
            while self._failure is None and (number := _next(queue)) is not None:
                mine.append(self._make(number))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._fail(error)
            return
        with suppress(GpuFailed):  # whoever wants a descriptor asks again
            for region in mine:
                if self._failure is None:
                    region.share()

    def _make(self, number: int) -> Region:
        uuid, size, rdma = self._wanted[number]
        region = self._memory.create(uuid, size, rdma=rdma)
        with self._changed:
            self._come.append((number, region))
            if len(self._come) == len(self._wanted):
                self._call()
            self._changed.notify_all()
        return region


def _next(queue: deque[int]) -> int | None:
    try:
        return queue.popleft()
    except IndexError:
        return None
