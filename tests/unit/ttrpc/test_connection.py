from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shim.ttrpc.connection import _BACKLOG, Connection
from shim.ttrpc.frames import MAX_BODY, REQUEST, RESPONSE, Frame, Reader, pack

PATIENCE = 30.0


class Ends:
    """A connection on the bench's loop, and the other end of it."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self.frames: list[Frame] = []
        self.flushed = 0
        self.closed = threading.Event()
        here, self.peer = socket.socketpair()
        self.peer.settimeout(PATIENCE)
        self.connection = Connection(
            bench.loop, here, self.frames.append, self._flushed, self.closed.set
        )

    def _flushed(self) -> None:
        self.flushed += 1

    def send(self, frame: bytes) -> None:
        self.bench.do(lambda: self.connection.send(frame))

    def read_bodies(self, count: int) -> list[bytes | None]:
        reader = Reader()
        bodies: list[bytes | None] = []
        while len(bodies) < count:
            bodies += [frame.body for frame in reader.feed(self.peer.recv(1 << 20))]
        return bodies


@pytest.fixture
def ends(bench: Any) -> Iterator[Ends]:
    made = Ends(bench)
    yield made
    made.peer.close()
    bench.do(made.connection.close)


def test_half_a_frame_waits_for_the_other_half(bench: Any, ends: Ends) -> None:
    data = pack(1, REQUEST, b"hello")
    ends.peer.sendall(data[:4])
    bench.do(lambda: None)
    ends.peer.sendall(data[4:12])
    bench.do(lambda: None)
    assert ends.frames == []
    ends.peer.sendall(data[12:] + pack(3, REQUEST, b"more"))
    bench.until(lambda: len(ends.frames) == 2)
    assert [frame.body for frame in ends.frames] == [b"hello", b"more"]


def test_a_slow_reader_gets_everything_in_order(bench: Any, ends: Ends) -> None:
    for stream in range(3):
        ends.send(pack(stream, RESPONSE, bytes([stream]) * MAX_BODY))
    assert not ends.connection.flushed
    assert ends.flushed == 0
    assert ends.read_bodies(3) == [bytes([stream]) * MAX_BODY for stream in range(3)]
    bench.until(lambda: ends.connection.flushed)
    assert ends.flushed == 1


def test_who_does_not_read_is_not_read(bench: Any, ends: Ends) -> None:
    count = _BACKLOG // MAX_BODY + 1
    for stream in range(count):
        ends.send(pack(stream, RESPONSE, bytes(MAX_BODY)))
    ends.peer.sendall(pack(1, REQUEST, b"later"))
    bench.do(lambda: None)
    bench.do(lambda: None)
    assert ends.frames == []
    ends.read_bodies(count)
    bench.until(lambda: len(ends.frames) == 1)


def test_the_end_is_noticed_even_while_not_reading(bench: Any, ends: Ends) -> None:
    for stream in range(_BACKLOG // MAX_BODY + 1):
        ends.send(pack(stream, RESPONSE, bytes(MAX_BODY)))
    ends.peer.close()
    assert ends.closed.wait(PATIENCE)
    assert ends.connection.flushed


def test_what_arrived_before_the_end_is_delivered(bench: Any, ends: Ends) -> None:
    ends.peer.sendall(pack(1, REQUEST, b"last"))
    ends.peer.close()
    assert ends.closed.wait(PATIENCE)
    assert [frame.body for frame in ends.frames] == [b"last"]


def test_a_closed_connection_takes_and_says_nothing(bench: Any, ends: Ends) -> None:
    bench.do(ends.connection.close)
    bench.do(ends.connection.close)
    ends.send(pack(1, RESPONSE, b"late"))
    assert ends.peer.recv(1) == b""
    assert ends.closed.is_set()


def test_frames_after_a_close_are_not_delivered(bench: Any, ends: Ends) -> None:
    seen: list[Frame] = []

    def close(frame: Frame) -> None:
        seen.append(frame)
        ends.connection.close()

    ends.connection._on_frame = close
    ends.peer.sendall(pack(1, REQUEST, b"a") + pack(3, REQUEST, b"b"))
    assert ends.closed.wait(PATIENCE)
    assert len(seen) == 1
