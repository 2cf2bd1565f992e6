"""A running loop with a server on it, and a peer that speaks raw frames."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fakes.settled import eventually, own_threads

from shim.loop import Loop
from shim.proto.known import Empty
from shim.proto.ttrpc_pb import Request, Response
from shim.proto.wire import Message
from shim.ttrpc.frames import REQUEST, RESPONSE, Reader, pack
from shim.ttrpc.server import Method, Server

SERVICE = "test.Service"
PATIENCE = 30.0  # seconds after which a test that hangs is given up


class Bench:
    """A loop on a thread of its own, and what went wrong on it."""

    def __init__(self, folder: Path) -> None:
        self.loop = Loop()
        self.errors: list[BaseException] = []  # in callbacks: there must be none
        self.reported: list[BaseException] = []  # through on_error
        self.path = str(folder / "s")
        self.server: Server | None = None
        self._peers: list[Peer] = []
        self.loop.on_error = self.errors.append
        self._before = own_threads()
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def do(self, fn: Callable[[], None]) -> None:
        """Run `fn` on the loop thread, and return when it is done."""
        done = threading.Event()

        def run() -> None:
            try:
                fn()
            finally:
                done.set()

        self.loop.call_soon(run)
        assert done.wait(PATIENCE)

    def until(self, true: Callable[[], bool]) -> None:
        """Return as soon as `true` is true between two rounds of the loop."""
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends:
            found: list[bool] = []
            self.do(lambda found=found: found.append(true()))  # type: ignore[misc]
            if found[0]:
                return
        raise AssertionError("it never came true")

    def listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen()
        return listener

    def serve(self, methods: Mapping[str, Method], listener: socket.socket | None = None) -> Server:
        self.server = Server(
            self.loop, listener or self.listen(), {SERVICE: methods}, self.reported.append
        )
        return self.server

    def peer(self) -> Peer:
        peer = Peer(self.path)
        self._peers.append(peer)
        return peer

    def stop(self) -> None:
        for peer in self._peers:
            peer.close()
        if self.server is not None:
            self.do(self.server.close)
        self.loop.stop()
        self._thread.join(PATIENCE)
        eventually(lambda: own_threads() <= self._before)  # handlers still give their answers to it
        self.loop.close()


class Peer:
    """A client that sends what it is told, right or wrong."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        try:
            self.sock.connect(path)
        except OSError:
            self.sock.close()
            raise
        self._reader = Reader()
        self._answers: list[tuple[int, Response]] = []

    def ask(self, stream: int, method: str, request: Message | None = None, **more: object) -> None:
        fields: dict[str, Any] = {"payload": (request or Empty()).encode(), **more}
        body = Request(**({"service": SERVICE, "method": method} | fields)).encode()
        self.sock.sendall(pack(stream, REQUEST, body))

    def answer(self) -> tuple[int, Response]:
        """Return the next answer and its stream; EOFError if the server has closed."""
        while not self._answers:
            data = self.sock.recv(1 << 16)
            if not data:
                raise EOFError
            for frame in self._reader.feed(data):
                assert frame.kind == RESPONSE
                assert frame.flags == 0
                assert frame.body is not None
                self._answers.append((frame.stream, Response.decode(frame.body)))
        return self._answers.pop(0)

    def status(self) -> tuple[int, int, str]:
        """Return stream, code and message of the next answer, which must be an error."""
        stream, response = self.answer()
        assert response.status is not None
        return stream, response.status.code, response.status.message

    def silent(self) -> bool:
        """Whether nothing has come that was not asked for."""
        return not self._answers and not select.select([self.sock], [], [], 0)[0]

    def close(self) -> None:
        self.sock.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.stop()
    assert not made.errors, made.errors
