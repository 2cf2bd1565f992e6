"""Copying between descriptors on the loop: one `_Copy` per direction, with back-pressure."""

from __future__ import annotations

import errno
import os

from shim.lean.threads import Event, Lock
from shim.loop import EPOLLIN, EPOLLOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.loop import Loop

CHUNK = 65536  # bytes per read: a pipe's default capacity


class Copies:
    """The running copies of one process. Safe to use from any thread."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._copies: list[_Copy] = []
        self._outputs = 0
        self._counting = Lock()
        self._drained = Event()
        self._drained.set()

    def add(self, source: int, sink: int, *, output: bool = False) -> None:
        """Copy from `source` to `sink` until the end, then close both. Takes both descriptors.

        `output` copies are what `drain` waits for.
        """
        os.set_blocking(source, False)
        os.set_blocking(sink, False)
        copy = _Copy(self._loop, source, sink, (lambda: self._ended(output)))
        self._copies.append(copy)
        if output:
            with self._counting:
                self._outputs += 1
                self._drained.clear()
        self._loop.call_soon(copy.start)

    def drain(self, seconds: float) -> bool:
        """Wait until every output copy has ended; False if that took longer than `seconds`."""
        return self._drained.wait(seconds)

    def close(self) -> None:
        """End every copy now."""
        copies, self._copies = self._copies, []
        for copy in copies:
            self._loop.call_soon(copy.end)

    def _ended(self, output: bool) -> None:
        if output:
            with self._counting:
                self._outputs -= 1
                if self._outputs == 0:
                    self._drained.set()


class _Copy:
    """One direction. All methods run on the loop thread."""

    def __init__(self, loop: Loop, source: int, sink: int, ended: Callable[[], None]) -> None:
        self.sink = sink
        self._loop = loop
        self._source = source
        self._ended = ended
        self._pending = b""
        self._open = True

    def start(self) -> None:
        if self._open:
            self._loop.watch(self._source, EPOLLIN, self._readable)

    def end(self) -> None:
        if not self._open:
            return
        self._open = False
        for fd in (self._source, self.sink):
            self._loop.unwatch(fd)
            os.close(fd)
        self._ended()

    def _readable(self, _mask: int) -> None:
        # HUP may come with data still in the pipe: read on until the read itself says "end".
        try:
            data = os.read(self._source, CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:  # EIO: the last holder of a terminal is gone
                self.end()
                raise
            data = b""
        if data:
            self._write(data)
        else:
            self.end()

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self.sink, data) :]
            except BlockingIOError:
                self._wait_for_sink(data)
                return
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.EIO):
                    self.end()
                    raise
                self.end()
                return

    def _wait_for_sink(self, data: bytes) -> None:
        if not self._pending:
            self._loop.unwatch(self._source)
            self._loop.watch(self.sink, EPOLLOUT, self._writable)
        self._pending = data

    def _writable(self, _mask: int) -> None:
        data, self._pending = self._pending, b""
        self._loop.unwatch(self.sink)
        self._write(data)
        if self._open and not self._pending:
            self._loop.watch(self._source, EPOLLIN, self._readable)
