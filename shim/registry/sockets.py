"""The sockets of a pool of connections: urllib3 has no other way to end a wait for an answer.

Its time limits are for the next byte. So the head of an answer has a deadline of its own here, and
its body gets what deadline_of() gives.
"""

from __future__ import annotations

import functools
import http.client
import socket
import threading
import weakref
from collections.abc import Callable

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.response import BaseHTTPResponse, HTTPResponse

from shim.registry.deadlines import Deadline, Watch

_INFORMATIONAL = 8  # answers that say that there will be an answer, at most

_deadlines: weakref.WeakKeyDictionary[BaseHTTPResponse, Deadline] = weakref.WeakKeyDictionary()


def deadline_of(response: BaseHTTPResponse) -> Deadline:
    """The deadline for what is still to come of an answer: see Deadline.within()."""
    return _deadlines[response]


class _Answer(http.client.HTTPResponse):
    """Not one `100 Continue` after another, without end."""

    _statuses = 0

    def _read_status(self) -> tuple[str, int, str]:
        self._statuses += 1
        if self._statuses > _INFORMATIONAL:
            raise http.client.HTTPException("no answer, but that there will be one")
        return super()._read_status()  # type: ignore[misc, no-any-return]


class Sockets:
    """Every socket that connections of `pools` (scheme → class of pool) have opened."""

    def __init__(self) -> None:
        self._opened: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._shut = False
        self._watch = Watch()
        opened, limited = self._add, self._limited

        class Plain(HTTPConnection):
            response_class = _Answer

            def connect(self) -> None:
                super().connect()
                opened(self.sock)

            def getresponse(self) -> HTTPResponse:  # type: ignore[override]
                return limited(self, super().getresponse)

        class Secure(HTTPSConnection):
            response_class = _Answer

            def connect(self) -> None:
                super().connect()
                opened(self.sock)

            def getresponse(self) -> HTTPResponse:  # type: ignore[override]
                return limited(self, super().getresponse)

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = Secure

        self.pools: dict[str, type[HTTPConnectionPool]] = {"http": PlainPool, "https": SecurePool}

    def shut(self) -> None:
        """End all of them, and all to come: whoever waits for one gets an error."""
        with self._lock:
            self._shut = True
            for one in self._opened:
                _end(one)

    def close(self) -> None:
        """There is nothing more to wait for."""
        self._watch.stop()

    def _limited(
        self, connection: HTTPConnection, answer: Callable[[], HTTPResponse]
    ) -> HTTPResponse:
        deadline = Deadline(self._watch, functools.partial(_end, connection.sock))
        response: HTTPResponse | None = None
        try:
            with deadline.within(float(connection.timeout or 0)):
                response = answer()
        except TimeoutError:
            if response:  # of a head that was cut off
                response.close()
            raise
        _deadlines[response] = deadline
        return response

    def _add(self, one: socket.socket) -> None:
        with self._lock:
            self._opened.add(one)
            if self._shut:
                _end(one)


def _end(one: socket.socket) -> None:
    try:
        # Not a TLS socket's own method: it would take its state from its reader.
        socket.socket.shutdown(one, socket.SHUT_RDWR)
    except OSError:
        pass  # closed already
