"""The sockets of a pool of connections: urllib3 has no other way to end a wait for an answer."""

from __future__ import annotations

import socket
import threading
import weakref

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


class Sockets:
    """Every socket that connections of `pools` (scheme → class of pool) have opened."""

    def __init__(self) -> None:
        self._opened: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._shut = False
        opened = self._add

        class Plain(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                opened(self.sock)

        class Secure(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                opened(self.sock)

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
