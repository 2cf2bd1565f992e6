"""Servers of one answer: what a worker says to a request, rightly, wrongly or not at all."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from shim.errors import ThawError

Talk = Callable[[socket.socket, bytes], None]


def answer(status: int, body: bytes = b"", *, length: int | None = None) -> Talk:
    """Answers so; `length` is what it says of the body."""

    def talk(connection: socket.socket, _request: bytes) -> None:
        size = len(body) if length is None else length
        head = f"HTTP/1.1 {status} Some\r\nContent-Length: {size}\r\n\r\n"
        connection.sendall(head.encode() + body)

    return talk


def refusal(error: type[ThawError], act: Callable[[float], object]) -> str:
    """What `act(seconds)` fails with, given more time for as long as the answer is late."""
    said = "no answer"
    for seconds in (0.3, 1, 3, 9):
        if "no answer" in said:
            with pytest.raises(error) as failed:
                act(seconds)
            said = failed.value.message
    return said


def silent(connection: socket.socket, _request: bytes) -> None:
    """Says nothing until it is left alone."""
    connection.recv(1)


def by_drops(data: bytes, ever: bytes) -> Talk:
    """Says that, and then something else byte by byte until it is left alone."""

    def talk(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(data)
        for byte in itertools.cycle(ever):
            connection.sendall(bytes([byte]))
            time.sleep(0.02)

    return talk


class Talker:
    """What was asked of a server, and where it is."""

    def __init__(self, server: socket.socket, talk: Talk) -> None:
        self.port: int = server.getsockname()[1]
        self.talk = talk
        self.heard: list[bytes] = []
        self._server = server
        self._open: list[socket.socket] = []

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self._open.append(connection)
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            heard = _read(connection)
            self.heard.append(heard)
            self.talk(connection, heard)

    def stop(self) -> None:
        for each in (self._server, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@contextmanager
def talker(talk: Talk, server: socket.socket | None = None) -> Iterator[Talker]:
    """A server, of this namespace's loopback unless a listening socket is given."""
    made = Talker(server or socket.create_server(("127.0.0.1", 0)), talk)
    thread = threading.Thread(target=made.serve)
    thread.start()
    try:
        yield made
    finally:
        made.stop()
        thread.join()


def _read(connection: socket.socket) -> bytes:
    found = b""
    while b"\r\n\r\n" not in found:
        data = connection.recv(65536)
        if not data:
            return found
        found += data
    head, _, body = found.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    wanted = int(lengths[0].partition(b":")[2]) if lengths else 0
    while len(body) < wanted:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body
